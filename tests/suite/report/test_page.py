"""The report page: its content, and its behaviour in a real browser."""

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from buzzer.suite.records import record
from buzzer.suite.records.schema import Record
from buzzer.suite.report import charts, notes, page, page_bench, page_first, page_runs, readme, summary

Make = Callable[..., Record]
ROOT = Path(__file__).parents[3]
TASK = {"task": "booking", "metric": "accuracy@4", "scores": {"accuracy@4": 0.49}, "rows": 1000}
DAY = {"name": "seed-cpu", "cores": 1, "memory_bytes": 20 * 10**9, "time_s": 86400.0}
QUICK = {"name": "quick", "cores": 1, "memory_bytes": 4 * 10**9, "time_s": 300.0}
FAILED = {"scores": {}, "gate": {"status": "unscored"}, "samples": {}}
CUDA = {"device": "cuda", "gpu_busy_s": 1.0, "gpu_peak_memory_bytes": 10**9}


def records(make: Make) -> list[Record]:
    """Records at two scales: a baseline, faster runs on CPU and GPU in rounds, a timeout, and a run that could not start."""
    runs = []
    for scale in (0.1, 1.0):
        data = {"scale": scale, "data_fingerprint": f"{scale:g}".replace(".", "a") * 8}
        for repeat, factor in enumerate((1.0, 1.1, 0.95)):
            common = TASK | data | {"repeat": repeat, "rows": int(1000 * scale)}
            wall = 100 * scale * factor
            runs += [
                timed(make, wall, **common, engine="pandas", budget=DAY, gate={"status": "reference"}),
                timed(make, wall / 3, **common, engine="polars", budget=DAY, gate={"status": "passed"}),
                timed(
                    make, wall / 50, **common, engine="cudf", budget=DAY, gate={"status": "passed"}, **CUDA
                ),
            ]
        lost = TASK | data | FAILED
        runs.append(
            timed(
                make,
                300.0,
                **lost | {"engine": "pandas", "backend": "onnxruntime", "budget": QUICK},
                outcome="timeout",
                message="the buzzer went in phase predict",
                phase_reached="predict",
            )
        )
        missing = {"engine": "polars-gpu", "budget": DAY, "phases": [], "wall_s": 0.0, "enforcement": "none"}
        missing |= {"device": "cuda", "outcome": "unsupported", "message": "no <CUDA> device"}
        runs.append(make(**lost | missing))
    return [r.model_copy(update={"run_id": f"{i:08x}" * 4}) for i, r in enumerate(runs)]


def timed(make: Make, wall: float, **changes: Any) -> Record:
    phases = [("start", 0.1), ("features", 0.4), ("predict", 0.5)]
    measured = [
        {"name": n, "wall_s": share * wall, "cpu_s": 0.1, "peak_memory_bytes": 10**7} for n, share in phases
    ]
    return make(wall_s=wall, phases=measured, **{"samples": {}} | changes)


def built(folder: Path, runs: list[Record]) -> Path:
    """Write the records and the page into a folder. Returns the path of the page."""
    folder.mkdir(exist_ok=True)
    files = {r.run_id: record.write(r, folder) for r in runs}
    target = folder / "index.html"
    record.write_text(target, page.html(runs, page.links_of(files, target)))
    return target


def test_the_page_is_self_contained(make_record: Make, tmp_path: Path) -> None:
    text = built(tmp_path, records(make_record)).read_text()
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', text)
    assert "@import" not in text
    assert "no &lt;CUDA&gt; device" in text
    assert "✕ timeout" in text
    assert "– unsupported" in text and "✕ unsupported" not in text
    assert (
        "Synerise AI (2nd)" in text and "NVIDIA (1st), 1 CPU core" not in text
    )  # of the tasks that were run


def test_the_rows_are_in_the_page_as_json(make_record: Make) -> None:
    text = page.html([make_record(message="</script><b>")], {})
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    data = json.loads(found)
    (row,) = [dict(zip(data["columns"], line, strict=True)) for line in data["rows"]]
    assert row | data["filters"][row["f"]] == row | {
        "task": "fake", "engine": "none", "backend": "torch_eager", "precision": "fp32", "budget": "1c2g30s", "outcome": "ok",
        "machine": "a processor (AVX2), 2 cores, 16 GiB, no GPU",
    }  # fmt: skip
    assert (row["wall_s"], row["score"], row["peak_bytes"], row["rows"]) == (2.0, 0.9, 10**8, 10)
    assert dict(zip(data["phases"], row["phases"], strict=True)) == {"start": 0.5, "predict": 1.5}


def test_boards_of_one_scale_have_headings_that_tell_them_apart(make_record: Make) -> None:
    machine = make_record().machine.model_copy(update={"simd": "AVX-512"})
    common = {"task": "booking", "created": "2026-01-01T00:00:00Z"}
    runs = [
        make_record(**common),
        make_record(**common, machine=machine),
        make_record(**common, schema_minor=1),
        *(
            make_record(**common, config={"epochs": n}, config_hash=f"{n}", seed=1, data_source="official")
            for n in (1, 2)
        ),
        make_record(**common, scale=0.1),
    ]
    labels = [board.label for board in page_runs.boards(runs, {})]
    assert len(set(labels)) == 6
    assert labels[-1] == "Scale 0.1"
    assert sum("epochs=1" in label for label in labels) == sum("epochs=2" in label for label in labels) == 1
    assert sum("AVX-512" in label for label in labels) == 1
    assert sum("scoring outside" in label for label in labels) == 1


def test_a_board_counts_the_rows_that_it_predicts(make_record: Make) -> None:
    text = page.html([make_record(rows=217_500, data_rows={"train": 11_230_146, "test": 217_500})], {})
    assert "217,500 rows predicted" in text and "11,447,646" not in text


def test_equal_scores_have_no_chart(make_record: Make) -> None:
    def board(score: float) -> page_runs.Board:
        other = make_record(backend="onnxruntime", gate={"status": "passed"}, scores={"accuracy": score})
        return page_runs.boards([make_record(), other], {})[0]

    assert board(0.9005).frontier() is None
    assert board(0.95).frontier() is not None


def test_the_heat_map_has_ratios_to_the_plain_run(make_record: Make) -> None:
    heat = page_first.heat_map(summary.summaries(records(make_record)))
    assert heat.names == ["pandas with PyTorch", "Polars with PyTorch"]  # the GPU run is of another setting
    ((_, _, cells),) = heat.lines
    assert [(c.text, c.shade) for c in cells] == [("1", "plain"), ("3.00×", "up3")]
    assert cells[1].title == "3.00× (3.00 to 3.00, 3 rounds), 33.3 s"


def test_cpu_and_gpu_are_compared_at_the_largest_scale(make_record: Make) -> None:
    (pair,) = page_first.dumbbells(records(make_record)).lines
    assert pair.label == "booking, 1,000 rows: CPU (1 core) 33.3 s, GPU 2.00 s, 16.7×"
    assert (
        f"- The fastest run on each device of a machine: {pair.label} ({pair.rounds} round"
        in readme.findings([], records(make_record))
    )
    assert 'id="no-gpu"' not in page.html(records(make_record), {})
    assert 'id="no-gpu"' in page.html([make_record()], {})


def test_each_machine_has_the_noise_of_its_pairs(make_record: Make) -> None:
    """Ratios of 1.1 and 0.9, also if the newest run was timed by another rule: exp(4.303 x 0.1005) - 1 = 54.1 % by hand."""
    runs = []
    for repeat, wall in enumerate((11.0, 9.0)):
        runs += [
            timed(make_record, 10.0, repeat=repeat),
            timed(make_record, wall, repeat=repeat, control=True),
        ]
    later = make_record(schema_minor=1, created="2030-01-01T00:00:00Z")
    other = make_record(task="booking", scale=0.5)  # the pairs of all tasks count
    (line,) = page.machines([*runs, later, other])
    assert line.noise == "single A/A runs differ by up to 54.1 % (2 pairs)"
    (line,) = page.machines([later])
    assert line.noise == "no A/A pairs on record"


def test_a_note_of_some_runs_names_them(make_record: Make) -> None:
    runs = [make_record(notes=["all"]), make_record(notes=["all", "one"], backend="onnxruntime")]
    assert notes.own_notes(runs) == ["all", "onnxruntime fp32 1c2g30s: one"]


def test_a_pair_that_was_disturbed_is_left_out(make_record: Make) -> None:
    gpu = [r for r in records(make_record) if r.device == "cuda"]
    shared = [r if r not in gpu else r.model_copy(update={"others_cpu_s": 1e4}) for r in records(make_record)]
    left = page_first.dumbbells(shared)
    assert gpu and not left.lines
    small, large = (f"booking, {rows} rows: CPU (1 core)" for rows in ("100", "1,000"))
    assert all(named.startswith(size) for named, size in zip(left.disturbed, (large, small), strict=True))
    sentence = f"Left out, because other processes used the cores of a run: {'; '.join(left.disturbed)}."
    assert left.left_out == sentence
    assert f"did not disturb. {sentence}" in page.html(shared, {})
    assert f"- {sentence}" in readme.findings([], shared)
    assert "Left out" not in readme.findings([], records(make_record)) + page.html(records(make_record), {})
    large_shared = [r if r.rows == 100 else s for r, s in zip(records(make_record), shared, strict=True)]
    html = page.html(large_shared, {})
    assert (
        'id="no-gpu"' not in html
        and f"Left out, because other processes used the cores of a run: {large}" in html
    )


def test_a_full_job_that_was_not_measured_is_projected(make_record: Make) -> None:
    def runs(scales: tuple[float, ...]) -> list[Record]:
        return [
            timed(
                make_record, 100 * scale * factor, **TASK | {"rows": int(1000 * scale)}, scale=scale, repeat=i,
                data_fingerprint=f"{scale:g}".replace(".", "a") * 8, budget=DAY,
            )
            for scale in scales
            for i, factor in enumerate((1.0, 1.02, 0.99))
        ]  # fmt: skip

    projected = page_first.projection("booking", runs((0.05, 0.1, 0.2)))
    assert projected is not None
    assert (projected.wall.low or 0) < 100 < (projected.wall.high or 0)
    assert page_first.projection("booking", runs((0.05, 0.1, 0.2, 1.0))) is None
    assert page_first.projection("booking", runs((0.1, 0.2))) is None


def test_without_records_there_is_still_a_page() -> None:
    text = page.html([], {})
    assert "How runs are scored" in text


def test_speed_ups_are_those_of_the_medians(make_record: Make) -> None:
    (chart,) = page_runs.speed_up_charts(records(make_record))
    texts = [mark.text for mark in chart.marks if mark.kind != "failed"]
    assert "cudf torch_eager cuda seed-cpu: 50.00× (50.00 to 50.00) at scale 1" in texts
    assert "polars torch_eager cpu seed-cpu: 3.00× (3.00 to 3.00) at scale 0.1" in texts
    assert (
        sum(mark.kind == "failed" for mark in chart.marks) == 2
    )  # timeouts; what could not start is left out


@given(st.lists(st.floats(1e-4, 1e7), min_size=1, max_size=6))
@example([1e7, 9999999.999999998])
def test_every_axis_holds_its_values_and_has_a_tick(values: list[float]) -> None:
    for axis in (charts.time_axis(values, ""), charts.log_axis(values, ""), charts.linear_axis(values, "")):
        assert all(0 <= axis.at(v) <= 100 for v in values)
        assert all(axis.low < v < axis.high for v in values)
        assert axis.marks
        places = [axis.at(v) for v in sorted(values)]
        assert places == sorted(places)


BENCH = {
    "batch": 1, "seq": 128, "lengths": "fixed", "packing": "padded", "scenario": "", "inputs": 2, "rows": 8,
    "flops": 10**9, "bytes_moved": 10**8, "kernels": None, "floor_s": 0.01, "bandwidth": 1e10, "peak": 2e11,
    "threads": 1, "affinity": [0], "denormals": "kept", "checked_runs": 8, "bad_runs": 0,
}  # fmt: skip


def bench(make: Make, precision: str, latency: float, cosine: float, **changes: Any) -> Record:
    fields: dict[str, Any] = {"job": "bench", "task": "bert-base", "precision": precision, "bench": BENCH}
    fields |= {"config": {"batch": 1, "seq": 128, "lengths": "fixed", "scenario": ""}}
    fields |= {"samples": {"warm_run": [latency] * 8}, "scores": {"cosine": cosine}, "metric": "cosine"}
    return make(**fields | {"gate": {"status": "passed"}, "run_id": f"{precision:0<32}"} | changes)


def test_sessions_are_drawn_below_the_roof(make_record: Make) -> None:
    sessions = [bench(make_record, "fp32", 0.05, 1.0), bench(make_record, "int8", 0.02, 0.991)]
    (roof,) = page_bench.rooflines(sessions)
    assert [mark.text for mark in roof.marks] == [
        "bert-base, batch 1, 128 tokens, torch_eager int8: 50 GFLOP/s at 10 FLOPs per byte",
        "bert-base, batch 1, 128 tokens, torch_eager fp32: 20 GFLOP/s at 10 FLOPs per byte",
    ]
    corners = [tuple(map(float, point.split(","))) for point in roof.paths[0].points.split()]
    assert corners[1] == pytest.approx((roof.x.at(20.0), 100 - roof.y.at(200.0)), abs=0.02)  # the ridge
    assert max(m.y for m in roof.marks) < 100 - min(y for _, y in corners)
    (board,) = page.content(sessions, {}).benches
    chart = board.frontier()
    assert chart is not None and [(m.number, m.y > 50) for m in chart.marks] == [(1, False), (2, True)]
    assert "Accuracy against latency" in page.html(sessions, {})
    assert page_bench.rooflines([bench(make_record, "fp32", 0.05, 1.0, bench=BENCH | {"flops": None})]) == []


def test_a_model_whole_and_cut_is_one_chart(make_record: Make) -> None:
    def run(layers: int, precision: str, seconds: float, accuracy: float, **changes: Any) -> Record:
        fields = {
            "job": "predict",
            "precision": precision,
            "config": {"layers": layers, "checkpoints": [layers]},
        }
        fields |= {
            "samples": {"latency": [seconds] * 9},
            "scores": {"accuracy": accuracy},
            "metric": "accuracy",
        }
        return make_record(**fields | {"run_id": f"{layers}{precision:0<31}"} | changes)

    fit = make_record(job="fit", config={"layers": 0, "checkpoints": []}, details={"layers": 6})
    whole, fast, slow = (
        run(0, "fp32", 0.02, 0.96),
        run(0, "int8", 0.01, 0.95, details={"simulated": False}),
        run(0, "fp8", 0.03, 0.955),
    )
    cut = run(3, "fp32", 0.011, 0.90)
    assert page_bench.frontiers([fit, whole, fast, slow]) == []  # nothing was cut
    assert page_bench.frontiers([whole, cut]) == []  # the number of layers of the whole model is unknown
    (chart,) = page_bench.frontiers([fit, whole, fast, slow, cut])
    assert [mark.text for mark in chart.marks] == [
        "6 layers, int8, torch_eager: 10.00 ms, accuracy 0.9500",
        "3 layers, fp32, torch_eager: 11.00 ms, accuracy 0.9000",
        "6 layers, fp32, torch_eager: 20.00 ms, accuracy 0.9600",
        "6 layers, fp8, torch_eager: 30.00 ms, accuracy 0.9550, simulated",
    ]
    assert len(chart.paths[0].points.split()) == 2  # int8 and fp32
    other = run(3, "int8", 0.001, 0.9, config={"layers": 3, "checkpoints": [], "epochs": 9})
    assert len(page_bench.frontiers([fit, whole, fast, slow, cut, other])[0].marks) == 4
    slower = run(0, "int8", 0.05, 0.95, backend="openvino", run_id="f" * 32)
    assert len(page_bench.frontiers([fit, whole, fast, slow, cut, slower])[0].marks) == 4
    assert "Fewer bits or fewer layers" in page.html([fit, whole, cut], {})


@dataclass
class Tab:
    """A page in the browser, and what its console said."""

    tab: Any
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tab.on("console", lambda message: self.console.append(message.text))
        self.tab.on("pageerror", lambda error: self.console.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))

    def rows(self) -> list[dict[str, str]]:
        """The filter values of the leaderboard rows that can be seen."""
        return self.seen("tr[data-row]")

    def engines(self, selector: str) -> list[str]:
        """The engines of the elements that can be seen."""
        return [values["engine"] for values in self.seen(selector)]

    def seen(self, selector: str) -> list[dict[str, str]]:
        seen = "all => all.filter(e => e.checkVisibility()).map(e => filters[e.dataset.f])"
        return list(self.tab.locator(selector).evaluate_all(seen))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser extra is not installed")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium on the PATH (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def shown(chromium: Any, make_record: Make, tmp_path: Path) -> Iterator[Callable[..., Tab]]:
    """Opens the page from file://. After the test, the console must be empty, and no request may have left the file system."""
    target = built(tmp_path, records(make_record))
    tabs = []

    def go(state: str = "", file: Path = target, **options: Any) -> Tab:
        tab = Tab(chromium.new_context(**options).new_page())
        tab.tab.goto(file.as_uri() + state)
        tabs.append(tab)
        return tab

    yield go
    for tab in tabs:
        assert tab.console == []
        assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == []
        tab.tab.context.close()


browser = pytest.mark.browser
WIDE_FONT = "body, body * { letter-spacing: .05em }"  # stands for the fonts of other machines


@browser
def test_the_page_shows_the_records_figures(
    shown: Callable[..., Tab], make_record: Make, tmp_path: Path
) -> None:
    tab, by_run = shown(java_script_enabled=False), {r.run_id[:12]: r for r in records(make_record)}
    rows = tab.tab.locator("tr[data-row]")
    assert rows.count() == 10
    for i in range(rows.count()):
        row, first = rows.nth(i), by_run[rows.nth(i).get_attribute("data-run")]
        same = [
            r
            for r in by_run.values()
            if (r.engine, r.backend, r.scale) == (first.engine, first.backend, first.scale)
        ]
        assert first.outcome in row.inner_text()
        if first.outcome == "ok":
            wall = median(r.wall_s for r in same)
            assert row.locator("[data-field=wall]").inner_text() == f"{wall:.2f}/3"
            assert row.locator("[data-field=score]").inner_text() == "0.4900"
            assert row.locator("[data-field=memory-used]").inner_text() == "0.500 %"
            used = row.locator("[data-field=time-used]").inner_text().removesuffix(" %")
            assert float(used) == pytest.approx(100 * wall / 86400, rel=0.005)
            assert len(used.replace(".", "").lstrip("0")) == 3
            gain = {"pandas": "1", "polars": "3.00×", "cudf": "50.0×"}[first.engine]
            assert row.locator("[data-field=gain]").inner_text() == gain
        link = row.locator("th a").get_attribute("href")
        assert record.read(tmp_path / link).run_id == first.run_id


def choose(tab: Tab, name: str, *values: str) -> None:
    """Check the boxes of a filter."""
    tab.tab.click(f"details[data-filter={name}] summary")
    for value in values:
        tab.tab.check(f"input[name={name}][value={value}]")
    tab.tab.keyboard.press("Escape")


@browser
def test_filters_take_several_values_and_are_kept_in_the_address(shown: Callable[..., Tab]) -> None:
    tab = shown()
    assert len(tab.rows()) == 5  # one board at a time
    choose(tab, "engine", "cudf", "polars")
    assert {r["engine"] for r in tab.rows()} == {"cudf", "polars"}
    assert tab.tab.evaluate("location.hash") == "#engine=cudf&engine=polars"
    assert tab.tab.locator("#shown").inner_text() == "4 of 10 rows"
    assert set(tab.engines(".stages li[data-f]")) == {"cudf", "polars"}
    choose(tab, "outcome", "timeout")
    assert tab.rows() == []
    assert not tab.tab.locator("article[data-board]").first.is_visible()
    assert not tab.tab.locator("#speed-up").is_visible()
    assert tab.tab.get_by_text("No run passes these filters.").is_visible()
    tab.tab.click("button[type=reset]")
    tab.tab.wait_for_function("location.hash === ''")  # a form is reset after its event
    assert len(tab.rows()) == 5


@browser
def test_a_link_opens_its_view(shown: Callable[..., Tab]) -> None:
    tab = shown("#outcome=timeout&budget=quick")
    assert {(r["outcome"], r["budget"]) for r in tab.rows()} == {("timeout", "quick")}
    assert tab.tab.is_checked("input[name=outcome][value=timeout]")
    assert tab.tab.locator("tr[data-row]:visible", has_text="the buzzer went").count() == 1
    tab.tab.evaluate("location.hash = '#engine=polars&task=nonsense'")
    tab.tab.wait_for_function("document.querySelector('input[name=engine][value=polars]').checked")
    assert {r["engine"] for r in tab.rows()} == {"polars"}  # an unknown value filters nothing
    tab.tab.click("nav a[href='#more']")
    assert "engine=polars" in tab.tab.evaluate("location.hash")  # a jump keeps the view


@browser
def test_tasks_and_sizes_are_tabs_with_links(
    shown: Callable[..., Tab], make_record: Make, tmp_path: Path
) -> None:
    file = built(tmp_path / "two", [*records(make_record), make_record(run_id="e" * 32, task="recsys2021")])
    tab = shown(file=file)
    heading = tab.tab.locator("article[data-panel]:visible h4")
    assert heading.inner_text() == "Scale 1"
    tab.tab.click("[data-tabs=board] [role=tab] >> text=Scale 0.1")
    assert heading.inner_text() == "Scale 0.1"
    address = tab.tab.evaluate("location.hash")
    assert shown(address, file).tab.locator("article[data-panel]:visible h4").inner_text() == "Scale 0.1"
    tab.tab.keyboard.press("ArrowLeft")
    assert heading.inner_text() == "Scale 1"
    tab.tab.click("tr[data-row] .rank a >> nth=0")
    assert tab.tab.locator("tr.marked").count() == 1
    row = shown(tab.tab.evaluate("location.hash"), file)
    assert row.tab.locator("tr.marked").is_visible()
    tab.tab.click("[data-tabs=task] [role=tab] >> text=recsys2021")
    assert {r["task"] for r in tab.rows()} == {"recsys2021"}
    assert tab.tab.locator("[data-tabs=task] [aria-selected=true]").count() == 1


@browser
def test_tables_sort_by_their_heads(shown: Callable[..., Tab]) -> None:
    tab = shown()
    table = tab.tab.locator("article[data-panel]:visible table").first
    walls = "rows => rows.map(r => r.querySelector('[data-field=wall]').textContent.trim().split('/')[0])"

    def order() -> list[str]:
        return list(table.locator("tbody tr").evaluate_all(walls))

    table.get_by_role("button", name="wall s").click()
    assert order() == ["2.00", "33.33", "100.00", "300.00", ""]
    table.get_by_role("button", name="wall s").click()
    assert order() == ["300.00", "100.00", "33.33", "2.00", ""]
    assert table.locator("th[aria-sort=descending]").inner_text().startswith("wall s")
    table.get_by_role("button", name="engine and backend").click()
    assert table.locator("tbody th").first.inner_text().strip().startswith("cudf")
    for last_first in (False, True):
        table.get_by_role("button", name="#").click()
        ranks = [text.strip() for text in table.locator("tbody .rank").all_inner_texts()]
        ordered = sorted(filter(str.isdigit, ranks), reverse=last_first)
        assert len(ordered) == 3 and ranks == [*ordered, "·", "·"]  # without a rank last, in both directions


@browser
def test_two_rows_stand_side_by_side(shown: Callable[..., Tab]) -> None:
    tab = shown()
    boxes = tab.tab.locator("article[data-panel]:visible input.two")
    boxes.nth(0).check()
    assert not tab.tab.locator("#pair").is_visible()
    boxes.nth(2).check()
    texts = tab.tab.locator("#pair tr").evaluate_all(
        "rows => rows.map(r => [...r.cells].map(c => c.textContent))"
    )
    lines = {line[0]: line[1:] for line in texts}
    assert lines["engine"][:2] == ["cudf", "pandas"]
    assert lines["wall s"] == ["2", "100", "0.02"]
    assert lines["features s"] == ["0.8", "40", "0.02"]
    same = shown(tab.tab.evaluate("location.hash"))
    assert same.tab.locator("#pair").is_visible()
    tab.tab.click("#pair button")
    assert not tab.tab.locator("#pair").is_visible()


@browser
def test_rows_of_different_boards_have_no_ratios(shown: Callable[..., Tab], make_record: Make) -> None:
    runs = [r.run_id[:12] for r in records(make_record) if r.engine == "polars" and r.repeat == 0]
    tab = shown(f"#pair={','.join(runs)}")
    lines = tab.tab.locator("#pair tr").evaluate_all(
        "rows => rows.map(r => [...r.cells].map(c => c.textContent))"
    )
    assert [line[3] for line in lines[1:]] == [""] * (len(lines) - 1)
    assert {line[0]: line[1:3] for line in lines}["rows"] == ["100", "1,000"]
    assert "no ratios" in tab.tab.locator("#pair").inner_text()


@browser
def test_an_address_of_a_part_opens_it(shown: Callable[..., Tab]) -> None:
    assert shown("#machines").tab.locator("#machines li").first.is_visible()
    assert not shown().tab.locator("#machines li").first.is_visible()


@browser
def test_on_a_phone_a_menu_is_inside_the_screen(shown: Callable[..., Tab]) -> None:
    tab = shown(viewport={"width": 400, "height": 700})
    for summary_of in tab.tab.locator("details.pick summary").all():
        summary_of.click()
        box = summary_of.locator("xpath=following-sibling::div").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 400
        assert box["y"] >= 0 and box["y"] + box["height"] <= 700


@browser
def test_the_csv_has_the_rows_that_pass_the_filters(shown: Callable[..., Tab], make_record: Make) -> None:
    tab, by_run = shown("#engine=polars&engine=cudf"), {r.run_id: r for r in records(make_record)}
    with tab.tab.expect_download() as download:
        tab.tab.click("#csv")
    assert download.value.suggested_filename == "buzzer.csv"
    rows = list(csv.DictReader(Path(download.value.path()).read_text().splitlines()))
    assert len(rows) == 4
    for row in rows:
        r = by_run[row["run"]]
        assert (row["engine"], row["task"], row["budget"], row["outcome"]) == (
            r.engine,
            r.task,
            r.budget.name,
            r.outcome,
        )
        assert (float(row["scale"]), int(row["rows"]), int(row["rounds"])) == (r.scale, r.rows, 3)
        assert float(row["wall_s"]) == pytest.approx(r.wall_s, rel=1e-5)  # the first round is the median
        assert float(row["times_plain"]) == pytest.approx({"polars": 3, "cudf": 50}[r.engine])
        assert row["machine"] == "a processor (AVX2), 2 cores, 16 GiB, no GPU"
        assert row["record"].endswith(".json")


@browser
def test_bars_show_another_metric(shown: Callable[..., Tab]) -> None:
    tab = shown()
    tab.tab.select_option("#metric", "peak_bytes")
    bars = tab.tab.locator("article[data-panel]:visible .stages li[data-run]")
    assert bars.first.inner_text().endswith("100 MB")
    assert tab.tab.evaluate("location.hash") == "#metric=peak_bytes"
    tab.tab.select_option("#metric", "")
    assert bars.first.inner_text().endswith("2.00 s")


@browser
def test_failed_and_unsupported_runs_have_their_own_marks(shown: Callable[..., Tab]) -> None:
    tab = shown("#outcome=unsupported")
    assert "– unsupported" in tab.tab.locator(".stages li[data-f]:visible").first.inner_text()
    assert tab.tab.locator("tr.unsupported:visible").count() == 1
    tab = shown("#outcome=timeout")
    assert "✕ timeout in predict" in tab.tab.locator(".stages li[data-f]:visible").first.inner_text()
    tab.tab.click("#speed-up summary")
    assert "timeout" in tab.tab.locator(".mark.failed:visible").first.get_attribute("aria-label")


@browser
def test_a_chart_is_one_stop_of_the_tab_key(shown: Callable[..., Tab]) -> None:
    tab = shown()
    tab.tab.click("#speed-up summary")
    marks = tab.tab.locator("#speed-up .mark")
    assert marks.evaluate_all("all => all.filter(m => m.tabIndex === 0).length") == 1
    marks.first.focus()
    tab.tab.keyboard.press("ArrowRight")
    assert tab.tab.evaluate("document.activeElement.ariaLabel") == marks.nth(1).get_attribute("aria-label")
    unnamed = "all => all.filter(e => !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim())).length"
    assert tab.tab.locator("select, button, a, input").evaluate_all(unnamed) == 0
    assert tab.tab.locator("h1").count() == 1


@browser
def test_a_heading_is_not_covered_by_the_sticky_filters(shown: Callable[..., Tab]) -> None:
    tab = shown(viewport={"width": 1440, "height": 500})
    tab.tab.click("nav a[href='#engines']")
    tab.tab.wait_for_function(
        "() => { const top = document.getElementById('h-engines').getBoundingClientRect().top;"
        " return top >= document.getElementById('filters').getBoundingClientRect().bottom && top < 200; }"
    )


@browser
@pytest.mark.parametrize("width", [320, 390, 768, 1440])
def test_no_screen_needs_sideways_scrolling(shown: Callable[..., Tab], width: int) -> None:
    tab = shown(viewport={"width": width, "height": 800})
    assert tab.tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.tab.add_style_tag(content=WIDE_FONT)
    assert tab.tab.evaluate("document.documentElement.scrollWidth") <= width


@browser
def test_a_phone_shows_the_wall_time_without_scrolling(shown: Callable[..., Tab]) -> None:
    tab = shown(viewport={"width": 390, "height": 844})
    box = tab.tab.locator("article[data-panel]:visible [data-field=wall]").first.bounding_box()
    assert box is not None and box["x"] + box["width"] <= 390


@browser
def test_the_first_screen_has_the_answer_and_the_bars(shown: Callable[..., Tab]) -> None:
    tab = shown(viewport={"width": 1440, "height": 900})
    for part in ("#answer", ".races figcaption"):
        box = tab.tab.locator(part).first.bounding_box()
        assert box is not None and box["y"] + box["height"] <= 900
    assert "booking takes 100 s with pandas and PyTorch and 33.3 s" in tab.tab.locator("#answer").inner_text()


@browser
def test_print_has_no_controls_and_no_cut_tables(shown: Callable[..., Tab], tmp_path: Path) -> None:
    tab = shown(viewport={"width": 718, "height": 1000}, color_scheme="dark")  # A4 with the browser's margins
    ink = "getComputedStyle(document.body).color"
    on_screen = tab.tab.evaluate(ink)
    tab.tab.emulate_media(media="print")
    assert tab.tab.evaluate(ink) == "rgb(26, 34, 48)" != on_screen  # paper is light
    for part in ("#filters", "nav", "[data-tabs=task]", "#pair"):
        assert not tab.tab.locator(part).is_visible()
    wide = "all => all.filter(t => t.checkVisibility() && t.scrollWidth > 718).length"
    assert tab.tab.locator("table").evaluate_all(wide) == 0
    assert tab.tab.evaluate("document.documentElement.scrollWidth") <= 718
    pdf = tab.tab.pdf(format="A4")
    assert len(re.findall(rb"/Type\s*/Page[^s]", pdf)) <= 4


@browser
@pytest.mark.parametrize("width", [390, 1440])
def test_the_published_page_is_small_and_fits(shown: Callable[..., Tab], width: int) -> None:
    file = ROOT / "results/index.html"
    assert file.stat().st_size < 1e6
    tab = shown(file=file, viewport={"width": width, "height": 900})
    assert tab.tab.evaluate("document.documentElement.scrollHeight") < 8000
    tab.tab.add_style_tag(content=WIDE_FONT)
    assert tab.tab.evaluate("document.documentElement.scrollWidth") <= width
    stops = "all => all.filter(e => e.tabIndex >= 0 && e.checkVisibility()).length"
    assert tab.tab.locator("a, button, input, select, summary, [tabindex]").evaluate_all(stops) < 100
    for tabs in ("task", "board"):
        for name in tab.tab.locator(f"[data-tabs={tabs}] [role=tab]:visible").all():
            name.click()
            assert tab.tab.evaluate("document.documentElement.scrollWidth") <= width


@browser
def test_dark_and_light_are_remembered(shown: Callable[..., Tab]) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = shown(color_scheme="light"), shown(color_scheme="dark")
    before = light.tab.evaluate(ground)
    assert before != dark.tab.evaluate(ground)
    light.tab.click("#theme")
    assert light.tab.evaluate(ground) == dark.tab.evaluate(ground)
    light.tab.wait_for_timeout(500)  # another process of Chromium stores what the page remembers
    light.tab.reload()
    assert light.tab.evaluate(ground) == dark.tab.evaluate(ground)
    light.tab.click("#theme")
    assert light.tab.evaluate(ground) == before


@browser
def test_text_and_stages_have_enough_contrast(shown: Callable[..., Tab]) -> None:
    """WCAG AA: a contrast of 4.5 to 1 for every text colour on its background. Stages carry letters in the colour of the card."""
    contrast = """() => {
      const style = getComputedStyle(document.documentElement);
      const probe = document.createElement("i"); document.body.append(probe);
      const light = (name) => { probe.style.color = style.getPropertyValue(name);
        const rgb = getComputedStyle(probe).color.match(/[\\d.]+/g).map(Number);
        const [r, g, b] = rgb.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      const stages = Array.from({ length: 12 }, (_, i) => `--p${i}`);
      return ["--ink", "--soft", "--cpu", "--cuda", "--published", "--failed", "--warn", ...stages].map(
        (name) => [name, ratio(light(name), light("--card"))]);
    }"""
    for scheme in ("light", "dark"):
        contrasts = dict(shown(color_scheme=scheme).tab.evaluate(contrast))
        assert len(contrasts) == 19
        assert {name: value for name, value in contrasts.items() if value < 4.5} == {}


@browser
def test_without_scripts_everything_is_shown(shown: Callable[..., Tab]) -> None:
    tab = shown(java_script_enabled=False)
    assert tab.tab.locator("tr[data-row]:visible").count() == 10
    assert not tab.tab.locator("#filters").is_visible()
