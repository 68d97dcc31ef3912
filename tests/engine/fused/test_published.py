"""Published encoders of every family and head on the fused backend, in the interpreter and on a GPU, against `transformers`."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from buzzer.engine import infer, quant
from buzzer.errors import UnsupportedError

pytest.importorskip("transformers")
pytest.importorskip("triton")

from buzzer.engine.fused.lowering import Lowering, program_key
from buzzer.engine.fused.weights import random
from buzzer.engine.kernels.tune import Tuned
from tests.models.bert.test_families import expected, loaded, padded, published

FAMILIES = ("Bert", "Roberta", "XLMRoberta", "DistilBert", "MPNet", "Electra")
HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
LENGTHS = (11, 1, 4)  # MPNet has a bucket for each distance below 8
TOLERANCE = 2e-6  # FP32, relative; a sum of at most 40 products


def prepared(model: Any, inputs: dict[str, Any], device: str, precision: str) -> infer.Session:
    axes = {name: {0: "batch", 1: "sequence"} for name in inputs}
    return infer.prepare(
        model, backend="fused", example=inputs, dynamic=axes, precision=precision, device=device
    )


def outputs(module: Any, inputs: dict[str, Any]) -> np.ndarray:
    with torch.inference_mode():
        return module(*map(torch.from_numpy, inputs.values())).numpy()


def distance(got: np.ndarray, want: np.ndarray, inputs: dict[str, Any]) -> float:
    """The relative distance of the outputs of real tokens, or of whole rows."""
    real = inputs["attention_mask"] > 0 if want.ndim == 3 else slice(None)
    return float(np.linalg.norm(got[real] - want[real]) / np.linalg.norm(want[real]))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_head_computes_what_transformers_computes(
    device: str, family: str, head: str, tmp_path: Path
) -> None:
    theirs = published(tmp_path, family, head)
    inputs = padded(LENGTHS, theirs.config.pad_token_id or 0)
    with prepared(loaded(tmp_path), inputs, device, "fp32") as session:
        got = session.run(inputs)["output"]
    want = expected(theirs, inputs)
    assert got.shape == want.shape
    assert distance(got, want, inputs) < TOLERANCE


def test_modes_without_distances_refuse_them() -> None:
    """A mode that was tuned for an encoder without distances is not taken for one with them."""
    weights = random(1, 32, 32, 2, "fp8", "cpu", vocabulary=50)
    mpnet = dataclasses.replace(weights, distances=torch.zeros(2, 63))
    assert program_key(mpnet, 16) != program_key(weights, 16)
    for mode in ("persistent", "cuda", "cuda4", "multicast"):
        with pytest.raises(UnsupportedError, match=f"mode {mode} adds no terms"):
            Lowering(mpnet, 16, 1, Tuned().tile, mode)


@pytest.mark.parametrize("family", ["MPNet", "Electra"])
def test_eight_bits_agree_with_the_simulation(device: str, family: str, tmp_path: Path) -> None:
    """The families with parts that BERT lacks, within the error of quantisation."""
    theirs = published(tmp_path, family, HEADS[0])
    inputs = padded(LENGTHS, 1)
    quantised = quant.quantise(loaded(tmp_path), [inputs], precision="int8")
    with prepared(quantised, inputs, device, "int8") as session:
        got = session.run(inputs)["output"]
    exact, simulated = expected(theirs, inputs), outputs(quantised, inputs)
    noise = distance(simulated, exact, inputs)
    assert noise < 0.1
    assert distance(got, simulated, inputs) < 1.5 * noise
