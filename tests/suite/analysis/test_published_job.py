"""Whether a run may stand beside a published time, and what reports show in each case."""

from collections.abc import Callable
from typing import Any

import pytest

from buzzer.datasets.recsys2021.schema import OFFICIAL_ROWS
from buzzer.models.api.context import Work
from buzzer.suite import registry
from buzzer.suite.analysis import comparison, published_job
from buzzer.suite.records.schema import Record
from buzzer.suite.report import compare_text, leaderboard, page, page_runs

Make = Callable[..., Record]
DAY = {"name": "seed-cpu", "cores": 1, "memory_bytes": 20 * 10**9, "time_s": 86400.0}
ROWS = 14_500_000
SUMMED = 719_714_693  # training rows of the larger published copy
TRUE_SIZE = Work(
    trees=17_075, tree_nodes=136_600, network_flops=50e6, table_rows=10**8, summed_rows=663_946_617
)
# Name -> rows of the run, its work for one row (None = not recorded), and its share of the published job in words.
JOBS: dict[str, tuple[int, Work | None, str]] = {
    "true size": (ROWS, TRUE_SIZE, "rows 1, trees 1, networks 1, tables 1"),
    "least that is the same job": (
        13_775_000,
        Work(16_000, 123_300, 45e6, 0, 597_552_000),
        "rows 0.95, trees 0.9, networks 0.9, tables 0.9",
    ),
    "smaller trees": (ROWS, Work(360, 1_800, 50e6, 0, SUMMED), "rows 1, trees 1/76, networks 1, tables 1.08"),
    "smaller networks": (
        ROWS,
        Work(17_075, 136_600, 4e4, 0, SUMMED),
        "rows 1, trees 1, networks 1/1,250, tables 1.08",
    ),
    "no networks": (ROWS, Work(17_075, 136_600, 0, 0, SUMMED), "rows 1, trees 1, networks 0, tables 1.08"),
    "smaller tables": (
        ROWS,
        Work(17_075, 136_600, 50e6, 0, 7_197_147),
        "rows 1, trees 1, networks 1, tables 1/92",
    ),
    "tables not recorded": (ROWS, Work(17_075, 136_600, 50e6, 0), "rows 1, trees 1, networks 1"),
    "fewer rows": (1_450_000, TRUE_SIZE, "rows 1/10, trees 1, networks 1, tables 1"),
    "no work recorded": (ROWS, None, "rows 1, work for a row not recorded"),
}
SAME = ("true size", "least that is the same job")


def run_of(make: Make, job: str, **changes: Any) -> Record:
    """A run of 30,000 s of a task on the data set of the published job."""
    rows, work, _ = JOBS[job]
    fields: dict[str, Any] = {
        "task": "recsys2021-full",
        "engine": "pandas",
        "metric": "RCE",
        "scores": {"RCE": 14.0},
        "budget": DAY,
        "rows": rows,
        "wall_s": 30_000.0,
        "phases": [
            {"name": name, "wall_s": wall, "cpu_s": 1.0, "peak_memory_bytes": 1}
            for name, wall in (("start", 1.0), ("load", 999.0), ("features", 4000.0), ("trees", 10_000.0))
        ]
        + [{"name": "networks", "wall_s": 15_000.0, "cpu_s": 1.0, "peak_memory_bytes": 1}],
        "samples": {},
        "work": None if work is None else vars(work),
    }
    return make(**(fields | changes))


@pytest.mark.parametrize("name", JOBS)
def test_only_the_same_job_stands_beside_the_published_time(name: str) -> None:
    rows, work, words = JOBS[name]
    job = published_job.job_of("recsys2021-full")
    assert job is not None
    share = published_job.share(job.work, rows, work)
    assert share.is_same_job is (name in SAME)
    assert str(share) == words


def test_the_published_job_is_that_of_the_data_set() -> None:
    job = published_job.job_of("recsys2021")
    assert job is not None and job.work.rows == OFFICIAL_ROWS["test"]
    assert job == published_job.job_of("recsys2021-full")
    assert [figure.time_s for figure in job.timed] == [85200, 30240, 330]
    assert published_job.job_of("booking") is None and published_job.job_of("no such task") is None


@pytest.mark.parametrize("name", JOBS)
def test_every_report_refuses_another_job(make_record: Make, name: str) -> None:
    run, words = run_of(make_record, name), JOBS[name][2]
    (group,) = comparison.groups([run], run.task)
    result = comparison.compare(group, registry.task(run.task), None, {}, [])
    tables = {t.title: t for t in compare_text.published_tables(result)}
    beside, section = (
        tables.get("Beside the published times"),
        page.sections(page_runs.boards([run], {}), ())[0],
    )
    html = page.html([run], {})
    assert len(tables["Published times"].rows) == 3
    if name in SAME:
        assert beside is not None and [e.first for e in section.beside] == [run] and not section.apart
        assert beside.lines[0][3:] == ("2.84×", "1.01×", "0.01×")  # 85,200, 30,240 and 330 s over 30,000 s
        assert "The same job: pandas torch_eager, seed-cpu, 8:20:00" in html
        assert '<i class="stem wide cpu"' in html and "not the same job: " not in html
    else:
        assert beside is None and section.beside == [] and section.apart == [words]
        assert any(words in note for note in tables["Published times"].notes)
        assert "The same job: " not in html
        assert '<i class="stem wide cpu apart"' in html and "not the same job: " in html
        assert f"Apart, because it is another job: {words}" in html


def test_a_projection_to_all_rows_is_the_same_job_only_with_the_same_work(make_record: Make) -> None:
    """Two sizes of a hundredth and a fiftieth are projected to all rows."""
    for name, expected in (("true size", [False, True]), ("smaller trees", [False, False])):
        runs = [
            run_of(make_record, name, scale=scale, rows=int(ROWS * scale), data_fingerprint=f"{scale}")
            for scale in (0.01, 0.02)
        ]
        (group,) = comparison.groups(runs, "recsys2021-full")
        result = comparison.compare(group, registry.task("recsys2021-full"), None, {}, [])
        assert [t.share.is_same_job for t in result.job_times] == expected
        assert [t.is_projected for t in result.job_times] == [False, True]
        assert result.job_times[1].rows == ROWS


def test_the_leaderboard_has_the_shares_of_the_work(make_record: Make) -> None:
    board = leaderboard.board([run_of(make_record, "smaller trees")])
    assert board.names[-1] == "work against the winners'"
    assert board.lines[0][-1] == "trees 1/76, networks 1, tables 1.08"
    assert (
        "work for one row: 360 trees with 1,800 nodes, networks of 50 MFLOP; lookup tables of 0 rows,"
        " sums of 719,714,693 training rows" in board.notes
    )
    assert leaderboard.board([run_of(make_record, "no work recorded")]).lines[0][-1] == "not recorded"
    assert leaderboard.board([make_record()]).names[-1] == "outcome"  # a task without a published job
