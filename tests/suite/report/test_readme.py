from collections.abc import Callable
from pathlib import Path

import pytest

from buzzer.errors import UsageError
from buzzer.suite import registry
from buzzer.suite.records import record
from buzzer.suite.records.schema import Record
from buzzer.suite.report import leaderboard, page, readme

Make = Callable[..., Record]
ROOT = Path(__file__).parents[3]
EMPTY = f"# title\n{readme.BEGIN}\nold\n{readme.END}\nafter\n"


def variants(make: Make) -> list[Record]:
    two = {"name": "2c2g30s", "cores": 2, "memory_bytes": 2 * 10**9, "time_s": 30.0}
    passed = {"gate": {"status": "passed"}}
    return [
        make(),
        make(backend="onnxruntime", **passed).model_copy(update={"wall_s": 1.0}),
        make(engine="polars", budget=two, **passed).model_copy(update={"wall_s": 0.5}),
        make(engine="pandas", outcome="timeout", gate={"status": "unscored"}),
        make(scale=0.1, data_fingerprint="smaller"),
    ]


def test_the_table_has_the_largest_board_and_speed_ups_over_the_reference_on_one_core(
    make_record: Make,
) -> None:
    text = readme.fill(EMPTY, variants(make_record))
    assert text.startswith("# title\n")
    assert text.endswith(f"{readme.END}\nafter\n")
    rows = [line for line in text.splitlines() if line.startswith("| `fake`")]
    assert [row.split(" | ")[2:4] + row.split(" | ")[5:] for row in rows] == [
        ["torch_eager, fp32", "1c2g30s", "2.0", "100", "1.0× |"],
        ["onnxruntime, fp32", "1c2g30s", "1.0", "100", "2.0× |"],
        ["polars, torch_eager, fp32", "2c2g30s", "0.5", "100", "4.0× |"],
    ]


def test_the_peak_is_the_same_as_on_the_leaderboard(make_record: Make) -> None:
    runs = [make_record(repeat=i, peak_memory_bytes=p) for i, p in enumerate((10**8, 3 * 10**8, 2 * 10**8))]
    (line,) = [line for line in readme.result_table(runs).splitlines() if line.startswith("| `fake`")]
    assert line.split(" | ")[6] == leaderboard.board(runs).lines[0][8] == "300"


def test_several_machines_have_letters(make_record: Make) -> None:
    first = make_record()
    other = make_record(machine=first.machine.model_copy(update={"simd": "AVX-512"}))
    assert "machine |" not in readme.result_table([first])
    lines = readme.result_table([first, other]).splitlines()
    assert lines[0].endswith("| machine |")
    assert [line.split(" | ")[-1] for line in lines if line.startswith("| `fake`")] == ["A |", "B |"]
    assert "A: a processor (AVX-512), 2 cores, 16 GiB, no GPU; B: a processor (AVX2), 2 cores" in lines[5]


def test_a_task_is_shown_with_its_own_parameters(make_record: Make) -> None:
    registered, other = (registry.task("booking").params | extra for extra in ({}, {"dim": 7}))
    records = [
        make_record(task="booking", config=config, config_hash=registry.params_hash(config), created=created)
        for config, created in ((registered, "2026-01-01T00:00:00Z"), (other, "2026-01-02T00:00:00Z"))
    ]
    assert [group[0].config for group in readme.main_boards(records)] == [registered]


def test_filling_twice_changes_nothing(make_record: Make) -> None:
    once = readme.fill(EMPTY, variants(make_record))
    assert readme.fill(once, variants(make_record)) == once


def test_a_file_without_markers_is_refused(make_record: Make) -> None:
    with pytest.raises(UsageError, match="no markers"):
        readme.fill("# title\n", [make_record()])


@pytest.mark.parametrize("name", ["README.md", "results/leaderboard.md", "results/index.html"])
def test_published_files_match_the_records(name: str) -> None:
    files = {record.read(path).run_id: path for path in record.paths([ROOT / "results"])}
    good = [record.read(path) for path in files.values()]
    text = (ROOT / name).read_text(encoding="utf-8")
    render = {
        "README.md": lambda: readme.fill(text, good),
        "results/leaderboard.md": lambda: leaderboard.markdown(good),
        "results/index.html": lambda: page.html(good, page.links_of(files, ROOT / name)),
    }
    assert render[name]() == text, "run `make report`"


def test_other_parameters_are_code_in_the_table(make_record: Make) -> None:
    changed = registry.task("booking").params | {"epochs": 1}
    run = make_record(task="booking", config=changed, config_hash=registry.params_hash(changed))
    assert "scale 1, `epochs=1` |" in readme.result_table([run])
