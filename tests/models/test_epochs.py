"""The training loop: early stopping, the best epoch's weights, and resuming from a checkpoint."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from buzzer.models.epochs import Epochs, State, one_cycle


class Line(Epochs):
    """Fits one weight to 1 and reports scores from a list."""

    metric = "score"

    def __init__(
        self, scores: list[float | None], *, lower: bool = False, checkpoint: Path | None = None
    ) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(1, 1, bias=False), "cpu", checkpoint)
        self.scores, self.lower_is_better, self.updates = scores, lower, 0
        optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1)
        self.optimise([optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)])

    def batches(self, epoch: int) -> Iterator[Tensor]:
        yield from torch.ones(3, 1)

    def loss(self, batch: Tensor) -> Tensor:
        return (self.network(batch) - 1).square().sum()

    def after_step(self) -> None:
        self.updates += 1

    def validate(self) -> float | None:
        return self.scores[self.state.epoch]


def weights_after(trainer: Line, epochs: int, patience: int | None = None) -> tuple[list[float], State]:
    """The weight after each epoch, and the last state."""
    weights = [trainer.network.weight.item() for _ in trainer.run(epochs, patience)]
    return weights, trainer.state


@pytest.mark.parametrize(
    ("scores", "lower", "best"),
    [
        ([0.1, 0.3, 0.2], False, 2),
        ([0.3, 0.1, 0.2], True, 2),
        ([math.nan, 0.1, 0.0], False, 2),
        ([0.2] * 3, False, 1),
    ],
)
def test_the_best_epochs_weights_are_kept(scores: list[float], lower: bool, best: int) -> None:
    trainer = Line(scores, lower=lower)
    weights, state = weights_after(trainer, 3)
    assert (state.epoch, state.best_epoch, trainer.updates) == (3, best, 9)
    assert trainer.network.weight.item() == weights[best - 1]
    assert [entry["score"] for entry in state.history[1:]] == scores[1:]
    assert not trainer.network.training


def test_without_a_score_the_last_epochs_weights_are_kept() -> None:
    trainer = Line([None] * 3)
    weights, state = weights_after(trainer, 3)
    assert trainer.network.weight.item() == weights[-1] > weights[0]
    assert [entry.keys() for entry in state.history] == [{"epoch", "loss"}] * 3


def test_training_stops_after_epochs_without_a_better_score() -> None:
    assert weights_after(Line([0.2, 0.1, 0.1, 0.1, 0.9]), 5, patience=2)[1].epoch == 4


def test_a_stopped_training_resumes_with_the_same_result(tmp_path: Path) -> None:
    scores: list[float | None] = [0.1, 0.4, 0.3]
    whole = Line(scores, checkpoint=tmp_path / "whole")
    weights, state = weights_after(whole, 3)
    steps = Line(scores, checkpoint=tmp_path / "cut").run(3)
    next(steps), next(steps)
    resumed = Line(scores, checkpoint=tmp_path / "cut")
    assert resumed.state.epoch == 2
    assert weights_after(resumed, 3)[0] == weights[2:]
    assert resumed.state.history == state.history
    assert torch.equal(resumed.network.weight, whole.network.weight)


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_checkpoint_is_removed_and_training_begins_anew(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, _ = weights_after(Line([0.1, 0.2]), 2)
    next(Line([0.1, 0.2], checkpoint=tmp_path / "one").run(2))
    (file,) = (tmp_path / "one").glob("*.pt")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF  # torch.load does not notice every changed byte
    file.write_bytes(content[:100] if damage == "cut" else content)
    again = Line([0.1, 0.2], checkpoint=tmp_path / "one")
    assert again.state.epoch == 0 and not (tmp_path / "one").exists()
    assert f"{tmp_path / 'one'}: " in capsys.readouterr().err
    assert weights_after(again, 2)[0] == whole


@pytest.mark.parametrize("steps", [1, 8, 9, 10, 50])
def test_a_one_cycle_schedule_runs_for_any_number_of_steps(steps: int) -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule = one_cycle(optimizer, 0.5, steps, pct_start=0.1)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert all(0 < rate <= 0.5 for rate in rates)
