"""The kernels' tests run twice from one text: in Triton's interpreter on a CPU, and on a GPU (mark `gpu`)."""

import os

import pytest
import torch

# Read when kernels are first imported; a process has either interpreted kernels or compiled ones.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where kernels run: on the CPU by the interpreter, on a GPU compiled."""
    pytest.importorskip("triton")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if interpreted != (request.param == "cpu"):
        pytest.skip("this process compiles kernels" if request.param == "cpu" else "kernels are interpreted here")
    return str(request.param)
