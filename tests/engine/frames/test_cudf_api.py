"""The parts of the eager implementation that run on cuDF only, tested without a GPU.

Names and keywords are checked against the installed cuDF and CuPy. The logic runs with pandas and NumPy in their place, changed
to behave as cuDF and CuPy do where those differ.
"""

import ast
import builtins
import dataclasses
import importlib.util
import inspect
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from buzzer.engine.frames import eager, eager_csv, lookups, token_lists
from buzzer.engine.frames.base import Lookup, Pieces, TextFeatures
from buzzer.errors import DataError

# ---- where ------------------------------------------------------------------------------------------------------------


class Condition:
    """A condition with missing values, with cuDF's rules: `~` keeps them, and `where` takes the other value."""

    def __init__(self, values: list[bool | None]) -> None:
        self.values = values

    def fillna(self, value: bool) -> "Condition":
        return Condition([value if x is None else x for x in self.values])

    def __invert__(self) -> "Condition":
        return Condition([None if x is None else not x for x in self.values])

    def astype(self, kind: str) -> "Numbers":
        return Numbers([np.dtype(kind).type(x) for x in self.values])


class Numbers:
    """A column with cuDF's `where`."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def astype(self, kind: str) -> "Numbers":
        return Numbers([{"int": int, "float": float, "str": str}[kind](x) for x in self.values])

    def where(self, condition: Condition, other: Any) -> "Numbers":
        others = other.values if isinstance(other, Numbers) else [other] * len(self.values)
        chosen = zip(condition.values, self.values, others, strict=True)
        return Numbers([mine if holds else theirs for holds, mine, theirs in chosen])


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [
        (Numbers([1, 2, 3]), Numbers([7, 8, 9]), [1, 8, 9]),
        (Numbers([1, 2, 3]), -1, [1, -1, -1]),
        (5, Numbers([7, 8, 9]), [5, 8, 9]),
        (5, -1, [5, -1, -1]),
        ("yes", "no", ["yes", "no", "no"]),
    ],
    ids=["columns", "column and value", "value and column", "values", "strings"],
)
def test_a_missing_condition_is_false_on_cudf(a: Any, b: Any, want: list[Any]) -> None:
    condition: Any = Condition([True, None, False])
    assert eager.Eager("pandas").where(condition, a, b).values == want


# ---- lookups ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def unordered(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replaces pandas' merge by one like cuDF's: rows in any order, and integers as float64 if a row has no match (as in pandas).
    Returns the columns of each left side."""
    merge, seen = pd.DataFrame.merge, []

    def shuffled(self: pd.DataFrame, other: pd.DataFrame, **how: Any) -> pd.DataFrame:
        seen.append(list(self.columns))
        return merge(self, other, **how).sample(frac=1, random_state=len(seen)).reset_index(drop=True)

    monkeypatch.setattr(pd.DataFrame, "merge", shuffled)
    return seen


def test_lookups_by_merge_equal_those_by_position(unordered: list[list[str]]) -> None:
    """Types, exact large integers, fills, missing keys, and the frame's own order and index. Each set of keys is merged with the frame
    once, with only keys and positions in the merge."""
    rng = np.random.default_rng(3)
    t = pd.DataFrame(
        {
            "row": rng.permutation(40),
            "a": rng.choice([0.0, 1.0, 2.0, 3.0, np.nan], 40),
            "b": rng.choice(["x", "y", None, "z"], 40),
            "wide": 0.5,
        },
        index=rng.permutation(40) + 100,
    )
    large = [2**62 + 1, -(2**61) - 1, 7]
    wanted = [
        Lookup(pd.DataFrame({"k": [2.0, 0.0, np.nan], "v": large}), {"a": "k"}, {"v": "one"}, -1),
        Lookup(
            pd.DataFrame({"k": [3, 2], "v": [0.5, np.nan], "s": ["p", None]}),
            {"a": "k"},
            {"v": "two", "s": "text"},
            {"two": 0.25, "text": "-"},
        ),
        Lookup(
            pd.DataFrame({"i": [0, 1], "j": ["x", "y"], "n": np.array([5, 6], "int32")}),
            {"a": "i", "b": "j"},
            {"n": "three"},
            0,
        ),
        Lookup(pd.DataFrame({"k": np.zeros(0), "v": np.zeros(0, "int64")}), {"a": "k"}, {"v": "none"}, 9),
    ]
    got = lookups.by_merge(pd, t, wanted)
    pd.testing.assert_frame_equal(got, lookups.by_position(t, wanted))
    assert got["one"].tolist() == [{2.0: large[0], 0.0: large[1]}.get(a, -1) for a in t["a"]]
    assert [left for left in unordered if "_row" in left] == [["a", "_row"], ["a", "b", "_row"]]


# ---- joined lists -----------------------------------------------------------------------------------------------------


class DeviceText:
    """A string column with the part of cuDF's and CuPy's API that is used: `str.split` to lists, their leaves and lengths, `values`."""

    def __init__(self, column: Any) -> None:
        self.column, self.name = pd.Series(column), "s"

    def fillna(self, value: str) -> "DeviceText":
        return DeviceText(self.column.fillna(value))

    def __ne__(self, other: object) -> Any:
        return self.column != other

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, rows: Any) -> Any:
        def split(separator: str, regex: bool) -> Any:
            parts = self.column[rows].str.split(separator, regex=regex)
            lists = types.SimpleNamespace(leaves=parts.explode().dropna(), len=parts.str.len)
            return types.SimpleNamespace(list=lists)

        return types.SimpleNamespace(str=types.SimpleNamespace(split=split))


@pytest.mark.parametrize("texts", [["7\t137\t8\t137\t9", None, "", "137", "5\t6"], [None, ""], []])
def test_joined_lists_on_the_device_equal_those_on_the_host(
    texts: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cupy = types.ModuleType("cupy")
    vars(cupy).update({name: getattr(np, name) for name in np.__all__})
    monkeypatch.setitem(__import__("sys").modules, "cupy", cupy)
    column = pd.Series(texts, dtype="str", name="s")
    ours, theirs = token_lists.on_device(DeviceText(column), "\t"), token_lists.on_host(column, "\t")
    assert ours.xp is cupy
    pieces = Pieces(np.arange(200) % 2 == 1, {"n": (np.arange(200) % 7).astype("uint8")})
    packed = token_lists.packed(pieces, ["n"])
    for call in (
        lambda x: x.lengths,
        lambda x: x.count("137"),
        lambda x: x.at(1),
        lambda x: x.after("137", 1),
        lambda x: x.after("137", 2),
        lambda x: x.matrix(3),
        lambda x: x.numbers(),
        lambda x: token_lists.Text(x, pieces).nth_word(1),
        lambda x: token_lists.Text(x, pieces).after("137", 2),
        lambda x: token_lists.Text(x, pieces).sums(packed, {"n": "n"}, {})["n"],
        lambda x: token_lists.Text(x, pieces).sums(packed, {}, {("n", "137"): "n"})["n"],
    ):
        np.testing.assert_array_equal(call(ours), call(theirs))
        assert call(ours).dtype == call(theirs).dtype


def test_a_list_with_a_word_in_it_is_refused() -> None:
    e, t = eager.Eager("pandas"), pd.DataFrame({"row": [0], "s": ["1\tx\t3"]})
    with pytest.raises(DataError, match="column s"):
        e.token_features(t, "s", "\t", at={1: "z"})
    with pytest.raises(DataError, match="column s"):
        e.token_matrix(t, "s", "\t", 3)


@pytest.mark.parametrize("text", ["abc", "g" * 16, "@" * 16, "a" * 17])
def test_an_invalid_id_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="column s"):
        eager.Eager("pandas").hex_id(pd.DataFrame({"s": [text]}), "s", "z", digits=16)


# ---- CSV --------------------------------------------------------------------------------------------------------------


def as_cudf(kind: str, fields: list[str | None]) -> list[Any]:
    text = pd.Series(fields, dtype="str", name="a")
    return list(eager_csv.typed(pd, text, kind))


def test_strings_are_converted_as_on_the_host() -> None:
    assert as_cudf("int64", ["7", "-9223372036854775808", "+12", "007"]) == [7, -(2**63), 12, 7]
    assert as_cudf("date", ["1970-01-02", "2020-02-29", "1969-12-31"]) == [1, 18321, -1]
    got = as_cudf("float64", ["0.5", None, "-1e3", ".25", "2."])
    assert np.isnan(got.pop(1)) and got == [0.5, -1000.0, 0.25, 2.0]


@pytest.mark.parametrize(
    ("kind", "field", "message"),
    [
        ("int64", "seven", "column a: 'seven' is not an integer"),
        ("int64", "12x", "column a: '12x' is not an integer"),
        ("int64", "1_2", "column a: '1_2' is not an integer"),
        ("int64", "1.5", "column a: '1.5' is not an integer"),
        ("int64", None, "column a has rows without a value"),
        ("date", None, "column a has rows without a value"),
        ("date", "2020-1-1", "column a: '2020-1-1' is not a date"),
        ("date", "01/02/2020", "column a: '01/02/2020' is not a date"),
        ("float64", "0.5.1", "column a: '0.5.1' is not a number"),
        ("float64", "e5", "column a: 'e5' is not a number"),
    ],
)
def test_a_field_that_libcudf_would_misread_is_refused(kind: str, field: str | None, message: str) -> None:
    good = {"int64": "1", "date": "2020-01-01", "float64": "1"}[kind]
    with pytest.raises(ValueError, match=message):
        as_cudf(kind, [good, field, good])


def test_an_integer_beyond_64_bits_is_refused() -> None:
    """libcudf's cast wraps around. pandas' raises, so this test uses a column whose cast wraps."""

    class Wrapping(pd.Series):
        def astype(self, kind: str, **_: Any) -> Any:
            plain = [int(x) for x in self]
            if kind == "int64":
                return pd.Series([(x + 2**63) % 2**64 - 2**63 for x in plain])
            return pd.Series([float(x) for x in plain])

    with pytest.raises(ValueError, match="column a has an integer beyond 64 bits"):
        eager_csv.typed(pd, Wrapping(["1", "9223372036854775808"], dtype="str", name="a"), "int64")


@pytest.mark.parametrize("field", ["", "12x", "1.5"])
def test_the_error_of_a_bad_file_names_the_column(tmp_path: Path, field: str) -> None:
    path, e = tmp_path / "t.csv", eager.Eager("pandas")
    path.write_text(f"b,a\n1,2\n3,{field}\n")
    with pytest.raises(DataError, match=r"t\.csv: column a\b"):
        e.read_csv(path, {"a": "int64"})
    path.write_text(f"1|2\n3|{field}\n")
    with pytest.raises(DataError, match=r"t\.csv: column n\b"):
        e.read_csv(path, {"n": "int64"}, names=["m", "n"], separator="|")


# ---- names and keywords -----------------------------------------------------------------------------------------------

# Functions and classes that run on the host only.
HOST = {"on_host", "named", "arrow_text", "by_position", "taken", "factorised", "RowFinder"}
# Names whose attributes are not cuDF's: modules, the engine itself, a file that pyarrow reads.
OTHERS = (
    "np",
    "pa",
    "pd",
    "csv",
    "warnings",
    "importlib",
    "faults",
    "token_lists",
    "eager_csv",
    "self",
    "file",
)


@dataclass(frozen=True)
class Use:
    """An attribute that is read or called; owner: "xp", "cupy", or "" for a frame, column or array."""

    line: int
    owner: str
    name: str
    keywords: tuple[str, ...]


def uses(module: types.ModuleType) -> Iterator[Use]:
    """The attributes that a module's source uses, outside of HOST."""
    tree = ast.parse(inspect.getsource(module))
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}

    def visit(node: ast.AST) -> Iterator[Use]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in HOST:
            return
        if isinstance(node, ast.If) and ast.unparse(node.test) == "not self.gpu":
            node = ast.Module(node.orelse, [])
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            given = calls[id(node)].keywords if id(node) in calls else []
            keywords = tuple(k.arg for k in given if k.arg)
            kind = {"xp": "xp", "self.xp": "xp", "cupy": "cupy", "lists.xp": "cupy"}.get(owner, "")
            if (
                kind
                or owner.split(".")[0].split("(")[0] not in OTHERS
                or owner.startswith(("self._", "self.xp."))
            ):
                yield Use(node.lineno, kind, node.attr, keywords)
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from visit(tree)


def takes(function: Any, keywords: tuple[str, ...]) -> bool:
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return True  # a property, or compiled
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return anything or set(keywords) <= set(parameters)


def problems(module: types.ModuleType, owners: Mapping[str, list[Any]], fields: set[str]) -> list[str]:
    """Uses that no possible owner has with these keywords, except for fields of our own dataclasses."""
    missing = []
    for use in uses(module):
        having = [getattr(owner, use.name) for owner in owners[use.owner] if hasattr(owner, use.name)]
        if use.name not in fields and not any(takes(each, use.keywords) for each in having):
            missing.append(f"{module.__name__}:{use.line} {use.name}({', '.join(use.keywords)})")
    return missing


@pytest.mark.gpu_plan
def test_cudf_has_every_name_and_keyword() -> None:
    for package in ("cudf", "cupy"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: pip install 'buzzer[gpu-plan]'")
    import cudf
    import cupy
    from cudf.core.accessors.lists import ListMethods
    from cudf.core.accessors.string import StringMethods
    from cudf.core.groupby.groupby import DataFrameGroupBy, SeriesGroupBy
    from cudf.core.series import DatetimeProperties

    frames = [cudf.DataFrame, cudf.Series, DataFrameGroupBy, SeriesGroupBy, StringMethods, ListMethods]
    plain = [dict, list, tuple, str, np.dtype, BaseException, pa.LargeStringArray]
    own = [eager.Eager, token_lists.TokenLists, token_lists.Text]
    owners = {"": [*frames, DatetimeProperties, cupy.ndarray, *plain, *own], "xp": [cudf], "cupy": [cupy]}
    ours = (Lookup, Pieces, TextFeatures, token_lists.TokenLists, token_lists.Packed)
    fields = {field.name for kind in ours for field in dataclasses.fields(kind)}
    for module in (eager, eager_csv, lookups):
        assert not problems(module, owners, fields)
    assert not problems(token_lists, owners | {"xp": [cupy]}, fields)
    for part in ("year", "month", "day", "weekday", "hour", "minute"):
        assert hasattr(DatetimeProperties, part)


def test_the_check_finds_missing_names_and_keywords(monkeypatch: pytest.MonkeyPatch) -> None:
    """A keyword that pandas' `merge` lacks, a method that no frame has, and names that a library lacks at any depth."""
    text = "t.merge(t, how='left', shuffle=1)\nt.isinteger()\nxp.errors\nself.xp.int.ParserError\nt.sum(axis=1)\n"
    monkeypatch.setattr(inspect, "getsource", lambda _: text)
    missing = problems(types.ModuleType("some"), {"xp": [builtins], "": [pd.DataFrame]}, set())
    assert missing == [
        "some:1 merge(how, shuffle)",
        "some:2 isinteger()",
        "some:3 errors()",
        "some:4 ParserError()",
    ]
