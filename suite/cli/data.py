"""`buzzer data`: generates, converts, scores and describes data sets."""

import inspect
import json
import math
import os
from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from buzzer import caches
from buzzer.datasets.workers import usable_cores
from buzzer.errors import UsageError
from buzzer.models.api.context import Data
from buzzer.suite import registry
from buzzer.suite.cli import options
from buzzer.suite.cli.options import DATA, LIMITS, OUTPUT, option
from buzzer.suite.cli.signals import ProgressDisplay
from buzzer.suite.config_file import check_scale
from buzzer.suite.records import integrity
from buzzer.suite.records import rescore as rescoring
from buzzer.suite.records.collection import some_record_files
from buzzer.suite.records.schema import Record
from buzzer.suite.run import reaper
from buzzer.suite.run.resolve import check_numbers
from buzzer.suite.run.task_runs import sample_option
from buzzer.suite.run.worker import load_entry

app = typer.Typer(help="Generate, convert, score and describe data sets.", no_args_is_help=True)


@app.command()
def generate(
    task: options.Dataset,
    out: Annotated[Path, option(OUTPUT, "Folder to create; must not exist.", metavar="FOLDER")],
    scale: Annotated[float, options.SCALE] = 0.01,
    seed: options.Seed = 0,
    train_scale: options.TrainScale = None,
    test_scale: Annotated[
        float | None,
        option(DATA, "Share of the official size of the test part; default: as --scale.", metavar="SHARE"),
    ] = None,
    compress: Annotated[bool, option(OUTPUT, "Write .gz files, except the test.", "--compress")] = False,
    jobs: Annotated[
        int | None,
        option(LIMITS, "Processes; the files are the same; default: one per core.", metavar="N", min=1),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write synthetic files in the official format."""
    check_numbers(seed=seed)
    for name, size in (("--scale", scale), ("--train-scale", train_scale), ("--test-scale", test_scale)):
        check_scale(name, size)
    if out.exists():
        raise UsageError(f"{out} exists", "choose a new folder for --out")
    dataset = registry.dataset(task)
    parameters = inspect.signature(dataset.generate).parameters
    for name, value in (("train", train_scale), ("test", test_scale)):
        if value is not None and f"{name}_scale" not in parameters:
            part = "training" if name == "train" else name
            raise UsageError(
                f"{dataset.NAME} has no {part} part with a separate scale", f"leave out --{name}-scale"
            )
    if compress and "compress_above" not in parameters:
        raise UsageError(f"{dataset.NAME} writes no compressed files", "leave out --compress")
    wanted = {
        "train_scale": train_scale,
        "test_scale": test_scale,
        "compress_above": 0 if compress else None,
        "jobs": jobs or usable_cores(),
    }
    offered = {name: value for name, value in wanted.items() if name in parameters}
    with ProgressDisplay() as display, reaper.swept(partial(out)):
        dataset.generate(out, scale, seed, display.preparing, **offered)
    print_folder(out, as_json)


@app.command()
def score(
    task: options.Dataset,
    submission: Annotated[Path, options.path_argument("Submission file in the official format.")],
    truth: Annotated[Path, options.path_argument("File of the true answers.")],
    as_json: options.Json = False,
) -> None:
    """Score a submission by the official metric."""
    computed = registry.dataset(task).score(existing(submission), existing(truth))
    scores = {name: value if math.isfinite(value) else None for name, value in computed.items()}
    if as_json:
        print(json.dumps(scores))
    else:
        for name, value in scores.items():
            print(f"{name} not defined on these answers" if value is None else f"{name} {value:.6f}")


@app.command()
def rescore(
    task: options.Task,
    path: Annotated[
        list[Path], options.path_argument("Records, or folders of records, next to their files/.")
    ],
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Score the submissions of earlier runs again, and compare the scores with the records. Exit code 1 if one differs.

    Generated data are generated again as the records say.
    """
    config = registry.task(task)
    prepare = load_entry(config.entry, config.name).prepare
    examination = integrity.examine(some_record_files(path), whole=False)
    for line in examination.unreadable():
        typer.echo(line, err=True)
    with ProgressDisplay() as display:

        @cache
        def prepared(scale: float, train_scale: float | None, seed: int) -> Data:
            check_scale("the scale of a record", scale)
            sample = sample_option(config.name, prepare, train_scale)
            return prepare(data, caches.folder() / "data", scale, seed, display.preparing, **sample)

        def data_of(r: Record) -> Data:
            generated = data is None and r.data_source == "generated"
            return prepared(r.scale, r.train_scale, r.seed) if generated else prepared(config.scale, None, 0)

        results = list(rescoring.rescore(config, examination.records, data_of))
    if not results:
        raise UsageError(f"no timed runs of {config.name} among these records", "give others")
    for result in results:
        problem = result.problem or (f"not scored: {result.skipped}" if result.skipped else "")
        if as_json:
            print(json.dumps({"path": str(result.path), "ok": not problem, "problem": problem}))
        elif problem:
            print(f"{result.path}: {problem}")
    scored = [result for result in results if not result.skipped]
    wrong = sum(bool(result.problem) for result in scored)
    typer.echo(f"{len(scored) - wrong} of {len(results)} records have their submission's score", err=True)
    if wrong or not scored:
        raise typer.Exit(1)


@app.command()
def convert(
    task: options.Dataset,
    folder: Annotated[Path, options.path_argument("Folder of the official files.")],
    out: Annotated[
        Path, option(OUTPUT, "Folder of the Parquet files to create; must not exist.", metavar="FOLDER")
    ],
    as_json: options.Json = False,
) -> None:
    """Check official files and write them as Parquet."""
    if out.exists():
        raise UsageError(f"{out} exists", "choose a new folder for --out")
    dataset = registry.dataset(task)
    with ProgressDisplay() as display, reaper.swept(partial(out)):
        dataset.convert(existing(folder), out, display.preparing)
    print_folder(out, as_json)


@app.command()
def info(task: options.Dataset, as_json: options.Json = False) -> None:
    """Print the card: schema, terms, where to get the data, how the generator works."""
    card = registry.card(task)
    print(json.dumps({"name": task, "card": card}) if as_json else card)


def print_folder(folder: Path, as_json: bool) -> None:
    """Print the path of a folder that was created."""
    print(json.dumps({"path": str(folder)}) if as_json else folder)


def partial(out: Path) -> Path:
    """The folder to which `datasets.files.new_folder` writes until it is complete."""
    return out.with_name(f".{out.name}.{os.getpid()}.partial")


def existing(path: Path) -> Path:
    """The path. Raises UsageError if there is no such file or folder."""
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    return path
