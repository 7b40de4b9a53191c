"""Answers that are upper bounds, because a served model does not list a candidate among its most probable tokens.

They are counted from the records behind the numbers, whenever and by whichever process those were asked. Every metric
and effect notes how many there are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.metrics.measure import Cell
from eval.metrics.sampled_answers import add_cell_notes
from eval.types import Measured, Record

log = logging.getLogger(__name__)


def bound_share(logprobs: Sequence[float] | np.ndarray, bounded: Sequence[int]) -> float:
    """The part of the candidates' normalised probability that may be due to bounds.

    Args:
        logprobs: log-probability of each candidate.
        bounded: indices of the candidates whose log-probability is an upper bound.
    """
    p = np.exp(logprobs - np.logaddexp.reduce(logprobs))
    return float(p[list(bounded)].sum())


def count_bounds(cells: Mapping[Cell, Sequence[Record]]) -> dict[Cell, dict[str, Any]]:
    """Counts the answers that are bounds.

    Returns:
        For each cell with such answers {"questions": items with one in any order, "of": items in all, "largest_share"}.
    """
    counts = {}
    for cell, records in cells.items():
        bounded = [r for r in records if "bounded" in r]
        if bounded:
            counts[cell] = {
                "questions": len({r["item"] for r in bounded}),
                "of": len({r["item"] for r in records}),
                "largest_share": round(max(bound_share(r["logprobs"], r["bounded"]) for r in bounded), 6),
            }
    return counts


def add_notes(measured: Measured, bounds: Mapping[Cell, dict[str, Any]]) -> None:
    """Notes the bounds on every metric and effect, and logs them."""
    for line in bound_lines(bounds):
        log.warning("%s", line)
    add_cell_notes(measured, {cell: _bound_text(counts) for cell, counts in bounds.items()})


def bound_lines(bounds: Mapping[Cell, dict[str, Any]]) -> list[str]:
    """One line for each experiment and condition with such answers."""
    return [f"{e}, {c}: {_bound_text(counts)}" for (e, c), counts in bounds.items()]


def summary_fields(bounds: Mapping[Cell, dict[str, Any]]) -> dict[str, Any]:
    """The fields of summary.json on upper bounds, if there are any."""
    entries = [{"experiment": e, "condition": c, **counts} for (e, c), counts in bounds.items()]
    return {"upper_bounds": entries} if entries else {}


def _bound_text(counts: dict[str, Any]) -> str:
    return (
        f"{counts['questions']} of {counts['of']} questions: upper bounds in place of a probability, with up to "
        f"{counts['largest_share']:.2g} of a question's"
    )
