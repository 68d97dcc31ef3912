"""Mutated official files: what the check accepts, every engine reads as the rows and values that an independent strict reader
finds; what that refuses, the check refuses, with a place and a short message.

200 mutations; BUZZER_MUTATIONS=2000 makes more, and `-s` shows how many of which kind were accepted and refused.
"""

import gzip
import json
import math
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import strict_reader as strict
from mutations import mutated

from buzzer.datasets import booking, online_shoppers, recsys2021, sigir_ecom
from buzzer.datasets.online_shoppers.reader import separator_of
from buzzer.datasets.sigir_ecom import json_file
from buzzer.datasets.strict_json import objects
from buzzer.engine import frames
from buzzer.errors import DataError

MUTATIONS = int(os.environ.get("BUZZER_MUTATIONS", "200"))
ENGINES = ("pandas", "polars")
SHOPPERS = "online_shoppers_intention.csv"


class Format(NamedTuple):
    dataset: ModuleType
    oracle: Callable[[Path], strict.Folder]
    kinds: Mapping[str, Mapping[str, str]]  # of the files that engines read as CSV
    separator: str = ","
    headless: bool = False


FORMATS = {
    "booking": Format(booking, strict.read_booking, strict.BOOKING),
    "recsys2021": Format(recsys2021, strict.read_recsys, strict.RECSYS, "\x01", True),
    "sigir_ecom": Format(sigir_ecom, strict.read_sigir, strict.COVEO),
    "online_shoppers": Format(online_shoppers, strict.read_shoppers, strict.SHOPPERS_FILE, ";"),
}


def silent(share: float, what: str) -> None:
    """No progress shown."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small generated files of every format."""
    root = tmp_path_factory.mktemp("contract")
    booking.generate(root / "booking", 0.00003, 5, silent)
    sigir_ecom.generate(root / "sigir_ecom", 0.00001, 5, silent)
    recsys2021.generate(root / "recsys2021", 0.000001, 5, silent)
    online_shoppers.generate(root / "online_shoppers", 0.01, 5, silent)
    for name in FORMATS["recsys2021"].kinds:
        cut(root / "recsys2021" / name, 12)
    cut(root / "online_shoppers" / SHOPPERS, 20)
    for name in ("browsing_train.csv", "search_train.csv", "sku_to_content.csv"):
        cut(root / "sigir_ecom" / name, 30)
    for path in (root / "sigir_ecom").glob("*test*.json"):
        path.write_text(json.dumps(json.loads(path.read_text())[:4], indent=1))
    return {name: root / name for name in FORMATS}


def cut(path: Path, lines: int) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]))


# ---- what is held -------------------------------------------------------------------------------------------------


def as_read(
    engine: str, path: Path, kinds: Mapping[str, str], separator: str, headless: bool
) -> list[strict.Row]:
    """The rows of a CSV file as an engine reads them."""
    e = frames.load(engine)
    types = {name: kind if kind in ("int64", "float64", "date") else "str" for name, kind in kinds.items()}
    types |= {
        name: "float64" for name in kinds if name in strict.ENGAGED
    }  # as the task does: they may be empty
    t = e.read_csv(path, types, names=list(kinds) if headless else None, separator=separator)
    return rows_of(e, e.select(t, ["row", *kinds]))


def rows_of(e: Any, t: Any) -> list[strict.Row]:
    """A frame's rows in order, missing as None, days as a date's number."""
    found = t.collect().to_dicts() if hasattr(t, "collect") else t.to_dict("records")
    rows = [{name: plain(value) for name, value in row.items()} for row in found]
    return sorted(rows, key=lambda row: row["row"])


def plain(value: Any) -> Any:
    if isinstance(value, date):
        return (value - date(1970, 1, 1)).days
    return None if isinstance(value, float) and math.isnan(value) else value


def alike(one: Any, other: Any) -> bool:
    """Equal; floats but for the last places, as engines round differently."""
    if isinstance(one, float) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=1e-15, abs_tol=0.0) or one == other
    return type(one) is type(other) and one == other


def hold(form: Format, folder: Path, name: str, told: str) -> str:
    """Hold check and engines against the strict reader, for the file `name` that was changed; accepted or refused."""
    want = form.oracle(folder)
    try:
        files = form.dataset.check(folder, silent)
    except DataError as error:
        assert want.faults, f"{told}: refused without need: {error.message}"
        message = error.message.removeprefix(f"{folder}")
        assert len(message) < 250 and message.isprintable(), f"{told}: {message!r}"
        lines = {line for at, line in want.faults if at == name}
        found = re.search(r", line (\d+)", message)
        if lines and 0 not in lines and not name.endswith(".json"):
            assert name in message and found, f"{told}: no place in {message}"
            assert int(found[1]) in lines, f"{told}: {message}, and not one of {sorted(lines)}"
        return "refused"
    assert not want.faults, f"{told}: accepted in spite of {sorted(want.faults)[:3]}"
    assert sum(files.rows.values()) == sum(map(len, want.tables.values())), told
    path = folder / name if (folder / name).exists() else folder / f"{name}.gz"
    if name.endswith(".json"):
        hold_events(path, want.tables[name], told)
        return "accepted"
    separator = separator_of(path) if name == SHOPPERS else form.separator
    rows = want.tables[name]
    for engine in ENGINES if rows else ():
        got = as_read(engine, path, form.kinds[name], separator, form.headless)
        assert len(got) == len(rows), f"{told}: {engine} reads {len(got)} rows of {len(rows)}"
        for ours, right in zip(got, rows, strict=True):
            for column in form.kinds[name]:
                assert alike(ours[column], plain(right[column])), (
                    f"{told}: {engine} reads {ours[column]!r} for {right[column]!r} in {column}, line {right['line']}"
                )
    return "accepted"


def hold_events(path: Path, right: list[Any], told: str) -> None:
    assert list(objects(path, known=True)) == right, told
    events = [event for query in right for event in query["query"]]
    table = json_file.events(right)
    for engine in ENGINES:
        e = frames.load(engine)
        got = rows_of(e, e.from_arrow(table))
        for ours, event in zip(got, events, strict=True):
            for column in ("event_type", "product_action", "product_sku_hash", "hashed_url"):
                assert ours[column] == event.get(column), told
            assert ours["server_timestamp_epoch_ms"] == event["server_timestamp_epoch_ms"], told
            assert ours["searched"] == event["is_search"], told


@pytest.mark.parametrize("name", FORMATS)
def test_the_unchanged_files_are_accepted(made: dict[str, Path], name: str) -> None:
    for file in files_of(made[name]):
        assert hold(FORMATS[name], made[name], file, file) == "accepted"


def files_of(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("generator.json", "submission.csv")
    )


@pytest.mark.parametrize("name", FORMATS)
def test_check_and_engines_read_as_the_strict_reader(
    made: dict[str, Path], tmp_path: Path, name: str
) -> None:
    folder, form = tmp_path / "copy", FORMATS[name]
    shutil.copytree(made[name], folder)
    outcomes = Counter[tuple[str, str]]()
    for seed in range(MUTATIONS // len(FORMATS)):
        rng = random.Random(f"{name} {seed}")
        file = rng.choice(files_of(folder))
        before = (folder / file).read_bytes()
        kind, data = mutated(before, file, form.separator, rng)
        (folder / file).write_bytes(data)
        if rng.random() < 0.1:
            (folder / f"{file}.gz").write_bytes(gzip.compress((folder / file).read_bytes()))
            (folder / file).unlink()
        outcomes[kind, hold(form, folder, file, f"{name} {seed}, {kind} {file}")] += 1
        (folder / file).write_bytes(before)
        (folder / f"{file}.gz").unlink(missing_ok=True)
    print(f"\n{name}:", *(f"{kind} {how} {n}" for (kind, how), n in sorted(outcomes.items())), sep="\n  ")
    assert {how for _, how in outcomes} == {"accepted", "refused"}
