import os

import pytest


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where Triton kernels run: in the interpreter on the CPU, or compiled on a GPU. A process does one of both."""
    pytest.importorskip("triton")
    import torch

    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if interpreted != (request.param == "cpu"):
        pytest.skip(
            "this process compiles kernels" if request.param == "cpu" else "kernels are interpreted here"
        )
    return str(request.param)
