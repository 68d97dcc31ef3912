"""Compares the outputs of bench runs with the reference outputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from buzzer.engine.infer import Array
from buzzer.models.api.bench import BenchModel

TINY = 1e-30
WORST = -1.0  # cosine of an output that is not finite or was not written


@dataclass
class Check:
    """Compares every output with the reference output, and keeps the worst figures.

    It fills each array that it has compared with NaN. This reveals a backend that returns the same buffer again without writing to it.
    An output that equals an already compared output bit for bit is not compared again.
    """

    model: BenchModel
    expected: list[dict[str, Array]]  # reference outputs of each input: the batches, then the unseen inputs
    cosine: float = 1.0  # the smallest of any row
    error: float = 0.0  # the largest relative error
    hits: int = 0  # rows whose largest value has the same index as in the reference
    rows: int = 0  # rows compared
    bad: int = 0  # runs with an output that was not finite or not written
    runs: int = 0
    # (input, name) -> output, hits, rows
    _compared: dict[tuple[int, str], tuple[Array, int, int]] = field(default_factory=dict)

    def add(self, index: int, outputs: Mapping[str, Array]) -> None:
        """Compare the outputs of a run on one input, then overwrite them."""
        self.runs += 1
        good = [self.compare(index, name, outputs[name]) for name in self.model.outputs]
        self.bad += not all(good)
        for array in outputs.values():
            if array.dtype.kind == "f" and array.flags.writeable:
                array.fill(np.nan)

    def compare(self, index: int, name: str, output: Array) -> bool:
        """Compare one output. Returns whether it is finite and has the right shape."""
        before = self._compared.get((index, name))
        if before is not None and np.array_equal(before[0], output):
            self.hits, self.rows = self.hits + before[1], self.rows + before[2]
            return True
        expected = self.expected[index][name]
        if expected.dtype.kind == "U" and output.shape == expected.shape:
            return self._compare_texts(output, expected)
        if output.shape != expected.shape or not (is_finite(output) and is_finite(expected)):
            self.cosine = WORST
            return False
        valid = self.model.valid[self.source(index)] if self.model.valid else None
        got, want = (as_rows(x if valid is None else x[valid]) for x in (output, expected))
        self.cosine = min(self.cosine, least_cosine(got, want))
        self.error = max(self.error, relative_error(got, want))
        hits = int((got.argmax(1) == want.argmax(1)).sum())
        self.hits, self.rows = self.hits + hits, self.rows + len(got)
        self._compared[index, name] = output.copy(), hits, len(got)
        return True

    def _compare_texts(self, output: Array, expected: Array) -> bool:
        """Compare texts, such as names of classes: one that differs is an error of the size of the largest value."""
        same = output == expected
        self.error = max(self.error, float(not same.all()))
        self.hits, self.rows = self.hits + int(same.sum()), self.rows + same.size
        return True

    def source(self, index: int) -> int:
        """The index of the batch that the input is, or from which the unseen input was made."""
        return [*range(len(self.model.batches)), *(number for number, _ in self.model.unseen)][index]

    def scores(self) -> dict[str, float]:
        """The scores of the record."""
        agreement = self.hits / self.rows if self.rows else 0.0
        return {"cosine": self.cosine, "max_relative_error": self.error, "argmax_agreement": agreement}


def as_rows(x: Array) -> Array:
    """An output as rows of float64. A scalar has no cosine: outputs of one value a row become one row."""
    wide = x.ndim > 1 and x.shape[-1] > 1
    return x.reshape(-1, x.shape[-1] if wide else x.size).astype("float64")


def is_finite(x: Array) -> bool:
    """Whether all values are finite numbers. Converts first, because NumPy takes bfloat16 for bytes."""
    try:
        return bool(np.isfinite(x.astype("float64")).all())
    except (TypeError, ValueError):
        return False


def relative_error(got: Array, want: Array) -> float:
    """The largest error, as a share of the largest expected value."""
    return float(np.abs(got - want).max() / max(np.abs(want).max(), TINY))


def least_cosine(got: Array, want: Array) -> float:
    """The smallest cosine of any row; 1 for two rows of zeros."""
    largest = [np.maximum(np.abs(x).max(axis=1, keepdims=True), TINY) for x in (got, want)]
    got, want = got / largest[0], want / largest[1]  # squares of float64 could overflow
    norms = np.linalg.norm(got, axis=1) * np.linalg.norm(want, axis=1)
    cosines = (got * want).sum(axis=1) / np.maximum(norms, TINY)
    return float(np.where((got == want).all(axis=1), 1.0, cosines).min())
