"""JSON that Python's reader accepts, or fails on."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from buzzer.datasets import strict_json
from buzzer.errors import DataError

BAD = {
    "empty": (b"", "not a list"),
    "an object": (b'{"a": 1}', "not a list"),
    "a byte order mark": (b"\xef\xbb\xbf[]", "not a list"),
    "text after the list": (b'[{"a": 1}]\n[{"b": 1}]', "line 2, column 1: text after the end"),
    "a list that is not closed": (b'[{"a": 1}', "line 1, column 10: truncated or damaged after 1 queries"),
    "no comma": (b'[{"a": 1}\n{"a": 2}]', "truncated or damaged after 1 queries: no comma"),
    "two commas": (b'[{"a": 1},,{"a": 2}]', "query 1 is not an object"),
    "a comma at the end": (b'[{"a": 1},\n]', "line 2, column 1: query 1 is not an object"),
    "a comma at the start": (b'[,{"a": 1}]', "query 0 is not an object"),
    "a number": (b"[1]", "query 0 is not an object"),
    "a trailing comma inside": (b'[{"a": 1,}]', "line 1, column"),
    "NaN": (b'[{"a": NaN}]', "NaN is not a JSON number"),
    "Infinity": (b'[{"a": [-Infinity]}]', "-Infinity is not a JSON number"),
    "a key twice": (b'[{"a": 1},\n {"b": {"a": 1, "a": 2}}]', "line 2, column 2: the key 'a' occurs twice"),
    "bad UTF-8": (b'[{"a": 1},\n{"a": "\xff"}]', "line 2: bytes that are not UTF-8"),
    "half a character": (b'[{"a": 1}]\n\xc3', "line 2: bytes that are not UTF-8"),
    "nesting": (b'[{"a": ' + b"[" * 100_000, "nested too deeply"),
    "a number of 5000 digits": (b'[{"a": ' + b"1" * 5000 + b"}]", "limit"),
    "an open string": (
        b'[{"a": "' + b"x" * 3_000_000,
        "truncated or damaged after 0 queries: Unterminated string",
    ),
    "a control character": (b'[{"a": "\0"}]', "Invalid control character"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_lists_are_refused(tmp_path: Path, case: str) -> None:
    data, expected = BAD[case]
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(DataError) as error:
        list(strict_json.objects(tmp_path / "x.json"))
    assert expected in error.value.message and len(error.value.message) < 200 + len(str(tmp_path))


@pytest.mark.parametrize("data", [b"[]", b" [ ] \n", b'[{"a": 1.5}]', b'\r\n[\t{"a": "\xc3\xa9"} ,{}\n]\n'])
def test_good_lists_are_read_as_python_reads_them(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.json").write_bytes(data)
    for checked in (True, False):
        assert list(strict_json.objects(tmp_path / "x.json", checked=checked)) == json.loads(data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"{} {}", "text after the end"),
        (b'{"a": 1', "not JSON, or cut"),
        (b'{"a":1,"a":1}', "occurs twice"),
        (b"NaN", "NaN"),
    ],
)
def test_a_single_value_ends_with_its_file(tmp_path: Path, data: bytes, expected: str) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(DataError, match=expected):
        strict_json.loads(tmp_path / "x.json")


def test_the_work_for_an_unclosed_string_is_linear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts the characters passed to the decoder, for strings of two lengths."""
    monkeypatch.setattr(strict_json, "CHUNK", 1 << 10)

    def given(size: int) -> int:
        reader, characters = strict_json.Reader(tmp_path, io.BytesIO(b'{"a": "' + b"x" * size)), 0
        decode = reader.decode

        def counting(text: str, at: int) -> Any:
            nonlocal characters
            characters += len(text) - at
            return decode(text, at)

        reader.decode = counting  # type: ignore[assignment]
        with pytest.raises(DataError, match="Unterminated string"):
            reader.value("cut")
        return characters

    assert given(1 << 20) < 20 * given(1 << 16)  # 16 times as long; quadratic work would be 256 times as much


def test_an_object_is_read_up_to_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_json, "CHUNK", 1 << 10)
    monkeypatch.setattr(strict_json, "LONGEST", 1 << 12)
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"a": "x" * 3000}] * 5))
    assert len(list(strict_json.objects(path))) == 5
    path.write_text(json.dumps([{"a": "x" * 300_000}]))
    with pytest.raises(DataError, match="truncated or damaged after 0 queries"):
        list(strict_json.objects(path))
