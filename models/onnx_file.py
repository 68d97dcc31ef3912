"""Any ONNX file as a bench target: inputs are inferred from its graph."""

from pathlib import Path

import numpy as np

from buzzer.engine.infer.onnx import graphs
from buzzer.engine.infer.onnx.graphs import Input, Signature
from buzzer.engine.infer.session import as_array, as_feed
from buzzer.errors import DataError, UnsupportedError, UsageError, first_line
from buzzer.models import inputs_file
from buzzer.models.api.bench import Batch, BenchModel, BenchSpec
from buzzer.models.inputs_file import Wanted

RANDOM = "random inputs of the graph's types"
NOTE = "reference outputs from ONNX Runtime without graph optimisations"


class OnnxFile:
    """params: `path` of the file."""

    def load(self, spec: BenchSpec) -> BenchModel:
        """The file with random inputs, or those of `spec.file`. Raises UsageError for rows of real lengths, DataError for an invalid file."""
        path = Path(spec.params["path"]).resolve()
        takes = signature(path, spec)
        batches, notes = inputs(takes, spec)
        facts = {
            "input_shapes": {name: list(array.shape) for name, array in batches[0].items()},
            "axes": {entry.name: list(entry.shape) for entry in takes.inputs},
            "file_precision": graphs.precision(path),
            "file_bytes": path.stat().st_size,
        }
        return BenchModel(
            path,
            takes.outputs,
            batches,
            Plain(path, takes).run,
            [spec.batch] * len(batches),
            source="generated" if spec.file is None else "official",
            notes=(*notes, NOTE),
            facts=facts,
        )

    def check(self, spec: BenchSpec) -> None:
        """Raises as `load` does, by the graph and the file with the inputs."""
        takes = signature(Path(spec.params["path"]).resolve(), spec)
        if inputs_file.is_small(spec.file):
            inputs(takes, spec)

    def identity(self, spec: BenchSpec) -> None:
        """None, because the weights may be in other files."""


def signature(path: Path, spec: BenchSpec) -> Signature:
    """The inputs and outputs of a file. Raises UsageError for rows of real lengths, and for another batch than a fixed one."""
    if spec.lengths != "fixed":
        raise UsageError("an ONNX file has no sentences: --lengths real is for encoders")
    takes = graphs.signature(path)
    check_rows(takes, spec.batch)
    return takes


def check_rows(takes: Signature, batch: int) -> None:
    """Raises UsageError if all inputs have the same fixed number of rows, and it is not `batch`."""
    sizes = {entry.shape[0] if entry.shape else None for entry in takes.inputs}
    rows = sizes.pop() if len(sizes) == 1 else None
    if isinstance(rows, int) and rows != batch:
        raise UsageError(
            f"--batch {batch}: the file's inputs have a fixed number of rows, {rows}", f"use --batch {rows}"
        )


def inputs(takes: Signature, spec: BenchSpec) -> tuple[list[Batch], tuple[str, ...]]:
    """The batches, random or from the file, and notes on them."""
    if spec.file is not None:
        found = inputs_file.given(spec, [wanted(entry) for entry in takes.inputs])
        return found.batches, found.notes
    rng = np.random.default_rng(spec.seed)
    drawn: list[Batch] = [
        {entry.name: graphs.sample(entry, spec.batch, spec.seq, rng) for entry in takes.inputs}
        for _ in range(spec.inputs)
    ]
    return [same_type(batch, drawn) for batch in drawn], (RANDOM,)


def same_type(batch: Batch, batches: list[Batch]) -> Batch:
    """A batch whose texts have the type of the longest text of all batches."""
    texts = [name for name, array in batch.items() if array.dtype.kind == "U"]
    longest = {
        name: max((b[name].dtype for b in batches), key=lambda dtype: dtype.itemsize) for name in texts
    }
    return {**batch, **{name: batch[name].astype(dtype) for name, dtype in longest.items()}}


def wanted(entry: Input) -> Wanted:
    """An input of a graph, for a file with inputs."""
    sizes = (size if isinstance(size, int) else None for size in entry.shape)
    return Wanted(entry.name, entry.dtype, tuple(sizes))


class Plain:
    """Runs a graph node by node, with all optimisations of ONNX Runtime off."""

    def __init__(self, path: Path, takes: Signature) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UnsupportedError("ONNX Runtime is not installed", "pip install 'buzzer[run]'") from error
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        self._names = takes.outputs
        self._path = path
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise DataError(f"{path}: not an ONNX model that can be loaded: {first_line(error)}") from error

    def run(self, batch: Batch) -> dict[str, np.ndarray]:
        """The outputs by name. Raises DataError if the graph cannot run on the batch."""
        try:
            outputs = self._session.run(list(self._names), {k: as_feed(array) for k, array in batch.items()})
        except Exception as error:
            message = first_line(error)
            hint = "the sizes of its dynamic axes may depend on each other: try another --batch or --seq; or give real --inputs"
            raise DataError(f"{self._path}: cannot run on these inputs: {message}", hint) from error
        return dict(zip(self._names, map(as_array, outputs), strict=True))


TARGET = OnnxFile()
