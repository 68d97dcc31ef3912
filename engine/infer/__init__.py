"""Inference sessions: one protocol, one file a backend.

with infer.prepare(model, backend="onnxruntime", example=batch) as session:
    outputs = session.run(batch)
"""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from buzzer.engine.infer.session import Array, Description, Plan, Session, check_batch
from buzzer.errors import UnsupportedError, UsageError, unknown_name

# Name of a backend and of its file -> packages that it imports: a plan is made without importing them.
BACKENDS: dict[str, tuple[str, ...]] = {
    "torch_eager": ("torch",),
    "torch_compile": ("torch",),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "fused": ("torch", "triton"),
    "xgboost": ("xgboost",),
    "nvforest": ("nvforest",),
    "tl2cgen": ("treelite", "tl2cgen"),
}

TREES = ("xgboost", "nvforest", "tl2cgen")  # run boosted trees; onnxruntime does too
OWN_FLOATS = ("fp16", "bf16", "fp64")  # types of an ONNX file that stay as they are
ENCODERS = ("fused",)  # run encoders that tell their parts only; the others run any network

__all__ = [
    "BACKENDS",
    "ENCODERS",
    "TREES",
    "Array",
    "Description",
    "Plan",
    "Session",
    "check_batch",
    "installed",
    "load",
    "precisions",
    "prepare",
    "split_backend",
]


def split_backend(backend: str) -> tuple[str, str]:
    """What networks run on and what boosted trees run on, in a pipeline that has both and is asked for one backend."""
    return ("torch_eager", backend) if backend in TREES else (backend, "xgboost")


def installed(name: str) -> bool:
    """Whether the packages of a backend are there; `load` also finds out whether they work, in seconds."""
    return all(importlib.util.find_spec(package) is not None for package in BACKENDS[name])


class Backend(Protocol):
    """What a backend's module offers."""

    PRECISIONS: tuple[str, ...]

    def prepare(self, plan: Plan) -> Session: ...


def load(name: str) -> Backend:
    """The backend's module. Raises UsageError for an unknown name, UnsupportedError where it is not installed."""
    if name not in BACKENDS:
        raise unknown_name("backend", name, BACKENDS)
    return cast(Backend, importlib.import_module(f"buzzer.engine.infer.backends.{name}"))


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
    """Make `model` ready to run on `backend`.

    model: a torch.nn.Module whose forward takes the inputs of `example` by position and returns a tensor or a
        tuple of tensors, one a name in `outputs`; or the path of a model file (ONNX; trees for xgboost).
    example: input name -> array, of a batch of at least two rows where that axis may change; gives names, dtypes
        and sizes.
    dynamic: input name -> {axis: axis name} that may change from run to run; default: axis 0 of every input.

    Raises UsageError for unknown names, UnsupportedError where backend, precision or device cannot serve.
    """
    module = load(backend)
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
    """What a backend offers for a model: an ONNX file of other floats than FP32 runs as it is, by the name of its own type."""
    if not isinstance(model, Path) or model.suffix != ".onnx":
        return backend.PRECISIONS
    from buzzer.engine.infer.onnx import graphs

    own = graphs.precision(model)
    if own not in OWN_FLOATS:
        return backend.PRECISIONS
    return tuple(dict.fromkeys(own if name == "fp32" else name for name in backend.PRECISIONS))


def check_file(path: Path, precision: str) -> None:
    """Raises UnsupportedError unless an ONNX file's own operators are of the precision that is asked for."""
    from buzzer.engine.infer.onnx import graphs

    own = graphs.precision(path)
    if own == "int8" and precision != "int8":
        raise UnsupportedError(
            f"the file is quantised, {precision} is not put into it", "use --precision int8"
        )
    if own in OWN_FLOATS and precision != own:
        raise UnsupportedError(
            f"the file is in {own}, {precision} is not put into it", f"use --precision {own}"
        )
    if own != "int8" and precision in ("int8", "fp8"):
        raise UnsupportedError(
            f"the file is in float, {precision} is not put into it", "quantise it first, or use int8-dynamic"
        )


def check_quantised(model: Any, precision: str) -> None:
    """Raises UsageError unless a torch module's layers are of the precision that is asked for."""
    if not hasattr(model, "modules"):
        return
    from buzzer.engine import quant

    found = quant.precision_of(model)
    if found is None and precision in quant.PRECISIONS:
        raise UsageError(
            f"the model is in float, {precision} needs scales", "see buzzer.engine.quant.quantise"
        )
    if found not in (None, precision):
        raise UsageError(f"the model is quantised to {found}, {precision} was asked for")
