"""Session networks over the whole catalogue: GRU4Rec (Hidasi et al., ICLR 2016), and a transformer encoder trained causally or by
masking, the families of the winners' Transformer-XL and XLNet models (Moreira et al., SIGIR eCom 2021).

All read windows of a session's last events: items int64 and kinds int64 [rows, length], and numbers float32 [rows, length,
1 + dims] (log of the pause before the event, mean of the searches so far), left-padded with zeros. All end in the winners' head: the
network's vector of the session, times one plus the context (post-fusion, "latent cross"), times the table that embeds the products
(tied weights). `table` is that table, [codes, item_dim], as `Items` gives it.

The head scores the products, or products and pages (`Sizes.scored`), as the winners' did. In the latter case its context is the kind of
the event to predict, which is a product view after the window. `TopK` leaves the pages out.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buzzer.engine.frames.base import FIRST_CODE, Array
from buzzer.engine.fused.spec import StackSpec
from buzzer.errors import UnsupportedError
from buzzer.models.attention import Attention
from buzzer.models.sigir_ecom.next_item import sampled_softmax
from buzzer.models.sigir_ecom.next_item.sampled_softmax import Sample
from buzzer.models.sigir_ecom.next_item.sizes import Sizes
from buzzer.models.sigir_ecom.sessions.events import DETAIL, KINDS, PAGE

BLOCK = 16_384  # products that are scored at a time
HIDDEN = -1e9
PAGES_BEFORE, PRODUCTS_BEFORE = (
    (1.0, 0.3),
    (0.5, 0.25, 0.12, 0.06),
)  # weights of the counts' sources, latest first


class Items(nn.Module):
    """The table of products and pages. Each has a learned vector; products also have embeddings of category, price, description and
    image. So a product that occurs in no session still has a useful vector."""

    def __init__(self, sizes: Sizes, category: Tensor, price: Tensor, vectors: Tensor) -> None:
        super().__init__()
        dim = sizes.item_dim
        self.own = nn.Embedding(sizes.codes, dim)
        self.categories = nn.Embedding(sizes.categories, dim)
        self.prices = nn.Embedding(11, dim)
        self.project = nn.Linear(sizes.vectors, dim, bias=False)
        for table in (self.own, self.categories, self.prices):
            nn.init.normal_(table.weight, std=0.05)
        for name, values in (("category", category), ("price", price), ("vectors", vectors)):
            self.register_buffer(name, values)

    @torch.no_grad()
    def start_from(self, vectors: Tensor) -> None:
        """Set the learned vectors, [codes, item_dim], before training."""
        self.own.weight.copy_(vectors)

    def forward(self) -> Tensor:
        """The table, [codes, item_dim]. Row 0, which means no item, is zero."""
        content = self.categories(self.category) + self.prices(self.price) + self.project(self.vectors)
        table = self.own.weight
        padded = F.pad(content, (0, 0, 0, table.shape[0] - content.shape[0]))
        total = table + padded
        return torch.cat([torch.zeros_like(total[:1]), total[1:]])

    def rows(self, codes: Tensor) -> Tensor:
        """The table's rows of ascending codes, [rows, item_dim]. The learned vectors get sparse gradients."""
        category, price, vectors = (cast(Tensor, getattr(self, n)) for n in ("category", "price", "vectors"))
        at = codes[: int(torch.searchsorted(codes, len(category)))]
        content = self.categories(category[at]) + self.prices(price[at]) + self.project(vectors[at])
        own = F.embedding(codes, self.own.weight, sparse=True)
        return (own + F.pad(content, (0, 0, 0, len(codes) - len(at)))) * (codes > 0)[:, None].to(own.dtype)


@dataclass(frozen=True)
class Rows:
    """Rows of the table of items that a loss reads."""

    table: Tensor  # [rows, item_dim]
    codes: Tensor | None = None  # int64 [rows], ascending; None = row i belongs to code i

    def at(self, codes: Tensor) -> Tensor:
        """The row of each code."""
        return codes if self.codes is None else torch.searchsorted(self.codes, codes)


class Network(nn.Module):
    """The base class of all networks: inputs, context, head and loss. A subclass defines `encode`."""

    extra = 0  # positions that the network adds after the window

    def __init__(self, sizes: Sizes, category: Tensor, price: Tensor, vectors: Tensor) -> None:
        super().__init__()
        self.sizes = sizes
        self.items = Items(sizes, category, price, vectors)
        self.kind = nn.Embedding(KINDS, sizes.dim)
        self.number = nn.Linear(sizes.numbers, sizes.dim)
        self.norm, self.drop = nn.LayerNorm(sizes.dim), nn.Dropout(sizes.dropout)
        self.last = nn.Linear(sizes.dim, sizes.item_dim)
        self.context = nn.Linear(sizes.dim + sizes.numbers, sizes.item_dim)
        same = sizes.item_dim == sizes.dim
        self.narrow = nn.Identity() if same else nn.Linear(sizes.item_dim, sizes.dim)
        self.bias = nn.Parameter(torch.zeros(sizes.scored))
        nn.init.zeros_(self.context.weight)
        nn.init.normal_(self.kind.weight, std=0.05)

    def embed(self, table: Tensor, items: Tensor, kinds: Tensor, numbers: Tensor) -> Tensor:
        """The events as vectors, [rows, length, dim]."""
        x = self.narrow(F.embedding(items, table)) + self.kind(kinds) + self.number(numbers)
        return self.drop(self.norm(x)) * (kinds > 0)[:, :, None].to(x.dtype)

    def fuse(self, x: Tensor, kinds: Tensor, numbers: Tensor) -> Tensor:
        """Post-fusion (Beutel et al., WSDM 2018): x * (1 + context)."""
        query = torch.cat([self.kind(kinds), numbers], dim=-1)
        return self.last(x) * (1 + self.context(query))

    def logits(self, vectors: Tensor, table: Tensor) -> Tensor:
        """Scores [..., scored] of vectors [..., item_dim]. The codes of unseen and rare products have very negative scores."""
        scores = vectors @ table[: self.sizes.scored].T + self.bias
        return torch.cat(
            [torch.full_like(scores[..., :FIRST_CODE], HIDDEN), scores[..., FIRST_CODE:]], dim=-1
        )

    def encode(self, table: Tensor, items: Tensor, kinds: Tensor, numbers: Tensor) -> Tensor:
        """The session's state at each event, [rows, length + extra, dim]."""
        raise NotImplementedError

    def final(self, table: Tensor, items: Tensor, kinds: Tensor, numbers: Tensor) -> Tensor:
        """The vector from which products after the window are scored: [rows, item_dim]."""
        x = self.encode(table, items, kinds, numbers)[:, -1]
        return self.fuse(x, *self.query_context(kinds, numbers))

    def stack_spec(self) -> StackSpec:
        """The layers, for the fused backend. Raises UnsupportedError for a network without transformer layers."""
        raise UnsupportedError(
            f"fused runs transformer layers, but a {type(self).__name__.lower()} has none",
            "--set networks=[causal,masked]",
        )

    def vectors(self, table: Tensor, items: Tensor, kinds: Tensor, numbers: Tensor) -> Tensor:
        """The input of the layers, [rows, length + extra, dim]."""
        return self.embed(table, items, kinds, numbers)

    def query_context(self, kinds: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Kind and numbers that the head's context has after the window: [rows], [rows, numbers]."""
        last = kinds[:, -1]
        return (torch.full_like(last, DETAIL) if self.scores_pages else last), numbers[:, -1]

    @property
    def scores_pages(self) -> bool:
        """Whether the head scores pages too."""
        return self.sizes.scored > self.sizes.products

    def loss(
        self, target: Tensor, items: Tensor, kinds: Tensor, numbers: Tensor, sample: Sample | None = None
    ) -> Tensor:
        """Mean cross-entropy over the events that have a target. target: int64 [rows, length], 0 where there is none.

        sample: codes from which the normaliser is estimated; None = all.
        """
        rows = self.rows(sample, items, target)
        context = self.kind_of(target) if self.scores_pages else kinds
        x = self.fuse(self.encode(rows.table, rows.at(items), kinds, numbers), context, numbers)
        return self.cross_entropy(x, target, rows, sample)

    def kind_of(self, codes: Tensor) -> Tensor:
        """The kind of an event with each code: a view of a product or of a page."""
        return torch.where(codes < self.sizes.products, DETAIL, PAGE)

    def rows(self, sample: Sample | None, *codes: Tensor) -> Rows:
        """The rows of the table that a loss with this sample reads for events and targets `codes`, and that of code 0."""
        if sample is None:
            return Rows(self.items())
        parts = [torch.zeros_like(sample.codes[:1]), sample.codes, *(part.flatten() for part in codes)]
        unique = torch.cat(parts).unique()
        return Rows(self.items.rows(unique), unique)

    def cross_entropy(self, x: Tensor, target: Tensor, rows: Rows, sample: Sample | None) -> Tensor:
        """Mean cross-entropy of vectors [rows, length, item_dim] where `target` is a code that is scored."""
        has_target, smoothing = target >= FIRST_CODE, self.sizes.smoothing
        x, target = x[has_target], target[has_target]
        if sample is None:
            scores = x @ rows.table[FIRST_CODE : self.sizes.scored].T + self.bias[FIRST_CODE:]
            return F.cross_entropy(scores, target - FIRST_CODE, label_smoothing=smoothing)
        own = (x * rows.table[rows.at(target)]).sum(dim=1) + self.bias[target]
        sampled = x @ rows.table[rows.at(sample.codes)].T + self.bias[sample.codes]
        return sampled_softmax.cross_entropy(own, sampled, target, sample, smoothing)


class Gru(Network):
    """GRU4Rec with the inputs and the head of all networks."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        dim, layers = self.sizes.dim, self.sizes.layers
        self.gru = nn.GRU(dim, dim, num_layers=layers, batch_first=True)

    def encode(self, table: Tensor, items: Tensor, kinds: Tensor, numbers: Tensor) -> Tensor:
        """The GRU's states. Events are moved to the front of the window and back, so that padding before them has no effect."""
        length = kinds.shape[1]
        before = (kinds == 0).sum(dim=1, keepdim=True)
        steps = torch.arange(length, device=kinds.device)[None]
        forth, back = (steps + before) % length, (steps - before) % length
        x = self.embed(table, items, kinds, numbers)
        wide = (-1, -1, x.shape[2])
        out = self.gru(x.gather(1, forth[:, :, None].expand(*wide)))[0]
        return cast(Tensor, out.gather(1, back[:, :, None].expand(*wide)))


class Causal(Network):
    """A transformer in which each event attends to earlier events. Every event is a training example."""

    causal = True

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        s = self.sizes
        length = s.length + self.extra
        self.layers = nn.ModuleList(Attention(s.dim, s.heads, length, s.dropout) for _ in range(s.layers))
        self.end = nn.LayerNorm(s.dim)
        self.register_buffer("later", torch.triu(torch.full((length, length), HIDDEN), 1), persistent=False)

    def stack_spec(self) -> StackSpec:
        """The layers, for the fused backend."""
        layers = [layer.stack_layer() for layer in self.layers if isinstance(layer, Attention)]
        return StackSpec(layers, self.end, self.sizes.heads, "gelu", self.causal)

    def attend(self, x: Tensor, kinds: Tensor, hide: Tensor | float) -> Tensor:
        """The layers' output [rows, length, dim]. hide: very negative for pairs of events without attention, 0 for other pairs."""
        blocked = (kinds == 0)[:, None, None].to(x.dtype) * HIDDEN + hide
        for layer in self.layers:
            x = layer(x, blocked)
        return cast(Tensor, self.end(x))

    def encode(self, table: Tensor, items: Tensor, kinds: Tensor, numbers: Tensor) -> Tensor:
        """The state at each event, [rows, length, dim]."""
        length = kinds.shape[1]
        later = cast(Tensor, self.later)[:length, :length]
        return self.attend(self.embed(table, items, kinds, numbers), kinds, later)


class Masked(Causal):
    """A transformer in which events attend to each other, trained to predict masked products, like a masked language model.
    The next product is a masked product at the end. (The winners did not use XLNet's permutations either.)"""

    extra = 1
    causal = False

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.mask = nn.Parameter(torch.randn(self.sizes.dim) * 0.05)

    def with_next(self, kinds: Tensor, numbers: Tensor, kind: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Kinds and numbers with the next event appended. kind: int64 [rows, 1]; None = a product view."""
        next_kind = torch.full_like(kinds[:, :1], DETAIL) if kind is None else kind
        return torch.cat([kinds, next_kind], dim=1), torch.cat([numbers, numbers[:, -1:]], dim=1)

    def covered(self, table: Tensor, items: Tensor, kinds: Tensor, numbers: Tensor, hide: Tensor) -> Tensor:
        """The events and the next event as vectors, [rows, length + 1, dim]. Items are masked where `hide`, bool [rows, length + 1], is
        true."""
        padded = torch.cat([items, torch.zeros_like(items[:, :1])], dim=1)
        vectors = torch.where(hide[:, :, None], self.mask, self.narrow(F.embedding(padded, table)))
        return self.drop(self.norm(vectors + self.kind(kinds) + self.number(numbers)))

    def vectors(self, table: Tensor, items: Tensor, kinds: Tensor, numbers: Tensor) -> Tensor:
        """The events and the next event, whose item is masked, as vectors, [rows, length + 1, dim]."""
        kinds, numbers = self.with_next(kinds, numbers)
        hide = torch.cat([torch.zeros_like(items), torch.ones_like(items[:, :1])], dim=1) > 0
        return self.covered(table, items, kinds, numbers, hide)

    def query_context(self, kinds: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Kind and numbers of the next event, a product view: [rows], [rows, numbers]."""
        return torch.full_like(kinds[:, -1], DETAIL), numbers[:, -1]

    def encode(self, table: Tensor, items: Tensor, kinds: Tensor, numbers: Tensor) -> Tensor:
        """The state at each event and at the next event, [rows, length + 1, dim]."""
        vectors = self.vectors(table, items, kinds, numbers)
        return self.attend(vectors, self.with_next(kinds, numbers)[0], 0.0)

    def loss(
        self, target: Tensor, items: Tensor, kinds: Tensor, numbers: Tensor, sample: Sample | None = None
    ) -> Tensor:
        """Mean cross-entropy over the masked items that are scored. Only the last column of `target`, int64 [rows, length], the next
        item, is used."""
        rows = self.rows(sample, items, target[:, -1:])
        kinds, numbers = self.with_next(kinds, numbers, self.kind_of(target[:, -1:]))
        is_scored = (items >= FIRST_CODE) & (items < self.sizes.scored)
        chosen = is_scored & (torch.rand(items.shape, device=items.device) < self.sizes.mask)
        hide = torch.cat([chosen, torch.ones_like(chosen[:, :1])], dim=1)
        wanted = torch.cat([items * chosen, target[:, -1:]], dim=1)
        x = self.attend(self.covered(rows.table, rows.at(items), kinds, numbers, hide), kinds, 0.0)
        return self.cross_entropy(self.fuse(x, kinds, numbers), wanted, rows, sample)


NETWORKS: dict[str, type[Network]] = {"gru": Gru, "causal": Causal, "masked": Masked}


class TopK(nn.Module):
    """A trained network that returns the k most probable products and their probabilities among the k.

    It scores the catalogue a block at a time and keeps the best k so far: scores [rows, scored] are never in memory. If pages are scored,
    each page among the k is replaced by a frequent product with probability 0. k: at most the number of products.
    """

    def __init__(self, network: Network, k: int) -> None:
        super().__init__()
        self.network, self.k = network, k
        with torch.no_grad():
            self.register_buffer("table", network.eval().items().clone())

    def forward(self, items: Tensor, kinds: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and codes, [rows, k] each."""
        return self.best(self.network.final(cast(Tensor, self.table), items, kinds, numbers))

    def best(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and codes of the best products for vectors [rows, item_dim] of `final`, [rows, k] each."""
        table = cast(Tensor, self.table)
        sizes, bias = self.network.sizes, self.network.bias
        values, codes = None, None
        for start in range(FIRST_CODE, sizes.scored, BLOCK):
            end = min(start + BLOCK, sizes.scored)
            scores = vectors @ table[start:end].T + bias[start:end]
            best = scores.topk(min(self.k, end - start), dim=1)
            if values is None or codes is None:
                values, codes = best.values, best.indices + start
                continue
            both = torch.cat([values, best.values], dim=1)
            merged = both.topk(min(self.k, both.shape[1]), dim=1)
            codes = torch.cat([codes, best.indices + start], dim=1).gather(1, merged.indices)
            values = merged.values
        assert values is not None and codes is not None
        shares = values.softmax(dim=1)
        if not self.network.scores_pages:
            return shares, codes
        is_product = codes < sizes.products
        frequent = torch.arange(FIRST_CODE, FIRST_CODE + self.k, device=codes.device)
        return shares * is_product, torch.where(is_product, codes, frequent)

    # For the fused backend, whose kernels run the layers between `vectors` and `outputs`.

    def stack_spec(self) -> StackSpec:
        """The layers. Raises UnsupportedError for a network without transformer layers."""
        return self.network.stack_spec()

    def attended(self, items: Array, kinds: Array, numbers: Array) -> Array:
        """Which positions are attended to, bool [rows, length + extra]: the events and the positions that the network adds."""
        return np.pad(kinds > 0, ((0, 0), (0, self.network.extra)), constant_values=True)

    def vectors(self, items: Tensor, kinds: Tensor, numbers: Tensor) -> Tensor:
        """The input of the layers, [rows, length + extra, dim]."""
        return self.network.vectors(cast(Tensor, self.table), items, kinds, numbers)

    def outputs(self, states: Tensor, items: Tensor, kinds: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and codes, [rows, k] each, from the last states [rows, dim] of the layers."""
        return self.best(self.network.fuse(states, *self.network.query_context(kinds, numbers)))


class Counts(nn.Module):
    """The baseline without a network: products that followed the last pages, products that were looked at near the last products, by
    weighted shares, and the most popular products. A product may occur several times; `blend.best_of` adds its values up.

    next_, near: targets int64 and shares float32, [codes, k] each, of `counts.dense`.
    """

    def __init__(
        self, next_: tuple[Tensor, Tensor], near: tuple[Tensor, Tensor], products: int, popular: int
    ) -> None:
        super().__init__()
        for name, values in (("next", next_), ("near", near)):
            self.register_buffer(f"{name}_code", values[0])
            self.register_buffer(f"{name}_share", values[1])
        codes = torch.arange(
            FIRST_CODE, min(FIRST_CODE + popular, products)
        )  # codes are in descending order of count
        self.register_buffer("popular", codes)
        self.register_buffer("popular_share", 1e-6 / (1.0 + torch.arange(len(codes))))
        self.products = products

    def sources(self, items: Tensor, usable: Tensor, weights: tuple[float, ...]) -> tuple[Tensor, Tensor]:
        """The last items for which `usable` is true, and their weights, [rows, len(weights)] each, padded with 0."""
        place = (torch.arange(items.shape[1], device=items.device) + 1) * usable
        best = place.topk(len(weights), dim=1)
        present = best.values > 0
        weight = torch.tensor(weights, device=items.device) * present
        return items.gather(1, best.indices) * present, weight

    def forward(self, items: Tensor, kinds: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Values and codes of candidates, [rows, n] each."""
        is_product = (items >= FIRST_CODE) & (items < self.products)
        pages, page_weight = self.sources(items, items > 0, PAGES_BEFORE)
        near, near_weight = self.sources(items, is_product, PRODUCTS_BEFORE)
        rows = (items[:, :1] * 0).to(torch.float32)
        values = [
            (F.embedding(pages, cast(Tensor, self.next_share)) * page_weight[:, :, None]).flatten(1),
            (F.embedding(near, cast(Tensor, self.near_share)) * near_weight[:, :, None]).flatten(1),
            rows + cast(Tensor, self.popular_share),
        ]
        codes = [
            cast(Tensor, self.next_code)[pages].flatten(1),
            cast(Tensor, self.near_code)[near].flatten(1),
            items[:, :1] * 0 + cast(Tensor, self.popular),
        ]
        return torch.cat(values, dim=1), torch.cat(codes, dim=1)
