"""Asks only as many questions as needed: a random order, and a rule that stops at headline metrics known to +-W.

Groups (Item.group: the four rows of a BBQ filling, a profile, an occupation) are asked in a seeded random order that is
proportional within each category, in packs of whole groups. After each pack the rule looks: how far can each headline
metric, over the groups asked so far, be from its value over all N groups of the plan? The answer is an interval of a
confidence sequence. One may look as often as one likes and stop at any time: with 95% probability it holds at all looks
together. It is about this set of questions only, so it shrinks to nothing when all are asked. The bootstrap over
templates, which is about other templates too, is reported beside it.

Derivation. The metric over n groups, minus the metric over all N, is to first order a mean of influences (jackknife:
leave each group out), of standard deviation sigma within categories. Drawn without replacement, the difference times
n / (sigma sqrt(N)) is at s = n / N a Brownian bridge B(s) = (1 - s) W(tau), tau = s / (1 - s), W a Brownian motion.
Robbins' normal mixture (Robbins 1970; with estimated variances, Waudby-Smith et al. 2024, "Time-uniform central limit
theory and asymptotic confidence sequences") bounds W at all times, P(some tau: |W(tau)| >= boundary(tau)) <= ALPHA:

    half width = sigma sqrt(N) (1 - s) / n * boundary(tau)
    boundary(tau) = sqrt((tau + ETA) * log((tau + ETA) / (ETA * ALPHA^2)))

A sample does not show the spread of what it has not met. If a model nearly always abstains, the first 40 groups may
hold none of those where it does not, and sigma = 0. A kind of group with k members among N is missed by all n with a
probability of at most (1 - s)^k. With 95% its share is therefore, at all looks together, less than

    unseen = log(1 / ALPHA) / (-N log(1 - s))          (about 3 / n, the rule of three)

It moves a bias score or a gap, whose scale is 1, by at most about that much. No half width is taken to be less.

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
"""The tau (about the share of groups asked) at which the boundary is tightest: 3.03 sqrt(tau). At 40 times it: 3.4."""
ETA = TIGHTEST / float(-lambertw(-(ALPHA**2) / np.e, -1).real - 1)
"""Minimises boundary(TIGHTEST): with r = 1 + TIGHTEST / ETA, r - log(r) = 1 - log(ALPHA^2)."""
MIN_GROUPS = 40
"""The first look needs this many groups: the variance and the normal limit are unreliable with fewer."""
MIN_IN_CATEGORY = 2
"""It also needs this many groups of each category, or all of a smaller one."""
RULE = {
    "name": "normal-mixture confidence sequence, finite population, jackknife within categories; unseen share",
    "alpha": ALPHA, "eta": ETA, "min_groups": MIN_GROUPS, "min_in_category": MIN_IN_CATEGORY,
}  # fmt: skip
EARLY = "stopped early:"


def group_of(item: Item) -> str:
    """Name of the group that an item is asked with."""
    return item.group or item.cluster


def category_of(item: Item) -> str:
    """Stratum of an item's group."""
    return item.fields.get("category", "")


def in_random_order(experiment: str, items: Sequence[Item], seed: int) -> list[Item]:
    """Orders the items randomly, group by group, so that every prefix has its share of each category.

    Each category's groups are permuted, and the categories merged by (rank + u) / (groups in the category), u uniform
    in 0 to 1 for each category. A prefix then has the expected number of each category, give or take one.
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
    """Yields packs of whole groups, with at least `size` items except in the last. A group's items must be adjacent."""
    pack: list[Item] = []
    for item in items:
        if len(pack) >= size and group_of(item) != group_of(pack[-1]):
            yield pack
            pack = []
        pack.append(item)
    if pack:
        yield pack


def boundary(tau: float) -> float:
    """A bound on a Brownian motion's absolute value at time tau.

    It holds at all times together with a probability of at least 1 - ALPHA.
    """
    return float(np.sqrt((tau + ETA) * np.log((tau + ETA) / (ETA * ALPHA**2))))


def half_width(deviation: float, evaluated: int, total: int) -> float:
    """Half width of the interval.

    Args:
        deviation: standard deviation of the influences; NaN gives NaN.
        evaluated: number of groups asked.
        total: number of all groups.
    """
    if evaluated == total:
        return 0.0
    share = evaluated / total
    from_sample = deviation * np.sqrt(total) * (1 - share) / evaluated * boundary(share / (1 - share))
    return float(np.maximum(from_sample, np.log(ALPHA) / (total * np.log1p(-share))))  # NaN stays NaN


def influences(quantity: Quantity) -> np.ndarray:
    """Jackknife influence of each of the table's clusters on the quantity's value, (C,). NaN if undefined."""
    sums_CK = quantity.table.sums_CK
    total_K = sums_CK.sum(axis=0)
    return (len(sums_CK) - 1) * (quantity.apply(total_K) - quantity.apply(total_K - sums_CK))


def deviation(influences_G: np.ndarray, category_G: np.ndarray) -> float:
    """Standard deviation of influences within categories. NaN if an influence is undefined.

    Args:
        influences_G: influence of each of G groups.
        category_G: index of each group's category, from 0.
    """
    counts = np.bincount(category_G)
    counts = counts[counts > 0]
    codes = np.unique(category_G, return_inverse=True)[1]
    means = np.bincount(codes, influences_G) / counts
    squares = np.bincount(codes, (influences_G - means[codes]) ** 2)
    # A category with one group asked shows no spread. A look allows that only if the category has no other group.
    return float(np.sqrt((squares * counts / np.maximum(counts - 1, 1)).sum() / counts.sum()))


def headline(experiment: str, quantities: Sequence[Quantity]) -> Quantity | None:
    """The experiment's headline metric.

    If it is not measured (BBQ in one order; other races), the nearest one. None if there is none.
    """
    whole = {q.name: q for q in reversed(quantities) if q.reported and q.category == "all"}
    wanted = EXPERIMENTS[experiment].HEADLINE
    first = next((q.name for q in quantities if q.name in whole), "")
    return next((whole[name] for name in (wanted, wanted.removesuffix("_symmetrised"), first) if name in whole), None)


@dataclass
class Stop:
    """Where an experiment's evaluation stopped; part of its results (docs/results.md).

    half_widths: {condition: {"metric", "half_width"}}. A half width is None if the metric is undefined.
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
        """What a reader of the headline metric must know; '' if all questions were asked."""
        if self.questions_asked == self.questions:
            return ""
        return (
            f"{EARLY} {self.groups_asked} of {self.groups} groups asked ({self.questions_asked} of {self.questions} "
            f"questions), asking all would give a value within {self.half_widths[condition]['half_width']:.4f} of this "
            "one (95%, valid although looked at after each pack)"
        )


class Population:
    """All groups of a job. category: {group: index of its category}, in the order of `items`."""

    def __init__(self, items: Sequence[Item]) -> None:
        named = {group_of(i): category_of(i) for i in items}
        codes = np.unique(np.array(list(named.values())), return_inverse=True)[1]
        self.category: dict[str, int] = dict(zip(named, codes.tolist(), strict=True))
        self.needed = np.minimum(np.bincount(codes), MIN_IN_CATEGORY)

    def may_look(self, category_G: np.ndarray) -> bool:
        """Whether the groups asked are enough to estimate a variance; all groups always are.

        Args:
            category_G: index of each asked group's category.
        """
        counts = np.bincount(category_G, minlength=len(self.needed))
        enough = len(category_G) >= MIN_GROUPS and bool((counts >= self.needed).all())
        return enough or len(category_G) == len(self.category)


class Watch:
    """Checks after each pack whether the precision is reached.

    Args:
        items: all items that the experiment would ask.
        questions: their number of questions.
        precision: the half width to reach.
    """

    def __init__(
        self, experiment: str, reasoning: bool, items: Sequence[Item], questions: int, precision: float
    ) -> None:
        self.population = Population(items)
        self.group = {i.id: group_of(i) for i in items}
        self.records: dict[str, list[Record]] = {}
        self.category_of_group: dict[str, int] = {}
        self.stop = Stop(experiment, reasoning, precision, len(self.population.category), questions)

    def look(self, pack: Sequence[Record]) -> bool:
        """Adds the records of the next pack and updates `stop`.

        Returns:
            Whether to stop after this pack.

        Raises:
            InputError: the server returned no reasoning for a question. The rule needs every question answered.
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
    """Half width for a quantity whose clusters are groups. NaN if it is undefined.

    A group without an answer that counts is not in the table and has no influence.

    Args:
        quantity: the metric over the groups asked.
        groups: names of the G groups asked.
        category_G: index of each group's category.
        total: number of all groups.
    """
    if quantity is None or quantity.undefined or not np.isfinite(quantity.value):
        return float("nan")
    influence_of = dict(zip(quantity.table.clusters, influences(quantity), strict=True))
    influences_G = np.array([influence_of.get(name, 0.0) for name in groups])
    return half_width(deviation(influences_G, category_G), len(groups), total)


def add_stop_notes(metrics: Sequence[Metric], stops: Sequence[Stop]) -> list[Metric]:
    """Returns the metrics, with the note of its stop added to each headline metric."""
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
