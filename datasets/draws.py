"""Weights and hashes that several generators draw from."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]


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
