"""A BERT encoder in plain torch (Devlin et al., NAACL 2019), and functions that load Hugging Face model folders into it.

It also computes RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA, DistilBERT and MPNet, which differ from BERT in little (`families`).
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydantic.dataclasses
import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from buzzer.engine.fused.spec import EncoderLayer, EncoderSpec
from buzzer.errors import DataError, UnsupportedError, UsageError, unknown_name
from buzzer.models.bert import families, weight_files


@pydantic.dataclasses.dataclass(frozen=True, config={"strict": True, "allow_inf_nan": False})
class BertConfig:
    """The keys of a Hugging Face config.json that determine the shapes. Raises pydantic's ValidationError for invalid values."""

    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    max_position_embeddings: int = Field(default=512, gt=0)  # that a row can have
    type_vocab_size: int = Field(default=2, gt=0)
    layer_norm_eps: float = Field(default=1e-12, ge=0)
    hidden_act: str = "gelu"
    model_type: str = "bert"  # a name in `families.FAMILIES`
    first_position: int = Field(default=0, ge=0)  # row of the position table for the first token
    embedding_size: int = Field(default=0, ge=0)  # of the tables; 0 = hidden_size
    head: str = ""  # see `families.head_of`

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> "BertConfig":
        """The configuration from the keys of a config.json.

        Raises DataError for a missing or invalid key, UnsupportedError for another kind of model or a setting that is not supported.
        """
        try:
            config = cls(**families.settings(keys))
        except ValidationError as error:
            if missing := [str(e["loc"][0]) for e in error.errors() if e["type"] == "missing"]:
                raise DataError(f"not a configuration of an encoder: no {', '.join(missing)}") from error
            first = error.errors()[0]
            raise DataError(f"{first['loc'][0]} is {str(first['input'])[:80]!r}: {first['msg']}") from error
        if config.hidden_act not in ACTIVATIONS:
            raise UnsupportedError(f"activation {config.hidden_act[:80]}", f"known: {', '.join(ACTIVATIONS)}")
        problem = ""
        if config.hidden_size % config.num_attention_heads:
            problem = (
                f"hidden_size {config.hidden_size} does not divide into {config.num_attention_heads} heads"
            )
        if config.max_position_embeddings <= config.first_position:
            problem = f"no position after the first {config.first_position} rows of the table"
        if problem:
            raise DataError(f"not a configuration of an encoder: {problem}")
        usable = config.max_position_embeddings - config.first_position
        return replace(config, max_position_embeddings=usable)

    @property
    def table_size(self) -> int:
        """Size of the rows of the embedding tables."""
        return self.embedding_size or self.hidden_size


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "gelu_new": gelu_tanh, "relu": F.relu}
KERNELS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}  # name in ACTIVATIONS -> name in the fused backend
BUCKETS, FARTHEST = 32, 128  # of MPNet's relative positions

# Shapes of published models: Devlin et al. 2019, table of section 3; all-MiniLM-L6-v2's model card.
SPECS = {
    "bert-base": BertConfig(30522, 768, 12, 12, 3072),
    "bert-large": BertConfig(30522, 1024, 24, 16, 4096),
    "minilm-l6": BertConfig(30522, 384, 6, 12, 1536),
}


def spec(name: str) -> BertConfig:
    """The shape of a published model. Raises UsageError for an unknown name."""
    if name not in SPECS:
        raise unknown_name("BERT shape", name, SPECS)
    return SPECS[name]


class Layer(nn.Module):
    """A post-norm transformer layer: self-attention and feed-forward, each with a residual and then a norm."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.heads = config.num_attention_heads
        self.activation = ACTIVATIONS[config.hidden_act]
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.up, self.down = (
            nn.Linear(dim, config.intermediate_size),
            nn.Linear(config.intermediate_size, dim),
        )
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """The layer's output, of the shape of x, [batch, sequence, dim].

        mask: [batch, 1, 1 or sequence, sequence], 0 for tokens that are attended to, very negative for the others.
        """
        q, k, v = (self._split(linear(x)) for linear in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.attention_norm(x + self.out(attended.transpose(1, 2).flatten(2)))
        return self.norm(x + self.down(self.activation(self.up(x))))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def encoder_layer(self) -> EncoderLayer:
        """The parts, for the fused backend."""
        attention = (self.query, self.key, self.value, self.out, self.attention_norm)
        return EncoderLayer(*attention, self.up, self.down, self.norm)


class Bert(nn.Module):
    """The encoder, from token ids to hidden states."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        size, dim = config.table_size, config.hidden_size
        self.words = nn.Embedding(config.vocab_size, size)
        self.positions = nn.Embedding(config.max_position_embeddings, size)
        self.types = nn.Embedding(config.type_vocab_size, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.project = nn.Linear(size, dim) if size != dim else None  # ELECTRA
        heads = config.num_attention_heads
        self.relative = nn.Embedding(BUCKETS, heads) if config.model_type == "mpnet" else None
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Hidden states [batch, sequence, hidden_size] of ids, mask and token types, int64 [batch, sequence].

        Padding is at the end of a row.
        """
        at = torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.through(self.embedded(input_ids, at, token_type_ids), attention_mask[:, None, None])

    def embedded(self, input_ids: Tensor, positions: Tensor, kinds: Tensor | None = None) -> Tensor:
        """The input of the layers, [batch, sequence, hidden_size]. positions: int64 [sequence] or [batch, sequence]. kinds: token types."""
        types = self.types.weight[0] if kinds is None else self.types(kinds)
        x: Tensor = self.norm(self.words(input_ids) + self.positions(positions) + types)
        return x if self.project is None else self.project(x)

    def through(self, x: Tensor, attended: Tensor) -> Tensor:
        """The layers' output for embedded tokens. attended: 1 or 0, [batch, 1, 1 or sequence, sequence]."""
        mask = (1.0 - attended.to(x.dtype)) * torch.finfo(x.dtype).min
        if self.relative is not None:
            at = torch.arange(x.shape[1], device=x.device)
            near = self.relative(buckets(at[None, :] - at[:, None]))  # [sequence, sequence, heads]
            mask = mask + near.permute(2, 0, 1)[None]
        for layer in self.layers:
            x = layer(x, mask)
        return x

    def encoder_spec(self) -> EncoderSpec:
        """The parts, for the fused backend."""
        layers = [layer.encoder_layer() for layer in self.layers if isinstance(layer, Layer)]
        tables = (self.words.weight, self.positions.weight, self.types.weight)
        heads = self.config.num_attention_heads
        act = KERNELS[self.config.hidden_act]
        return EncoderSpec(
            *tables,
            self.norm,
            layers,
            heads,
            act,
            inputs=("ids", "mask", "types"),
            project=self.project,
            distances=self._distances(),
        )

    def _distances(self) -> Tensor | None:
        """MPNet's addends to attention scores, [heads, 2 * positions - 1], from the farthest later token to the farthest earlier one."""
        if self.relative is None:
            return None
        farthest = self.config.max_position_embeddings - 1
        ahead = torch.arange(farthest, -farthest - 1, -1, device=self.relative.weight.device)
        return self.relative(buckets(ahead)).T


def buckets(ahead: Tensor) -> Tensor:
    """MPNet's buckets of the distances to later tokens (negative to earlier ones), int64, as in transformers' MPNetEncoder.

    Half of the buckets are for later tokens. Of each half, half are for one distance each and half for ranges that grow
    logarithmically up to FARTHEST.
    """
    distance, half, exact = ahead.abs(), BUCKETS // 2, BUCKETS // 4
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(FARTHEST / exact)
    far = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + (ahead > 0).long() * half


class Classifier(nn.Module):
    """A head for sequences (Devlin et al., section 3): a layer on the first token, an activation, and a linear layer."""

    def __init__(self, bert: Bert, classes: int) -> None:
        super().__init__()
        self.bert = bert
        self.activation = families.FAMILIES[bert.config.model_type].activation
        self.pooler = nn.Linear(bert.config.hidden_size, bert.config.hidden_size)
        self.head = nn.Linear(bert.config.hidden_size, classes)

    def pool(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """The output of the first layer and its activation, [batch, hidden_size]."""
        first = self.pooler(self.bert(input_ids, attention_mask, token_type_ids)[:, 0])
        return torch.tanh(first) if self.activation == "tanh" else ACTIVATIONS[self.activation](first)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Logits [batch, classes]."""
        logits: Tensor = self.head(self.pool(input_ids, attention_mask, token_type_ids))
        return logits

    def encoder_spec(self) -> EncoderSpec:
        """The parts, for the fused backend."""
        tail = [(self.pooler, self.activation), (self.head, "none")]
        return replace(self.bert.encoder_spec(), pooling="first", tail=tail)


class TokenClassifier(nn.Module):
    """A linear layer on every token: classes of tokens or, with two outputs, the first and the last token of an answer."""

    def __init__(self, bert: Bert, classes: int) -> None:
        super().__init__()
        self.bert = bert
        self.head = nn.Linear(bert.config.hidden_size, classes)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Logits [batch, sequence, classes]."""
        logits: Tensor = self.head(self.bert(input_ids, attention_mask, token_type_ids))
        return logits

    def encoder_spec(self) -> EncoderSpec:
        """The parts, for the fused backend."""
        return replace(self.bert.encoder_spec(), tail=[(self.head, "none")])


class SentenceClassifier(nn.Module):
    """A linear head on sentence vectors. A sentence vector is the mean over the tokens, scaled to length 1, as in all-MiniLM-L6-v2."""

    def __init__(self, bert: Bert, classes: int) -> None:
        super().__init__()
        self.bert = bert
        self.head = nn.Linear(bert.config.hidden_size, classes)

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Sentence vectors of length 1: [batch, hidden_size]."""
        mask = attention_mask[:, :, None].to(torch.float32)
        total = (self.bert(input_ids, attention_mask) * mask).sum(dim=1)
        return F.normalize(total / mask.sum(dim=1).clamp(min=1.0), dim=1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits [batch, classes]."""
        logits: Tensor = self.head(self.embed(input_ids, attention_mask))
        return logits

    def encoder_spec(self) -> EncoderSpec:
        """The parts, for the fused backend."""
        spec = self.bert.encoder_spec()
        return replace(spec, inputs=("ids", "mask"), pooling="mean", unit=True, tail=[(self.head, "none")])


def cut(bert: Bert, layers: int) -> Bert:
    """The encoder with its first `layers` layers only. Raises UsageError if it has fewer."""
    if not 1 <= layers <= len(bert.layers):
        raise UsageError(f"layers={layers}: the encoder has {len(bert.layers)} layers")
    bert.layers = bert.layers[:layers]
    bert.config = replace(bert.config, num_hidden_layers=layers)
    return bert


def check_length(bert: Bert, longest: int) -> None:
    """Raises UsageError if sentences of `longest` tokens, padded to a multiple of 8, need more positions than the model has."""
    have = bert.config.max_position_embeddings
    if -(-longest // 8) * 8 > have:
        raise UsageError(
            f"longest is {longest}: the model has {have} positions", f"--set longest={have // 8 * 8}"
        )


def smooth_folds(bert: Bert) -> dict[str, list[str]]:
    """The layers that SmoothQuant's divisors can be folded into exactly -> the layers whose inputs they scale.

    Attention mixes tokens, not channels, so scaling a value channel scales the same input channel of the output layer. The output of
    BERT's norms is also a residual, so divisors cannot be folded into them.
    """
    return {f"layers.{i}.value": [f"layers.{i}.out"] for i in range(len(bert.layers))}


def config_of(folder: Path) -> BertConfig:
    """The configuration of a Hugging Face model folder. Raises DataError if it is missing or invalid."""
    file = folder / "config.json"
    try:
        keys = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder}: config.json cannot be read: {str(error)[:200]}") from error
    if not isinstance(keys, dict):
        raise DataError(f"{folder}: config.json is not an object")
    try:
        return BertConfig.of(keys)
    except DataError as error:
        raise DataError(f"{file}: {error.message}", error.hint) from error


def fill(
    build: Callable[[], nn.Module], config: BertConfig, weights: Mapping[str, Tensor], folder: Path
) -> Any:
    """The module with the weights, in evaluation mode.

    Raises DataError for wrong names or shapes, before memory is allocated for the sizes in config.json.
    """
    prefix = "bert." if any(name.startswith("bert.") for name in weights) else ""
    layers = {
        name.removeprefix(prefix).split(".")[1] for name in weights if name.startswith(f"{prefix}layers.")
    }
    sizes = {
        "words.weight": (config.vocab_size, config.table_size),
        "positions.weight": (config.max_position_embeddings, config.table_size),
        "types.weight": (config.type_vocab_size, config.table_size),
        "layers.0.up.weight": (config.intermediate_size, config.hidden_size),
    }
    problem = f"{folder}: weights do not match config.json"
    if len(layers) != config.num_hidden_layers:
        raise DataError(f"{problem}: {len(layers)} layers, num_hidden_layers is {config.num_hidden_layers}")
    for name, size in sizes.items():
        have = weights.get(prefix + name)
        if have is None or tuple(have.shape) != size:
            raise DataError(
                f"{problem}: {name} is {'missing' if have is None else tuple(have.shape)}, expected {size}"
            )
    module = build()
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(f"{problem}: {' '.join(str(error).split())[:300]}") from error
    return module.eval()


def load(folder: Path) -> Bert:
    """The encoder of a Hugging Face model folder."""
    return encoder_of(config_of(folder), weight_files.read(folder), folder)


def encoder_of(config: BertConfig, weights: Mapping[str, Tensor], folder: Path) -> Bert:
    """The encoder from a folder's configuration and weights."""
    bert: Bert = fill(lambda: Bert(config), config, renamed(weights, config), folder)
    return bert


def renamed(weights: Mapping[str, Tensor], config: BertConfig) -> dict[str, Tensor]:
    """The encoder's weights under the names of `Bert`."""
    return families.encoder_weights(weights, config.model_type, config.first_position)


def with_head(
    config: BertConfig, weights: Mapping[str, Tensor], folder: Path
) -> Classifier | TokenClassifier | None:
    """The encoder with its head for sequences, tokens or answers; None if it has none. Raises DataError if config.json names a head
    that is not among the weights."""
    head = families.head_weights(weights, config.model_type, config.head)
    if not head:
        if config.head:
            raise DataError(f"{folder}: no weights of the head that config.json names, {config.head}")
        return None
    kind = Classifier if "pooler.weight" in head else TokenClassifier
    classes = len(head["head.weight"])
    whole = head | {f"bert.{name}": weight for name, weight in renamed(weights, config).items()}
    model: Classifier | TokenClassifier = fill(lambda: kind(Bert(config), classes), config, whole, folder)
    return model


def random(config: BertConfig, seed: int) -> Bert:
    """An encoder with BERT's initial weights (normal, deviation 0.02; biases 0), for measuring latency."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with torch.device("meta"):
            bert = Bert(config)
        bert = bert.to_empty(device="cpu")
        for module in bert.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
            if isinstance(module, nn.Linear | nn.LayerNorm):
                nn.init.zeros_(module.bias)
    return bert.eval()
