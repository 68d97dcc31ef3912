"""BERT encoders as bench targets: named shapes with random weights, real MiniLM weights, any Hugging Face folder."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine.infer import Array
from buzzer.errors import UnsupportedError, UsageError, unknown_name
from buzzer.models.api.bench import Batch, BenchModel, BenchSpec, outputs_of, stamp
from buzzer.models.bert import weights

RANDOM = "random weights of the published shape: latency only, accuracy means nothing"
RANDOM_IDS = "uniform random token ids: no tokenizer at hand (the weights extra brings one)"
STAND_IN = "sentences of a generated stand-in for CLINC150: set BUZZER_DATA for the real ones"
HEADLESS = "the encoder alone is timed; left out: {}"
PACKINGS = ("padded", "sorted", "packed")
CALIBRATION = 8  # batches
CALIBRATED = 8  # rows of each, at most: static scales need no more, and each is a run in FP32
SENTENCES = 4096  # at most that many are tokenised
LONGEST = 128  # tokens after which a sentence of real length is cut
SPECIAL = 1000  # below it are BERT's unused and special ids


class BertTarget:
    """params: `spec`, a named shape with random weights, or `weights`, a known name or a model folder."""

    def load(self, ask: BenchSpec) -> BenchModel:
        if ask.packing not in PACKINGS:
            raise unknown_name("packing", ask.packing, PACKINGS)
        if ask.lengths == "fixed" and ask.packing != "padded":
            raise UsageError("rows of one length have no padding to save", "add --lengths real")
        model, output, notes, facts = network(ask)
        longest = model_config(model).max_position_embeddings
        if ask.lengths == "fixed" and ask.seq > longest:
            raise UsageError(f"--seq {ask.seq}: the model has {longest} positions", f"use --seq {longest}")
        text = sentences(ask, model_config(model).vocab_size)
        made = fixed(ask, text) if ask.lengths == "fixed" else real(ask, text)
        if (taken := max(map(positions, (*made.batches, *made.calibration)))) > longest:
            told = f"--lengths {ask.lengths}: rows take {taken} positions, the model has {longest}"
            raise UsageError(told, f"use --lengths fixed --seq {longest}")
        if ask.packing == "packed":
            from buzzer.models.bert.packing import Packed

            if output == "logits":
                raise UsageError("a packed row has no single class", "use --packing sorted for classifiers")
            model = Packed(model)
        return BenchModel(
            model=model,
            outputs=(output,),
            batches=made.batches,
            reference=lambda batch: outputs_of(model, batch, (output,)),
            rows=made.rows,
            calibration=made.calibration,
            valid=[valid(batch) if output == "hidden" else None for batch in made.batches],
            dynamic={}
            if ask.lengths == "fixed"
            else {k: {0: "batch", 1: "sequence"} for k in made.batches[0]},
            source=text.source,
            notes=(*notes, *text.notes),
            facts=facts | made.facts,
        )

    def identity(self, ask: BenchSpec) -> Any:
        """The sources, the model's and the tokenizer's files, and the real sentences."""
        from buzzer.datasets import clinc150

        code = [p for module in (__file__, clinc150.__file__) for p in Path(module).parent.glob("*.py")]
        used = [ask.params[name] for name in ("weights",) if name in ask.params]
        files = [p for name in used for p in weights.folder(name, tokenizer=False).iterdir() if p.is_file()]
        with suppress(UnsupportedError, UsageError):
            files.append(tokens_folder(ask) / "tokenizer.json")
        real = real_sentences()
        return [stamp(code), stamp(files), stamp([real] if real else [])]


def network(ask: BenchSpec) -> tuple[Any, str, tuple[str, ...], dict[str, Any]]:
    """The torch module, the name of its output, notes and facts."""
    from buzzer.models.bert import encoder

    if "spec" in ask.params:
        return encoder.random(encoder.spec(ask.params["spec"]), ask.seed), "hidden", (RANDOM,), {}
    folder = weights.folder(ask.params["weights"], tokenizer=False)
    config, read = encoder.config_of(folder), encoder.read(folder)
    classifier = encoder.classifier_of(config, read, folder)
    if classifier is None:
        parts = encoder.left_out(read)
        notes = (HEADLESS.format(", ".join(parts)),) if parts else ()
        return encoder.encoder_of(config, read, folder), "hidden", notes, {}
    return classifier, "logits", (), {"classes": classifier.head.out_features}


def model_config(model: Any) -> Any:
    return getattr(model, "bert", model).config


def positions(batch: Batch) -> int:
    """Positions that a batch takes."""
    return int(batch["positions"].max()) + 1 if "positions" in batch else batch["input_ids"].shape[1]


def valid(batch: Batch) -> Array:
    """Tokens that are no padding: bool [batch, sequence]."""
    return np.asarray(batch["segments" if "segments" in batch else "attention_mask"]) > 0


@dataclass(frozen=True)
class Text:
    """Token ids of sentences, each with its first and last special token."""

    ids: list[list[int]]
    source: str
    notes: tuple[str, ...]


def sentences(ask: BenchSpec, vocabulary: int) -> Text:
    """Real sentences where they and a tokenizer are at hand, in an order drawn by the seed; else stand-ins."""
    rng = np.random.default_rng(ask.seed)
    try:
        folder = tokens_folder(ask)
    except (UnsupportedError, UsageError):
        lengths = np.clip(rng.poisson(9, SENTENCES) + 3, 4, LONGEST)
        made = [rng.integers(min(SPECIAL, vocabulary // 2), vocabulary, n).tolist() for n in lengths]
        return Text(made, "generated", (RANDOM_IDS,))
    from buzzer.models.bert import tokenizer

    lines, source = lines_of(ask.seed)
    order = rng.permutation(len(lines))[:SENTENCES]
    ids = tokenizer.encode(tokenizer.load(folder, LONGEST), [lines[i] for i in order])
    if max(map(max, ids)) >= vocabulary:
        raise UsageError("the tokenizer's vocabulary is larger than the model's")
    return Text(ids, source, () if source == "official" else (STAND_IN,))


def tokens_folder(ask: BenchSpec) -> Path:
    """The folder of the tokenizer: the model's own, or MiniLM's, which has BERT's vocabulary."""
    return weights.folder(ask.params.get("weights", "minilm-l6"))


def real_sentences() -> Path | None:
    """CLINC150's file in $BUZZER_DATA, where it is there."""
    from buzzer.datasets.clinc150.reader import FILE

    file = Path(os.environ.get("BUZZER_DATA", "")) / "text" / "clinc150" / FILE
    return file if "BUZZER_DATA" in os.environ and file.is_file() else None


def lines_of(seed: int) -> tuple[list[str], str]:
    """CLINC150's test sentences from $BUZZER_DATA, or generated ones."""
    import tempfile

    from buzzer.datasets import clinc150
    from buzzer.datasets.clinc150.metric import TESTED
    from buzzer.datasets.clinc150.reader import FILE

    if real := real_sentences():
        splits, source = clinc150.read(real), "official"
    else:
        with tempfile.TemporaryDirectory(prefix="buzzer-text-") as name:
            clinc150.generate(Path(name), 1.0, seed, lambda share, what: None)
            splits, source = clinc150.read(Path(name) / FILE), "generated"
    return [sentence for part in TESTED for sentence, _ in splits[part]], source


@dataclass(frozen=True)
class Made:
    """Batches, the sentences in each, and batches of other sentences to calibrate on."""

    batches: list[dict[str, Array]]
    rows: list[int]
    calibration: list[dict[str, Array]]
    facts: dict[str, Any]


def fixed(ask: BenchSpec, text: Text) -> Made:
    """Rows of exactly `seq` tokens: sentences after one another, cut. The mask is all ones."""
    stream = np.array([token for ids in text.ids for token in ids], dtype=np.int64)
    count = ask.inputs + CALIBRATION
    ids = np.resize(stream, (count, ask.batch, ask.seq))
    made: list[dict[str, Array]] = [
        {"input_ids": np.ascontiguousarray(x), "attention_mask": np.ones_like(x)} for x in ids
    ]
    others = [{name: array[:CALIBRATED] for name, array in batch.items()} for batch in made[ask.inputs :]]
    return Made(made[: ask.inputs], [ask.batch] * ask.inputs, others, {})


def real(ask: BenchSpec, text: Text) -> Made:
    """Sentences of their own lengths, `batch` a batch (padded, or sorted by length and padded), or packed into rows
    of `batch` x `seq` tokens. The same `inputs` x `batch` sentences whatever the packing."""
    from buzzer.models.bert import packing, tokenizer

    count = ask.inputs * ask.batch
    ids = [text.ids[i % len(text.ids)] for i in range(count)]
    lengths = [len(x) for x in ids]
    if ask.packing == "packed":
        groups: list[Sequence[int]] = list(packing.buckets(lengths, ask.seq))
    elif ask.packing == "sorted":
        groups = [g.tolist() for g in tokenizer.batches(ids, ask.batch)]
    else:
        groups = [range(i, i + ask.batch) for i in range(0, count, ask.batch)]
    put = packing.pack if ask.packing == "packed" else tokenizer.pad
    batches: list[dict[str, Array]] = [dict(put([ids[i] for i in group])) for group in groups]
    computed = sum(batch["input_ids"].size for batch in batches)
    other = [text.ids[-1 - i] for i in range(min(ask.batch * CALIBRATION, len(text.ids)))]
    facts = {"sentences": count, "tokens": sum(lengths), "tokens_computed": computed}
    return Made(batches, [len(g) for g in groups], [dict(put([x])) for x in other[: CALIBRATION * 4]], facts)


TARGET = BertTarget()
