"""The checks of `buzzer check`: each record by itself, and records against each other.

`checks` has those of one record. Here are those that need others: two records of one run, data that differ under one fingerprint,
and passes of the gate, which are computed again from the record of the reference run.
"""

import functools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from buzzer.errors import DataError
from buzzer.suite.escape import printable
from buzzer.suite.records import gate, layout, record
from buzzer.suite.records.checks import check_one
from buzzer.suite.records.schema import Record

Problems = dict[Path, list[str]]
WORK_SLACK = 0.1  # a fit that is made again may have slightly different trees


@dataclass
class Checked:
    """The readable records, and the problems of each file. A file without problems has an empty list."""

    records: dict[Path, Record] = field(default_factory=dict)
    problems: Problems = field(default_factory=dict)
    unseen: list[Path] = field(
        default_factory=list
    )  # records that passed the gate, but whose reference run was not found

    @property
    def good(self) -> dict[Path, Record]:
        """The records without problems. Those that had no reference when they ended are compared with one that is among them now."""
        return gate.late({path: r for path, r in self.records.items() if not self.problems[path]})

    def left_out(self) -> list[str]:
        """A line for each file with problems, for callers that go on with `good`."""
        return [self._line(path) for path, problems in self.problems.items() if problems]

    def unreadable(self) -> list[str]:
        """A line for each file that is no record, for callers that go on with `records`."""
        return [self._line(path) for path in self.problems if path not in self.records]

    def _line(self, path: Path) -> str:
        return printable(f"left out: {path}: {'; '.join(self.problems[path])}")


def check(paths: Sequence[Path], fingerprints: Mapping[str, str] | None = None) -> Problems:
    """The problems of each file; a valid record has an empty list. fingerprints: task -> fingerprint of its official files."""
    return examine(paths, fingerprints, whole=len(paths) > 1).problems


def good_in(folder: Path) -> list[Record]:
    """The valid records of a folder; none if it does not exist."""
    return list(examine(record.paths([folder])).good.values()) if folder.is_dir() else []


def examine(
    paths: Sequence[Path], fingerprints: Mapping[str, str] | None = None, whole: bool = True
) -> Checked:
    """Read and check records.

    `fingerprints`: data fingerprints of the official files, by task. `whole`: report a pass whose reference run is neither among the
    records nor in the same folder of records as a problem; otherwise it goes to `unseen`.
    """
    checked = Checked()
    for path in paths:
        try:
            checked.records[path] = record.read(path)
            checked.problems[path] = check_one(checked.records[path])
        except DataError as error:
            checked.problems[path] = [error.message.removeprefix(printable(f"{path}: "))]
    problems = [*check_all(checked.records, fingerprints or {}), *passes(checked, whole)]
    for path, problem in problems:
        checked.problems[path].append(problem)
    return checked


def check_all(records: Mapping[Path, Record], fingerprints: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    """Contradictions between records, and between records and the fingerprints of the official files."""
    by_run: dict[str, Path] = {}
    by_data: dict[str, list[Path]] = {}
    for path, r in records.items():
        if r.run_id in by_run:
            yield path, f"run_id is that of {printable(str(by_run[r.run_id]))}"
        by_run.setdefault(r.run_id, path)
        by_data.setdefault(r.data_fingerprint, []).append(path)
        expected = fingerprints.get(r.task)
        if expected is not None and r.data_source == "official" and r.data_fingerprint != expected:
            yield path, f"data_fingerprint differs from that of the files of --data, {expected[:12]}..."
    for same in by_data.values():
        for name in ("data_rows", "data_source", "train_scale"):
            yield from _deviating({path: records[path] for path in same}, name)


def _deviating(same: Mapping[Path, Record], name: str) -> Iterator[tuple[Path, str]]:
    """Records of one data_fingerprint that differ in a field from most others, or from the oldest."""
    oldest_first = sorted(same.items(), key=lambda item: item[1].created)
    values = {path: json.dumps(getattr(r, name), sort_keys=True) for path, r in oldest_first}
    [(most, _)] = Counter(values.values()).most_common(1)  # the first of equally common ones
    model = next(path for path, value in values.items() if value == most)
    for path, value in values.items():
        if value != most:
            yield path, f"{name} differ from {printable(str(model))}'s, the data_fingerprint does not"


def passes(checked: Checked, whole: bool) -> Iterable[tuple[Path, str]]:
    """Problems of the gate's comparisons, which are computed again from the reference's record."""
    by_run = {r.run_id: path for path, r in checked.records.items()}
    find = functools.cache(_find)
    for path, r in checked.records.items():
        wanted = r.gate.reference_run
        if wanted is None:
            continue
        inside = by_run.get(wanted)
        reference = checked.records[inside] if inside else find(layout.root(path, r), r.task, wanted)
        if reference is not None:
            valid = not (checked.problems[inside] if inside else check_one(reference))
            if problem := _comparison(r, reference, valid):
                yield path, problem
        elif whole and r.gate.status == "passed":
            hint = "put its record into the same folder"
            yield path, f"its reference_run {wanted[:8]} is not among these records: {hint}"
        else:
            checked.unseen.append(path)


def _find(folder: Path, task: str, run_id: str) -> Record | None:
    """The record of a run in a folder of records."""
    for path in layout.same_run(folder, task, run_id):
        with suppress(DataError):
            r = record.read(path)
            if r.run_id == run_id:
                return r
    return None


def _other_work(r: Record, reference: Record) -> str:
    """The first field in which the work of two runs with one fit differs; "" if none does, or if the work is not recorded of both."""
    if r.work is None or reference.work is None:
        return ""
    for (name, value), (_, expected) in zip(r.work, reference.work, strict=True):
        if not math.isclose(value or 0.0, expected or 0.0, rel_tol=WORK_SLACK):
            return name
    return ""


def _comparison(r: Record, reference: Record, valid: bool) -> str:
    """Why the gate's verdict does not follow from the two records, or an empty string. valid: whether the reference has no problems."""
    name = f"its reference_run {reference.run_id[:8]}"
    if not gate.same_question(r, reference):
        return f"{name} had other data, parameters, seed or fit"
    if reference.gate.status != "reference" or reference.outcome != "ok":
        return f"{name} is not a reference run: outcome {reference.outcome}, gate {reference.gate.status}"
    if not valid:
        return f"{name} is not valid"
    if r.job == "predict" and r.outcome == "ok" and r.rows != reference.rows:
        return f"it predicted {r.rows} rows, {name} {reference.rows}"
    if other := _other_work(r, reference):
        return f"work.{other} differs from that of {name}"
    differences = {k: r.scores[k] - v for k, v in reference.scores.items() if k in r.scores}
    for key in sorted(differences.keys() | r.gate.differences.keys()):
        recorded, computed = r.gate.differences.get(key, float("nan")), differences.get(key, float("nan"))
        if not abs(computed - recorded) <= 1e-9:
            return f"gate says {key} differs by {recorded:g}, the records say {computed:g}"
    missing = sorted(reference.scores.keys() - r.scores.keys())
    if missing and r.gate.status == "passed" and r.precision == reference.precision:
        return f"gate passed without the reference's score {', '.join(missing)}"
    return ""
