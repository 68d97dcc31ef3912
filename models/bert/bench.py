"""BERT encoders as models of `buzzer bench`: named shapes with random weights, real MiniLM weights, any Hugging Face folder."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.datasets.contract import silent
from buzzer.engine.infer import Array
from buzzer.errors import UnsupportedError, UsageError, unknown_name
from buzzer.models.api.bench import Batch, BenchModel, BenchSpec, outputs_of, stamp
from buzzer.models.bert import weights

RANDOM = "random weights of the published shape: latency only, accuracy means nothing"
RANDOM_IDS = "uniform random token ids: no tokenizer is installed (the weights extra has one)"
STAND_IN = "sentences of a generated stand-in for CLINC150: set BUZZER_DATA for the real ones"
HEADLESS = "the encoder alone is timed; left out: {}"
PACKINGS = ("padded", "sorted", "packed")
CALIBRATION = 8  # batches for calibration
CALIBRATED = 8  # rows of each at most: static scales need no more, and each batch is a run in FP32
SENTENCES = 4096  # sentences that are tokenised, at most
LONGEST = 128  # tokens after which sentences are cut
SPECIAL = 1000  # first id that is neither special nor unused in BERT's vocabulary


class BertTarget:
    """params: `spec`, a named shape with random weights, or `weights`, a known name or a model folder."""

    def load(self, ask: BenchSpec) -> BenchModel:
        """The encoder or classifier with its inputs.

        Raises UsageError for an unknown packing, and for lengths or packings that the model cannot run.
        """
        if ask.packing not in PACKINGS:
            raise unknown_name("packing", ask.packing, PACKINGS)
        if ask.lengths == "fixed" and ask.packing != "padded":
            raise UsageError("rows of one length have no padding to save", "add --lengths real")
        model, output, notes, facts = network(ask)
        longest = model_config(model).max_position_embeddings
        if ask.lengths == "fixed" and ask.seq > longest:
            raise UsageError(f"--seq {ask.seq}: the model has {longest} positions", f"use --seq {longest}")
        text = sentences(ask, model_config(model).vocab_size)
        inputs = fixed(ask, text) if ask.lengths == "fixed" else real(ask, text)
        if (taken := max(map(positions, (*inputs.batches, *inputs.calibration)))) > longest:
            message = f"--lengths {ask.lengths}: rows take {taken} positions, the model has {longest}"
            raise UsageError(message, f"use --lengths fixed --seq {longest}")
        if ask.packing == "packed":
            from buzzer.models.bert.packing import Packed

            if output == "logits":
                raise UsageError("a packed row has no single class", "use --packing sorted for classifiers")
            model = Packed(model)
        return BenchModel(
            model=model,
            outputs=(output,),
            batches=inputs.batches,
            reference=lambda batch: outputs_of(model, batch, (output,)),
            rows=inputs.rows,
            calibration=inputs.calibration,
            valid=[valid(batch) if output == "hidden" else None for batch in inputs.batches],
            dynamic={}
            if ask.lengths == "fixed"
            else {k: {0: "batch", 1: "sequence"} for k in inputs.batches[0]},
            source=text.source,
            notes=(*notes, *text.notes),
            facts=facts | inputs.facts,
        )

    def identity(self, ask: BenchSpec) -> Any:
        """Hashes of the sources, of the files of model and tokenizer, and of the real sentences."""
        from buzzer.datasets import clinc150

        code = [p for module in (__file__, clinc150.__file__) for p in Path(module).parent.glob("*.py")]
        used = [ask.params[name] for name in ("weights",) if name in ask.params]
        files = [p for name in used for p in weights.folder(name, tokenizer=False).iterdir() if p.is_file()]
        with suppress(UnsupportedError, UsageError):
            files.append(tokens_folder(ask) / "tokenizer.json")
        real = real_sentences()
        return [stamp(code), stamp(files), stamp([real] if real else [])]


def network(ask: BenchSpec) -> tuple[Any, str, tuple[str, ...], dict[str, Any]]:
    """The torch module, the name of its output, notes, and facts for the record."""
    from buzzer.models.bert import encoder

    if "spec" in ask.params:
        return encoder.random(encoder.spec(ask.params["spec"]), ask.seed), "hidden", (RANDOM,), {}
    folder = weights.folder(ask.params["weights"], tokenizer=False)
    config, state = encoder.config_of(folder), encoder.read(folder)
    classifier = encoder.classifier_of(config, state, folder)
    if classifier is None:
        parts = encoder.left_out(state)
        notes = (HEADLESS.format(", ".join(parts)),) if parts else ()
        return encoder.encoder_of(config, state, folder), "hidden", notes, {}
    return classifier, "logits", (), {"classes": classifier.head.out_features}


def model_config(model: Any) -> Any:
    """The `BertConfig` of an encoder or a classifier."""
    return getattr(model, "bert", model).config


def positions(batch: Batch) -> int:
    """Number of positions that a batch needs."""
    return int(batch["positions"].max()) + 1 if "positions" in batch else batch["input_ids"].shape[1]


def valid(batch: Batch) -> Array:
    """Which tokens are not padding: bool [batch, sequence]."""
    return np.asarray(batch["segments" if "segments" in batch else "attention_mask"]) > 0


@dataclass(frozen=True)
class Text:
    """Token ids of sentences, each with its first and last special token, and where they come from."""

    ids: list[list[int]]
    source: str
    notes: tuple[str, ...]


def sentences(ask: BenchSpec, vocabulary: int) -> Text:
    """Real sentences in an order drawn by the seed; without a tokenizer, random ids. Raises UsageError if the vocabularies do not fit."""
    rng = np.random.default_rng(ask.seed)
    try:
        folder = tokens_folder(ask)
    except (UnsupportedError, UsageError):
        lengths = np.clip(rng.poisson(9, SENTENCES) + 3, 4, LONGEST)
        drawn = [rng.integers(min(SPECIAL, vocabulary // 2), vocabulary, n).tolist() for n in lengths]
        return Text(drawn, "generated", (RANDOM_IDS,))
    from buzzer.models.bert import tokenizer

    lines, source = lines_of(ask.seed)
    order = rng.permutation(len(lines))[:SENTENCES]
    ids = tokenizer.encode(tokenizer.load(folder, LONGEST), [lines[i] for i in order])
    if max(map(max, ids)) >= vocabulary:
        raise UsageError("the tokenizer's vocabulary is larger than the model's")
    return Text(ids, source, () if source == "official" else (STAND_IN,))


def tokens_folder(ask: BenchSpec) -> Path:
    """The folder of the tokenizer: the model's, or MiniLM's, which has BERT's vocabulary."""
    return weights.folder(ask.params.get("weights", "minilm-l6"))


def real_sentences() -> Path | None:
    """CLINC150's file in $BUZZER_DATA, or None."""
    from buzzer.datasets.clinc150.reader import FILE

    file = Path(os.environ.get("BUZZER_DATA", "")) / "text" / "clinc150" / FILE
    return file if "BUZZER_DATA" in os.environ and file.is_file() else None


def lines_of(seed: int) -> tuple[list[str], str]:
    """CLINC150's test sentences from $BUZZER_DATA or generated ones, and which of these: `official` or `generated`."""
    import tempfile

    from buzzer.datasets import clinc150
    from buzzer.datasets.clinc150.metric import TESTED
    from buzzer.datasets.clinc150.reader import FILE

    if real := real_sentences():
        splits, source = clinc150.read(real), "official"
    else:
        with tempfile.TemporaryDirectory(prefix="buzzer-text-") as name:
            clinc150.generate(Path(name), 1.0, seed, silent)
            splits, source = clinc150.read(Path(name) / FILE), "generated"
    return [sentence for part in TESTED for sentence, _ in splits[part]], source


@dataclass(frozen=True)
class BenchInputs:
    """Batches, the number of sentences in each, and batches of other sentences for calibration."""

    batches: list[dict[str, Array]]
    rows: list[int]
    calibration: list[dict[str, Array]]
    facts: dict[str, Any]


def fixed(ask: BenchSpec, text: Text) -> BenchInputs:
    """Rows of exactly `seq` tokens, cut from the concatenated sentences. The mask is all ones."""
    stream = np.array([token for ids in text.ids for token in ids], dtype=np.int64)
    count = ask.inputs + CALIBRATION
    ids = np.resize(stream, (count, ask.batch, ask.seq))
    batches: list[dict[str, Array]] = [
        {"input_ids": np.ascontiguousarray(x), "attention_mask": np.ones_like(x)} for x in ids
    ]
    others = [{name: array[:CALIBRATED] for name, array in batch.items()} for batch in batches[ask.inputs :]]
    return BenchInputs(batches[: ask.inputs], [ask.batch] * ask.inputs, others, {})


def real(ask: BenchSpec, text: Text) -> BenchInputs:
    """Sentences of their own lengths, the same `inputs` x `batch` sentences for each packing.

    `padded` and `sorted` (by length): `batch` sentences a batch; `packed`: as many as fit into a row of `seq` tokens.
    """
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
    to_batch = packing.pack if ask.packing == "packed" else tokenizer.pad
    batches: list[dict[str, Array]] = [dict(to_batch([ids[i] for i in group])) for group in groups]
    computed = sum(batch["input_ids"].size for batch in batches)
    other = [text.ids[-1 - i] for i in range(min(ask.batch * CALIBRATION, len(text.ids)))]
    facts = {"sentences": count, "tokens": sum(lengths), "tokens_computed": computed}
    return BenchInputs(
        batches, [len(g) for g in groups], [dict(to_batch([x])) for x in other[: CALIBRATION * 4]], facts
    )


TARGET = BertTarget()
