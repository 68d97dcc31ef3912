"""A BERT encoder in plain torch (Devlin et al., NAACL 2019), and functions that load Hugging Face model folders into it."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pydantic.dataclasses
import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from buzzer.engine.fused.spec import EncoderLayer, EncoderSpec
from buzzer.errors import DataError, UnsupportedError, UsageError, unknown_name


@pydantic.dataclasses.dataclass(frozen=True, config={"strict": True, "allow_inf_nan": False})
class BertConfig:
    """The keys of a Hugging Face config.json that determine the shapes. Raises pydantic's ValidationError for invalid values."""

    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    max_position_embeddings: int = Field(default=512, gt=0)
    type_vocab_size: int = Field(default=2, gt=0)
    layer_norm_eps: float = Field(default=1e-12, ge=0)
    hidden_act: str = "gelu"

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> "BertConfig":
        """The configuration from the keys of a config.json.

        Raises DataError for a missing or invalid key, UnsupportedError for an encoder other than BERT with absolute positions.
        """
        kind = keys.get("model_type", "bert")
        if kind != "bert" or keys.get("position_embedding_type", "absolute") != "absolute":
            raise UnsupportedError(
                f"a model of type {kind} is not a BERT with absolute positions",
                "export it to ONNX: `buzzer bench` runs ONNX files",
            )
        names = [field.name for field in fields(cls)]
        try:
            config = cls(**{name: keys[name] for name in names if name in keys})
        except ValidationError as error:
            if missing := [str(e["loc"][0]) for e in error.errors() if e["type"] == "missing"]:
                raise DataError(f"not a BERT configuration: no {', '.join(missing)}") from error
            first = error.errors()[0]
            raise DataError(f"{first['loc'][0]} is {str(first['input'])[:80]!r}: {first['msg']}") from error
        if config.hidden_act not in ACTIVATIONS:
            raise UnsupportedError(f"activation {config.hidden_act[:80]}", f"known: {', '.join(ACTIVATIONS)}")
        if config.hidden_size % config.num_attention_heads:
            problem = (
                f"hidden_size {config.hidden_size} does not divide into {config.num_attention_heads} heads"
            )
            raise DataError(f"not a BERT configuration: {problem}")
        return config


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "gelu_new": gelu_tanh, "relu": F.relu}
KERNELS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}  # name in ACTIVATIONS -> name in the fused backend

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
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.types = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Hidden states [batch, sequence, hidden_size] of ids, mask and token types, int64 [batch, sequence]."""
        at = torch.arange(input_ids.shape[1], device=input_ids.device)
        kinds = self.types.weight[0] if token_type_ids is None else self.types(token_type_ids)
        x = self.norm(self.words(input_ids) + self.positions(at) + kinds)
        return self.through(x, attention_mask[:, None, None])

    def through(self, x: Tensor, attended: Tensor) -> Tensor:
        """The layers' output for embedded tokens. attended: 1 or 0, [batch, 1, 1 or sequence, sequence]."""
        mask = (1.0 - attended.to(x.dtype)) * torch.finfo(x.dtype).min
        for layer in self.layers:
            x = layer(x, mask)
        return x

    def encoder_spec(self) -> EncoderSpec:
        """The parts, for the fused backend."""
        layers = [layer.encoder_layer() for layer in self.layers if isinstance(layer, Layer)]
        tables = (self.words.weight, self.positions.weight, self.types.weight)
        heads = self.config.num_attention_heads
        act = KERNELS[self.config.hidden_act]
        return EncoderSpec(*tables, self.norm, layers, heads, act, inputs=("ids", "mask", "types"))


class Classifier(nn.Module):
    """BERT's classification head (Devlin et al., section 3): a tanh layer on the first token, then a linear layer."""

    def __init__(self, bert: Bert, classes: int) -> None:
        super().__init__()
        self.bert = bert
        self.pooler = nn.Linear(bert.config.hidden_size, bert.config.hidden_size)
        self.head = nn.Linear(bert.config.hidden_size, classes)

    def pool(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """The output of the tanh layer, [batch, hidden_size]."""
        return torch.tanh(self.pooler(self.bert(input_ids, attention_mask, token_type_ids)[:, 0]))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Logits [batch, classes]."""
        logits: Tensor = self.head(self.pool(input_ids, attention_mask, token_type_ids))
        return logits

    def encoder_spec(self) -> EncoderSpec:
        """The parts, for the fused backend."""
        tail = [(self.pooler, "tanh"), (self.head, "none")]
        return replace(self.bert.encoder_spec(), pooling="first", tail=tail)


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


# Hugging Face's name of a part -> its name in `Bert`.
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
# Parameters of norms in folders that were converted from TensorFlow -> their newer names.
OLD = {"gamma": "weight", "beta": "bias"}


def named(name: str) -> str:
    """A weight's name in newer folders, without the prefix that models with a head have."""
    part, _, kind = name.removeprefix("bert.").rpartition(".")
    return f"{part}.{OLD[kind]}" if part.endswith("LayerNorm") and kind in OLD else f"{part}.{kind}"


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's weights of a Hugging Face BERT under the names of `Bert`, without heads.

    Raises DataError for a weight that BERT does not have.
    """
    out = {}
    for name, weight in weights.items():
        part, _, kind = named(name).rpartition(".")
        try:
            if part.startswith("encoder.layer."):
                _, _, number, rest = part.split(".", 3)
                out[f"layers.{int(number)}.{PARTS[rest]}.{kind}"] = weight
            elif part.startswith("embeddings."):
                out[f"{EMBEDDINGS[part.removeprefix('embeddings.')]}.{kind}"] = weight
        except (KeyError, ValueError) as error:
            raise DataError(f"weight {name[:120]!r} is not part of a BERT encoder") from error
    return out


def heads(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pooler and classification head of a Hugging Face BERT under the names of `Classifier`; empty if it has none."""
    out = {}
    for name, weight in weights.items():
        part, _, kind = named(name).rpartition(".")
        if part in HEADS:
            out[f"{HEADS[part]}.{kind}"] = weight
    return out


def left_out(weights: Mapping[str, Tensor]) -> list[str]:
    """The parts that `load` ignores (pooler and heads), as the first word of their names."""
    parts = {named(name).partition(".")[0] for name in weights}
    return sorted(parts - {"encoder", "embeddings"})


SINGLE, INDEX, PICKLED = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")


def read(folder: Path) -> dict[str, Tensor]:
    """All weights of a Hugging Face model folder, from the files that the transformers library would choose.

    These are model.safetensors, else the shards of the index, else numbered shards without an index, else pytorch_model.bin. Other files
    are ignored. Raises DataError if a shard or a weight of the index is missing, or a file cannot be read; UnsupportedError for
    quantised weights.
    """
    if (folder / SINGLE).is_file():
        weights = read_safetensors(folder / SINGLE)
    elif (folder / INDEX).is_file():
        weights = read_indexed(folder)
    elif shards := sorted(p for p in folder.glob("model-*.safetensors") if SHARD.fullmatch(p.name)):
        weights = read_shards(folder, shards)
    elif (folder / PICKLED).is_file():
        weights = read_pickled(folder / PICKLED)
    else:
        others = ", ".join(sorted(p.name for p in folder.glob("*.safetensors"))[:5])
        has = f"; it has {others}, which do not form a whole model" if others else ""
        raise DataError(f"{folder}: no {SINGLE} and no {PICKLED}{has}")
    if integers := [
        name
        for name, weight in weights.items()
        if named(name).endswith((".weight", ".bias")) and not weight.is_floating_point()
    ]:
        kind = str(weights[integers[0]].dtype).removeprefix("torch.")
        raise UnsupportedError(
            f"{folder}: weight {integers[0]} is {kind}: a quantised model", "use the float model"
        )
    return weights


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises DataError if it cannot be read."""
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except Exception as error:  # errors of safetensors, and of torch about sizes in the header
        raise DataError(f"{file}: not a safetensors file: {str(error)[:200]}") from error


def read_indexed(folder: Path) -> dict[str, Tensor]:
    """The weights of the index, each from its shard. Raises DataError for an invalid index and for missing shards or weights."""
    try:
        wanted = {
            str(k): str(v)
            for k, v in json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{folder / INDEX}: not an index of weights: {str(error)[:200]}") from error
    weights: dict[str, Tensor] = {}
    for name in sorted(set(wanted.values())):
        if Path(name).name != name or not (folder / name).is_file():
            raise DataError(
                f"{folder}: the shard {name[:120]!r} that {INDEX} names is missing", "download it again"
            )
        shard = read_safetensors(folder / name)
        weights |= {w: shard[w] for w, file in wanted.items() if file == name and w in shard}
    if missing := sorted(wanted.keys() - weights.keys()):
        raise DataError(
            f"{folder}: {len(missing)} weights that {INDEX} names are missing: {missing[0][:120]}"
        )
    return weights


def read_shards(folder: Path, shards: Sequence[Path]) -> dict[str, Tensor]:
    """The weights of shards without an index. Each file name contains the number of shards. Raises DataError if one is missing."""
    numbers = [SHARD.fullmatch(p.name) for p in shards]
    numbered = {(int(m[1]), int(m[2])) for m in numbers if m}
    count = max(total for _, total in numbered)
    if numbered != {(number, count) for number in range(1, count + 1)}:
        have = ", ".join(p.name for p in shards[:5])
        raise DataError(f"{folder}: some of {count} shards are missing; it has {have}", "download it again")
    return {name: weight for file in shards for name, weight in read_safetensors(file).items()}


def read_pickled(file: Path) -> dict[str, Tensor]:
    """A state dict saved by torch; only tensors are unpickled. Raises DataError if it cannot be read."""
    try:
        weights = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # pickle, zipfile and torch raise many exception types
        raise DataError(f"{file}: not a file of torch weights: {str(error).splitlines()[0][:200]}") from error
    if not isinstance(weights, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()
    ):
        raise DataError(f"{file}: not a state dict of weights")
    return weights


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
        "words.weight": (config.vocab_size, config.hidden_size),
        "positions.weight": (config.max_position_embeddings, config.hidden_size),
        "types.weight": (config.type_vocab_size, config.hidden_size),
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
    return encoder_of(config_of(folder), read(folder), folder)


def encoder_of(config: BertConfig, weights: Mapping[str, Tensor], folder: Path) -> Bert:
    """The encoder from a folder's configuration and weights."""
    bert: Bert = fill(lambda: Bert(config), config, renamed(weights), folder)
    return bert


def classifier_of(config: BertConfig, weights: Mapping[str, Tensor], folder: Path) -> Classifier | None:
    """The classifier from a folder's configuration and weights; None if it has no head."""
    head = heads(weights)
    if not {"pooler.weight", "head.weight"} <= head.keys():
        return None
    classes = len(head["head.weight"])
    whole = head | {f"bert.{name}": weight for name, weight in renamed(weights).items()}
    model: Classifier = fill(lambda: Classifier(Bert(config), classes), config, whole, folder)
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
