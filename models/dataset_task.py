"""The parts that all tasks share: their input files, and their parameters as a typed object."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from buzzer.datasets.checked import Check, given_or_generated
from buzzer.datasets.contract import Progress
from buzzer.datasets.files import Files, find
from buzzer.errors import UsageError, unknown_name
from buzzer.models.api.context import GIVEN, Data, RunContext, Steps

INSTALLED = "BUZZER_DATA"  # environment variable: folder of real data sets


def installed(place: Path) -> Path | None:
    """The file `place` of $BUZZER_DATA, plain or with .gz; None if there is none, or if the variable is not set.

    Raises UsageError if $BUZZER_DATA is not a folder, and DataError if the file is a folder, a pipe, a device or a broken link.
    """
    if not (root := os.environ.get(INSTALLED)):
        return None
    if not Path(root).is_dir():
        raise UsageError(
            f"{INSTALLED}={root}: no such folder", "set it to the folder of real data sets, or unset it"
        )
    return find(Path(root, place).parent, [place.name])


class TaskParams(BaseModel):
    """The parameters of a task: one field for each key of `params` in its file under configs/tasks, where each is described."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @field_validator("*")
    @classmethod
    def each_once(cls, value: Any) -> Any:
        """The value. Raises ValueError for a list in which a name is twice."""
        names = [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise ValueError(f"{twice} is named twice")
        return value

    @classmethod
    def read(cls, task: str, values: Mapping[str, Any]) -> Self:
        """The parameters in `values`. Raises UsageError for an unknown key, a missing key, or a value of another type or out of its range."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            key = str(first["loc"][0])
            if first["type"] == "extra_forbidden":
                raise unknown_name(f"parameter of {task}", key, cls.model_fields) from error
            if first["type"] == "missing":
                names = ", ".join(cls.model_fields)
                raise UsageError(f"{task}: parameter {key} is missing", f"parameters: {names}") from error
            # Of a value that may be a number or a mapping, the error that is deepest in it.
            deepest = max((e for e in error.errors() if e["loc"][0] == key), key=lambda e: len(e["loc"]))
            shown = str(values[key])[:80]
            raise UsageError(
                f"{task}: parameter {key}={shown}: {deepest['msg']}", f"--set {key}=..."
            ) from error


P = TypeVar("P", bound=TaskParams)
P_co = TypeVar("P_co", bound=TaskParams, covariant=True)


@dataclass(frozen=True)
class TaskContext(RunContext, Generic[P_co]):
    """A run's settings with the task's parameters as a typed object."""

    params: P_co  # type: ignore[assignment]  # typed, where RunContext has a mapping


@dataclass(frozen=True)
class DataSource:
    """How a task gets its input files."""

    name: str  # prefix of the folder in the cache: the data set and the version of its generator
    # (folder, scale=, seed=, progress=) writes the files; also `train_scale`, if it is requested.
    generate: Callable[..., Any]
    check: Check
    installed: Path | None = None  # a file below $BUZZER_DATA; its folder is used unless the user names one
    stand_in: str = ""  # note on generated files

    def files(
        self,
        source: Path | None,
        cache: Path,
        scale: float,
        seed: int,
        progress: Progress,
        *,
        train_scale: float | None = None,
    ) -> Files:
        """The checked files of the folder `source`, else the installed files, else files generated in `cache` now or earlier.

        train_scale: as in `DataSet.generate`. Raises DataError for files that are missing, incomplete or invalid, and UsageError if
        $BUZZER_DATA is not a folder.
        """
        sample = "" if train_scale is None else f"-train{train_scale:g}"
        folder = cache / f"{self.name}-scale{scale:g}{sample}-seed{seed}"
        generate = partial(self.generate, scale=scale, seed=seed, progress=progress)
        if train_scale is not None:
            generate = partial(generate, train_scale=train_scale)
        given = source or self._installed()
        files = given_or_generated(given, folder, generate, self.check, cache, progress)
        if given is None and self.installed is not None and os.environ.get(INSTALLED):
            return replace(files, notes=(*files.notes, f"{INSTALLED} has no {self.installed}"))
        if source is None or files.source == "official":
            return files
        return replace(files, notes=(*files.notes, GIVEN))

    def _installed(self) -> Path | None:
        file = None if self.installed is None else installed(self.installed)
        return None if file is None else file.parent


class DatasetTask(ABC, Generic[P]):
    """A task on the files of one data set. A subclass implements `fit_steps` and `predict_steps`."""

    data_source: DataSource
    params_type: type[P]

    def prepare(self, source: Path | None, cache: Path, scale: float, seed: int, progress: Progress) -> Data:
        """Check the files in `source`, or generate files in `cache` unless they exist. Raises DataError for invalid files."""
        return self.prepared(source, cache, scale, seed, progress)

    def prepared(
        self,
        source: Path | None,
        cache: Path,
        scale: float,
        seed: int,
        progress: Progress,
        train_scale: float | None = None,
    ) -> Data:
        """As `prepare`, for a data set whose training rows may have a scale of their own (see `DataSource.files`)."""
        files = self.data_source.files(source, cache, scale, seed, progress, train_scale=train_scale)
        return self.describe(files, self.notes(files))

    @staticmethod
    def describe(files: Files, notes: Iterable[str]) -> Data:
        """The checked files in the form of the harness."""
        return Data(
            files.folder,
            files.fingerprint,
            files.source,
            dict(files.rows),
            files.scale,
            tuple(notes),
            str(files.facts.get("learned_from", "")),
            files.train_scale,
        )

    def notes(self, files: Files) -> list[str]:
        """Important remarks on the files for readers of the record."""
        stand_in = self.data_source.stand_in if files.source != "official" else ""
        return [*files.notes, *([stand_in] if stand_in else [])]

    def check(self, task: str, params: Mapping[str, Any]) -> None:
        """Raise UsageError for parameters that are not the task's, out of their range, or not valid together."""
        self.check_together(self.params_type.read(task, params))

    def check_together(self, params: P) -> None:
        """Raise UsageError for parameters that are not valid together."""

    def typed(self, context: RunContext) -> TaskContext[P]:
        """The run's settings with typed parameters. Raises UsageError for parameters that are not the task's."""
        values: dict[str, Any] = {field.name: getattr(context, field.name) for field in fields(context)}
        values["params"] = self.params_type.read(context.task, context.params)
        return TaskContext(**values)

    def fit(self, context: RunContext) -> Steps:
        """Train on the data and save the models in `context.work`. Yields the phases."""
        return self.fit_steps(self.typed(context))

    def predict(self, context: RunContext) -> Steps:
        """Write the submission for the test data to `context.out`, and score it. Yields the phases."""
        return self.predict_steps(self.typed(context))

    @abstractmethod
    def fit_steps(self, context: TaskContext[P]) -> Steps:
        """The phases of `fit`."""

    @abstractmethod
    def predict_steps(self, context: TaskContext[P]) -> Steps:
        """The phases of `predict`."""
