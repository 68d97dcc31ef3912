"""Reports of how much of a fit is done."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from buzzer.models import boosting
from buzzer.models.api import progress
from buzzer.models.epochs import Epochs


@pytest.fixture
def shares() -> Iterator[list[float]]:
    """The shares that are reported."""
    heard = list[float]()
    progress.listen(heard.append)
    yield heard
    progress.listen(None)


def test_nested_loops_report_shares_of_the_whole(shares: list[float]) -> None:
    for _ in progress.over("ab"):
        for _ in progress.over(range(2)):
            progress.report(0.5)
    assert shares == [0.125, 0.25, 0.375, 0.5, 0.5, 0.625, 0.75, 0.875, 1.0, 1.0]


def test_parts_have_the_size_that_is_given(shares: list[float]) -> None:
    with progress.part(0.5, 1.0):
        for _ in progress.over("abc", [3, 0, 1]):
            pass
    assert shares == [0.875, 0.875, 1.0, 1.0]


def test_a_part_with_an_error_is_not_done(shares: list[float]) -> None:
    with pytest.raises(ZeroDivisionError), progress.part(0.0, 0.5):
        raise ZeroDivisionError
    progress.report(0.25)
    assert shares == [0.25]


@pytest.mark.parametrize(("total", "expected"), [(10, [0.3, 1.0, 1.0]), (0, [])])
def test_pieces_report_the_bytes_that_are_done(
    shares: list[float], tmp_path: Path, total: int, expected: list[float]
) -> None:
    """The last piece is longer than the rest of the total, as a repeated header makes it. The reader deletes each piece."""
    for number, size in enumerate((3, 7, 1)):
        (tmp_path / str(number)).write_bytes(b"x" * size)
    for path in progress.over_pieces(sorted(tmp_path.iterdir()), total):
        path.unlink()
    assert shares == expected


def test_a_loop_that_is_left_early_leaves_the_outer_part(shares: list[float]) -> None:
    for _ in progress.over("ab"):
        for _ in progress.over("cd"):
            break
    progress.report(0.5)
    assert shares == [0.5, 1.0, 0.5]


def test_without_a_listener_nothing_is_reported(shares: list[float]) -> None:
    progress.listen(None)
    assert list(progress.over("ab")) == ["a", "b"]
    assert not shares


class Two(Epochs):
    """Epochs of two batches."""

    steps = 2

    def __init__(self, checkpoint: Path | None = None) -> None:
        super().__init__(nn.Linear(1, 1), "cpu", checkpoint)
        self.optimise([torch.optim.SGD(self.network.parameters(), lr=0.1)], [])
        self.schedules = [torch.optim.lr_scheduler.ConstantLR(self.optimizers[0], 1.0)]

    def batches(self, epoch: int) -> Iterator[Tensor]:
        yield from torch.ones(2, 1)

    def loss(self, batch: Tensor) -> Tensor:
        return self.network(batch).square().sum()


def test_a_network_reports_its_batches(shares: list[float]) -> None:
    assert len(list(Two().run(2))) == 2
    assert shares == [0.25, 0.5, 0.5, 0.75, 1.0, 1.0]


def test_boosted_trees_report_their_rounds_and_are_the_same(shares: list[float]) -> None:
    xgboost = pytest.importorskip("xgboost")
    x = np.random.default_rng(0).random((200, 3), dtype=np.float32)
    data, settings = xgboost.DMatrix(x, x[:, 0] > 0.5), {"objective": "binary:logistic", "nthread": 1}
    booster: Any = boosting.train(settings, data, 4)
    assert shares == [0.25, 0.5, 0.75, 1.0]
    assert booster.save_raw() == xgboost.train(settings, data, 4).save_raw()
