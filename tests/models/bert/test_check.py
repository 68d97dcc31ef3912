"""What `buzzer bench` refuses before it starts a process, without loading a model."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from buzzer.errors import BuzzerError, DataError, UnsupportedError, UsageError
from buzzer.models.api.bench import BenchSpec
from buzzer.models.bert import encoder, shapes_only
from buzzer.models.bert.bench import TARGET

transformers = pytest.importorskip("transformers")
SHAPE = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPE |= {"intermediate_size": 32, "max_position_embeddings": 40}
LAYER = "encoder.layer.1.output.dense.weight"
State = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    transformers.BertModel(transformers.BertConfig(**SHAPE)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def spec(folder: Path, seq: int = 8, **more: object) -> BenchSpec:
    return replace(BenchSpec(2, seq, 2, "fixed", "padded", 0, {"weights": str(folder)}), **more)


def weights(change: Callable[[State], object]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        from safetensors.torch import load_file

        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return changed


def config(**keys: object) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | keys))

    return changed


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500])


def sharded(folder: Path) -> None:
    file = folder / "model.safetensors"
    names = list(shapes_only.header(file))
    file.rename(folder / "model-00001-of-00002.safetensors")
    places = dict.fromkeys(names, "model-00001-of-00002.safetensors") | {
        LAYER: "model-00002-of-00002.safetensors"
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (weights(lambda state: state.pop(LAYER)), DataError, r"layers\.1\.down\.weight"),
        (weights(lambda s: s.update({"encoder.layer.1.odd.weight": torch.ones(2)})), DataError, r"layer\.1\.odd\.weight"),
        (weights(lambda state: state.update({LAYER: torch.ones(2, 2)})), DataError, "size mismatch"),
        (cut, DataError, "not a safetensors file"),
        (sharded, DataError, "model-00002-of-00002.safetensors' that .* is missing"),
        (without("model.safetensors"), DataError, "no model.safetensors and no pytorch_model.bin"),
        (config(position_embedding_type="relative_key"), UnsupportedError, "relative_key"),
        (config(model_type="gpt2"), UnsupportedError, "gpt2"),
        (config(hidden_size="16"), DataError, "hidden_size is '16'"),
        (config(vocab_size=61), DataError, r"words\.weight is \(60, 16\)"),
        (config(architectures=["BertForQuestionAnswering"]), DataError, "no weights of the head"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), DataError, "not a tokenizer"),
    ],
)  # fmt: skip
def test_a_wrong_folder_is_refused_as_when_it_is_loaded(
    folder: Path, change: Callable[[Path], object], kind: type[BuzzerError], message: str
) -> None:
    change(folder)
    with pytest.raises(kind, match=message) as checked:
        TARGET.check(spec(folder))
    with pytest.raises(kind) as loaded:
        TARGET.load(spec(folder))
    assert loaded.value.message == checked.value.message


def test_sizes_and_inputs_are_refused(folder: Path, tmp_path: Path) -> None:
    TARGET.check(spec(folder))
    with pytest.raises(UsageError, match="the model has 40 positions"):
        TARGET.check(spec(folder, seq=41))
    np.savez(tmp_path / "ids.npz", input_ids=np.full((2, 4), 60), attention_mask=np.ones((2, 4), "int64"))
    with pytest.raises(DataError, match="values 60 to 60"):
        TARGET.check(spec(folder, file=tmp_path / "ids.npz"))
    (tmp_path / "q.json").write_text("{}")
    with pytest.raises(UsageError, match="no head for answers"):
        TARGET.check(spec(folder, file=tmp_path / "q.json"))
    transformers.BertForQuestionAnswering(transformers.BertConfig(**SHAPE)).save_pretrained(tmp_path / "qa")
    with pytest.raises(DataError, match="not in SQuAD's format"):
        TARGET.check(spec(tmp_path / "qa", file=tmp_path / "q.json"))


def test_a_check_reads_no_weights_and_leaves_torch_as_it_was(folder: Path) -> None:
    model, settings = shapes_only.described({"weights": str(folder)})
    assert isinstance(model, encoder.Bert) and settings.hidden_size == 16
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert torch.nn.Linear(2, 2).weight.abs().sum() > 0
    assert shapes_only.described({"spec": "bert-large"}) == (None, encoder.spec("bert-large"))
