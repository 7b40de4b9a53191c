"""Where does an effect begin? A threshold on an axis of log-sizes or steps, with its interval and a test.

What is estimated. At each place x (log10 of parameters, or RLHF step) the effect is the reduction of bias,
|bias under Q| - |bias under the instruction|. Remaining bias counts on either side of 0, so a gap that turns from -0.1
into +0.1 is no reduction. The effects are fitted by a ramp: 0 up to a threshold, rising linearly to a second point,
constant from there on, by an amount that is not negative. A jump (both points between two tested places) and a broken
line (second point at the last place) are ramps too, and which of the three it is need not be known. In a simulation, a
95% interval from a fitted broken line held a planted jump in none to 60% of trials, and a fitted jump a planted broken
line in 69 to 99%; the ramp held either in 94 to 99% (docs/validation.md, Emergence).

How it is estimated. Least squares over a grid of ramps, weighted by the variances of the null below. All ramps that fit
equally well are kept (a jump between two tested places may be anywhere between them). The estimate is the middle of
their thresholds; the interval is that of the outermost ones.

Resampling. Templates are drawn jointly for all places and both conditions, which were asked the same ones. If a place
has several trainings, those are drawn too. The interval is the percentile interval of the threshold over the resamples.
Their spread is widened as in eval.stats.bootstrap (few clusters, Student's t), and so is the spread of the trainings,
of which there are few.

Test. Whether there is any effect is tested first: the largest reduction of the weighted sum of squares by any ramp,
against its distribution over draws without an effect (`Effects.null`).

Letters in array names are axes: M places, P policies, B resamples, G grid of ramps, N trainings of one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from eval.stats.bootstrap import LEVEL, MAX_UNDEFINED, MIN_CLUSTERS, Bootstrap, Quantity, Table

MIN_PLACES = 3
"""With fewer places no ramp can be recognised."""
ALPHA = 1 - LEVEL
LEAST_SHARE = 0.01
"""A variance counts as at least this share of the places' mean. One that happens to be 0 would decide everything."""
FINE, COARSE, MANY = 8, 4, 9
"""Grid points between two neighbouring places: FINE, or COARSE if there are at least MANY places."""
NEAR = 0.1
"""Ramps whose weighted sums of squares differ by less fit nearly as well. It is a third of a standard error."""
CLOSER = 33
"""Number of points, within one step of the best ramp's threshold and of its end, for the finer second search."""
BLOCK = 500  # resamples fitted at a time
TIE = 1e-9
"""If the explained sums of squares of two ramps have a smaller relative difference, they fit equally well."""


class Undefined(ValueError):
    """There can be no interval; the text says why."""


class TooFewClusters(Undefined):
    """Fewer than MIN_CLUSTERS clusters: no answers, whatever they are, can give an interval."""


@dataclass(frozen=True)
class Effects:
    """Reductions of bias at M places.

    Attributes:
        values: (M,).
        resamples: (B, M), spread widened.
        trainings: number of trainings at each place, (M,).
        null: (B, M), what noise alone would produce if nothing were reduced (see `reductions`).
    """

    values: np.ndarray
    resamples: np.ndarray
    trainings: np.ndarray
    null: np.ndarray

    def intervals(self) -> np.ndarray:
        """95% percentile intervals, shape (M, 2), extended to include the value.

        Near a bias of 0 the resampled absolute biases are all larger than the bias itself. The resampled reductions are
        then all smaller than the value, and a plain percentile interval would exclude it.
        """
        low, high = np.quantile(self.resamples, [ALPHA / 2, 1 - ALPHA / 2], axis=0)
        return np.column_stack([np.minimum(low, self.values), np.maximum(high, self.values)])


@dataclass(frozen=True)
class Threshold:
    """Where the effect begins, on the axis of the places.

    Attributes:
        estimate, low: -inf means at or below the first place.
        high: inf means above the last place, or nowhere.
        between: the outermost thresholds of the ramps that fit best (within NEAR).
        p_value: of the hypothesis that there is no effect at any place.
        misfit_p: of the hypothesis that the effects follow a ramp.
        located: whether the interval excludes any place.
    """

    estimate: float
    low: float
    high: float
    between: tuple[float, float]
    p_value: float
    misfit_p: float
    located: bool


@dataclass(frozen=True)
class Ramps:
    """A grid of ramps.

    Attributes:
        shapes_GM: value of each ramp at each place, at most 1.
        start_G, end_G: where it starts and stops rising.
        step_G: distance from its threshold to the next one.
    """

    shapes_GM: np.ndarray
    start_G: np.ndarray
    end_G: np.ndarray
    step_G: np.ndarray


def ramps(x_M: np.ndarray) -> Ramps:
    """All ramps over places x_M, which must increase. Thresholds reach from one range below the first place to the
    last.

    One ramp is constant at all places: an effect that begins below the first place looks like one that was always
    there.
    """
    between = FINE if len(x_M) < MANY else COARSE
    gaps = np.diff(x_M)
    below = np.linspace(x_M[0] - (x_M[-1] - x_M[0]), x_M[0], 2 * between, endpoint=False)
    inside = np.concatenate([a + gap * np.arange(between) / between for a, gap in zip(x_M[:-1], gaps, strict=True)])
    starts = np.concatenate([below, inside])
    ends = np.append(starts, x_M[-1])
    return _rising(x_M, starts, ends, np.diff(ends))


def _rising(x_M: np.ndarray, starts: np.ndarray, ends: np.ndarray, steps: np.ndarray) -> Ramps:
    """All ramps from a start (each with its step) to an end above it that are positive at the last place."""
    start, end = np.meshgrid(starts, ends, indexing="ij")
    chosen = (end > start + TIE * (x_M[-1] - x_M[0])) & (start < x_M[-1])
    start_G, end_G = start[chosen], end[chosen]
    step_G = np.broadcast_to(steps[:, None], start.shape)[chosen]
    shapes = np.clip((x_M[None] - start_G[:, None]) / (end_G - start_G)[:, None], 0, 1)
    return Ramps(shapes, start_G, end_G, step_G)


def reductions(
    before: Sequence[Quantity], after: Sequence[Quantity], bootstrap: Bootstrap
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """|before| - |after| of P policies, with the same clusters drawn for all.

    The null is what a reduction of 0 would look like: |before*| - |before| minus sign(after) (after* - after). An
    absolute value near 0 grows with noise. In a noisy `before` this looks like a reduction, so the null includes it. In
    a noisy `after` it looks like the opposite. With |after*| - |after| in the null, nearly every reduction would seem
    larger than noise: 20 to 29% false alarms instead of 5% (docs/validation.md, Emergence).

    Returns:
        (values (P,), resamples (B, P), null (B, P)).

    Raises:
        Undefined: the quantities have different clusters, or a value is undefined or has no interval (too few clusters;
            undefined in more than 5% of the resamples).
    """
    first = before[0].table
    for q in (*before, *after):
        if q.table.clusters != first.clusters:
            raise Undefined(f"{q.name}: not asked on the same clusters (with another --admissions_vary, for one)")
        if q.undefined or not np.isfinite(q.value):
            raise Undefined(f"{q.name} is undefined: {q.undefined or 'no answer that it could be taken of'}")
    widening = spread(first)
    b_P, a_P = (np.array([q.value for q in part]) for part in (before, after))
    b_BP, a_BP = (np.column_stack([bootstrap.replicates(q) for q in part]) for part in (before, after))
    defined = np.array([np.isfinite(row).all() for row in np.hstack([b_BP, a_BP])])
    if (lost := int((~defined).sum())) > MAX_UNDEFINED * len(defined):
        raise Undefined(f"{before[0].name} is undefined in {lost} of {len(defined)} resamples")
    b_BP, a_BP, values = b_BP[defined], a_BP[defined], abs(b_P) - abs(a_P)
    null = abs(b_BP) - abs(b_P) - np.sign(a_P) * (a_BP - a_P)
    return values, values + widening * (abs(b_BP) - abs(a_BP) - values), widening * null


def spread(table: Table) -> float:
    """The factor by which the spread of the resamples is widened.

    It is sqrt(C / (C - S)) for C clusters in S strata, times the ratio of Student's t quantile to the normal one
    (Hesterberg 2015, as in eval.stats.bootstrap).

    Raises:
        TooFewClusters: fewer than MIN_CLUSTERS.
    """
    clusters = len(table.clusters)
    stratified = len(table.sizes) == 1 or min(table.sizes) > 1  # as Bootstrap draws them
    degrees = clusters - (len(table.sizes) if stratified else 1)
    if degrees < MIN_CLUSTERS - 1:
        raise TooFewClusters(
            f"{clusters} clusters are too few, at least {MIN_CLUSTERS - 1 + clusters - degrees} are needed"
        )
    student = stats.t.ppf(1 - ALPHA / 2, degrees) / stats.norm.ppf(1 - ALPHA / 2)
    return float(np.sqrt(clusters / degrees) * student)


def over_trainings(
    values_P: np.ndarray, resamples_BP: np.ndarray, null_BP: np.ndarray, place_P: np.ndarray, seed: int,
    same_trainings: bool = False,
) -> Effects:  # fmt: skip
    """Averages the policies of each place.

    If a place has n > 1 trainings, n of them are drawn with replacement. The distance of their mean from the mean of
    all is multiplied by sqrt(n / (n - 1)), by which the spread of such draws is too small, and by the factor of
    Student's t with n - 1 degrees of freedom. If a place has one training, the spread between trainings is unknown and
    not included.

    Args:
        values_P, resamples_BP, null_BP: as `reductions` returns them.
        place_P: index of each policy's place, from 0.
        seed: of the draws of trainings.
        same_trainings: every place has the same trainings in the same order (checkpoints of a few trainings). They are
            then drawn together.
    """
    rng = np.random.default_rng([seed, 1])
    values, drawn, null, counts = [], [], [], []
    draws = None
    for place in range(int(place_P.max()) + 1):
        at_place = place_P == place
        n = int(at_place.sum())
        value = values_P[at_place].mean()
        if draws is None or not same_trainings:
            draws = rng.integers(n, size=(len(resamples_BP), n))
        values.append(value)
        drawn.append(_mean_of_drawn(resamples_BP[:, at_place], draws))
        null.append(_mean_of_drawn(values_P[at_place] + null_BP[:, at_place], draws) - value)
        counts.append(n)
    return Effects(np.array(values), np.column_stack(drawn), np.array(counts), np.column_stack(null))


def _mean_of_drawn(samples_BN: np.ndarray, drawn_BN: np.ndarray) -> np.ndarray:
    """The mean of the drawn trainings in each resample, its spread widened. Shape (B,).

    Args:
        samples_BN: resampled values of each training.
        drawn_BN: indices of the trainings drawn in each resample, from 0.
    """
    mean, n = samples_BN.mean(axis=1), samples_BN.shape[1]
    if n == 1:
        return mean
    student = stats.t.ppf(1 - ALPHA / 2, n - 1) / stats.norm.ppf(1 - ALPHA / 2)
    return mean + np.sqrt(n / (n - 1)) * student * (
        np.take_along_axis(samples_BN, drawn_BN, axis=1).mean(axis=1) - mean
    )


def change_point(x_M: np.ndarray, effects: Effects) -> Threshold:
    """Estimates the threshold of the effects at increasing places x_M.

    Raises:
        ValueError: fewer than MIN_PLACES places.
    """
    if len(x_M) < MIN_PLACES:
        raise ValueError(f"{len(x_M)} places, at least {MIN_PLACES} are needed")
    grid, y_M = ramps(x_M), effects.values
    variances = effects.null.var(axis=0)
    floor = max(LEAST_SHARE * variances.mean(), np.finfo(float).tiny ** 0.5)
    weights_M = 1 / np.maximum(variances, floor)
    best, *_, fitted = _fit(y_M[None], grid, weights_M)
    most, between = _best(x_M, y_M, grid, weights_M)
    none, *_ = _fit(effects.null, grid, weights_M)
    residual = (weights_M * y_M**2).sum() - most
    simulated = fitted[0] + effects.null
    explained, *_ = _fit(simulated, grid, weights_M)
    unexplained = (weights_M * simulated**2).sum(axis=1) - explained
    _, lows, highs, _ = _fit(effects.resamples, grid, weights_M)
    lowest = _beyond(float(np.quantile(lows, ALPHA / 2, method="lower")), x_M[0])
    highest = max(float(np.quantile(highs, 1 - ALPHA / 2, method="higher")), float(x_M[0]))
    return Threshold(
        _beyond(sum(between) / 2, x_M[0]),
        lowest,
        highest,
        between,
        _share(none, best[0]),
        _share(unexplained, residual) if variances.max() > 0 else 1.0,
        bool(np.isfinite(lowest) or highest < x_M[-1] * (1 - TIE)),
    )


def _fit(y_BM: np.ndarray, grid: Ramps, weights_M: np.ndarray) -> tuple[np.ndarray, ...]:
    """Fits the best ramp to each row.

    Returns:
        The weighted sum of squares that it explains (B,); the lowest and the highest threshold of the ramps that fit
        equally well (B,) each, inf where none explains anything; the fitted values (B, M).
    """
    norm_G = np.sqrt(grid.shapes_GM**2 @ weights_M)
    projector_MG = (grid.shapes_GM * weights_M / norm_G[:, None]).T
    last = len(norm_G) - 1
    blocks = []
    for i in range(0, len(y_BM), BLOCK):
        along_BG = y_BM[i : i + BLOCK] @ projector_MG  # its square is what a ramp explains
        best = along_BG.argmax(axis=1)
        most = np.maximum(along_BG[np.arange(len(best)), best], 0)
        tied = along_BG >= most[:, None] * (1 - TIE)
        first, final = tied.argmax(axis=1), last - tied[:, ::-1].argmax(axis=1)  # thresholds are in ascending order
        low = np.where(most > 0, grid.start_G[first], np.inf)
        high = np.where(most > 0, grid.start_G[final] + grid.step_G[final], np.inf)
        blocks.append((most**2, low, high, (most / norm_G[best])[:, None] * grid.shapes_GM[best]))
    return tuple(np.concatenate(parts) for parts in zip(*blocks, strict=True))


def _best(x_M: np.ndarray, y_M: np.ndarray, grid: Ramps, weights_M: np.ndarray) -> tuple[float, tuple[float, float]]:
    """What the best ramp explains, and the outermost thresholds of the ramps that fit nearly as well.

    A finer grid around the best ramp is searched. If no other ramp fits nearly as well, it gives the threshold.
    """
    gain_G = np.maximum(grid.shapes_GM @ (weights_M * y_M), 0) ** 2 / (grid.shapes_GM**2 @ weights_M)
    k = int(gain_G.argmax())
    if gain_G[k] == 0:
        return 0.0, (np.inf, np.inf)
    around = grid.step_G[k] * np.linspace(-1, 1, CLOSER)
    close = _rising(x_M, grid.start_G[k] + around, grid.end_G[k] + around, np.zeros(CLOSER))
    most, low, high, _ = _fit(y_M[None], close, weights_M)
    near_G = gain_G >= min(most[0] - NEAR, gain_G[k] * (1 - TIE))
    starts = grid.start_G[near_G]
    if starts.max() > starts.min():
        low, high = [starts.min()], [(starts + grid.step_G[near_G]).max()]
    return float(most[0]), (float(low[0]), float(high[0]))


def _beyond(threshold: float, first: float) -> float:
    """-inf for a threshold at or below the first place: the data cannot say how far below it lies."""
    return -np.inf if threshold <= first else float(threshold)


def _share(simulated: np.ndarray, observed: float) -> float:
    """The share of simulated values that reach the observed one, which itself counts as one of them."""
    reached = simulated >= observed - TIE * abs(observed)
    return float((1 + reached.sum()) / (1 + len(simulated)))
