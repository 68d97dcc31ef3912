"""How much each effect of the generator is worth: `python -m buzzer.datasets.recsys2021.effects` prints a table.

The log odds are computed again without an effect, and calibrated by a line for each engagement. The loss of RCE is that of the best model that
knows everything else. It is computed from the exact probabilities, not from drawn labels, so the noise is small.
"""

import sys
from collections.abc import Iterable, Mapping

import numpy as np

from buzzer.datasets.recsys2021 import generator, odds
from buzzer.datasets.recsys2021.metric import Array, author_group
from buzzer.datasets.recsys2021.odds import EFFECTS, Rows
from buzzer.datasets.recsys2021.schema import GROUPS, LABELS
from buzzer.datasets.recsys2021.world import Floats, World

# What a family of the winners' columns can show, by the effects that it is made for.
FAMILIES = {
    "encodings of the reader": ("reader", "reader_type"),
    "encodings of the author": ("author",),
    "encodings of the pair": ("pair",),
    "encodings of context and words": ("occasion", "opener", "retweeted"),
    "counts in the text": ("question", "exclamation", "length", "tags"),
    "followers and ages": ("peers", "cohort"),
    "word vectors": ("quality",),
    "vectors of users": ("groups", "group_topic", "taste"),
    "labels of the fourth week": ("appeal", "author_week", "reader_week"),
}


def losses(scale: float, seed: int, rows: int) -> dict[str, float]:
    """The loss of RCE without each of FAMILIES, on rows of the first chunk of the test. `ceiling` is the RCE with all effects."""
    chunk = next(c for c in generator.planned(scale, seed) if c.part == "test")
    world = World(chunk.scale, chunk.seed, chunk.known_scale)
    n = min(rows, chunk.rows)
    drawn = generator.draw_rows(world, generator.rng_of(chunk), n, generator.place_of(chunk), "test")
    group = author_group(world.followers(drawn.author))[drawn.of]
    best = odds.probabilities(odds.log_odds(world, drawn), drawn)
    out = {"ceiling": relative_cross_entropy(best, best, group)}
    for family, effects in FAMILIES.items():
        guess = without(world, drawn, effects)
        calibrated = {label: fitted(guess[label], best[label]) for label in LABELS}
        out[family] = out["ceiling"] - relative_cross_entropy(best, calibrated, group)
    return out


def without(world: World, rows: Rows, effects: Iterable[str]) -> dict[str, Floats]:
    """The probabilities of the labels if some effects had no weight."""
    known = {name: EFFECTS[name] for name in effects}
    try:
        EFFECTS.update(dict.fromkeys(known, (0.0, 0.0, 0.0, 0.0)))
        return odds.probabilities(odds.log_odds(world, rows), rows)
    finally:
        EFFECTS.update(known)


def fitted(guess: Floats, best: Floats) -> Floats:
    """The probabilities whose log odds are the line in those of `guess` with the least cross entropy (Newton's method)."""
    x = np.stack([np.ones_like(guess), np.log(guess) - np.log1p(-guess)])
    line = np.array([0.0, 1.0])
    for _ in range(10):
        p = odds.sigmoid(line @ x)
        line = line + np.linalg.solve((x * p * (1 - p)) @ x.T, x @ (best - p))
    return odds.sigmoid(line @ x)


def relative_cross_entropy(best: Mapping[str, Floats], guess: Mapping[str, Floats], group: Array) -> float:
    """The expected RCE of probabilities if the labels have the probabilities `best`, by the rule of `metric.scores`."""
    values = []
    for label in LABELS:
        for members in (group == g for g in range(len(GROUPS) + 1)):
            p, q = best[label][members], guess[label][members]
            values.append(100 * (1 - cross_entropy(p, q) / cross_entropy(p, np.full_like(p, p.mean()))))
    return float(np.mean(values))


def cross_entropy(p: Floats, q: Floats) -> float:
    """The mean cross entropy of probabilities q, in nats, if the true probabilities are p."""
    return float(-(p * np.log(q) + (1 - p) * np.log1p(-q)).mean())


if __name__ == "__main__":
    for name, loss in losses(0.01, 0, 60_000).items():
        sys.stdout.write(f"{loss:7.2f}  {name}\n")
