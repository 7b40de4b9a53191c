"""`python -m eval oracle --precision W`: does the interval at which evaluation stops cover the value over all
questions?

Each trial draws a new population and a new oracle as in eval.validation.coverage, and a new random order. All questions
are answered once. The stopping rule of eval.metrics.sequential then looks at the packs that `eval run` would score one
by one. The value to cover is the metric over all questions of the trial, not what was planted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from eval.cli.columns import columns
from eval.config import EvaluationConfig
from eval.data.readers import data_folder, data_name
from eval.experiments.conditions import CONDITIONS, Condition
from eval.experiments.registry import EXPERIMENTS
from eval.metrics.sequential import RULE, Population, group_of, headline, in_packs, in_random_order, width_of
from eval.runner.plan import SCORED_CHUNK
from eval.stats.bootstrap import Quantity
from eval.types import Item
from eval.validation.coverage import OracleConfig, answer, redraw
from eval.validation.oracle import Oracle

COLUMNS = (
    "experiment", "condition", "metric", "stopped early", "questions asked", "half width", "coverage, early stops",
    "coverage, all trials", "coverage, every look", "trials",
)  # fmt: skip
ROUNDING = 1e-9


@dataclass
class Tally:
    """The trials' results for one condition, a value per trial.

    Attributes:
        metric: The headline metric's name.
        shares: Share of the questions that were scored before the stop.
        widths: Half width of the interval at the stop.
        covered: Whether that interval covers the value over all questions.
        every_look_covers: Whether the intervals of all looks do.
    """

    metric: str
    shares: list[float] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)
    covered: list[bool] = field(default_factory=list)
    every_look_covers: list[bool] = field(default_factory=list)

    def row(self, experiment: str, condition: str) -> dict[str, Any]:
        """Returns the table's row. A value is None if no trial stopped early."""
        early = np.array(self.shares) < 1
        return {
            "experiment": experiment,
            "condition": condition,
            "metric": self.metric,
            "stopped_early": float(early.mean()),
            "questions_asked": float(np.mean(self.shares)),
            "half_width": float(np.mean(np.array(self.widths)[early])) if early.any() else None,
            "coverage_early": float(np.mean(np.array(self.covered)[early])) if early.any() else None,
            "coverage": float(np.mean(self.covered)),
            "coverage_every_look": float(np.mean(self.every_look_covers)),
            "trials": len(self.shares),
        }


@dataclass
class Look:
    """One condition at one look: half width (NaN if undefined), and distance from the value over all questions."""

    width: float
    distance: float

    @property
    def covers(self) -> bool:
        return not self.distance > self.width + ROUNDING  # an undefined interval claims nothing


def early_stops(config: OracleConfig) -> dict[str, Any]:
    """Runs the trials. `config.precision` must be set.

    Returns:
        {"preferences", "data", "seed", "trials", "precision", "stopping_rule", "rows": [...]}, a row per experiment and
            condition.
    """
    folder = data_folder(config.data_dir)
    rows: list[dict[str, Any]] = []
    with tqdm(total=config.trials * len(config.experiments), desc="trials", leave=False) as bar:
        for name in config.experiments:
            items = EXPERIMENTS[name].load(folder, config)
            available = [CONDITIONS[c] for c in config.conditions if c in EXPERIMENTS[name].CONDITIONS]
            jobs = [[c for c in available if c.reasoning == reasoning] for reasoning in (False, True)]
            tallies: dict[str, Tally] = {}
            for trial in range(config.trials):
                rng = np.random.default_rng([config.seed, trial])
                drawn = list(redraw(items, rng))
                oracle = Oracle(config.preferences(), int(rng.integers(2**31)))
                ordered = in_random_order(name, drawn, int(rng.integers(2**31)))
                for conditions in filter(None, jobs):
                    _run_job(config, name, conditions, oracle, ordered, tallies)
                bar.update(1)
            rows += [tally.row(name, condition) for condition, tally in tallies.items()]
    return {
        "preferences": vars(config.preferences()), "data": data_name(folder), "seed": config.seed,
        "trials": config.trials, "precision": config.precision, "stopping_rule": RULE, "rows": rows,
    }  # fmt: skip


def _run_job(
    config: OracleConfig, experiment: str, conditions: list[Condition], oracle: Oracle, items: list[Item],
    tallies: dict[str, Tally],
) -> None:  # fmt: skip
    """Runs one trial of one job: answers all questions, looks after each pack, and tallies the result."""
    assert config.precision is not None
    orders = EXPERIMENTS[experiment].orders(config)
    size = EvaluationConfig.sample_batch if conditions[0].reasoning else SCORED_CHUNK
    packs = list(in_packs(items, -(-size // (len(conditions) * orders))))
    by_condition: dict[str, tuple[str, list[Look]]] = {}
    group = {i.id: group_of(i) for i in items}
    for condition in conditions:
        answered = answer(oracle, experiment, condition, items, orders)
        quantities = EXPERIMENTS[experiment].measure([{**r, "cluster": group[r["item"]]} for r in answered])
        quantity = headline(experiment, quantities)
        assert quantity is not None  # the oracle answers every question
        by_condition[condition.name] = quantity.name, list(_looks(quantity, packs, items))
    ends = np.cumsum([len(p) for p in packs]) / len(items)
    n_before = len(ends) - len(next(iter(by_condition.values()))[1])  # packs before the first look
    narrow = [
        all(looks[k].width < config.precision for _, looks in by_condition.values())
        for k in range(len(ends) - n_before)
    ]
    stop = narrow.index(True) if True in narrow else len(narrow) - 1
    for name, (metric, looks) in by_condition.items():
        tally = tallies.setdefault(name, Tally(metric))
        tally.shares.append(float(ends[n_before + stop]))
        tally.widths.append(looks[stop].width)
        tally.covered.append(looks[stop].covers)
        tally.every_look_covers.append(all(look.covers for look in looks))


def _looks(quantity: Quantity, packs: Sequence[Sequence[Item]], items: Sequence[Item]) -> Iterator[Look]:
    """Yields the looks that the rule allows, after each pack, at a quantity whose clusters are groups."""
    population = Population(items)
    groups = list(population.category)  # in the order of scoring
    place = {name: k for k, name in enumerate(groups)}
    place_C = np.array([place[name] for name in quantity.table.clusters])
    category_G = np.array(list(population.category.values()))
    for n in np.cumsum([len({group_of(i) for i in pack}) for pack in packs]):
        if population.may_look(category_G[:n]):
            so_far = replace(quantity, table=quantity.table.select(place_C < n))
            width = width_of(so_far, groups[:n], category_G[:n], len(groups))
            yield Look(width, abs(so_far.value - quantity.value))


def table(result: dict[str, Any]) -> str:
    """Formats the rows as text."""
    rows: list[tuple[str, ...]] = [COLUMNS]
    for r in result["rows"]:
        width = "" if r["half_width"] is None else f"{r['half_width']:.4f}"
        shares = ["" if r[k] is None else f"{100 * r[k]:.1f}%" for k in ("stopped_early", "questions_asked")]
        coverages = [
            "" if r[k] is None else f"{100 * r[k]:.1f}%" for k in ("coverage_early", "coverage", "coverage_every_look")
        ]
        rows.append((r["experiment"], r["condition"], r["metric"], *shares, width, *coverages, str(r["trials"])))
    return columns(rows)
