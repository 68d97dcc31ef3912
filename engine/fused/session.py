"""The common part of the fused backend's sessions: one program, with its CUDA graph, for each bucket size of packed batches."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from buzzer.engine.fused.lowering import AnyLaunch, Program
from buzzer.engine.fused.packing import Tokens, bucket
from buzzer.engine.infer.base import Base
from buzzer.engine.infer.session import Array, Description, Plan
from buzzer.engine.kernels.jit import interpreted, triton
from buzzer.engine.kernels.timing import capture
from buzzer.engine.kernels.tune import Tuned

POISON = 255  # bytes: NaN in every float dtype


@dataclass
class Bucket:
    """A program with its captured CUDA graph (None in the interpreter), and the host buffer of its inputs."""

    program: Any  # lowering.Program or a subclass
    graph: Any  # torch.cuda.CUDAGraph
    host: Tensor

    def replay(self) -> None:
        """Start the kernels; does not wait for them."""
        if self.graph is None:
            self.program.run()
        else:
            self.graph.replay()


class FusedSession(Base):
    """A session whose `run` calls `stage`, `replay` and `fetch`. Subclasses define these, `packed`, `program` and `weight_bytes`."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._tuned = Tuned.load(plan.device)
        self._buckets: dict[tuple[int, int], Bucket] = {}
        self._kernels: int | None = None  # number of kernels of the last run

    def stage(self, batch: Mapping[str, Array]) -> Any:
        """Pack a batch and start its copy to the device."""
        raise NotImplementedError

    def replay(self, staged: Any) -> None:
        """Start the work on a staged batch; does not wait for it."""
        raise NotImplementedError

    def fetch(self, staged: Any) -> dict[str, Array]:
        """Wait for the outputs and copy them to the host."""
        raise NotImplementedError

    def program(self, tokens: int, sequences: int) -> Program:
        """The kernels for a number of tokens and sequences."""
        raise NotImplementedError

    def packed(self, batch: Mapping[str, Array]) -> Tokens:
        """The attended tokens of a batch, side by side."""
        raise NotImplementedError

    def weight_bytes(self) -> int:
        """Size of the weights on the device, in bytes."""
        raise NotImplementedError

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        staged = self.stage(batch)
        self.replay(staged)
        return self.fetch(staged)

    def launches(self, batch: Mapping[str, Array]) -> list[AnyLaunch]:
        """The kernels of a run on a batch, with their bytes and FLOPs."""
        launches: list[AnyLaunch] = self._bucket(self.packed(batch)).program.launches
        return launches

    def facts(self) -> Description:
        return replace(
            self.plain_facts(
                "fused", f"triton {triton.__version__}" + (" interpreter" if interpreted() else "")
            ),
            weight_bytes=self.weight_bytes(),
            kernels=self._kernels,
            graph=True if self.plan.device == "cuda" else None,
        )

    @torch.inference_mode()
    def poison(self) -> None:
        for each in self._buckets.values():
            each.program.output.view(torch.uint8).fill_(POISON)

    def close(self) -> None:
        self._buckets.clear()

    def _send(self, tokens: Tokens) -> Bucket:
        """Start the copy of a packed batch to the device. Returns the bucket that runs it."""
        target = self._bucket(tokens)
        self._kernels = len(target.program.launches)
        tokens.write(target.host.numpy(), target.program.inputs.tokens)
        target.program.inputs.all.copy_(target.host, non_blocking=True)
        return target

    def _bucket(self, tokens: Tokens) -> Bucket:
        size = bucket(len(tokens.places), 16), bucket(tokens.sequences, 1)
        if size not in self._buckets:
            self._buckets[size] = self._make(*size)
        return self._buckets[size]

    @torch.inference_mode()
    def _make(self, tokens: int, sequences: int) -> Bucket:
        program = self.program(tokens, sequences)
        on_gpu = self.plan.device == "cuda"
        host = torch.zeros_like(program.inputs.all, device="cpu", pin_memory=on_gpu)
        graph = capture(program.run) if on_gpu else None
        program.check()  # checks the warm-up run of `capture`
        return Bucket(program, graph, host)
