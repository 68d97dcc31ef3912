"""Named shapes, Hugging Face folders, heads and packing against `transformers` and against padded batches."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from buzzer.errors import DataError, UnsupportedError, UsageError
from buzzer.models.api.bench import BenchSpec
from buzzer.models.bert import encoder, families, packing, weight_files
from buzzer.models.bert.bench import TARGET
from buzzer.models.bert.encoder import Bert, BertConfig
from tests.models.bert.shapes import SHAPE


def inputs(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, a mask with a row of each length, and token types that change half way."""
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(1, 60, (rows, length)))
    mask = (torch.arange(length)[None] <= torch.arange(rows)[:, None] % length).long()
    kinds = (torch.arange(length)[None] > length // 2).long().repeat(rows, 1)
    return ids * mask, mask, kinds


@pytest.fixture(scope="module", params=["gelu", "gelu_new", "relu"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder that transformers wrote, and the model that it wrote."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(**SHAPE, hidden_act=request.param, num_labels=5)
    theirs = transformers.BertForSequenceClassification(config).eval()
    for weight in theirs.parameters():  # so that an ignored bias or norm would be noticed
        torch.nn.init.normal_(weight, std=0.3)
    path = tmp_path_factory.mktemp("folder")
    theirs.save_pretrained(path)
    return path, theirs


def classifier(folder: Path) -> Any:
    return encoder.with_head(encoder.config_of(folder), weight_files.read(folder), folder)


def test_a_folder_computes_what_transformers_computes(folder: tuple[Path, Any]) -> None:
    path, theirs = folder
    ids, mask, kinds = inputs(9, 12)
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}
    ours = classifier(path)
    assert ours is not None
    with torch.inference_mode():
        body = theirs.bert(**given)
        hidden = encoder.load(path)(ids, mask, kinds)
        torch.testing.assert_close(
            hidden[mask.bool()], body.last_hidden_state[mask.bool()], rtol=0, atol=1e-5
        )
        torch.testing.assert_close(ours.pool(ids, mask, kinds), body.pooler_output, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours(ids, mask, kinds), theirs(**given).logits, rtol=1e-5, atol=1e-5)


def test_an_old_folder_and_an_encoder_alone(folder: tuple[Path, Any], tmp_path: Path) -> None:
    path, theirs = folder
    torch.save(theirs.bert.state_dict(), tmp_path / "pytorch_model.bin")
    keys = json.loads((path / "config.json").read_text()) | {"architectures": ["BertModel"]}
    (tmp_path / "config.json").write_text(json.dumps(keys))
    ids, mask, _ = inputs(3, 8)
    with torch.inference_mode():
        torch.testing.assert_close(encoder.load(tmp_path)(ids, mask), encoder.load(path)(ids, mask))
    assert classifier(tmp_path) is None


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"hidden_size": 8}, DataError, "no vocab_size"),
        (SHAPE | {"model_type": "albert"}, UnsupportedError, "type albert"),
        (SHAPE | {"is_decoder": True}, UnsupportedError, "is_decoder True"),
        (SHAPE | {"pruned_heads": {"0": [1]}}, UnsupportedError, "pruned_heads"),
        (
            SHAPE | {"position_embedding_type": "relative_key"},
            UnsupportedError,
            "position_embedding_type relative_key",
        ),
        (SHAPE | {"hidden_act": "silu"}, UnsupportedError, "activation silu"),
        (SHAPE | {"num_hidden_layers": 3}, DataError, "do not match"),
    ],
)
def test_folders_of_other_models_are_refused(
    config: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(error, match=message):
        encoder.load(tmp_path)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json"):
        encoder.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json"):
        encoder.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    with pytest.raises(DataError, match=r"no model\.safetensors"):
        encoder.load(tmp_path)


@pytest.mark.parametrize(("name", "millions"), [("bert-base", 109), ("bert-large", 334), ("minilm-l6", 22.6)])
def test_named_shapes_have_the_published_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        weights = sum(p.numel() for p in Bert(encoder.spec(name)).parameters())
    assert weights / 1e6 == pytest.approx(millions, rel=0.01)


def test_random_weights_are_the_seeds() -> None:
    before = torch.random.get_rng_state()
    a, b, c = (encoder.random(BertConfig.of(SHAPE), seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.words.weight, c.words.weight)
    assert float(a.layers[0].up.weight.detach().std()) == pytest.approx(0.02, rel=0.1)


@settings(max_examples=50)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=50), tokens=st.integers(8, 64))
def test_buckets_hold_every_sentence_once(lengths: list[int], tokens: int) -> None:
    rows = list(packing.buckets(lengths, tokens))
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    for row in rows:
        assert len(row) == 1 or sum(lengths[i] for i in row) <= tokens
    if len(rows) > 1:  # first fit leaves no two rows that would fit into one
        fill = sorted(sum(lengths[i] for i in row) for row in rows)
        assert fill[0] + fill[1] > tokens


@settings(max_examples=10)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_packed_sentences_give_the_same_states(lengths: list[int]) -> None:
    rng = np.random.default_rng(0)
    bert = encoder.random(BertConfig.of(SHAPE), 0)
    ids = [rng.integers(1, 60, n).tolist() for n in lengths]
    batch = packing.pack(ids)
    assert batch["input_ids"].shape[1] % 8 == 0
    with torch.inference_mode():
        packed = packing.Packed(bert)(*(torch.from_numpy(a) for a in batch.values())).numpy()
        for x, got in zip(ids, np.split(packed[0], np.cumsum(lengths)), strict=False):
            alone = torch.tensor([x])
            np.testing.assert_allclose(got, bert(alone, torch.ones_like(alone))[0].numpy(), atol=1e-5)


# ---- buzzer bench -------------------------------------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path: Path) -> dict[str, str]:
    """Parameters of a folder with an encoder and no tokenizer."""
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    state = {}
    names = {ours: theirs for theirs, ours in families.PARTS.items()}
    tables = {ours: theirs for theirs, ours in families.EMBEDDINGS.items()}
    for name, weight in encoder.random(BertConfig.of(SHAPE), 0).state_dict().items():
        part, _, kind = name.rpartition(".")
        if part.startswith("layers."):
            _, number, rest = part.split(".")
            state[f"encoder.layer.{number}.{names[rest]}.{kind}"] = weight
        else:
            state[f"embeddings.{tables[part]}.{kind}"] = weight
    torch.save(state, tmp_path / "pytorch_model.bin")
    return {"weights": str(tmp_path)}


def test_every_packing_has_the_same_sentences(plain: dict[str, str]) -> None:
    """The sum of all tokens' states is the same, though batches and padding differ."""
    sums = []
    for kind in ("padded", "sorted", "packed"):
        loaded = TARGET.load(BenchSpec(4, 32, 3, "real", kind, 0, plain))
        assert sum(loaded.rows) == 12
        parts = []
        for batch, valid in zip(loaded.batches, loaded.valid, strict=True):
            assert valid is not None
            parts.append(loaded.reference(batch)["hidden"][valid])
        states = np.concatenate(parts)
        assert len(states) == loaded.facts["tokens"] <= loaded.facts["tokens_computed"]
        sums.append(states.sum(axis=0, dtype="float64"))
    np.testing.assert_allclose(sums[1:], [sums[0], sums[0]], rtol=1e-4, atol=1e-4)


def test_fixed_rows_are_full_and_differ(plain: dict[str, str]) -> None:
    loaded = TARGET.load(BenchSpec(2, 16, 5, "fixed", "padded", 0, plain))
    assert all(batch["input_ids"].shape == (2, 16) for batch in (*loaded.batches, *loaded.calibration))
    assert all(batch["attention_mask"].all() for batch in loaded.batches)
    assert len({batch["input_ids"].tobytes() for batch in loaded.batches}) == 5
    assert not loaded.dynamic


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (BenchSpec(1, 64, 2, "fixed", "padded", 0, {}), "the model has 32 positions"),
        (BenchSpec(1, 16, 2, "fixed", "packed", 0, {}), "no padding to remove"),
        (BenchSpec(1, 16, 2, "real", "boxed", 0, {}), "unknown packing"),
    ],
)
def test_impossible_requests_are_refused(ask: BenchSpec, message: str, plain: dict[str, str]) -> None:
    from dataclasses import replace

    with pytest.raises(UsageError, match=message):
        TARGET.load(replace(ask, params=plain))
