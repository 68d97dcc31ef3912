"""The test rows of `online-shoppers` for `buzzer bench` of boosted trees: the columns of the file, and the features of the task's models."""

from collections.abc import Sequence

import numpy as np

from buzzer.configs import load_yaml
from buzzer.datasets.contract import silent
from buzzer.datasets.online_shoppers.reader import CODED, COLUMNS
from buzzer.engine import frames
from buzzer.engine.frames.base import Array
from buzzer.models.api.bench import BenchSpec
from buzzer.models.api.context import RunContext
from buzzer.models.held_out import HeldOut, Rows
from buzzer.models.online_shoppers import task
from buzzer.models.sigir_ecom.purchase.params import Context

NUMERIC = tuple(name for name, kind in COLUMNS.items() if kind != "str")
FLAG = "Weekend"  # the only text of the file that has a number: 1 for TRUE, 0 for FALSE
ENGINE = "polars"


def raw(spec: BenchSpec) -> Rows:
    """The columns of the file that are numbers, and `Weekend` as 0 or 1."""
    e, data = frames.load(ENGINE), task.TASK.prepare(None, spec.work, 1.0, spec.seed, silent)
    t = e.with_columns(
        task.rows_of_test(e, data.folder), **{FLAG: lambda c: e.cast(c(FLAG) == "TRUE", "int64")}
    )
    return Rows(np.asarray(e.matrix(e.collect(t), raw_columns())), data.source)


def raw_columns() -> Sequence[str]:
    """The names of the columns of `raw`."""
    return (*NUMERIC, FLAG)


def features(spec: BenchSpec) -> Rows:
    """The features of the task's models, with codes and rates of purchase of the training rows."""
    data = task.TASK.prepare(None, spec.work, 1.0, spec.seed, silent)
    # The shortest training: of the fit, only the tables of codes and rates are used.
    params = load_yaml("tasks/sigir-ecom-task2.yaml")["params"] | {"epochs": 1, "rounds": 1}
    context = task.TASK.typed(RunContext(
        task="online-shoppers", engine=ENGINE, backend="torch_eager", precision="fp32", device="cpu",
        data=data.folder, work=spec.work, out=spec.work, scale=1.0, seed=spec.seed, threads=spec.threads, params=params,
    ))  # fmt: skip
    for _ in task.TASK.fit_steps(context):
        pass  # the phases are not timed
    return Rows(np.asarray(encoded(context)), data.source)


def encoded(context: Context) -> Array:
    """The features of the test rows, float32 [rows, NUMBERS], with what a fit has saved in `context.work`."""
    e, work = frames.load(ENGINE), context.work
    t = task.base(
        e, e.collect(task.rows_of_test(e, context.data)), task.saved_tables(e, work, "codes", CODED)
    )
    t = task.encode(e, t, task.saved_tables(e, work, "rates", task.ENCODED), task.saved_prior(work))
    return e.matrix(e.collect(t), task.NUMBERS)


FILE = HeldOut("online-shoppers", "the numbers of its file", raw_columns, raw, nameless=False)
FEATURES = HeldOut("online-shoppers", "the features of its trees", lambda: task.NUMBERS, features)
