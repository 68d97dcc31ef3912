"""`buzzer run`: fit if needed, then the timed predict job; a record each."""

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from buzzer import caches
from buzzer.configs import load_yaml
from buzzer.errors import DataError, UsageError, unknown_name
from buzzer.models.api.context import Data
from buzzer.suite import budget as budgets
from buzzer.suite import config_file, registry
from buzzer.suite.cli.progress import ProgressDisplay
from buzzer.suite.cli.report import load
from buzzer.suite.config_file import MOST_REPEATS, MOST_SEED, check_scale
from buzzer.suite.records import record
from buzzer.suite.records.record import Record
from buzzer.suite.report import leaderboard
from buzzer.suite.report.console import WIDE, show_boards
from buzzer.suite.report.format import clock_text
from buzzer.suite.run import plan, runner, worker
from buzzer.suite.run.plan import Choice, Run

DEFAULT_OUT = Path("results/local")


def main(
    context: typer.Context,
    task: Annotated[list[str] | None, typer.Argument(help="Task names; none = the default suite.")] = None,
    engine: Annotated[str, typer.Option(help="Feature engines, by comma, or all.")] = "",
    backend: Annotated[str, typer.Option(help="Inference backends, by comma, or all.")] = "",
    precision: Annotated[str, typer.Option(help="Precisions, by comma; default or all: the task's.")] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda; default: what the engine runs on.")] = "",
    budget: Annotated[str, typer.Option(help="Budgets, by comma: names or 1c20g24h [seed-cpu].")] = "",
    data: Annotated[
        Path | None, typer.Option(help="Folder of the official files; default: generated data.")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="Share of the official size to generate.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of data and training.")] = 0,
    repeat: Annotated[int, typer.Option(min=1, max=MOST_REPEATS, help="Timed runs of each variant.")] = 1,
    workers: Annotated[
        int,
        typer.Option(
            "--workers",
            "--gpus",
            min=0,
            help="Dask workers to share a run out over; GPU engines: a GPU each.",
        ),
    ] = 0,
    scheduler: Annotated[str, typer.Option(help="Running Dask cluster to use: tcp://host:8786.")] = "",
    out: Annotated[Path, typer.Option(help="Folder of the records.")] = DEFAULT_OUT,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A task parameter, key=value.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of these options; flags win.")] = None,
    on_unmet_budget: Annotated[str, typer.Option(help="fail or warn when the machine has less.")] = "fail",
    resume: Annotated[bool, typer.Option(help="Skip what already has an ok record in --out.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Print the plan, run nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One record a line on stdout.")] = False,
) -> None:
    """Run tasks on engines and backends under budgets; write a record a run and the leaderboard."""
    options = dict(context.params) | from_file(context, config)
    choices = choices_of(options)
    runs = [r for choice in choices for r in plan.predict_runs(choice)]
    check_chosen(runs, choices)
    told = check_budgets(runs, options["on_unmet_budget"])
    with ProgressDisplay() as screen:
        for problem in told:
            screen.say(f"[yellow]warning:[/] {problem}")
        if options["dry_run"]:
            show_plan(runs, options["as_json"])
            return
        records = run_all(choices, options, screen)
    finish(records, Path(options["out"]), options["as_json"])


def from_file(context: typer.Context, path: Path | None) -> dict[str, Any]:
    """Options of a YAML file, less those given as flags."""
    given = {} if path is None else config_file.read(path)
    return {name: value for name, value in given.items() if _is_default(context, name)}


def _is_default(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is None or source.name == "DEFAULT"


def names(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def choices_of(options: dict[str, Any]) -> list[Choice]:
    """What to run for each task, from the options or from the default suite."""
    device_name(options["device"])
    check_scale("--scale", options["scale"])
    if options["scale"] is not None and options["data"]:
        raise UsageError(
            "--scale sizes generated data; those of --data are taken whole", "leave one of the two out"
        )
    if options["task"]:
        return [choice(registry.task(name), options, {}) for name in options["task"]]
    if options["data"]:
        raise UsageError(
            "--data needs a TASK", "name the task whose files they are: buzzer run booking --data DIR"
        )
    suite = load_yaml("suite.yaml")
    return [choice(registry.task(entry["task"]), options, entry) for entry in suite]


def device_name(text: str) -> str:
    if text not in ("", "cpu", "cuda"):
        raise unknown_name("device", text, ["cpu", "cuda"])
    return text


def choice(task: registry.TaskConfig, options: dict[str, Any], default: dict[str, Any]) -> Choice:
    """One task's choice; `default` holds the suite's own settings, which given options override."""
    overrides = {}
    for pair in options["set_"] or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair}: not of the form key=value")
        overrides[key] = value
    workers, scheduler = options.get("workers", 0), options.get("scheduler", "")  # only `run` has them
    check_cluster(task, workers, scheduler)
    asked = names(options["precision"]) or default.get("precisions") or []
    asked = [] if list(asked) == ["all"] else asked
    registry.check_precisions(asked, task.precisions)
    budget = options["budget"] or default.get("budget", "seed-cpu")
    return Choice(
        task=task.with_params(overrides),
        engines=names(options["engine"]) or default.get("engines"),
        backends=names(options["backend"]) or default.get("backends"),
        precisions=asked or task.precisions,
        device=options["device"] or None,
        budgets=[budgets.resolve(name) for name in names(budget)],
        scale=float(options["scale"] or default.get("scale", task.scale)),
        seed=options["seed"],
        repeat=options["repeat"],
        workers=workers,
        scheduler=scheduler,
    )


def check_chosen(runs: Sequence[Run], choices: Sequence[Choice]) -> None:
    """Raises UsageError where no task has what was asked for."""
    if runs:
        return
    have = [f"{c.task.name} has {', '.join([*c.task.engines, *c.task.backends])}" for c in choices]
    raise UsageError("nothing to run: no task has the engines and backends asked for", "; ".join(have))


def check_cluster(task: registry.TaskConfig, workers: int, scheduler: str) -> None:
    """Raises UsageError where a cluster is asked for that cannot be."""
    if workers and scheduler:
        raise UsageError(
            "--workers starts a cluster, --scheduler uses one that runs", "leave one of the two out"
        )
    if (workers or scheduler) and not task.clustered:
        able = ", ".join(name for name, known in registry.tasks().items() if known.clustered)
        raise UsageError(
            f"{task.name} runs in one process", f"leave out --workers and --scheduler; {able} can use them"
        )


def check_budgets(runs: Sequence[Run], policy: str) -> list[str]:
    """Problems of budgets that this machine cannot give; fails where the policy is to fail."""
    if policy not in ("fail", "warn"):
        raise unknown_name("--on-unmet-budget", policy, ["fail", "warn"])
    found = {r.budget.name: problems for r in runs if (problems := budgets.unmet(r.budget))}
    told = [f"budget {name}: {problem}" for name, problems in found.items() for problem in problems]
    if told and policy == "fail":
        raise UsageError("; ".join(told), "choose a smaller --budget, or --on-unmet-budget warn")
    return told


def show_plan(runs: Sequence[Run], as_json: bool) -> None:
    """The planned runs on stdout."""
    lines = [
        {
            "task": r.task.name,
            "engine": r.engine,
            "backend": r.backend,
            "precision": r.precision,
            "device": r.device,
            "budget": r.budget.name,
            "scale": r.scale,
            "seed": r.seed,
            "repeat": r.repeat,
            "cluster": r.cluster,
        }
        for r in runs
    ]
    if as_json:
        for line in lines:
            print(json.dumps(line))
        return
    table = Table(title=f"{len(runs)} timed runs (and a fit where none is cached)")
    for name in lines[0] if lines else ():
        table.add_column(name)
    for line in lines:
        table.add_row(*(f"{v:g}" if isinstance(v, float) else str(v) for v in line.values()))
    worst = plan.worst_case_s(runs)
    Console().print(
        table, f"at worst {clock_text(worst)}" if worst < float("inf") else "no time limit", sep="\n"
    )


def run_all(choices: Sequence[Choice], options: dict[str, Any], screen: ProgressDisplay) -> list[Record]:
    """Prepare all data first (so that bad input is told before any timing), then run; records of this call."""
    cache, out = caches.folder(), Path(options["out"])
    record.check_writable(out)
    prepared = [(choice, prepare(choice, options["data"], cache, screen)) for choice in choices]
    screen.plan(sum(len(plan.predict_runs(choice)) for choice in choices))
    past = record.read_good(out)
    made: list[Record] = []
    for choice, data in prepared:
        made += run_choice(choice, data, past + made, options, screen)
        if made and runner.interrupted(made[-1]):
            screen.say("interrupted; what ended is on disk, `--resume` goes on from there")
            break
    return made


def prepare(choice: Choice, source: Path | None, cache: Path, screen: ProgressDisplay) -> Data:
    """The task's input data, checked or generated."""
    if source is not None and not source.is_dir():
        raise UsageError(f"--data {source}: no such folder")
    task = worker.load_entry(choice.task.entry)
    data = task.prepare(source, cache / "data", choice.scale, choice.seed, screen.preparing)
    screen.clear()
    return data


def run_choice(
    choice: Choice, data: Data, past: Sequence[Record], options: dict[str, Any], screen: ProgressDisplay
) -> list[Record]:
    """The fit and the timed runs of one task."""
    out, cache = Path(options["out"]), caches.folder()
    runs = plan.predict_runs(choice)
    if options["resume"]:
        done = [r for r in runs if any(r.matches(p, data) and p.outcome == "ok" for p in past)]
        for run in done:
            screen.say(f"- {run.label}: done before, skipped")
        runs = [r for r in runs if r not in done]
    if not runs:
        return []
    fit = plan.fit_run(choice)
    made: list[Record] = []
    fitted = runner.fit(fit, data, cache, watch(screen, fit))
    if fitted is not None:
        made.append(keep(fitted, fit, out, screen))
        if runner.interrupted(fitted):
            return made
    for run in runs:
        if fitted is not None and fitted.outcome != "ok":
            message = f"its fit ended {fitted.outcome}: {fitted.message}"
            outcome = "unsupported" if fitted.outcome == "unsupported" else "error"
            new = runner.not_started(run, data, outcome, message, fitted.hint, fitted.fit_id)
        else:
            new = runner.predict(run, data, cache, out, [*past, *made], watch(screen, run))
        made.append(keep(new, run, out, screen))
        if runner.interrupted(new):
            break
    return made


def watch(screen: ProgressDisplay, run: Run) -> runner.ProgressCallback:
    return lambda phase, elapsed: screen.running(run.label, run.budget, phase, elapsed)


def keep(new: Record, run: Run, out: Path, screen: ProgressDisplay) -> Record:
    """Write a record the moment its run ends, and say so. Raises DataError where it cannot be written, and says where it is instead."""
    try:
        record.write(new, out)
    except DataError as error:
        where = spare(new, screen)
        message = f"{error.message}; the record of {run.label} is {where}"
        raise DataError(message, "free some space, move it into --out, and go on with --resume") from error
    screen.done(run.label, new)
    return new


def spare(new: Record, screen: ProgressDisplay) -> str:
    """Keep a record that its folder does not take: in the cache, or else on stderr. Where."""
    try:
        return f"in {record.write(new, caches.folder() / 'records')}"
    except DataError:
        with suppress(OSError):
            screen.console.out(new.model_dump_json(), highlight=False)
        return "above, as JSON"


def finish(records: Sequence[Record], out: Path, as_json: bool) -> None:
    """The result on stdout, the leaderboard on disk, and the exit code."""
    board = out / "leaderboard.md"
    try:
        record.write_text(board, leaderboard.markdown(load([out])[0] if out.exists() else []))
    finally:  # also where the disk is full
        if as_json:
            for r in records:
                print(r.model_dump_json())
        else:
            show_boards(records, Console(width=None if sys.stdout.isatty() else WIDE))
    if not as_json:
        print(f"report: {board}")
    if any(r.outcome not in ("ok", "unsupported") for r in records):
        raise typer.Exit(1)
