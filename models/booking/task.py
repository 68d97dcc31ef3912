"""The `booking` task: four guesses for the last city of a trip, from networks whose probabilities are blended.

`fit` writes to the work folder:
- city_id.parquet, hotel_country.parquet, booker_country.parquet, device_class.parquet, affiliate_id.parquet: the codes of values;
- transitions.parquet: the baseline, the cities that most often follow each city;
- classes.npy: int64 [classes], the official city id of each class;
- sizes.json: for each network the fields of `sizes.Sizes`;
- epochs.json: the number of epochs that each model was trained for;
- work.json: the work of the models for one trip (`api.context.Work`);
- <model>.pt: the weights of each model, unless the parameter `weights` is random. Models of a network: `params.Member`.
- <bag>.onnx: the graph of each bag of trained models;
While `fit` runs there are also the folders <model>.checkpoint and <model>.trained, from which an interrupted fit resumes.

Details of `fit`: `weights`, the parameter; `models`, the number of models of each network; `classes`, number of cities that have a code;
`targets`, number of training rows whose city has one; `valid_trips`, number of held-out trips; the last two are of the last fold.
`history`, for each model a list of `epoch`, `loss` and `accuracy@4` of the held-out trips.

Details of `predict`: `weights` and `models` as above; `epochs`, the content of epochs.json; `ceiling`, the best score that generated data
allows, or null; `sessions`, the description of each bag's session; `stays`, number of stays read.
"""

import json
import shutil
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.datasets import booking as dataset
from buzzer.datasets.booking import generator
from buzzer.datasets.booking.reader import paths
from buzzer.datasets.booking.schema import TRUTH
from buzzer.datasets.files import Files
from buzzer.engine import frames
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import Array
from buzzer.errors import DataError
from buzzer.models.api import progress
from buzzer.models.api.context import Result, Steps
from buzzer.models.booking import features
from buzzer.models.booking.ensemble import accuracy, blend
from buzzer.models.booking.features import FIRST_CITY, GUESSES, Inputs
from buzzer.models.booking.members import initial, open_bag, read_sizes, save_sizes, sizes_of, store_bag
from buzzer.models.booking.params import Bag, Context, Member, Params, bags_of
from buzzer.models.booking.sizes import Sizes
from buzzer.models.booking.work import work
from buzzer.models.dataset_task import DatasetTask, DataSource
from buzzer.models.kept_pieces import KeptPieces
from buzzer.models.weights import RANDOM, weights_notes
from buzzer.models.work import load_work, save_work

SCORE = "accuracy@4"
EPOCHS = "epochs.json"
MODEL, PROGRESS = "model.pt", "progress.json"  # files of a piece `trained`


class Booking(DatasetTask[Params]):
    """See configs/tasks/booking.yaml for the parameters."""

    params_type = Params
    data_source = DataSource(f"booking-v{generator.VERSION}", dataset.generate, dataset.check)

    def check_together(self, params: Params) -> None:
        """Raise UsageError for an unknown network, values that a network lacks, and sizes that no network can have."""
        bags_of(params)

    def notes(self, files: Files) -> list[str]:
        """Notes on test cities that are not in the training data, and on a missing truth file."""
        unknown = files.facts["test_cities_unknown_to_train"]
        notes = [f"{unknown} cities of the test are not in train"] if unknown else []
        notes += ["no ground_truth.csv: no score"] if "truth" not in files.rows else []
        return notes + super().notes(files)

    def fit_steps(self, context: Context) -> Steps:
        """Fit codes, the baseline and the networks."""
        e, files, params = frames.load(context.engine), paths(context.data), context.params
        bags = bags_of(params)
        yield "load"
        parts = [files["train"], files["test"]]
        sizes_of_parts = [path.stat().st_size for path in parts]
        train, test = (
            e.collect(features.read_stays(e, path)) for path in progress.over(parts, sizes_of_parts)
        )
        yield "features"
        fitted_tables = features.fit_tables(e, train, test, params.rare)
        tables = {name: e.collect(table) for name, table in fitted_tables.items()}

        def trips(stays: Frame, backwards: bool) -> Frame:
            coded = features.code(e, stays, tables)
            return e.collect(features.trip_features(e, coded, params.lags, backwards=backwards))

        jobs = ((train, False), (test, False), (train, True))
        with progress.part(0.2, 0.9):
            forwards, visible, backwards = (trips(*job) for job in progress.over(jobs))
        transitions = e.collect(features.fit_transitions(e, e.concat([forwards, visible])))
        yield "transfer"
        stays = training_stays(e, forwards, backwards, visible, params.lags)
        classes = class_ids(e, tables["city_id"])
        if len(classes) < GUESSES:
            raise DataError(
                f"{context.data}: only {len(classes)} cities occur more than {params.rare} times, too few to train on",
                "use a larger --scale, or lower the threshold with --set rare=0",
            )
        sizes = {bag.network: sizes_of(e, tables, len(classes), params, bag.network) for bag in bags}

        @lru_cache(maxsize=1)
        def split(fold: int, folds: int) -> tuple[Inputs, Inputs]:
            return stays.split(stays.fold(fold, folds) if folds > 1 else stays.place < params.valid)

        yield "fit"
        best, history = dict[str, list[float]](), dict[str, Any]()
        members = [member for bag in bags for member in bag.members]
        for member in progress.over(members if params.weights != RANDOM else ()):
            learn, valid = split(member.fold, member.folds)
            its_sizes = sizes[member.network]
            its_rows = learn.limited(its_sizes.cities), valid.limited(its_sizes.cities)
            done = yield from fit_member(context, member, its_sizes, *its_rows)
            best.setdefault(member.network, []).append(done["best"])
            history[member.name] = done["history"]
        learn, valid = split(members[-1].fold, members[-1].folds)
        yield "write"
        for column, table in tables.items():
            e.write_parquet(table, context.work / features.TABLES[column])
        e.write_parquet(transitions, context.work / "transitions.parquet")
        np.save(context.work / "classes.npy", classes)
        save_sizes(sizes, context.work)
        for bag in bags if params.weights != RANDOM else ():
            store_bag(bag, sizes[bag.network], context)
        epochs = {name: len(of_model) for name, of_model in history.items()}
        (context.work / EPOCHS).write_text(json.dumps(epochs))
        for name in history:
            KeptPieces(context.work).remove(trained(name))
        details = facts_of(params, bags) | {
            "classes": len(classes),
            "targets": int((learn.target >= 0).sum()),
            "valid_trips": len(valid),
            "history": history,
        }
        scores = {f"valid_{SCORE}_{name}": float(np.mean(of_models)) for name, of_models in best.items()}
        counted = work(bags, sizes, sum(e.height(table) for table in (*tables.values(), transitions)))
        save_work(context.work, counted)
        return Result(scores, len(learn), details, notes=weights_notes(params.weights), work=counted)

    def predict_steps(self, context: Context) -> Steps:
        """Predict the last city of the test trips with each bag, one after another, and blend."""
        e, files, params = frames.load(context.engine), paths(context.data), context.params
        bags = bags_of(params)
        yield "load"
        stays = e.collect(features.read_stays(e, files["test"]))
        tables = features.read_tables(e, context.work)
        transitions = e.read_parquet(context.work / "transitions.parquet")
        classes, sizes = np.load(context.work / "classes.npy"), read_sizes(context.work)
        yield "features"
        t = features.trip_features(e, features.code(e, stays, tables), params.lags)
        last = e.filter(features.follow(e, t, transitions), lambda c: c("position") == c("length") - 1)
        last = e.collect(last)
        yield "transfer"
        inputs = features.to_inputs(e, last, params.lags)
        facts = e.to_numpy(last, ["utrip_id", *(f"next{i}" for i in range(GUESSES))])
        outputs, described = dict[Bag, tuple[Array, Array]](), dict[str, Any]()
        for bag in bags:
            yield "load"
            its_inputs = inputs.limited(sizes[bag.network].cities)
            with open_bag(bag, sizes[bag.network], context) as session:
                batches = []
                for start in range(0, len(inputs), params.predict_batch):
                    yield "predict"
                    out = session.run(its_inputs.batch(slice(start, start + params.predict_batch)))
                    batches.append((out["probability"], out["city"].astype(np.int32)))
                yield "predict"
                values, cities = zip(*batches, strict=True)
                outputs[bag] = np.concatenate(values), np.concatenate(cities)
                described[bag.name] = vars(session.describe())
        guesses = blend(outputs) | {"baseline": baseline(facts)}
        yield "write"
        submission = context.out / "submission.csv"
        # With random weights there may be more classes than cities.
        classes = np.pad(classes, (0, max(its.classes for its in sizes.values())))
        ids = {name: classes[best] for name, best in guesses.items()}
        dataset.write_submission(submission, list(facts["utrip_id"]), ids["ensemble"])
        yield "score"
        scores = score(ids, facts["utrip_id"], submission, files.get("truth"))
        details = facts_of(params, bags) | {
            "epochs": json.loads((context.work / EPOCHS).read_text()),
            "ceiling": generator.ceiling(context.data),
            "sessions": described,
            "stays": int(e.height(stays)),
        }
        notes = weights_notes(params.weights)
        return Result(scores, len(inputs), details, (submission,), notes=notes, work=load_work(context.work))


def facts_of(params: Params, bags: Sequence[Bag]) -> dict[str, Any]:
    """The details that `fit` and `predict` have in common."""
    models = {name: sum(len(bag.members) for bag in bags if bag.network == name) for name in params.networks}
    return {"weights": params.weights, "models": models}


def trained(model: str) -> str:
    """The piece of an unfinished fit that has the weights and the progress of a trained model."""
    return f"{model}.trained"


def fit_member(
    context: Context, member: Member, sizes: Sizes, learn: Inputs, valid: Inputs
) -> Generator[str, None, dict[str, Any]]:
    """Train one model and save its weights; yields the phase after each epoch and returns its progress. A model that an earlier,
    interrupted fit has finished is not trained again.

    Progress: `best`, the best score of the held-out trips; `history`, see the details of `fit`.
    """
    kept, piece = KeptPieces(context.work), trained(member.name)
    if piece not in kept:
        yield from train_member(context, member, sizes, learn, valid)
    shutil.copyfile(kept.path(piece) / MODEL, context.work / f"{member.name}.pt")
    done: dict[str, Any] = json.loads((kept.path(piece) / PROGRESS).read_text())
    return done


def train_member(
    context: Context, member: Member, sizes: Sizes, learn: Inputs, valid: Inputs
) -> Generator[str, None, None]:
    """Train one model, and keep its weights and its progress as the piece `trained`. Yields the phase after each epoch."""
    import torch

    from buzzer.models.booking.train import Trainer

    torch.set_num_threads(context.threads)
    torch.set_flush_denormal(True)
    network = initial(member, sizes, context.seed)
    checkpoint = context.work / f"{member.name}.checkpoint"
    trainer = Trainer(context, member, network, learn, valid, checkpoint)
    for _ in trainer.run(context.params.of(member.network).epochs, context.params.patience):
        yield "fit"
    with KeptPieces(context.work).making(trained(member.name)) as folder:
        torch.save(network.cpu().state_dict(), folder / MODEL)
        progress_made = {"best": trainer.state.best, "history": trainer.state.history}
        (folder / PROGRESS).write_text(json.dumps(progress_made))
    KeptPieces(context.work).remove(checkpoint.name)


def class_ids(e: Engine, table: Frame) -> Array:
    """The official city id of each class, int64 [classes], in the order of the codes."""
    coded = e.with_columns(table, row=lambda c: c("code"))
    frequent = e.filter(coded, lambda c: c("code") >= FIRST_CITY - features.SHIFT)
    return np.asarray(e.to_numpy(frequent, ["value"])["value"], dtype=np.int64)


@dataclass(frozen=True)
class TrainingStays:
    """The stays of the training trips in both directions, and the visible test stays forwards."""

    inputs: Sequence[Inputs]  # training trips forwards, backwards, test trips
    targets: tuple[Array, Array, Array]  # bool [rows] of each: every stay except a trip's first
    last: Array  # bool [rows of training trips]: last stays forwards
    place: Array  # float64 [rows of training trips], 0 to 1: see `place_of`

    def fold(self, number: int, folds: int) -> Array:
        """Whether each row's trip is in a fold, bool [rows of training trips]."""
        return np.floor(self.place * folds) == number

    def split(self, held: Array) -> tuple[Inputs, Inputs]:
        """Training rows and held-out rows. The trips with held, bool [rows of training trips], are not trained on; held-out rows are
        their last stays."""
        forwards, backwards, test = self.targets
        learn = join(self.inputs, (~held & forwards, ~held & backwards, test))
        return learn, join(self.inputs[:1], [held & self.last])


def training_stays(e: Engine, forwards: Frame, backwards: Frame, visible: Frame, lags: int) -> TrainingStays:
    """The stays on the host. visible: test trips, whose last city is unknown."""
    trips = e.to_numpy(forwards, ["utrip_id", "position", "length"])
    reversed_trips, test = (e.to_numpy(t, ["position", "length"]) for t in (backwards, visible))
    known = (test["position"] > 0) & (test["position"] < test["length"] - 1)
    return TrainingStays(
        [features.to_inputs(e, t, lags) for t in (forwards, backwards, visible)],
        (trips["position"] > 0, reversed_trips["position"] > 0, known),
        (trips["position"] == trips["length"] - 1) & (trips["position"] > 0),
        place_of(trips["utrip_id"]),
    )


def place_of(trips: Array) -> Array:
    """A number from 0 to 1 for each row's trip, float64 [rows]. It depends on a checksum of the trip's id only, on every machine."""
    from zlib import crc32

    by_trip = {trip: crc32(trip.encode()) / 2**32 for trip in dict.fromkeys(trips)}
    return np.fromiter((by_trip[trip] for trip in trips), dtype=np.float64, count=len(trips))


def join(parts: Sequence[Inputs], rows: Sequence[Array]) -> Inputs:
    """The chosen rows, bool [rows], of each part, concatenated."""
    names = ("cities", "countries", "context", "numbers", "target")
    pairs = list(zip(parts, rows, strict=True))
    return Inputs(
        *(np.concatenate([getattr(part, name)[chosen] for part, chosen in pairs]) for name in names)
    )


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
