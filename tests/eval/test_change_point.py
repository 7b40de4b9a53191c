"""Thresholds: planted ones are found and held by their intervals, noise makes none, and templates are drawn jointly."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.emergence import gap, noisy, trainings
from eval.stats.bootstrap import Bootstrap, Quantity, mean_of, tabulate
from eval.stats.change_point import Effects, Undefined, change_point, over_trainings, ramps, reductions, spread

SIZES = np.linspace(8, 10.5, 6)


def drawn(y: np.ndarray, sd: float, seed: int = 0, n: int = 500) -> Effects:
    """Effects that were measured as y, with the noise that resampling would show."""
    noise = np.random.default_rng(seed).normal(0, sd, (n, len(y))) if sd else np.zeros((n, len(y)))
    return Effects(y, y + noise, np.ones(len(y), dtype=int), noise)


def quantity(values: np.ndarray, clusters: int = 20) -> Quantity:
    """The mean of values, of which each cluster has as many."""
    names = [f"t{k % clusters:03d}" for k in range(len(values))]
    return Quantity("gap", tabulate(values[:, None], names), mean_of(1), len(values), "")


@pytest.mark.parametrize("planted", [8.6, 9.2, 9.4])
def test_a_line_that_begins_somewhere_is_found(planted: float) -> None:
    found = change_point(SIZES, drawn(0.3 * np.maximum(0, SIZES - planted), 0.002))
    assert found.estimate == pytest.approx(planted, abs=0.01)
    assert found.low <= planted <= found.high and found.high - found.low < 0.3
    assert found.p_value < 0.01 and found.misfit_p > 0.2 and found.located


def test_a_jump_is_known_to_lie_between_two_places_and_no_better() -> None:
    found = change_point(SIZES, drawn(0.2 * (SIZES > 9.1), 0.001))
    assert found.between == pytest.approx((9.0, 9.5))
    assert found.estimate == pytest.approx(9.25)
    assert found.low <= 9.0 and found.high >= 9.5
    two = change_point(SIZES, drawn(0.3 * np.maximum(0, SIZES - 9.9), 0.002))
    assert two.between == pytest.approx((9.9, 10.0), abs=0.07), "of a rise that two places saw the shape is not known"


def test_at_the_edges_nothing_is_made_up() -> None:
    always = change_point(SIZES, drawn(np.full(6, 0.2), 0.01))
    assert (always.estimate, always.low, always.high) == (-np.inf, -np.inf, 8.0)
    assert always.located
    last = change_point(SIZES, drawn(0.2 * (SIZES > 10.2), 0.01))
    assert last.between == pytest.approx((10.0, 10.5)) and last.low > 9.4
    weak = change_point(SIZES, drawn(np.array([0, 0, 0, 0, 0, 0.1]), 0.09))
    assert weak.high == np.inf, "in some resamples there is no effect at all"
    below = change_point(SIZES, drawn(0.1 * (SIZES - 7), 0.2))
    assert not below.located and below.low == -np.inf


def test_an_instruction_that_raises_bias_has_no_threshold() -> None:
    found = change_point(SIZES, drawn(-0.2 * (SIZES > 9), 0.01))
    assert found.p_value == 1 and found.estimate == np.inf


def test_an_effect_that_comes_and_goes_is_no_ramp() -> None:
    found = change_point(SIZES, drawn(np.array([0, 0.3, 0, 0, 0.3, 0]), 0.03))
    assert found.p_value < 0.05 and found.misfit_p < 0.05


def test_coverage_and_false_alarms_in_simulation() -> None:
    """50 trials each: enough to see a method that is wrong; docs/validation.md has more."""
    rng = np.random.default_rng(0)
    for planted, effect in ((9.2, 0.15 * np.maximum(0, SIZES - 9.2)), (9.2, 0.12 * (SIZES > 9.2)), (None, 0 * SIZES)):
        found = []
        for trial in range(50):
            y = effect + rng.normal(0, 0.02, 6)
            found.append(change_point(SIZES, drawn(y, 0.02, trial, 300)))
        seen = [f for f in found if f.p_value <= 0.05]
        if planted is None:
            assert 0 <= len(seen) <= 7  # 5% is 2.5
        else:
            assert len(seen) >= 45
            assert np.mean([f.low <= planted <= f.high for f in seen]) >= 0.88
            assert np.mean([f.high - f.low < 2.5 for f in seen]) > 0.5, "an interval that says nothing always holds it"
    assert 0.2 < np.mean([f.p_value for f in found]) < 0.8


def test_what_is_reduced_is_what_is_left_of_a_bias() -> None:
    turned, halved = np.full(40, -0.1), np.full(40, -0.05)
    before, after = [quantity(turned)] * 3, [quantity(-turned), quantity(halved), quantity(turned)]
    values, *_ = reductions(before, after, Bootstrap(0, 300))
    assert values == pytest.approx([0, 0.05, 0])


def test_the_interval_of_a_reduction_holds_it() -> None:
    """What is left of a bias is nearly nothing: |.| of a resample is larger than its own, and every reduction less."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, 400)
    before, after = quantity(np.full(400, 0.02)), quantity(noise - noise.mean() + 1e-5)
    effects = over_trainings(*reductions([before], [after], Bootstrap(0, 2000)), np.array([0]), 0)
    (low, high), value = effects.intervals()[0], effects.values[0]
    assert np.quantile(effects.resamples, 0.975) < value == high and low < high


def test_templates_are_drawn_jointly_for_all_places_and_conditions() -> None:
    """Noise that all sizes, and both conditions, have in common cancels in their difference in every resample."""
    rng = np.random.default_rng(1)
    common = 0.5 + rng.normal(0, 0.2, 40)
    before = [quantity(common), quantity(common + 0.1)]
    after = [quantity(common - 0.1), quantity(common - 0.1)]
    _, resamples, _ = reductions(before, after, Bootstrap(0, 300))
    assert resamples == pytest.approx(np.tile([0.1, 0.2], (300, 1)))  # conditions
    own = rng.normal(0, 0.02, 40)
    _, resamples, _ = reductions([quantity(common)] * 2, [quantity(0 * common), quantity(own)], Bootstrap(0, 300))
    assert resamples[:, 0].std() > 0.02
    assert (resamples[:, 0] - resamples[:, 1]).std() < 0.2 * resamples[:, 0].std()  # sizes
    with pytest.raises(ValueError, match="not asked on the same clusters"):
        reductions([quantity(common)], [quantity(common, 10)], Bootstrap(0, 300))


def test_trainings_of_a_place_are_drawn_with_their_full_spread() -> None:
    values, resamples = np.array([0.1, 0.3, 0.2]), np.tile([0.1, 0.3, 0.2], (20_000, 1))
    null, places = 0 * resamples, np.array([0, 0, 1])
    found = over_trainings(values, resamples, null, places, seed=0)
    assert found.values == pytest.approx([0.2, 0.2]) and list(found.trainings) == [2, 1]
    student = 12.7062 / 1.9600  # of 1 degree of freedom, against the normal quantile
    assert found.resamples.std(axis=0) == pytest.approx([0.1 * student, 0], rel=0.02)  # sqrt(s^2 / n), widened
    assert found.null == pytest.approx(found.resamples - found.values)
    again = over_trainings(values, resamples, null, places, seed=0)
    other = over_trainings(values, resamples, null, places, seed=1)
    assert (again.resamples == found.resamples).all() and (other.resamples != found.resamples).any()


def test_the_same_trainings_at_every_step_are_drawn_together() -> None:
    """Two trainings that keep their distance: what one draw makes of it is the same at every step."""
    values = np.array([0.1, 0.3, 0.1, 0.3])
    resamples, places = np.tile(values, (500, 1)), np.array([0, 0, 1, 1])
    together = over_trainings(values, resamples, 0 * resamples, places, 0, same_trainings=True).resamples
    assert (together[:, 0] == together[:, 1]).all() and len(np.unique(together[:, 0])) == 3
    apart = over_trainings(values, resamples, 0 * resamples, places, 0).resamples
    assert 0.4 < (apart[:, 0] != apart[:, 1]).mean() < 0.9


def test_few_trainings_make_no_effect() -> None:
    """Three trainings a place, that differ and on average reduce nothing; without Student's t 21% were false alarms."""
    for same, x_M in ((False, SIZES), (True, np.arange(6.0))):
        seen = [change_point(x_M, trainings(np.random.default_rng(k), len(x_M), 3, 0, 40, same)) for k in range(30)]
        assert np.mean([f.p_value <= 0.05 for f in seen]) <= 0.1


def test_the_interval_of_few_trainings_holds_their_mean() -> None:
    """With two trainings a 95% interval that was not widened for them held it in 69% of trials."""
    for n in (2, 3):
        found = [trainings(np.random.default_rng(k), 1, n, 0.1, 400, False).intervals()[0] for k in range(80)]
        assert np.mean([low <= 0.1 <= high for low, high in found]) >= 0.9


def test_noisy_instructed_answers_are_no_reduction() -> None:
    """The same bias of 0.1 under both conditions, under the instruction with a standard error as large."""
    alarms = []
    for k in range(60):
        reduced = reductions(*noisy(np.random.default_rng(k), 0.1, 0.01, 0.1), Bootstrap(k, 300))
        alarms.append(change_point(SIZES, over_trainings(*reduced, np.arange(6), k)).p_value <= 0.05)
    assert np.mean(alarms) <= 0.1, "it was 29%"


def test_noise_does_not_part_effects_from_a_ramp() -> None:
    """The same reduction at all sizes, measured with noise; misfit_p < 0.05 was found in 9% of trials."""
    misfits = []
    for k in range(120):
        rng = np.random.default_rng(k)
        before = [gap(0.3 + rng.normal(0, 0.02 * 40**0.5, 40)) for _ in SIZES]
        after = [gap(0.12 + rng.normal(0, 0.06 * 40**0.5, 40)) for _ in SIZES]
        reduced = reductions(before, after, Bootstrap(k, 300))
        misfits.append(change_point(SIZES, over_trainings(*reduced, np.arange(6), k)).misfit_p < 0.05)
    assert np.mean(misfits) <= 0.05


def test_the_spread_is_widened_and_too_few_clusters_give_none() -> None:
    values = np.random.default_rng(2).normal(0.5, 0.1, 40)
    table = quantity(values, 20).table
    assert spread(table) == pytest.approx(np.sqrt(20 / 19) * 2.0930 / 1.9600, rel=1e-4)
    categories = tabulate(values[:, None], [f"t{k % 20}" for k in range(40)], strata=[str(k % 2) for k in range(40)])
    assert spread(categories) == pytest.approx(np.sqrt(20 / 18) * 2.1009 / 1.9600, rel=1e-4)
    plain = abs(Bootstrap(0, 300).replicates(quantity(values)))
    _, resamples, _ = reductions([quantity(values)], [quantity(0 * values)], Bootstrap(0, 300))
    assert resamples[:, 0].std() == pytest.approx(plain.std() * spread(table))
    with pytest.raises(Undefined, match="7 clusters are too few, at least 8 are needed"):
        reductions([quantity(values, 7)], [quantity(values, 7)], Bootstrap(0, 300))
    hollow = Quantity("rho", table, mean_of(1), 40, "", undefined="it hardly varies")
    with pytest.raises(Undefined, match="rho is undefined: it hardly varies"):
        reductions([hollow], [hollow], Bootstrap(0, 300))


def test_the_grid_has_every_shape_and_few_places_are_refused() -> None:
    grid = ramps(np.array([0.0, 1.0, 3.0]))
    shapes = {tuple(s) for s in grid.shapes_GM.round(9)}
    assert {(0, 0, 1), (0, 1, 1), (1, 1, 1), (0, round(1 / 3, 9), 1)} <= shapes
    assert (grid.shapes_GM[:, -1] > 0).all() and grid.start_G.min() == -3
    with pytest.raises(ValueError, match="2 places, at least 3"):
        change_point(np.array([0.0, 1.0]), drawn(np.zeros(2), 0.1))


def test_nothing_drawn_at_all() -> None:
    """Without any noise: an effect is certain, its absence too."""
    assert change_point(SIZES, drawn(0.2 * np.maximum(0, SIZES - 9.0), 0.0)).estimate == pytest.approx(9.0, abs=0.01)
    none = change_point(SIZES, drawn(0 * SIZES, 0.0))
    assert (none.p_value, none.misfit_p, none.high) == (1, 1, np.inf)
