"""Makes the checkpoints of `bert-intent-precision`: fine-tuned, quantised after and in training, pruned and tuned."""

import copy
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from buzzer.datasets import clinc150 as dataset
from buzzer.datasets.clinc150.reader import FILE, OOS
from buzzer.engine import device, quant
from buzzer.errors import UsageError, unknown_name
from buzzer.models.api.context import RunContext
from buzzer.models.bert import encoder, finetune, head, tokenizer, weights
from buzzer.models.bert.finetune import Labelled

NAMES = ("float", "int8", "fp8", "int8-qat", "sparse", "sparse-int8")  # each after those it is made from
FLOAT = ("head",)  # stays in float: a hundredth of the work, and the last to decide


def order(names: Sequence[str]) -> list[str]:
    """The checkpoints asked for and those they are made from, in turn. Raises UsageError for an unknown one."""
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


def start(job: RunContext) -> Generator[str, None, tuple[Parts, encoder.SentenceClassifier, list[str]]]:
    """Data, and the pretrained encoder with a head fitted to its vectors, from which tuning starts."""
    folder = weights.folder(job.params["weights"])
    splits = dataset.read(job.data / FILE)
    classes = [*sorted({label for _, label in splits["train"]}), OOS]
    torch.set_num_threads(job.threads)
    torch.set_flush_denormal(True)
    tokens = tokenizer.load(folder, job.params["longest"])
    model = blank(job, folder, len(classes))
    encoder.check_length(model.bert, job.params["longest"])
    found = []
    for part in ("train", "val"):
        entries = splits[part] + splits[f"oos_{part}"]
        ids = tokenizer.encode(tokens, [sentence for sentence, _ in entries])
        found.append(Labelled(ids, np.array([classes.index(label) for _, label in entries])))
    data = Parts(*found)
    if not (job.work / "float").is_dir():
        yield "features"
        first = [
            (head.vectors(model, d.ids, job.params["batch"]), torch.from_numpy(d.targets)) for d in found
        ]
        best = head.fit(first[0], first[1], len(classes), job.params["l2"], job.seed)
        model.head.load_state_dict({"weight": best.weight, "bias": best.bias})
    return data, model, classes


def blank(job: RunContext, folder: Path, classes: int) -> encoder.SentenceClassifier:
    """The pretrained encoder, cut to its first `layers` layers, with a head that nothing has fitted."""
    bert = encoder.load(folder)
    if job.params["layers"]:
        bert = encoder.cut(bert, job.params["layers"])
    return encoder.SentenceClassifier(bert, classes)


def in_bf16(asked: Any) -> bool:
    """Whether training multiplies in BF16. Raises UsageError for what is neither true nor false nor "auto"."""
    if asked == "auto":
        return device.multiplies_bf16()
    if not isinstance(asked, bool):
        raise UsageError(f"tune_bf16={asked}: not true, false or auto", "auto: where the processor has BF16")
    return asked


class Maker:
    """Makes checkpoints one after the other; those that are there already are taken as they are."""

    def __init__(self, job: RunContext, data: Parts) -> None:
        self.job, self.params, self.data = job, job.params, data
        self.bf16 = in_bf16(self.params["tune_bf16"])
        self.told: dict[str, dict[str, Any]] = {}

    def make(self, name: str, model: nn.Module) -> Iterator[None]:
        """Write the checkpoint `name` under job.work; yields after each epoch. `model`: what tuning starts from."""
        folder = self.job.work / name
        if not folder.is_dir():
            made = copy.deepcopy(model if name == "float" else self.read("float", model))
            yield from self.steps(name, made, model)
        self.told[name] = {
            "valid_accuracy": finetune.accuracy(self.read(name, model), self.data.valid, 64),
            "bytes": sum(file.stat().st_size for file in folder.iterdir()),
        }

    def steps(self, name: str, made: nn.Module, like: nn.Module) -> Iterator[None]:
        match name:
            case "float":
                yield from self.tune(name, made, self.params["epochs"], self.params["lr"])
            case "int8" | "fp8":
                made = self.quantise(made, name)
            case "int8-qat":
                made = self.quantise(made, "int8")
                yield from self.tune(name, made, self.params["qat_epochs"], self.params["qat_lr"])
            case "sparse" | "sparse-int8":
                made = self.read("sparse", like) if name == "sparse-int8" else made
                zeros = quant.Sparsity(made, skip=FLOAT)
                if name == "sparse-int8":
                    made = self.quantise(made, "int8")
                    zeros = quant.Sparsity(made, skip=FLOAT)
                kind = "sparse" if name == "sparse" else "qat"
                yield from self.tune(
                    name, made, self.params[f"{kind}_epochs"], self.params[f"{kind}_lr"], zeros
                )
        quant.save(made, self.job.work / name)

    def tune(
        self, name: str, model: nn.Module, epochs: int, lr: float, zeros: quant.Sparsity | None = None
    ) -> Iterator[None]:
        tuner = finetune.Tuner(
            model,
            self.data.train,
            epochs=epochs,
            lr=lr,
            batch=self.params["tune_batch"],
            seed=self.job.seed,
            file=self.job.work / f"{name}.tuning.pt",
            bf16=self.bf16,
            after_step=zeros.apply if zeros else lambda: None,
        )
        for _ in tuner.run():
            yield
        tuner.file.unlink(missing_ok=True)

    def quantise(self, model: nn.Module, precision: str) -> nn.Module:
        """Scales from training sentences, drawn by the seed."""
        count, batch = self.params["calibration"], self.params["batch"]
        rows = np.random.default_rng(self.job.seed).permutation(len(self.data.train.ids))[:count]
        ids = [self.data.train.ids[row] for row in rows]
        batches = [tokenizer.pad([ids[i] for i in group]) for group in tokenizer.batches(ids, batch)]
        smooth = self.params["smooth"] or None
        folds = encoder.smooth_folds(model.bert) if smooth else None  # type: ignore[arg-type]
        return quant.quantise(
            model,
            batches,
            precision=precision,
            method=self.params["method"],
            smooth=smooth,
            folds=folds and {f"bert.{k}": [f"bert.{v}" for v in vs] for k, vs in folds.items()},
            skip=FLOAT,
        )

    def read(self, name: str, like: nn.Module) -> nn.Module:
        return quant.load(self.job.work / name, like)
