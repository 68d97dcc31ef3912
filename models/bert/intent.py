"""The `bert-intent` task: real sentences through real MiniLM-L6 weights to an intent, from raw text to labels."""

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from buzzer.datasets import clinc150 as dataset
from buzzer.datasets.checked import given_or_generated
from buzzer.datasets.clinc150 import generator
from buzzer.datasets.clinc150.metric import TESTED
from buzzer.datasets.clinc150.reader import FILE, OOS
from buzzer.models.api.context import Data, Progress, Result, RunContext, Steps
from buzzer.models.bert import weights

REAL = Path("text/clinc150")  # under $BUZZER_DATA
STAND_IN = "a generated stand-in for CLINC150: set BUZZER_DATA or give --data for the real sentences"


class BertIntent:
    """See configs/tasks/bert-intent.yaml for the parameters."""

    def prepare(self, source: Path | None, cache: Path, scale: float, seed: int, progress: Progress) -> Data:
        real = Path(os.environ["BUZZER_DATA"]) / REAL if "BUZZER_DATA" in os.environ else None
        if source is None and real is not None and (real / FILE).is_file():
            source = real
        folder = cache / f"clinc150-v{generator.VERSION}-scale{scale:g}-seed{seed}"
        generate = partial(dataset.generate, scale=scale, seed=seed, progress=progress)
        files = given_or_generated(source, folder, generate, dataset.check, cache, progress)
        notes = files.notes if files.source == "official" else (*files.notes, STAND_IN)
        return Data(files.folder, files.fingerprint, files.source, files.rows, files.scale, notes)

    def fit(self, job: RunContext) -> Steps:
        """Embed the training split and fit the head; the encoder stays as it is."""
        import torch

        from buzzer.models.bert import encoder, head, tokenizer

        yield "load"
        folder = weights.folder(job.params["weights"])
        splits = dataset.read(job.data / FILE)
        classes = [*sorted({label for _, label in splits["train"]}), OOS]
        model = encoder.SentenceClassifier(encoder.load(folder), len(classes))
        encoder.check_length(model.bert, job.params["longest"])
        yield "features"
        torch.set_num_threads(job.threads)
        tokens = tokenizer.load(folder, job.params["longest"])
        parts: dict[str, tuple[Any, Any]] = {}
        for part in ("train", "val"):
            entries = splits[part] + splits[f"oos_{part}"]
            ids = tokenizer.encode(tokens, [sentence for sentence, _ in entries])
            targets = torch.tensor([classes.index(label) for _, label in entries])
            parts[part] = head.vectors(model, ids, job.params["batch"]), targets
        yield "fit"
        found = head.fit(parts["train"], parts["val"], len(classes), job.params["l2"], job.seed)
        yield "write"
        torch.save({"weight": found.weight, "bias": found.bias}, job.work / "head.pt")
        (job.work / "classes.json").write_text(json.dumps(classes))
        return Result({"valid_accuracy": found.accuracy}, len(parts["train"][1]), {"l2": found.l2})

    def predict(self, job: RunContext) -> Steps:
        from buzzer.engine import infer
        from buzzer.models.bert import tokenizer

        yield "load"
        folder = weights.folder(job.params["weights"])
        splits = dataset.read(job.data / FILE)
        classes = json.loads((job.work / "classes.json").read_text())
        tokens = tokenizer.load(folder, job.params["longest"])
        example = tokenizer.pad([[101, 102], [101, 102]])
        model, precision, notes, own = self.ready(job, folder, len(classes))
        session = infer.prepare(
            model,
            backend=job.backend,
            example=example,
            outputs=("logits",),
            dynamic={name: {0: "batch", 1: "sequence"} for name in example},
            precision=precision,
            device=job.device,
            threads=job.threads,
        )
        yield "features"
        sentences = [sentence for part in TESTED for sentence, _ in splits[part]]
        ids = tokenizer.encode(tokens, sentences)
        predicted = np.empty(len(ids), dtype=np.int64)
        for rows in tokenizer.batches(ids, job.params["batch"]):
            yield "predict"
            predicted[rows] = session.run(tokenizer.pad([ids[row] for row in rows]))["logits"].argmax(axis=1)
        alone = sample(len(ids), job.params["latency"], job.seed)
        for row in alone:
            yield "latency"  # one sentence from text to label
            one = tokenizer.pad(tokenizer.encode(tokens, [sentences[row]]))
            session.run(one)["logits"].argmax()
        yield "write"
        facts = {
            "session": vars(session.describe()),
            "tokens": sum(len(x) for x in ids),
            "latency_runs": len(alone),
            **own,
        }
        session.close()
        submission = job.out / "submission.csv"
        dataset.write_submission(
            submission, labels_of(predicted, classes, [len(splits[part]) for part in TESTED])
        )
        yield "score"
        scores = dataset.score(submission, job.data / FILE)
        return Result(scores, len(ids), facts, (submission,), notes=notes)

    def ready(
        self, job: RunContext, folder: Path, classes: int
    ) -> tuple[Any, str, tuple[str, ...], dict[str, Any]]:
        """The model that `fit` left, the precision of its session, what a reader of the record must know, and facts for its details."""
        return fitted(folder, job.work, classes), job.precision, (), {}


def fitted(folder: Path, work: Path, classes: int) -> Any:
    """The encoder with the head that `fit` saved."""
    import torch

    from buzzer.models.bert import encoder

    model = encoder.SentenceClassifier(encoder.load(folder), classes)
    model.head.load_state_dict(torch.load(work / "head.pt", weights_only=True))
    return model


def labels_of(
    predicted: npt.NDArray[np.int64], classes: Sequence[str], sizes: Sequence[int]
) -> dict[str, Sequence[str]]:
    """Labels by tested split."""
    ends = np.cumsum(sizes)
    return {
        part: [classes[i] for i in predicted[end - size : end]]
        for part, size, end in zip(TESTED, sizes, ends, strict=True)
    }


def sample(rows: int, n: int, seed: int) -> list[int]:
    """Rows that are timed one by one: `n` different ones, or all where there are fewer."""
    return list(map(int, np.random.default_rng(seed).permutation(rows)[:n]))


TASK = BertIntent()
