"""The public functions, for scripts and notebooks. They do the same as the command line. `import buzzer` makes them available.

A request that cannot be carried out raises `BuzzerError` before anything runs. A run that fails raises nothing: its record has the
`outcome` and a `message`. Ctrl-C stops the current run; its record is the last one that is returned.

Without an `observer`, a notebook shows a progress bar, a terminal shows the same as the command line, and any other script shows only
warnings.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from buzzer.errors import UsageError, unknown_name
from buzzer.suite import budget as budgets
from buzzer.suite import registry
from buzzer.suite.analysis import comparison
from buzzer.suite.analysis.comparison import Comparison
from buzzer.suite.analysis.regress import Change, Failure, Threshold, changes, check_phases, failures
from buzzer.suite.bench import bench_runs
from buzzer.suite.bench import plan as bench_plan
from buzzer.suite.config_file import check_scale
from buzzer.suite.records import frame, integrity, record
from buzzer.suite.records.collection import Records, load_records, record_files
from buzzer.suite.records.schema import Record
from buzzer.suite.report import budget_bars, leaderboard, page, plots
from buzzer.suite.report import frontier as frontier_report
from buzzer.suite.report import readme as result_table
from buzzer.suite.report.console import picture
from buzzer.suite.report.display import observing
from buzzer.suite.requests import (
    DEFAULT_OUT,
    BenchRequest,
    CompareRequest,
    FrontierRequest,
    Paths,
    RunRequest,
    Sources,
    checked,
    each,
    given,
    names,
    numbers,
    option_of,
    path,
    paths,
)
from buzzer.suite.run import frontier_plan, resolve, task_runs
from buzzer.suite.run.executor import Executor, Observer

__all__ = [
    "BenchRequest",
    "CompareRequest",
    "Comparisons",
    "Frontier",
    "FrontierRequest",
    "Observer",
    "Record",
    "Records",
    "RunRequest",
    "bench",
    "compare",
    "frontier",
    "load_records",
    "plots",
    "report",
    "run",
]


def run(
    request: RunRequest | None = None,
    *,
    out: str | Path = DEFAULT_OUT,
    observer: Observer | None = None,
) -> Records:
    """Run tasks, after fitting those that have no fit in the cache. Returns the records of this call, which are also in the folder `out`.

    >>> request = RunRequest("online-shoppers", ["polars"], ["torch_eager"], scale=0.1, params={"epochs": 1})
    >>> [(record.job, record.engine, record.outcome) for record in run(request, out=folder)]
    [('fit', 'polars', 'ok'), ('predict', 'polars', 'ok')]
    """
    asked, folder = checked(RunRequest, RunRequest() if request is None else request), path(out)
    plan = resolve.run_plan(asked)
    with observing(observer) as watcher:
        return Records(task_runs.execute(plan, Executor(folder, watcher, asked.resume)))


def bench(
    request: BenchRequest,
    *,
    out: str | Path = DEFAULT_OUT,
    observer: Observer | None = None,
) -> Records:
    """Time a model on inference backends and check its outputs. Returns the records of this call, which are also in the folder `out`.

    >>> request = BenchRequest("minilm-l6", ["torch_eager"], ["fp32"], seq=8, seconds=0, rounds=1)
    >>> [record.outcome for record in bench(request, out=folder)]
    ['ok']
    """
    request, folder = checked(BenchRequest, request), path(out)
    selections = bench_plan.selections(request)
    bench_runs.check(selections)
    with observing(observer) as watcher:
        executor = Executor(folder, watcher, request.resume)
        made = list(bench_runs.execute(selections, executor))
    return Records([*executor.reused, *made])


@dataclass(frozen=True)
class Comparisons(Sequence[Comparison]):
    """The comparisons of a call: one for each group of records that may be compared.

    changes: for each comparison, the changes against older records.
    failures: for each comparison, the variants that do not end ok any more.
    records: all records that are compared.
    """

    comparisons: tuple[Comparison, ...]
    changes: tuple[tuple[Change, ...], ...]
    failures: tuple[tuple[Failure, ...], ...]
    records: Records

    @overload
    def __getitem__(self, index: int) -> Comparison: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Comparison, ...]: ...
    def __getitem__(self, index: int | slice) -> Comparison | tuple[Comparison, ...]:
        return self.comparisons[index]

    def __len__(self) -> int:
        return len(self.comparisons)


def compare(
    request: CompareRequest,
    *,
    out: str | Path = DEFAULT_OUT,
    observer: Observer | None = None,
) -> Comparisons:
    """Run a task's variants in interleaved rounds, or read the records in `request.records`, and compare them.

    >>> (comparison,) = compare(CompareRequest("online-shoppers", records=folder))
    >>> [str(result.variant) for results in comparison.results.values() for result in results]
    ['polars torch_eager cpu seed-cpu']
    """
    request, folder = checked(CompareRequest, request), path(out)
    task = registry.task(request.task)
    thresholds = [Threshold.parse(text) for text in names(request.fail_if)]
    if bool(thresholds) != bool(each(request.against)):
        raise UsageError(
            "--against and --fail-if must be given together", "--against results/old --fail-if wall:5%"
        )
    check_scale("--full", request.full)
    full_budget = budgets.resolve(request.full_budget) if request.full_budget else None
    prices = comparison.parse_prices(request.price)
    plan = resolve.compare_plan(request) if request.records == () else None
    with observing(observer) as watcher:
        older = valid(request.against, watcher)
        if plan is not None:
            executor = Executor(folder, watcher, request.resume)
            made = list(task_runs.execute(plan, executor))
            records, pool = [*executor.reused, *made], [*executor.records, *older]
        else:
            records = named(valid(request.records, watcher), request, task.name)
            pool = [*records, *integrity.good_in(folder), *older]
    groups = comparison.groups(records, task.name)
    comparisons = tuple(comparison.compare(g, task, full_budget, prices, pool, request.full) for g in groups)
    if not comparisons and plan is None:
        raise UsageError(f"no timed runs of {task.name} among these records", "`buzzer run` makes some")
    changed = tuple(tuple(changes(c.group, older, thresholds, pool)) for c in comparisons)
    failed = tuple(tuple(failures(c.group, older)) for c in comparisons)
    if thresholds and comparisons:
        check_measured(thresholds, changed, failed, [*records, *older])
    return Comparisons(comparisons, changed, failed, Records(records))


def check_measured(
    thresholds: Sequence[Threshold],
    changed: Sequence[Sequence[Change]],
    failed: Sequence[Sequence[Failure]],
    records: Sequence[Record],
) -> None:
    """Raises UsageError if a threshold has nothing to compare, unless a run failed."""
    check_phases(thresholds, records)
    measured = {change.figure for each in changed for change in each}
    missing = [threshold.figure for threshold in thresholds if threshold.figure not in measured]
    if measured and missing:
        raise UsageError(
            f"--fail-if {missing[0]}: the runs and older records of no variant both have this figure",
            "leave it out; `buzzer env` shows what this machine cannot count",
        )
    if missing and not any(failed):
        raise UsageError(
            f"no older record has the same machine, data, parameters, variant, enforcement and rule of timing, and {missing[0]}",
            "give other records to --against",
        )


def named(records: Iterable[Record], request: CompareRequest, task: str) -> list[Record]:
    """The records of a task, of the engines, backends, precisions, devices, budgets and scales that a request names, if it names any.

    Raises UsageError for a name that no timed run of the task has, and for a field that only new runs can follow.
    """
    for_new_runs = ("data", "params", "seed", "resume", "train_scale", "rounds", "on_unmet_budget")
    if fields := given(request, for_new_runs):
        raise UsageError(
            f"{option_of(fields[0])} is for new runs, and --from runs nothing", "leave out one of the two"
        )
    wanted: dict[str, list[Any]] = {
        "engine": names(request.engines),
        "backend": names(request.backends),
        "precision": names(request.precisions),
        "device": names(request.devices),
        "budget": names(request.budget),
        "scale": numbers(request.scales),
    }
    chosen = Records(r for r in records if r.task == task and r.job == "predict")
    for column, values in wanted.items():
        if not values or values == ["all"]:
            continue
        present = {str(frame.row(r)[column]) for r in chosen}
        for value in values:
            if chosen and not chosen.filter(**{column: value}):
                raise unknown_name(f"{column} among these records", str(value), present)
        chosen = chosen.filter(**{column: values})
    return list(chosen)


@dataclass(frozen=True)
class Frontier:
    """Accuracy against latency of one model.

    points: a point for each precision and number of layers, the fastest first.
    layers: of the whole model.
    records: fits and timed runs; with `resume` also those of earlier calls.
    """

    points: list[frontier_report.Point]
    layers: int
    records: Records


def frontier(
    request: FrontierRequest | None = None,
    *,
    out: str | Path = DEFAULT_OUT,
    observer: Observer | None = None,
) -> Frontier:
    """Fine-tune a BERT, run it in every precision and cut to fewer layers; accuracy and latency of each."""
    asked, folder = checked(FrontierRequest, FrontierRequest() if request is None else request), path(out)
    plan, layers = frontier_plan.plan_of(asked)
    with observing(observer) as watcher:
        executor = Executor(folder, watcher, asked.resume)
        made = list(task_runs.execute(plan, executor))
    records = [*executor.reused, *made]
    points = frontier_report.points([r for r in records if r.job == "predict"], layers)
    return Frontier(points, layers, Records(records))


@dataclass(frozen=True)
class Outputs:
    """The files that `report` writes; None for those that are not wanted."""

    out: Path | None = None
    html: Path | None = None
    readme: Path | None = None
    csv: Path | None = None
    svg: Path | None = None
    headline: Path | None = None
    frontier: Path | None = None


def report(
    records: Record | Iterable[Record] | Paths = "results",
    *,
    out: str | Path | None = None,
    html: str | Path | None = None,
    readme: str | Path | None = None,
    csv: str | Path | None = None,
    svg: str | Path | None = None,
    headline: str | Path | None = None,
    frontier: str | Path | None = None,
    observer: Observer | None = None,
) -> str:
    """The leaderboard of some records, as Markdown. `records` are records, or files and folders of records; one, or several.

    Files are written only if they are named: `out` gets the Markdown, `html` a self-contained page, `csv` a
    row for each record, with the columns of `Records.to_pandas`, `svg` an image of the tables, and `headline` an
    SVG image of published times and ours against the time limit, with a dark one in `<stem>-dark.svg` beside it, `frontier` the
    image of `buzzer frontier`, with its data in `<stem>.csv`. In the file `readme`, the findings and the result table between their markers are replaced.

    >>> print(report(folder, out=folder + "/board.md").splitlines()[0])
    # Leaderboard
    """
    named_paths = (
        None if name is None else path(name) for name in (out, html, readme, csv, svg, headline, frontier)
    )
    return reported(records, Outputs(*named_paths), observer)[0]


def reported(
    records: Record | Iterable[Record] | Paths, outputs: Outputs, observer: Observer | None = None
) -> tuple[str, list[Record]]:
    """As `report`, and the records that it has read."""
    sources = each(records)
    with observing(observer) as watcher:
        chosen, files = read(sources, watcher)
    if sources and not chosen:
        raise UsageError("no valid record among these files", "`buzzer check` says what is wrong with each")
    text = leaderboard.markdown(chosen)
    made: list[tuple[Path, str]] = []  # all are made before the first is written
    if outputs.out is not None:
        made.append((outputs.out, text))
    if outputs.html is not None:
        made.append((outputs.html, page.html(chosen, page.links_of(files, outputs.html))))
    if outputs.readme is not None:
        made.append((outputs.readme, result_table.fill(text_of(outputs.readme), chosen)))
    if outputs.csv is not None:
        made.append((outputs.csv, Records(chosen).to_csv()))
    if outputs.svg is not None:
        made.append((outputs.svg, picture(chosen)))
    if outputs.headline is not None:
        made += budget_images(outputs.headline, chosen).items()
    if outputs.frontier is not None:
        made += frontier_report.files(outputs.frontier, chosen).items()
    write_all(made)
    return text, list(chosen)


def write_all(made: Sequence[tuple[Path, str]]) -> None:
    """Write files. Raises UsageError, and writes none, if two have the same path or a path is a folder."""
    targets = [target for target, _ in made]
    for target in targets:
        record.check_target(target)
        if targets.count(target) > 1 and not record.in_place(target):
            raise UsageError(f"two outputs have the path {target}", "name another file for one of them")
    for target, content in made:
        record.write_text(target, content)


def budget_images(light: Path, records: Sequence[Record]) -> dict[Path, str]:
    """Published jobs and our runs against the time limit as SVG images: the light one, and a dark one in `<stem>-dark<suffix>` beside it.

    Raises UsageError if no record is of a task whose job is published with its time.
    """
    shown = budget_bars.panels(records)
    if not shown:
        raise UsageError(
            "no record of a task with a published time, and none that its budget ended",
            "`buzzer run recsys2021` makes one",
        )
    dark = light.with_name(f"{light.stem}-dark{light.suffix}")
    return {light: budget_bars.svg(shown, budget_bars.LIGHT), dark: budget_bars.svg(shown, budget_bars.DARK)}


def valid(sources: Sources, observer: Observer) -> list[Record]:
    """As `read`, without the files."""
    return list(read(sources, observer)[0])


def read(
    sources: Record | Iterable[Record] | Sources, observer: Observer
) -> tuple[tuple[Record, ...], dict[str, Path]]:
    """Records, each once, and those in files and folders that `buzzer check` finds valid; and by run id the file of each that has one.

    The observer gets a warning for each record that is left out. Raises UsageError for what is neither a record nor a path.
    """
    parts = each(sources)
    given_records = [part for part in parts if isinstance(part, Record)]
    files = record_files(paths([part for part in parts if not isinstance(part, Record)]))
    examination = integrity.examine(files)
    for line in examination.left_out():
        observer.message(line, "warning")
    by_id = {r.run_id: r for r in (*given_records, *examination.good.values())}
    return tuple(by_id.values()), {r.run_id: file for file, r in examination.good.items()}


def text_of(file: Path) -> str:
    """The text of a file. Raises UsageError where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
