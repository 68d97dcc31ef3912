from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from buzzer.errors import UsageError
from buzzer.suite import registry
from buzzer.suite.records import integrity, record
from buzzer.suite.records.schema import Gpu, Record
from buzzer.suite.report import budget_bars, frontier, leaderboard, page, page_first, readme, summary

Make = Callable[..., Record]
ROOT = Path(__file__).parents[3]
EMPTY = f"# title\n{readme.RESULTS[0]}\nold\n{readme.RESULTS[1]}\nafter\n"
BOTH = f"{''.join(readme.SUMMARY)}\nbetween\n{''.join(readme.RESULTS)}\n"
TWO = {"name": "2c2g30s", "cores": 2, "memory_bytes": 2 * 10**9, "time_s": 30.0}
PASSED = {"gate": {"status": "passed"}}


def variants(make: Make) -> list[Record]:
    return [
        make(),
        make(backend="onnxruntime", **PASSED).model_copy(update={"wall_s": 1.0}),
        make(engine="polars", budget=TWO, **PASSED).model_copy(update={"wall_s": 0.5}),
        make(engine="pandas", outcome="timeout", gate={"status": "unscored"}),
        make(scale=0.1, data_fingerprint="smaller"),
    ]


def rounds(make: Make, walls: list[float], **changes: Any) -> list[Record]:
    """Repetitions with these wall times."""
    runs = [make(repeat=i, **changes) for i in range(len(walls))]
    return [r.model_copy(update={"wall_s": wall}) for r, wall in zip(runs, walls, strict=True)]


def cells(text: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]


def test_a_task_is_one_row_with_its_plain_and_its_fastest_run(make_record: Make) -> None:
    text = readme.fill(EMPTY, variants(make_record))
    assert text.startswith("# title\n")
    assert text.endswith(f"{readme.RESULTS[1]}\nafter\n")
    row = ["`fake`", "generated, 10 rows", "2.00 s", "0.500 s", "4.00× (1 round)", "polars, 2 cores"]
    assert cells(text) == [[*row[:-1], "Polars, 2 cores"]]


def test_tasks_without_a_row_are_counted(make_record: Make) -> None:
    other = make_record(task="booking", gate={"status": "no-reference"})
    assert "more task" not in readme.fill(EMPTY, variants(make_record))
    text = readme.fill(EMPTY, [*variants(make_record), other])
    assert "1 more task is on the leaderboard." in text


def test_a_gain_has_its_interval_from_three_rounds_on(make_record: Make) -> None:
    plain = rounds(make_record, [4.0, 4.4, 3.6])
    fast = rounds(make_record, [2.0, 2.2, 1.8], backend="onnxruntime", **PASSED)
    (s,) = summary.summaries([*plain, *fast])
    assert s.gain is not None and s.gain.verdict == "2.00× (2.00 to 2.00, 3 rounds)"
    assert s.backend is not None and s.backend.row is s.best and s.engine is None
    (few,) = summary.summaries([*plain[:2], *fast[:2]])
    assert few.gain is not None and few.gain.verdict == "2.00× (2 rounds)"
    slower = rounds(make_record, [4.4, 3.6, 4.1], backend="onnxruntime", **PASSED)
    (s,) = summary.summaries([*plain, *slower])
    assert s.backend is not None and s.backend.is_noise


def test_a_run_of_more_rounds_is_shown_before_one_with_other_limits(make_record: Make) -> None:
    """Also if that one was faster. With other cores it is another run."""
    limits = {"name": "1c2g9s", "cores": 1, "memory_bytes": 2 * 10**9, "time_s": 9.0}
    plain = rounds(make_record, [4.0, 4.0, 4.0])
    fast = rounds(make_record, [2.0, 2.0, 2.0], backend="onnxruntime", **PASSED)
    once = rounds(make_record, [1.5], backend="onnxruntime", budget=limits, **PASSED)
    (s,) = summary.summaries([*plain, *fast, *once])
    assert s.best.wall_s == 2.0
    on_two = rounds(make_record, [1.5], backend="onnxruntime", budget=TWO, **PASSED)
    (s,) = summary.summaries([*plain, *fast, *on_two])
    assert s.best.wall_s == 1.5


def test_a_size_with_an_interval_is_shown_before_a_larger_one_without(make_record: Make) -> None:
    def board(scale: float, walls: list[float]) -> list[Record]:
        data = {"scale": scale, "data_fingerprint": f"scale {scale}"}
        fast = [wall / 2 for wall in walls]
        return rounds(make_record, walls, **data) + rounds(
            make_record, fast, backend="onnxruntime", **data, **PASSED
        )

    once = board(1.0, [40.0])
    (s,) = summary.summaries(board(0.1, [4.0, 4.0, 4.0]) + once)
    assert s.first.scale == 0.1
    (s,) = summary.summaries(board(0.1, [4.0]) + once)
    assert s.first.scale == 1.0


def test_the_first_finding_saves_most_time_rather_than_the_largest_share(make_record: Make) -> None:
    """60 s to 30 s, before 0.6 s to 0.1 s."""
    records = []
    for name, before, after in (("booking", 60.0, 30.0), ("online-shoppers", 0.6, 0.1)):
        data = {"task": name}
        walls, fast = ([wall * f for f in (1, 1.1, 0.9)] for wall in (before, after))
        records += rounds(make_record, walls, **data)
        records += rounds(make_record, fast, backend="onnxruntime", **data, **PASSED)
    first = summary.findings(summary.summaries(records))[0]
    assert first.startswith("Same core, same score: booking takes 60.0 s")


def test_the_findings_name_the_change_that_gains_most(make_record: Make) -> None:
    def task(
        name: str, scores: dict[str, float], metric: str, engine_s: float, backend_s: float
    ) -> list[Record]:
        common = {"task": name, "scores": scores, "metric": metric}
        return [
            *rounds(make_record, [6.0, 6.6, 5.4], engine="pandas", **common),
            *rounds(make_record, [engine_s * f for f in (1, 1.1, 0.9)], engine="polars", **PASSED, **common),
            *rounds(
                make_record, [backend_s * f for f in (1, 1.1, 0.9)], engine="pandas", backend="onnxruntime", **PASSED, **common
            ),
        ]  # fmt: skip

    records = task("booking", {"accuracy@4": 0.5}, "accuracy@4", 5.0, 2.0)
    records += task("recsys2021", {"RCE": 13.0}, "RCE", 3.0, 4.0)
    first, second = summary.findings(summary.summaries(records))
    assert first == (
        "Same core, same score: booking takes 6.00 s with pandas and PyTorch and 2.00 s with pandas and ONNX Runtime,"
        " 3.00× (3.00 to 3.00, 3 rounds)."
    )
    assert second == (
        "Changing only the backend gains most for booking 3.00× (3.00 to 3.00, 3 rounds)."
        " Changing only the engine gains most for recsys2021 2.00× (2.00 to 2.00, 3 rounds)."
    )
    assert summary.findings([]) == []


def test_an_engine_and_a_backend_that_gain_the_same_are_named_together(make_record: Make) -> None:
    """3 s and 3.1 s of 6 s, with rounds that differ by 10 %."""

    def of(changes: dict[str, str], walls: list[float]) -> list[Record]:
        return rounds(
            make_record, walls, **({"engine": "pandas"} | changes), **({} if not changes else PASSED)
        )

    runs = of({}, [6.0, 6.6, 5.4]) + of({"engine": "polars"}, [3.0, 3.3, 2.7])
    runs += of({"backend": "onnxruntime"}, [3.1, 3.0, 3.1])
    (_, rule) = summary.findings(summary.summaries(runs))
    assert rule.startswith(
        "Changing only the backend or only the engine gains the same, up to noise, for fake 2.00×"
    )


def test_a_gain_of_too_few_rounds_is_named_apart(make_record: Make) -> None:
    records = [*rounds(make_record, [4.0]), *rounds(make_record, [2.0], backend="onnxruntime", **PASSED)]
    assert (
        summary.findings(summary.summaries(records))[1] == "Too few rounds to tell for fake 2.00× (1 round)."
    )


def test_the_gpu_status_is_that_of_the_records(make_record: Make) -> None:
    cuda = {"device": "cuda", "engine": "cudf", "gpu_busy_s": 1.0, "gpu_peak_memory_bytes": 10**9}
    failed = make_record(
        **cuda, outcome="unsupported", message="no device", scores={}, gate={"status": "unscored"}
    )
    assert summary.gpu_status([make_record()]).endswith("nothing has run on a GPU yet.")
    assert summary.gpu_status([failed]).endswith("yet. 1 run asked for one that was not there.")
    machine = make_record().machine.model_copy(update={"gpus": [Gpu(name="NVIDIA H100", memory_bytes=1)]})
    ran = make_record(**cuda, task="booking", machine=machine)
    text = summary.gpu_status([ran, failed])
    assert text.startswith("On a GPU (NVIDIA H100): booking (1 run). Not yet: ")
    assert "recsys2021" in text and "booking" not in text.partition("Not yet")[2].split(", ")


def test_the_overall_ranking_counts_missing_tasks(make_record: Make) -> None:
    """The expected means are computed by hand: ClickBench's shift of 10 ms, and twice the largest ratio for a missing task."""
    records = [
        make_record(engine="pandas").model_copy(update={"wall_s": 3.99}),
        make_record(engine="polars", **PASSED).model_copy(update={"wall_s": 1.99}),
        make_record(task="other", engine="pandas").model_copy(update={"wall_s": 0.99}),
        make_record(task="other", engine="pandas", backend="onnxruntime", **PASSED).model_copy(
            update={"wall_s": 0.49}
        ),
    ]
    systems = {s.name: (s.mean, s.missing) for s in summary.overall(summary.summaries(records))}
    assert systems["pandas with PyTorch"] == pytest.approx((2.0, 0))  # 2 and 2
    assert systems["Polars with PyTorch"] == pytest.approx((2.0, 1))  # 1 and 2 x 2
    assert systems["pandas with ONNX Runtime"] == pytest.approx((2.0, 1))  # 2 x 2 and 1


def test_the_backends_of_tasks_of_different_kinds_are_one_system(make_record: Make) -> None:
    """`booking` has networks, `open-bandit` has trees, and `recsys2021` has both. Times over the fastest are 2 and 1 by hand."""

    def two(task: str, engines: tuple[str, str], backends: tuple[str, str]) -> list[Record]:
        names = zip(engines, backends, (1.99, 0.99), ({}, PASSED), strict=True)
        return [
            make_record(task=task, engine=engine, backend=backend, **gate).model_copy(update={"wall_s": wall})
            for engine, backend, wall, gate in names
        ]

    both = ("pandas", "polars")
    runs = two("booking", both, ("torch_eager", "onnxruntime"))
    runs += two("open-bandit", both, ("xgboost", "forest"))
    runs += two("recsys2021", both, ("torch_eager", "onnxruntime+forest"))
    runs += two("bert-intent", ("none", "none"), ("torch_eager", "onnxruntime"))
    found = summary.summaries(runs)
    systems = {s.name: (s.mean, s.missing) for s in summary.overall(found)}
    assert systems == {
        "Polars with ONNX Runtime + C trees": pytest.approx((1.0, 0)),
        "pandas with PyTorch + XGBoost": pytest.approx((2.0, 0)),
    }
    heat = page_first.heat_map(found)
    assert sorted(heat.names) == sorted(systems)
    assert all({c.text for c in cells} == {"1", "2.01× ?"} for _, _, cells in heat.lines)


def test_older_runs_that_scored_inside_their_time_are_named(make_record: Make) -> None:
    assert "include scoring: `fake`" in readme.fill(EMPTY, [make_record()])
    outside = make_record(schema_minor=1)
    assert "include scoring" not in readme.fill(EMPTY, [outside])


def test_several_machines_have_letters(make_record: Make) -> None:
    first = make_record()
    other = make_record(task="other", machine=first.machine.model_copy(update={"simd": "AVX-512"}))
    assert "machine |" not in readme.fill(EMPTY, [first])
    text = readme.fill(EMPTY, [first, other])
    assert [row[-1] for row in cells(text)] == ["B", "A"]
    assert "A: a processor (AVX-512), 2 cores, 16 GiB, no GPU; B: a processor (AVX2), 2 cores" in text


def test_a_task_is_shown_with_its_own_parameters(make_record: Make) -> None:
    registered, other = (registry.task("booking").params | extra for extra in ({}, {"dim": 7}))
    records = [
        make_record(task="booking", config=config, config_hash=registry.params_hash(config), created=created)
        for config, created in ((registered, "2026-01-01T00:00:00Z"), (other, "2026-01-02T00:00:00Z"))
    ]
    assert [s.first.config for s in summary.summaries(records)] == [registered]
    assert "`dim=7`" in cells(readme.fill(EMPTY, records[1:]))[0][1]


def test_at_most_ten_tasks_are_shown(make_record: Make) -> None:
    records = [make_record(task=f"t{i:02}").model_copy(update={"wall_s": 1.0 + i}) for i in range(12)]
    text = readme.fill(EMPTY, records)
    assert [row[0] for row in cells(text)] == [f"`t{i:02}`" for i in range(2, 12)]
    assert "2 more tasks are on the leaderboard" in text


def test_tasks_with_an_interval_and_with_scores_come_first(make_record: Make) -> None:
    random = {"config": {"weights": "random"}}
    random |= {"config_hash": registry.params_hash(random["config"])}
    records = rounds(make_record, [9.0] * 3, task="untrained", **random)
    records += rounds(make_record, [99.0], task="once")
    for i in range(9):
        records += rounds(make_record, [1.0] * 3, task=f"t{i}")
    assert [row[0] for row in cells(readme.fill(EMPTY, records))][-1] == "`untrained`"
    records += rounds(make_record, [1.0] * 3, task="t9")
    assert [row[0] for row in cells(readme.fill(EMPTY, records))] == [f"`t{i}`" for i in range(10)]


def test_filling_twice_changes_nothing(make_record: Make) -> None:
    once = readme.fill(BOTH, variants(make_record))
    assert readme.fill(once, variants(make_record)) == once
    assert once.index("nothing has run on a GPU") < once.index("between") < once.index("| `fake`")


def test_a_file_without_markers_is_refused(make_record: Make) -> None:
    with pytest.raises(UsageError, match="no markers"):
        readme.fill("# title\n", [make_record()])


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "results/leaderboard.md",
        "results/index.html",
        "results/frontier.svg",
        "results/frontier.csv",
        "docs/budget.svg",
        "docs/budget-dark.svg",
    ],
)
def test_published_files_match_the_records(name: str) -> None:
    found = integrity.examine(record.paths([ROOT / "results"])).good
    files, good = {r.run_id: path for path, r in found.items()}, list(found.values())
    text = (ROOT / name).read_text(encoding="utf-8")
    render = {
        "README.md": lambda: readme.fill(text, good),
        "results/leaderboard.md": lambda: leaderboard.markdown(good),
        "results/index.html": lambda: page.html(good, page.links_of(files, ROOT / name)),
        "results/frontier.svg": lambda: frontier.files(ROOT / "results/frontier.svg", good)[ROOT / name],
        "results/frontier.csv": lambda: frontier.files(ROOT / "results/frontier.svg", good)[ROOT / name],
        "docs/budget.svg": lambda: budget_bars.svg(budget_bars.panels(good), budget_bars.LIGHT),
        "docs/budget-dark.svg": lambda: budget_bars.svg(budget_bars.panels(good), budget_bars.DARK),
    }
    assert render[name]() == text, "run `make report`"
