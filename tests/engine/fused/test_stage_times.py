"""The stages of CUDA C++ products, from made-up times."""

import sys

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
from buzzer.engine.fused import __main__ as command_line
from buzzer.engine.fused.stage_times import START, WAITED, stages
from buzzer.engine.kernels.cuda.launch import STAMPS


def test_stages_are_medians_over_blocks_and_times_may_wrap() -> None:
    """Two replays of three blocks at 2 cycles per nanosecond; the third block is 1000 ns late, and shares a multiprocessor."""
    lengths = np.array([400, 100, 600, 50, 300, 500, 200])  # ns
    stamps = np.zeros((2, 3, STAMPS + 1, 2), np.uint32)
    for replay in range(2):
        for block in range(3):
            start = 2**32 - 700 + 1000 * (block == 2) + 50_000 * replay
            times = start + np.array([0, *lengths.cumsum()])
            stamps[replay, block, :STAMPS] = (
                np.stack([2 * times + 77 * block, times], 1).astype(np.uint64) % 2**32
            )
    stamps[:, :, STAMPS, 0] = [5, 9, 9]
    before = stamps - np.uint32(1500)  # the previous kernel, whose last block ends 1650 ns after a wait
    x = stages("qkv", stamps, before)
    got = (x.early_us, x.wait_us, x.copies_us, x.products_us, x.exchange_us, x.sums_us, x.end_us)
    assert got == pytest.approx(tuple(lengths / 1000))
    assert (x.kernel, x.blocks, x.multiprocessors, x.most_on_one) == ("qkv", 3, 2, 2)
    assert (x.apart_us, x.whole_us) == (1.0, 2.65)  # 1000 ns, and the 1650 ns after a wait
    assert x.handover_us == pytest.approx(1.5 - 2.65)
    assert "handover_us" not in stages("qkv", stamps).as_json()
    assert (START, WAITED) == (0, 2)


@pytest.mark.parametrize(
    ("mode", "message"), [("pdl", "mode pdl has no CUDA C++ products"), ("cuda", "no CUDA device")]
)
def test_without_such_products_or_a_gpu_there_is_one_message(
    mode: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available() and mode == "cuda":
        pytest.skip("a CUDA device is here")
    monkeypatch.setattr(sys, "argv", ["fused", "stages", "--mode", mode])
    assert command_line.main() == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"error: {message}")
