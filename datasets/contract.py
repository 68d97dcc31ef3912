"""The interface of a data set, used by `buzzer data` and the tasks.

A data set is a module with these names. Those of this project are the packages below `datasets/`, each with a `card.md`
that gives the schema, the terms, the source and the generator in words. Another distribution can register a data set under
the entry point group `buzzer.datasets`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # it imports Polars
    from buzzer.datasets.files import Files

# Called with the fraction of the work that is done, 0 to 1, and the name of the current step.
Progress = Callable[[float, str], None]


def silent(share: float, what: str) -> None:
    """A progress callback that shows nothing."""


class DataSet(Protocol):
    """The names that the module of a data set defines."""

    NAME: str  # as in `buzzer data info NAME`; that of its folder or entry point

    def generate(self, out: Path, scale: float, seed: int, progress: Progress) -> None:
        """Write synthetic files in the official format into the new folder `out`.

        scale: share of the official size. The same scale and seed give the same files, byte for byte. Four optional
        keywords are passed if the function has them: `train_scale` (float | None, the scale of the training part, a sample of
        that of `scale`), `test_scale` (float | None, the scale of the test part), `compress_above` (int | None, parts of more rows are
        compressed) and `jobs` (int, the number of processes). Raises DataError if the files cannot be written.
        """

    def check(self, folder: Path, progress: Progress) -> "Files":
        """Check every line of the official or generated files in a folder, in bounded memory.

        Raises DataError that names the file, line and column of the first fault.
        """
        raise NotImplementedError

    def score(self, submission: Path, truth: Path) -> dict[str, float]:
        """The official scores of a submission, by name; NaN where a score is not defined.

        Raises DataError unless the submission answers each query of the truth exactly once.
        """
        raise NotImplementedError

    def convert(self, folder: Path, out: Path, progress: Progress) -> None:
        """Check the files in a folder and write them as Parquet into the new folder `out`. Raises DataError as `check`."""
