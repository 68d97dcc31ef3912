import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, faster_interpreter: None) -> str:
    """Where Triton kernels run: in the interpreter on the CPU, or compiled on a GPU. A process can do only one of the two."""
    import torch

    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if interpreted != (request.param == "cpu"):
        pytest.skip(
            "this process compiles kernels" if request.param == "cpu" else "kernels are interpreted here"
        )
    return str(request.param)


@pytest.fixture(scope="session")
def host_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CUDA C++ kernels compiled for the CPU, once for all tests of a process."""
    from tests.engine.kernels.cuda import host

    return host.compile_host(tmp_path_factory.mktemp("host") / "libhost.so", "-O2", "-fPIC", "-shared")


@pytest.fixture(scope="session")
def compiles() -> Callable[[str], list[dict[str, Any]]]:
    """A function that runs code in a new process, because this one interprets kernels. It returns the JSON objects that the code
    prints, one per line."""
    pytest.importorskip("triton")

    def run(code: str) -> list[dict[str, Any]]:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        out = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT, env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        return [json.loads(line) for line in out.stdout.splitlines()]

    return run
