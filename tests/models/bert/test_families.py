"""Folders of every family and head against `transformers`, on every backend that runs here."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from buzzer.engine import infer
from buzzer.errors import DataError, UnsupportedError, UsageError
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


def padded(lengths: Sequence[int], pad: int) -> dict[str, Any]:
    """Rows of these lengths, padded at the end with the id `pad`."""
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype("int64")
    ids = np.where(mask, np.random.default_rng(0).integers(5, 60, mask.shape), pad)
    return {"input_ids": ids, "attention_mask": mask}


def batch(pad: int) -> dict[str, Any]:
    return padded((LENGTH, 7, 1, 20), pad)


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


def test_the_parts_of_families_for_fused(tmp_path: Path) -> None:
    """What BERT lacks, and the rows of RoBERTa's table of positions. tests/engine/fused runs the kernels on all families."""
    theirs = {name: published(tmp_path / name, name, "Model") for name in ("Roberta", "Electra", "MPNet")}
    roberta, electra, mpnet = (loaded(tmp_path / name).encoder_spec() for name in theirs)
    assert (len(roberta.positions), len(roberta.types)) == (32, 1)
    assert roberta.project is roberta.distances is electra.distances is mpnet.project is None
    assert (electra.words.shape[1], electra.project.out_features) == (16, 24)
    want = theirs["MPNet"].encoder.compute_position_bias(torch.zeros(1, 32, 24))[0]  # [heads, query, key]
    at = torch.arange(32)
    assert mpnet.distances.shape == (3, 63)
    torch.testing.assert_close(mpnet.distances[:, at[:, None] - at + 31], want)


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


# ---- inputs from a file -------------------------------------------------------------------------------------------


def rows_of(**changes: Any) -> dict[str, Any]:
    inputs = {"input_ids": np.full((3, 8), 7), "attention_mask": np.ones((3, 8), "int64")}
    inputs["attention_mask"][1, 5:] = 0
    return inputs | changes


@pytest.mark.parametrize(("family", "types"), [("Bert", True), ("Roberta", False)])
def test_rows_of_a_file_are_the_inputs(family: str, types: bool, tmp_path: Path) -> None:
    published(tmp_path, family, "Model")
    more = {"token_type_ids": np.tile([0, 1], (3, 4))} if types else {}
    np.savez(tmp_path / "rows.npz", **rows_of(**more))
    spec = BenchSpec(2, 0, 4, "fixed", "padded", 0, {"weights": str(tmp_path)}, file=tmp_path / "rows.npz")
    model = TARGET.load(spec)
    assert [batch["input_ids"].shape for batch in model.batches] == [(2, 8)] * 2
    assert ("token_type_ids" in model.batches[0]) == types
    assert model.source == "official"
    assert "inputs from rows.npz, 3 rows" in model.notes
    assert model.valid[0] is not None
    assert model.valid[0].sum() == 13
    want = model.reference(model.batches[0])["hidden"]
    ids, mask = (torch.from_numpy(model.batches[0][name]) for name in ("input_ids", "attention_mask"))
    with torch.inference_mode():
        same = np.allclose(loaded(tmp_path)(ids, mask).numpy(), want)
    assert same != types  # token types count


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": np.full((3, 8), 60)}, "input_ids is .* with values 60 to 60"),
        ({"input_ids": np.full((3, 8), -1)}, "with values -1 to -1"),
        ({"input_ids": np.full((3, 9), 7)}, "attention_mask is"),
        ({"attention_mask": np.tile([0, 1], (3, 4))}, "padding before tokens"),
        ({"attention_mask": np.zeros((3, 8), "int64")}, "a row without tokens"),
        ({"token_type_ids": np.full((3, 8), 2)}, "token_type_ids is .* with values 2 to 2"),
    ],
)
def test_rows_that_the_model_cannot_take_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    published(tmp_path, "Bert", "Model")
    np.savez(tmp_path / "rows.npz", **rows_of(**changes))
    spec = BenchSpec(3, 0, 2, "fixed", "padded", 0, {"weights": str(tmp_path)}, file=tmp_path / "rows.npz")
    with pytest.raises(DataError, match=message):
        TARGET.load(spec)


def test_rows_longer_than_the_positions_are_refused(tmp_path: Path) -> None:
    published(tmp_path, "Bert", "Model")
    np.savez(tmp_path / "rows.npz", input_ids=np.full((2, 40), 7), attention_mask=np.ones((2, 40), "int64"))
    spec = BenchSpec(1, 0, 2, "fixed", "padded", 0, {"weights": str(tmp_path)}, file=tmp_path / "rows.npz")
    with pytest.raises(UsageError, match=r"--inputs rows\.npz: rows need 40 positions, the model has 34"):
        TARGET.load(spec)
