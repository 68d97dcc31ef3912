"""The rank table of `buzzer bench`, from its records."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from buzzer.suite.analysis import percentiles
from buzzer.suite.analysis.percentiles import Quantile
from buzzer.suite.bench import loadgen
from buzzer.suite.bench.groups import BenchGroup, boards, rows
from buzzer.suite.records import machine
from buzzer.suite.records.schema import Record
from buzzer.suite.report import charts, notes
from buzzer.suite.report.format import decimal, percent, significant
from buzzer.suite.report.table import Cell, Column, Row, Table, table
from buzzer.suite.words import counted

COLUMNS = (
    Column("#", "rank", wrap=False),
    Column("backend", "name", wrap=False),
    *(
        Column(name, wrap=False)
        for name in (
            "precision",
            "p50 ms",
            "98 % interval",
            "p90",
            "p99",
            "cold p50",
            "cold device ms",
            "p99/mean",
            "x fp32",
            "rows/s",
            "of floor",
            "cosine",
            "compile s",
            "runs",
        )
    ),
    Column("outcome"),
)


LOADGEN = Column("LoadGen", wrap=False)  # its figure, only in tables of a scenario


def board(group: Sequence[Record], links: Mapping[str, str] | None = None) -> Table:
    """One model's sessions, ranked by the time per row. links: the record file of a run_id, for HTML."""
    ranking = rows(group)
    base = next((row for row in ranking if row.is_base), None)
    lines = [
        Row(
            _cells(row, str(i) if row.ranked else "", base, links or {}),
            kind(row),
            filters(row),
            row.first.run_id,
        )
        for i, row in enumerate(ranking, 1)
    ]
    r = group[0]
    rounds = len({x.repeat for x in group})
    facts = f"{machine.describe(r.machine)}. Budget {r.budget.name}; {counted(rounds, 'round')}, interleaved."
    columns = (*COLUMNS[:3], LOADGEN, *COLUMNS[3:]) if r.config["scenario"] else COLUMNS
    return table(title(r), columns, lines, notes.bench_notes(group), facts)


def _cells(
    row: BenchGroup, rank: str, base: BenchGroup | None, links: Mapping[str, str]
) -> tuple[str | Cell, ...]:
    r, warm = row.first, row.samples("warm_run")
    p50, floor = percentiles.quantile(warm, 0.5), r.bench.floor_s if r.bench else None
    measured = row.cold_device_s or (p50.value if p50 else None)
    compile_s = [p.wall_s for x in row.records for p in x.phases if p.name == "compile"]
    cosine = least_cosine(row)
    return (
        rank,
        Cell(r.backend, link=links.get(r.run_id, "")),
        f"{r.precision} {r.bench.packing}" if r.bench and r.bench.lengths == "real" else r.precision,
        *((loadgen_figure(row),) if r.config["scenario"] else ()),
        _ms(p50),
        interval_ms(p50),
        _ms(percentiles.quantile(warm, 0.9)),
        _ms(percentiles.quantile(warm, 0.99)),
        _ms(percentiles.quantile(row.samples("cold_run"), 0.5)),
        "" if row.cold_device_s is None else significant(1e3 * row.cold_device_s),
        _spread(row.samples("cold_run_device")),
        _speed_up(row, base),
        significant(row.rows_s),
        "" if floor is None or measured is None else percent(floor / measured, 0),
        decimal(cosine, 5),
        decimal(max(compile_s), 1) if compile_s else "",
        str(len(warm)) if warm else "",
        row.outcome,
    )


def loadgen_figure(row: BenchGroup) -> str:
    """LoadGen's figure of the first run, with its unit; empty if there is none."""
    bench = row.first.bench
    return loadgen.shown_figure(bench.loadgen, bench.scenario) if bench and bench.scenario else ""


def least_cosine(row: BenchGroup) -> float | None:
    """The least cosine with the FP32 reference of all rounds; None without one."""
    return min((r.scores["cosine"] for r in row.records if "cosine" in r.scores), default=None)


def interval_ms(quantile: Quantile | None) -> str:
    """The 98 % interval of a percentile in milliseconds; empty if there is none."""
    if quantile is None or quantile.low is None or quantile.high is None:
        return ""
    return f"{significant(1e3 * quantile.low)}-{significant(1e3 * quantile.high)}"


def _ms(quantile: Quantile | None) -> str:
    """A percentile in milliseconds; empty if there were too few samples."""
    return "" if quantile is None else significant(1e3 * quantile.value)


def _spread(samples: Sequence[float]) -> str:
    """The 99th percentile divided by the mean; empty if there were too few samples."""
    p99 = percentiles.quantile(samples, 0.99)
    return "" if p99 is None else decimal(p99.value / fmean(samples), 3)


def _speed_up(row: BenchGroup, base: BenchGroup | None) -> str:
    """How many times faster than the base: the smallest and the largest value of the rounds."""
    ratios = row.speed_ups(base) if base is not None and row.ranked else []
    return "-".join(dict.fromkeys((decimal(min(ratios)), decimal(max(ratios))))) if ratios else ""


def kind(row: BenchGroup) -> str:
    """The CSS class of a group's marks and rows."""
    return charts.kind_of(row.first.device, row.worst.outcome)


def filters(row: BenchGroup) -> dict[str, str]:
    """The values by which the page filters a group."""
    return charts.filters_of(row.first, row.worst.outcome)


def title(record: Record) -> str:
    """A title such as `bert-base, batch 1, 128 tokens`, with the hashes of the model (older records of a named model have none) and of inputs from a file,
    and the device if it is not the CPU."""
    c = record.config
    inputs = f", inputs {c['inputs_hash']}" if "inputs_hash" in c else ""
    kind = ", real sentence lengths" if c["lengths"] == "real" else f", {c['seq']} tokens" if c["seq"] else ""
    official = f" with the settings of {c['mlperf']}" if "mlperf" in c else ""
    scenario = f", MLPerf {c['scenario']}{official}" if c["scenario"] else ""
    device = "" if record.device == "cpu" else f", on {record.device}"
    model = f"{record.task} ({c['model_hash']})" if "model_hash" in c else record.task
    return f"{model}, batch {c['batch']:,}{kind}{inputs}{scenario}{device}"


def fastest(records: Iterable[Record]) -> list[str]:
    """The fastest session of each batch size, if there are several sizes. It shows at which size a session overtakes another."""
    lines = []
    for group in boards(records).values():
        best = next((row for row in rows(group) if row.ranked), None)
        if best is not None and not best.first.config["scenario"]:  # LoadGen's figures are different
            figure = f"{best.first.backend} {best.first.precision}, {1e6 * best.row_s:,.2f} us per row"
            lines.append(f"{title(best.first)}: {figure}")
    return lines if len(lines) > 1 else []
