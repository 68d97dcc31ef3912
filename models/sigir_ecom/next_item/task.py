"""The `sigir-ecom-task1` task: fit counts and trains networks, predict goes from the raw test file to a scored submission, a piece
of sessions at a time, so that memory does not grow with the sessions beyond twenty numbers each."""

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from buzzer.datasets import sigir_ecom as dataset
from buzzer.datasets.sigir_ecom import json_file
from buzzer.datasets.sigir_ecom.metric import labels, next_item_mrr, subsequent_f1
from buzzer.datasets.sigir_ecom.reader import paths
from buzzer.datasets.sigir_ecom.schema import DIMS, WHERE
from buzzer.datasets.strict_json import objects
from buzzer.engine import frames
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import Array
from buzzer.errors import DataError, UsageError, unknown_name
from buzzer.models.api.context import Data, Progress, Result, RunContext, Steps
from buzzer.models.blend import best_of, weigh
from buzzer.models.sigir_ecom.next_item import counts
from buzzer.models.sigir_ecom.sessions import events, products, shared
from buzzer.models.sigir_ecom.sessions.events import EventArrays, Vocabulary, batches

GUESSES = 20
BASELINE = "counts"
NAMES = ("gru", "causal", "masked")
BLEND = "weights.json"
LEARNED, HELD = "learned", "held"
COUNTS_NOTE = "the counts have no layers for fused: torch_eager looks them up in fp32, on the same device"
Found = dict[str, list[Array]]


class Recommendation:
    """See configs/tasks/sigir-ecom-task1.yaml for the parameters."""

    def prepare(self, source: Path | None, cache: Path, scale: float, seed: int, progress: Progress) -> Data:
        return shared.prepare(source, cache, scale, seed, progress)

    def fit(self, job: RunContext) -> Steps:
        import torch

        from buzzer.models.sigir_ecom.next_item.networks import NETWORKS
        from buzzer.models.sigir_ecom.next_item.pretrain import item_vectors
        from buzzer.models.sigir_ecom.next_item.training import Trainer, held_cuts, lists

        e, names = frames.load(job.engine), network_names(job.params)
        yield "load"
        pages, names_of, searches, content = shared.read(e, job)
        yield "features"
        vocabulary = shared.fit_vocabulary(e, job, pages, searches, content)
        if vocabulary.products < GUESSES + 2:
            raise DataError(
                f"{job.data}: {vocabulary.products - 2} products, too few to learn from",
                "use a larger --scale",
            )
        categories = e.collect(e.categorify_fit([(content, "category_hash")]))
        known = products.fit(e, content, names_of, vocabulary.tables["sku"], categories)
        parts = shared.in_parts(e, pages, searches, vocabulary, job.params["piece_rows"])
        flat, learned, tables = yield from sessions_and_counts(e, job, vocabulary, parts)
        valid_counts = counts_of(e, learned, vocabulary, job)
        del pages, searches, parts, learned  # training needs the arrays alone
        held = shared.held_out(flat.session, job.params["valid"])
        sizes = sizes_of(vocabulary, int(e.height(categories)) + 2, job.params)
        yield "fit"
        torch.set_num_threads(job.threads)
        torch.set_flush_denormal(True)
        torch.manual_seed(job.seed)
        first = item_vectors(flat, held, sizes.codes, sizes.dim, job.params["first_norm"])
        next_ = flat.next_products(sizes.products)
        ends = held_cuts(flat, next_, held, job.seed)
        history, answers = {}, {}
        for name in names:
            torch.manual_seed(job.seed)
            network = NETWORKS[name](sizes, *content_of(known))
            network.items.start_from(first)
            trainer = Trainer(network, flat, next_, held, ends, job, job.work / f"{name}.checkpoint")
            for state in trainer.run(job.params["epochs"], job.params["patience"]):
                yield "fit"
                history[name] = state.history
            answers[name] = trainer.answers(job.params["candidates"])
            torch.save(network.cpu().state_dict(), job.work / f"{name}.pt")
        answers = {BASELINE: lists(valid_counts, flat, ends, sizes.length, "cpu")} | answers
        scores, weights = weighed(answers, next_[ends - 1])
        yield "write"
        (job.work / BLEND).write_text(json.dumps(weights))
        shared.save(e, job, vocabulary)
        known.save(job.work)
        for name, table in tables.items():
            e.write_parquet(table, job.work / f"counts-{name}.parquet")
        (job.work / "sizes.json").write_text(json.dumps(sizes.as_dict()))
        for name in names:
            (job.work / f"{name}.checkpoint").unlink()
        details = {"products": vocabulary.products - 2, "pages": vocabulary.pages - 2, "history": history}
        details |= {"sessions": len(flat), "events": len(flat.items), "weights": weights}
        return Result(scores, len(flat), details)

    def predict(self, job: RunContext) -> Steps:
        e, test = frames.load(job.engine), test_file(job.data, "rec")
        yield "load"
        vocabulary, known = shared.load(e, job), products.load(job.work)
        sessions = {BASELINE: open_counts(e, job, vocabulary)}
        sessions |= {name: open_network(name, job, known) for name in network_names(job.params)}
        weights = json.loads((job.work / BLEND).read_text())
        found: Found = {name: [] for name in (*sessions, "ensemble")}
        example = None
        for piece in json_file.pieces(test, job.params["piece_sessions"]):
            yield "preprocess"
            table = json_file.events(piece)
            yield "features"
            t = events.code(e, events.test_events(e, table, vocabulary.axes), vocabulary)
            t = e.collect(events.in_sessions(e, t, vocabulary.axes))
            yield "transfer"
            flat = events.flat(e, t, vocabulary.axes)
            ends = ends_of(flat, len(piece))
            for rows in batches(len(ends), job.params["predict_batch"]):
                yield "predict"
                example = flat.windows(ends[rows], job.params["length"])
                predict(sessions, weights, example, found)
            yield "load"
        if example is None:
            raise DataError(f"{test}: no queries", WHERE)
        for row in range(job.params["latency"]):
            yield "latency"
            one = {name: array[[row % len(array)]] for name, array in example.items()}
            predict(sessions, weights, one, {name: [] for name in found})
        yield "write"
        described = {name: vars(session.describe()) for name, session in sessions.items()}
        for session in sessions.values():
            session.close()
        guesses = {name: np.concatenate(parts) for name, parts in found.items()}
        submission = job.out / "submission.json"
        dataset.write_submission(submission, test, named(known.names, guesses["ensemble"]))
        yield "score"
        scores = score(guesses, known.names, submission, test)
        details = {"sessions": described, "weights": weights}
        notes = () if for_counts(job) == job else (COUNTS_NOTE,)
        return Result(scores, len(guesses["ensemble"]), details, (submission,), notes=notes)


def network_names(params: Mapping[str, Any]) -> list[str]:
    """The networks asked for; the counts are always there. Raises UsageError for one that is not known."""
    for name in params["networks"]:
        if name not in NAMES:
            raise unknown_name("network", name, NAMES)
    if params["length"] < 4:
        raise UsageError(f"length {params['length']} is below 4", "--set length=20")
    return list(params["networks"])


def test_file(folder: Path, task: str) -> Path:
    found = paths(folder)
    if task not in found:
        raise DataError(f"{folder}: no test file of this task", WHERE)
    return found[task]


def sizes_of(vocabulary: Vocabulary, categories: int, params: Mapping[str, Any]) -> Any:
    from buzzer.models.sigir_ecom.next_item.networks import Sizes

    return Sizes(
        products=vocabulary.products,
        codes=vocabulary.codes,
        numbers=1 + vocabulary.axes.shape[1],
        categories=categories,
        vectors=2 * DIMS,
        **{key: params[key] for key in ("length", "dim", "layers", "heads", "dropout", "smoothing")},
    )


def content_of(known: products.Products) -> list[Any]:
    """Category, price and vectors as tensors, for the table of items."""
    import torch

    return [torch.from_numpy(array) for array in (known.category, known.price, known.vectors)]


def ends_of(flat: EventArrays, queries: int) -> Array:
    """Where each query's events end; every query has at least one event."""
    assert len(flat) == queries and flat.session[-1] == queries - 1
    return flat.starts[1:]


def sessions_and_counts(
    e: Engine, job: RunContext, vocabulary: Vocabulary, parts: Iterable[Frame]
) -> Generator[str, None, tuple[EventArrays, dict[str, Frame], dict[str, Frame]]]:
    """All sessions as arrays, and the counts' tables: of those that are not held out, and of all. Yields phases."""
    flats: list[EventArrays] = []
    sums: dict[str, dict[str, Frame]] = {LEARNED: {}, HELD: {}}
    for part in parts:
        coded = e.collect(events.code(e, part, vocabulary))
        placed = e.collect(events.in_sessions(e, coded, vocabulary.axes))
        yield "transfer"
        flats.append(events.flat(e, placed, vocabulary.axes))
        yield "features"
        for which, rows in halves(e, coded, flats[-1].session, job.params["valid"]).items():
            sums[which] = {name: e.collect(t) for name, t in counts.add(e, sums[which], rows).items()}
    learned, everything = (fit_counts(e, some, job) for some in ([sums[LEARNED]], list(sums.values())))
    yield "transfer"
    return events.joined(flats), learned, everything


def fit_counts(e: Engine, sums: Sequence[Mapping[str, Frame]], job: RunContext) -> dict[str, Frame]:
    """Tables of what was counted in several parts of the sessions, all together."""
    whole = counts.together(e, sums)
    return {
        name: e.collect(table) for name, table in counts.tables(e, whole, job.params["followers"]).items()
    }


def halves(e: Engine, coded: Frame, sessions: Array, valid: float) -> dict[str, Frame]:
    """Events of the sessions that models learn from, and of those held out."""
    table = {"session": sessions, "held": shared.held_out(sessions, valid).astype(np.int64)}
    t = e.left_join(coded, e.from_arrow(pa.table(table)), {"session": "session"}, {"held": "held"}, 0)

    def half(held: int) -> Frame:
        return e.collect(e.drop(e.filter(t, lambda c: c("held") == held), ["held"]))

    return {LEARNED: half(0), HELD: half(1)}


def weighed(
    answers: Mapping[str, tuple[Array, Array]], truth: Array
) -> tuple[dict[str, float], dict[str, float]]:
    """MRR@20 of each model and of all at the held-out cuts, and the weights that make all as good as they get."""
    from buzzer.models.sigir_ecom.next_item.training import mrr

    values, codes = (list(part) for part in zip(*answers.values(), strict=True))
    weights = weigh(values, codes, truth, mrr, GUESSES)
    scores = {
        f"valid_MRR@20_{name}": mrr(truth, best_of([value], [code], [1.0], GUESSES))
        for name, (value, code) in answers.items()
    }
    scores["valid_MRR@20_ensemble"] = mrr(truth, best_of(values, codes, weights, GUESSES))
    return scores, dict(zip(answers, weights, strict=True))


def counts_of(e: Engine, tables: Mapping[str, Frame], vocabulary: Vocabulary, job: RunContext) -> Any:
    import torch

    from buzzer.models.sigir_ecom.next_item.networks import Counts

    k, pairs = job.params["followers"], []
    for name, keys in (("next", vocabulary.codes), ("near", vocabulary.products)):
        codes, shares = counts.dense(e, tables[name], keys, k)
        pairs.append((torch.from_numpy(codes), torch.from_numpy(shares)))
    return Counts(pairs[0], pairs[1], vocabulary.products, GUESSES)


def open_counts(e: Engine, job: RunContext, vocabulary: Vocabulary) -> Any:
    """The counts, as `for_counts` says."""
    tables = {name: e.read_parquet(job.work / f"counts-{name}.parquet") for name in counts.TABLES}
    return session_of(counts_of(e, tables, vocabulary, job), for_counts(job), vocabulary.axes.shape[1])


def for_counts(job: RunContext) -> RunContext:
    """fused runs layers and the counts have none: there torch looks them up, on the same device."""
    return replace(job, backend="torch_eager", precision="fp32") if job.backend == "fused" else job


def open_network(name: str, job: RunContext, known: products.Products) -> Any:
    """The fitted network, cut to its likeliest products, on the job's backend."""
    import torch

    from buzzer.models.sigir_ecom.next_item.networks import NETWORKS, Sizes, TopK

    sizes = Sizes(**json.loads((job.work / "sizes.json").read_text()))
    network = NETWORKS[name](sizes, *content_of(known))
    network.load_state_dict(torch.load(job.work / f"{name}.pt", weights_only=True))
    k = min(job.params["candidates"], sizes.products - 2)
    return session_of(TopK(network, k), job, sizes.numbers - 1)


def session_of(module: Any, job: RunContext, dims: int) -> Any:
    from buzzer.engine import infer

    length = job.params["length"]
    example = {
        "items": np.full((2, length), 2, dtype=np.int64),
        "kinds": np.full((2, length), 2, dtype=np.int64),
        "numbers": np.zeros((2, length, 1 + dims), dtype=np.float32),
    }
    return infer.prepare(
        module,
        backend=job.backend,
        example=example,
        outputs=("value", "product"),
        precision=job.precision,
        device=job.device,
        threads=job.threads,
    )


def predict(
    sessions: Mapping[str, Any], weights: Mapping[str, float], batch: Mapping[str, Array], found: Found
) -> None:
    """Add each model's and the ensemble's best products of a batch, [rows, GUESSES]."""
    outs = {name: session.run(batch) for name, session in sessions.items()}
    values = [out["value"] for out in outs.values()]
    codes = [out["product"] for out in outs.values()]
    for name, value, code in zip(outs, values, codes, strict=True):
        found[name].append(best_of([value], [code], [1.0], GUESSES).astype(np.int32))
    found["ensemble"].append(
        best_of(values, codes, [weights[name] for name in outs], GUESSES).astype(np.int32)
    )


def named(names: Array, guesses: Array) -> list[list[str]]:
    """SKU hashes of codes [rows, n]; one text a product, however often it stands there."""
    texts: list[str] = names.astype("U64").tolist()
    return [[texts[code] for code in row] for row in guesses.tolist()]


def score(guesses: Mapping[str, Array], names: Array, submission: Path, test: Path) -> dict[str, float]:
    """The official scores of the written submission, and the same of each model."""
    first = next(objects(test, known=True))
    if "label" not in first:
        return {}
    scores, truth = dataset.score(submission, test), labels(test)
    for name, codes in guesses.items():
        if name != "ensemble":
            listed = named(names, codes)
            scores[f"MRR@20_{name}"] = next_item_mrr(listed, truth)
            scores[f"F1@20_{name}"] = subsequent_f1(listed, truth)
    return scores


TASK = Recommendation()
