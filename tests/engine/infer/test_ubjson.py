"""The reader of UBJSON, compared with a document written by hand."""

import pytest

from buzzer.engine.infer import ubjson


def test_ubjson_is_read_completely() -> None:
    """A document of every type, written by hand from the specification."""
    data = b"{i\x01aTi\x01bFi\x01cZi\x01di\xffi\x01eU\xffi\x01fI\x01\x00i\x01gl\x00\x01\x00\x00i\x01hSi\x02hii\x01j[i\x01Cx]"
    data += b"i\x01k[$U#i\x02\x01\x02i\x01l[#i\x01Ti\x01md\x3f\x80\x00\x00i\x01n{#i\x01i\x01aD\xbf\xf0\x00\x00\x00\x00\x00\x00}"
    got = ubjson.loads(data)
    assert got.pop("k").tolist() == [1, 2]
    assert got == {
        "a": True, "b": False, "c": None, "d": -1, "e": 255, "f": 256, "g": 65536, "h": "hi", "j": [1, "x"],
        "l": [True], "m": 1.0, "n": {"a": -1.0},
    }  # fmt: skip
    for end in range(len(data)):
        with pytest.raises(ValueError, match="not UBJSON"):
            ubjson.loads(data[:end])


@pytest.mark.parametrize(
    "data",
    [
        b"Si\xff",
        b"[#i\xff",
        b"{#i\xff",
        b"[$U#i\xff\x01",
        b"Sd\x3f\x80\x00\x00",
        b"x",
        b"C\xff",
        b"[" * 100_000,
    ],
    ids=["text", "array", "object", "numbers", "no integer", "marker", "character", "depth"],
)
def test_what_is_not_ubjson_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not UBJSON"):
        ubjson.loads(data)
