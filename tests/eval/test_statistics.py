"""Intervals hold what they should, agree with scipy where scipy has them, and compare conditions as pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from eval.stats.bootstrap import Bootstrap, Quantity, correlation, holm, mean_of, moments, pearson, slope, tabulate


def mean_quantity(values: np.ndarray, clusters: list[str], strata: list[str] | None = None, **more: Any) -> Quantity:
    return Quantity("m", tabulate(values[:, None], clusters, strata=strata), mean_of(1), len(values), "", **more)


def ratio(sums: np.ndarray) -> np.ndarray:
    return sums[..., 1] / sums[..., 2]


def test_few_clusters_have_no_interval() -> None:
    estimate = Bootstrap(0).estimate(mean_quantity(np.ones(7), list("abcdefg")))
    assert (estimate.value, estimate.low, estimate.high) == (1.0, None, None)
    assert "7 clusters, at least 8 are needed" in estimate.note
    in_strata = mean_quantity(np.ones(12), list("abcdefghijkl"), list("aabbccddeeff"))
    assert "12 clusters, at least 13 are needed" in Bootstrap(0).estimate(in_strata).note


def test_a_lone_cluster_in_its_stratum_is_drawn_with_the_others_and_said() -> None:
    values, strata = np.array([0.0] * 9 + [5.0]), list("aaaaaaaaab")
    quantity = mean_quantity(values, list("abcdefghij"), strata)
    estimate = Bootstrap(0).estimate(quantity)
    assert estimate.low is not None and estimate.high is not None
    assert estimate.low < 0.5 < estimate.high  # within the strata nothing varies; between them it does
    assert "drawn across categories" in estimate.note
    mean = mean_quantity(values, list("abcdefghij"), strata, of_each_stratum=True)
    assert "a category has fewer than 2 clusters" in Bootstrap(0).estimate(mean).note


def test_intervals_cover_and_are_seeded() -> None:
    """95% intervals of a cluster mean hold the truth about 95 times in 100, and clusters are drawn whole."""
    rng = np.random.default_rng(0)
    hits, quantity, clusters = 0, None, [str(k // 5) for k in range(100)]
    for seed in range(400):
        values = np.repeat(rng.normal(0, 1, 20), 5) + rng.normal(0, 0.2, 100)
        quantity = mean_quantity(values, clusters)
        estimate = Bootstrap(seed, 1000).estimate(quantity)
        assert estimate.low is not None and estimate.high is not None
        hits += estimate.low <= 0 <= estimate.high
    assert 0.92 <= hits / 400 <= 0.98  # 0.95 +- 2.7 standard errors
    assert quantity is not None
    assert Bootstrap(7).estimate(quantity) == Bootstrap(7).estimate(quantity)
    assert Bootstrap(7).estimate(quantity) != Bootstrap(8).estimate(quantity)


def test_replicates_agree_with_scipys_bootstrap() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.gamma(2, 1, 40), rng.gamma(3, 1, 40)
    table = tabulate(np.column_stack([x, y]), [str(k) for k in range(40)])
    replicates = Bootstrap(0, 20_000).replicates(Quantity("r", table, ratio, 40, ""))
    theirs: Any = stats.bootstrap(
        (x, y), lambda x, y, axis: x.sum(axis) / y.sum(axis), paired=True, vectorized=True, n_resamples=20_000,
        method="percentile", rng=2,
    )  # fmt: skip
    assert np.std(replicates, ddof=1) == pytest.approx(theirs.standard_error, rel=0.03)
    interval = theirs.confidence_interval
    assert np.quantile(replicates, [0.025, 0.975]) == pytest.approx([interval.low, interval.high], rel=0.01)


def test_strata_are_kept_and_their_mean_weighs_them_alike() -> None:
    values = np.array([1.0] * 10 + [5.0] * 20)
    strata = ["a"] * 10 + ["b"] * 20
    clusters = [f"{s}{k}" for k, s in enumerate(strata)]
    pooled = Bootstrap(0).estimate(mean_quantity(values, clusters, strata))
    assert (pooled.value, pooled.low, pooled.high) == pytest.approx((110 / 30,) * 3)  # nothing varies within a stratum
    mean = Bootstrap(0).estimate(mean_quantity(values, clusters, strata, of_each_stratum=True))
    assert (mean.value, mean.low, mean.high) == pytest.approx((3.0,) * 3)


def test_difference_is_paired_and_its_p_value_fits_its_interval() -> None:
    rng = np.random.default_rng(2)
    clusters = [str(k) for k in range(30)]
    seen = set()
    base = rng.normal(0, 5, 30)  # far more spread than the effect: only pairing can find it
    before = mean_quantity(base, clusters)
    for seed in range(60):
        after = mean_quantity(base + rng.normal(0.2, 0.5, 30), clusters)
        effect = Bootstrap(seed, 2000).difference(before, after)
        assert effect.low is not None and effect.high is not None and effect.p_value is not None
        assert effect.high - effect.low < 1
        significant = effect.p_value < 0.05
        assert significant == (effect.low > 0 or effect.high < 0)
        seen.add(significant)
    assert seen == {True, False}
    same = Bootstrap(0).difference(before, mean_quantity(base, clusters))
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match="not asked on the same clusters"):
        Bootstrap(0).difference(before, mean_quantity(base[:29], clusters[:29]))


def test_p_values_of_no_effect_are_uniform_enough() -> None:
    rng = np.random.default_rng(3)
    clusters = [str(k) for k in range(25)]
    found = []
    for seed in range(400):
        before, after = (mean_quantity(rng.normal(0, 1, 25), clusters) for _ in range(2))
        found.append(Bootstrap(seed, 1000).difference(before, after).p_value)
    assert 0.02 <= np.mean(np.array(found) < 0.05) <= 0.08


def test_undefined_is_said() -> None:
    clusters = [str(k) for k in range(10)]
    zero = Quantity("r", tabulate(np.zeros((10, 2)), clusters), ratio, 10, "")
    assert Bootstrap(0).estimate(zero).value is None
    assert "no answer that the score could be taken of" in Bootstrap(0).estimate(zero).note
    one = np.zeros((10, 2))
    one[0] = 1
    rare = Bootstrap(0).estimate(Quantity("r", tabulate(one, clusters), ratio, 10, ""))
    assert rare.value == 1 and rare.low is None  # a third of the resamples misses the only cluster with an answer
    assert "resamples undefined" in rare.note
    assert Bootstrap(0).difference(zero, zero).p_value is None
    assert "hardly varies" in pearson(np.full(9, 0.3), np.arange(9.0)).note


def test_correlation_and_slope_are_scipys() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.normal(0.5, 0.1, 50), rng.normal(0.4, 0.2, 50)
    sums = np.concatenate([np.ones((50, 1)), moments(x, y)], axis=1).sum(axis=0)
    line: Any = stats.linregress(y, x)
    assert correlation(sums) == pytest.approx(line.rvalue)
    assert slope(sums) == pytest.approx(line.slope)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
