"""The C compiler, and names of pairs of backends. These tests need no compiler."""

import ctypes
import shutil
from pathlib import Path

import pytest

from buzzer.engine import infer
from buzzer.engine.infer import native
from buzzer.errors import UnsupportedError, UsageError
from buzzer.suite import registry
from buzzer.suite.run.plan import task_backends


def test_without_a_compiler_the_backend_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UnsupportedError, match="backend forest needs a C compiler") as refused:
        infer.load("forest")
    assert refused.value.hint == "install gcc or clang"
    assert not infer.installed("forest")
    assert not infer.installed("onnxruntime+forest")


def test_without_a_compiler_runs_leave_the_backend_out(monkeypatch: pytest.MonkeyPatch) -> None:
    task = registry.task("recsys2021")
    assert {"forest", "onnxruntime+forest", "torch_eager"} <= set(task.backends)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    chosen = task_backends(task, None)
    assert "torch_eager" in chosen and "onnxruntime" in chosen
    assert not any("forest" in infer.parts(name) for name in chosen)
    assert task_backends(task, ["forest"]) == ["forest"]  # its record says why it cannot run


def test_a_library_that_cannot_be_loaded_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(path: str) -> ctypes.CDLL:
        raise OSError("failed to map segment from shared object")

    (tmp_path / "any.c").write_text("")
    monkeypatch.setenv(native.CACHE, str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(native, "run", lambda command: b"")
    built: list[Path] = []
    monkeypatch.setattr(native, "build", lambda source, folder: built.append(folder))
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with pytest.raises(UnsupportedError, match=r"cannot load .*any-.*: failed to map") as refused:
        native.library(tmp_path / "any.c")
    assert native.CACHE in refused.value.hint
    assert len(built) == 2


def test_pairs_of_backends() -> None:
    assert infer.split_backend("onnxruntime+forest") == ("onnxruntime", "forest")
    assert infer.split_backend("forest") == ("torch_eager", "forest")
    for name in ("forest+onnxruntime", "torch_eager+openvino", "onnxruntime+forest+forest"):
        with pytest.raises(UsageError, match="not a pair"):
            infer.split_backend(name)
    with pytest.raises(UsageError, match="unknown backend"):
        infer.split_backend("onnxruntime+forst")
