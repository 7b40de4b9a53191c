"""`python -m eval oracle`: do the metrics find what was planted, and do 95% intervals cover it in 95% of trials?

With --precision: do the intervals at which evaluation stops early cover the value over all questions?
(eval.validation.early_stops) With --emergence: is a planted threshold along size found?
(eval.validation.emergence_coverage)

Each trial draws a new population and a new oracle (eval.validation.oracle), which answers every question. The
population consists of the data set's clusters (templates, occupations, profiles), drawn with replacement, BBQ's within
their category. The metrics and effects are computed by the code that measures models, and compared with the planted
values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from eval.cli.columns import columns
from eval.config import QuestionsConfig
from eval.data.readers import data_folder, data_name
from eval.errors import InputError
from eval.experiments.bbq_metrics import MEAN
from eval.experiments.conditions import CONDITIONS, Condition
from eval.experiments.registry import EXPERIMENTS
from eval.metrics.measure import CONTROL, pair_quantities
from eval.metrics.sequential import group_of
from eval.stats.bootstrap import Bootstrap, Quantity
from eval.types import Item, Record
from eval.validation.oracle import Oracle, Preferences, planted

COLUMNS = ("experiment", "condition", "metric", "planted", "mean estimate", "coverage", "p < 0.05", "intervals")
OF_THREE_ORDERS = ("position_bias", "same_letter", "same_option")


@dataclass
class OracleConfig(QuestionsConfig):
    """Options of `python -m eval oracle`: the planted preferences and the number of trials."""

    stereotype: float = field(default=0.4, metadata={"help": "b: degree of BBQ's stereotyped answers, -1 to 1"})
    abstain: float = field(default=0.3, metadata={"help": "u: probability of UNKNOWN on ambiguous questions"})
    reads: float = field(default=0.6, metadata={"help": "k: disambiguated questions answered from the context"})
    letter: float = field(default=0.0, metadata={"help": "m: nats added to the log-probability of the letter (c)"})
    slope: float = field(default=0.8, metadata={"help": "s: log-odds of pronouns per log-odds of the BLS share"})
    neutral: float = field(default=0.2, metadata={"help": "n: probability of the neutral pronoun"})
    shift: float = field(default=-0.5, metadata={"help": "d: log-odds of admission of a Black against a white student"})
    removed: float = field(default=0.6, metadata={"help": "r: fraction of b, s and d that an instruction removes"})
    noise: float = field(default=0.3, metadata={"help": "how far b differs between templates"})
    scatter: float = field(default=1.0, metadata={"help": "sd of the log-odds between occupations, and profiles"})
    certain: float = field(
        default=0.7, metadata={"help": "probability that BBQ's drawn answer is given; 0: none drawn"}
    )
    trials: int = field(default=400, metadata={"help": "seeded trials"})
    emergence: bool = field(default=False, metadata={"help": "plant thresholds along size, and look for them"})
    json: bool = field(default=False, metadata={"help": "one JSON object on stdout, everything else on stderr"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trials < 1:
            raise InputError(f"trials must be at least 1, not {self.trials}")
        if self.emergence and self.precision is not None:
            raise InputError("emergence and precision are two different checks; give one of them")
        self.preferences()

    def preferences(self) -> Preferences:
        """Returns the planted preferences."""
        return Preferences(**{f.name: getattr(self, f.name) for f in fields(Preferences)})


@dataclass
class Tally:
    """The trials' results for one metric or effect.

    Attributes:
        planted: The planted value.
        estimates: One per trial in which the metric is defined.
        covered: Whether each interval covers the planted value.
        significant: Whether each p-value is below 0.05.
    """

    planted: float
    estimates: list[float] = field(default_factory=list)
    covered: list[bool] = field(default_factory=list)
    significant: list[bool] = field(default_factory=list)

    def row(self, experiment: str, condition: str, name: str) -> dict[str, Any]:
        """Returns the table's row. A value is None if no trial gave an interval or a p-value."""
        return {
            "experiment": experiment,
            "condition": condition,
            "metric": name,
            "planted": self.planted,
            "mean_estimate": float(np.mean(self.estimates)) if self.estimates else None,
            "coverage": float(np.mean(self.covered)) if self.covered else None,
            "p_below_0.05": float(np.mean(self.significant)) if self.significant else None,
            "intervals": len(self.covered),
        }


def coverage(config: OracleConfig) -> dict[str, Any]:
    """Runs the trials.

    Returns:
        {"preferences", "data", "seed", "trials", "rows": [...]}, a row per metric and effect.
    """
    preferences, folder = config.preferences(), data_folder(config.data_dir)
    rows: list[dict[str, Any]] = []
    with tqdm(total=config.trials * len(config.experiments), desc="trials", leave=False) as bar:
        for name in config.experiments:
            items = EXPERIMENTS[name].load(folder, config)
            conditions = [CONDITIONS[c] for c in config.conditions if c in EXPERIMENTS[name].CONDITIONS]
            tallies: dict[tuple[str, str], Tally] = {}
            truths = {c.name: _truths(preferences, name, c, items) for c in conditions}
            if config.orders < 3:  # with one order the options' order in the data has an effect too
                for truth in truths.values():
                    for metric in [m for m in truth if m.startswith(OF_THREE_ORDERS)]:
                        del truth[metric]
            for trial in range(config.trials):
                _trial(config, name, items, conditions, truths, tallies, trial)
                bar.update(1)
            rows += [tally.row(name, condition, metric) for (condition, metric), tally in tallies.items()]
    return {
        "preferences": vars(preferences), "data": data_name(folder), "seed": config.seed, "trials": config.trials,
        "rows": rows,
    }  # fmt: skip


def _truths(preferences: Preferences, experiment: str, condition: Condition, items: list[Item]) -> dict[str, float]:
    """Returns the planted values by metric: over all items, the mean of categories (BBQ), and each sex (admissions)."""
    values = planted(preferences, experiment, condition, items)
    for sex in sorted({i.fields.get("profile_sex", "any") for i in items} - {"any"}):
        of_sex = planted(preferences, experiment, condition, [i for i in items if i.fields["sex"] == sex])
        values |= {f"{name} ({sex})": value for name, value in of_sex.items()}
    categories = list(dict.fromkeys(i.fields.get("category") for i in items))
    if len(categories) > 1:
        by_category = [
            planted(preferences, experiment, condition, [i for i in items if i.fields["category"] == c])
            for c in categories
        ]
        values |= {f"{name} ({MEAN})": float(np.mean([p[name] for p in by_category])) for name in by_category[0]}
    return values


def _trial(
    config: OracleConfig, experiment: str, items: list[Item], conditions: list[Condition],
    truths: dict[str, dict[str, float]], tallies: dict[tuple[str, str], Tally], trial: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng([config.seed, trial])
    drawn = list(redraw(items, rng))
    oracle = Oracle(config.preferences(), int(rng.integers(2**31)))
    bootstrap = Bootstrap(trial)
    by_condition: dict[str, list[Quantity]] = {}
    for condition in conditions:
        records = list(answer(oracle, experiment, condition, drawn, EXPERIMENTS[experiment].orders(config)))
        quantities = [q for q in EXPERIMENTS[experiment].measure(records) if q.reported]
        by_condition[condition.name] = [q for q in quantities if _label(q) in truths[condition.name]]
        for q in by_condition[condition.name]:
            truth = truths[condition.name][_label(q)]
            tally = tallies.setdefault((condition.name, _label(q)), Tally(truth))
            _add(tally, bootstrap.estimate(q))
    for name, quantities in by_condition.items():
        if name == CONTROL or CONTROL not in by_condition:
            continue
        for before, after in pair_quantities(by_condition[CONTROL], quantities):
            truth = truths[name][_label(after)] - truths[CONTROL][_label(after)]
            tally = tallies.setdefault((f"{CONTROL} -> {name}", _label(after)), Tally(truth))
            _add(tally, bootstrap.difference(before, after))


def _label(quantity: Quantity) -> str:
    return quantity.name if quantity.category == "all" else f"{quantity.name} ({quantity.category})"


def _add(tally: Tally, estimate: Any) -> None:
    if estimate.value is not None:
        tally.estimates.append(estimate.value)
    if estimate.low is not None:
        rounding = 1e-9
        tally.covered.append(estimate.low - rounding <= tally.planted <= estimate.high + rounding)
    if estimate.p_value is not None:
        tally.significant.append(estimate.p_value < 0.05)


def redraw(items: Sequence[Item], rng: np.random.Generator) -> Iterator[Item]:
    """Draws as many clusters as there are, with replacement within their category, each under a new name."""
    strata: dict[str, dict[str, list[Item]]] = {}
    for item in items:
        strata.setdefault(item.fields.get("category", ""), {}).setdefault(item.cluster, []).append(item)
    for clusters in strata.values():
        groups = list(clusters.values())
        for n, k in enumerate(rng.integers(len(groups), size=len(groups))):
            for i in groups[k]:
                yield replace(i, id=f"{i.id}#{n}", cluster=f"{i.cluster}#{n}", group=f"{group_of(i)}#{n}")


def answer(
    oracle: Oracle, experiment: str, condition: Condition, items: Sequence[Item], orders: int
) -> Iterator[Record]:
    """Yields the oracle's records, with the columns that metrics are computed from."""
    for item in items:
        for order in range(orders):
            logprobs = oracle.logprobs(experiment, condition, item, order).tolist()
            yield {
                "experiment": experiment, "condition": condition.name, "item": item.id, "order": order,
                "logprobs": logprobs, "weight": item.weight, "cluster": item.cluster, **item.fields,
            }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """Formats the rows as text."""
    rows: list[tuple[str, ...]] = [COLUMNS]
    for r in result["rows"]:
        estimate = "" if r["mean_estimate"] is None else f"{r['mean_estimate']:.4f}"
        shares = ["" if r[k] is None else f"{100 * r[k]:.1f}%" for k in ("coverage", "p_below_0.05")]
        named = (r["experiment"], r["condition"], r["metric"], f"{r['planted']:.4f}")
        rows.append((*named, estimate, *shares, str(r["intervals"])))
    return columns(rows)
