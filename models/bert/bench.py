"""Encoders for `buzzer bench`: named shapes of BERT with random weights, real MiniLM weights, or a Hugging Face folder of a known family."""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from buzzer.datasets.contract import silent
from buzzer.engine.infer import Array
from buzzer.errors import DataError, UnsupportedError, UsageError, unknown_name
from buzzer.models import inputs_file
from buzzer.models.api.bench import QUESTIONS, Batch, BenchModel, BenchSpec, Run, outputs_of, stamp
from buzzer.models.bert import weights
from buzzer.models.dataset_task import installed
from buzzer.models.inputs_file import Wanted

if TYPE_CHECKING:
    from buzzer.models.bert.squad import Question

RANDOM = "random weights of the published shape: only the latency is meaningful, not the accuracy"
RANDOM_IDS = "uniform random token ids: no tokenizer is installed (the weights extra includes one)"
STAND_IN = "sentences of a generated stand-in for CLINC150: set BUZZER_DATA for the real ones"
LEFT_OUT = "left out: {}"
HEADLESS = f"only the encoder is timed; {LEFT_OUT}"
PACKINGS = ("padded", "sorted", "packed")
ARRAYS = ("input_ids", "attention_mask", "token_type_ids")  # of a file with inputs; it may lack the last
CALIBRATION = 8  # batches for calibration
CALIBRATED = 8  # at most this many rows of each: enough for static scales, and each batch is a run in FP32
SENTENCES = 4096  # at most this many sentences are tokenised
LONGEST = 128  # sentences are truncated to this many tokens
SPECIAL = 1000  # first id that is neither special nor unused in BERT's vocabulary


class BertTarget:
    """params: either `spec`, a named shape with random weights, or `weights`, a known name or a model folder."""

    def load(self, spec: BenchSpec) -> BenchModel:
        """The encoder or classifier with its inputs.

        Raises UsageError for an unknown packing, and for lengths or packings that the model cannot run.
        """
        check_packing(spec)
        model, output, notes, facts = network(spec)
        config = model_config(model)
        check_length(spec, config)
        longest = config.max_position_embeddings
        inputs = inputs_of(spec, model)
        if (needed := max(map(positions, (*inputs.batches, *inputs.calibration)))) > longest:
            given = f"--inputs {spec.file.name}" if spec.file else f"--lengths {spec.lengths}"
            hint = "cut them" if spec.file else f"use --lengths fixed --seq {longest}"
            raise UsageError(f"{given}: rows need {needed} positions, the model has {longest}", hint)
        whole = model
        if spec.packing == "packed":
            from buzzer.models.bert.packing import Packed

            if output != "hidden":
                raise UsageError("models with a head do not support packed rows", "use --packing sorted")
            model = Packed(model)
        return BenchModel(
            model=model,
            outputs=(output,),
            batches=inputs.batches,
            reference=lambda batch: outputs_of(model, batch, (output,)),
            rows=inputs.rows,
            calibration=inputs.calibration,
            network=whole,
            valid=[None if output == "logits" else valid(batch) for batch in inputs.batches],
            dynamic={}
            if spec.lengths == "fixed"
            else {k: {0: "batch", 1: "sequence"} for k in inputs.batches[0]},
            source=inputs.source,
            notes=(*notes, *inputs.notes),
            facts=facts | inputs.facts,
            evaluate=inputs.evaluate,
        )

    def check(self, spec: BenchSpec) -> None:
        """Raises as `load` does, by the configuration, the names and shapes of the weights, the tokenizer and the file with the inputs."""
        from buzzer.models.bert import tokenizer
        from buzzer.models.bert.shapes_only import described

        check_packing(spec)
        model, config = described(spec.params)
        check_length(spec, config)
        with suppress(UnsupportedError, UsageError):  # without a tokenizer, the ids are random
            tokenizer.load(tokens_folder(spec), LONGEST)
        if spec.file is not None and inputs_file.is_small(spec.file):
            if spec.file.suffix != QUESTIONS:
                from_file(spec, config)
            elif model is not None:
                asked(spec.file, model)

    def identity(self, spec: BenchSpec) -> Any:
        """Hashes of the source code, of the model and tokenizer files, and of the real sentences."""
        from buzzer.datasets import clinc150

        code = [p for module in (__file__, clinc150.__file__) for p in Path(module).parent.glob("*.py")]
        names = [spec.params[name] for name in ("weights",) if name in spec.params]
        files = [p for name in names for p in weights.folder(name, tokenizer=False).iterdir() if p.is_file()]
        with suppress(UnsupportedError, UsageError):
            files.append(tokens_folder(spec) / "tokenizer.json")
        real = real_sentences()
        return [stamp(code), stamp(files), stamp([real] if real else [])]


def check_packing(spec: BenchSpec) -> None:
    """Raises UsageError for an unknown packing, and for one without padding."""
    if spec.packing not in PACKINGS:
        raise unknown_name("packing", spec.packing, PACKINGS)
    if spec.lengths == "fixed" and spec.packing != "padded":
        raise UsageError("rows of fixed length have no padding to remove", "add --lengths real")


def check_length(spec: BenchSpec, config: Any) -> None:
    """Raises UsageError for rows of more tokens than a model with this `BertConfig` has positions."""
    longest = config.max_position_embeddings
    if spec.lengths == "fixed" and spec.seq > longest:
        raise UsageError(f"--seq {spec.seq}: the model has {longest} positions", f"use --seq {longest}")


def network(spec: BenchSpec) -> tuple[Any, str, tuple[str, ...], dict[str, Any]]:
    """The torch module, the name of its output, notes, and facts for the record."""
    from buzzer.models.bert import encoder, families, weight_files

    if "spec" in spec.params:
        return encoder.random(encoder.spec(spec.params["spec"]), spec.seed), "hidden", (RANDOM,), {}
    folder = weights.folder(spec.params["weights"], tokenizer=False)
    config, state = encoder.config_of(folder), weight_files.read(folder)
    facts = {"model_type": config.model_type, "weights_type": weight_files.float_type(state)}
    headed = encoder.with_head(config, state, folder)
    parts = [name for name in families.left_out(state, config.model_type) if name not in parts_of(headed)]
    text = HEADLESS if headed is None else LEFT_OUT
    notes = (text.format(", ".join(parts)),) if parts else ()
    if headed is None:
        return encoder.encoder_of(config, state, folder), "hidden", notes, facts
    output = "logits" if isinstance(headed, encoder.Classifier) else "token_logits"
    return headed, output, notes, facts | {"classes": headed.head.out_features}


def parts_of(headed: Any) -> set[str]:
    """The first words of the names of the weights that belong to the head of a model; empty for None."""
    from buzzer.models.bert import encoder, families

    if headed is None:
        return set()
    family = families.FAMILIES[headed.bert.config.model_type]
    names = (
        (family.pooler, family.classifier)
        if isinstance(headed, encoder.Classifier)
        else ("classifier", "qa_outputs")
    )
    return {name.partition(".")[0] for name in names}


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
    """Token ids of sentences with their first and last special tokens, the source of the sentences, and notes on them."""

    ids: list[list[int]]
    source: str
    notes: tuple[str, ...]


def sentences(spec: BenchSpec, vocabulary: int) -> Text:
    """Sentences in an order drawn by the seed; without a tokenizer, random ids. Raises UsageError if the vocabularies do not fit."""
    rng = np.random.default_rng(spec.seed)
    try:
        folder = tokens_folder(spec)
    except (UnsupportedError, UsageError):
        lengths = np.clip(rng.poisson(9, SENTENCES) + 3, 4, LONGEST)
        drawn = [rng.integers(min(SPECIAL, vocabulary // 2), vocabulary, n).tolist() for n in lengths]
        return Text(drawn, "generated", (RANDOM_IDS,))
    from buzzer.models.bert import tokenizer

    lines, source = lines_of(spec.seed)
    order = rng.permutation(len(lines))[:SENTENCES]
    ids = tokenizer.encode(tokenizer.load(folder, LONGEST), [lines[i] for i in order])
    if max(map(max, ids)) >= vocabulary:
        raise UsageError("the tokenizer's vocabulary is larger than the model's")
    return Text(ids, source, () if source == "official" else (STAND_IN,))


def tokens_folder(spec: BenchSpec) -> Path:
    """The folder of the tokenizer: the model's, or MiniLM's, which has BERT's vocabulary."""
    return weights.folder(spec.params.get("weights", "minilm-l6"))


def real_sentences() -> Path | None:
    """CLINC150's file in $BUZZER_DATA, or None. Raises as `installed` does."""
    from buzzer.datasets.clinc150.reader import FILE

    return installed(Path("text", "clinc150", FILE))


def lines_of(seed: int) -> tuple[list[str], str]:
    """CLINC150's test sentences, and their source: `official` for the file in $BUZZER_DATA, else `generated`."""
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
    """Batches, the number of sentences in each, batches of other sentences for calibration, and facts and notes for the record."""

    batches: list[dict[str, Array]]
    rows: list[int]
    calibration: list[dict[str, Array]]
    facts: dict[str, Any]
    source: str = "generated"
    notes: tuple[str, ...] = ()
    evaluate: Callable[[Run], Mapping[str, float]] | None = None  # see `BenchModel`


def inputs_of(spec: BenchSpec, model: Any) -> BenchInputs:
    """The inputs: those of a file, or sentences."""
    config = model_config(model)
    if spec.file is not None:
        return questions(spec, model) if spec.file.suffix == QUESTIONS else from_file(spec, config)
    text = sentences(spec, config.vocab_size)
    inputs = fixed(spec, text) if spec.lengths == "fixed" else real(spec, text)
    return replace(inputs, source=text.source, notes=text.notes)


def questions(spec: BenchSpec, model: Any) -> BenchInputs:
    """The questions of a file in SQuAD's format, as windows of `spec.seq` tokens, and their scores.

    Raises UsageError for a model without a head for answers, DataError for another file.
    """
    from buzzer.models.bert import squad, tokenizer

    assert spec.file is not None
    read = asked(spec.file, model)
    found = squad.windows(tokenizer.load(tokens_folder(spec), spec.seq), read, spec.seq)
    config = model.bert.config
    if found.inputs["input_ids"].max() >= config.vocab_size:
        raise UsageError("the tokenizer's vocabulary is larger than the model's")
    names = ARRAYS if config.type_vocab_size > 1 else ARRAYS[:2]
    count = len(found.owners)
    batches: list[dict[str, Array]] = []
    for start in range(0, count, spec.batch):
        at = np.arange(start, start + spec.batch) % count
        batches.append({name: np.ascontiguousarray(found.inputs[name][at]) for name in names})
    timed = (batches * inputs_file.LEAST)[: max(inputs_file.LEAST, min(spec.inputs, len(batches)))]
    return BenchInputs(
        timed,
        [spec.batch] * len(timed),
        [{name: a[:CALIBRATED] for name, a in batch.items()} for batch in batches[-CALIBRATION:]],
        {"questions": len(found.questions), "windows": count},
        "official",
        (f"questions of {spec.file.name}: exact_match and f1 are over all {len(found.questions):,}",),
        functools.partial(squad.evaluate, found, batches, "token_logits"),
    )


def asked(file: Path, model: Any) -> "list[Question]":
    """The questions of a file. Raises UsageError for a model without a head for answers, DataError for another file."""
    from buzzer.models.bert import encoder, squad

    if not isinstance(model, encoder.TokenClassifier) or model.head.out_features != squad.OUTPUTS:
        raise UsageError(f"--inputs {file.name} has questions, but the model has no head for answers")
    return squad.read(file)


def from_file(spec: BenchSpec, config: Any) -> BenchInputs:
    """The rows of a file: `input_ids`, `attention_mask` and, if it has them, `token_type_ids`. Padding is at the end of a row.

    Scales are calibrated on the same rows. Raises DataError for values that the model has no row for, and for padding elsewhere.
    """
    wanted = [Wanted(name, np.dtype("int64"), (None, None)) for name in ARRAYS]
    found = inputs_file.given(spec, wanted, optional=ARRAYS[2:])
    limits = dict(zip(ARRAYS, (config.vocab_size, 2, config.type_vocab_size), strict=True))
    for batch in found.batches:
        for name, array in batch.items():
            if array.shape != batch["input_ids"].shape or not 0 <= array.min() <= array.max() < limits[name]:
                problem = (
                    f"{spec.file}: {name} is {list(array.shape)} with values {array.min()} to {array.max()}"
                )
                raise DataError(problem, f"as many as input_ids, from 0 to {limits[name] - 1}")
        mask = batch["attention_mask"]
        if (mask[:, :-1] < mask[:, 1:]).any() or not mask[:, 0].all():
            raise DataError(f"{spec.file}: attention_mask has padding before tokens, or a row without tokens")
    others = [{name: a[:CALIBRATED] for name, a in b.items()} for b in found.batches[:CALIBRATION]]
    batches = [dict(batch) for batch in found.batches]
    facts = {"tokens": sum(int(batch["attention_mask"].sum()) for batch in batches)}
    return BenchInputs(batches, [spec.batch] * len(batches), others, facts, "official", found.notes)


def fixed(spec: BenchSpec, text: Text) -> BenchInputs:
    """Rows of exactly `seq` tokens, cut from the concatenated sentences. The mask is all ones."""
    stream = np.array([token for ids in text.ids for token in ids], dtype=np.int64)
    count = spec.inputs + CALIBRATION
    ids = np.resize(stream, (count, spec.batch, spec.seq))
    batches: list[dict[str, Array]] = [
        {"input_ids": np.ascontiguousarray(x), "attention_mask": np.ones_like(x)} for x in ids
    ]
    others = [{name: array[:CALIBRATED] for name, array in batch.items()} for batch in batches[spec.inputs :]]
    return BenchInputs(batches[: spec.inputs], [spec.batch] * spec.inputs, others, {})


def real(spec: BenchSpec, text: Text) -> BenchInputs:
    """Sentences with their real lengths. Each packing gets the same `inputs` x `batch` sentences.

    `padded` and `sorted` (by length): `batch` sentences per batch. `packed`: as many as fit into a row of `seq` tokens.
    """
    from buzzer.models.bert import packing, tokenizer

    count = spec.inputs * spec.batch
    ids = [text.ids[i % len(text.ids)] for i in range(count)]
    lengths = [len(x) for x in ids]
    if spec.packing == "packed":
        groups: list[Sequence[int]] = list(packing.buckets(lengths, spec.seq))
    elif spec.packing == "sorted":
        groups = [g.tolist() for g in tokenizer.batches(ids, spec.batch)]
    else:
        groups = [range(i, i + spec.batch) for i in range(0, count, spec.batch)]
    to_batch = packing.pack if spec.packing == "packed" else tokenizer.pad
    batches: list[dict[str, Array]] = [dict(to_batch([ids[i] for i in group])) for group in groups]
    computed = sum(batch["input_ids"].size for batch in batches)
    other = [text.ids[-1 - i] for i in range(min(spec.batch * CALIBRATION, len(text.ids)))]
    facts = {"sentences": count, "tokens": sum(lengths), "tokens_computed": computed}
    return BenchInputs(
        batches, [len(g) for g in groups], [dict(to_batch([x])) for x in other[: CALIBRATION * 4]], facts
    )


TARGET = BertTarget()
