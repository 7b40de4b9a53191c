"""`python -m benchmarks.emergence`: how often the statistics of `eval emergence` are right, in simulations of effects.

It prints four tables (docs/validation.md, Emergence): false alarms if the instructed answers are noisier than the bias
is large; coverage of the interval of one place that has several trainings; false alarms over sizes, and over steps, if
trainings differ and on average nothing is reduced. A template has one value, drawn from a normal; there is no data, no
model and no oracle.
"""

from __future__ import annotations

import argparse

import numpy as np

from eval.stats.bootstrap import Bootstrap, Quantity, mean_of, tabulate
from eval.stats.change_point import ALPHA, Effects, change_point, over_trainings, reductions

SIZES, STEPS = np.linspace(8, 10.5, 6), np.arange(11) * 100.0
BIAS, DIFFER = -0.3, 0.05
"""The bias under Q; the standard deviation of its reduction between trainings."""
RESAMPLES = 400


def gap(values: np.ndarray) -> Quantity:
    """Returns the mean over templates of values, (templates,)."""
    names = [f"t{k:03d}" for k in range(len(values))]
    return Quantity("gap", tabulate(values[:, None], names), mean_of(1), len(values), "")


def noisy(rng: np.random.Generator, bias: float, se_q: float, se_if: float) -> tuple[list[Quantity], list[Quantity]]:
    """Returns the same bias at six sizes under both conditions, of 40 templates, with these standard errors."""
    scale = np.sqrt(40)
    before = [gap(bias + rng.normal(0, se_q * scale, 40)) for _ in SIZES]
    return before, [gap(bias + rng.normal(0, se_if * scale, 40)) for _ in SIZES]


def trainings(rng: np.random.Generator, places: int, n: int, mean: float, templates: int, same: bool) -> Effects:
    """Returns the effects of n trainings at each place, whose reductions differ.

    Args:
        rng: Source of randomness.
        places: Number of places, such as sizes or steps.
        n: Trainings at each place.
        mean: The mean reduction.
        templates: Number of templates.
        same: True if one set of trainings has every place, as along steps.
    """
    common = BIAS + rng.normal(0, 0.15, templates)
    before, after = [], []
    differ = rng.normal(0, DIFFER, (places, n))
    for place in range(places):
        for extra in differ[0 if same else place]:
            before.append(gap(common + rng.normal(0, 0.1, templates)))
            after.append(gap(common + mean + extra + rng.normal(0, 0.1, templates)))
    seed = int(rng.integers(2**31))
    reduced = reductions(before, after, Bootstrap(seed, RESAMPLES))
    return over_trainings(*reduced, np.repeat(np.arange(places), n), seed, same_trainings=same)


def alarm(x_M: np.ndarray, effects: Effects) -> bool:
    return change_point(x_M, effects).p_value <= ALPHA


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=400)
    n_trials = parser.parse_args().trials
    seeds = [np.random.SeedSequence(k) for k in range(n_trials)]

    def share(outcomes: list[bool]) -> str:
        return f"{np.mean(outcomes):6.1%} of {len(outcomes)}"

    print("No reduction; bias, its standard error under Q and under the instruction: false alarms")
    for case in ((0.1, 0.01, 0.05), (0.1, 0.01, 0.1), (0.1, 0.01, 0.2), (0.3, 0.05, 0.05), (0.0, 0.05, 0.01)):
        alarms = []
        for k, s in enumerate(seeds):
            reduced = reductions(*noisy(np.random.default_rng(s), *case), Bootstrap(k, RESAMPLES))
            alarms.append(alarm(SIZES, over_trainings(*reduced, np.arange(len(SIZES)), k)))
        print("  ", case, share(alarms), flush=True)
    print("n trainings at a place: its 95% interval holds the mean over trainings")
    for n in (2, 3, 5, 10):
        low_high = [trainings(np.random.default_rng(s), 1, n, 0.1, 200, False).intervals()[0] for s in seeds]
        print("  ", n, share([low <= 0.1 <= high for low, high in low_high]), flush=True)
    for axis, x_M, same in (("size", SIZES, False), ("step", STEPS, True)):
        print(f"n trainings at each {axis}, no reduction on average: false alarms")
        for n in (2, 3, 5):
            alarms = [alarm(x_M, trainings(np.random.default_rng(s), len(x_M), n, 0, 200, same)) for s in seeds]
            print("  ", n, share(alarms), flush=True)


if __name__ == "__main__":
    main()
