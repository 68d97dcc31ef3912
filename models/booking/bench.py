"""`session-encoder`: a network of the `booking` task for `buzzer bench`, on trips that it was not trained on."""

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
from buzzer.models.booking.members import fitted, read_sizes
from buzzer.models.booking.params import Member
from buzzer.models.booking.task import TASK

TRIPS = "trips.npz"
CALIBRATION = 8  # batches for calibration


class SessionEncoder:
    """params: `scale` of the generated data, and `network` with its `dim` and `epochs`."""

    def load(self, spec: BenchSpec) -> BenchModel:
        """Trains the network unless `spec.work` has it. Raises UsageError for rows of real lengths."""
        self.check(spec)
        if not (spec.work / TRIPS).is_file():
            fit(spec)
        trips = dict(np.load(spec.work / TRIPS))
        member = Member(spec.params["network"], bag=0, fold=0, folds=1)
        model = fitted(member, read_sizes(spec.work)[member.network], spec.work)

        count = len(trips["cities"])
        notes = [f"held-out trips of booking, generated, scale {spec.params['scale']:g}"]
        if spec.batch > count:
            notes.append(f"{count} different trips, repeated")
        batches = [cut(trips, spec.batch, i) for i in range(spec.inputs + CALIBRATION)]
        return BenchModel(
            model,
            ("probability",),
            batches[: spec.inputs],
            lambda batch: outputs_of(model, batch, ("probability",)),
            [spec.batch] * spec.inputs,
            calibration=batches[spec.inputs :],
            notes=tuple(notes),
            facts={"held_out_trips": count, "parameters": sum(w.numel() for w in model.parameters())},
        )

    def check(self, spec: BenchSpec) -> None:
        """Raises UsageError for rows of real lengths."""
        if spec.lengths != "fixed":
            raise UsageError("trips have a fixed length: --lengths real is for text encoders")

    def identity(self, spec: BenchSpec) -> None:
        """None: each call of `buzzer bench` trains another network."""


def cut(trips: Mapping[str, Array], size: int, number: int) -> dict[str, Array]:
    """Batch `number`: the next `size` trips, starting over at the end."""
    at = (np.arange(size) + number * size) % len(trips["cities"])
    return {name: np.ascontiguousarray(array[at]) for name, array in trips.items()}


def fit(spec: BenchSpec) -> None:
    """Generate data, train the network, and save it and the inputs of the test trips in `spec.work`."""
    data, e = spec.work / "data", frames.load("polars")
    dataset.generate(data, spec.params["scale"], spec.seed, silent)
    params = load_yaml("tasks/booking.yaml")["params"] | {"networks": [spec.params["network"]]}
    params |= {name: spec.params[name] for name in ("dim", "epochs")}
    context = RunContext(
        task="booking", engine="polars", backend="torch_eager", precision="fp32", device="cpu",
        data=data, work=spec.work, out=spec.work, scale=spec.params["scale"], seed=spec.seed,
        threads=spec.threads, params=params,
    )  # fmt: skip
    for _ in TASK.fit(context):
        pass  # the phases are not timed
    stays = features.code(e, features.read_stays(e, paths(data)["test"]), features.read_tables(e, spec.work))
    t = e.collect(features.trip_features(e, stays, params["lags"]))
    last = e.filter(t, lambda c: c("position") == c("length") - 1)
    inputs = features.to_inputs(e, last, params["lags"])
    np.savez(spec.work / TRIPS, **inputs.batch(slice(None)))  # type: ignore[arg-type]


TARGET = SessionEncoder()
