"""Boosted trees compiled to machine code: treelite reads the model, TL2cgen generates C code, the system's compiler builds it."""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import tl2cgen

from buzzer.engine.infer import native
from buzzer.engine.infer.base import Base
from buzzer.engine.infer.session import Array, Description, Plan, as_arrays, check_batch
from buzzer.engine.infer.trees import by_row, treelite_of
from buzzer.errors import UnsupportedError

PRECISIONS = ("fp32",)
COMPILER = native.compiler()
UNITS = 4  # C files that the trees are split into, because a single large file is slow to compile


class Tl2cgen(Base):
    """A Booster, or a file of XGBoost or LightGBM, compiled to a shared library.

    Its only input is `features`, as in the xgboost backend; it takes no base margins. Output: float32 [rows], or [rows, classes].
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        if set(plan.example) != {"features"}:
            raise UnsupportedError("TL2cgen does not support base margins", "use --backend xgboost")
        self._folder = tempfile.TemporaryDirectory(prefix="buzzer-trees-")
        library = Path(self._folder.name) / "trees.so"
        model = treelite_of(plan.model)
        tl2cgen.export_lib(
            model, toolchain=COMPILER, libpath=library, params={"parallel_comp": UNITS}, nthread=plan.threads
        )
        self._predictor = tl2cgen.Predictor(library, nthread=plan.threads)
        self._bytes = library.stat().st_size

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        check_batch(self.plan, batch)
        predicted = self._predictor.predict(tl2cgen.DMatrix(batch["features"]))
        return as_arrays(by_row(predicted, len(batch["features"])), self.plan.outputs)

    def facts(self) -> Description:
        return replace(self.plain_facts("tl2cgen", tl2cgen.__version__), weight_bytes=self._bytes)

    def close(self) -> None:
        self._folder.cleanup()


def prepare(plan: Plan) -> Tl2cgen:
    """A session on the plan's Booster or model file (XGBoost, LightGBM). Compilation takes seconds to minutes."""
    return Tl2cgen(plan)
