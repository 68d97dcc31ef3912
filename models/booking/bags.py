"""A bag of fold models as one inference module. It makes fewer passes over the scores of all cities than one module for each model."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buzzer.models.booking.features import FIRST_CITY
from buzzer.models.booking.networks import Encoder, Gru, Mlp, Trip


class BagNetwork(nn.Module):
    """The most probable classes by the mean of networks of one type and size, which differ in their weights.

    As in the winning solution, MLPs average their logits. The others average their probabilities.
    """

    table: Tensor
    bias: Tensor

    def __init__(self, networks: Sequence[Mlp | Gru | Encoder], n: int) -> None:
        super().__init__()
        self.networks, self.n = nn.ModuleList(networks), n
        self.recurrent = nn.ModuleList(TableGru(network) for network in networks if isinstance(network, Gru))
        if all(isinstance(network, Mlp) for network in networks):
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
        logits = torch.addmm(self.bias, torch.cat(vectors, dim=1), self.table.T)
        points = [network.trip.point(x) for network, x in zip(networks, vectors, strict=True)]
        return add_bonus(logits, torch.stack(points).mean(dim=0), inputs[0])

    def mean_probabilities(self, *inputs: Tensor) -> Tensor:
        """The mean of the networks' probabilities, [rows, classes]."""
        total: Tensor | None = None
        for i, network in enumerate(self.networks):
            if isinstance(network, Gru):
                p, share = mixed(network, self.recurrent[i](*inputs[:2]), *inputs)
            else:
                network = cast(Encoder, network)
                p = scores(network.trip, network.vectors(*inputs), inputs[0]).softmax(dim=1)
                share = p.new_ones(())
            share = share / len(self.networks)
            total = p.mul_(share) if total is None else total.addcmul_(p, share)
        return cast(Tensor, total)


class TableGru(nn.Module):
    """The recurrent layer of a GRU network. The products of its inputs are looked up: they depend only on the city or the country."""

    city: Tensor  # input products of each city code, float32 [codes, 3 * dim]
    country: Tensor
    weight: Tensor  # for the product of the state, [3 * dim, dim]
    bias: Tensor

    def __init__(self, network: Gru) -> None:
        super().__init__()
        trip = network.trip
        of_input, of_state, bias, bias_of_state = (p.detach() for p in network.gru.parameters())
        by_city, by_country = of_input.split(trip.sizes.dim, dim=1)
        self.register_buffer("weight", of_state)
        self.register_buffer("bias", bias_of_state)
        self.register_buffer("city", torch.addmm(bias, trip.city.weight.detach(), by_city.T))
        self.register_buffer("country", trip.country.weight.detach() @ by_country.T)

    def forward(self, cities: Tensor, countries: Tensor) -> Tensor:
        """The last state, [rows, dim], after the stays from the earliest to the latest. cities, countries: those of `features.Inputs`."""
        size = self.weight.shape[1]
        state = torch.zeros(1, size, dtype=self.weight.dtype, device=self.weight.device)
        for at in range(cities.shape[1] - 1, 0, -1):
            x = F.embedding(cities[:, at], self.city) + F.embedding(countries[:, at], self.country)
            h = F.linear(state, self.weight, self.bias)
            reset, keep = torch.sigmoid(x[:, : 2 * size] + h[:, : 2 * size]).chunk(2, dim=1)
            new = torch.tanh(x[:, 2 * size :] + reset * h[:, 2 * size :])
            state = new + keep * (state - new)
        return state


def mixed(network: Gru, hidden: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """What a GRU's `forward` returns, [rows, classes], as values and the number by which they are multiplied."""
    x1, x2 = network.dense_layers(hidden, *inputs)
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
