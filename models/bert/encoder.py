"""A BERT encoder in plain torch (Devlin et al., NAACL 2019) that takes Hugging Face weights as they are."""

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buzzer.errors import DataError, UnsupportedError, UsageError, unknown_name


@dataclass(frozen=True)
class BertConfig:
    """The keys of a Hugging Face config.json that fix the shapes."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> "BertConfig":
        """Raises DataError for a missing key, UnsupportedError for an encoder that is no plain BERT."""
        missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in keys]
        if missing:
            raise DataError(f"not a BERT configuration: no {', '.join(missing)}")
        kind = keys.get("model_type", "bert")
        if kind != "bert" or keys.get("position_embedding_type", "absolute") != "absolute":
            raise UnsupportedError(f"a model of type {kind} is not a BERT with absolute positions")
        config = cls(**{field.name: keys[field.name] for field in fields(cls) if field.name in keys})
        if config.hidden_act not in ACTIVATIONS:
            raise UnsupportedError(f"activation {config.hidden_act}", f"known: {', '.join(ACTIVATIONS)}")
        return config


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "gelu_new": gelu_tanh, "relu": F.relu}

# Shapes of published models: Devlin et al. 2019, table of section 3; all-MiniLM-L6-v2's model card.
SPECS = {
    "bert-base": BertConfig(30522, 768, 12, 12, 3072),
    "bert-large": BertConfig(30522, 1024, 24, 16, 4096),
    "minilm-l6": BertConfig(30522, 384, 6, 12, 1536),
}


def spec(name: str) -> BertConfig:
    """The shape of a published model."""
    if name not in SPECS:
        raise unknown_name("BERT shape", name, SPECS)
    return SPECS[name]


class Layer(nn.Module):
    """Self-attention and feed-forward, each with a residual and a norm after it."""

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
        """x [batch, sequence, dim]; mask [batch, 1, 1 or sequence, sequence], 0 where attended, else very negative."""
        q, k, v = (self._split(linear(x)) for linear in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.attention_norm(x + self.out(attended.transpose(1, 2).flatten(2)))
        return self.norm(x + self.down(self.activation(self.up(x))))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Bert(nn.Module):
    """Token ids to hidden states."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.types = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Ids, mask and token types int64 [batch, sequence] to [batch, sequence, hidden_size]."""
        at = torch.arange(input_ids.shape[1], device=input_ids.device)
        kinds = self.types.weight[0] if token_type_ids is None else self.types(token_type_ids)
        x = self.norm(self.words(input_ids) + self.positions(at) + kinds)
        return self.through(x, attention_mask[:, None, None])

    def through(self, x: Tensor, attended: Tensor) -> Tensor:
        """Embedded tokens through the layers; attended [batch, 1, 1 or sequence, sequence], 1 or 0."""
        mask = (1.0 - attended.to(x.dtype)) * torch.finfo(x.dtype).min
        for layer in self.layers:
            x = layer(x, mask)
        return x


class Classifier(nn.Module):
    """BERT's own head (Devlin et al., section 3): the first token through a tanh layer, then a linear one."""

    def __init__(self, bert: Bert, classes: int) -> None:
        super().__init__()
        self.bert = bert
        self.pooler = nn.Linear(bert.config.hidden_size, bert.config.hidden_size)
        self.head = nn.Linear(bert.config.hidden_size, classes)

    def pool(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """[batch, hidden_size]."""
        return torch.tanh(self.pooler(self.bert(input_ids, attention_mask, token_type_ids)[:, 0]))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Logits [batch, classes]."""
        logits: Tensor = self.head(self.pool(input_ids, attention_mask, token_type_ids))
        return logits


class SentenceClassifier(nn.Module):
    """Mean over the tokens, L2 norm (as all-MiniLM-L6-v2 embeds sentences), and a linear head."""

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


def cut(bert: Bert, layers: int) -> Bert:
    """The encoder without its last layers, `layers` of them kept. Raises UsageError where it has not that many."""
    if not 1 <= layers <= len(bert.layers):
        raise UsageError(f"{layers} layers of an encoder that has {len(bert.layers)}")
    bert.layers = bert.layers[:layers]
    bert.config = replace(bert.config, num_hidden_layers=layers)
    return bert


def smooth_folds(bert: Bert) -> dict[str, list[str]]:
    """Where SmoothQuant's divisors can be folded in exactly: attention mixes tokens, not channels, so that a factor of
    a value channel is one of the output layer's input. BERT's norms feed a residual too, and cannot take them."""
    return {f"layers.{i}.value": [f"layers.{i}.out"] for i in range(len(bert.layers))}


# Hugging Face's name of a layer's part -> ours.
PARTS = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm",
}
EMBEDDINGS = {
    "word_embeddings": "words",
    "position_embeddings": "positions",
    "token_type_embeddings": "types",
    "LayerNorm": "norm",
}


HEADS = {"pooler.dense": "pooler", "classifier": "head"}


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's weights of a Hugging Face BERT under our names; heads are left out (see `heads`)."""
    out = {}
    for name, weight in weights.items():
        name = name.removeprefix("bert.")
        part, _, kind = name.rpartition(".")
        if part.startswith("encoder.layer."):
            _, _, number, rest = part.split(".", 3)
            out[f"layers.{number}.{PARTS[rest]}.{kind}"] = weight
        elif part.startswith("embeddings.") and kind != "position_ids":
            out[f"{EMBEDDINGS[part.removeprefix('embeddings.')]}.{kind}"] = weight
    return out


def heads(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pooler and classification head of a Hugging Face BERT under our names; empty where it has none."""
    out = {}
    for name, weight in weights.items():
        part, _, kind = name.removeprefix("bert.").rpartition(".")
        if part in HEADS:
            out[f"{HEADS[part]}.{kind}"] = weight
    return out


def read(folder: Path) -> dict[str, Tensor]:
    """All weights of a Hugging Face model folder: safetensors, whole or in shards, or pytorch_model.bin."""
    from safetensors.torch import load_file

    if files := sorted(folder.glob("model*.safetensors")):
        return {name: weight for file in files for name, weight in load_file(file).items()}
    if not (folder / "pytorch_model.bin").is_file():
        raise DataError(f"{folder}: no model.safetensors and no pytorch_model.bin")
    found: dict[str, Tensor] = torch.load(folder / "pytorch_model.bin", weights_only=True)
    return found


def config_of(folder: Path) -> BertConfig:
    """The configuration of a Hugging Face model folder. Raises DataError where it is missing or no JSON."""
    try:
        return BertConfig.of(json.loads((folder / "config.json").read_text()))
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{folder}: config.json cannot be read: {error}") from error


def fill(module: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Load weights into a module. Raises DataError where names or shapes are off."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(f"{folder}: weights do not fit config.json: {error}") from error


def load(folder: Path) -> Bert:
    """The encoder of a Hugging Face model folder."""
    bert = Bert(config_of(folder))
    fill(bert, renamed(read(folder)), folder)
    return bert.eval()


def load_classifier(folder: Path) -> Classifier | None:
    """The encoder with the folder's own pooler and classification head; None where it has no such head."""
    weights = read(folder)
    head = heads(weights)
    if not {"pooler.weight", "head.weight"} <= head.keys():
        return None
    model = Classifier(Bert(config_of(folder)), len(head["head.weight"]))
    fill(model, head | {f"bert.{name}": weight for name, weight in renamed(weights).items()}, folder)
    return model.eval()


def random(config: BertConfig, seed: int) -> Bert:
    """An encoder with BERT's own initial weights (normal, deviation 0.02; biases 0): for latency, not for accuracy."""
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
