"""Only as much as is needed: a random order of asking, and a rule that stops when headline metrics are known to +-W.

Groups (Item.group: the four rows of a BBQ filling, a profile, an occupation) are asked in a seeded random order that is
proportional within each category, one pack of whole groups after the other. After each pack one looks: how far can
each headline metric be, over the groups asked so far, from its value over all N groups of the plan? The answer is an
interval of a confidence sequence, so that it may be looked at as often as one likes and be stopped at any time: with
95% probability it holds at all looks together. It is about this set of questions and no other, which is why it shrinks
to nothing when all are asked; the bootstrap over templates, which is about other templates too, stands beside it.

Derivation. The metric over n groups, less the metric over all N, is to first order a mean of influences (jackknife:
leave each group out), of standard deviation sigma within categories. Drawn without replacement, the difference times
n / (sigma sqrt(N)) is at s = n / N a Brownian bridge B(s) = (1 - s) W(tau), tau = s / (1 - s), W a Brownian motion.
Robbins' normal mixture (Robbins 1970; with estimated variances, Waudby-Smith et al. 2024, "Time-uniform central limit
theory and asymptotic confidence sequences") bounds W at all times, P(some tau: |W(tau)| >= boundary(tau)) <= ALPHA:

    half width = sigma sqrt(N) (1 - s) / n * boundary(tau)
    boundary(tau) = sqrt((tau + ETA) * log((tau + ETA) / (ETA * ALPHA^2)))

No sample shows the spread of what it has not met: of a model that abstains nearly always, the first 40 groups may hold
none of those where it does not, and sigma = 0. A kind of group of which there are k among N is missed by all n with a
probability of at most (1 - s)^k, so that with 95% its share is less than

    unseen = log(1 / ALPHA) / (-N log(1 - s))          (about 3 / n, the rule of three)

at all looks together; it moves a bias score or a gap, whose scale is 1, by at most about that much. No half width is
taken to be less.

Each metric under each condition has its own interval of 95%; there is no claim about all of them at once.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.special import lambertw

from eval.errors import InputError
from eval.experiments.registry import EXPERIMENTS
from eval.stats.bootstrap import Quantity
from eval.types import Item, Metric, Record

ALPHA = 0.05
TIGHTEST = 0.1
"""The tau (about the share of groups asked) at which the boundary is tightest, 3.03 sqrt(tau); at 40 times it, 3.4."""
ETA = TIGHTEST / float(-lambertw(-(ALPHA**2) / np.e, -1).real - 1)
"""Minimises boundary(TIGHTEST): with r = 1 + TIGHTEST / ETA, r - log(r) = 1 - log(ALPHA^2)."""
MIN_GROUPS = 40
"""No look before so many groups: the variance and the normal limit need some."""
MIN_IN_CATEGORY = 2
"""Nor before so many of each category (of a smaller one: all)."""
RULE = {
    "name": "normal-mixture confidence sequence, finite population, jackknife within categories; unseen share",
    "alpha": ALPHA, "eta": ETA, "min_groups": MIN_GROUPS, "min_in_category": MIN_IN_CATEGORY,
}  # fmt: skip
EARLY = "stopped early:"


def group_of(item: Item) -> str:
    """The name of the group that an item is asked with."""
    return item.group or item.cluster


def category_of(item: Item) -> str:
    """The stratum of an item's group."""
    return item.fields.get("category", "")


def in_random_order(experiment: str, items: Sequence[Item], seed: int) -> list[Item]:
    """The items, group by group, in a random order of which every beginning has its share of each category.

    Each category's groups are permuted, and the categories merged by (rank + u) / (groups in the category), u uniform
    in 0 to 1 for each category: a beginning has of each category as many as it would have on average, give or take one.
    """
    rng = np.random.default_rng([seed, zlib.crc32(experiment.encode())])
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(group_of(item), []).append(item)
    categories: dict[str, list[str]] = {}
    for name, group_items in groups.items():
        categories.setdefault(category_of(group_items[0]), []).append(name)
    placed: list[tuple[float, str]] = []
    for names in categories.values():
        offset = rng.random()
        ranks = rng.permutation(len(names))
        placed += [((rank + offset) / len(names), name) for rank, name in zip(ranks, names, strict=True)]
    return [item for _, name in sorted(placed) for item in groups[name]]


def in_packs(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """Whole groups in packs of at least `size` items, the last one excepted; items of a group must be adjacent."""
    pack: list[Item] = []
    for item in items:
        if len(pack) >= size and group_of(item) != group_of(pack[-1]):
            yield pack
            pack = []
        pack.append(item)
    if pack:
        yield pack


def boundary(tau: float) -> float:
    """What a Brownian motion's absolute value stays below at all times, with probability 1 - ALPHA (at least)."""
    return float(np.sqrt((tau + ETA) * np.log((tau + ETA) / (ETA * ALPHA**2))))


def half_width(deviation: float, evaluated: int, total: int) -> float:
    """Half width of the interval for influences of standard deviation `deviation`, `asked` of `total` groups asked."""
    if evaluated == total:
        return 0.0
    share = evaluated / total
    from_sample = deviation * np.sqrt(total) * (1 - share) / evaluated * boundary(share / (1 - share))
    return float(np.maximum(from_sample, np.log(ALPHA) / (total * np.log1p(-share))))  # NaN stays NaN


def influences(quantity: Quantity) -> np.ndarray:
    """Jackknife influence of each cluster of the quantity's table on its value, (C,); NaN where one is undefined."""
    sums_CK = quantity.table.sums_CK
    total_K = sums_CK.sum(axis=0)
    return (len(sums_CK) - 1) * (quantity.apply(total_K) - quantity.apply(total_K - sums_CK))


def deviation(influences_G: np.ndarray, category_G: np.ndarray) -> float:
    """Standard deviation of influences within their categories, given as whole numbers from 0; NaN where undefined."""
    counts = np.bincount(category_G)
    counts = counts[counts > 0]
    codes = np.unique(category_G, return_inverse=True)[1]
    means = np.bincount(codes, influences_G) / counts
    squares = np.bincount(codes, (influences_G - means[codes]) ** 2)
    # a category of which one group was asked shows no spread; it counts only where that group is all of it
    return float(np.sqrt((squares * counts / np.maximum(counts - 1, 1)).sum() / counts.sum()))


def headline(experiment: str, quantities: Sequence[Quantity]) -> Quantity | None:
    """The experiment's headline metric; where it is not measured (BBQ in one order; other races), the nearest one."""
    whole = {q.name: q for q in reversed(quantities) if q.reported and q.category == "all"}
    wanted = EXPERIMENTS[experiment].HEADLINE
    first = next((q.name for q in quantities if q.name in whole), "")
    return next((whole[name] for name in (wanted, wanted.removesuffix("_symmetrised"), first) if name in whole), None)


@dataclass
class Stop:
    """Where asking an experiment ended, a part of its results (docs/results.md).

    half_widths: {condition: {"metric", "half_width"}}, None where the metric is undefined.
    """

    experiment: str
    reasoning: bool
    precision: float
    groups: int
    questions: int
    groups_asked: int = 0
    questions_asked: int = 0
    looks: int = 0
    reached: bool = False
    half_widths: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __str__(self) -> str:
        widths = ", ".join(
            f"{c} {w['metric']} {'undefined' if (h := w['half_width']) is None else f'+-{h:.4f}'}"
            for c, w in self.half_widths.items()
        )
        progress = f"{self.groups_asked} of {self.groups} groups, {self.questions_asked} of {self.questions} questions"
        return f"{self.experiment} {'with' if self.reasoning else 'without'} CoT: {progress} asked ({widths})"

    def note(self, condition: str) -> str:
        """What a reader of the headline metric must know; '' where everything was asked."""
        if self.questions_asked == self.questions:
            return ""
        return (
            f"{EARLY} {self.groups_asked} of {self.groups} groups asked ({self.questions_asked} of {self.questions} "
            f"questions), asking all would give a value within {self.half_widths[condition]['half_width']:.4f} of this "
            "one (95%, valid although looked at after each pack)"
        )


class Population:
    """All groups of a job. category: {group: number of its category}, in the order of `items`."""

    def __init__(self, items: Sequence[Item]) -> None:
        named = {group_of(i): category_of(i) for i in items}
        codes = np.unique(np.array(list(named.values())), return_inverse=True)[1]
        self.category: dict[str, int] = dict(zip(named, codes.tolist(), strict=True))
        self.needed = np.minimum(np.bincount(codes), MIN_IN_CATEGORY)

    def may_look(self, category_G: np.ndarray) -> bool:
        """Whether the groups asked, given by their categories, are enough for a variance; all of them always are."""
        counts = np.bincount(category_G, minlength=len(self.needed))
        enough = len(category_G) >= MIN_GROUPS and bool((counts >= self.needed).all())
        return enough or len(category_G) == len(self.category)


class Watch:
    """Looks after each pack whether the precision is reached. `items`: all that the experiment would be asked."""

    def __init__(
        self, experiment: str, reasoning: bool, items: Sequence[Item], questions: int, precision: float
    ) -> None:
        self.population = Population(items)
        self.group = {i.id: group_of(i) for i in items}
        self.records: dict[str, list[Record]] = {}
        self.category_of_group: dict[str, int] = {}
        self.stop = Stop(experiment, reasoning, precision, len(self.population.category), questions)

    def look(self, pack: Sequence[Record]) -> bool:
        """Takes in the next pack's records; whether to stop after it. Updates `stop`. InputError for a question that
        the server gave no reasoning for: the rule is about questions that are all answered.
        """
        stop = self.stop
        for r in pack:
            if "no_reasoning" in r:
                raise InputError(
                    f"{r['experiment']}, {r['condition']}, item {r['item']}: no reasoning ({r['no_reasoning']}), and "
                    "--precision takes all questions as answered; run the same command without --precision"
                )
            group = self.group[r["item"]]
            self.category_of_group[group] = self.population.category[group]
            self.records.setdefault(r["condition"], []).append({**r, "cluster": group})
        stop.groups_asked, stop.questions_asked = len(self.category_of_group), stop.questions_asked + len(pack)
        category_G = np.array(list(self.category_of_group.values()))
        if not self.population.may_look(category_G):
            return False
        stop.looks += 1
        stop.half_widths = {}
        for condition, condition_records in self.records.items():
            quantity = headline(stop.experiment, EXPERIMENTS[stop.experiment].measure(condition_records))
            width = width_of(quantity, list(self.category_of_group), category_G, stop.groups)
            finite_width = width if np.isfinite(width) else None
            stop.half_widths[condition] = {"metric": quantity.name if quantity else None, "half_width": finite_width}
        widths = [w["half_width"] for w in stop.half_widths.values()]
        stop.reached = all(w is not None and w < stop.precision for w in widths)
        return stop.reached


def width_of(quantity: Quantity | None, groups: Sequence[str], category_G: np.ndarray, total: int) -> float:
    """Half width for a quantity whose clusters are groups; `groups`: all G asked. NaN where it is undefined.

    A group without an answer that counts (not in the table) has no influence.
    """
    if quantity is None or quantity.undefined or not np.isfinite(quantity.value):
        return float("nan")
    influence_of = dict(zip(quantity.table.clusters, influences(quantity), strict=True))
    influences_G = np.array([influence_of.get(name, 0.0) for name in groups])
    return half_width(deviation(influences_G, category_G), len(groups), total)


def add_stop_notes(metrics: Sequence[Metric], stops: Sequence[Stop]) -> list[Metric]:
    """The metrics, with the note of its stop on each headline metric."""
    notes = {
        (s.experiment, condition, width["metric"]): s.note(condition)
        for s in stops
        for condition, width in s.half_widths.items()
    }
    return [
        replace(m, note="; ".join(filter(None, (note, m.note))))
        if m.category == "all" and (note := notes.get((m.experiment, m.condition, m.name)))
        else m
        for m in metrics
    ]
