"""Computes from records: metrics with intervals, paired effects between conditions, spread over wordings, breakdown.

The experiments define what is estimated (their `measure` returns Quantities). This module estimates it, with one seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from eval.experiments.conditions import CONDITIONS
from eval.experiments.registry import EXPERIMENTS
from eval.stats.bootstrap import N_RESAMPLES, Bootstrap, Estimate, Quantity, holm
from eval.types import Effect, Measured, Metric, Record

CONTROL = "Q"
Cell = tuple[str, str]
"""(experiment, condition)."""


def measure(cells: dict[Cell, list[Record]], seed: int, resamples: int = N_RESAMPLES) -> Measured:
    """Measures the records of every experiment and condition.

    Args:
        cells: records by (experiment, condition).
        seed: of the bootstrap.
        resamples: number of bootstrap resamples.
    """
    bootstrap = Bootstrap(seed, resamples)
    quantities = {cell: EXPERIMENTS[cell[0]].measure(records) for cell, records in cells.items()}
    metrics = [
        to_metric(cell, q, bootstrap.estimate(q))
        for cell, measured in quantities.items()
        for q in measured
        if q.reported
    ]
    metrics += wording_metrics(cells, quantities, bootstrap)
    effects = list(compare(cells, quantities, bootstrap))
    correct_p_values(effects)
    rows = [row for cell, measured in quantities.items() for row in break_down(cell, measured)]
    return Measured(metrics, effects, rows)


def to_metric(cell: Cell, quantity: Quantity, estimate: Estimate) -> Metric:
    """Combines a quantity and its estimate into a Metric."""
    return Metric(
        *cell, quantity.name, estimate.value, estimate.low, estimate.high, quantity.n_items, estimate.n_clusters,
        quantity.method, estimate.note, quantity.category,
    )  # fmt: skip


def wording_metrics(
    cells: dict[Cell, list[Record]], quantities: dict[Cell, list[Quantity]], bootstrap: Bootstrap
) -> Iterator[Metric]:
    """Mean and spread over the wordings of an instruction, for each condition that was asked in several.

    They are taken over the paper's wording and the other ones, on the questions that all wordings have.

    Yields:
        <metric>_wordings_mean, with its interval, and <metric>_wordings_sd.
    """
    for experiment, name in quantities:
        if name not in CONDITIONS:
            continue
        worded = [c for c in quantities if c[0] == experiment and c[1].startswith(f"{name} (wording ")]
        if not worded:
            continue
        first, *rest = on_shared_questions(cells, quantities, [(experiment, name), *worded])
        for quantity in (q for q in first if q.reported and q.category == "all"):
            variants = [
                quantity,
                *(q for others in rest for q in others if (q.name, q.category) == (quantity.name, "all")),
            ]
            estimate = bootstrap.mean(variants)
            spread = replace(estimate, low=None, high=None)
            if estimate.value is not None:
                values = [q.value for q in variants]
                note = f"{len(variants)} wordings, the paper's and ours: {min(values):.4f} to {max(values):.4f}"
                spread = replace(spread, value=float(np.std(values, ddof=1)), note=note)
            for suffix, statistic in (("mean", estimate), ("sd", spread)):
                named = replace(
                    quantity, name=f"{quantity.name}_wordings_{suffix}", method=f"over {len(variants)} wordings"
                )
                yield to_metric((experiment, name), named, statistic)


def compare(
    cells: dict[Cell, list[Record]], quantities: dict[Cell, list[Quantity]], bootstrap: Bootstrap
) -> Iterator[Effect]:
    """Yields the effect of every condition against Q, on the items asked under both."""
    for experiment, name in cells:
        control = (experiment, CONTROL)
        if name == CONTROL or name not in CONDITIONS or control not in cells:
            continue
        before, after = on_shared_questions(cells, quantities, [control, (experiment, name)])
        for first, second in pair_quantities(before, after):
            yield effect(experiment, CONTROL, name, first, second, bootstrap)


def on_shared_questions(
    cells: dict[Cell, list[Record]], quantities: dict[Cell, list[Quantity]], chosen: Sequence[Cell]
) -> list[list[Quantity]]:
    """Measures cells of one experiment on the questions that all of them have.

    Returns:
        The quantities of each cell; empty lists if no question is common to all.
    """
    question_sets = [{_question(r) for r in cells[cell]} for cell in chosen]
    if all(questions == question_sets[0] for questions in question_sets):
        return [quantities[cell] for cell in chosen]
    shared = set.intersection(*question_sets)
    if not shared:
        return [[] for _ in chosen]
    return [EXPERIMENTS[cell[0]].measure([r for r in cells[cell] if _question(r) in shared]) for cell in chosen]


def _question(record: Record) -> tuple[str, int]:
    return record["item"], record["order"]


def pair_quantities(before: Sequence[Quantity], after: Sequence[Quantity]) -> list[tuple[Quantity, Quantity]]:
    """Pairs the reported quantities that both have, by name and category.

    rho_bootstrap is left out, since it is rho again.
    """
    before_by_name = {(q.name, q.category): q for q in before}
    wanted = [q for q in after if q.reported and not q.name.endswith("_bootstrap")]
    return [(before_by_name[q.name, q.category], q) for q in wanted if (q.name, q.category) in before_by_name]


def effect(experiment: str, before: str, after: str, first: Quantity, second: Quantity, bootstrap: Bootstrap) -> Effect:
    """The difference before -> after between two conditions, or under one condition between two checkpoints."""
    estimate = bootstrap.difference(first, second)
    values = (_defined(first), _defined(second))
    return Effect(
        experiment, before, after, second.name, estimate.value, estimate.low, estimate.high, estimate.p_value, None,
        *values, second.n_items, estimate.n_clusters, estimate.note, second.category,
    )  # fmt: skip


def _defined(quantity: Quantity) -> float | None:
    return None if quantity.undefined or not np.isfinite(quantity.value) else quantity.value


def correct_p_values(effects: list[Effect]) -> None:
    """Sets p_holm: Holm's correction over the experiments, for each condition.

    A metric's family is the metric and the primary metric of each other experiment, which is the first that the
    experiment reports (BBQ: bias_ambig by the paper's protocol; Winogender and Winogenerated: rho; admissions: gap, or
    gap_sex if sex is varied). Only whole experiments (category 'all') are tested.
    """
    whole = [e for e in effects if e.category == "all"]
    primary = {(e.experiment, e.after): e for e in reversed(whole)}
    for tested in (e for e in whole if e.p_value is not None):
        others = [e for (name, after), e in primary.items() if after == tested.after and name != tested.experiment]
        family = [tested.p_value, *(e.p_value for e in others)]
        tested.p_holm = holm([p for p in family if p is not None])[0]


def break_down(cell: Cell, quantities: Sequence[Quantity]) -> list[dict[str, Any]]:
    """One row per cluster: {experiment, condition, by, group, weight, <metric>: value or None if undefined}."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for q in quantities:
        if not q.per_cluster:
            continue
        for name, weight, value in zip(q.table.clusters, q.table.sums_CK[:, 0], q.apply(q.table.sums_CK), strict=True):
            head = {"experiment": cell[0], "condition": cell[1], "by": q.per_cluster, "group": name}
            row = rows.setdefault((q.per_cluster, name), head | {"weight": 0.0})
            row["weight"] = max(row["weight"], float(weight))  # BBQ has quantities of one context and of both
            row[q.name] = float(value) if np.isfinite(value) else None
    return list(rows.values())
