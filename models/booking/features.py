"""Features of stays: from the official files to the networks' inputs, with the operators of `engine.frames`.

There is one row for each stay. It has the facts that do not depend on its city: its dates, device and affiliate, and the cities and
countries of the earlier stays. So every stay of a trip can be a training target, not only the last.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from buzzer.datasets.booking.schema import TRAIN
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import FIRST_CODE, RARE, Array, Columns, Expr, stack

CODED = ("city_id", "hotel_country", "booker_country", "device_class", "affiliate_id")
TABLES = {name: f"{name}.parquet" for name in CODED}
GUESSES = 4  # cities that may be guessed for a trip
# Codes of lags are shifted by one, so that 0 means "no stay".
SHIFT = 1
FIRST_CITY = FIRST_CODE + SHIFT  # code of the first city that is neither missing, unseen nor rare

CONTEXT = ("booker_country", "device_class", "affiliate_id", "month", "weekday_in", "weekday_out")
NUMBERS = ("nights", "stays", "before", "after", "gap", "weekend", "backwards")


@dataclass(frozen=True)
class Inputs:
    """The networks' inputs and target, arrays of the same rows."""

    cities: Array  # int64 [rows, lags + 1]: the first city, then the cities before, latest first
    countries: Array  # int64 [rows, lags + 1]: the countries in the same order
    context: Array  # int64 [rows, len(CONTEXT)]
    numbers: Array  # float32 [rows, len(NUMBERS)]
    target: Array  # int64 [rows]: the city's class, negative where it is missing, unseen or rare

    def batch(self, rows: Array | slice) -> dict[str, Array]:
        """The networks' inputs of some rows, by name."""
        return {name: getattr(self, name)[rows] for name in ("cities", "countries", "context", "numbers")}

    def limited(self, cities: int) -> "Inputs":
        """The inputs of a network whose table has `cities` rows: cities beyond it, which are the rarer ones, count as rare."""
        if (self.cities < cities).all() and (self.target < cities - FIRST_CITY).all():
            return self
        return replace(
            self,
            cities=np.where(self.cities < cities, self.cities, RARE + SHIFT),
            target=np.where(self.target < cities - FIRST_CITY, self.target, -1),
        )

    def __len__(self) -> int:
        return len(self.target)


def read_stays(e: Engine, path: Path) -> Frame:
    """The columns that the pipeline uses, from the training or the test file."""
    return e.read_csv(path, {name: kind for name, kind in TRAIN.items() if name != "user_id"})


def read_tables(e: Engine, folder: Path) -> dict[str, Frame]:
    """The code tables that `fit` saved."""
    return {name: e.read_parquet(folder / file) for name, file in TABLES.items()}


def fit_tables(e: Engine, train: Frame, test: Frame, rare: int) -> dict[str, Frame]:
    """Codes of the values in training and visible test stays. Cities that occur `rare` times or fewer share one code.

    The winners' threshold is 9 at the official size.
    """
    least = {"city_id": rare + 1}
    visible = e.filter(test, lambda c: c("city_id") > 0)
    return {name: e.categorify_fit([(train, name), (visible, name)], least.get(name, 1)) for name in CODED}


def code(e: Engine, t: Frame, tables: Mapping[str, Frame]) -> Frame:
    """Replace values by codes, and add month, weekdays and `ord`, the order in time."""
    for name, table in tables.items():
        t = e.categorify(t, name, table, f"{name}_code")
    t = e.date_parts(t, "checkin", "d", {"month": "month", "weekday": "weekday_in"})
    t = e.date_parts(t, "checkout", "d", {"weekday": "weekday_out"})
    return e.order_key(t, "checkin")


def trip_features(e: Engine, t: Frame, lags: int, *, backwards: bool = False) -> Frame:
    """Add position, gap and the last `lags` stays to coded stays. backwards: with the order of the trip reversed."""
    if backwards:
        t = e.with_columns(t, ord=lambda c: -c("ord"))
    near, far = ("checkin", "checkout") if backwards else ("checkout", "checkin")
    coded = ("city_id_code", "hotel_country_code")
    t = e.with_columns(t, **{name: shifted(name) for name in coded})
    t = e.window_features(
        t,
        ["utrip_id"],
        "ord",
        count="position",
        size="length",
        first={name: f"{name}_first" for name in coded},
        lags=dict.fromkeys(coded, (lags, 0)) | {near: (1, 0)},
    )
    sign = -1 if backwards else 1
    return e.with_columns(
        t,
        nights=lambda c: e.log1p(c("checkout") - c("checkin")),
        stays=lambda c: (e.clip(c("length"), 0, 20) - 6) / 3.0,
        before=lambda c: e.log1p(c("position")),
        after=lambda c: e.log1p(c("length") - 1 - c("position")),
        gap=lambda c: e.where(
            c("position") > 0, e.clip(sign * (c(far) - c(f"{near}_lag1")), -5, 30) / 5.0, -1.0
        ),
        weekend=lambda c: e.cast(c("weekday_in") >= 5, "float64"),
        backwards=lambda c: c("position") * 0.0 + float(backwards),
        # At the first stay the trip's first city is the target itself.
        **{f"{name}_first": no_answer(e, f"{name}_first") for name in coded},
    )


def shifted(name: str) -> Callable[[Columns], Expr]:
    """The code of a lag."""
    return lambda c: c(name) + SHIFT


def no_answer(e: Engine, name: str) -> Callable[[Columns], Expr]:
    """The column, 0 at the first stay of a trip."""

    def formula(c: Columns) -> Expr:
        return c(name) * e.cast(c("position") > 0, "int64")

    return formula


def to_inputs(e: Engine, t: Frame, lags: int) -> Inputs:
    """The networks' arrays, in the order of column `row`."""
    cities = ["city_id_code_first", *(f"city_id_code_lag{i}" for i in range(1, lags + 1))]
    countries = ["hotel_country_code_first", *(f"hotel_country_code_lag{i}" for i in range(1, lags + 1))]
    context = [f"{name}_code" if name in CODED else name for name in CONTEXT]
    arrays = e.to_numpy(t, [*cities, *countries, *context, *NUMBERS, "city_id_code"])
    return Inputs(
        stack(arrays, cities, np.int64),
        stack(arrays, countries, np.int64),
        stack(arrays, context, np.int64),
        stack(arrays, NUMBERS, np.float32),
        arrays["city_id_code"].astype(np.int64) - FIRST_CITY,
    )


def fit_transitions(e: Engine, t: Frame) -> Frame:
    """The baseline: for each city the codes of the cities that follow it most often, columns next0 to next3. t: coded stays with lags."""
    steps = e.filter(t, lambda c: (c("city_id_code_lag1") > 0) & (c("city_id_code") >= FIRST_CITY))
    ranked = e.top_k(steps, "city_id_code_lag1", "city_id_code", GUESSES)
    table = e.distinct(ranked, ["city_id_code_lag1"])
    for rank in range(GUESSES):
        chosen = e.filter(ranked, at_rank(rank))
        on = {"city_id_code_lag1": "city_id_code_lag1"}
        table = e.left_join(table, chosen, on, {"city_id_code": f"next{rank}"}, 0)
    return table


def at_rank(rank: int) -> Callable[[Columns], Expr]:
    """A condition that is true for the rows of a rank."""
    return lambda c: c("rank") == rank


def follow(e: Engine, t: Frame, transitions: Frame) -> Frame:
    """Add the baseline's guesses as columns next0 to next3: codes of cities, 0 if there is no guess."""
    names = {f"next{rank}": f"next{rank}" for rank in range(GUESSES)}
    return e.left_join(t, transitions, {"city_id_code_lag1": "city_id_code_lag1"}, names, 0)
