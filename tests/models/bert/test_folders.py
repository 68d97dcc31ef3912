"""Hugging Face folders as they are published: old names, shards, other weight files, other heads, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from buzzer.errors import DataError, UnsupportedError, UsageError
from buzzer.models.api.bench import BenchSpec
from buzzer.models.bert import bench, encoder, tokenizer
from buzzer.models.bert.bench import TARGET
from tests.models.bert.shapes import SHAPE

transformers = pytest.importorskip("transformers")

MakeSpec = Callable[..., BenchSpec]

IDS, MASK = torch.arange(1, 17).reshape(2, 8), torch.ones(2, 8, dtype=torch.long)


def published(path: Path, kind: str = "BertModel", **more: Any) -> Any:
    """A folder that transformers wrote, and its model."""
    torch.manual_seed(0)
    model = getattr(transformers, kind)(transformers.BertConfig(**SHAPE | more)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(path)
    return model


def same(path: Path, theirs: Any) -> None:
    with torch.inference_mode():
        want = theirs(input_ids=IDS, attention_mask=MASK).last_hidden_state
        torch.testing.assert_close(encoder.load(path)(IDS, MASK), want, rtol=0, atol=1e-5)


def rewrite(path: Path, change: Any) -> None:
    """The folder's weights changed by `change`."""
    save_file(change(load_file(path / "model.safetensors")), path / "model.safetensors")


def test_old_names_of_norms_load(tmp_path: Path) -> None:
    """As in bert-base-uncased: LayerNorm.gamma and beta, a prefix, position_ids, a masked-language head."""
    theirs = published(tmp_path)

    def old(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        names = {k: k.replace("LayerNorm.weight", "LayerNorm.gamma") for k in weights}
        names = {k: f"bert.{v.replace('LayerNorm.bias', 'LayerNorm.beta')}" for k, v in names.items()}
        assert sum(v.endswith(("gamma", "beta")) for v in names.values()) == 2 * (1 + 2 * 2)
        more = {
            "bert.embeddings.position_ids": torch.arange(32)[None],
            "cls.predictions.transform.LayerNorm.gamma": torch.ones(24),
        }
        return {names[k]: v for k, v in weights.items()} | more

    rewrite(tmp_path, old)
    same(tmp_path, theirs)


@pytest.mark.parametrize(
    "name", ["model_quantized.safetensors", "model.fp16.safetensors", "modelx.safetensors"]
)
def test_other_weight_files_are_ignored(name: str, tmp_path: Path) -> None:
    theirs = published(tmp_path)
    other = {k: torch.zeros_like(v) for k, v in load_file(tmp_path / "model.safetensors").items()}
    save_file(other, tmp_path / name)
    same(tmp_path, theirs)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(DataError, match=f"no model.safetensors .*{name}"):
        encoder.load(tmp_path)


def sharded(path: Path) -> Any:
    theirs = published(path)
    (path / "model.safetensors").unlink()
    theirs.save_pretrained(path, max_shard_size="10KB")
    assert len(list(path.glob("model-*-of-*.safetensors"))) > 2
    (path / "model.safetensors").unlink(missing_ok=True)
    return theirs


@pytest.mark.parametrize("index", [True, False])
def test_shards_load_only_if_all_are_there(index: bool, tmp_path: Path) -> None:
    theirs = sharded(tmp_path)
    if not index:
        (tmp_path / "model.safetensors.index.json").unlink()
    same(tmp_path, theirs)
    shards = sorted(tmp_path.glob("model-*"))
    for shard in shards:
        kept = shard.read_bytes()
        shard.unlink()
        with pytest.raises(DataError, match=r"missing|not all of"):
            encoder.load(tmp_path)
        shard.write_bytes(kept)
    same(tmp_path, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda i: i["weight_map"].update({"pooler.dense.extra": next(iter(i["weight_map"].values()))}),
            "1 weights that",
        ),
        (lambda i: i["weight_map"].update({"x": "../model.safetensors"}), r"shard '\.\./model\.safetensors'"),
        (lambda i: i.pop("weight_map"), "not an index"),
        (lambda i: i.update(weight_map=[1]), "not an index"),
    ],
)
def test_an_invalid_index_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    sharded(tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    change(index)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=message):
        encoder.load(tmp_path)


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    published(tmp_path)
    rewrite(tmp_path, lambda weights: {k: v.to(torch.int8) for k, v in weights.items()})
    with pytest.raises(UnsupportedError, match="is int8: a quantised model"):
        encoder.load(tmp_path)


@pytest.fixture
def random_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(spec: BenchSpec) -> Path:
        raise UnsupportedError("no tokenizer here")

    monkeypatch.setattr(bench, "tokens_folder", none)


@pytest.mark.parametrize(
    ("kind", "output", "left"),
    [
        ("BertModel", "hidden", "pooler"),
        ("BertForTokenClassification", "token_logits", ""),
        ("BertForQuestionAnswering", "token_logits", ""),
        ("BertForMaskedLM", "hidden", "cls"),
        ("BertForSequenceClassification", "logits", ""),
    ],
)
def test_heads_that_are_left_out_are_noted(
    kind: str, output: str, left: str, random_ids: None, tmp_path: Path, bench_spec: MakeSpec
) -> None:
    published(tmp_path, kind)
    loaded = TARGET.load(bench_spec(weights=str(tmp_path)))
    assert loaded.outputs == (output,)
    notes = [note for note in loaded.notes if "left out" in note]
    assert notes == ([f"only the encoder is timed; left out: {left}"] if left else [])


@pytest.mark.parametrize(
    ("lengths", "packing", "fits"),
    [
        ("fixed", "padded", True),
        ("real", "padded", False),
        ("real", "sorted", False),
        ("real", "packed", False),
    ],
)
def test_lengths_beyond_the_positions_are_refused(
    lengths: str, packing: str, fits: bool, random_ids: None, tmp_path: Path, bench_spec: MakeSpec
) -> None:
    """With random ids, of which the longest sentence has more than eight."""
    published(tmp_path, max_position_embeddings=8)
    params = {"weights": str(tmp_path)}
    given = bench_spec(lengths=lengths, packing=packing, batch=8, **params)
    if fits:
        assert TARGET.load(given).batches[0]["input_ids"].shape == (8, 8)
        with pytest.raises(UsageError, match="--seq 9: the model has 8 positions"):
            TARGET.load(bench_spec(seq=9, **params))
        return
    with pytest.raises(UsageError, match=r"--lengths real: rows need \d+ positions, the model has 8"):
        TARGET.load(given)


@pytest.mark.parametrize(("longest", "fits"), [(8, True), (30, True), (32, True), (33, False), (64, False)])
def test_sentences_of_a_task_must_fit_the_positions(longest: int, fits: bool) -> None:
    """The model has 32; rows are padded to a multiple of 8."""
    bert = encoder.random(encoder.BertConfig.of(SHAPE), 0)
    if fits:
        encoder.check_length(bert, longest)
        return
    with pytest.raises(UsageError, match=f"longest is {longest}: the model has 32 positions") as caught:
        encoder.check_length(bert, longest)
    assert caught.value.hint == "--set longest=32"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"hidden_size": "128"},
            DataError,
            r"config\.json: hidden_size is '128': Input should be a valid integer",
        ),
        ({"hidden_size": True}, DataError, "hidden_size is 'True'"),
        ({"num_attention_heads": 5}, DataError, "hidden_size 24 does not divide into 5 heads"),
        ({"num_attention_heads": 0}, DataError, "num_attention_heads is '0'"),
        ({"num_hidden_layers": 10**9}, DataError, "2 layers, num_hidden_layers is 1000000000"),
        ({"vocab_size": 10**12}, DataError, r"words\.weight is \(60, 24\), expected \(1000000000000, 24\)"),
        ({"layer_norm_eps": "x"}, DataError, "layer_norm_eps"),
        ({"hidden_act": None}, DataError, "hidden_act"),
        ({"model_type": "distilbert"}, DataError, "no hidden_size, num_hidden_layers"),
        ({"model_type": "gpt2"}, UnsupportedError, "a model of type gpt2"),
        ({"model_type": ["bert"]}, UnsupportedError, "a model of type"),
    ],
)
def test_invalid_configurations_are_refused(
    change: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    published(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(error, match=message):
        encoder.load(tmp_path)


@pytest.mark.parametrize(("kind", "config"), [("albert", "AlbertConfig"), ("gpt2", "GPT2Config")])
def test_other_types_are_named(kind: str, config: str, tmp_path: Path, bench_spec: MakeSpec) -> None:
    """Their configurations have other keys too."""
    getattr(transformers, config)().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=f"a model of type {kind} is not among the encoders") as caught:
        TARGET.load(bench_spec(weights=str(tmp_path)))
    assert "ONNX" in caught.value.hint


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": {"type": "WordPiece"}}', "\x00" * 9])
def test_a_broken_tokenizer_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer"):
        tokenizer.load(tmp_path, 8)


def test_a_tokenizer_without_tokens_is_refused() -> None:
    import tokenizers

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(DataError, match="returns no tokens for a sentence"):
        tokenizer.encode(words, ["a", ""])
    assert np.array_equal(tokenizer.encode(words, ["a"]), [[0]])
