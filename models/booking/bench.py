"""`session-encoder`: a network of the `booking` task as a model of `buzzer bench`, on trips that it was not trained on."""

from collections.abc import Mapping

import numpy as np

from buzzer.configs import load_yaml
from buzzer.datasets import booking as dataset
from buzzer.datasets.booking.reader import paths
from buzzer.datasets.contract import silent
from buzzer.engine import frames
from buzzer.engine.infer import Array
from buzzer.errors import UsageError
from buzzer.models.api.bench import BenchModel, BenchSpec, outputs_of
from buzzer.models.api.context import RunContext
from buzzer.models.booking import features
from buzzer.models.booking.task import TASK, fitted

TRIPS = "trips.npz"
CALIBRATION = 8  # batches for calibration


class SessionEncoder:
    """params: `scale` of the generated data, `network`, its `dim` and its `epochs`."""

    def load(self, ask: BenchSpec) -> BenchModel:
        """Trains the network unless `ask.work` has it. Raises UsageError for rows of real lengths."""
        if ask.lengths != "fixed":
            raise UsageError("trips are cut to one length: --lengths real is for text encoders")
        if not (ask.work / TRIPS).is_file():
            fit(ask)
        trips = dict(np.load(ask.work / TRIPS))
        model = fitted(ask.params["network"], ask.work)

        count = len(trips["cities"])
        notes = [f"held-out trips of booking, generated, scale {ask.params['scale']:g}"]
        if ask.batch > count:
            notes.append(f"{count} different trips, repeated")
        batches = [cut(trips, ask.batch, i) for i in range(ask.inputs + CALIBRATION)]
        return BenchModel(
            model,
            ("probability",),
            batches[: ask.inputs],
            lambda batch: outputs_of(model, batch, ("probability",)),
            [ask.batch] * ask.inputs,
            calibration=batches[ask.inputs :],
            notes=tuple(notes),
            facts={"held_out_trips": count, "parameters": sum(w.numel() for w in model.parameters())},
        )

    def identity(self, ask: BenchSpec) -> None:
        """None: each call of `buzzer bench` trains another network."""


def cut(trips: Mapping[str, Array], size: int, number: int) -> dict[str, Array]:
    """The batch with a number: the next `size` trips, starting over at the end."""
    at = (np.arange(size) + number * size) % len(trips["cities"])
    return {name: np.ascontiguousarray(array[at]) for name, array in trips.items()}


def fit(ask: BenchSpec) -> None:
    """Generate data, train the network, and save it and the inputs of the test trips in `ask.work`."""
    data, e = ask.work / "data", frames.load("polars")
    dataset.generate(data, ask.params["scale"], ask.seed, silent)
    params = load_yaml("tasks/booking.yaml")["params"] | {"networks": [ask.params["network"]]}
    params |= {name: ask.params[name] for name in ("dim", "epochs")}
    context = RunContext(
        task="booking", engine="polars", backend="torch_eager", precision="fp32", device="cpu",
        data=data, work=ask.work, out=ask.work, scale=ask.params["scale"], seed=ask.seed,
        threads=ask.threads, params=params,
    )  # fmt: skip
    for _ in TASK.fit(context):
        pass  # the phases are not timed
    stays = features.code(e, features.read_stays(e, paths(data)["test"]), features.read_tables(e, ask.work))
    t = e.collect(features.trip_features(e, stays, params["lags"]))
    last = e.filter(t, lambda c: c("position") == c("length") - 1)
    inputs = features.to_inputs(e, last, params["lags"])
    np.savez(ask.work / TRIPS, **inputs.batch(slice(None)))  # type: ignore[arg-type]


TARGET = SessionEncoder()
