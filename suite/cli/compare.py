"""`buzzer compare`: the same job on several engines, backends, devices, budgets and scales."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from buzzer import caches
from buzzer.errors import DataError, UsageError
from buzzer.models.api.context import Data
from buzzer.suite import budget as budgets
from buzzer.suite import registry
from buzzer.suite.analysis import comparison
from buzzer.suite.analysis.comparison import Comparison
from buzzer.suite.analysis.regress import Change, Threshold, changes
from buzzer.suite.cli import run as run_verb
from buzzer.suite.cli.progress import ProgressDisplay
from buzzer.suite.cli.report import load as read_records
from buzzer.suite.config_file import MOST_REPEATS, MOST_SEED, check_scale
from buzzer.suite.escape import markdown as shown
from buzzer.suite.records import integrity, record
from buzzer.suite.records.record import Record
from buzzer.suite.report import compare_text, leaderboard
from buzzer.suite.report.compare_text import Section
from buzzer.suite.report.console import cells
from buzzer.suite.run import plan, runner
from buzzer.suite.run.plan import Choice, Run

Prepared = tuple[Choice, Data]
WIDE = 200


def main(
    context: typer.Context,
    task: Annotated[str, typer.Argument(help="Task name.")],
    from_: Annotated[
        list[Path] | None, typer.Option("--from", help="Take records from here and run nothing; repeatable.")
    ] = None,
    engine: Annotated[str, typer.Option(help="Feature engines, by comma, or all.")] = "",
    backend: Annotated[str, typer.Option(help="Inference backends, by comma, or all.")] = "",
    precision: Annotated[str, typer.Option(help="Precisions, by comma.")] = "fp32",
    device: Annotated[str, typer.Option(help="cpu, cuda or both; default: what the engine runs on.")] = "",
    budget: Annotated[
        str, typer.Option(help="Budgets, by comma [seed-cpu, and the same on all cores].")
    ] = "",
    scale: Annotated[str, typer.Option(help="Scales of generated data, by comma.")] = "",
    data: Annotated[Path | None, typer.Option(help="Folder of the official files.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of data and training.")] = 0,
    repeat: Annotated[
        int, typer.Option(min=1, max=MOST_REPEATS, help="Rounds; each runs every variant once.")
    ] = 5,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A task parameter, key=value.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the records.")] = run_verb.DEFAULT_OUT,
    full: Annotated[float, typer.Option(help="Scale of the job to project to.")] = 1.0,
    full_budget: Annotated[str, typer.Option(help="Budget of that job; default: each variant's own.")] = "",
    against: Annotated[
        list[Path] | None,
        typer.Option(help="Older records to hold these against; of two days at least, or of today."),
    ] = None,
    fail_if: Annotated[
        list[str] | None, typer.Option(help="FIGURE:PERCENT worse than --against fails, like wall:5%.")
    ] = None,
    price: Annotated[str, typer.Option(help="Dollars an hour, cpu=NUMBER_OR_NAME,cuda=...")] = "",
    markdown: Annotated[Path | None, typer.Option(help="Markdown file to write as well.")] = None,
    on_unmet_budget: Annotated[str, typer.Option(help="fail or warn when the machine has less.")] = "fail",
    resume: Annotated[bool, typer.Option(help="Skip what already has an ok record in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One object a comparison on stdout.")] = False,
) -> None:
    """Compare a task's runs: stages, speed-up with interval, cost, head-room, growth, and the full job."""
    options = dict(context.params)
    config = registry.task(task)
    thresholds = [Threshold.parse(text) for text in fail_if or []]
    if bool(thresholds) != bool(against):
        raise UsageError("--against and --fail-if belong together", "--against results/old --fail-if wall:5%")
    check_scale("--full", full)
    limit = budgets.resolve(full_budget) if full_budget else None
    prices = comparison.parse_prices(price)
    older = read_records(against or [])[0]
    records = read_records(from_)[0] if from_ else run_rounds(options, config)
    kept = integrity.examine(record.paths([out])).good if out.is_dir() else {}
    pool = [*records, *kept.values(), *older]
    made = [
        comparison.compare(g, config, limit, prices, pool, full)
        for g in comparison.groups(records, config.name)
    ]
    if not made and not from_ and not records:
        raise typer.Exit(1)  # interrupted, and said so
    if not made:
        raise UsageError(f"no timed runs of {task} among these records", "buzzer run makes some")
    found = [changes(m.group, older, thresholds, pool) for m in made]
    if thresholds and not any(found):
        raise UsageError(
            "no older record has the same machine, data, parameters, variant, enforcement and rule of timing",
            "give others to --against",
        )
    show(made, found, as_json, markdown)
    if any(c.failed for cs in found for c in cs) or (not from_ and failed(records)):
        raise typer.Exit(1)


def failed(records: Sequence[Record]) -> bool:
    return any(r.outcome not in ("ok", "unsupported") for r in records)


def default_budget() -> str:
    """The budget of the story, and the same on all cores of this machine: one for each CPU baseline."""
    return f"seed-cpu,{len(budgets.allowed_cores())}c20g24h"


def choices(options: dict[str, Any], config: registry.TaskConfig) -> list[Choice]:
    """One choice for each scale and device."""
    if options["data"] and options["scale"]:
        raise UsageError("--scale sizes generated data; those of --data are taken whole", "leave one out")
    try:
        scales: list[float | None] = [float(text) for text in run_verb.names(options["scale"])]
    except ValueError:
        raise UsageError(
            f"--scale {options['scale']}: not numbers by comma", "write it like 0.01,0.02,0.05"
        ) from None
    for each in scales:
        check_scale("--scale", each)
    default = {"budget": default_budget()}
    devices = run_verb.names(options["device"]) or [""]
    return [
        run_verb.choice(config, options | {"scale": s, "device": run_verb.device_name(d)}, default)
        for s in scales or [None]
        for d in devices
    ]


def run_rounds(options: dict[str, Any], config: registry.TaskConfig) -> list[Record]:
    """Prepare and fit everything, then round after round run every variant at every scale once."""
    chosen = choices(options, config)
    planned = [r for choice in chosen for r in plan.predict_runs(replace(choice, repeat=1))]
    told = run_verb.check_budgets(planned, options["on_unmet_budget"])
    out, cache = Path(options["out"]), caches.folder()
    for folder in (out, *([options["markdown"].parent] if options["markdown"] else [])):
        record.check_writable(folder)
    with ProgressDisplay() as screen:
        for problem in told:
            screen.say(f"[yellow]warning:[/] {problem}")
        prepared = [(c, run_verb.prepare(c, options["data"], cache, screen)) for c in chosen]
        past = record.read_good(out)
        for choice, data in prepared:
            if not fit(choice, data, out, screen):
                return []
        screen.plan(len(list(schedule(prepared, options["repeat"], options["seed"]))))
        return take(prepared, options, past, screen)


def fit(choice: Choice, data: Data, out: Path, screen: ProgressDisplay) -> bool:
    """Train what the timed runs load; False where the user stopped it. Raises DataError where it failed."""
    run = plan.fit_run(choice)
    fitted = runner.fit(run, data, caches.folder(), run_verb.watch(screen, run))
    if fitted is None:
        return True
    run_verb.keep(fitted, run, out, screen)
    if runner.interrupted(fitted):
        return False
    if fitted.outcome != "ok":
        raise DataError(
            f"the fit at scale {run.scale:g} ended {fitted.outcome}: {fitted.message}", fitted.hint
        )
    return True


def schedule(prepared: Sequence[Prepared], rounds: int, seed: int) -> Iterator[tuple[Run, Data]]:
    """Every variant at every scale once a round, and the first variant of each scale twice: an A/A pair.

    The first round goes in the plan's order, since the gate needs the reference first; the others are shuffled, so
    that no variant always has the same neighbour.
    """
    shuffle = random.Random(seed)
    for number in range(rounds):
        items = []
        for choice, data in prepared:
            runs = [replace(r, repeat=number) for r in plan.predict_runs(replace(choice, repeat=1))]
            items += [(run, data) for run in runs]
            items += [(replace(runs[0], control=True), data)] if runs else []
        if number:
            shuffle.shuffle(items)
        yield from items


def take(
    prepared: Sequence[Prepared], options: dict[str, Any], past: Sequence[Record], screen: ProgressDisplay
) -> list[Record]:
    """The records of all rounds. A variant that failed once is not run again at that scale."""
    out, cache = Path(options["out"]), caches.folder()
    made: list[Record] = []
    hopeless: list[Run] = []
    for run, data in schedule(prepared, options["repeat"], options["seed"]):
        bare = replace(run, repeat=0, control=False)
        done = [p for p in past if options["resume"] and run.matches(p, data) and p.outcome == "ok"]
        if done or bare in hopeless:
            made += done[-1:]
            continue
        new = runner.predict(run, data, cache, out, [*past, *made], run_verb.watch(screen, run))
        made.append(run_verb.keep(new, run, out, screen))
        if runner.interrupted(new):
            screen.say("interrupted; what ended is on disk, `--resume` goes on from there")
            break
        if new.outcome != "ok":
            hopeless.append(bare)
    return made


def show(made: Sequence[Comparison], found: Sequence[list[Change]], as_json: bool, path: Path | None) -> None:
    """The comparisons on stdout, and as Markdown where a file is named."""
    pairs = list(zip(made, found, strict=True))
    if path is not None:
        record.write_text(path, "\n".join(as_markdown(m, c) for m, c in pairs))
    if as_json:
        for m, cs in pairs:
            print(json.dumps(compare_text.as_dict(m, cs)))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    for m, cs in pairs:
        console.print(Text(compare_text.title(m)), style="bold")
        for section in compare_text.sections(m, cs):
            print_section(section, console)


def print_section(section: Section, console: Console) -> None:
    table = Table(title=Text(section.title), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    for name in cells(section.header):
        table.add_column(name, overflow="fold")
    for line in section.lines:
        table.add_row(*cells(line))
    console.print(table)
    for note in section.notes:
        console.print(Text(f"  {note}"))


def as_markdown(made: Comparison, found: list[Change]) -> str:
    parts = [f"# {shown(compare_text.title(made))}"]
    for section in compare_text.sections(made, found):
        parts += [f"## {shown(section.title)}", leaderboard.markdown_table(section.header, section.lines)]
        parts += ["\n".join(leaderboard.markdown_notes(section.notes))] if section.notes else []
    return "\n\n".join(parts) + "\n"
