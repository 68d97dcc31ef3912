"""The report page: its content, and its behaviour in a real browser."""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buzzer.suite.records import record
from buzzer.suite.records.schema import Record
from buzzer.suite.report import charts, page, page_bench, page_runs

Make = Callable[..., Record]
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
    assert "✕ unsupported" in text
    assert "NVIDIA (1st), 1 CPU core" in text
    assert "official test rows; budget of 24 h" in text


def test_without_records_there_is_still_a_page() -> None:
    text = page.html([], {})
    assert "How runs are scored" in text


def test_speed_ups_are_those_of_the_medians(make_record: Make) -> None:
    (chart,) = page_runs.speed_up_charts(records(make_record))
    texts = [mark.text for mark in chart.marks if mark.kind != "failed"]
    assert "cudf torch_eager cuda seed-cpu: 50.00× (50.00 to 50.00) at scale 1" in texts
    assert "polars torch_eager cpu seed-cpu: 3.00× (3.00 to 3.00) at scale 0.1" in texts
    assert sum(mark.kind == "failed" for mark in chart.marks) == 4


@given(st.lists(st.floats(1e-4, 1e7), min_size=1, max_size=6))
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
    assert [(m.number, m.y > 50) for m in board.frontier().marks] == [(1, False), (2, True)]
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
        """The data attributes of the leaderboard rows that can be seen."""
        seen = "rows => rows.filter(r => r.checkVisibility()).map(r => ({...r.dataset}))"
        return list(self.tab.locator("tr[data-row]").evaluate_all(seen))


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

    def go(state: str = "", **options: Any) -> Tab:
        tab = Tab(chromium.new_context(**options).new_page())
        tab.tab.goto(target.as_uri() + state)
        tabs.append(tab)
        return tab

    yield go
    for tab in tabs:
        assert tab.console == []
        assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == []
        tab.tab.context.close()


browser = pytest.mark.browser


@browser
def test_the_page_shows_the_records_figures(
    shown: Callable[..., Tab], make_record: Make, tmp_path: Path
) -> None:
    tab, by_run = shown(), {r.run_id: r for r in records(make_record)}
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
            assert row.locator("[data-field=memory-left]").inner_text() == "99.5 %"
            assert row.locator("[data-field=left]").inner_text() == f"{100 * (1 - wall / 86400):.1f} %"
        link = row.locator("th a").get_attribute("href")
        assert record.read(tmp_path / link).run_id == first.run_id


@browser
def test_filters_hide_and_are_kept_in_the_address(shown: Callable[..., Tab]) -> None:
    tab = shown()
    tab.tab.select_option("select[name=engine]", "cudf")
    assert {r["engine"] for r in tab.rows()} == {"cudf"}
    assert tab.tab.evaluate("location.hash") == "#engine=cudf"
    assert tab.tab.locator("#shown").inner_text() == "2 of 10 rows shown"
    bars = tab.tab.locator(".bars li[data-item]").evaluate_all(
        "items => items.filter(i => i.checkVisibility()).map(i => i.dataset.engine)"
    )
    assert set(bars) == {"cudf"}
    tab.tab.select_option("select[name=outcome]", "timeout")
    assert tab.rows() == []
    assert not tab.tab.locator("article[data-board]").first.is_visible()
    tab.tab.click("button[type=reset]")
    tab.tab.wait_for_function("location.hash === ''")  # a form is reset after its event
    assert len(tab.rows()) == 10
    assert tab.tab.evaluate("location.hash") == ""


@browser
def test_a_link_opens_its_view(shown: Callable[..., Tab]) -> None:
    tab = shown("#outcome=timeout&budget=quick")
    assert {(r["outcome"], r["budget"]) for r in tab.rows()} == {("timeout", "quick")}
    assert tab.tab.input_value("select[name=outcome]") == "timeout"
    assert tab.tab.locator("tr[data-row]:visible", has_text="the buzzer went").count() == 2
    tab.tab.evaluate("location.hash = '#engine=polars&task=nonsense'")
    tab.tab.wait_for_function("document.querySelector('select[name=engine]').value === 'polars'")
    assert {r["engine"] for r in tab.rows()} == {"polars"}  # an unknown value filters nothing
    tab.tab.click("nav a[href='#rules']")
    assert tab.tab.evaluate("location.hash") == "#engine=polars&task=nonsense"  # a jump keeps the view


@browser
def test_failed_runs_are_labelled_marks(shown: Callable[..., Tab]) -> None:
    tab = shown("#outcome=unsupported")
    assert "✕ unsupported" in tab.tab.locator(".bars li[data-item]:visible").first.inner_text()
    tab = shown("#outcome=timeout")
    mark = tab.tab.locator(".mark.failed:visible").first
    assert "timeout" in mark.get_attribute("aria-label")
    assert "✕ timeout in predict" in tab.tab.locator(".stages li[data-item]:visible").first.inner_text()


@browser
def test_marks_can_be_reached_by_keyboard_and_have_labels(shown: Callable[..., Tab]) -> None:
    tab = shown()
    mark = tab.tab.locator(".mark").first
    mark.focus()
    assert mark.locator(".tip").is_visible()
    assert mark.get_attribute("aria-label") == mark.locator(".tip").inner_text()
    unnamed = "all => all.filter(e => !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim())).length"
    assert tab.tab.locator("select, button, a").evaluate_all(unnamed) == 0
    assert tab.tab.locator("h1").count() == 1


@browser
@pytest.mark.parametrize("width", [320, 390, 768])
def test_a_narrow_screen_needs_no_sideways_scrolling(shown: Callable[..., Tab], width: int) -> None:
    tab = shown(viewport={"width": width, "height": 800})
    assert tab.tab.evaluate("document.documentElement.scrollWidth") <= width


@browser
def test_dark_and_light(shown: Callable[..., Tab]) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = shown(color_scheme="light"), shown(color_scheme="dark")
    before = light.tab.evaluate(ground)
    assert before != dark.tab.evaluate(ground)
    light.tab.click("#theme")
    assert light.tab.evaluate(ground) == dark.tab.evaluate(ground)
    light.tab.click("#theme")
    assert light.tab.evaluate(ground) == before


@browser
def test_text_has_enough_contrast(shown: Callable[..., Tab]) -> None:
    """WCAG AA: a contrast of 4.5 to 1 for every text colour of the style sheet on its background."""
    contrast = """() => {
      const style = getComputedStyle(document.documentElement);
      const probe = document.createElement("i"); document.body.append(probe);
      const light = (name) => { probe.style.color = style.getPropertyValue(name);
        const rgb = getComputedStyle(probe).color.match(/[\\d.]+/g).map(Number);
        const [r, g, b] = rgb.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      return ["--ink", "--soft", "--cpu", "--cuda", "--published", "--failed", "--warn"].map(
        (name) => [name, ratio(light(name), light("--card"))]);
    }"""
    for scheme in ("light", "dark"):
        contrasts = dict(shown(color_scheme=scheme).tab.evaluate(contrast))
        assert {name: value for name, value in contrasts.items() if value < 4.5} == {}


@browser
def test_without_scripts_everything_is_shown(shown: Callable[..., Tab]) -> None:
    tab = shown(java_script_enabled=False)
    assert tab.tab.locator("tr[data-row]").count() == 10
    assert not tab.tab.locator("#filters").is_visible()
