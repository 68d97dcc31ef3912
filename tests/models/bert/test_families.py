"""Folders of every family and head against `transformers`, on every backend that runs here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from buzzer.engine import infer
from buzzer.errors import DataError, UnsupportedError
from buzzer.models.api.bench import BenchSpec
from buzzer.models.bert import bench, encoder, weight_files
from buzzer.models.bert.bench import TARGET

transformers = pytest.importorskip("transformers")

MakeSpec = Callable[..., BenchSpec]
COMMON = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 34,
}
# Prefix of the classes in transformers -> keys of its configuration.
FAMILIES: dict[str, dict[str, Any]] = {
    "Bert": COMMON,
    "Roberta": COMMON | {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5},
    "XLMRoberta": COMMON | {"type_vocab_size": 1, "pad_token_id": 3},
    "Camembert": COMMON | {"type_vocab_size": 1},
    "Electra": COMMON | {"embedding_size": 16},
    "DistilBert": {
        "vocab_size": 60,
        "dim": 24,
        "n_layers": 2,
        "n_heads": 3,
        "hidden_dim": 40,
        "max_position_embeddings": 34,
        "sinusoidal_pos_embds": True,
    },
    "MPNet": COMMON,
}
HEADS = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
LENGTH = 24  # more than twice the distance up to which MPNet has a bucket of its own
ATOL = 1e-5


def published(path: Path, family: str, head: str, **more: Any) -> Any:
    """A folder that transformers wrote, and its model."""
    torch.manual_seed(0)
    labels = 2 if head == "ForQuestionAnswering" else 5
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family] | more, num_labels=labels)
    model = getattr(transformers, family + head)(config).eval()
    for weight in model.parameters():  # so that an ignored bias or norm would be noticed
        torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(path)
    return model


def batch(pad: int) -> dict[str, Any]:
    """Rows of different lengths, padded at the end."""
    rng = np.random.default_rng(0)
    mask = (np.arange(LENGTH)[None] < np.array([[LENGTH], [7], [1], [20]])).astype("int64")
    ids = np.where(mask, rng.integers(5, 60, mask.shape), pad)
    return {"input_ids": ids, "attention_mask": mask}


def expected(theirs: Any, inputs: dict[str, Any]) -> np.ndarray:
    with torch.inference_mode():
        outputs = theirs(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    if "start_logits" in outputs:
        return torch.stack([outputs.start_logits, outputs.end_logits], dim=-1).numpy()
    return (outputs.logits if "logits" in outputs else outputs.last_hidden_state).numpy()


def loaded(path: Path) -> Any:
    """The model of a folder: with its head, if it has one."""
    config, weights = encoder.config_of(path), weight_files.read(path)
    return encoder.with_head(config, weights, path) or encoder.encoder_of(config, weights, path)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("named", [True, False])
def test_every_family_and_head_computes_what_transformers_computes(
    family: str, head: str, named: bool, tmp_path: Path
) -> None:
    """Also without the name of the architecture, as in older folders."""
    theirs = published(tmp_path, family, head)
    keys = json.loads((tmp_path / "config.json").read_text())
    if not named:
        del keys["architectures"]
        (tmp_path / "config.json").write_text(json.dumps(keys))
    inputs = batch(keys.get("pad_token_id") or 0)
    ours, want = loaded(tmp_path), expected(theirs, inputs)
    with torch.inference_mode():
        got = ours(*(torch.from_numpy(array) for array in inputs.values())).numpy()
    real = inputs["attention_mask"] > 0 if got.ndim == 3 else slice(None)
    np.testing.assert_allclose(got[real], want[real], rtol=0, atol=ATOL)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("family", "head"), [("MPNet", "ForTokenClassification"), ("Electra", HEADS[1])])
def test_backends_compute_it_too(family: str, head: str, backend: str, tmp_path: Path) -> None:
    """The two families with parts that BERT lacks, with axes that change: the session is made for other sizes."""
    theirs = published(tmp_path, family, head)
    inputs = batch(0)
    try:
        infer.load(backend)
    except UnsupportedError as error:
        pytest.skip(error.message)
    example = {name: np.ones((2, 9), dtype="int64") for name in inputs}
    axes = {name: {0: "batch", 1: "sequence"} for name in inputs}
    with infer.prepare(
        loaded(tmp_path), backend=backend, example=example, outputs=("logits",), dynamic=axes
    ) as session:
        got = session.run(inputs)["logits"]
    real = inputs["attention_mask"] > 0 if got.ndim == 3 else slice(None)
    np.testing.assert_allclose(got[real], expected(theirs, inputs)[real], rtol=0, atol=3 * ATOL)


@pytest.mark.parametrize(("family", "served"), [("Roberta", True), ("MPNet", False), ("Electra", False)])
def test_fused_says_what_it_lacks(family: str, served: bool, tmp_path: Path) -> None:
    published(tmp_path, family, "Model")
    if served:
        spec = loaded(tmp_path).encoder_spec()
        assert len(spec.positions) == 32
        assert len(spec.types) == 1
        return
    with pytest.raises(UnsupportedError, match=r"fused does not support .*, which this"):
        loaded(tmp_path).encoder_spec()


@pytest.mark.parametrize("family", ["Roberta", "DistilBert", "MPNet"])
def test_half_precision_and_sharded_pickles_load(family: str, tmp_path: Path) -> None:
    """Weights in float16, in several `.bin` files named by their index."""
    theirs = published(tmp_path, family, "Model").half()
    (tmp_path / "model.safetensors").unlink()
    weights = theirs.state_dict()
    index = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(weights)}
    for file in set(index.values()):
        torch.save({name: w for name, w in weights.items() if index[name] == file}, tmp_path / file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    inputs = batch(1)
    with torch.inference_mode():
        got = loaded(tmp_path)(*(torch.from_numpy(array) for array in inputs.values())).numpy()
    real = inputs["attention_mask"] > 0
    np.testing.assert_allclose(got[real], expected(theirs.float(), inputs)[real], rtol=0, atol=ATOL)
    (tmp_path / "pytorch_model-1.bin").unlink()
    with pytest.raises(DataError, match=r"shard 'pytorch_model-1.bin'"):
        encoder.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("distilbert.transformer.layer.1.ffn.lin1.bias"), "layers.1.up.bias"),
        (lambda w: w.update({"distilbert.transformer.layer.1.ffn.lin3.bias": torch.ones(1)}), "lin3"),
        (lambda w: w.pop("classifier.weight"), "no weights of the head that config.json names, sequence"),
    ],
)
def test_missing_and_foreign_weights_are_named(change: Any, message: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    published(tmp_path, "DistilBert", "ForSequenceClassification")
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=message):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("Roberta", {"is_decoder": True}, "is_decoder True in the configuration of a roberta"),
        ("MPNet", {"relative_attention_num_buckets": 16}, "relative_attention_num_buckets 16"),
        ("DistilBert", {"activation": "silu"}, "activation silu"),
    ],
)
def test_settings_that_are_not_served_are_named(
    family: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    published(tmp_path, family, "Model", **change)
    with pytest.raises(UnsupportedError, match=message):
        encoder.load(tmp_path)


def test_a_bench_of_a_head_for_tokens(
    tmp_path: Path, bench_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(spec: BenchSpec) -> Path:
        raise UnsupportedError("no tokenizer here")

    monkeypatch.setattr(bench, "tokens_folder", none)
    published(tmp_path, "Roberta", "ForTokenClassification")
    model = TARGET.load(bench_spec(lengths="real", weights=str(tmp_path), batch=2))
    assert model.outputs == ("token_logits",)
    assert model.facts["classes"] == 5
    assert model.facts["model_type"] == "roberta"
    assert all(valid is not None and not valid.all() for valid in model.valid)
