"""Boosted trees on a CPU by this project's own C code (forest.c), which is compiled when it is first used."""

import ctypes
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from buzzer import __version__
from buzzer.engine.infer import boosted, native
from buzzer.engine.infer.base import Base
from buzzer.engine.infer.forest_layout import BLOCK, Layout, lay_out
from buzzer.engine.infer.session import Array, Description, Plan, as_arrays, check_batch
from buzzer.engine.infer.several import MARGINS
from buzzer.errors import UsageError

PRECISIONS = ("fp32",)
SOURCE = Path(__file__).with_name("forest.c")
SHARE = 8 * BLOCK  # rows of a thread's share, a multiple of this
pointer, long = ctypes.c_void_p, ctypes.c_int64


class Model(ctypes.Structure):
    """The struct `forest` of forest.c."""

    _fields_ = [
        *((field.name, ctypes.c_void_p) for field in fields(Layout)),
        ("models", ctypes.c_int64),
        ("used_features", ctypes.c_int64),
        ("used_columns", ctypes.c_int64),
    ]


class Forest(Base):
    """Takes the inputs of the xgboost backend: `features` float32 [rows, features], and, if the plan names it, `base_margin`.

    With several models, `base_margin` is [rows, models], and there is one output for each model. The values of a row are ranked once for
    all models.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        models = plan.model if isinstance(plan.model, list) else [plan.model]
        check_inputs(plan)
        nodes = boosted.read(models, "forest")
        self._width = nodes.width
        self._check_width(plan.example["features"])
        self._predict = native.library(SOURCE).predict
        self._layout = lay_out(nodes)
        layout = self._layout
        arrays: list[Array] = [getattr(layout, field.name) for field in fields(layout)]
        pointers = [array.ctypes.data for array in arrays]
        self._model = Model(*pointers, len(models), len(layout.features), len(layout.columns))
        self._bytes = sum(array.nbytes for array in arrays)
        self._pool = ThreadPoolExecutor(plan.threads) if plan.threads > 1 else None

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        check_batch(self.plan, batch)
        x, margins = in_floats(batch["features"]), batch.get(MARGINS)
        self._check_width(x)
        if margins is not None:
            if len(margins) != len(x):
                raise UsageError(f"{MARGINS} has {len(margins)} rows, but features has {len(x)}")
            margins = in_floats(margins.reshape(len(x), len(self.plan.outputs)))
        probabilities = np.empty((len(self.plan.outputs), len(x)), np.float32)
        share = -(-len(x) // (self.plan.threads * SHARE)) * SHARE
        parts = [slice(start, min(start + share, len(x))) for start in range(0, len(x), max(share, 1))]

        def predict(part: slice) -> None:
            self._rows(x[part], None if margins is None else margins[part], probabilities[:, part])

        list((self._pool.map if self._pool and len(parts) > 1 else map)(predict, parts))
        return as_arrays(list(probabilities), self.plan.outputs)

    def _check_width(self, x: Array) -> None:
        """Raises UsageError unless the rows have the columns that the C code reads."""
        if x.shape[1] != self._width:
            raise UsageError(f"the batch has {x.shape[1]} columns, but the trees have {self._width}")

    def _rows(self, x: Array, margins: Array | None, out: Array) -> None:
        """Writes the probabilities [models, rows] of rows to `out`. The C function runs without Python's lock."""
        base, base_strides = (0, (0, 0)) if margins is None else (margins.ctypes.data, floats(margins))
        failed = self._predict(
            ctypes.byref(self._model), pointer(x.ctypes.data), *map(long, floats(x)), long(len(x)),
            pointer(base), *map(long, base_strides), pointer(out.ctypes.data), long(floats(out)[0]),
        )  # fmt: skip
        if failed:
            raise MemoryError("the codes of a block of rows do not fit in memory")

    def facts(self) -> Description:
        return replace(self.plain_facts("forest", __version__), weight_bytes=self._bytes)

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown()


def check_inputs(plan: Plan) -> None:
    """Raises UsageError unless the inputs are float32: features [rows, columns], and perhaps base margins [rows], or [rows, models] for
    a list of models."""
    for name, array in plan.example.items():
        if array.dtype != np.float32:
            raise UsageError(f"input {name} is {array.dtype}, but forest takes float32")
    if not {"features"} <= plan.example.keys() <= {"features", MARGINS}:
        raise UsageError(f"the inputs are {sorted(plan.example)}, but forest takes features and {MARGINS}")
    if (axes := plan.example["features"].ndim) != 2:
        raise UsageError(f"features has {axes} axes, not 2: rows and columns")
    wanted = (len(plan.model),) if isinstance(plan.model, list) else ()
    if MARGINS in plan.example and (shape := plan.example[MARGINS].shape[1:]) != wanted:
        raise UsageError(f"{MARGINS} is {['rows', *shape]}, not {['rows', *wanted]}".replace("'", ""))


def in_floats(array: Array) -> Array:
    """The array, or a copy if its floats are not aligned."""
    return array if array.flags.aligned else array.copy()


def floats(array: Array) -> tuple[int, ...]:
    """Strides in floats."""
    return tuple(stride // array.itemsize for stride in array.strides)


def prepare(plan: Plan) -> Forest:
    """A session on the plan's Booster or model file, or on several."""
    return Forest(plan)
