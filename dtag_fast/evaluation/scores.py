"""Statistics of returns: normalised scores, interquartile mean, bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtag_fast.data.references import ReferenceScores

Floats = NDArray[np.float64]
StatisticName = Literal["mean", "iqm", "median"]
# A callable takes [..., N] and reduces the last axis.
Statistic = StatisticName | Callable[[Floats], Any]

# How a score names its scale. The two are not comparable: other data, other physics.
SOURCE_LABELS = {"d4rl": "D4RL", "minari": "Minari"}

# Resampled values held at once; 32 MB.
_CHUNK = 4_000_000


def normalized_score(returns: ArrayLike, reference: ReferenceScores) -> Floats:
    """100 * (return - minimum) / (maximum - minimum), of the same shape.

    D4RL's score (Fu et al. 2020, arXiv 2004.07219) times 100, as papers print it. Scores above 100
    and below 0 are normal.
    """
    return reference.normalized(returns)


def interquartile_mean(values: ArrayLike) -> Any:
    """The mean of the middle half of the last axis, [..., N] -> [...]; a float for [N].

    A quarter of the values, rounded down, is left out at each end; so the 25 % trimmed mean of
    Agarwal et al. 2021 (arXiv 2108.13264) and of `scipy.stats.trim_mean(values, 0.25)`.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(f"values: expected at least one, got shape {list(array.shape)}")
    count = array.shape[-1]
    cut = count // 4
    middle = np.sort(array, axis=-1)[..., cut : count - cut].mean(axis=-1)
    return float(middle) if array.ndim == 1 else middle


def _function(statistic: Statistic) -> Callable[[Floats], Any]:
    if callable(statistic):
        return statistic
    match statistic:
        case "mean":
            return lambda values: values.mean(axis=-1)
        case "iqm":
            return interquartile_mean
        case "median":
            return lambda values: np.median(values, axis=-1)
    raise ValueError(
        f"statistic: expected one of {', '.join(get_args(StatisticName))} or a callable, "
        f"got {statistic!r}"
    )


def stratified_bootstrap(
    strata: Sequence[ArrayLike],
    statistic: Statistic = "iqm",
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic over all values, resampled by stratum.

    Agarwal et al. 2021 (arXiv 2108.13264): each stratum is resampled with replacement to its own
    size, so that a resample holds as many values of every training seed, or task, as the data.

    Args:
        strata: one array of values per stratum, for instance the returns of each training seed.
            For a single run: `[returns]`.
        statistic: "mean", "iqm", "median", or a callable that reduces the last axis of [R, N].
        resamples: how many.
        confidence: of the interval, between 0 and 1.
        seed: of the resampling; the same one gives the same interval.

    Returns:
        (low, high). One value per stratum has no spread to resample: low = high then.
    """
    arrays = [np.asarray(values, dtype=np.float64) for values in strata]
    if not arrays:
        raise ValueError("strata: expected at least one")
    for index, values in enumerate(arrays):
        if values.ndim != 1 or values.size == 0:
            raise ValueError(
                f"strata[{index}]: expected a vector of at least one value, "
                f"got shape {list(values.shape)}"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"strata[{index}]: expected finite values")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence}")
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, got {resamples}")
    compute = _function(statistic)
    rng = np.random.default_rng(seed)
    total = sum(values.size for values in arrays)
    chunk = max(1, _CHUNK // total)
    results = []
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        drawn = [values[rng.integers(values.size, size=(count, values.size))] for values in arrays]
        results.append(np.asarray(compute(np.concatenate(drawn, axis=-1)), dtype=np.float64))
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(np.concatenate(results), [tail, 100 - tail])
    return float(low), float(high)
