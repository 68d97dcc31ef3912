"""The `booking` task: fit trains the networks, predict goes from the raw test file to a scored submission."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.datasets import booking as dataset
from buzzer.datasets.booking import generator
from buzzer.datasets.booking.reader import paths
from buzzer.datasets.booking.schema import TRUTH
from buzzer.datasets.checked import given_or_generated
from buzzer.engine import frames
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import Array
from buzzer.errors import DataError, UsageError
from buzzer.models.api.context import Data, Progress, Result, RunContext, Steps
from buzzer.models.booking import features
from buzzer.models.booking.ensemble import WEIGHTS, accuracy, best_four
from buzzer.models.booking.features import CODED, FIRST_CITY, GUESSES, Inputs

SCORE = "accuracy@4"


class Booking:
    """See configs/tasks/booking.yaml for the parameters."""

    def prepare(self, source: Path | None, cache: Path, scale: float, seed: int, progress: Progress) -> Data:
        folder = cache / f"booking-v{generator.VERSION}-scale{scale:g}-seed{seed}"
        generate = partial(dataset.generate, scale=scale, seed=seed, progress=progress)
        files = given_or_generated(source, folder, generate, dataset.check, cache, progress)
        notes = [
            f"{n} cities of the test are not in train"
            for n in [files.facts["test_cities_unknown_to_train"]]
            if n
        ]
        notes += ["no ground_truth.csv: no score"] if "truth" not in files.rows else []
        notes += files.notes
        return Data(files.folder, files.fingerprint, files.source, files.rows, files.scale, tuple(notes))

    def fit(self, job: RunContext) -> Steps:
        import torch

        from buzzer.models.booking.networks import NETWORKS
        from buzzer.models.booking.train import Trainer

        e, found = frames.load(job.engine), paths(job.data)
        names = network_names(job.params)
        yield "load"
        train = e.collect(features.read_stays(e, found["train"]))
        test = e.collect(features.read_stays(e, found["test"]))
        yield "features"
        tables = {
            name: e.collect(t) for name, t in features.fit_tables(e, train, test, job.params["rare"]).items()
        }
        lags = job.params["lags"]
        forth, visible = (
            e.collect(features.trip_features(e, features.code(e, t, tables), lags)) for t in (train, test)
        )
        back = e.collect(features.trip_features(e, features.code(e, train, tables), lags, backwards=True))
        transitions = e.collect(features.fit_transitions(e, e.concat([forth, visible])))
        yield "transfer"
        learn, valid = training_rows(e, forth, back, visible, lags, job.params["valid"])
        classes = class_ids(e, tables["city_id"])
        sizes = sizes_of(e, tables, job.params)
        if sizes.classes < GUESSES:
            raise DataError(
                f"{job.data}: {sizes.classes} cities are seen more than {job.params['rare']} times, too few to learn from",
                "use a larger --scale, or lower the threshold with --set rare=0",
            )
        yield "fit"
        torch.set_num_threads(job.threads)
        torch.set_flush_denormal(True)
        scores, history = {}, {}
        for name in names:
            torch.manual_seed(job.seed)
            network = NETWORKS[name](sizes)
            trainer = Trainer(
                network, learn, valid, job.params, job.seed, job.device, job.work / f"{name}.checkpoint"
            )
            for state in trainer.run(job.params["epochs"], job.params["patience"]):
                yield "fit"
                history[name] = state.history
            scores[f"valid_{SCORE}_{name}"] = trainer.state.best
            torch.save(network.cpu().state_dict(), job.work / f"{name}.pt")
        yield "write"
        for column, table in tables.items():
            e.write_parquet(table, job.work / features.TABLES[column])
        e.write_parquet(transitions, job.work / "transitions.parquet")
        np.save(job.work / "classes.npy", classes)
        (job.work / "sizes.json").write_text(json.dumps(sizes.as_dict()))
        for name in names:
            (job.work / f"{name}.checkpoint").unlink()
        details = {
            "classes": sizes.classes,
            "targets": int((learn.target >= 0).sum()),
            "valid_trips": len(valid),
        }
        return Result(scores, len(learn), details | {"history": history})

    def predict(self, job: RunContext) -> Steps:

        e, found = frames.load(job.engine), paths(job.data)
        names = network_names(job.params)
        yield "load"
        stays = e.collect(features.read_stays(e, found["test"]))
        tables = features.read_tables(e, job.work)
        transitions = e.read_parquet(job.work / "transitions.parquet")
        classes = np.load(job.work / "classes.npy")
        sessions = {name: open_session(name, job) for name in names}
        yield "features"
        t = features.trip_features(e, features.code(e, stays, tables), job.params["lags"])
        last = e.filter(features.follow(e, t, transitions), lambda c: c("position") == c("length") - 1)
        last = e.collect(last)
        yield "transfer"
        inputs = features.to_inputs(e, last, job.params["lags"])
        facts = e.to_numpy(last, ["utrip_id", *(f"next{i}" for i in range(GUESSES))])
        found_by: dict[str, list[tuple[Array, Array]]] = {name: [] for name in names}
        size = job.params["predict_batch"]
        for start in range(0, len(inputs), size):
            yield "predict"
            batch = inputs.batch(slice(start, start + size))
            for name, session in sessions.items():
                out = session.run(batch)
                found_by[name].append((out["probability"], out["city"]))
        yield "predict"
        guesses = blend(found_by)
        guesses["baseline"] = baseline(facts, classes)
        described = {name: vars(session.describe()) for name, session in sessions.items()}
        for session in sessions.values():
            session.close()
        yield "write"
        submission = job.out / "submission.csv"
        ids = {name: classes[found] for name, found in guesses.items()}
        dataset.write_submission(submission, list(facts["utrip_id"]), ids["ensemble"])
        yield "score"
        scores = score(ids, facts["utrip_id"], submission, found.get("truth"))
        details: dict[str, Any] = {"ceiling": generator.ceiling(job.data), "sessions": described}
        return Result(scores, len(inputs), details | {"stays": int(e.height(stays))}, (submission,))


def network_names(params: Mapping[str, Any]) -> list[str]:
    """The networks asked for. Raises UsageError for one that is not known, or none."""
    from buzzer.errors import unknown_name

    for name in params["networks"]:
        if name not in WEIGHTS:
            raise unknown_name("network", name, WEIGHTS)
    if not params["networks"]:
        raise UsageError("no network to run", f"--set networks=[{','.join(WEIGHTS)}]")
    return list(params["networks"])


def class_ids(e: Engine, table: Frame) -> Array:
    """The official city id of each class: int64 [classes], in the order of the codes."""
    known = e.filter(
        e.with_columns(table, row=lambda c: c("code")), lambda c: c("code") >= FIRST_CITY - features.SHIFT
    )
    return np.asarray(e.to_numpy(known, ["value"])["value"], dtype=np.int64)


def sizes_of(e: Engine, tables: Mapping[str, Frame], params: Mapping[str, Any]) -> Any:
    """The networks' shapes: a table has a row for every code that can occur."""
    from buzzer.models.booking.networks import Sizes

    def codes(name: str) -> int:
        return int(e.height(tables[name])) + FIRST_CITY

    calendar = {"month": 13, "weekday_in": 7, "weekday_out": 7}
    context = tuple(codes(name) if name in CODED else calendar[name] for name in features.CONTEXT)
    return Sizes(
        cities=len(class_ids(e, tables["city_id"])) + FIRST_CITY,
        countries=codes("hotel_country"),
        context=context,
        **{key: params[key] for key in ("lags", "dim", "hidden", "layers", "heads", "dropout", "candidates")},
    )


def training_rows(
    e: Engine, forth: Frame, back: Frame, visible: Frame, lags: int, share: float
) -> tuple[Inputs, Inputs]:
    """What is learned from and what is held out.

    Learned from: every stay but a trip's first, forwards and backwards, of the training trips; forwards of the visible
    test stays. Held out: a `share` of the training trips, chosen by the number in their id; scored on their last stay.
    """
    shape = (
        features.to_inputs(e, forth, lags),
        features.to_inputs(e, back, lags),
        features.to_inputs(e, visible, lags),
    )
    trips = e.to_numpy(forth, ["utrip_id", "position", "length"])
    places = [e.to_numpy(t, ["position", "length"]) for t in (back, visible)]
    held = held_out(trips["utrip_id"], share)
    learn = join(
        [
            (shape[0], ~held & (trips["position"] > 0)),
            (shape[1], ~held & (places[0]["position"] > 0)),
            (shape[2], (places[1]["position"] > 0) & (places[1]["position"] < places[1]["length"] - 1)),
        ]
    )
    last = held & (trips["position"] == trips["length"] - 1) & (trips["position"] > 0)
    return learn, join([(shape[0], last)])


def held_out(trips: Array, share: float) -> Array:
    """Whether a trip is held out: by a checksum of its id, the same on every machine and for every row of the trip."""
    from zlib import crc32

    by_trip = {trip: crc32(trip.encode()) / 2**32 < share for trip in dict.fromkeys(trips)}
    return np.fromiter((by_trip[trip] for trip in trips), dtype=bool, count=len(trips))


def join(parts: list[tuple[Inputs, Array]]) -> Inputs:
    """Chosen rows of several inputs, one below the other."""
    names = ("cities", "countries", "context", "numbers", "target")
    return Inputs(
        *(np.concatenate([getattr(inputs, name)[keep] for inputs, keep in parts]) for name in names)
    )


def fitted(name: str, folder: Path) -> Any:
    """A network as `fit` saved it."""
    import torch

    from buzzer.models.booking.networks import NETWORKS, Sizes

    plain = json.loads((folder / "sizes.json").read_text())
    network = NETWORKS[name](Sizes(**plain | {"context": tuple(plain["context"])}))
    network.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
    return network.eval()


def open_session(name: str, job: RunContext) -> Any:
    """The fitted network, cut to its likeliest cities, on the job's backend."""
    from buzzer.engine import infer
    from buzzer.models.booking.networks import TopK

    network = fitted(name, job.work)
    sizes = network.trip.sizes
    return infer.prepare(
        TopK(network, min(job.params["candidates"], sizes.classes)),
        backend=job.backend,
        example=example(sizes),
        outputs=("probability", "city"),
        precision=job.precision,
        device=job.device,
        threads=job.threads,
    )


def example(sizes: Any) -> dict[str, Array]:
    """Two rows of the networks' inputs."""
    return {
        "cities": np.ones((2, sizes.lags + 1), dtype=np.int64),
        "countries": np.ones((2, sizes.lags + 1), dtype=np.int64),
        "context": np.zeros((2, len(sizes.context)), dtype=np.int64),
        "numbers": np.zeros((2, len(features.NUMBERS)), dtype=np.float32),
    }


def blend(found: Mapping[str, list[tuple[Array, Array]]]) -> dict[str, Array]:
    """The four classes by network, and of the ensemble."""
    whole = {
        name: tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))
        for name, batches in found.items()
    }
    guesses = {name: best_four([p], [c], [1.0]) for name, (p, c) in whole.items()}
    weights = [WEIGHTS[name] for name in whole]
    guesses["ensemble"] = best_four([p for p, _ in whole.values()], [c for _, c in whole.values()], weights)
    return guesses


def baseline(facts: Mapping[str, Array], classes: Array) -> Array:
    """The cities that most often follow the last one; places that it leaves empty go to the most frequent cities."""
    named = np.stack([facts[f"next{i}"] for i in range(GUESSES)], axis=1).astype(np.int64) - FIRST_CITY
    popular = np.broadcast_to(np.arange(GUESSES), named.shape)  # codes are by falling count
    fresh = np.where((popular[:, :, None] == named[:, None, :]).any(axis=2), -1, popular)
    both = np.concatenate([named, fresh], axis=1)
    order = np.argsort(both < 0, axis=1, kind="stable")[:, :GUESSES]
    return np.take_along_axis(both, order, axis=1)


def score(ids: Mapping[str, Array], trips: Array, submission: Path, truth: Path | None) -> dict[str, float]:
    """The official score of the written submission, and the same figure for each network and the baseline."""
    if truth is None:
        return {}
    import polars as pl

    answers = pl.read_csv(truth, schema_overrides={"city_id": pl.Int64}, columns=list(TRUTH)[:2])
    asked = pl.DataFrame({"utrip_id": list(trips)}).join(
        answers, on="utrip_id", how="left", maintain_order="left"
    )
    known = asked["city_id"].to_numpy()
    scores = dataset.score(submission, truth)
    return scores | {
        f"{SCORE}_{name}": accuracy(known, found) for name, found in ids.items() if name != "ensemble"
    }


TASK = Booking()
