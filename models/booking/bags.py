"""A bag of fold models as one inference module. It makes fewer passes over the scores of all cities than one module for each model."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from buzzer.models.booking.features import FIRST_CITY
from buzzer.models.booking.networks import Encoder, Gru, Mlp, Trip


class BagNetwork(nn.Module):
    """The most probable classes by the mean of networks of one type and size, which differ in their weights.

    As in the winning solution, MLPs average their logits. The others average their probabilities.
    """

    def __init__(self, networks: Sequence[Mlp | Gru | Encoder], n: int) -> None:
        super().__init__()
        self.networks, self.n = nn.ModuleList(networks), n
        if isinstance(networks[0], Mlp):
            # The sum over the networks is part of one matrix product.
            trips = [network.trip for network in networks]
            tables = torch.cat([trip.city.weight.detach()[FIRST_CITY:] for trip in trips], dim=1)
            self.register_buffer("table", tables / len(trips))
            self.register_buffer("bias", torch.stack([trip.bias.detach() for trip in trips]).mean(dim=0))

    def forward(
        self, cities: Tensor, countries: Tensor, context: Tensor, numbers: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Probabilities and classes, [rows, n] each, best first."""
        inputs = (cities, countries, context, numbers)
        if isinstance(self.networks[0], Mlp):
            total = self.mean_logits(*inputs).softmax(dim=1)
        else:
            total = self.mean_probabilities(*inputs)
        best = total.topk(self.n, dim=1)
        return best.values, best.indices

    def mean_logits(self, *inputs: Tensor) -> Tensor:
        """The mean of the MLPs' logits, [rows, classes]."""
        networks = cast(list[Mlp], self.networks)
        vectors = [network.vectors(*inputs) for network in networks]
        logits = torch.addmm(cast(Tensor, self.bias), torch.cat(vectors, dim=1), cast(Tensor, self.table).T)
        points = [network.trip.point(x) for network, x in zip(networks, vectors, strict=True)]
        return add_bonus(logits, torch.stack(points).mean(dim=0), inputs[0])

    def mean_probabilities(self, *inputs: Tensor) -> Tensor:
        """The mean of the networks' probabilities, [rows, classes]."""
        total: Tensor | None = None
        for network in self.networks:
            p, share = probabilities(cast(Gru | Encoder, network), *inputs)
            share = share / len(self.networks)
            total = p.mul_(share) if total is None else total.addcmul_(p, share)
        return cast(Tensor, total)


def probabilities(network: Gru | Encoder, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """What `forward` of the network returns, [rows, classes], as values and the number by which they are multiplied."""
    if isinstance(network, Encoder):
        p = scores(network.trip, network.vectors(*inputs), inputs[0]).softmax(dim=1)
        return p, p.new_ones(())
    x1, x2 = network.body(*inputs)
    logits = scores(network.trip, network.find(x2), inputs[0])
    best, heads = network.rescore(logits, x1, x2)
    weights = torch.sigmoid(network.mix)
    p = logits.softmax(dim=1)
    again = (weights[0] * heads[0] + weights[1] * heads[1]).to(p.dtype)
    return p.scatter_add_(1, best, again), (1 / (1 + weights.sum())).to(p.dtype)


def scores(trip: Trip, vectors: Tensor, cities: Tensor) -> Tensor:
    """What `Trip.scores` returns, without its copies."""
    logits = torch.addmm(trip.bias, vectors, trip.city.weight[FIRST_CITY:].T)
    return add_bonus(logits, trip.point(vectors), cities)


def add_bonus(logits: Tensor, points: Tensor, cities: Tensor) -> Tensor:
    """Add the bonus of each city of the trip, points [rows, lags + 1], to the city's logit, in place."""
    has_class = cities >= FIRST_CITY
    return logits.scatter_add_(1, (cities - FIRST_CITY) * has_class, (points * has_class).to(logits.dtype))
