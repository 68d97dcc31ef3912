"""What several generators have in common: weights, hashes, and masses of candidates."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]


def zipf_weights(n: int, exponent: float, shift: float) -> Floats:
    """Zipf-Mandelbrot weights (rank + shift) ** -exponent of the ranks 1 to n, with the sum 1."""
    weights = (np.arange(1, n + 1) + shift) ** -exponent
    return np.asarray(weights / weights.sum())


def splitmix64(words: Words) -> Words:
    """The hash splitmix64 (Steele et al., OOPSLA 2014): uniform 64-bit words. It overwrites and returns `words`."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        words ^= words >> np.uint64(shift)  # in place, because new arrays would double the time
        if factor > 1:
            words *= np.uint64(factor)
    return words


def repeated(candidates: Ints) -> npt.NDArray[np.bool_]:
    """True at each value that also occurs further left in its row."""
    order = np.argsort(candidates, axis=1, kind="stable")
    ordered = np.take_along_axis(candidates, order, axis=1)
    again = np.zeros(candidates.shape, dtype=np.bool_)
    np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return again


def merged(candidates: Ints, mass: Floats) -> Floats:
    """The masses of equal candidates in a row, added up at the leftmost candidate."""
    again = repeated(candidates)
    rows, columns = np.nonzero(again & (mass > 0))
    leftmost = (candidates[rows] == candidates[rows, columns][:, None]).argmax(axis=1)
    out = np.where(again, 0.0, mass)
    np.add.at(out, (rows, leftmost), mass[rows, columns])
    return out
