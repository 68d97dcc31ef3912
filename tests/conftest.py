import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Test processes share the cores, so libraries get one thread each. This must be set before their first import.
for name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# Each test process keeps to cores of its own. Else the threads of programs that tests start wait for each other's: a bench took five
# times longer. The children inherit it.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cores, workers = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    number = int(worker.removeprefix("gw")) % workers
    os.sched_setaffinity(0, cores[number::workers] or cores)

import hypothesis
import pytest

from buzzer.engine import device, frames
from buzzer.errors import UnsupportedError

# Without a GPU, Triton kernels run in Triton's interpreter. The variable is read at the first import of a kernel.
if device.cuda_problem():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A script starts a background process with SIGINT ignored, and its children inherit that. Tests of Ctrl-C need the default.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadlines: a busy machine must not fail a test. In the gate the examples are the same in every run; elsewhere they are new ones.
hypothesis.settings.register_profile("untimed", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("untimed")
# `--hypothesis-profile gpu` for short GPU time: few examples, and a failing example is not made smaller.
hypothesis.settings.register_profile(
    "gpu",
    deadline=None,
    max_examples=5,
    phases=[phase for phase in hypothesis.Phase if phase.name not in ("shrink", "explain")],
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of pages and of the whole package come first. They take longest, and one of them at the end would run alone."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


@pytest.fixture(autouse=True, scope="session")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Temporary files go into pytest's temporary folder, so that those of a killed harness are removed with it."""
    os.environ["TMPDIR"] = str(tmp_path_factory.mktemp("tmp"))
    tempfile.tempdir = None


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The random numbers of torch are the same in every run of a test."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def faster_interpreter() -> None:
    """Triton's interpreter patches its language at each call of a device function, which takes half of its time. The first call of a
    function is enough: what it patches stays, or is patched again by every kernel."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    patched = set()

    def call(function: Any, *args: Any, **options: Any) -> Any:
        if function.fn not in patched:
            interpreter._patch_lang(function.fn)
            patched.add(function.fn)
        return function.rewrite()(*args, **options)

    interpreter.InterpretedFunction.__call__ = call


@pytest.fixture(params=sorted(frames.ENGINES), scope="module")
def e(request: pytest.FixtureRequest) -> frames.Engine:
    """Each engine that can run on this machine."""
    try:
        return frames.load(request.param)
    except UnsupportedError as error:
        pytest.skip(error.message)


@pytest.fixture(scope="session")
def has_bf16() -> bool:
    """Whether this processor multiplies bfloat16. Without it OpenVINO refuses BF16."""
    return device.multiplies_bf16()


@pytest.fixture
def whole_sums() -> None:
    """Skips the test if sums of INT8 products are not exact on this processor."""
    if device.saturates():
        pytest.skip("without VNNI, sums of pairs of INT8 products saturate at 16 bits")


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, str]], Path]:
    """Writes files, by their paths in a folder that is first on the path of imports. Returns the folder."""

    def write(files: Mapping[str, str]) -> Path:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        return tmp_path

    return write
