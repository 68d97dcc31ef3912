"""A generated stand-in with the columns and about the marginals of the package's logs."""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from buzzer.datasets.contract import Progress
from buzzer.datasets.open_bandit.reader import write
from buzzer.datasets.open_bandit.schema import (
    CAMPAIGNS,
    DAY_MS,
    DAYS,
    FIRST_DAY_MS,
    ITEM,
    LOG_ROWS,
    POLICIES,
    POSITIONS,
    TRAIN,
    USER,
)

VERSION = 1  # version of the random process: the same version, scale and seed give the same files
USER_VALUES = (3, 5, 9, 8)  # different values of the user's features
ITEM_VALUES = (30, 40, 20)  # about those of the item's features
BASE = -7.2  # log odds of a click without effects
SPREADS = {"item": 1.0, "user": 1.0, "pair": 0.6}  # standard deviations of the effects on the log odds


def generate(out: Path, scale: float, seed: int, progress: Progress) -> None:
    """Write train.csv, test.csv, truth.csv and generator.json into the new folder `out`.

    The log odds of a click are a sum of effects of the item, the user's second feature, both together, the position and the user's
    affinity to the item. The items and effects are the same for all seeds. Raises DataError if the files cannot be written.
    """
    progress(0.0, "generating impressions")
    rng, world, n = (
        np.random.default_rng([seed, 9]),
        np.random.default_rng(9),
        max(round(LOG_ROWS * scale), 100),
    )
    logs = []
    for campaign, items in CAMPAIGNS.items():
        effects = {
            "item": world.normal(0, SPREADS["item"], items),
            "user": world.normal(0, SPREADS["user"], USER_VALUES[1]),
            "pair": world.normal(0, SPREADS["pair"], (items, USER_VALUES[1])),
        }
        values = [world.integers(0, size, items) for size in ITEM_VALUES]
        height = np.round(world.normal(0, 0.5, items), 6)
        for policy in POLICIES:
            weight = np.exp(2 * effects["item"]) if policy == "bts" else np.ones(items)
            item = rng.choice(items, n, p=weight / weight.sum())
            user = [rng.integers(0, size, n) for size in USER_VALUES]
            position = rng.integers(1, POSITIONS + 1, n)
            affinities = np.where(rng.random(n) < 0.045, rng.geometric(0.8, n), 0)
            affinity = np.where(rng.random(n) < 0.03, affinities, 0)
            log_odds = (
                BASE + effects["item"][item] + effects["user"][user[1]] + effects["pair"][item, user[1]]
            )
            log_odds += 0.1 * (2 - position) + 3 * affinity
            logs.append(
                {
                    "time": np.sort(FIRST_DAY_MS + rng.integers(0, DAYS * DAY_MS, n)),
                    "policy": [policy] * n,
                    "campaign": [campaign] * n,
                    "item": item,
                    "position": position,
                    **{name: hashed(name, user[i]) for i, name in enumerate(USER)},
                    "item_0": height[item],
                    **{name: hashed(name, values[i][item]) for i, name in enumerate(ITEM)},
                    "affinity": affinity.astype(np.float64),
                    "affinities": affinities.astype(np.float64),
                    "click": (rng.random(n) < 1 / (1 + np.exp(-log_odds))).astype(np.int64),
                }
            )
    table = pl.concat([pl.DataFrame(log).select(list(TRAIN)) for log in logs])
    facts: dict[str, object] = {"generator": "open_bandit", "version": VERSION, "scale": scale, "seed": seed}
    write(out, table, "generator.json", facts)


def hashed(name: str, values: npt.NDArray[np.int64]) -> pl.Series:
    """32 hexadecimal digits for each number."""
    texts = [
        hashlib.md5(f"{name} {i}".encode(), usedforsecurity=False).hexdigest()
        for i in range(values.max() + 1)
    ]
    return pl.Series(texts).gather(values)
