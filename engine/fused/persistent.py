"""The weights of an encoder, stacked for the persistent kernel."""

from collections.abc import Sequence

import torch
from torch import Tensor

from buzzer.engine.fused.weights import EncoderWeights, Linear
from buzzer.engine.kernels.persistent import Stacked
from buzzer.errors import UnsupportedError


def stack(weights: EncoderWeights) -> Stacked:
    """Copies of all layers' weights, one tensor per kind with the layer as its first axis.

    Raises UnsupportedError if only some layers are quantised, or if norms differ in epsilon.
    """
    rows = [(x.qkv, x.out, x.up, x.down) for x in weights.layers]
    kinds = list(zip(*rows, strict=True))
    if len({(x.quantiser is None) for row in rows for x in row}) != 1:
        raise UnsupportedError("the persistent kernel needs layers that are all quantised or all in float")
    if len({n.eps for x in weights.layers for n in (x.attention_norm, x.norm)}) != 1:
        raise UnsupportedError("the persistent kernel needs the same epsilon in all norms")
    norms = [
        (x.attention_norm.gamma, x.attention_norm.beta, x.norm.gamma, x.norm.beta) for x in weights.layers
    ]
    matrices = [torch.stack([x.weights.weight for x in kind]) for kind in kinds]
    quantised = rows[0][0].quantiser is not None
    none: tuple[None, ...] = (None,) * 4
    return Stacked(
        weights=(matrices[0], matrices[1], matrices[2], matrices[3]),
        scales=tuple(vectors([x.weights.scale for x in kind]) for kind in kinds) if quantised else none,
        biases=tuple(vectors([x.weights.bias for x in kind]) for kind in kinds),
        inverses=tuple(inverses(kind) for kind in kinds) if quantised else none,
        zeros=zeros(rows, str(matrices[0].device)),
        norms=tuple(torch.stack(kind) for kind in zip(*norms, strict=True)),  # type: ignore[arg-type]
        eps=weights.layers[0].norm.eps,
    )


def vectors(layers: Sequence[Tensor | None]) -> Tensor:
    """The layers' vectors [N], stacked to [layers, N]. None of them may be None."""
    return torch.stack([x for x in layers if x is not None])


def inverses(kind: Sequence[Linear]) -> Tensor:
    """1 / scale of the inputs, float32 [layers + 1, K]. The last row is for the last layer's norm, which no GEMM follows."""
    rows = [x.quantiser.inverse for x in kind if x.quantiser is not None]
    return torch.stack([*rows, torch.ones_like(rows[0])])


def zeros(rows: Sequence[tuple[Linear, ...]], device: str) -> Tensor:
    """Zero points of the inputs, int32 [layers + 1, 4]; the last row as in `inverses`."""
    points = [[x.quantiser.zero if x.quantiser else 0 for x in row] for row in rows]
    return torch.tensor([*points, [0] * 4], dtype=torch.int32, device=device)
