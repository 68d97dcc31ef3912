"""The checkpoints of `bert-intent-precision`: fine-tuned, quantised after or during training, and pruned and fine-tuned."""

import copy
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from buzzer.datasets import clinc150 as dataset
from buzzer.engine import device, quant
from buzzer.errors import unknown_name
from buzzer.models.bert import encoder, finetune, head, tokenizer, weights
from buzzer.models.bert.intent import classes_of
from buzzer.models.bert.params import PrecisionContext
from buzzer.models.bert.tokenizer import Labelled
from buzzer.models.kept_pieces import KeptPieces

NAMES = ("float", "int8", "fp8", "int8-qat", "sparse", "sparse-int8")  # each after the ones it is made from
FLOAT = (
    "head",
)  # not quantised: it is a hundredth of the work, and errors in it change the predicted class directly


def order(names: Sequence[str]) -> list[str]:
    """The named checkpoints and the ones they are made from, in the order of making. Raises UsageError for an unknown name."""
    for name in names:
        if name not in NAMES:
            raise unknown_name("checkpoint", name, NAMES)
    needed = {"float", *names} | ({"sparse"} if "sparse-int8" in names else set())
    return [name for name in NAMES if name in needed]


@dataclass(frozen=True)
class Parts:
    """Training and validation sentences, out-of-scope ones included."""

    train: Labelled
    valid: Labelled


def start(
    context: PrecisionContext,
) -> Generator[str, None, tuple[Parts, encoder.SentenceClassifier, list[str]]]:
    """The data, the model from which fine-tuning starts, and the names of the classes. Yields the phase in which it fits the head.

    The model is the pretrained encoder with a head fitted to its sentence vectors.
    """
    params = context.params
    folder = weights.folder(params.weights)
    splits = dataset.read(context.data)
    classes = classes_of(splits)
    torch.set_num_threads(context.threads)
    torch.set_flush_denormal(True)
    tokens = tokenizer.load(folder, params.longest)
    model = blank(context, folder, len(classes))
    encoder.check_length(model.bert, params.longest)
    parts = [tokenizer.labelled(tokens, splits, part, classes) for part in ("train", "val")]
    if "float" not in KeptPieces(context.work):
        yield "features"
        train, valid = head.embedded(model, parts, params.batch)
        best = head.fit(train, valid, len(classes), params.l2, context.seed)
        model.head.load_state_dict({"weight": best.weight, "bias": best.bias})
    return Parts(*parts), model, classes


def blank(context: PrecisionContext, folder: Path, classes: int) -> encoder.SentenceClassifier:
    """The pretrained encoder, truncated to its first `layers` layers, with an untrained head."""
    bert = encoder.load(folder)
    if context.params.layers:
        bert = encoder.cut(bert, context.params.layers)
    return encoder.SentenceClassifier(bert, classes)


def in_bf16(setting: Literal[True, False, "auto"]) -> bool:
    """Whether training multiplies in BF16; "auto" = if the processor has instructions for it."""
    return device.multiplies_bf16() if setting == "auto" else setting


class Maker:
    """Makes checkpoints one after the other. It keeps those that an earlier, interrupted fit has made."""

    def __init__(self, context: PrecisionContext, data: Parts) -> None:
        self.context, self.params, self.data = context, context.params, data
        self.kept = KeptPieces(context.work)
        self.bf16 = in_bf16(self.params.tune_bf16)
        self.details: dict[str, dict[str, Any]] = {}  # by checkpoint: valid_accuracy, bytes

    def make(self, name: str, model: nn.Module) -> Iterator[None]:
        """Write the checkpoint `name` to `context.work`; yields after each epoch. model: the model from `start`."""
        if name not in self.kept:
            first = copy.deepcopy(model if name == "float" else self.read("float", model))
            yield from self.steps(name, first, model)
        self.details[name] = {
            "valid_accuracy": finetune.accuracy(self.read(name, model), self.data.valid, 64),
            "bytes": sum(file.stat().st_size for file in self.kept.path(name).glob("[!.]*")),
        }

    def steps(self, name: str, model: nn.Module, like: nn.Module) -> Iterator[None]:
        """Make a checkpoint from `model`; yields after each epoch. like: a float model of the same architecture."""
        params = self.params
        match name:
            case "float":
                yield from self.tune(name, model, params.epochs, params.lr)
            case "int8" | "fp8":
                model = self.quantise(model, name)
            case "int8-qat":
                model = self.quantise(model, "int8")
                yield from self.tune(name, model, params.qat_epochs, params.qat_lr)
            case "sparse":
                zeros = quant.Sparsity(model, skip=FLOAT)
                yield from self.tune(name, model, params.sparse_epochs, params.sparse_lr, zeros)
            case "sparse-int8":
                sparse = self.read("sparse", like)
                quant.Sparsity(sparse, skip=FLOAT)  # prunes
                model = self.quantise(sparse, "int8")
                zeros = quant.Sparsity(model, skip=FLOAT)
                yield from self.tune(name, model, params.qat_epochs, params.qat_lr, zeros)
        with self.kept.making(name) as folder:
            quant.save(model, folder)

    def tune(
        self, name: str, model: nn.Module, epochs: int, lr: float, zeros: quant.Sparsity | None = None
    ) -> Iterator[None]:
        """Fine-tune; yields after each epoch. Resumes if it was interrupted. zeros: masks of the weights that stay zero."""
        checkpoint = self.kept.path(f"{name}.checkpoint")
        tuner = finetune.Tuner(
            model,
            self.data.train,
            epochs=epochs,
            lr=lr,
            batch=self.params.tune_batch,
            seed=self.context.seed,
            checkpoint=checkpoint,
            bf16=self.bf16,
            sparsity=zeros,
        )
        for _ in tuner.run(epochs):
            yield
        self.kept.remove(checkpoint.name)

    def quantise(self, model: nn.Module, precision: str) -> nn.Module:
        """The model in another precision, with static scales from training sentences drawn by the seed."""
        count, batch = self.params.calibration, self.params.batch
        rows = np.random.default_rng(self.context.seed).permutation(len(self.data.train.ids))[:count]
        ids = [self.data.train.ids[row] for row in rows]
        batches = [tokenizer.pad([ids[i] for i in group]) for group in tokenizer.batches(ids, batch)]
        smooth = self.params.smooth or None
        folds = encoder.smooth_folds(model.bert) if smooth else None  # type: ignore[arg-type]
        return quant.quantise(
            model,
            batches,
            precision=precision,
            method=self.params.method,
            smooth=smooth,
            folds=folds and {f"bert.{k}": [f"bert.{v}" for v in vs] for k, vs in folds.items()},
            skip=FLOAT,
        )

    def read(self, name: str, like: nn.Module) -> nn.Module:
        """The checkpoint `name`. like: a float model of the same architecture."""
        return quant.load(self.kept.path(name), like)
