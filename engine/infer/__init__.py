"""Inference sessions: one protocol, one module for each backend.

with infer.prepare(model, backend="onnxruntime", example=batch) as session:
    outputs = session.run(batch)
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

from buzzer import plugins
from buzzer.engine.infer.cost import WEIGHT_BYTES
from buzzer.engine.infer.session import Array, Description, Plan, Session, check_batch
from buzzer.errors import UnsupportedError, UsageError, unknown_name
from buzzer.plugins import Plugin

Kind = Literal["networks", "encoders", "trees", "onnx"]  # of model
NETWORKS: Kind = "networks"  # torch modules of any kind
ENCODERS: Kind = "encoders"  # torch modules that describe their layers (`buzzer.engine.fused.spec`)
TREES: Kind = "trees"  # boosted trees, as a file of XGBoost
ONNX: Kind = "onnx"  # ONNX files
BOTH = ("cpu", "cuda")
OWN_FLOATS = ("fp16", "bf16", "fp64")  # types of an ONNX file that stay as they are

__all__ = [
    "BACKENDS",
    "ENCODERS",
    "NETWORKS",
    "ONNX",
    "TREES",
    "Array",
    "Backend",
    "BackendInfo",
    "Description",
    "Kind",
    "Plan",
    "Session",
    "all_backends",
    "check_batch",
    "info",
    "installed",
    "load",
    "plugin_backends",
    "precisions",
    "prepare",
    "runs",
    "simulates",
    "split_backend",
]


@dataclass(frozen=True)
class BackendInfo:
    """What is known of a backend before its libraries are imported. Its precisions are in its module: `load(name).PRECISIONS`."""

    name: str
    module: str  # of the protocol `Backend`
    summary: str  # one line for `buzzer list`
    runs: frozenset[Kind]
    packages: tuple[str, ...] = ()  # top-level modules that must be installed
    devices: tuple[str, ...] = BOTH
    simulated: tuple[str, ...] = ()  # precisions whose results it gives, but at the speed of FP32
    takes_gpu_arrays: bool = False  # whether `Session.run` takes arrays that are on the GPU already
    compiles: bool = False  # whether it keeps compiled code between processes (`buzzer.caches.COMPILED`)


def _built_in(name: str, summary: str, *kinds: Kind, **more: Any) -> BackendInfo:
    return BackendInfo(name, f"buzzer.engine.infer.backends.{name}", summary, frozenset(kinds), **more)


# Those of buzzer itself; `all_backends` has all.
BACKENDS = {
    backend.name: backend
    for backend in (
        _built_in(
            "torch_eager",
            "PyTorch as it is: the reference",
            NETWORKS,
            packages=("torch",),
            simulated=("int8", "fp8"),
            takes_gpu_arrays=True,
        ),
        _built_in(
            "torch_compile",
            "PyTorch through its compiler",
            NETWORKS,
            packages=("torch",),
            takes_gpu_arrays=True,
            compiles=True,
        ),
        _built_in(
            "onnxruntime",
            "ONNX Runtime on the exported graph",
            *(NETWORKS, TREES, ONNX),
            packages=("onnxruntime",),
            simulated=("fp8",),
        ),
        _built_in(
            "openvino",
            "OpenVINO on the exported graph",
            *(NETWORKS, ONNX),
            packages=("openvino",),
            devices=("cpu",),
        ),
        _built_in(
            "tensorrt",
            "TensorRT on the exported graph, strongly typed",
            *(NETWORKS, ONNX),
            packages=("tensorrt",),
            devices=("cuda",),
        ),
        _built_in(
            "fused",
            "Triton kernels of this project, for encoders on a GPU",
            ENCODERS,
            packages=("torch", "triton"),
        ),
        _built_in("xgboost", "boosted trees by XGBoost", TREES, packages=("xgboost",)),
        _built_in(
            "nvforest",
            "boosted trees by RAPIDS nvForest, on a GPU or the CPU",
            TREES,
            packages=("nvforest",),
        ),
        _built_in(
            "tl2cgen",
            "boosted trees compiled to machine code",
            TREES,
            packages=("treelite", "tl2cgen"),
            devices=("cpu",),
        ),
    )
}


@cache
def plugin_backends() -> dict[str, Plugin[BackendInfo]]:
    """Backends of other distributions, by name: their entry points of the group `buzzer.backends`."""
    make = plugins.described(BackendInfo, lambda backend: backend.name)
    return plugins.load("buzzer.backends", make, {*BACKENDS, "all"})


def all_backends() -> dict[str, BackendInfo]:
    """All backends by name, those of buzzer first."""
    return BACKENDS | {name: plugin.value for name, plugin in plugin_backends().items()}


def info(name: str) -> BackendInfo:
    """A backend's descriptor. Raises UsageError with a did-you-mean for an unknown name."""
    known = BACKENDS if name in BACKENDS else all_backends()
    if name not in known:
        raise unknown_name("backend", name, known)
    return known[name]


def runs(name: str, kind: Kind) -> bool:
    """Whether a backend runs models of a kind."""
    return kind in info(name).runs


def simulates(name: str, precision: str) -> bool:
    """Whether a backend rounds to a precision and multiplies in FP32: the results are that precision's, the speed is not."""
    return precision in info(name).simulated


def split_backend(name: str) -> tuple[str, str]:
    """What networks run on and what boosted trees run on, in a pipeline that has both and is asked for one backend."""
    return ("torch_eager", name) if info(name).runs == {TREES} else (name, "xgboost")


def installed(name: str) -> bool:
    """Whether the packages of a backend are there; `load` also finds out whether they work, in seconds."""
    return all(importlib.util.find_spec(package) is not None for package in info(name).packages)


class Backend(Protocol):
    """What a backend's module offers."""

    PRECISIONS: tuple[str, ...]

    def prepare(self, plan: Plan) -> Session:
        """A session of the plan's model, on one of the devices in the backend's descriptor.

        Raises UnsupportedError for a model that it cannot run, or a device that this machine lacks.
        """
        ...


def load(name: str) -> Backend:
    """The backend's module. Raises UsageError for an unknown name, UnsupportedError where it is not installed."""
    module: Backend = plugins.resolve(info(name).module, f"backend {name}")
    if odd := [precision for precision in module.PRECISIONS if precision not in WEIGHT_BYTES]:
        raise UnsupportedError(
            f"backend {name} has a precision {odd[0]} that is not known", f"known: {', '.join(WEIGHT_BYTES)}"
        )
    return module


def prepare(
    model: Any,
    *,
    backend: str,
    example: Mapping[str, Array],
    outputs: Sequence[str] = ("output",),
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    precision: str = "fp32",
    device: str = "cpu",
    threads: int = 1,
) -> Session:
    """A session of `model` on `backend`.

    model: a torch.nn.Module whose forward takes the inputs of `example` by position and returns a tensor or a
        tuple of tensors, one a name in `outputs`; or the path of a model file (ONNX; trees for xgboost).
    example: input name -> array, of a batch of at least two rows where that axis may change; gives names, dtypes
        and sizes.
    dynamic: input name -> {axis: axis name} that may change from run to run; default: axis 0 of every input.

    Raises UsageError for unknown names, UnsupportedError where backend, precision or device cannot serve.
    """
    module = load(backend)
    if device not in (devices := info(backend).devices):
        raise UnsupportedError(
            f"backend {backend} does not run on {device}", f"it runs on {', '.join(devices)}"
        )
    source = Path(model) if isinstance(model, str | Path) else model
    offered = precisions(module, source)
    if precision not in offered:
        raise unknown_name(f"precision of {backend}", precision, offered)
    axes = {name: dict((dynamic or {}).get(name, {0: "batch"})) for name in example}
    if not isinstance(source, Path):
        check_quantised(source, precision)
    elif source.suffix == ".onnx":
        check_file(source, precision)
    return module.prepare(Plan(source, dict(example), tuple(outputs), axes, precision, device, threads))


def precisions(backend: Backend, model: Any) -> tuple[str, ...]:
    """The precisions that a backend has for a model. An ONNX file whose floats are not FP32 runs as it is, under its own type's name."""
    if not isinstance(model, Path) or model.suffix != ".onnx":
        return backend.PRECISIONS
    from buzzer.engine.infer.onnx import graphs

    own = graphs.precision(model)
    if own not in OWN_FLOATS:
        return backend.PRECISIONS
    return tuple(dict.fromkeys(own if name == "fp32" else name for name in backend.PRECISIONS))


def check_file(path: Path, precision: str) -> None:
    """Raises UnsupportedError unless the operators of an ONNX file are of the requested precision."""
    from buzzer.engine.infer.onnx import graphs

    own = graphs.precision(path)
    if own == "int8" and precision != "int8":
        raise UnsupportedError(f"the file is quantised and cannot run in {precision}", "use --precision int8")
    if own in OWN_FLOATS and precision != own:
        raise UnsupportedError(
            f"the file is in {own} and cannot run in {precision}", f"use --precision {own}"
        )
    if own != "int8" and precision in ("int8", "fp8"):
        raise UnsupportedError(
            f"the file is in float and cannot run in {precision}", "quantise it first, or use int8-dynamic"
        )


def check_quantised(model: Any, precision: str) -> None:
    """Raises UsageError unless the layers of a torch module are of the requested precision."""
    if not hasattr(model, "modules"):
        return
    from buzzer.engine import quant

    quantised = quant.precision_of(model)
    if quantised is None and precision in quant.PRECISIONS:
        raise UsageError(
            f"the model is in float, {precision} needs scales", "see buzzer.engine.quant.quantise"
        )
    if quantised not in (None, precision):
        raise UsageError(f"the model is quantised to {quantised}, {precision} was asked for")
