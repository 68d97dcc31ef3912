"""Fine-tuning and the precision task: a small random encoder learns templated sentences, in every precision."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from buzzer.engine import infer, quant
from buzzer.errors import UnsupportedError, UsageError
from buzzer.models.api.context import Data, RunContext
from buzzer.models.bert import checkpoints, encoder, families, finetune
from buzzer.models.bert.encoder import Bert, BertConfig, SentenceClassifier
from buzzer.models.bert.finetune import Tuner
from buzzer.models.bert.params import PrecisionParams
from buzzer.models.bert.precision import TASK, VARIANTS
from buzzer.models.bert.tokenizer import Labelled

Run = Callable[..., Any]
MakeContext = Callable[..., RunContext]
CONFIG: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
PARAMS = {
    "epochs": 2,
    "lr": 0.003,
    "tune_bf16": False,
    "l2": [0.001],
    "latency": 3,
    "calibration": 64,
    "method": "absmax",
}


@pytest.fixture(scope="module")
def folder(sentences: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: a word tokenizer of the sentences, and an untrained encoder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    text = json.loads((sentences.folder / "data_full.json").read_text())
    lines = [sentence for split in text.values() for sentence, _ in split]
    words.train_from_iterator(lines, trainers.WordLevelTrainer(vocab_size=400, special_tokens=special))
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made = tmp_path_factory.mktemp("model")
    words.save(str(made / "tokenizer.json"))
    (made / "config.json").write_text(json.dumps(CONFIG))
    torch.manual_seed(0)
    bert = encoder.random(BertConfig.of(CONFIG), 0)
    torch.nn.init.normal_(bert.words.weight, std=1.0)
    weights = {}
    for name, weight in bert.state_dict().items():
        *way, part, kind = name.split(".")
        inner = {v: k for k, v in (families.PARTS if way else families.EMBEDDINGS).items()}
        place = f"encoder.layer.{way[1]}" if way else "embeddings"
        weights[f"{place}.{inner[part]}.{kind}"] = weight
    save_file(weights, made / "model.safetensors")
    return made


@pytest.fixture(scope="module")
def fitted(
    sentences: Data,
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    make_context: MakeContext,
    run: Run,
) -> tuple[Path, Any]:
    work = tmp_path_factory.mktemp("work")
    one = make_context(
        "bert-intent-precision", sentences, work, work, "none", "torch_eager", weights=str(folder), **PARAMS
    )
    result, phases = run(TASK.fit(one))
    assert phases == ["load", "features", "fit", "write"]
    return work, result


def test_one_fit_makes_every_checkpoint(fitted: tuple[Path, Any]) -> None:
    work, result = fitted
    made = result.details["checkpoints"]
    assert list(made) == list(checkpoints.NAMES)
    assert sorted(p.name for p in work.iterdir()) == sorted([*checkpoints.NAMES, "classes.json"])
    assert made["float"]["valid_accuracy"] > 0.1  # by chance: 1/150
    for name in ("int8", "fp8", "int8-qat", "sparse", "sparse-int8"):
        assert made[name]["valid_accuracy"] > 0.6 * made["float"]["valid_accuracy"]
    assert made["int8"]["bytes"] < 0.7 * made["float"]["bytes"]


def test_training_is_in_bf16_where_that_is_fast_or_asked_for(has_bf16: bool) -> None:
    assert [checkpoints.in_bf16(asked) for asked in ("auto", True, False)] == [has_bf16, True, False]


def test_the_methods_of_the_task_are_those_of_calibration() -> None:
    assert get_args(PrecisionParams.model_fields["method"].annotation) == quant.METHODS


def test_sparse_checkpoints_keep_two_of_four(fitted: tuple[Path, Any], folder: Path) -> None:
    like = SentenceClassifier(encoder.load(folder), 151)
    for name in ("sparse", "sparse-int8"):
        model = quant.load(fitted[0] / name, like)
        for weight in (
            m.weight for n, m in model.named_modules() if n.startswith("bert.layers") and hasattr(m, "bias")
        ):
            if weight.ndim == 2:
                assert ((weight != 0).unflatten(1, (-1, 4)).sum(2) <= 2).all()


@pytest.mark.parametrize("backend", ["torch_eager", "onnxruntime", "openvino"])
def test_every_precision_from_text_to_labels(
    backend: str,
    sentences: Data,
    folder: Path,
    fitted: tuple[Path, Any],
    tmp_path: Path,
    make_context: MakeContext,
    run: Run,
    has_bf16: bool,
) -> None:
    try:
        offered = infer.load(backend).PRECISIONS
    except UnsupportedError as error:
        pytest.skip(error.message)
    scores = {}
    for name, (_, precision) in VARIANTS.items():
        out = tmp_path / name
        out.mkdir()
        one = make_context(
            "bert-intent-precision", sentences, fitted[0], out, "none", backend, weights=str(folder), **PARAMS
        )
        one = RunContext(**(vars(one) | {"precision": name}))
        if message := refusal(backend, precision, offered, has_bf16):
            with pytest.raises(UnsupportedError, match=message):
                run(TASK.predict(one))
            continue
        result, phases = run(TASK.predict(one))
        assert phases == ["load", "features", "predict", "latency", "write", "score"]
        assert result.details["session"]["precision"] == precision
        scores[name] = result.scores["accuracy"]
        simulated = precision == "fp8" or (precision == "int8" and backend == "torch_eager")
        assert any("multiplies in FP32" in note for note in result.notes) == simulated
        assert result.details["simulated"] == simulated
        assert any("2:4" in note for note in result.notes) == name.startswith("sparse")
    assert {"fp32", "int8", "int8-qat", "sparse"} <= scores.keys()
    assert scores["fp32"] > 0.1  # by chance: 1/150
    assert min(scores.values()) > 0.6 * scores["fp32"]


def refusal(backend: str, precision: str, offered: tuple[str, ...], has_bf16: bool) -> str:
    """The message about a precision that the backend lacks, or lacks on this machine; "" if it has it."""
    if precision not in offered:
        return f"{backend} has no precision {precision}"
    return "no bfloat16 instructions" if (backend, precision) == ("openvino", "bf16") and not has_bf16 else ""


def test_a_cut_encoder_is_fitted_and_run(
    sentences: Data, folder: Path, tmp_path: Path, make_context: MakeContext, run: Run
) -> None:
    params = PARAMS | {"layers": 1, "checkpoints": ["float"], "epochs": 1}
    one = make_context(
        "bert-intent-precision",
        sentences,
        tmp_path,
        tmp_path,
        "none",
        "torch_eager",
        weights=str(folder),
        **params,
    )
    result, _ = run(TASK.fit(one))
    assert result.details["layers"] == 1
    assert run(TASK.predict(one))[0].scores["accuracy"] > 0.03
    with pytest.raises(UsageError, match="the fit made no checkpoint int8"):
        run(TASK.predict(RunContext(**(vars(one) | {"precision": "int8"}))))
    with pytest.raises(UsageError, match="layers=9: the encoder has 3 layers"):
        encoder.cut(encoder.load(folder), 9)
    with pytest.raises(UsageError, match="unknown checkpoint 'int9'"):
        checkpoints.order(["int9"])


def test_a_damaged_checkpoint_of_a_stopped_fit_is_made_again(
    sentences: Data,
    folder: Path,
    fitted: tuple[Path, Any],
    tmp_path: Path,
    make_context: MakeContext,
    run: Run,
) -> None:
    work, (expected, result) = tmp_path / "work", fitted
    shutil.copytree(expected, work)
    file = Path("int8", "model.safetensors")
    (work / file).write_bytes((work / file).read_bytes()[:-1])
    one = make_context(
        "bert-intent-precision", sentences, work, work, "none", "torch_eager", weights=str(folder), **PARAMS
    )
    again, _ = run(TASK.fit(one))
    assert (work / file).read_bytes() == (expected / file).read_bytes()
    assert again.details == result.details


# ---- fine-tuning -------------------------------------------------------------------------------------------------


def labelled() -> Labelled:
    """The class of a sentence is its second token."""
    rng = np.random.default_rng(0)
    ids = [[1, int(rng.integers(2, 6)), *rng.integers(6, 40, rng.integers(1, 7)).tolist()] for _ in range(80)]
    return Labelled(ids, np.array([x[1] - 2 for x in ids]))


def tuner(checkpoint: Path, epochs: int = 4) -> Tuner:
    torch.manual_seed(0)
    model = SentenceClassifier(Bert(BertConfig.of(CONFIG)), 4)
    return Tuner(model, labelled(), epochs=epochs, lr=0.003, batch=16, seed=0, checkpoint=checkpoint)


def losses_of(tuner: Tuner, epochs: int = 4) -> list[float]:
    """The mean losses of all epochs, of those before a resumed training too."""
    for _ in tuner.run(epochs):
        pass
    return [epoch["loss"] for epoch in tuner.state.history]


def test_tuning_learns_and_is_the_same_again(tmp_path: Path) -> None:
    one, two = tuner(tmp_path / "a.pt", 12), tuner(tmp_path / "b.pt", 12)
    losses = losses_of(one, 12)
    assert losses == losses_of(two, 12)
    assert losses[-1] < 0.8 * losses[0]
    assert finetune.accuracy(one.network, labelled(), 16) > 0.6  # by chance: 0.25


def test_a_stopped_tuning_resumes_after_its_last_epoch(tmp_path: Path) -> None:
    whole = tuner(tmp_path / "whole.pt")
    losses = losses_of(whole)
    steps = tuner(tmp_path / "cut.pt").run(4)
    next(steps), next(steps)
    again = tuner(tmp_path / "cut.pt")
    assert again.state.epoch == 2
    assert losses_of(again) == losses
    for name, weight in again.network.state_dict().items():
        torch.testing.assert_close(weight, whole.network.state_dict()[name], rtol=0, atol=0)


def test_every_sentence_occurs_once_an_epoch_with_others_of_its_length(tmp_path: Path) -> None:
    one = tuner(tmp_path / "a.pt")
    batches = one.batches(0)
    assert sorted(int(row) for rows in batches for row in rows) == list(range(80))
    spread = [
        max(len(one.train.ids[r]) for r in rows) - min(len(one.train.ids[r]) for r in rows)
        for rows in batches
    ]
    assert np.mean(spread) < 2
    assert [rows.tolist() for rows in batches] != [rows.tolist() for rows in one.batches(1)]


def test_tables_are_not_tuned(tmp_path: Path) -> None:
    one = tuner(tmp_path / "a.pt", 1)
    before = one.network.bert.words.weight.clone()
    losses_of(one, 1)
    assert torch.equal(one.network.bert.words.weight, before)
