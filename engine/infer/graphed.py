"""A CUDA graph of a function of tensors, on buffers that stay in place; what backends on torch's memory share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from buzzer.engine.infer.session import Array, Base, Plan, as_arrays

WARMUPS = 3  # runs before the capture, as torch's notes on CUDA graphs ask: libraries choose kernels and get their workspaces

Function = Callable[[list[Tensor]], tuple[Tensor, ...]]


class Graphed:
    """`function` captured on inputs of the example's sizes.

    Raises RuntimeError where the function cannot be captured (it waits for the device, say); the device is usable then.
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
        """Copy inputs of the same sizes, from host or device, into the graph's; these."""
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        return self.inputs

    def replay(self) -> tuple[Tensor, ...]:
        """Start the graph; its outputs, which the next replay overwrites."""
        self._graph.replay()
        return self.outputs

    @torch.inference_mode()
    def poison(self) -> None:
        """Fill float outputs with NaN, so that a replay which leaves them unwritten is found out."""
        for output in self.outputs:
            if output.is_floating_point():
                output.fill_(torch.nan)


@dataclass
class Staged:
    """A batch on the device, and after its run the outputs there."""

    inputs: list[Tensor]
    outputs: tuple[Tensor, ...] = ()


def fetched(staged: Staged, names: tuple[str, ...]) -> dict[str, Array]:
    """The outputs on the host, floats in fp32; waits for them."""
    floats = [t.float() if t.is_floating_point() else t for t in staged.outputs]
    return as_arrays([t.cpu().numpy() for t in floats], names)


class Replayed(Base):
    """What the sessions share that replay a graph where there is one, and call the model where there is none."""

    _graph: Graphed | None

    def stage(self, batch: Mapping[str, Array]) -> Staged:
        """Copy a batch to the device: into the graph's buffers where there is one."""
        raise NotImplementedError

    def _call(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        """Start the model on a batch; does not wait."""
        raise NotImplementedError

    @torch.inference_mode()
    def replay(self, staged: Staged) -> None:
        """Start the work on it; does not wait."""
        staged.outputs = self._graph.replay() if self._graph else self._call(staged.inputs)

    def fetch(self, staged: Staged) -> dict[str, Array]:
        """Wait, and bring the outputs to the host."""
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
    """The function's graph where all axes are fixed; None, and what the record must say, where it cannot be had."""
    launches = "its device time has the launches in it"
    if any(plan.dynamic.values()):
        return None, (
            f"{backend} {plan.precision} ran without a CUDA graph, for its axes are open: {launches}",
        )
    try:
        return Graphed(function, example), ()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        told = f"{backend} {plan.precision} ran without a CUDA graph, which could not be captured"
        return None, (f"{told} ({first_line(error)}): {launches}",)


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
