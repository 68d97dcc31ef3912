"""The rules for text files in small cases: what is refused, with which line, column and message."""

from pathlib import Path

import pytest

from buzzer.datasets import lines
from buzzer.datasets.files import csv_blocks
from buzzer.errors import DataError

KINDS = {"id": "int64", "day": "date", "name": "str", "rate": "float64"}
HEAD = b"id,day,name,rate\n"
ROW = b"1,2016-02-29,Gondal,0.5\n"
GOOD = {
    "plain": HEAD + ROW,
    "no last end": HEAD + ROW[:-1],
    "CR LF": (HEAD + ROW + ROW).replace(b"\n", b"\r\n"),
    "mixed ends": HEAD + ROW.replace(b"\n", b"\r\n") + ROW,
    "byte order mark": b"\xef\xbb\xbf" + HEAD + ROW,
    "another order": b"rate,name,day,id\n0.5,Gondal,2016-02-29,1\n",
    "quoted": b'"id",day,name,"rate"\n' + b'"1","2016-02-29","Gondal, east","0.5"\n',
    "text that looks like nothing": HEAD + b"1,2016-02-29,NA,-0\n",
    "other scripts in text": HEAD + "1,2016-02-29,Côte d'Ivoire\u2028,1e-5\n".encode(),
}
BAD = {
    "blank line": (HEAD + ROW + b"\n" + ROW, "line 3: a blank line"),
    "blank line at the end": (HEAD + ROW + b"\n", "line 3: a blank line"),
    "blank line at the start": (HEAD + b"\r\n" + ROW, "line 2: a blank line"),
    "carriage returns": ((HEAD + ROW).replace(b"\n", b"\r"), "line 1: the line ends are carriage returns"),
    "carriage returns below the header": (
        HEAD + (ROW * 3).replace(b"\n", b"\r"),
        "line 2",
    ),
    "carriage return in a field": (
        HEAD + ROW.replace(b"nd", b"\r"),
        "line 2, column name: a carriage return without a line feed",
    ),
    "carriage return at the end": (
        HEAD + ROW[:-1] + b"\r",
        "line 2, column rate: a carriage return without a line feed",
    ),
    "byte order mark below": (HEAD + ROW + b"\xef\xbb\xbf" + ROW, "line 3, column id: a byte order mark"),
    "NUL": (HEAD + ROW + ROW.replace(b"nd", b"\0"), "line 3, column name: a control character, 0x00"),
    "TAB": (HEAD + ROW.replace(b"nd", b"\t"), "line 2, column name: a control character, 0x09"),
    "bad UTF-8": (HEAD + ROW.replace(b"nd", b"\xff"), "line 2, column name: bytes that are not UTF-8"),
    "open quote": (HEAD + ROW.replace(b"Gon", b'"Gon') + ROW, "line 2, column name: a quote is never closed"),
    "stray quote": (HEAD + ROW.replace(b"nd", b'n"d'), "line 2, column name: a quote within the field"),
    "escaped quote": (
        HEAD + b'1,2016-02-29,"El""bonia",1\n',
        "line 2, column name: text after the closing quote",
    ),
    "text after a quote": (
        HEAD + b'1,2016-02-29,"a"b,1\n',
        "line 2, column name: text after the closing quote",
    ),
    "line end in quotes": (HEAD + b'1,2016-02-29,"a\nb",1\n', "line 2, column name: a quote is never closed"),
    "quotes around nothing": (HEAD + b'1,2016-02-29,"",1\n', "line 2, column name: quotes around nothing"),
    "fewer fields": (HEAD + ROW + b"1,2016-02-29,x\n", "line 3: Expected 4 columns, got 3"),
    "more fields": (HEAD + b"1,2016-02-29,x,1,2\n", "line 2: Expected 4 columns, got 5"),
    "digits of another script": (
        HEAD + "٣٣,2016-02-29,x,1\n".encode(),
        "line 2, column id: '٣٣' is not a whole number",
    ),
    "date in other digits": (HEAD + "1,٢٠١٦-٠٢-٢٩,x,1\n".encode(), "line 2, column day"),
    "no such day": (HEAD + b"1,2015-02-29,x,1\n", "line 2, column day: '2015-02-29' is not a date"),
    "19 digits": (HEAD + b"1234567890123456789,2016-02-29,x,1\n", "line 2, column id"),
    "a plus sign": (HEAD + b"+1,2016-02-29,x,1\n", "line 2, column id"),
    "nan": (HEAD + b"1,2016-02-29,x,nan\n", "line 2, column rate: 'nan' is not a number"),
    "no digit after the point": (HEAD + b"1,2016-02-29,x,1.\n", "line 2, column rate"),
    "empty": (HEAD + b"1,2016-02-29,,1\n", "line 2, column name: '' is not a value"),
    "a long value": (HEAD + b"1,2016-02-29,x," + b"9" * 5000 + b"\n", "line 2, column rate: '9999"),
    "header with spaces": (HEAD.replace(b",day", b", day") + ROW, "line 1: spaces around day in the header"),
    "unknown column": (HEAD.replace(b"\n", b",more\n") + ROW, "line 1: unknown column 'more'"),
    "missing column": (HEAD.replace(b"day", b"date") + ROW, "line 1: no column day"),
    "doubled column": (HEAD.replace(b"\n", b",id\n") + ROW, "line 1: a column occurs twice"),
    "header only": (HEAD, "no rows"),
    "nothing": (b"", "the file is empty"),
    "binary": (b"\x1f\x8b\x08\x00" + ROW, "line 1: the header is not text"),
    "Parquet": (HEAD + b"PAR1\x15\x00", "a Parquet file"),
}


def read(path: Path) -> list[tuple[int, dict[str, object]]]:
    return [
        (line + at, row)
        for line, block in csv_blocks(path, KINDS)
        for at, row in enumerate(block.iter_rows(named=True))
    ]


@pytest.mark.parametrize("case", GOOD)
def test_good_files_are_read(tmp_path: Path, case: str) -> None:
    (tmp_path / "x.csv").write_bytes(GOOD[case])
    rows = read(tmp_path / "x.csv")
    assert [line for line, _ in rows] == [*range(2, len(rows) + 2)]
    assert all(row["id"] == 1 and str(row["day"]) == "2016-02-29" for _, row in rows)


@pytest.mark.parametrize("block", [64, 1 << 20])
@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, block: int
) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", block)
    data, expected = BAD[case]
    (tmp_path / "x.csv").write_bytes(data)
    with pytest.raises(DataError) as error:
        read(tmp_path / "x.csv")
    message = error.value.message.removeprefix(str(tmp_path / "x.csv"))
    if block > 64 or case != "a long value":  # a line longer than a block has another message
        assert expected in message and message.isprintable() and len(message) < 150


@pytest.mark.parametrize("block", [30, 31, 50, 1 << 20])
def test_blocks_of_any_size_give_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", block)
    rows = [f"{i},2016-02-{i:02d},place {i},{i}.25\r\n" for i in range(1, 29)]
    (tmp_path / "x.csv").write_text("".join([HEAD.decode(), *rows])[:-2], newline="")
    assert [(line, row["id"], row["rate"]) for line, row in read(tmp_path / "x.csv")] == [
        (i + 1, i, i + 0.25) for i in range(1, 29)
    ]


def test_an_endless_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1 << 20)
    (tmp_path / "x.csv").write_bytes(HEAD + ROW + b"1" * (3 << 20))
    with pytest.raises(DataError, match=r"line 3: longer than 1 MiB"):
        read(tmp_path / "x.csv")
