"""TensorRT: runs ONNX files, and torch modules (exported here).

The network is strongly typed: it has the types of the graph. TensorRT 10 supports this, and TensorRT 11 requires it. So fp16
needs the graph of the module in half precision, and int8 needs a graph with the quantise nodes of buzzer.engine.quant.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tensorrt

from buzzer.engine.device import require_torch_cuda
from buzzer.engine.infer.cuda_graphs import Replayed, Staged, graph_or_note
from buzzer.engine.infer.onnx import graphs
from buzzer.engine.infer.onnx.export import export
from buzzer.engine.infer.session import Array, Description, Plan, check_batch
from buzzer.errors import DataError, UnsupportedError

PRECISIONS = ("fp32", "fp16", "int8", "fp8")


class TensorRt(Replayed):
    """Runs an engine for batches up to the example's size, on torch's device memory and stream.

    If all axes are fixed, a run replays a CUDA graph on static buffers.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        require_torch_cuda()
        self._logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        self._engine = tensorrt.Runtime(self._logger).deserialize_cuda_engine(build(plan, self._logger))
        self._context = self._engine.create_execution_context()
        self._inputs = self._names(tensorrt.TensorIOMode.INPUT)
        self._graph, self._notes = graph_or_note(self._call, self._sent(plan.example), plan, "TensorRT")

    def _sent(self, batch: Mapping[str, Array]) -> list[Any]:
        import torch

        return [torch.as_tensor(batch[name], device="cuda") for name in self._inputs]

    def _call(self, inputs: list[Any]) -> tuple[Any, ...]:
        """Start the engine on torch's current stream. Returns new output tensors."""
        import torch

        for name, tensor in zip(self._inputs, inputs, strict=True):
            self._context.set_input_shape(name, tuple(tensor.shape))
            self._context.set_tensor_address(name, tensor.data_ptr())
        outputs = tuple(self._outputs())
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT could not run the engine")
        return outputs

    def _outputs(self) -> list[Any]:
        """New output tensors. Float tensors are filled with NaN, except during a capture: `poison` fills a graph's outputs, so that
        the fill is not part of the timed work."""
        import torch

        outputs, captured = [], torch.cuda.is_current_stream_capturing()
        for name in self.plan.outputs:
            dtype = getattr(torch, tensorrt.nptype(self._engine.get_tensor_dtype(name)).__name__)
            shape = tuple(self._context.get_tensor_shape(name))
            tensor = torch.empty(shape, dtype=dtype, device="cuda")
            if dtype.is_floating_point and not captured:
                tensor.fill_(torch.nan)
            self._context.set_tensor_address(name, tensor.data_ptr())
            outputs.append(tensor)
        return outputs

    def stage(self, batch: Mapping[str, Array]) -> Staged:
        """Copy a batch to the device, into the graph's buffers if there is a graph."""
        check_batch(self.plan, batch)
        inputs = self._sent(batch)
        return Staged(self._graph.take(inputs) if self._graph else inputs)

    def _names(self, mode: Any) -> list[str]:
        names = (self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors))
        return [name for name in names if self._engine.get_tensor_mode(name) == mode]

    def facts(self) -> Description:
        return replace(
            self.plain_facts("tensorrt", tensorrt.__version__),
            kernels=self._engine.num_layers,
            graph=self._graph is not None,
            notes=self._notes,
        )


def graph(plan: Plan) -> bytes:
    """The ONNX graph, in half precision for fp16. Raises UnsupportedError for a file of another precision, DataError for a file that
    cannot be read."""
    if isinstance(plan.model, Path):
        stored = graphs.precision(plan.model)
        if plan.precision != stored:
            raise UnsupportedError(
                f"an ONNX file keeps its types: it is not converted to {plan.precision}",
                f"use --precision {stored}",
            )
        try:
            return plan.model.read_bytes()
        except OSError as error:
            raise DataError(f"{plan.model}: {error.strerror}") from error
    if plan.precision != "fp16":
        return export(plan)
    import copy

    return export(replace(plan, model=copy.deepcopy(plan.model).half()))


def build(plan: Plan, logger: Any) -> Any:
    """The serialised engine. Raises UnsupportedError for a graph that TensorRT cannot compile."""
    builder = tensorrt.Builder(logger)
    # Absent in TensorRT 11 and newer, where every network is strongly typed.
    flag = getattr(tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(graph(plan)):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise UnsupportedError(f"TensorRT cannot parse this graph: {reasons}")
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for i in range(network.num_inputs):
        name = network.get_input(i).name
        largest = plan.example[name].shape
        least = tuple(1 if axis in plan.dynamic[name] else size for axis, size in enumerate(largest))
        profile.set_shape(name, least, largest, largest)
    config.add_optimization_profile(profile)
    serialised = builder.build_serialized_network(network, config)
    if serialised is None:
        raise UnsupportedError("TensorRT could not build an engine from this graph")
    return serialised


def prepare(plan: Plan) -> TensorRt:
    """A session on the plan's torch module or ONNX file."""
    return TensorRt(plan)
