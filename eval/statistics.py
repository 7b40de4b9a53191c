"""Intervals: cluster bootstrap and Fisher's z. A seed is required; the same seed gives the same interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95
N_RESAMPLES = 2000
MIN_CLUSTERS = 8
"""Below this the percentile bootstrap is far too narrow to be shown."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval; None where undefined, with the reason in `note`."""

    value: float | None
    low: float | None
    high: float | None
    n_clusters: int
    note: str = ""


def cluster_bootstrap(
    values: np.ndarray,
    clusters: Sequence[str],
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray],
    seed: int,
    weights: np.ndarray | None = None,
) -> Estimate:
    """Percentile bootstrap that draws whole clusters with replacement.

    values: (items, K); weights: (items,), default ones. `statistic` maps weighted sums (..., K) and summed weights
    (...,) to values (...,), so all resamples are computed at once from the clusters' sums. A statistic that divides
    by zero is undefined: said in the note for the value, and resamples in which it happens are left out and counted.
    """
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums_CK = np.zeros((len(names), values.shape[1]))
    np.add.at(sums_CK, index, values * weights[:, None])
    counts_C = np.bincount(index, weights=weights, minlength=len(names))
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(sums_CK.sum(axis=0), counts_C.sum()))
        if not np.isfinite(value):
            return Estimate(None, None, None, len(names), "undefined: no answer that the score could be taken of")
        if len(names) < MIN_CLUSTERS:
            note = f"no interval: {len(names)} clusters, at least {MIN_CLUSTERS} are needed"
            return Estimate(value, None, None, len(names), note)
        rng = np.random.default_rng(seed)
        draws_BC = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=N_RESAMPLES)
        resampled_B = statistic(draws_BC @ sums_CK, draws_BC @ counts_C)
    finite = resampled_B[np.isfinite(resampled_B)]
    left_out = N_RESAMPLES - len(finite)
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    note = f"{left_out} of {N_RESAMPLES} resamples undefined and left out" if left_out else ""
    return Estimate(value, float(low), float(high), len(names), note)


MIN_SPREAD = 1e-4
"""Standard deviation of p(female) below which its correlation is noise of the arithmetic, and so undefined."""


def pearson(x: np.ndarray, y: np.ndarray) -> Estimate:
    """Pearson's correlation of x and y, shape (n,) each, with Fisher's interval (scipy).

    Undefined (value None) with fewer than 4 points or where x or y has a standard deviation below MIN_SPREAD.
    """
    if len(x) < 4:
        return Estimate(None, None, None, len(x), f"undefined: {len(x)} points, at least 4 are needed")
    for name, values in (("the model's probability", x), ("the reference percentage", y)):
        if np.std(values) < MIN_SPREAD:
            return Estimate(None, None, None, len(x), f"undefined: {name} hardly varies (sd < {MIN_SPREAD:g})")
    result: Any = stats.pearsonr(x, y)
    interval = result.confidence_interval(LEVEL)
    return Estimate(float(result.statistic), float(interval.low), float(interval.high), len(x))
