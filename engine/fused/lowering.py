"""Lowers an encoder to kernel launches on static buffers for a fixed number of tokens: seven launches per layer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from buzzer.engine.fused.cuda import CudaLayers
from buzzer.engine.fused.persistent import stack
from buzzer.engine.fused.weights import EncoderWeights, Layer, Linear
from buzzer.engine.kernels import library
from buzzer.engine.kernels.attention import self_attention
from buzzer.engine.kernels.cuda.launch import CudaLaunch
from buzzer.engine.kernels.cuda.layout import MOST_BLOCKS
from buzzer.engine.kernels.gemm import Quantiser, Tile, early_tile, linear
from buzzer.engine.kernels.jit import Launch
from buzzer.engine.kernels.persistent import Buffers, encoder_layers
from buzzer.engine.kernels.rows import Eight, Norm, embedding, pooling, residual_norm
from buzzer.errors import UnsupportedError

# Chooses the tile of a GEMM: (rows, columns, depth, dtype, whether K may be split) -> tile; see `kernels.tune.Tuned.tile`.
Choose = Callable[[int, int, int, torch.dtype, bool], Tile]

AnyLaunch = Launch | CudaLaunch | library.LibraryLaunch


class State(NamedTuple):
    """The states of tokens between kernels: as floats, and in eight bits if the next layer is quantised."""

    floats: Tensor
    eight: Eight | None


@dataclass
class Inputs:
    """The inputs of a run, in one buffer so that one copy transfers them.

    ids int32 [3, tokens]: word, position and type. spans int32 [2, tokens]: for each token, the first token of its sequence
    and the token after the last. starts int32 [sequences + 1]: the first token of each sequence, then the number of tokens.
    """

    tokens: int
    sequences: int
    device: str
    all: Tensor = field(init=False)

    def __post_init__(self) -> None:
        size = 5 * self.tokens + self.sequences + 1
        self.all = torch.zeros(size, dtype=torch.int32, device=self.device)
        self.ids = self.all[: 3 * self.tokens].view(3, self.tokens)
        self.spans = self.all[3 * self.tokens : 5 * self.tokens].view(2, self.tokens)
        self.starts = self.all[5 * self.tokens :]


@dataclass
class Program:
    """Kernel launches in order, and the buffers of inputs and outputs."""

    inputs: Inputs
    launches: list[AnyLaunch]
    output: Tensor  # [tokens, size] states, or float32 [sequences, values] of the pooled tail
    # int32 [3]: the counters of the persistent kernel's barriers; see `kernels.persistent.Buffers`
    counters: Tensor | None

    def run(self) -> None:
        """Start all kernels."""
        for launch in self.launches:
            launch()

    def check(self) -> None:
        """Raises RuntimeError if a grid barrier timed out because not all programs were resident."""
        if self.counters is not None and int(self.counters[2]):
            raise RuntimeError("a grid barrier of the persistent kernel timed out; the output is invalid")


def program_key(weights: EncoderWeights, tokens: int) -> str:
    """The key under which a program's mode is stored for a GPU."""
    dtype = str(weights.eight or weights.dtype).removeprefix("torch.")
    kind = "" if weights.distances is None else " distances"
    return f"{tokens} tokens {len(weights.layers)}x{weights.size} {dtype}{kind}"


MODES = ("plain", "pdl", "early", "persistent", "cuda", "cuda4", "multicast", "library")
CUDA = ("cuda", "cuda4", "multicast")  # modes whose products are CUDA C++
# Modes that need programmatic dependent launch: compute capability 9.0 or newer.
DEPENDENT = ("pdl", "early", *CUDA)


def runs_on(mode: str, capability: tuple[int, int]) -> bool:
    """Whether a GPU of this compute capability, (major, minor), can run the mode."""
    return mode not in DEPENDENT or capability >= (9, 0)


def multiprocessors(device: str) -> int:
    """The number of programs that are certainly resident at once: the number of the device's multiprocessors, 1 in the interpreter
    ("cpu"), and 132, as on an H100, for "meta"."""
    if device == "meta":
        return 132
    return 1 if device == "cpu" else torch.cuda.get_device_properties(0).multi_processor_count


class Lowering:
    """Makes the program of an encoder for a fixed number of tokens and sequences.

    mode: "plain": ordinary launches. "pdl": programmatic dependent launches. "early": as "pdl", and a GEMM loads its
    weights before it waits for the previous kernel if they fit. "persistent": all layers in one kernel. "cuda": products in
    CUDA C++, without kernels for norms; fp8 and at most 128 tokens. "cuda4": as "cuda", with at most four blocks in a
    cluster. "multicast": as "cuda", and blocks of a cluster share copies of activations. "library": as "plain", with
    products by NVIDIA's libraries where their tile says that they are faster.

    Raises UnsupportedError for an encoder that the mode cannot run.
    """

    def __init__(
        self, weights: EncoderWeights, tokens: int, sequences: int, choose: Choose, mode: str = "plain"
    ) -> None:
        if weights.distances is not None and mode in ("persistent", *CUDA):
            raise UnsupportedError(f"mode {mode} adds no terms to attention scores by distance")
        self.weights, self.tokens, self.choose, self.mode = weights, tokens, choose, mode
        self.pdl = mode in DEPENDENT
        self.inputs = Inputs(tokens, sequences, str(weights.tables[0].device))
        self.launches: list[AnyLaunch] = []
        self._buffers: dict[str, Tensor] = {}

    def program(self, pool: str, unit: bool) -> Program:
        """The program. pool: "none", "first" or "mean". unit: as in `EncoderSpec`."""
        weights = self.weights
        first, *others = [layer.qkv.quantiser for layer in weights.layers]
        last = weights.tail[0][0].quantiser if pool == "none" and weights.tail else None
        if last and self.mode in CUDA:
            raise UnsupportedError(f"mode {self.mode} writes no states in eight bits for a head of tokens")
        cuda = self._cuda_layers() if self.mode in CUDA else None
        at = State(*cuda.inputs(first)) if cuda else self._state("even", first)
        self._embed(at)
        if cuda:
            self.launches += cuda.launches()
            at = State(cuda.output, None)
        elif self.mode == "persistent" and last is None:  # it writes no states in eight bits
            self._add(self._all_layers())
        else:
            for number, (layer, follower) in enumerate(zip(weights.layers, [*others, last], strict=True)):
                at = self._layer(f"layer {number}", layer, at, follower)
        if self.mode == "library" and not any(isinstance(x, library.LibraryLaunch) for x in self.launches):
            raise UnsupportedError("no library was measured to be faster for a product of this shape")
        output = self._tail(at) if pool == "none" else self._pooled(at.floats, pool == "mean", unit)
        return Program(self.inputs, self.launches, output, self._buffers.get("counters"))

    def _embed(self, to: State) -> None:
        """The input of the layers: normed embeddings, or the projection of embeddings of another size."""
        weights, project = self.weights, self.weights.project
        table_size = weights.tables[0].shape[1]
        at = to if project is None else self._state("embedded", project.quantiser, table_size)
        self._add(embedding("embed", self.inputs.ids, weights.tables, weights.norm, *at, pdl=self.pdl))
        if project is None:
            return
        self._linear("project", at, project, to.floats)
        if to.eight:  # a product has one output
            self._linear("project eight", at, project, to.eight.out, quantiser=to.eight.quantiser)

    def _cuda_layers(self) -> CudaLayers:
        most = 4 if self.mode == "cuda4" else MOST_BLOCKS
        return CudaLayers(self.weights, self.tokens, self.inputs.spans, self.mode == "multicast", most)

    def _layer(self, name: str, layer: Layer, at: State, follower: Quantiser | None) -> State:
        size, heads = self.weights.size, self.weights.heads
        qkv = self._buffer("qkv", (self.tokens, 3 * size))
        self._linear(f"{name} qkv", at, layer.qkv, qkv)
        context = self._buffer("context", (self.tokens, size), layer.out.quantiser)
        spans, quantiser = self.inputs.spans, layer.out.quantiser
        distances = self.weights.distances
        self._add(
            self_attention(
                f"{name} attention", qkv, spans, context, heads, quantiser, distances=distances, pdl=self.pdl
            )
        )
        at = self._to_norm(
            f"{name} out", context, layer.out, at, layer.attention_norm, "odd", layer.up.quantiser
        )
        wide = self._buffer("up", (self.tokens, len(layer.up.weights.weight)), layer.down.quantiser)
        self._linear(f"{name} up", at, layer.up, wide, act=self.weights.act, quantiser=layer.down.quantiser)
        return self._to_norm(f"{name} down", wide, layer.down, at, layer.norm, "even", follower)

    def _all_layers(self) -> Launch:
        """The persistent kernel. It reads the state "even" and writes the last layer's state there."""
        layer, size, heads = self.weights.layers[0], self.weights.size, self.weights.heads
        kinds = ((layer.qkv, False), (layer.out, True), (layer.up, False), (layer.down, True))
        tiles = [
            self._tile(self.tokens, *x.weights.weight.shape, x.weights.weight.dtype, splits)  # type: ignore[call-arg]
            for x, splits in kinds
        ]
        even, odd = self._state("even", layer.qkv.quantiser), self._state("odd", layer.up.quantiser)
        eights = [state.eight.out if state.eight else None for state in (even, odd)]
        most = max(tiles[1].split, tiles[3].split)
        buffers = Buffers(
            even=even.floats,
            even8=eights[0],
            odd=odd.floats,
            odd8=eights[1],
            qkv=self._buffer("qkv", (self.tokens, 3 * size)),
            context=self._buffer("context", (self.tokens, size), layer.out.quantiser),
            parts=self._buffer("sums", (most, self.tokens, size), dtype=torch.float32),
            wide=self._buffer("up", (self.tokens, len(layer.up.weights.weight)), layer.down.quantiser),
            counters=self._buffer("counters", (3,), dtype=torch.int32),
        )
        stacked, programs = stack(self.weights), multiprocessors(self.inputs.device)
        cuts = (tiles[0], tiles[1], tiles[2], tiles[3])
        spans = self.inputs.spans
        return encoder_layers("layers", stacked, buffers, spans, heads, self.weights.act, cuts, programs)

    def _to_norm(
        self,
        name: str,
        x: Tensor,
        layer: Linear,
        residual: State,
        norm: Norm,
        slot: str,
        follower: Quantiser | None,
    ) -> State:
        """norm(linear(x) + residual) in two kernels. The first may write partial sums, which the second adds."""
        to = self._state(slot, follower)
        rows, (columns, depth) = self.tokens, layer.weights.weight.shape
        dtype = layer.weights.weight.dtype
        tile = self._tile(rows, columns, depth, dtype, True)
        if self.mode == "library" and tile.library:
            sums = self._sums(rows, columns, dtype)
            scale = layer.weights.scale if sums.dtype == torch.int32 else None
            self._add(library.product(name, x, layer.weights, sums))
            bias = layer.weights.bias
            self._add(residual_norm(f"{name} norm", sums, norm, *to, bias, residual.floats, scale=scale))
            return to
        shared = tile.split > 1  # then the norm adds bias and residual
        shape, kind = ((tile.split, rows, columns), torch.float32) if shared else ((rows, columns), None)
        parts = self._buffer(f"sum {tile.split}", shape, dtype=kind)
        kept, bias = residual.floats, layer.weights.bias
        self._add(
            linear(name, x, layer.weights, parts, tile, residual=None if shared else kept, pdl=self.pdl)
        )
        added = (bias, kept) if shared else (None, None)
        self._add(residual_norm(f"{name} norm", parts, norm, *to, *added, pdl=self.pdl))
        return to

    def _pooled(self, x: Tensor, mean: bool, unit: bool) -> Tensor:
        """Pooling and tail: float32 [sequences, values]."""
        tail, starts = self.weights.tail, self.inputs.starts
        quantiser = tail[0][0].quantiser if tail else None
        at = self._tail_buffer("pooled", (len(starts) - 1, self.weights.size), quantiser, last=not tail)
        self._add(pooling("pool", x, starts, at, quantiser, mean=mean, unit=unit, pdl=self.pdl))
        return self._tail(State(at, None))

    def _tail(self, at: State) -> Tensor:
        """The tail's output, float32 [rows, values]; without a tail, the rows of `at`. A row is a sequence, or a token without pooling."""
        tail = self.weights.tail
        quantisers = [layer.quantiser for layer, _ in tail] + [None]
        for number, (layer, act) in enumerate(tail):
            shape, last = (len(at.floats), len(layer.weights.weight)), number == len(tail) - 1
            to = self._tail_buffer(f"tail {number}", shape, quantisers[number + 1], last)
            self._linear(f"tail {number}", at, layer, to, act=act, quantiser=quantisers[number + 1])
            at = State(to, None)
        return at.floats

    def _tail_buffer(
        self, name: str, shape: tuple[int, int], quantiser: Quantiser | None, last: bool
    ) -> Tensor:
        return self._buffer(name, shape, quantiser, torch.float32 if last else None)

    def _linear(
        self,
        name: str,
        x: State,
        layer: Linear,
        out: Tensor,
        act: str = "none",
        quantiser: Quantiser | None = None,
    ) -> None:
        source = x.eight.out if layer.quantiser and x.eight else x.floats
        (rows, depth), dtype = layer.weights.weight.shape, layer.weights.weight.dtype
        tile = self._tile(len(source), rows, depth, dtype, False)
        if self.mode == "library" and tile.library:
            sums = self._sums(len(source), rows, dtype)
            self.launches += library.linear(
                name, source, layer.weights, out, sums, act=act, quantiser=quantiser
            )
            return
        self._add(linear(name, source, layer.weights, out, tile, act=act, quantiser=quantiser, pdl=self.pdl))

    def _tile(self, rows: int, columns: int, depth: int, dtype: torch.dtype, splits: bool) -> Tile:
        early = early_tile(rows, columns, depth, dtype, splits) if self.mode == "early" else None
        return early or self.choose(rows, columns, depth, dtype, splits)

    def _sums(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """The buffer of a library's product of operands in `dtype`."""
        kind = library.sums_dtype(dtype, self.weights.dtype)
        return self._buffer(f"product {rows} {columns} {kind}", (rows, columns), dtype=kind)

    def _state(self, slot: str, follower: Quantiser | None, size: int = 0) -> State:
        """The buffers of a state; size: values of a token, by default those of the layers. Two slots alternate: a norm reads its
        residual from one and writes to the other."""
        shape = (self.tokens, size or self.weights.size)
        floats = self._buffer(f"{slot} floats", shape)
        return State(
            floats, Eight(self._buffer(f"{slot} eight", shape, follower), follower) if follower else None
        )

    def _buffer(
        self,
        name: str,
        shape: tuple[int, ...],
        quantiser: Quantiser | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """The buffer with this name, created at first use. It has eight-bit values if there is a `quantiser`."""
        kind = dtype or (self.weights.eight if quantiser else self.weights.dtype)
        if name not in self._buffers:
            self._buffers[name] = torch.zeros(shape, dtype=kind, device=self.inputs.device)
        return self._buffers[name]

    def _add(self, launch: AnyLaunch) -> None:
        self.launches.append(launch)
