import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from buzzer.errors import UsageError
from buzzer.models.api.context import Data
from buzzer.suite.analysis import comparison, regress
from buzzer.suite.analysis.comparison import Variant
from buzzer.suite.analysis.regress import Threshold
from buzzer.suite.budget import resolve
from buzzer.suite.records.schema import Gate, Record
from buzzer.suite.report import compare_json, compare_text, page
from buzzer.suite.report.display import Quiet
from buzzer.suite.run import task_runs
from buzzer.suite.run.executor import Executor
from buzzer.suite.run.plan import TaskSelection, interleaved

Make = Callable[..., Record]
Choose = Callable[..., TaskSelection]
ONE = {"name": "1c2g1h", "cores": 1, "memory_bytes": 2 * 10**9, "time_s": 3600.0}
TWO = {"name": "2c2g1h", "cores": 2, "memory_bytes": 2 * 10**9, "time_s": 3600.0}
GPU = {"device": "cuda", "gpu_busy_s": 1.0, "gpu_peak_memory_bytes": 10**9}
PLAIN = Variant("none", "torch_eager", "fp32", "cpu", "1c2g1h")
TUNED = Variant("none", "onnxruntime", "fp32", "cpu", "2c2g1h")
CUDA = Variant("none", "torch_eager", "fp32", "cuda", "2c2g1h")
COST = {PLAIN: (1.0, 1000.0), TUNED: (1.0, 300.0), CUDA: (5.0, 10.0)}  # seconds: fixed, and at scale 1
DRIFT = (1.0, 1.2, 0.9)  # drift of the machine by round; it affects all variants alike


def measured(make: Make, scales: tuple[float, ...] = (0.01, 0.03, 0.1), slower: float = 1.0) -> list[Record]:
    """Rounds of the two baselines and a GPU at some scales, with an A/A run of the plain baseline that differs by 1 %."""
    runs = []
    for scale in scales:
        for repeat, drift in enumerate(DRIFT):
            for variant, (fixed, rate) in COST.items():
                wall = (fixed + rate * scale) * drift * slower
                runs.append(timed(make, variant, scale, repeat, wall))
            aa = (1.0 + 1000 * scale) * drift * slower * (1.01 if repeat else 0.99)
            runs.append(timed(make, PLAIN, scale, repeat, aa, control=True))
    return runs


def timed(make: Make, v: Variant, scale: float, repeat: int, wall: float, **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "backend": v.backend,
        "budget": ONE if v.budget == ONE["name"] else TWO,
        "scale": scale,
        "repeat": repeat,
        "rows": int(100_000 * scale),
        "data_fingerprint": f"{scale}",
        "wall_s": wall,
        "peak_memory_bytes": int(10**8 + 5 * 10**8 * scale),
        "phases": [{"name": "predict", "wall_s": wall, "cpu_s": 1.0, "peak_memory_bytes": 1}],
        "gate": {"status": "reference" if v == PLAIN else "passed"},
    }
    return make(**(fields | (GPU if v.device == "cuda" else {}) | changes))


def compared(records: list[Record], choose: Choose, budget: str = "") -> comparison.Comparison:
    (group,) = comparison.groups(records, "fake")
    limit = resolve(budget) if budget else None
    return comparison.compare(group, choose().task, limit, {"cpu": 3.6}, records)


def test_speed_ups_are_paired_against_both_baselines(make_record: Make, choose: Choose) -> None:
    result = compared(measured(make_record), choose)
    assert result.baselines == {"plain": PLAIN, "tuned": TUNED}
    lines = {line.variant: line for line in result.results[0.1]}
    ratio = lines[CUDA].speed_up["plain"]
    assert ratio is not None
    assert ratio.value == pytest.approx(101 / 6)
    assert ratio.low == pytest.approx(ratio.value)  # the drift is in both runs of each pair
    assert lines[CUDA].speed_up["tuned"].value == pytest.approx(31 / 6)  # type: ignore[union-attr]
    assert lines[PLAIN].speed_up["plain"] is None
    assert lines[TUNED].cost_usd == pytest.approx(31 * 3.6 / 3600)
    assert lines[CUDA].cost_usd is None  # no price was given for its machine
    assert lines[PLAIN].cell.head_room.time == pytest.approx(1 - 101 / 3600)


def test_growth_break_even_and_the_full_job(make_record: Make, choose: Choose) -> None:
    result = compared(measured(make_record), choose)
    trends = {t.variant: t for t in result.fits}
    assert trends[PLAIN].growth.exponent == pytest.approx(1.0, abs=0.01)
    assert trends[CUDA].break_even_rows["plain"] == pytest.approx(100_000 * 4 / 990, rel=0.02)
    assert trends[CUDA].full.value == pytest.approx(15.0, rel=0.02)
    assert trends[PLAIN].full.low < 1001 < trends[PLAIN].full.high
    assert trends[PLAIN].check is not None
    assert abs(trends[PLAIN].check.error) < 0.01


@pytest.mark.parametrize(
    ("budget", "plain", "cuda"),
    [
        ("2c2g1d", "yes", "yes"),
        ("1c2g5m", "no", "measured on 2 cores"),
        ("2c256m1d", "no", "no"),  # 0.6 GB at scale 1
        (
            "",
            "too near to tell",
            "yes",
        ),  # 1001 s of 3600, from a tenth of the size in three rounds that differ by 30 %
    ],
)
def test_the_buzzer_of_any_budget(
    make_record: Make, choose: Choose, budget: str, plain: str, cuda: str
) -> None:
    verdicts = {t.variant: t.verdict for t in compared(measured(make_record), choose, budget).fits}
    assert (verdicts[PLAIN], verdicts[CUDA]) == (plain, cuda)


@pytest.mark.parametrize(("limit", "verdict"), [(None, "yes"), (5 * 10**9, "yes"), (10**9, "no")])
def test_the_buzzer_of_a_gpu_budget(
    make_record: Make, choose: Choose, limit: int | None, verdict: str
) -> None:
    """2.1 GB of GPU memory at scale 1, against the limit of the runs' own budget."""
    runs = []
    for r in measured(make_record):
        if r.device == "cuda":
            budget = r.budget.model_copy(update={"gpu_memory_bytes": limit})
            peak = int(10**8 + 2 * 10**9 * r.scale)
            runs.append(r.model_copy(update={"budget": budget, "gpu_peak_memory_bytes": peak}))
    (trend,) = compared(runs, choose).fits
    assert trend.budget.gpu_memory_bytes == limit
    assert trend.full_gpu_memory is not None
    assert trend.full_gpu_memory.value == pytest.approx(2.1e9, rel=0.01)
    assert trend.verdict == verdict


def test_differences_within_the_noise_are_called_noise(make_record: Make, choose: Choose) -> None:
    near = Variant("none", "onnxruntime", "fp32", "cpu", "1c2g1h")
    records = measured(make_record)
    records += [timed(make_record, near, 0.1, i, 101 * drift / 1.005) for i, drift in enumerate(DRIFT)]
    result = compared(records, choose)
    line = next(line for line in result.results[0.1] if line.variant == near)
    assert line.speed_up["plain"].value == pytest.approx(1.005)  # type: ignore[union-attr]
    assert line.is_noise["plain"]
    assert result.noise is not None
    assert result.noise.pairs == 3
    assert 0.01 < result.noise.band < 0.03


def test_a_control_run_is_paired_with_the_run_of_the_same_day(make_record: Make) -> None:
    def at(day: int, wall: float, control: bool) -> Record:
        run_id = f"{day:07}{control:d}" * 4
        created = datetime(2026, 1, day, tzinfo=UTC)
        return timed(make_record, PLAIN, 0.1, 0, wall, control=control, run_id=run_id, created=created)

    records = [at(1, 10.0, False), at(1, 11.0, True), at(9, 20.0, False), at(9, 21.0, True)]
    pairs = comparison.aa_pairs([*records, *records])
    assert sorted((a.wall_s, b.wall_s) for a, b in pairs) == [(10.0, 11.0), (20.0, 21.0)]


def test_newly_generated_data_are_not_mixed_with_old_data(make_record: Make, choose: Choose) -> None:
    old = [
        timed(
            make_record, CUDA, 0.1, 7, 1.0, data_fingerprint="old", created=datetime(2020, 1, 1, tzinfo=UTC)
        )
    ]
    result = compared([*measured(make_record), *old], choose)
    cell = next(line.cell for line in result.results[0.1] if line.variant == CUDA)
    assert sorted(cell.walls) == [0, 1, 2]


def test_a_time_of_zero_is_not_a_measurement(make_record: Make, choose: Choose) -> None:
    records = [r.model_copy(update={"wall_s": 0.0}) if r.repeat == 1 else r for r in measured(make_record)]
    result = compared(records, choose)
    assert result.results[0.1][0].speed_up["plain"].pairs == 2  # type: ignore[union-attr]
    assert result.noise is not None
    assert result.noise.pairs == 2
    assert [c.failed for c in regress.changes(result.group, records, [Threshold("wall", 0.0)], records)] == [
        False
    ] * 9


def test_a_failed_variant_is_shown_and_not_compared(make_record: Make, choose: Choose) -> None:
    late = timed(
        make_record,
        Variant("none", "onnxruntime", "fp32", "cpu", "1c2g1h"),
        0.1,
        0,
        3600.0,
        outcome="timeout",
        message="late",
        gate={"status": "unscored"},
    )
    result = compared([*measured(make_record), late], choose)
    line = result.results[0.1][-1]
    assert (line.cell.outcome, line.speed_up["plain"]) == ("timeout", None)
    assert late.backend not in {t.variant.backend for t in result.fits if t.variant.budget == "1c2g1h"}


def test_a_baseline_has_as_many_rounds_as_an_interval_needs(make_record: Make, choose: Choose) -> None:
    """A faster run of one round would leave all others without an interval, but alone it is the baseline."""
    records = measured(make_record, (0.1,))
    once = timed(make_record, Variant("none", "openvino", "fp32", "cpu", "2c2g1h"), 0.1, 0, 0.5)
    assert compared([*records, once], choose).baselines == {"plain": PLAIN, "tuned": TUNED}
    first = [r for r in records if r.repeat == 0]
    assert compared([*first, once], choose).baselines["tuned"] == Variant.of(once)


def test_rounds_of_different_days_have_a_note(make_record: Make, choose: Choose) -> None:
    records = measured(make_record, (0.1,))
    hours = timedelta(hours=50)
    moved = [
        r.model_copy(update={"created": r.created + hours}) if Variant.of(r) == TUNED else r for r in records
    ]
    note = "runs of one round were up to 50 hours apart: ratios include how days differ"
    assert note in compare_text.markdown(compared(moved, choose))
    assert note in compare_json.data(compared(moved, choose)).differ
    assert "hours apart" not in compare_text.markdown(compared(records, choose))


def test_runs_on_other_data_are_left_out_with_a_note(make_record: Make, choose: Choose) -> None:
    """The newest data count, unless their runs failed."""
    records = measured(make_record, (0.1,))
    newer = {"data_fingerprint": "new", "created": datetime(2030, 1, 1, tzinfo=UTC)}
    note = "{} left out, on other data than the newest of the same scale"
    for outcome, times, count in (
        ("ok", [7.0], "9 runs are"),
        ("error", [r.wall_s for r in records], "1 run is"),
    ):
        more = timed(make_record, CUDA, 0.1, 0, 7.0, outcome=outcome, **newer)
        result = compared([*records, more], choose)
        assert note.format(count) in compare_text.markdown(result)
        assert note.format(count) in compare_json.data(result).differ
        shown = [w for lines in result.results.values() for line in lines for w in line.cell.walls.values()]
        assert set(shown) <= set(times) and shown
    assert "left out" not in compare_text.markdown(compared(records, choose))


@pytest.mark.parametrize("outcome", ["error", "timeout", "wrong", "unsupported"])
def test_a_variant_that_does_not_end_ok_any_more_fails(
    make_record: Make, choose: Choose, outcome: str
) -> None:
    """One of its rounds is enough; a run that could not be started has no limits to be enforced."""
    old = measured(make_record, (0.1,))
    broken = {"outcome": outcome, "enforcement": "none" if outcome == "unsupported" else "polled"}
    new = [
        r.model_copy(update=broken if Variant.of(r) == TUNED and r.repeat == 1 else {})
        for r in old
        if Variant.of(r) != CUDA
    ]
    result = compared(new, choose)
    assert regress.failures(result.group, old) == [regress.Failure(0.1, TUNED, outcome)]
    assert regress.failures(result.group, [r for r in old if Variant.of(r) == PLAIN]) == []
    changed = regress.changes(result.group, old, [Threshold("wall", 0.05)], old)
    assert [(c.variant, c.failed) for c in changed] == [(PLAIN, False)]
    failed = regress.failures(result.group, old)
    assert f"| {TUNED} | 0.1 | outcome | ok | {outcome} |  |  |  | FAILED |" in compare_text.markdown(
        result, changed, failed
    )
    assert (
        json.loads(compare_json.data(result, changed, failed).to_json())["failures"][0]["outcome"] == outcome
    )


def test_a_run_without_a_reference_is_compared_with_its_older_runs(make_record: Make) -> None:
    old = [r for r in measured(make_record, (0.1,)) if Variant.of(r) == TUNED]
    new = [r.model_copy(update={"wall_s": 2 * r.wall_s, "gate": Gate(status="no-reference")}) for r in old]
    (group,) = comparison.groups(new, "fake")
    (change,) = regress.changes(group, old, [Threshold("wall", 0.05)], old)
    assert change.failed and change.ratio.value == pytest.approx(2)


@pytest.mark.parametrize(
    ("slower", "threshold", "failed"),
    [(1.2, "wall:5%", True), (1.2, "wall:30%", False), (1.0, "wall:0%", False), (0.8, "wall:5%", False)],
)
def test_a_slow_down_fails_beyond_its_threshold(
    make_record: Make, slower: float, threshold: str, failed: bool
) -> None:
    quiet = [r.model_copy(update={"wall_s": r.wall_s}) for r in measured(make_record, (0.1,))]
    old = [r.model_copy(update={"wall_s": r.wall_s / DRIFT[r.repeat]}) for r in quiet]
    new = [r.model_copy(update={"wall_s": r.wall_s * slower}) for r in old]
    (group,) = comparison.groups(new, "fake")
    all_changes = regress.changes(group, old, [Threshold.parse(threshold)], old)
    assert len(all_changes) == len(COST)
    assert {c.failed for c in all_changes} == {failed}
    assert [c.ratio.value for c in all_changes] == pytest.approx([slower] * len(COST))


def test_a_change_within_the_noise_never_fails(make_record: Make) -> None:
    old = measured(make_record, (0.1,))  # its rounds differ by 20 %
    new = [r.model_copy(update={"wall_s": r.wall_s * 1.05}) for r in old]
    (group,) = comparison.groups(new, "fake")
    all_changes = regress.changes(group, old, [Threshold.parse("wall:1%")], old)
    assert [(c.noise, c.failed) for c in all_changes] == [(True, False)] * len(COST)


def on_days(records: list[Record], first: int, days: int) -> list[Record]:
    """Copies of the records on each of some days, an hour apart. Each day is 3 % slower or faster than the day before."""
    moved = []
    for day in range(first, first + days):
        for i, r in enumerate(records):
            created = datetime(2026, 1, day, 9 + i % 12, tzinfo=UTC)
            wall = r.wall_s * (1 + 0.03 * (day % 2))
            moved.append(
                r.model_copy(update={"created": created, "wall_s": wall, "run_id": f"{day:04}{i:04}"})
            )
    return moved


@pytest.mark.parametrize(
    ("slower", "days", "rounds", "expected"),
    [
        (1.0, 0, 3, ("", True, False)),  # the same day: run against run
        (1.2, 0, 3, ("", False, True)),
        (1.2, 0, 1, ("3 rounds", None, False)),
        (1.2, 0, 2, ("3 rounds", None, False)),
        (1.2, 1, 3, ("older records of 2 days or of today", None, False)),
        (1.2, 4, 1, ("3 rounds", None, False)),
        (1.03, 4, 3, ("", True, False)),  # within the spread of days
        (1.2, 4, 3, ("", False, True)),
    ],
)
def test_a_change_is_compared_with_the_spread_of_days(
    make_record: Make, slower: float, days: int, rounds: int, expected: tuple[str, bool | None, bool]
) -> None:
    runs = [timed(make_record, PLAIN, 0.1, i, 100 * jitter) for i, jitter in enumerate((1.0, 1.01, 0.99))]
    old = on_days(runs, 1, days) if days else on_days(runs, 9, 1)
    new = on_days([r.model_copy(update={"wall_s": r.wall_s * slower}) for r in runs[:rounds]], 9, 1)
    new = [r.model_copy(update={"run_id": f"new{r.run_id}"}) for r in new]
    (group,) = comparison.groups(new, "fake")
    (change,) = regress.changes(group, old, [Threshold.parse("wall:5%")], [*old, *new])
    assert (change.needs, change.noise, change.failed) == expected
    assert change.days == days + (days > 0) or not days
    assert (change.ratio.low is None) == bool(change.needs) or rounds < 3


def test_what_a_verdict_needs_is_shown(make_record: Make, choose: Choose) -> None:
    """One round at two scales, against itself: no interval and no verdict anywhere."""
    once = [r for r in measured(make_record, (0.03, 0.1)) if r.repeat == 0 and not r.control]
    result = compared(once, choose)
    all_changes = regress.changes(result.group, once, [Threshold.parse("wall:0%")], once)
    text = compare_text.markdown(result, all_changes)
    assert "| 16.83× (needs 3 rounds) |" in text
    assert "| needs 3 sizes and 2 rounds |" in text
    assert text.count("| needs 3 rounds |") == len(all_changes) == 6
    assert {line.is_noise["plain"] for lines in result.results.values() for line in lines} == {None}
    assert not any(c.failed for c in all_changes)
    assert "NaN" not in compare_json.data(result, all_changes).to_json()


def test_one_older_day_is_enough_if_other_runs_show_how_days_differ(make_record: Make) -> None:
    runs = [timed(make_record, PLAIN, 0.1, i, 100 * jitter) for i, jitter in enumerate((1.0, 1.01, 0.99))]
    others = on_days([timed(make_record, TUNED, 0.03, i, 10.0) for i in range(3)], 1, 5)
    old, new = (
        on_days(runs, 5, 1),
        on_days([r.model_copy(update={"wall_s": r.wall_s * 1.3}) for r in runs], 9, 1),
    )
    old = [r.model_copy(update={"run_id": f"old{r.run_id}"}) for r in old]
    new = [r.model_copy(update={"run_id": f"new{r.run_id}"}) for r in new]
    (group,) = comparison.groups(new, "fake")
    for pool, expected in (
        (old, ("older records of 2 days or of today", False)),
        ([*old, *others], ("", True)),
    ):
        (change,) = regress.changes(group, old, [Threshold.parse("wall:5%")], pool)
        assert (change.needs, change.failed) == expected


def test_days_are_separated_by_pauses_not_by_midnight(make_record: Make) -> None:
    hours = (20, 23, 26, 40)  # from the first day's midnight; each run takes an hour
    start = datetime(2026, 1, 1, tzinfo=UTC)
    records = [
        timed(make_record, PLAIN, 0.1, i, 3600.0, created=start + timedelta(hours=h))
        for i, h in enumerate(hours)
    ]
    assert [len(day) for day in regress.by_day(reversed(records))] == [3, 1]
    long = timed(make_record, PLAIN, 0.1, 9, 10 * 3600.0, created=start + timedelta(hours=38))
    assert [len(day) for day in regress.by_day([*records[:3], long])] == [
        4
    ]  # it began two hours after the last


def test_noise_belongs_to_the_figure(make_record: Make) -> None:
    """Wall times of A/A pairs differ by 20 %, their peaks not at all: a larger peak is not noise."""
    runs = []
    for i, wall in enumerate((100.0, 120.0, 90.0)):
        runs += [
            timed(make_record, PLAIN, 0.1, i, w, control=c) for w, c in ((wall, False), (190 - wall, True))
        ]
    bigger = [r.model_copy(update={"peak_memory_bytes": int(1.1 * (r.peak_memory_bytes or 0))}) for r in runs]
    (group,) = comparison.groups(bigger, "fake")
    thresholds = [Threshold.parse("peak:5%"), Threshold.parse("wall:5%")]
    assert [c.failed for c in regress.changes(group, runs, thresholds, runs)] == [True, False]


@pytest.mark.parametrize("text", ["wall", "wall:5", "wall:x%", "wall:-5%", "speed:5%", ":5%", "wall:nan%"])
def test_malformed_thresholds_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Threshold.parse(text)


@pytest.mark.parametrize("text", ["cpu", "gpu=1", "cpu=cheap", "cpu=-1", "cpu=inf"])
def test_malformed_prices_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        comparison.parse_prices(text)


def test_prices_have_names() -> None:
    assert comparison.parse_prices("cpu=e2-highmem-8, cuda=4") == {"cpu": 0.362, "cuda": 4.0}
    assert comparison.parse_prices("") == {}


def test_tables_and_json_agree(make_record: Make, choose: Choose) -> None:
    result = compared(measured(make_record), choose)
    data = json.loads(compare_json.data(result, []).to_json())
    assert data["runs"][-1]["speed_up"]["plain"] is None or data["runs"][-1]["variant"]
    text = compare_text.markdown(result, [])
    assert "16.83× (16.83–16.83)" in text
    assert "[plain]" in text
    assert "means of A/A runs differ by up to" in text
    assert "| torch_eager cuda 2c2g1h | 1.0" not in text
    assert "404 rows (not measured there)" in text


def split_fits(records: Iterable[Record]) -> tuple[list[Record], list[Record]]:
    """Fits, which come first, and timed runs."""
    every = list(records)
    fits = [r for r in every if r.job == "fit"]
    assert every[: len(fits)] == fits
    return fits, every[len(fits) :]


def test_rounds_are_interleaved_and_paired(
    tmp_path: Path, fake_path: None, choose: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real comparison of the fake task at two scales. Each round runs every variant once, and the reference twice."""
    monkeypatch.setenv("BUZZER_CACHE", str(tmp_path / "cache"))
    scales, out = (0.5, 1.0), tmp_path / "out"
    data = [Data(tmp_path / "data", f"{s * 2:064.0f}", "generated", {"rows": 10}, s) for s in scales]
    plan = interleaved([choose(scale=s, repeat=2) for s in scales], seed=0)
    fits, timed_runs = split_fits(Executor(out, Quiet()).run(task_runs.steps(plan, data, out)))
    assert len(fits) == 2
    executor = Executor(out, Quiet(), resume=True)
    assert list(executor.run(task_runs.steps(plan, data, out))) == []
    again = executor.reused
    assert len(timed_runs) == 2 * 2 * 3
    assert {r.repeat for r in timed_runs[:6]} == {0}
    assert sum(r.control for r in timed_runs) == 4
    assert {r.outcome for r in timed_runs} == {"ok"}
    assert sorted(r.run_id for r in again) == sorted(r.run_id for r in timed_runs)  # nothing was left to run
    (group,) = comparison.groups(timed_runs, "fake")
    line = comparison.compare(group, choose().task, None, {}, timed_runs).results[1.0][0]
    assert len(line.cell.records) == 2


def test_a_limit_that_no_variant_meets_is_reported(make_record: Make, choose: Choose) -> None:
    """There is no row count for runs that did not end, and no table without lines."""
    late = {"outcome": "timeout", "rows": 0, "phases": [], "samples": {}, "gate": {"status": "unscored"}}
    result = compared([timed(make_record, v, 0.1, 0, 5.0, **late) for v in (PLAIN, TUNED)], choose)
    tables = compare_text.tables(result, [])
    assert [table.title for table in tables] == ["Runs at scale 0.1"]
    assert len(tables[0].lines) == 2
    assert tables[0].notes[0].startswith("no variant ended well within its budget")


@pytest.mark.parametrize(
    ("sizes", "rounds", "needs"),
    [
        ((0.01, 0.03), 3, "3 sizes"),
        ((0.01, 0.03, 0.1), 1, "2 rounds"),
        ((0.01, 0.03), 1, "3 sizes and 2 rounds"),
        ((0.01, 0.03, 0.1), 2, ""),
    ],
)
def test_an_interval_needs_sizes_and_rounds(
    make_record: Make, choose: Choose, sizes: tuple[float, ...], rounds: int, needs: str
) -> None:
    """Nothing is called 95 % from two sizes or from one repetition, in the projection and in its comparison with the truth."""
    smaller = [r for r in measured(make_record, sizes) if r.repeat < rounds]
    result = compared(smaller, choose)
    assert {fit.full.needs for fit in result.fits} == {needs}
    assert {fit.full.low is None for fit in result.fits} == {bool(needs)}
    (table,) = [t for t in compare_text.tables(result, []) if t.title.startswith("The job at scale 1")]
    assert {line[table.names.index("at least 95 %")].startswith("needs") for line in table.lines} == {
        bool(needs)
    }
    (growth,) = [t for t in compare_text.tables(result, []) if t.title == "Growth with size"]
    exponents = [line[growth.names.index("exponent")] for line in growth.lines]
    assert ["(" not in exponent for exponent in exponents] == [bool(needs)] * 3
    whole = [r for r in measured(make_record, (1.0,)) if r.repeat < rounds]
    truths = {t.variant: t for t in compared([*smaller, *whole], choose).truths}
    assert {t.holds for t in truths.values()} == {None if needs else True}
    assert truths[PLAIN].measured_s == pytest.approx(1001.0 * sorted(DRIFT[:rounds])[rounds // 2], rel=0.11)


@pytest.mark.parametrize(
    ("rounds", "interval", "sure"), [(2, False, ""), (3, True, "75.0 %"), (4, True, "87.5 %"), (5, True, "")]
)
def test_few_rounds_say_how_sure_they_can_be(
    make_record: Make, choose: Choose, rounds: int, interval: bool, sure: str
) -> None:
    """No interval of two rounds; 1 - 2/2**n without an assumption about the noise, which five rounds no longer need to say."""
    walls = [
        (variant, i, (10.0 if variant == PLAIN else 2.0) + i / 100)
        for variant in (PLAIN, TUNED)
        for i in range(rounds)
    ]
    result = compared([timed(make_record, variant, 0.1, i, wall) for variant, i, wall in walls], choose)
    (runs,) = [t for t in compare_text.tables(result, []) if t.title.startswith("Runs")]
    cells = [line[runs.names.index("against plain")] for line in runs.lines]
    assert any("–" in cell for cell in cells) == interval
    assert any("needs 3 rounds" in cell for cell in cells) == (not interval)
    notes = [note for note in runs.notes if "normally distributed" in note]
    assert [sure in note for note in notes] == ([True] if sure else [])


def test_verdicts_come_first(make_record: Make, choose: Choose) -> None:
    """The full job's verdict is the second cell of the first table."""
    tables = compare_text.tables(compared(measured(make_record), choose), [])
    assert tables[0].title.startswith("The job at scale 1")
    assert tables[0].names[:2] == ("variant", "fits the budget")
    assert [t.title.split(" at")[0] for t in tables[1:3]] == ["Runs", "Phases"]


def test_a_comparison_names_resumed_runs(make_record: Make, choose: Choose) -> None:
    records = measured(make_record)
    assert not any(
        "resumed" in note for t in compare_text.tables(compared(records, choose), []) for note in t.notes
    )
    records[0] = records[0].model_copy(update={"sittings": 2})
    notes = [note for t in compare_text.tables(compared(records, choose), []) for note in t.notes]
    (note,) = [note for note in notes if "resumed" in note]
    assert note.startswith("interrupted and resumed: 1 run of ") and records[0].backend in note


def test_the_truth_is_compared_with_the_projection_of_smaller_sizes_only(
    make_record: Make, choose: Choose
) -> None:
    """One variant goes on as it grew; another is ten times slower at the full size, which its interval does not hold."""
    records = measured(make_record)
    for repeat, drift in enumerate(DRIFT):
        records.append(timed(make_record, PLAIN, 1.0, repeat, 1001.0 * drift))
        records.append(timed(make_record, CUDA, 1.0, repeat, 1500.0 * drift))
    result = compared(records, choose)
    truths = {t.variant: t for t in result.truths}
    assert set(truths) == {PLAIN, CUDA}
    alone = {t.variant: t.full for t in compared(measured(make_record), choose).fits}
    for variant, truth in truths.items():
        assert truth.predicted == alone[variant]
    assert truths[PLAIN].holds is True and truths[CUDA].holds is False
    assert truths[CUDA].measured_s == 1500.0
    (table,) = [t for t in compare_text.tables(result, []) if t.title.startswith("Prediction")]
    assert [line[-1] for line in table.lines] == [
        "no" if "cuda" in line[0] else "yes" for line in table.lines
    ]
    assert "Prediction, interval, truth at scale 1" in page.html(records, {})
    assert "Prediction, interval, truth" not in page.html(measured(make_record), {})
