"""The `bert-intent` task: predicts the intents of real sentences with real MiniLM-L6 weights, from raw text to labels.

`fit` writes to the work folder:
- head.pt: `weight` [classes, dim] and `bias` [classes] of the linear head;
- model.onnx: the graph of the encoder with the head;
- classes.json: the names of the classes.

Details of `fit`: `l2`, the penalty that was best on the validation split.

Details of `predict`: `session`, the session's description; `tokens`, the number of tokens in all sentences; `latency_runs`, the number
of sentences timed one by one.
"""

import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from buzzer.datasets import clinc150 as dataset
from buzzer.datasets.clinc150 import generator
from buzzer.datasets.clinc150.metric import TESTED
from buzzer.datasets.clinc150.reader import FILE, OOS
from buzzer.models.api.context import Result, Steps
from buzzer.models.bert import weights
from buzzer.models.bert.params import IntentContext, IntentParams
from buzzer.models.dataset_task import DatasetTask, DataSource, TaskContext

STAND_IN = "a generated stand-in for CLINC150: set BUZZER_DATA or use --data for the real sentences"
GRAPH = "model.onnx"
P = TypeVar("P", bound=IntentParams)
Splits = dict[str, list[tuple[str, str]]]  # split -> sentences and their labels


@dataclass(frozen=True)
class Ready:
    """A fitted model, ready for a session."""

    model: Any  # torch module, or a stored one
    precision: str  # precision of the session
    notes: tuple[str, ...] = ()  # important remarks for readers of the record
    details: dict[str, Any] = field(default_factory=dict)  # additional details of `predict`


class IntentTask(DatasetTask[P]):
    """A task on CLINC150 or other labelled sentences. A subclass implements `fit_steps` and `ready`."""

    data_source = DataSource(
        f"clinc150-v{generator.VERSION}",
        dataset.generate,
        dataset.check,
        installed=Path("text", "clinc150", FILE),
        stand_in=STAND_IN,
    )

    @abstractmethod
    def ready(self, context: TaskContext[P], folder: Path, classes: int) -> Ready:
        """The fitted model. folder: the model folder of the pretrained encoder."""

    def predict_steps(self, context: TaskContext[P]) -> Steps:
        """Predict the intents of the test sentences, and time some of them one by one."""
        from buzzer.engine import infer
        from buzzer.models.bert import tokenizer

        params = context.params
        yield "load"
        folder = weights.folder(params.weights)
        splits = dataset.read(context.data)
        classes = json.loads((context.work / "classes.json").read_text())
        tokens = tokenizer.load(folder, params.longest)
        ready = self.ready(context, folder, len(classes))
        session = infer.prepare(
            ready.model,
            backend=context.backend,
            **interface(),
            precision=ready.precision,
            device=context.device,
            threads=context.threads,
        )
        yield "features"
        sentences = [sentence for part in TESTED for sentence, _ in splits[part]]
        ids = tokenizer.encode(tokens, sentences)
        predicted = np.empty(len(ids), dtype=np.int64)
        for rows in tokenizer.batches(ids, params.batch):
            yield "predict"
            batch = tokenizer.pad([ids[row] for row in rows])
            predicted[rows] = session.run(batch)["logits"].argmax(axis=1)
        timed = sample(len(ids), params.latency, context.seed)
        for row in timed:
            yield "latency"  # one sentence from text to label
            batch = tokenizer.pad(tokenizer.encode(tokens, [sentences[row]]))
            session.run(batch)["logits"].argmax()
        yield "write"
        details = {
            "session": vars(session.describe()),
            "tokens": sum(len(x) for x in ids),
            "latency_runs": len(timed),
            **ready.details,
        }
        session.close()
        submission = context.out / "submission.csv"
        labels = labels_of(predicted, classes, [len(splits[part]) for part in TESTED])
        dataset.write_submission(submission, labels)
        yield "score"
        scores = dataset.score(submission, context.data)
        return Result(scores, len(ids), details, (submission,), notes=ready.notes)


class BertIntent(IntentTask[IntentParams]):
    """See configs/tasks/bert-intent.yaml for the parameters."""

    params_type = IntentParams

    def fit_steps(self, context: IntentContext) -> Steps:
        """Embed the training split and fit the head; the encoder is not trained."""
        import torch

        from buzzer.engine import infer
        from buzzer.models.bert import encoder, head, tokenizer

        params = context.params
        yield "load"
        folder = weights.folder(params.weights)
        splits = dataset.read(context.data)
        classes = classes_of(splits)
        model = encoder.SentenceClassifier(encoder.load(folder), len(classes))
        encoder.check_length(model.bert, params.longest)
        yield "features"
        torch.set_num_threads(context.threads)
        tokens = tokenizer.load(folder, params.longest)
        parts = [tokenizer.labelled(tokens, splits, part, classes) for part in ("train", "val")]
        train, valid = head.embedded(model, parts, params.batch)
        yield "fit"
        best = head.fit(train, valid, len(classes), params.l2, context.seed)
        yield "write"
        torch.save({"weight": best.weight, "bias": best.bias}, context.work / "head.pt")
        whole = fitted(folder, context.work, len(classes))
        infer.store(whole, context.work / GRAPH, **interface())
        (context.work / "classes.json").write_text(json.dumps(classes))
        return Result({"valid_accuracy": best.accuracy}, len(train[1]), {"l2": best.l2})

    def ready(self, context: IntentContext, folder: Path, classes: int) -> Ready:
        """The encoder with the fitted head."""
        from buzzer.engine import infer

        load = partial(fitted, folder, context.work, classes)
        return Ready(infer.Stored(context.work / GRAPH, load), context.precision)


def interface() -> dict[str, Any]:
    """The inputs and outputs of the model, as `infer.prepare` takes them: two sentences of two tokens, of which any number may come."""
    from buzzer.models.bert import tokenizer

    example = tokenizer.pad([[101, 102], [101, 102]])
    dynamic = {name: {0: "batch", 1: "sequence"} for name in example}
    return {"example": example, "outputs": ("logits",), "dynamic": dynamic}


def classes_of(splits: Splits) -> list[str]:
    """Names of the classes: the labels of the training split, sorted, and the out-of-scope class if there are such sentences."""
    return [*sorted({label for _, label in splits["train"]}), *([OOS] if splits["oos_train"] else [])]


def fitted(folder: Path, work: Path, classes: int) -> Any:
    """The encoder of a model folder with the head that `fit` saved."""
    import torch

    from buzzer.models.bert import encoder

    model = encoder.SentenceClassifier(encoder.load(folder), classes)
    model.head.load_state_dict(torch.load(work / "head.pt", weights_only=True))
    return model


def labels_of(
    predicted: npt.NDArray[np.int64], classes: Sequence[str], sizes: Sequence[int]
) -> dict[str, Sequence[str]]:
    """Split -> predicted labels, for the tested splits. sizes: number of sentences of each split."""
    ends = np.cumsum(sizes)
    return {
        part: [classes[i] for i in predicted[end - size : end]]
        for part, size, end in zip(TESTED, sizes, ends, strict=True)
    }


def sample(rows: int, n: int, seed: int) -> list[int]:
    """`n` distinct rows, drawn by the seed; all rows if there are fewer."""
    return list(map(int, np.random.default_rng(seed).permutation(rows)[:n]))


TASK = BertIntent()
