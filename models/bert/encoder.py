"""A BERT encoder in plain torch (Devlin et al., NAACL 2019) that takes Hugging Face weights as they are."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buzzer.engine.infer.encoder import EncoderLayer, EncoderSpec


@dataclass(frozen=True)
class BertConfig:
    """The keys of a Hugging Face config.json that fix the shapes."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float

    @classmethod
    def of(cls, keys: dict[str, Any]) -> "BertConfig":
        return cls(**{field.name: keys[field.name] for field in fields(cls)})


class Layer(nn.Module):
    """Self-attention and feed-forward, each with a residual and a norm after it."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.heads = config.num_attention_heads
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.up, self.down = (
            nn.Linear(dim, config.intermediate_size),
            nn.Linear(config.intermediate_size, dim),
        )
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [batch, sequence, dim]; mask [batch, 1, 1, sequence], 0 where attended and a large negative where not."""
        q, k, v = (self._split(linear(x)) for linear in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.attention_norm(x + self.out(attended.transpose(1, 2).flatten(2)))
        return self.norm(x + self.down(F.gelu(self.up(x))))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def encoder_layer(self) -> EncoderLayer:
        """The parts, for the fused backend."""
        attention = (self.query, self.key, self.value, self.out, self.attention_norm)
        return EncoderLayer(*attention, self.up, self.down, self.norm)


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

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Ids and mask int64 [batch, sequence] to [batch, sequence, hidden_size]."""
        at = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.words(input_ids) + self.positions(at) + self.types.weight[0])
        mask = (1.0 - attention_mask[:, None, None].to(x.dtype)) * torch.finfo(torch.float32).min
        for layer in self.layers:
            x = layer(x, mask)
        return x

    def encoder_spec(self) -> EncoderSpec:
        """The parts, for the fused backend."""
        layers = [layer.encoder_layer() for layer in self.layers if isinstance(layer, Layer)]
        tables = (self.words.weight, self.positions.weight, self.types.weight)
        heads = self.config.num_attention_heads
        return EncoderSpec(*tables, self.norm, layers, heads, act="gelu", inputs=("ids", "mask"))


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

    def encoder_spec(self) -> EncoderSpec:
        """The parts, for the fused backend."""
        return replace(self.bert.encoder_spec(), pooling="mean", unit=True, tail=[(self.head, "none")])


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


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face BERT weights under our names; the pooler, which sentence vectors do not use, is left out."""
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


def load(folder: Path) -> Bert:
    """The encoder of a Hugging Face model folder (config.json, model.safetensors)."""
    import json

    from safetensors.torch import load_file

    bert = Bert(BertConfig.of(json.loads((folder / "config.json").read_text())))
    bert.load_state_dict(renamed(load_file(folder / "model.safetensors")))
    return bert.eval()
