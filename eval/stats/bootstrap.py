"""Intervals and comparisons: cluster bootstrap, paired differences, Holm's correction, Fisher's z.

An experiment's measure is a Quantity: sums per cluster (template, occupation, profile) and a statistic of the total
sums. All resamples of a quantity are then one matrix product. Two conditions on the same items share the same draws,
which makes their difference a paired one. A seed is required; the same seed gives the same interval.

Clusters are drawn with replacement within their stratum (BBQ's categories, which are fixed by design; elsewhere there
is one stratum). A stratum with a single cluster shows no spread. If there is one, all clusters are drawn together: the
interval then includes the spread between strata, is wider, and its note says so.

Percentile intervals of few clusters are too narrow, so their tails are widened as Hesterberg 2015 ("What Teachers
Should Know About the Bootstrap", expanded percentile interval) proposes: the normal quantile is replaced by Student's
with C - S degrees of freedom, times sqrt(C / (C - S)), for C clusters in S strata.

Letters in array names are axes: C clusters, K sums, S strata, U unique clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95
N_RESAMPLES = 10_000
MIN_CLUSTERS = 8
"""With fewer clusters (for S strata, fewer than MIN_CLUSTERS - 1 + S) the bootstrap says little: no interval."""
MAX_UNDEFINED = 0.05
"""If more than this share of the resamples is undefined, there is no interval."""
MIN_SPREAD = 1e-4
"""If p(female) has a smaller standard deviation, its correlation is rounding noise: it counts as undefined."""
BLOCK = 500  # resamples multiplied at a time

Statistic = Callable[[np.ndarray], np.ndarray]
"""Maps sums of shape (..., K), whose column 0 is the total weight, to values of shape (...)."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval. Each is None where undefined; `note` then says why."""

    value: float | None
    low: float | None
    high: float | None
    n_clusters: int
    note: str = ""
    p_value: float | None = None


@dataclass(frozen=True)
class Table:
    """Sums per cluster. sums_CK: column 0 holds the weights. strata_C: stratum of each cluster; equal ones adjacent."""

    clusters: tuple[str, ...]
    sums_CK: np.ndarray
    strata_C: np.ndarray

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of clusters in each stratum."""
        return tuple(int(n) for n in np.unique(self.strata_C, return_counts=True)[1])

    def select(self, chosen_C: np.ndarray) -> Table:
        """The clusters where `chosen_C` (bool) is True."""
        names = tuple(c for c, keep in zip(self.clusters, chosen_C, strict=True) if keep)
        return Table(names, self.sums_CK[chosen_C], self.strata_C[chosen_C])

    def split_by_stratum(self) -> np.ndarray:
        """Each cluster's sums placed in its own stratum, zero in the others. Shape (C, S, K)."""
        codes = np.unique(self.strata_C, return_inverse=True)[1]
        split = np.zeros((len(self.clusters), codes.max() + 1, self.sums_CK.shape[1]))
        split[np.arange(len(self.clusters)), codes] = self.sums_CK
        return split


def tabulate(
    values: np.ndarray,
    clusters: Sequence[str] | np.ndarray,
    weights: np.ndarray | None = None,
    strata: Sequence[str] | np.ndarray | None = None,
) -> Table:
    """Sums values by cluster.

    Args:
        values: (items, K).
        clusters: cluster name of each item.
        weights: (items,); default 1.
        strata: stratum of each item; default one stratum.
    """
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    names_U, first, index = np.unique(np.asarray(clusters), return_index=True, return_inverse=True)
    columns = np.column_stack([np.ones(len(values)), values]) * weights[:, None]
    sums = np.column_stack([np.bincount(index, column, minlength=len(names_U)) for column in columns.T])
    stratum_of_cluster = np.zeros(len(names_U), dtype=int)
    if strata is not None:
        stratum_of_cluster = np.unique(np.asarray(strata), return_inverse=True)[1][first]
    order = np.argsort(stratum_of_cluster, kind="stable")
    return Table(tuple(str(n) for n in names_U[order]), sums[order], stratum_of_cluster[order])


@dataclass(frozen=True, eq=False)
class Quantity:
    """Something to be estimated.

    Attributes:
        of_each_stratum: the statistic is taken in each stratum, then averaged.
        exact: an interval that is known without resampling (Fisher's).
        undefined: the reason why there is no value, else ''.
        per_cluster: what one cluster is called if the quantity has a meaning within it ("template"), else ''.
    """

    name: str
    table: Table
    statistic: Statistic
    n_items: int
    method: str
    category: str = "all"
    note: str = ""
    of_each_stratum: bool = False
    exact: Estimate | None = None
    undefined: str = ""
    per_cluster: str = ""
    reported: bool = True

    def apply(self, sums: np.ndarray) -> np.ndarray:
        """The statistic of sums (..., K); with of_each_stratum, the mean over strata of sums (..., S, K)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            values = self.statistic(sums)
        return values.mean(axis=-1) if self.of_each_stratum else values

    @property
    def value(self) -> float:
        """The value on the data. NaN if it divides by zero."""
        sums = self.table.split_by_stratum() if self.of_each_stratum else self.table.sums_CK
        return float(self.apply(sums.sum(axis=0)))


@dataclass
class Bootstrap:
    """Draws resamples with one seed. Quantities with the same numbers of clusters share their draws."""

    seed: int
    resamples: int = N_RESAMPLES
    _draws: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict, repr=False)
    _replicates: dict[Quantity, np.ndarray] = field(default_factory=dict, repr=False)

    def estimate(self, quantity: Quantity) -> Estimate:
        """The value with its interval. Quantity.exact, if set, is returned as it is."""
        if quantity.exact is not None:
            return quantity.exact
        clusters = len(quantity.table.clusters)
        if quantity.undefined:
            return Estimate(None, None, None, clusters, f"undefined: {quantity.undefined}")
        value = quantity.value
        if not np.isfinite(value):
            return Estimate(None, None, None, clusters, "undefined: no answer that the score could be taken of")
        reason = self._no_interval(quantity.table, quantity.of_each_stratum)
        if reason:
            return Estimate(value, None, None, clusters, _join_notes(quantity.note, reason))
        estimate = self._interval(value, self.replicates(quantity), quantity.table)
        return replace(estimate, note=_join_notes(quantity.note, estimate.note))

    def difference(self, before: Quantity, after: Quantity) -> Estimate:
        """Estimates after - before on the same clusters, with a two-sided p-value.

        The difference is paired: both quantities use the same draws. The p-value is the level at which the interval
        would just touch 0.

        Raises:
            ValueError: the quantities have different clusters.
        """
        if before.table.clusters != after.table.clusters:
            raise ValueError(f"{after.name}: the two conditions were not asked on the same clusters")
        clusters = len(before.table.clusters)
        for quantity in (before, after):
            if quantity.undefined or not np.isfinite(quantity.value):
                reason = quantity.undefined or "no answer that the score could be taken of"
                return Estimate(None, None, None, clusters, f"undefined: {reason}")
        value = after.value - before.value
        reason = self._no_interval(before.table, before.of_each_stratum)
        if reason:
            return Estimate(value, None, None, clusters, reason)
        replicates = self.replicates(after) - self.replicates(before)
        return self._interval(value, replicates, before.table, test=True)

    def mean(self, quantities: Sequence[Quantity]) -> Estimate:
        """Estimates the mean of several quantities over the same clusters.

        Raises:
            ValueError: the quantities have different clusters.
        """
        first, clusters = quantities[0], len(quantities[0].table.clusters)
        if any(q.table.clusters != first.table.clusters for q in quantities):
            raise ValueError(f"{first.name}: the quantities were not asked on the same clusters")
        values = [q.value for q in quantities]
        if any(q.undefined for q in quantities) or not np.isfinite(values).all():
            return Estimate(None, None, None, clusters, "undefined in at least one of them")
        if reason := self._no_interval(first.table, first.of_each_stratum):
            return Estimate(float(np.mean(values)), None, None, clusters, reason)
        replicates = np.mean([self.replicates(q) for q in quantities], axis=0)
        return self._interval(float(np.mean(values)), replicates, first.table)

    def replicates(self, quantity: Quantity) -> np.ndarray:
        """The quantity in every resample, shape (resamples,). NaN where it is undefined."""
        if quantity not in self._replicates:
            table = quantity.table
            split = table.split_by_stratum() if quantity.of_each_stratum else table.sums_CK
            flat = split.reshape(len(split), -1)
            draws = self._draw(table.sizes if self._stratified(table) else (len(table.clusters),))
            blocks = [draws[i : i + BLOCK].astype(float) @ flat for i in range(0, self.resamples, BLOCK)]
            sums = np.concatenate(blocks).reshape(self.resamples, *split.shape[1:])
            self._replicates[quantity] = quantity.apply(sums)
        return self._replicates[quantity]

    def _draw(self, sizes: tuple[int, ...]) -> np.ndarray:
        """How often each cluster is drawn, shape (resamples, C).

        Args:
            sizes: number of clusters in each stratum. As many are drawn from each stratum as it has.
        """
        if sizes not in self._draws:
            rng = np.random.default_rng(self.seed)
            blocks = []
            for n in sizes:
                drawn = rng.integers(n, size=(self.resamples, n)) + n * np.arange(self.resamples)[:, None]
                counts = np.bincount(drawn.ravel(), minlength=n * self.resamples)
                blocks.append(counts.reshape(self.resamples, n).astype(np.int16))
            self._draws[sizes] = np.concatenate(blocks, axis=1)
        return self._draws[sizes]

    @staticmethod
    def _stratified(table: Table) -> bool:
        """Whether clusters are drawn within strata. False if one of several strata has a single cluster."""
        return len(table.sizes) == 1 or min(table.sizes) > 1

    def _degrees(self, table: Table) -> int:
        """Degrees of freedom: clusters minus the strata that they are drawn in."""
        return len(table.clusters) - (len(table.sizes) if self._stratified(table) else 1)

    def _no_interval(self, table: Table, of_each_stratum: bool) -> str:
        """The reason why there can be no interval, or ''."""
        clusters, degrees = len(table.clusters), self._degrees(table)
        if of_each_stratum and not self._stratified(table):
            return "no interval: a category has fewer than 2 clusters"
        if degrees < MIN_CLUSTERS - 1:
            needed = MIN_CLUSTERS - 1 + clusters - degrees
            return f"no interval: {clusters} clusters, at least {needed} are needed"
        return ""

    def _interval(self, value: float, replicates: np.ndarray, table: Table, test: bool = False) -> Estimate:
        finite = replicates[np.isfinite(replicates)]
        left_out = len(replicates) - len(finite)
        note = f"{left_out} of {len(replicates)} resamples undefined and left out" if left_out else ""
        if not self._stratified(table):
            note = _join_notes(note, "drawn across categories, since one has a single cluster")
        clusters = len(table.clusters)
        if left_out > MAX_UNDEFINED * len(replicates):
            return Estimate(value, None, None, clusters, f"no interval: {note}")
        degrees = self._degrees(table)
        widening = float(np.sqrt(clusters / degrees))
        tail = float(stats.norm.cdf(stats.t.ppf((1 - LEVEL) / 2, degrees) * widening))
        low, high = np.quantile(finite, [tail, 1 - tail])
        p_value = None
        if test:
            below, equal = np.sum(finite < 0), np.sum(finite == 0)
            rank = (below + 0.5 * equal + 0.5) / (len(finite) + 1)
            p_value = float(2 * stats.t.sf(abs(stats.norm.ppf(rank)) / widening, degrees))
        return Estimate(value, float(low), float(high), clusters, note, p_value)


def _join_notes(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def mean_of(column: int) -> Statistic:
    """The weighted mean of a column. Columns are counted from 1; column 0 holds the weights."""
    return lambda sums: sums[..., column] / sums[..., 0]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979). Adjusted p-values, in the order given."""
    order = np.argsort(p_values)
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, k in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[int(k)]))
        adjusted[int(k)] = running
    return adjusted


def correlation(sums: np.ndarray) -> np.ndarray:
    """Pearson's correlation from the columns weight, x, y, xx, yy, xy. x and y must be centred beforehand."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0)
    return (n * xy - x * y) / np.sqrt(spread)


def slope(sums: np.ndarray) -> np.ndarray:
    """Least-squares slope of x on y, from the columns that `correlation` takes."""
    n, x, y, _, yy, xy = np.moveaxis(sums, -1, 0)
    return (n * xy - x * y) / (n * yy - y * y)


def moments(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The columns x, y, xx, yy, xy of centred x and y, for `correlation` and `slope`."""
    x, y = x - x.mean(), y - y.mean()
    return np.column_stack([x, y, x * x, y * y, x * y])


def why_no_correlation(x: np.ndarray, y: np.ndarray) -> str:
    """The reason why the correlation of x (model) with y (reference) is undefined, or ''."""
    if len(x) < 4:
        return f"{len(x)} points, at least 4 are needed"
    for name, values in (("the model's probability", x), ("the reference percentage", y)):
        if np.std(values) < MIN_SPREAD:
            return f"{name} hardly varies (sd < {MIN_SPREAD:g})"
    return ""


def pearson(x: np.ndarray, y: np.ndarray) -> Estimate:
    """Pearson's correlation of x and y, shape (n,) each, with Fisher's interval (scipy).

    Undefined (value None) with fewer than 4 points, or if x or y has a standard deviation below MIN_SPREAD.
    """
    if reason := why_no_correlation(x, y):
        return Estimate(None, None, None, len(x), f"undefined: {reason}")
    result: Any = stats.pearsonr(x, y)
    interval = result.confidence_interval(LEVEL)
    return Estimate(float(result.statistic), float(interval.low), float(interval.high), len(x))
