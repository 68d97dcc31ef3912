"""Cutting files into pieces of a number of lines."""

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buzzer.datasets import pieces
from buzzer.datasets.pieces import Lines, temporary

TEXTS = st.lists(st.sampled_from([b"\n", b"a", b"bc\r", b"\0"]), max_size=40).map(b"".join)


@given(text=TEXTS, sizes=st.lists(st.integers(1, 5), min_size=1, max_size=30), block=st.integers(1, 9))
def test_each_line_is_in_one_piece_or_skipped(text: bytes, sizes: list[int], block: int) -> None:
    """Whatever the lines are and wherever a block ends; the last line may lack its line break."""
    want = text.split(b"\n")
    want = [line + b"\n" for line in want[:-1]] + [line for line in want[-1:] if line]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "BLOCK", block)
        lines = Lines(io.BytesIO(text))
        for i, size in enumerate(sizes):
            assert lines.more() == bool(want)
            if i % 3 == 2:
                lines.skip(size)
            else:
                assert b"".join(lines.take(size)) == b"".join(want[:size])
            want = want[size:]


def test_a_temporary_file_is_gone_after_use_and_after_an_error(tmp_path: Path) -> None:
    def failing() -> object:
        yield b"first"
        raise ValueError("cannot be read")

    path = tmp_path / "piece"
    with temporary(path, [b"ab", b"c"]) as piece:
        assert piece.read_bytes() == b"abc"
    assert not path.exists()
    with pytest.raises(ValueError, match="cannot be read"), temporary(path, failing()):  # type: ignore[arg-type]
        pytest.fail("a half-written file was given")
    assert not path.exists()
