"""Mutated official files. If the check accepts a file, all engines read the rows and values that an independent strict reader
reads. If the strict reader refuses it, the check refuses it too, with the place of the fault and a short message.

200 mutations, or BUZZER_MUTATIONS=2000. `-s` shows how many of each kind were accepted and refused.
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
from buzzer.datasets.contract import silent
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


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small generated files of all formats."""
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


# ---- comparison -------------------------------------------------------------------------------------------------


def as_read(
    engine: str, path: Path, kinds: Mapping[str, str], separator: str, headless: bool
) -> list[strict.Row]:
    """The rows of a CSV file as an engine reads them."""
    e = frames.load(engine)
    types = {name: kind if kind in ("int64", "float64", "date") else "str" for name, kind in kinds.items()}
    types |= {
        name: "float64" for name in kinds if name in strict.ENGAGED
    }  # as the tasks do, as the fields may be empty
    t = e.read_csv(path, types, names=list(kinds) if headless else None, separator=separator)
    return rows_of(e, e.select(t, ["row", *kinds]))


def rows_of(e: Any, t: Any) -> list[strict.Row]:
    """The rows of a frame in order, with missing values as None and dates as days since 1970."""
    records = t.collect().to_dicts() if hasattr(t, "collect") else t.to_dict("records")
    rows = [{name: plain(value) for name, value in row.items()} for row in records]
    return sorted(rows, key=lambda row: row["row"])


def plain(value: Any) -> Any:
    if isinstance(value, date):
        return (value - date(1970, 1, 1)).days
    return None if isinstance(value, float) and math.isnan(value) else value


def equal(value: Any, other: Any) -> bool:
    """Whether two values are equal. Floats may differ in the last place, as engines parse them differently."""
    if isinstance(value, float) and isinstance(other, float | int):
        return math.isclose(value, other, rel_tol=1e-15, abs_tol=0.0) or value == other
    return type(value) is type(other) and value == other


def compare(form: Format, folder: Path, name: str, case: str) -> str:
    """Compare check and engines with the strict reader, after a change of the file `name`: "accepted" or "refused"."""
    expected = form.oracle(folder)
    try:
        files = form.dataset.check(folder, silent)
    except DataError as error:
        assert expected.faults, f"{case}: refused without reason: {error.message}"
        message = error.message.removeprefix(f"{folder}")
        assert len(message) < 250 and message.isprintable(), f"{case}: {message!r}"
        lines = {line for at, line in expected.faults if at == name}
        line_number = re.search(r", line (\d+)", message)
        if lines and 0 not in lines and not name.endswith(".json"):
            assert name in message and line_number, f"{case}: no place in {message}"
            assert int(line_number[1]) in lines, f"{case}: {message}, and not one of {sorted(lines)}"
        return "refused"
    assert not expected.faults, f"{case}: accepted despite {sorted(expected.faults)[:3]}"
    assert sum(files.rows.values()) == sum(map(len, expected.tables.values())), case
    path = folder / name if (folder / name).exists() else folder / f"{name}.gz"
    if name.endswith(".json"):
        compare_events(path, expected.tables[name], case)
        return "accepted"
    separator = separator_of(path) if name == SHOPPERS else form.separator
    rows = expected.tables[name]
    for engine in ENGINES if rows else ():
        got = as_read(engine, path, form.kinds[name], separator, form.headless)
        assert len(got) == len(rows), f"{case}: {engine} reads {len(got)} rows of {len(rows)}"
        for ours, right in zip(got, rows, strict=True):
            for column in form.kinds[name]:
                assert equal(ours[column], plain(right[column])), (
                    f"{case}: {engine} reads {ours[column]!r} for {right[column]!r} in {column}, line {right['line']}"
                )
    return "accepted"


def compare_events(path: Path, right: list[Any], case: str) -> None:
    assert list(objects(path, checked=True)) == right, case
    events = [event for query in right for event in query["query"]]
    table = json_file.events(right)
    for engine in ENGINES:
        e = frames.load(engine)
        got = rows_of(e, e.from_arrow(table))
        for ours, event in zip(got, events, strict=True):
            for column in ("event_type", "product_action", "product_sku_hash", "hashed_url"):
                assert ours[column] == event.get(column), case
            assert ours["server_timestamp_epoch_ms"] == event["server_timestamp_epoch_ms"], case
            assert ours["searched"] == event["is_search"], case


@pytest.mark.parametrize("name", FORMATS)
def test_the_unchanged_files_are_accepted(generated: dict[str, Path], name: str) -> None:
    for file in files_of(generated[name]):
        assert compare(FORMATS[name], generated[name], file, file) == "accepted"


def files_of(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("generator.json", "generation.json", "submission.csv")
    )


@pytest.mark.parametrize("name", FORMATS)
def test_check_and_engines_agree_with_the_strict_reader(
    generated: dict[str, Path], tmp_path: Path, name: str
) -> None:
    folder, form = tmp_path / "copy", FORMATS[name]
    shutil.copytree(generated[name], folder)
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
        outcomes[kind, compare(form, folder, file, f"{name} {seed}, {kind} {file}")] += 1
        (folder / file).write_bytes(before)
        (folder / f"{file}.gz").unlink(missing_ok=True)
    print(f"\n{name}:", *(f"{kind} {how} {n}" for (kind, how), n in sorted(outcomes.items())), sep="\n  ")
    assert {how for _, how in outcomes} == {"accepted", "refused"}
