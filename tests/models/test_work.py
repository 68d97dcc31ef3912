"""The saved work of a fit."""

from pathlib import Path

from buzzer.models.api.context import Work
from buzzer.models.work import FILE, load_work, save_work


def test_saved_work_reads_back(tmp_path: Path) -> None:
    for work in (Work(17_075.0, 136_600.5, 50e6, 10**9, None), Work(3.0, 9.5, 2.0, 1, 7)):
        save_work(tmp_path, work)
        assert load_work(tmp_path) == work


def test_a_file_without_summed_rows_is_read(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"trees": 3, "tree_nodes": 9.5, "network_flops": 2, "table_rows": 1}')
    assert load_work(tmp_path) == Work(3, 9.5, 2, 1)
