"""Caches of compiled code and tuned kernels outlive a run, although BenchExec removes the HOME and TMPDIR of the run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from buzzer import caches
from buzzer.suite.records.schema import Record

Predict = Callable[..., Record]


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder of a user who has set no cache folder."""
    home = tmp_path / "home"
    home.mkdir()
    for name in (caches.HOME, "XDG_CACHE_HOME", *caches.COMPILED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    return home


def test_a_run_uses_the_caches_of_its_user(predict: Predict, enforcement: str, user: Path) -> None:
    details = predict("show-caches").details
    here = user / ".cache" / "buzzer"
    assert (details["home"] == str(user)) == (enforcement == "polled")
    assert details["kernels"] == str(here / "kernels")
    assert details["compiled"] == {
        name: str(here / "compiled" / folder) for name, folder in caches.COMPILED.items()
    }
    assert all(Path(path).is_dir() for path in details["compiled"].values())


def test_settings_of_the_user_have_priority(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(user / "mine"))
    monkeypatch.setenv("BUZZER_CACHE", str(user / "elsewhere"))
    environment = caches.environment()
    assert environment["TRITON_CACHE_DIR"] == str(user / "mine")
    assert environment["CUPY_CACHE_DIR"] == str(user / "elsewhere" / "compiled" / "cupy")
    assert environment["BUZZER_CACHE"] == str(user / "elsewhere")
    assert environment["CUPY_ACCELERATORS"] == ""
    monkeypatch.setenv("CUPY_ACCELERATORS", "cub")
    assert caches.environment()["CUPY_ACCELERATORS"] == "cub"


def test_a_record_shows_whether_the_caches_were_warm(predict: Predict, user: Path) -> None:
    assert predict("work").compiled_caches == "cold"
    (caches.compiled()["CUPY_CACHE_DIR"] / "kernel").write_text("compiled")
    assert predict("work").compiled_caches == "warm"


def test_libraries_read_variables_of_these_names() -> None:
    """Each name occurs in the library that reads it, if that is installed."""
    import importlib.util

    readers = {
        "CUPY_CACHE_DIR": ("cupy", "cuda/_compiler_cache.py"),
        "TRITON_CACHE_DIR": ("triton", "knobs.py"),
        "TORCHINDUCTOR_CACHE_DIR": ("torch", "_inductor/runtime/cache_dir_utils.py"),
        "PYTORCH_KERNEL_CACHE_PATH": ("torch", "lib/libtorch_cuda.so"),
        "LIBCUDF_KERNEL_CACHE_PATH": ("libcudf", "lib64/libcudf.so"),
    }
    for name, (package, file) in readers.items():
        spec = importlib.util.find_spec(package)
        path = (
            Path(spec.submodule_search_locations[0]) / file
            if spec and spec.submodule_search_locations
            else None
        )
        if path is not None and path.exists():
            assert name.encode() in path.read_bytes(), (name, path)
