"""`python -m eval oracle --emergence`: is a planted threshold found, does its interval cover it, does noise make one?

The oracles (eval.validation.oracle) form a family of sizes. An instruction removes nothing up to a planted size, and
more above it. Each trial draws a new population, the same templates for all sizes. All sizes share how stereotypes vary
between templates; each size draws its answers anew. The thresholds are found by the code that `eval emergence` runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from eval.cli.columns import columns
from eval.data.readers import data_folder, data_name
from eval.errors import InputError
from eval.experiments.conditions import CONDITIONS, Condition
from eval.experiments.registry import EXPERIMENTS
from eval.metrics.measure import CONTROL
from eval.metrics.sequential import headline
from eval.stats.bootstrap import Bootstrap, Quantity
from eval.stats.change_point import ALPHA, TooFewClusters, Undefined, change_point, over_trainings, reductions
from eval.types import Item
from eval.validation.coverage import OracleConfig, answer, redraw
from eval.validation.oracle import Oracle, Preferences

SIZES = (135e6, 360e6, 1e9, 3e9, 10e9, 30e9)
RESAMPLES = 400
COLUMNS = (
    "experiment", "condition", "planted", "threshold", "found (p <= 0.05)", "median estimate", "at or below the first",
    "coverage", "interval, decades", "misfit (p < 0.05)", "trials", "undefined",
)  # fmt: skip


@dataclass(frozen=True)
class Plant:
    """How much of its full effect an instruction has at a size (log10 of parameters).

    Attributes:
        name: The row's label.
        threshold: Where the effect begins, log10 of parameters; -inf everywhere, inf never.
        power: Maps sizes, (M,), to the share of the full effect, (M,).
    """

    name: str
    threshold: float
    power: Callable[[np.ndarray], np.ndarray]


def _line(threshold: float, full: float) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that rises from 0 at the threshold to 1 at `full`, linearly in log10 of size."""
    return lambda x: np.clip((x - threshold) / (full - threshold), 0, 1)


MIDDLE, LAST = float(np.log10(1.7e9)), float(np.log10(SIZES[-1]))
PLANTS = (
    Plant("grows to the largest", MIDDLE, _line(MIDDLE, LAST)),
    Plant("grows, then level", MIDDLE, _line(MIDDLE, MIDDLE + 0.6)),
    Plant("jump", MIDDLE, lambda x: (x > MIDDLE) * 1.0),
    Plant("everywhere", -np.inf, lambda x: np.ones_like(x)),
    Plant("nowhere", np.inf, lambda x: np.zeros_like(x)),
)


@dataclass
class Tally:
    """The trials' results for one plant, experiment and condition.

    Attributes:
        p_values: One per trial.
        misfits: p of the misfit, one per trial.
        estimates: Estimated threshold of each trial that found an effect.
        covered: Whether its interval covers the planted threshold.
        widths: Width of the part of its interval within the sizes.
        undefined: The reason of each trial in which nothing could be tested.
    """

    p_values: list[float] = field(default_factory=list)
    misfits: list[float] = field(default_factory=list)
    estimates: list[float] = field(default_factory=list)
    covered: list[bool] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)
    undefined: list[str] = field(default_factory=list)

    def add(self, x_M: np.ndarray, threshold: Any, planted: float) -> None:
        """Adds one trial.

        Args:
            x_M: The sizes, log10 of parameters.
            threshold: An eval.stats.change_point.Threshold.
            planted: The planted threshold, log10 of parameters.
        """
        self.p_values.append(threshold.p_value)
        self.misfits.append(threshold.misfit_p)
        if threshold.p_value > ALPHA:
            return
        self.estimates.append(threshold.estimate)
        self.covered.append(threshold.low <= planted <= threshold.high)
        self.widths.append(min(threshold.high, x_M[-1]) - max(threshold.low, x_M[0]))

    def row(self, experiment: str, condition: str, plant: Plant) -> dict[str, Any]:
        """Returns the table's row. A value is None if no trial found an effect; coverage also if none was planted."""
        n, never = len(self.estimates), plant.threshold == np.inf
        median = float(np.median(self.estimates)) if n else np.nan
        return {
            "experiment": experiment,
            "condition": condition,
            "planted": plant.name,
            "threshold": float(10**plant.threshold) if np.isfinite(plant.threshold) else None,
            "found": n / len(self.p_values) if self.p_values else None,
            "median_estimate": float(10**median) if np.isfinite(median) else None,
            "at_or_below_first": float(np.mean(np.isneginf(self.estimates))) if n else None,
            "coverage": float(np.mean(self.covered)) if n and not never else None,
            "width_decades": float(np.mean(self.widths)) if n else None,
            "misfit": float(np.mean(np.array(self.misfits) < ALPHA)) if self.misfits else None,
            "trials": len(self.p_values),
            "undefined": len(self.undefined),
            "reason": self.undefined[0] if self.undefined else "",
        }


def emergence_coverage(config: OracleConfig) -> dict[str, Any]:
    """Runs the trials.

    Returns:
        {"preferences", "sizes", "data", "seed", "trials", "resamples", "rows": [...]}, a row per experiment, condition
            with an instruction, and plant.

    Raises:
        InputError: No condition has an instruction, or an experiment has too few clusters.
    """
    if not any(CONDITIONS[c].instruction for c in config.conditions):
        raise InputError(
            f"conditions {','.join(config.conditions)}: none has the instruction whose threshold is planted; give Q+IF "
            "or Q+IF+CoT"
        )
    folder = data_folder(config.data_dir)
    rows: list[dict[str, Any]] = []
    with tqdm(total=config.trials * len(config.experiments), desc="trials", leave=False) as bar:
        for name in config.experiments:
            items = EXPERIMENTS[name].load(folder, config)
            available = [CONDITIONS[c] for c in config.conditions if c in EXPERIMENTS[name].CONDITIONS]
            conditions = [c for c in available if c.instruction]
            tallies = {(plant.name, c.name): Tally() for plant in PLANTS for c in conditions}
            for trial in range(config.trials):
                _trial(config, name, items, conditions, tallies, trial)
                bar.update(1)
            rows += [tallies[plant.name, c.name].row(name, c.name, plant) for c in conditions for plant in PLANTS]
    return {
        "preferences": vars(config.preferences()), "sizes": list(SIZES), "data": data_name(folder),
        "seed": config.seed, "trials": config.trials, "resamples": RESAMPLES, "rows": rows,
    }  # fmt: skip


def _trial(
    config: OracleConfig, experiment: str, items: list[Item], conditions: list[Condition],
    tallies: dict[tuple[str, str], Tally], trial: int,
) -> None:  # fmt: skip
    """Runs one population through all sizes of all plants, which share the answers without an instruction."""
    rng = np.random.default_rng([config.seed, trial])
    drawn = list(redraw(items, rng))
    common, *seeds = (int(s) for s in rng.integers(2**31, size=1 + len(SIZES)))
    family = Family(config.preferences(), common)
    x_M, orders = np.log10(SIZES), EXPERIMENTS[experiment].orders(config)
    powers = {plant.name: plant.power(x_M) for plant in PLANTS}
    quantities: dict[tuple[float, int, str], Quantity] = {}

    def quantity_at(power: float, k: int, condition: Condition) -> Quantity:
        power = power if condition.instruction else 0.0
        if (power, k, condition.name) not in quantities:
            preferences = replace(config.preferences(), removed=config.removed * power)
            oracle = FamilyOracle(preferences, seeds[k], family)
            records = list(answer(oracle, experiment, condition, drawn, orders))
            quantity = headline(experiment, EXPERIMENTS[experiment].measure(records))
            assert quantity is not None  # the oracle answers every question
            quantities[power, k, condition.name] = quantity
        return quantities[power, k, condition.name]

    bootstrap = Bootstrap(trial, RESAMPLES)
    for plant in PLANTS:
        for condition in conditions:
            before, after = (
                [quantity_at(float(p), k, c) for k, p in enumerate(powers[plant.name])]
                for c in (CONDITIONS[CONTROL], condition)
            )
            tally = tallies[plant.name, condition.name]
            try:
                reduced = reductions(before, after, bootstrap)
            except TooFewClusters as error:
                raise InputError(f"{experiment}: {error}; ask more (--limit, --categories, --data-dir)") from error
            except Undefined as error:
                tally.undefined.append(str(error))
                continue
            effects = over_trainings(*reduced, np.arange(len(SIZES)), trial)
            tally.add(x_M, change_point(x_M, effects), plant.threshold)


class Family:
    """What the oracles of a family share, and what they have drawn: oracles of other power draw the same."""

    def __init__(self, preferences: Preferences, seed: int) -> None:
        self.common = Oracle(preferences, seed)
        self.template: dict[str, int] = {}
        self.drawn: dict[tuple[int, str, str], float] = {}


class FamilyOracle(Oracle):
    """An oracle whose preferences for templates, occupations and profiles depend partly on its family.

    How far each is from the mean is shared, as among models that learned from similar texts.
    """

    def __init__(self, preferences: Preferences, seed: int, family: Family) -> None:
        super().__init__(preferences, seed)
        self._template = family.template
        self.family = family

    def _scatter(self, condition: Condition, cluster: str) -> float:
        """Half of the variance is the family's, half this oracle's, each drawn as in Oracle."""
        drawn = self.family.drawn
        keys = [(seed, condition.name, cluster) for seed in (self.family.common.seed, self.seed)]
        if keys[0] not in drawn:
            drawn[keys[0]] = self.family.common._scatter(condition, cluster)
        if keys[1] not in drawn:
            drawn[keys[1]] = super()._scatter(condition, cluster)
        return (drawn[keys[0]] + drawn[keys[1]]) / np.sqrt(2)


def table(result: dict[str, Any]) -> str:
    """Formats the rows as text."""
    rows: list[tuple[str, ...]] = [COLUMNS]
    for r in result["rows"]:
        planted, median = ("" if r[k] is None else f"{r[k] / 1e9:.2f}B" for k in ("threshold", "median_estimate"))
        shares = ["" if r[k] is None else f"{100 * r[k]:.1f}%" for k in ("found", "at_or_below_first", "coverage")]
        width = "" if r["width_decades"] is None else f"{r['width_decades']:.2f}"
        rows.append(
            (r["experiment"], r["condition"], r["planted"], planted, shares[0], median, *shares[1:], width,
             "" if r["misfit"] is None else f"{100 * r['misfit']:.1f}%", str(r["trials"]), str(r["undefined"]))
        )  # fmt: skip
    reasons = dict.fromkeys(
        f"{r['experiment']}, {r['condition']}: {r['reason']}" for r in result["rows"] if r["reason"]
    )
    return "\n".join([columns(rows), *(f"Undefined: {reason}" for reason in reasons)])
