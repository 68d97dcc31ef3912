"""Intervals of a cost whose law of growth is unknown. Many laws are fitted, and the interval covers the predictions of all laws
that the measurements do not reject."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONFIDENCE = 0.95
EXPONENTS = (0.3, 2.0)  # range of exponents: from sublinear growth, as with caches, to a quadratic algorithm
STEPS = 86  # number of exponents tried in this range
QUADRATIC = 99  # number of shares of a quadratic part tried, in the growth up to the largest size
KNEES = 24  # number of positions of a knee tried, from the smallest size to the largest
BENDS = (0.5, 2.0)  # slopes above a knee, as multiples of the slope below it

Series = Mapping[float, Sequence[float]]  # size -> costs measured there


def reach(series: Series, size: float) -> tuple[float, float]:
    """Bounds of the cost at `size` with at least 95 % confidence, if its law is like one of `shapes`.

    The interval is the union of the t-intervals of all laws that are not rejected. Beyond the largest size, the growth that the
    best one predicts may also be half or double. `series` needs three sizes and two repetitions.
    """
    import numpy as np
    from scipy.stats import t

    fits = fit(series, size)
    half = np.minimum(t.ppf(0.5 + CONFIDENCE / 2, fits.freedom) * fits.error, 300.0)  # no overflow
    low, high = fits.predicted * np.exp(-half), fits.predicted * np.exp(half)
    kept, best = fits.kept(), int(fits.misfit.argmin())
    lows, highs = [low[kept].min()], [high[kept].max()]
    if size > max(series):
        end = fits.at_largest[best]
        lows.append(end + min(BENDS) * (low[best] - end))
        highs.append(end + max(BENDS) * (high[best] - end))
    return float(min(lows)), float(max(highs))


def exponent(series: Series) -> tuple[float, float]:
    """95 % interval of the exponent of a power law with a fixed part, by its profile likelihood."""
    from scipy.stats import f

    tried = exponents()
    fits = fit(series, max(series))
    misfit = fits.misfit[: len(tried)]
    kept = tried[misfit <= misfit.min() + fits.variance * f.ppf(CONFIDENCE, 1, fits.freedom)]
    return float(kept.min()), float(kept.max())


@dataclass(frozen=True)
class Fits:
    """The best fixed + rate * shape(size) of each shape; arrays of one value per shape."""

    predicted: Any
    error: Any  # relative standard error of `predicted`
    misfit: Any  # sum of squared relative errors, weighted by repetitions
    at_largest: Any  # cost at the largest measured size
    variance: float  # of the log of one repetition
    freedom: int  # degrees of freedom of `variance`
    sizes: int

    def kept(self) -> Any:
        """Mask of the laws that the measurements do not reject, by the F-test for lack of fit at the 95 % level.

        If they reject all, `variance` is raised to the best law's misfit (Birge 1932), so that one remains.
        """
        from scipy.stats import f

        spare = self.sizes - 1  # a fixed part at its bound of zero is not a free parameter
        variance = max(self.variance, float(self.misfit.min()) / (self.sizes - 2))
        return self.misfit <= spare * variance * f.ppf(CONFIDENCE, spare, self.freedom)


def exponents() -> Any:
    """The exponents that are tried, ascending."""
    import numpy as np

    return np.linspace(*EXPONENTS, STEPS)


def shapes(sizes: Any, size: float) -> Any:
    """Values of shape (laws, sizes + 1) at `sizes`, which ascend, and at `size`: powers, lines with a quadratic part, lines with a knee.

    A knee at the largest size shows in no measurement: it allows for a change of growth beyond.
    """
    import numpy as np

    x = np.append(sizes, size) / sizes[-1]
    powers = x ** exponents()[:, None]
    mixed = [(1 - q) * x + q * x**2 for q in np.linspace(0, 1, QUADRATIC + 2)[1:-1]]
    knees = np.geomspace(x[0], 1, KNEES + 1)[1:]
    bent = [x + (slope - 1) * np.maximum(x - knee, 0) for knee in knees for slope in BENDS]
    return np.vstack([powers, *mixed, *bent])


def fit(series: Series, size: float) -> Fits:
    """Least squares of relative errors, in closed form for all shapes at once; no term is negative."""
    import numpy as np

    sizes = np.array(sorted(series))
    logs = [np.log(series[n]) for n in sizes]
    count = np.array([len(x) for x in logs])
    y = np.exp([x.mean() for x in logs])
    freedom = int(count.sum()) - len(sizes)
    variance = sum(float(((x - x.mean()) ** 2).sum()) for x in logs) / freedom
    g = shapes(sizes, size)
    g, end = g[:, :-1], g[:, -1]
    one, gram = (count / y**2).sum(), (count * g**2 / y**2).sum(1)
    cross, right_one, right = (count * g / y**2).sum(1), (count / y).sum(), (count * g / y).sum(1)
    det = one * gram - cross**2
    fixed, rate = (right_one * gram - right * cross) / det, (one * right - right_one * cross) / det
    spread = (
        gram - 2 * cross * end + one * end**2
    ) / det  # variance of the prediction, in units of `variance`
    bare, flat = fixed < 0, rate < 0
    fixed, rate = np.where(bare, 0.0, fixed), np.where(bare, right / gram, rate)
    fixed, rate = np.where(flat, right_one / one, fixed), np.where(flat, 0.0, rate)
    spread = np.where(flat, 1 / one, np.where(bare, end**2 / gram, spread))
    misfit = (count * (1 - (fixed[:, None] + rate[:, None] * g) / y) ** 2).sum(1)
    predicted = fixed + rate * end
    error = np.sqrt(variance * spread) / predicted
    return Fits(predicted, error, misfit, fixed + rate, variance, freedom, len(sizes))
