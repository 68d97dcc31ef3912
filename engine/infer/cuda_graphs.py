"""CUDA graphs of functions of tensors on static buffers. Shared by the backends that use torch's device memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from buzzer.engine.infer.base import Base
from buzzer.engine.infer.session import Array, Plan, as_arrays
from buzzer.errors import first_line

# Runs before the capture, as torch's notes on CUDA graphs require: in these, libraries choose kernels and allocate workspaces.
WARMUPS = 3

Function = Callable[[list[Tensor]], tuple[Tensor, ...]]


class Graphed:
    """A CUDA graph of a function, captured on inputs of the example's sizes.

    Raises RuntimeError if the function cannot be captured, for example because it waits for the device. The device stays usable.
    """

    @torch.inference_mode()
    def __init__(self, function: Function, example: Sequence[Tensor]) -> None:
        self.inputs = [x.clone() for x in example]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUPS):
                function(self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self._graph: Any = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self._graph):
                self.outputs = function(self.inputs)
        except RuntimeError:
            torch.cuda.synchronize()
            raise

    @torch.inference_mode()
    def take(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Copy inputs of the same sizes, from host or device, into the graph's buffers. Returns the buffers."""
        for buffer, tensor in zip(self.inputs, inputs, strict=True):
            buffer.copy_(tensor, non_blocking=True)
        return self.inputs

    def replay(self) -> tuple[Tensor, ...]:
        """Start the graph. Returns its outputs, which the next replay overwrites."""
        self._graph.replay()
        return self.outputs

    @torch.inference_mode()
    def poison(self) -> None:
        """Fill float outputs with NaN, so that a replay which does not write them is detected."""
        for output in self.outputs:
            if output.is_floating_point():
                output.fill_(torch.nan)


@dataclass
class Staged:
    """A batch on the device and, after its run, its outputs on the device."""

    inputs: list[Tensor]
    outputs: tuple[Tensor, ...] = ()


def fetched(staged: Staged, names: tuple[str, ...]) -> dict[str, Array]:
    """Wait for the outputs, and copy them to the host, floats as fp32."""
    floats = [t.float() if t.is_floating_point() else t for t in staged.outputs]
    return as_arrays([t.cpu().numpy() for t in floats], names)


class Replayed(Base):
    """A session that replays a CUDA graph if there is one, and calls the model otherwise. Subclasses define `stage` and `_call`."""

    _graph: Graphed | None

    def stage(self, batch: Mapping[str, Array]) -> Staged:
        """Copy a batch to the device, into the graph's buffers if there is a graph."""
        raise NotImplementedError

    def _call(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        """Start the model on inputs that are on the device; does not wait for it."""
        raise NotImplementedError

    @torch.inference_mode()
    def replay(self, staged: Staged) -> None:
        """Start the work on a staged batch; does not wait for it."""
        staged.outputs = self._graph.replay() if self._graph else self._call(staged.inputs)

    def fetch(self, staged: Staged) -> dict[str, Array]:
        """Wait for the outputs and copy them to the host."""
        return fetched(staged, self.plan.outputs)

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        staged = self.stage(batch)
        self.replay(staged)
        return self.fetch(staged)

    def poison(self) -> None:
        if self._graph is not None:
            self._graph.poison()


def graph_or_note(
    function: Function, example: Sequence[Tensor], plan: Plan, backend: str
) -> tuple[Graphed | None, tuple[str, ...]]:
    """The function's CUDA graph if all axes are fixed and it can be captured; else None and a note for the record with the reason."""
    launches = "its device time includes kernel launches"
    if any(plan.dynamic.values()):
        return None, (
            f"{backend} {plan.precision} ran without a CUDA graph, because its axes are not fixed: {launches}",
        )
    try:
        return Graphed(function, example), ()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        note = f"{backend} {plan.precision} ran without a CUDA graph, because it could not be captured"
        return None, (f"{note} ({first_line(error)}): {launches}",)
