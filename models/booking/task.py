"""The `booking` task: four guesses for the last city of a trip, from networks whose probabilities are blended.

`fit` writes to the work folder:
- city_id.parquet, hotel_country.parquet, booker_country.parquet, device_class.parquet, affiliate_id.parquet: the codes of values;
- transitions.parquet: the baseline, the cities that most often follow each city;
- classes.npy: int64 [classes], the official city id of each class;
- sizes.json: the fields of `networks.Sizes`;
- <network>.pt: the weights of each network.
While `fit` runs there is also <network>.checkpoint, from which an interrupted fit resumes.

Details of `fit`: `classes`, number of cities that can be guessed; `targets`, number of training rows whose city has a class;
`valid_trips`, number of held-out trips; `history`, for each network a list of `epoch`, `loss` and `accuracy@4` of the held-out trips.

Details of `predict`: `ceiling`, the best score that generated data allows, or null; `sessions`, the description of each network's session;
`stays`, number of stays read.
"""

import json
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from buzzer.datasets import booking as dataset
from buzzer.datasets.booking import generator
from buzzer.datasets.booking.reader import paths
from buzzer.datasets.booking.schema import TRUTH
from buzzer.datasets.files import Files
from buzzer.engine import frames
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import Array
from buzzer.engine.infer import Session
from buzzer.errors import DataError, UsageError, unknown_name
from buzzer.models.api.context import Result, Steps
from buzzer.models.booking import features
from buzzer.models.booking.ensemble import WEIGHTS, accuracy, best_four
from buzzer.models.booking.features import CODED, FIRST_CITY, GUESSES, Inputs
from buzzer.models.booking.params import Context, Params
from buzzer.models.dataset_task import DatasetTask, DataSource

if TYPE_CHECKING:
    from buzzer.models.epochs import State

SCORE = "accuracy@4"


class Booking(DatasetTask[Params]):
    """See configs/tasks/booking.yaml for the parameters."""

    params_type = Params
    data_source = DataSource(f"booking-v{generator.VERSION}", dataset.generate, dataset.check)

    def notes(self, files: Files) -> list[str]:
        """Notes on test cities that are not in the training data, and on a missing truth file."""
        unknown = files.facts["test_cities_unknown_to_train"]
        notes = [f"{unknown} cities of the test are not in train"] if unknown else []
        notes += ["no ground_truth.csv: no score"] if "truth" not in files.rows else []
        return notes + super().notes(files)

    def fit_steps(self, context: Context) -> Steps:
        """Fit codes, the baseline and the networks."""
        e, files, params = frames.load(context.engine), paths(context.data), context.params
        names = network_names(params)
        yield "load"
        train = e.collect(features.read_stays(e, files["train"]))
        test = e.collect(features.read_stays(e, files["test"]))
        yield "features"
        fitted_tables = features.fit_tables(e, train, test, params.rare)
        tables = {name: e.collect(table) for name, table in fitted_tables.items()}

        def trips(stays: Frame, *, backwards: bool = False) -> Frame:
            coded = features.code(e, stays, tables)
            return e.collect(features.trip_features(e, coded, params.lags, backwards=backwards))

        forwards, visible, backwards = trips(train), trips(test), trips(train, backwards=True)
        transitions = e.collect(features.fit_transitions(e, e.concat([forwards, visible])))
        yield "transfer"
        learn, valid = training_rows(e, forwards, backwards, visible, params.lags, params.valid)
        classes = class_ids(e, tables["city_id"])
        sizes = sizes_of(e, tables, params)
        if sizes.classes < GUESSES:
            raise DataError(
                f"{context.data}: only {sizes.classes} cities occur more than {params.rare} times, too few to train on",
                "use a larger --scale, or lower the threshold with --set rare=0",
            )
        yield "fit"
        scores, history = dict[str, float](), dict[str, Any]()
        for name in names:
            state = yield from fit_network(context, name, sizes, learn, valid)
            scores[f"valid_{SCORE}_{name}"], history[name] = state.best, state.history
        yield "write"
        for column, table in tables.items():
            e.write_parquet(table, context.work / features.TABLES[column])
        e.write_parquet(transitions, context.work / "transitions.parquet")
        np.save(context.work / "classes.npy", classes)
        (context.work / "sizes.json").write_text(json.dumps(sizes.as_dict()))
        for name in names:
            (context.work / f"{name}.checkpoint").unlink()
        details = {
            "classes": sizes.classes,
            "targets": int((learn.target >= 0).sum()),
            "valid_trips": len(valid),
            "history": history,
        }
        return Result(scores, len(learn), details)

    def predict_steps(self, context: Context) -> Steps:
        """Predict the last city of the test trips with each network, and blend."""
        e, files, params = frames.load(context.engine), paths(context.data), context.params
        names = network_names(params)
        yield "load"
        stays = e.collect(features.read_stays(e, files["test"]))
        tables = features.read_tables(e, context.work)
        transitions = e.read_parquet(context.work / "transitions.parquet")
        classes = np.load(context.work / "classes.npy")
        sessions = {name: open_session(name, context) for name in names}
        yield "features"
        t = features.trip_features(e, features.code(e, stays, tables), params.lags)
        last = e.filter(features.follow(e, t, transitions), lambda c: c("position") == c("length") - 1)
        last = e.collect(last)
        yield "transfer"
        inputs = features.to_inputs(e, last, params.lags)
        facts = e.to_numpy(last, ["utrip_id", *(f"next{i}" for i in range(GUESSES))])
        outputs: dict[str, list[tuple[Array, Array]]] = {name: [] for name in names}
        for start in range(0, len(inputs), params.predict_batch):
            yield "predict"
            batch = inputs.batch(slice(start, start + params.predict_batch))
            for name, session in sessions.items():
                out = session.run(batch)
                outputs[name].append((out["probability"], out["city"]))
        yield "predict"
        guesses = blend(outputs) | {"baseline": baseline(facts)}
        described = {name: vars(session.describe()) for name, session in sessions.items()}
        for session in sessions.values():
            session.close()
        yield "write"
        submission = context.out / "submission.csv"
        ids = {name: classes[best] for name, best in guesses.items()}
        dataset.write_submission(submission, list(facts["utrip_id"]), ids["ensemble"])
        yield "score"
        scores = score(ids, facts["utrip_id"], submission, files.get("truth"))
        details = {
            "ceiling": generator.ceiling(context.data),
            "sessions": described,
            "stays": int(e.height(stays)),
        }
        return Result(scores, len(inputs), details, (submission,))


def network_names(params: Params) -> list[str]:
    """The networks to run. Raises UsageError for an unknown network, or if there is none."""
    for name in params.networks:
        if name not in WEIGHTS:
            raise unknown_name("network", name, WEIGHTS)
    if not params.networks:
        raise UsageError("no network to run", f"--set networks=[{','.join(WEIGHTS)}]")
    return list(params.networks)


def fit_network(
    context: Context, name: str, sizes: Any, learn: Inputs, valid: Inputs
) -> Generator[str, None, "State"]:
    """Train one network and save its weights; yields the phase after each epoch and returns the last state."""
    import torch

    from buzzer.models.booking.networks import NETWORKS
    from buzzer.models.booking.train import Trainer

    torch.set_num_threads(context.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(context.seed)
    network = NETWORKS[name](sizes)
    trainer = Trainer(context, network, learn, valid, context.work / f"{name}.checkpoint")
    for _ in trainer.run(context.params.epochs, context.params.patience):
        yield "fit"
    torch.save(network.cpu().state_dict(), context.work / f"{name}.pt")
    return trainer.state


def class_ids(e: Engine, table: Frame) -> Array:
    """The official city id of each class, int64 [classes], in the order of the codes."""
    coded = e.with_columns(table, row=lambda c: c("code"))
    frequent = e.filter(coded, lambda c: c("code") >= FIRST_CITY - features.SHIFT)
    return np.asarray(e.to_numpy(frequent, ["value"])["value"], dtype=np.int64)


def sizes_of(e: Engine, tables: Mapping[str, Frame], params: Params) -> Any:
    """The networks' `Sizes`. A table has a row for every code that can occur."""
    from buzzer.models.booking.networks import Sizes

    def codes(name: str) -> int:
        return int(e.height(tables[name])) + FIRST_CITY

    calendar = {"month": 13, "weekday_in": 7, "weekday_out": 7}
    return Sizes(
        cities=len(class_ids(e, tables["city_id"])) + FIRST_CITY,
        countries=codes("hotel_country"),
        context=tuple(codes(name) if name in CODED else calendar[name] for name in features.CONTEXT),
        lags=params.lags,
        dim=params.dim,
        hidden=params.hidden,
        layers=params.layers,
        heads=params.heads,
        dropout=params.dropout,
        candidates=params.candidates,
    )


def training_rows(
    e: Engine, forwards: Frame, backwards: Frame, visible: Frame, lags: int, share: float
) -> tuple[Inputs, Inputs]:
    """Training rows and held-out rows.

    Training rows: every stay except a trip's first, of the training trips in both directions and of the visible test stays forwards.
    Held-out rows: the last stay of a `share` of the training trips, chosen by a checksum of their id. These trips are not trained on.
    """
    inputs = [features.to_inputs(e, t, lags) for t in (forwards, backwards, visible)]
    trips = e.to_numpy(forwards, ["utrip_id", "position", "length"])
    reversed_trips, test = (e.to_numpy(t, ["position", "length"]) for t in (backwards, visible))
    held = held_out(trips["utrip_id"], share)
    train_rows = (
        ~held & (trips["position"] > 0),
        ~held & (reversed_trips["position"] > 0),
        (test["position"] > 0) & (test["position"] < test["length"] - 1),
    )
    last = held & (trips["position"] == trips["length"] - 1) & (trips["position"] > 0)
    return join(inputs, train_rows), join(inputs[:1], [last])


def held_out(trips: Array, share: float) -> Array:
    """Whether each row's trip is held out, bool [rows]. It depends on a checksum of the trip's id only, on every machine."""
    from zlib import crc32

    by_trip = {trip: crc32(trip.encode()) / 2**32 < share for trip in dict.fromkeys(trips)}
    return np.fromiter((by_trip[trip] for trip in trips), dtype=bool, count=len(trips))


def join(parts: Sequence[Inputs], rows: Sequence[Array]) -> Inputs:
    """The chosen rows, bool [rows], of each part, concatenated."""
    names = ("cities", "countries", "context", "numbers", "target")
    pairs = list(zip(parts, rows, strict=True))
    return Inputs(
        *(np.concatenate([getattr(part, name)[chosen] for part, chosen in pairs]) for name in names)
    )


def fitted(name: str, folder: Path) -> Any:
    """A network with the weights that `fit` saved, in evaluation mode."""
    import torch

    from buzzer.models.booking.networks import NETWORKS, Sizes

    sizes = json.loads((folder / "sizes.json").read_text())
    network = NETWORKS[name](Sizes(**sizes | {"context": tuple(sizes["context"])}))
    network.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
    return network.eval()


def open_session(name: str, context: Context) -> Session:
    """A session of the fitted network on the run's backend. It returns only the most probable cities."""
    from buzzer.engine import infer
    from buzzer.models.booking.networks import TopK

    network = fitted(name, context.work)
    sizes = network.trip.sizes
    return infer.prepare(
        TopK(network, min(context.params.candidates, sizes.classes)),
        backend=context.backend,
        example=example(sizes),
        outputs=("probability", "city"),
        precision=context.precision,
        device=context.device,
        threads=context.threads,
    )


def example(sizes: Any) -> dict[str, Array]:
    """Two rows of the networks' inputs."""
    return {
        "cities": np.ones((2, sizes.lags + 1), dtype=np.int64),
        "countries": np.ones((2, sizes.lags + 1), dtype=np.int64),
        "context": np.zeros((2, len(sizes.context)), dtype=np.int64),
        "numbers": np.zeros((2, len(features.NUMBERS)), dtype=np.float32),
    }


def blend(outputs: Mapping[str, list[tuple[Array, Array]]]) -> dict[str, Array]:
    """The four best classes of each network and of the `ensemble`, int64 [rows, 4].

    outputs: network -> its batches of probabilities and classes, each [batch, candidates].
    """
    values, classes = (
        {name: np.concatenate([batch[part] for batch in batches]) for name, batches in outputs.items()}
        for part in (0, 1)
    )
    guesses = {name: best_four([values[name]], [classes[name]], [1.0]) for name in outputs}
    weights = [WEIGHTS[name] for name in outputs]
    return guesses | {"ensemble": best_four(list(values.values()), list(classes.values()), weights)}


def baseline(facts: Mapping[str, Array]) -> Array:
    """The classes that most often follow the last city, int64 [rows, 4], filled up with the most frequent classes.

    facts: columns next0 to next3 of `features.follow`.
    """
    following = np.stack([facts[f"next{i}"] for i in range(GUESSES)], axis=1).astype(np.int64) - FIRST_CITY
    popular = np.broadcast_to(np.arange(GUESSES), following.shape)  # codes are in descending order of count
    repeated = (popular[:, :, None] == following[:, None, :]).any(axis=2)
    both = np.concatenate([following, np.where(repeated, -1, popular)], axis=1)
    order = np.argsort(both < 0, axis=1, kind="stable")[:, :GUESSES]
    return np.take_along_axis(both, order, axis=1)


def score(ids: Mapping[str, Array], trips: Array, submission: Path, truth: Path | None) -> dict[str, float]:
    """The official score of the submission file, and the score of each network and the baseline; empty without a truth file.

    ids: model -> guessed city ids, int64 [rows, 4].  trips: trip ids [rows].
    """
    if truth is None:
        return {}
    import polars as pl

    answers = pl.read_csv(truth, schema_overrides={"city_id": pl.Int64}, columns=list(TRUTH)[:2])
    truths = pl.DataFrame({"utrip_id": list(trips)}).join(
        answers, on="utrip_id", how="left", maintain_order="left"
    )
    cities = truths["city_id"].to_numpy()
    by_model = {f"{SCORE}_{name}": accuracy(cities, best) for name, best in ids.items() if name != "ensemble"}
    return dataset.score(submission, truth) | by_model


TASK = Booking()
