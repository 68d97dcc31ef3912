"""A bag of fold models as one inference module. It makes fewer passes over the scores of all cities than one module for each model."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buzzer.models.booking.features import FIRST_CITY
from buzzer.models.booking.networks import Encoder, Gru, Mlp, Trip, classes_of


class BagNetwork(nn.Module):
    """The most probable classes by the mean of networks of one type and size, which differ in their weights.

    As in the winning solution, MLPs average their logits. The others average their probabilities. All average their probabilities of a
    return to the first city.
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
            total, returns = self.mean_of_mlps(*inputs)
            going_on = (1 - returns).clamp(min=1e-6)  # not 0 where a return is certain
            best = add_returns(total, returns / going_on, cities).topk(self.n, dim=1)
            return best.values * going_on, best.indices
        best = self.mean_probabilities(*inputs).topk(self.n, dim=1)
        return best.values, best.indices

    def mean_of_mlps(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The softmax of the MLPs' mean logits, [rows, classes], and the mean of their probabilities of a return, [rows, 1]."""
        networks = cast(list[Mlp], self.networks)
        vectors = [network.vectors(*inputs) for network in networks]
        logits = torch.addmm(self.bias, torch.cat(vectors, dim=1), self.table.T)
        pairs = list(zip(networks, vectors, strict=True))
        points = torch.stack([network.trip.point(x) for network, x in pairs])
        returns = torch.stack([network.trip.returns(x, inputs[0]) for network, x in pairs])
        logits = add_bonus(logits, points.mean(dim=0), inputs[0])
        return logits.softmax(dim=1), returns.mean(dim=0).to(logits.dtype)

    def mean_probabilities(self, *inputs: Tensor) -> Tensor:
        """The mean of the networks' probabilities, [rows, classes]."""
        total: Tensor | None = None
        all_returns = []
        for i, network in enumerate(self.networks):
            if isinstance(network, Gru):
                p, vectors, share = mixed(network, self.recurrent[i](*inputs[:2]), *inputs)
            else:
                network = cast(Encoder, network)
                vectors = network.vectors(*inputs)
                p = scores(network.trip, vectors, inputs[0]).softmax(dim=1)
                share = p.new_ones(())
            returns = network.trip.returns(vectors, inputs[0]).to(p.dtype)
            all_returns.append(returns)
            share = (1 - returns) * (share / len(self.networks))
            total = p.mul_(share) if total is None else total.addcmul_(p, share)
        return add_returns(cast(Tensor, total), torch.stack(all_returns).mean(dim=0), inputs[0])


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


def mixed(network: Gru, hidden: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of a GRU's first stage and heads, as values [rows, classes] and the number by which they are multiplied; between them the
    trips' vectors, [rows, dim]."""
    x1, x2 = network.dense_layers(hidden, *inputs)
    vectors = network.find(x2)
    logits = scores(network.trip, vectors, inputs[0])
    best, heads = network.rescore(logits, x1, x2)
    weights = torch.sigmoid(network.mix)
    p = logits.softmax(dim=1)
    again = (weights[0] * heads[0] + weights[1] * heads[1]).to(p.dtype)
    return p.scatter_add_(1, best, again), vectors, (1 / (1 + weights.sum())).to(p.dtype)


def scores(trip: Trip, vectors: Tensor, cities: Tensor) -> Tensor:
    """What `Trip.scores` returns, without its copies."""
    logits = torch.addmm(trip.bias, vectors, trip.city.weight[FIRST_CITY:].T)
    return add_bonus(logits, trip.point(vectors), cities)


def add_bonus(logits: Tensor, points: Tensor, cities: Tensor) -> Tensor:
    """Add the bonus of each city of the trip, points [rows, lags + 1], to the city's logit, in place."""
    bonus = points * (cities >= FIRST_CITY)
    return logits.scatter_add_(1, classes_of(cities), bonus.to(logits.dtype))


def add_returns(total: Tensor, returns: Tensor, cities: Tensor) -> Tensor:
    """Add values [rows, 1] to those of the trips' first cities in total, [rows, classes], in place."""
    return total.scatter_add_(1, classes_of(cities[:, :1]), returns.to(total.dtype))
