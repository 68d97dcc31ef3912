"""A stand-in for CUDA graphs and streams on the CPU: a capture records each operation, and a replay runs them again on the same tensors."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = (
    "aten._local_scalar_dense.default",
    "aten.item.default",
    "aten.nonzero.default",
)  # wait for the device


class OnCpu(TorchFunctionMode):
    """Replaces the device "cuda" by "cpu" in all calls of torch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*map(on_cpu, args), **{name: on_cpu(value) for name, value in (kwargs or {}).items()})


def on_cpu(value: Any) -> Any:
    """An argument, with "cpu" in place of "cuda"."""
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return "cpu" if isinstance(value, str) and value == "cuda" else value


class Recorder(TorchDispatchMode):
    """Records each operation with its tensors. Refuses those that CUDA refuses during a capture."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Callable[[], None]] = []
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) in READS:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore of it")
        options = kwargs or {}
        result = func(*args, **options)
        self.names.append(str(func))

        def again() -> None:
            fresh = func(*args, **options)
            for old, new in zip(tensors(result), tensors(fresh), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)

        self.steps.append(again)
        return result


def tensors(result: Any) -> list[torch.Tensor]:
    """The tensors among an operation's results."""
    values = result if isinstance(result, tuple | list) else [result]
    return [x for x in values if isinstance(x, torch.Tensor)]


class Cuda:
    """The state of the stand-in: the calls in their order, and the recorder of a running capture."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.recorder: Recorder | None = None
        self.graphs: list[Graph] = []
        self.on = "main"

    @contextmanager
    def stream(self, stream: "Stream") -> Iterator[None]:
        before, self.on = self.on, stream.name
        yield
        self.on = before

    @contextmanager
    def graph(self, graph: "Graph") -> Iterator[None]:
        self.events.append("capture")
        self.recorder = Recorder()
        try:
            with self.recorder:
                yield
            graph.recorder = self.recorder
        finally:
            self.recorder = None


class Stream:
    def __init__(self, cuda: Cuda, name: str) -> None:
        self.cuda, self.name, self.cuda_stream = cuda, name, 0

    def wait_stream(self, other: "Stream") -> None:
        self.cuda.events.append(f"{self.name} waits for {other.name}")


class Graph:
    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.recorder = Recorder()
        cuda.graphs.append(self)

    def replay(self) -> None:
        self.cuda.events.append("replay")
        with torch.inference_mode():
            for step in self.recorder.steps:
                step()


@contextmanager
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    """Replaces the part of torch.cuda that sessions use."""
    cuda, autocast = Cuda(), torch.autocast
    main = Stream(cuda, "main")
    parts = {
        "is_available": lambda: True,
        "Stream": lambda: Stream(cuda, "side"),
        "current_stream": lambda: main,
        "stream": cuda.stream,
        "CUDAGraph": lambda: Graph(cuda),
        "graph": cuda.graph,
        "synchronize": lambda: cuda.events.append("synchronize"),
        "is_current_stream_capturing": lambda: cuda.recorder is not None,
    }
    for name, part in parts.items():
        monkeypatch.setattr(torch.cuda, name, part)
    monkeypatch.setattr(torch, "autocast", lambda device, dtype, enabled: autocast("cpu", dtype, enabled))
    with OnCpu():
        yield cuda
