"""Inference sessions: one protocol, one module for each backend.

with infer.prepare(model, backend="onnxruntime", example=batch) as session:
    outputs = session.run(batch)
"""

import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

from buzzer import plugins
from buzzer.engine.infer import native
from buzzer.engine.infer.cost import WEIGHT_BYTES
from buzzer.engine.infer.session import Array, Description, Plan, Session, check_batch
from buzzer.engine.infer.several import Several, own_inputs
from buzzer.engine.infer.stored import Stored, open_axes, store
from buzzer.errors import UnsupportedError, UsageError, unknown_name
from buzzer.plugins import Plugin

Kind = Literal["networks", "encoders", "trees", "onnx"]  # kind of model
NETWORKS: Kind = "networks"  # torch modules of any kind
ENCODERS: Kind = "encoders"  # torch modules that describe their layers (`buzzer.engine.fused.spec`)
TREES: Kind = "trees"  # boosted trees in an XGBoost file
ONNX: Kind = "onnx"  # ONNX files
BOTH = ("cpu", "cuda")
PAIR = "+"  # in the name of a pair of backends
OWN_FLOATS = ("fp16", "bf16", "fp64")  # float types of an ONNX file that are never converted

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
    "Stored",
    "all_backends",
    "check",
    "check_batch",
    "info",
    "installed",
    "load",
    "parts",
    "plugin_backends",
    "precisions",
    "prepare",
    "runs",
    "simulates",
    "split_backend",
    "store",
]


@dataclass(frozen=True)
class BackendInfo:
    """The description of a backend, available before its libraries are imported. Its precisions are `load(name).PRECISIONS`."""

    name: str
    module: str  # module path; the module implements the protocol `Backend`
    summary: str  # one line for `buzzer list`
    runs: frozenset[Kind]
    packages: tuple[str, ...] = ()  # top-level modules that must be installed
    library: str = ""  # file in the folder of the first package; some of the package's distributions lack it
    devices: tuple[str, ...] = BOTH  # the one that it is meant for first
    simulated: tuple[str, ...] = ()  # precisions that it simulates: their results, but the speed of FP32
    takes_gpu_arrays: bool = False  # whether `Session.run` accepts arrays on the GPU
    needs_compiler: bool = False  # whether it needs a C compiler
    compiles: bool = False  # whether it keeps compiled code between processes (`buzzer.caches.COMPILED`)
    several: bool = False  # whether one session runs several models on the same inputs; see `prepare`
    hint: str = "see the documentation of the backend's own package"  # how to install `packages`


def _built_in(name: str, summary: str, *kinds: Kind, **more: Any) -> BackendInfo:
    return BackendInfo(name, f"buzzer.engine.infer.backends.{name}", summary, frozenset(kinds), **more)


# Without plug-ins; `all_backends` includes them.
BACKENDS = {
    backend.name: backend
    for backend in (
        _built_in(
            "torch_eager",
            "PyTorch without a compiler, the reference",
            NETWORKS,
            packages=("torch",),
            hint="pip install 'buzzer[run]'",
            simulated=("int8", "fp8"),
            takes_gpu_arrays=True,
        ),
        _built_in(
            "torch_compile",
            "PyTorch with torch.compile",
            NETWORKS,
            packages=("torch",),
            hint="pip install 'buzzer[run]'",
            takes_gpu_arrays=True,
            compiles=True,
        ),
        _built_in(
            "onnxruntime",
            "ONNX Runtime on the exported graph",
            *(NETWORKS, TREES, ONNX),
            packages=("onnxruntime",),
            hint="pip install 'buzzer[run]'",
            simulated=("fp8",),
        ),
        _built_in(
            "onnxruntime_cuda",
            "ONNX Runtime's CUDA provider on device memory",
            *(NETWORKS, ONNX),
            packages=("onnxruntime",),
            library="capi/libonnxruntime_providers_cuda.so",
            hint="pip install onnxruntime-gpu, in place of onnxruntime",
            devices=("cuda",),
        ),
        _built_in(
            "onnxruntime_tensorrt",
            "ONNX Runtime's TensorRT provider on device memory",
            *(NETWORKS, ONNX),
            packages=("onnxruntime",),
            library="capi/libonnxruntime_providers_tensorrt.so",
            hint="pip install onnxruntime-gpu, in place of onnxruntime",
            devices=("cuda",),
        ),
        _built_in(
            "openvino",
            "OpenVINO on the exported graph",
            *(NETWORKS, ONNX),
            packages=("openvino",),
            hint="pip install 'buzzer[cpu-fast]'",
            devices=("cpu",),
        ),
        _built_in(
            "tensorrt",
            "TensorRT on the exported graph, strongly typed",
            *(NETWORKS, ONNX),
            packages=("tensorrt",),
            hint="pip install 'buzzer[tensorrt]'",
            devices=("cuda",),
        ),
        _built_in(
            "fused",
            "this project's Triton kernels, for encoders on a GPU",
            ENCODERS,
            packages=("torch", "triton"),
            devices=("cuda", "cpu"),  # on a CPU only in Triton's interpreter
            hint="pip install 'buzzer[kernels]'",
        ),
        _built_in(
            "xgboost",
            "boosted trees in XGBoost",
            TREES,
            packages=("xgboost",),
            hint="pip install 'buzzer[run]'",
        ),
        _built_in(
            "forest",
            "boosted trees in this project's C code, compiled at first use",
            TREES,
            packages=("xgboost",),
            hint="pip install 'buzzer[run]'",
            devices=("cpu",),
            needs_compiler=True,
            compiles=True,
            several=True,
        ),
        _built_in(
            "nvforest",
            "boosted trees in RAPIDS nvForest, on a GPU or the CPU",
            TREES,
            packages=("nvforest",),
            hint="pip install 'buzzer[gpu]'",
        ),
        _built_in(
            "tl2cgen",
            "boosted trees compiled to machine code",
            TREES,
            packages=("treelite", "tl2cgen"),
            hint="pip install 'buzzer[trees]'",
            devices=("cpu",),
            needs_compiler=True,
        ),
    )
}


@cache
def plugin_backends() -> dict[str, Plugin[BackendInfo]]:
    """Backends of other distributions, by name. They are entry points of the group `buzzer.backends`."""
    make = plugins.described(BackendInfo, lambda backend: backend.name)
    return plugins.load("buzzer.backends", make, {*BACKENDS, "all"})


def all_backends() -> dict[str, BackendInfo]:
    """All backends by name: the built-in ones, then those of plug-ins."""
    return BACKENDS | {name: plugin.value for name, plugin in plugin_backends().items()}


def info(name: str) -> BackendInfo:
    """A backend's descriptor. Raises UsageError with a did-you-mean for an unknown name."""
    backends = BACKENDS if name in BACKENDS else all_backends()
    if name not in backends:
        raise unknown_name("backend", name, backends)
    return backends[name]


def runs(name: str, kind: Kind) -> bool:
    """Whether a backend runs models of a kind."""
    return kind in info(name).runs


def simulates(name: str, precision: str) -> bool:
    """Whether a backend only simulates a precision: it rounds to it but multiplies in FP32, so the speed is that of FP32."""
    return precision in info(name).simulated


def parts(name: str) -> list[str]:
    """The backends in a name: one, or the two of a pair such as `onnxruntime+forest` (networks, boosted trees)."""
    return name.split(PAIR)


def split_backend(name: str) -> tuple[str, str]:
    """The backends (networks, boosted trees) of a pipeline that has both, if the user requests this backend or this pair.

    Raises UsageError for an unknown name, or a pair whose backends do not run these kinds of model.
    """
    if PAIR not in name:
        return ("torch_eager", name) if info(name).runs == {TREES} else (name, "xgboost")
    networks, *trees = parts(name)
    if len(trees) != 1 or not runs(networks, NETWORKS) or not runs(trees[0], TREES):
        raise UsageError(f"{name} is not a pair of backends", "networks+trees, as in onnxruntime+forest")
    return networks, trees[0]


def installed(name: str) -> bool:
    """Whether the packages of a backend, or of both backends of a pair, and the compiler are installed. `load` also imports the
    packages, which takes seconds."""
    return not any(missing(info(part)) for part in parts(name))


def missing(backend: BackendInfo) -> tuple[str, str] | None:
    """What this installation lacks for a backend, and how to install it; None if it has everything. Imports no library of the backend."""
    for package in backend.packages:
        if importlib.util.find_spec(package) is None:
            return f"the package {package}", backend.hint
    if lacks_library(backend):
        return f"{Path(backend.library).name}, which this {backend.packages[0]} lacks", backend.hint
    if backend.needs_compiler and not native.compiler_name():
        return "a C compiler", "install gcc or clang"
    return None


def require(backend: BackendInfo) -> None:
    """Raises UnsupportedError if this installation lacks something for a backend."""
    if lacks := missing(backend):
        what, hint = lacks
        raise UnsupportedError(f"backend {backend.name} needs {what}", hint)


def lacks_library(backend: BackendInfo) -> bool:
    """Whether an installed package lacks the file `library`."""
    spec = importlib.util.find_spec(backend.packages[0]) if backend.library else None
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return bool(folders) and not any((Path(folder) / backend.library).is_file() for folder in folders)


def check(name: str, device: str) -> None:
    """Raises UnsupportedError if a backend, or one of a pair, cannot run on a device of this machine. Imports no library of the backend.

    A backend that passes may still lack a device driver or a shared library.
    """
    for backend in (info(part) for part in parts(name)):
        require(backend)
        if device not in backend.devices:
            where = ", ".join(backend.devices)
            raise UnsupportedError(f"backend {backend.name} does not run on {device}", f"it runs on {where}")


class Backend(Protocol):
    """The functions and constants of a backend's module."""

    PRECISIONS: tuple[str, ...]

    def prepare(self, plan: Plan) -> Session:
        """A session of the plan's model, on one of the devices in the backend's descriptor.

        Raises UnsupportedError for a model that it cannot run, or a device that this machine lacks.
        """
        ...


def load(name: str) -> Backend:
    """The backend's module. Raises UsageError for an unknown name, UnsupportedError if it is not installed."""
    described = info(name)
    require(described)
    module: Backend = plugins.module(described.module, f"backend {name}")
    if unknown := [precision for precision in module.PRECISIONS if precision not in WEIGHT_BYTES]:
        raise UnsupportedError(
            f"backend {name} has an unknown precision: {unknown[0]}", f"known: {', '.join(WEIGHT_BYTES)}"
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
        tuple of tensors, one for each name in `outputs`; or a `Stored` one; or the path of a model file (ONNX, or XGBoost trees); or a list of models
        of boosted trees that read the same `features` and have one output each. `base_margin` is then [rows, models].
    example: a batch, input name -> array. It defines the names, dtypes and sizes of inputs. It needs at least two rows if
        axis 0 may change.
    dynamic: input name -> {axis: axis name} of the axes that may change from run to run; default: axis 0 of every input.

    Raises UsageError for unknown names, UnsupportedError if the backend does not support the model, precision or device.
    """
    if isinstance(model, list) and len(model) != len(outputs):
        raise UsageError(f"{len(model)} models, but {len(outputs)} names of outputs: {', '.join(outputs)}")
    if isinstance(model, list) and not info(backend).several:
        settings: Any = {"backend": backend, "precision": precision, "device": device, "threads": threads}
        settings["dynamic"] = dynamic
        return one_by_one(model, example, outputs, settings)
    module = load(backend)
    if device not in (devices := info(backend).devices):
        raise UnsupportedError(
            f"backend {backend} does not run on {device}", f"it runs on {', '.join(devices)}"
        )
    own_graph = isinstance(model, Stored) and precision == "fp32" and runs(backend, ONNX)
    if isinstance(model, Stored):
        model = model.graph if own_graph else model.load()
    source = [as_source(each) for each in model] if isinstance(model, list) else as_source(model)
    offered = module.PRECISIONS if own_graph else precisions(module, source)
    if precision not in offered:
        raise unknown_name(f"precision of {backend}", precision, offered)
    axes = open_axes(example, dynamic)
    if not isinstance(source, Path):
        check_quantised(source, precision)
    elif source.suffix == ".onnx" and not own_graph:
        check_file(source, precision)
    return module.prepare(Plan(source, dict(example), tuple(outputs), axes, precision, device, threads))


def as_source(model: Any) -> Any:
    """The model, or the path that it names."""
    return Path(model) if isinstance(model, str) else model


def one_by_one(
    models: Sequence[Any], example: Mapping[str, Array], outputs: Sequence[str], settings: Mapping[str, Any]
) -> Several:
    """A session of several models on a backend whose sessions have one. If one cannot be made, those before it are closed."""
    with ExitStack() as opened:
        sessions = [
            opened.enter_context(
                prepare(model, example=own_inputs(example, i, len(models)), outputs=(name,), **settings)
            )
            for i, (model, name) in enumerate(zip(models, outputs, strict=True))
        ]
        opened.pop_all()
    return Several(sessions)


def precisions(backend: Backend, model: Any) -> tuple[str, ...]:
    """The precisions that a backend has for a model. An ONNX file whose floats are not FP32 runs unchanged, under its type's name."""
    if not isinstance(model, Path) or model.suffix != ".onnx":
        return backend.PRECISIONS
    from buzzer.engine.infer.onnx import graphs

    stored = graphs.precision(model)
    if stored not in OWN_FLOATS:
        return backend.PRECISIONS
    return tuple(dict.fromkeys(stored if name == "fp32" else name for name in backend.PRECISIONS))


def check_file(path: Path, precision: str) -> None:
    """Raises UnsupportedError unless the operators of an ONNX file have the requested precision."""
    from buzzer.engine.infer.onnx import graphs

    stored = graphs.precision(path)
    if stored == "int8" and precision != "int8":
        raise UnsupportedError(f"the file is quantised and cannot run in {precision}", "use --precision int8")
    if stored in OWN_FLOATS and precision != stored:
        raise UnsupportedError(
            f"the file is in {stored} and cannot run in {precision}", f"use --precision {stored}"
        )
    if stored != "int8" and precision in ("int8", "fp8"):
        raise UnsupportedError(
            f"the file is in float and cannot run in {precision}", "quantise it first, or use int8-dynamic"
        )


def check_quantised(model: Any, precision: str) -> None:
    """Raises UsageError unless the layers of a torch module have the requested precision."""
    if not hasattr(model, "modules"):
        return
    from buzzer.engine import quant

    quantised = quant.precision_of(model)
    if quantised is None and precision in quant.PRECISIONS:
        raise UsageError(
            f"the model is in float, but {precision} needs a quantised model",
            "see buzzer.engine.quant.quantise",
        )
    if quantised not in (None, precision):
        raise UsageError(f"the model is quantised to {quantised}, but the requested precision is {precision}")
