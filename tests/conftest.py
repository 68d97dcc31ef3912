import os
import tempfile

# Before the first import of a library with a thread pool: workers that share the cores would only wait for each other.
for name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import hypothesis
import pytest

from buzzer.engine import device, frames
from buzzer.errors import UnsupportedError

# Read when Triton kernels are first imported: without a GPU, tests run them in Triton's interpreter.
if device.cuda_problem():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Speed is held by records: a busy machine is no failure.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
# `--hypothesis-profile gpu`, where minutes count: a failing example is told as it is, not made smaller.
hypothesis.settings.register_profile(
    "gpu",
    deadline=None,
    max_examples=5,
    phases=[phase for phase in hypothesis.Phase if phase.name not in ("shrink", "explain")],
)


@pytest.fixture(autouse=True, scope="session")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a killed harness leaves in the temporary folder goes with pytest's own."""
    os.environ["TMPDIR"] = str(tmp_path_factory.mktemp("tmp"))
    tempfile.tempdir = None


@pytest.fixture(params=sorted(frames.ENGINES), scope="module")
def e(request: pytest.FixtureRequest) -> frames.Engine:
    """Every engine that this machine can run."""
    try:
        return frames.load(request.param)
    except UnsupportedError as error:
        pytest.skip(error.message)


@pytest.fixture(scope="session")
def has_bf16() -> bool:
    """Whether this processor multiplies bfloat16, without which OpenVINO refuses it."""
    return device.multiplies_bf16()


@pytest.fixture
def whole_sums() -> None:
    """Skips where INT8 products are not added exactly."""
    if device.saturates():
        pytest.skip("without VNNI pairs of INT8 products are added in 16 bits and cut off")
