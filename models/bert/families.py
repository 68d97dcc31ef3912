"""Families of BERT-like encoders: how their Hugging Face folders name the configuration and the weights, and how they differ from BERT.

Names and differences are those of the transformers library (BertModel, RobertaModel, XLMRobertaModel, CamembertModel, ElectraModel,
DistilBertModel, MPNetModel).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from buzzer.errors import DataError, UnsupportedError

# Name of a layer's part -> its name in `encoder.Layer`.
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
DISTILBERT_PARTS = {
    "attention.q_lin": "query",
    "attention.k_lin": "key",
    "attention.v_lin": "value",
    "attention.out_lin": "out",
    "sa_layer_norm": "attention_norm",
    "ffn.lin1": "up",
    "ffn.lin2": "down",
    "output_layer_norm": "norm",
}
MPNET_PARTS = {
    "attention.attn.q": "query",
    "attention.attn.k": "key",
    "attention.attn.v": "value",
    "attention.attn.o": "out",
    "attention.LayerNorm": "attention_norm",
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
# Weights outside the layers and the embeddings -> their names in `encoder.Bert`.
OTHERS = {"embeddings_project": "project", "encoder.relative_attention_bias": "relative"}
KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "hidden_act",
)
DISTILBERT_KEYS = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
}
# Parameters of norms in folders that were converted from TensorFlow -> their newer names.
OLD = {"gamma": "weight", "beta": "bias"}
# Keys of config.json that change the mathematics -> the values that are supported.
SUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "pruned_heads": ({}, [], None),
    "quantization_config": (None,),
    "relative_attention_num_buckets": (32, None),  # transformers' MPNet uses 32 whatever the key says
}
# The end of an architecture's name -> its head.
HEADS = {
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "tokens",
    "ForQuestionAnswering": "answers",
}


@dataclass(frozen=True)
class Family:
    """One family of encoders."""

    prefix: str  # of the encoder's weights in a model with a head
    pooler: str  # first layer of its head for sequences; it reads the first token
    classifier: str  # second layer of that head
    activation: str = "tanh"  # between the two
    layers: str = "encoder.layer"  # where the layers are
    parts: Mapping[str, str] = field(default_factory=lambda: PARTS)
    keys: Mapping[str, str] = field(default_factory=dict)  # of config.json, if it has other names
    types: bool = True  # whether tokens have types
    padding: bool = False  # whether positions begin after the padding id (`pad_token_id`, by default 1)


ROBERTA = Family("roberta", "classifier.dense", "classifier.out_proj", padding=True)
FAMILIES = {
    "bert": Family("bert", "pooler.dense", "classifier"),
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "electra": Family("electra", "classifier.dense", "classifier.out_proj", activation="gelu"),
    "distilbert": Family(
        "distilbert",
        "pre_classifier",
        "classifier",
        activation="relu",
        layers="transformer.layer",
        parts=DISTILBERT_PARTS,
        keys=DISTILBERT_KEYS,
        types=False,
    ),
    "mpnet": Family(
        "mpnet",
        "classifier.dense",
        "classifier.out_proj",
        parts=MPNET_PARTS,
        types=False,
        padding=True,
    ),
}


def settings(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `encoder.BertConfig` in the keys of a config.json, not yet checked.

    Raises UnsupportedError for an encoder of another family, or a setting that is not supported.
    """
    kind = keys.get("model_type", "bert")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UnsupportedError(
            f"a model of type {kind} is not among the encoders {', '.join(FAMILIES)}",
            "export it to ONNX: `buzzer bench` runs ONNX files",
        )
    for key, values in SUPPORTED.items():
        if key in keys and keys[key] not in values:
            raise UnsupportedError(
                f"{key} {str(keys[key])[:80]} in the configuration of a {kind} is not supported",
                "export it to ONNX: `buzzer bench` runs ONNX files",
            )
    family = FAMILIES[kind]
    names = {name: family.keys.get(name, name) for name in KEYS}
    fields = {name: keys[key] for name, key in names.items() if key in keys}
    if not family.types:
        fields["type_vocab_size"] = 1
    if family.padding:  # transformers' MPNet has the padding id 1, whatever the key says
        fields["first_position"] = 2 if kind == "mpnet" else _next(keys.get("pad_token_id", 1))
    if kind == "electra" and "embedding_size" in keys:
        fields["embedding_size"] = keys["embedding_size"]
    return fields | {"model_type": kind, "head": head_of(keys.get("architectures"))}


def _next(number: Any) -> Any:
    """The number after a whole number; anything else is returned for the check of the configuration."""
    return number + 1 if type(number) is int else number


def head_of(architectures: Any) -> str:
    """The head that a configuration names: "sequence", "tokens", "answers", or "" if it names none of these."""
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    return next((head for end, head in HEADS.items() if name.endswith(end)), "")


def plain(name: str, family: Family) -> tuple[str, str]:
    """Part and kind of a weight's name, without the prefix that models with a head have, and with the newer names of norms."""
    part, _, kind = name.removeprefix(f"{family.prefix}.").rpartition(".")
    return part, OLD[kind] if part.endswith("LayerNorm") and kind in OLD else kind


def encoder_weights(weights: Mapping[str, Tensor], model_type: str, first_position: int) -> dict[str, Tensor]:
    """The encoder's weights under the names of `encoder.Bert`, without heads. Raises DataError for a weight that the family does not have."""
    family, out = FAMILIES[model_type], {}
    for name, weight in weights.items():
        part, kind = plain(name, family)
        try:
            if part.startswith(f"{family.layers}."):
                number, rest = part.removeprefix(f"{family.layers}.").split(".", 1)
                out[f"layers.{int(number)}.{family.parts[rest]}.{kind}"] = weight
            elif part in OTHERS:
                out[f"{OTHERS[part]}.{kind}"] = weight
            elif part.startswith(("embeddings.", "encoder.", "transformer.")):
                out[f"{EMBEDDINGS[part.removeprefix('embeddings.')]}.{kind}"] = weight
        except (KeyError, ValueError) as error:
            raise DataError(
                f"weight {name[:120]!r} is not part of an encoder of type {model_type}"
            ) from error
    if first_position and "positions.weight" in out:
        out["positions.weight"] = out["positions.weight"][first_position:]
    if not family.types and "words.weight" in out:
        out["types.weight"] = torch.zeros(1, *out["words.weight"].shape[1:])
    return out


def head_weights(weights: Mapping[str, Tensor], model_type: str, head: str) -> dict[str, Tensor]:
    """The weights of a head, `head` and for sequences also `pooler`; empty if the folder has no such head.

    head: "sequence", "tokens", "answers", or "" to tell it by the names of the weights.
    """
    family = FAMILIES[model_type]
    names = {
        "sequence": {family.pooler: "pooler", family.classifier: "head"},
        "tokens": {"classifier": "head"},
        "answers": {"qa_outputs": "head"},
    }
    named = {plain(name, family): weight for name, weight in weights.items()}
    for wanted in [names[head]] if head else names.values():
        if all((part, "weight") in named for part in wanted):
            return {f"{wanted[part]}.{kind}": w for (part, kind), w in named.items() if part in wanted}
    return {}


def left_out(weights: Mapping[str, Tensor], model_type: str) -> list[str]:
    """The parts that are neither encoder nor embeddings (pooler and heads), as the first word of their names."""
    parts = {plain(name, FAMILIES[model_type])[0].partition(".")[0] for name in weights}
    return sorted(parts - {"encoder", "transformer", "embeddings", "embeddings_project", ""})
