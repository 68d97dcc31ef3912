"""Sampled softmax: the cross-entropy over all scored codes, from a small sample of them that a whole batch shares.

The normaliser, a sum over all codes, is estimated by importance sampling (Bengio and Senécal, IEEE Transactions on Neural Networks 2008):
each sampled score is corrected by the log of the expected number of draws of its code (Jean et al., ACL 2015). Half of the sample is
uniform and half follows the codes' counts, and a code's expected number of draws adds up both halves (the balance heuristic of Veach and
Guibas, SIGGRAPH 1995). So no code's weight exceeds twice the uniform one, and the uniform half also estimates the mean score that label
smoothing needs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from buzzer.engine.frames.base import FIRST_CODE, Array


@dataclass(frozen=True)
class Sample:
    """Codes that were drawn with replacement."""

    codes: Tensor  # int64 [n]; the uniform draws come first
    log_expected: Tensor  # float32 [n]: log of the expected number of draws of the code
    uniform: int  # number of uniform draws

    def to(self, device: str) -> "Sample":
        """The sample on a device."""
        return Sample(self.codes.to(device), self.log_expected.to(device), self.uniform)


class Sampler:
    """Draws samples of `n` codes from torch's default generator."""

    def __init__(self, counts: Array, n: int) -> None:
        """counts: int64 [scored], by code; the codes below FIRST_CODE are never drawn. n: at least 2."""
        seen = torch.from_numpy(counts[FIRST_CODE:]).double() + 1
        self.uniform, self.by_count = n - n // 2, n // 2
        share = seen / seen.sum()
        self.ends = share.cumsum(0)
        self.log_expected = (self.uniform / len(seen) + self.by_count * share).log().float()

    def draw(self) -> Sample:
        """A new sample, on the CPU."""
        some = torch.randint(len(self.ends), (self.uniform,))
        frequent = torch.searchsorted(self.ends, torch.rand(self.by_count, dtype=torch.float64), right=True)
        drawn = torch.cat([some, frequent.clamp(max=len(self.ends) - 1)])
        return Sample(drawn + FIRST_CODE, self.log_expected[drawn], self.uniform)


def cross_entropy(own: Tensor, sampled: Tensor, target: Tensor, sample: Sample, smoothing: float) -> Tensor:
    """The estimate of the mean cross-entropy with label smoothing, log Z - (1 - smoothing) * own - smoothing * mean score.

    own: scores [rows] of the targets; sampled: scores [rows, n] of the sample; target: codes, int64 [rows]. The target itself is exact
    in Z, so draws of it are left out.
    """
    terms = (sampled - sample.log_expected).masked_fill(target[:, None] == sample.codes, -torch.inf)
    log_z = torch.cat([own[:, None], terms], dim=1).logsumexp(dim=1)
    mean = sampled[:, : sample.uniform].mean(dim=1) if smoothing else 0.0
    return (log_z - (1 - smoothing) * own - smoothing * mean).mean()
