"""Answers that are upper bounds: of a candidate that a served model does not list among its most probable tokens.

They are counted from the records that the numbers are of, whenever and by whichever process those were asked; how many
there are stands with every metric and effect.
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
    """How much of the candidates' normalised probability may be owed to bounds; bounded: which of them are bounds."""
    p = np.exp(logprobs - np.logaddexp.reduce(logprobs))
    return float(p[list(bounded)].sum())


def count_bounds(cells: Mapping[Cell, Sequence[Record]]) -> dict[Cell, dict[str, Any]]:
    """Of each cell with such answers {"questions": items with one in any order, "of": items, "largest_share"}."""
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
    """Says so beside every metric and effect, and in the log."""
    for line in bound_lines(bounds):
        log.warning("%s", line)
    add_cell_notes(measured, {cell: _bound_text(counts) for cell, counts in bounds.items()})


def bound_lines(bounds: Mapping[Cell, dict[str, Any]]) -> list[str]:
    """A line for every experiment and condition with such answers."""
    return [f"{e}, {c}: {_bound_text(counts)}" for (e, c), counts in bounds.items()]


def summary_fields(bounds: Mapping[Cell, dict[str, Any]]) -> dict[str, Any]:
    """What the summary says, where there is anything to say."""
    entries = [{"experiment": e, "condition": c, **counts} for (e, c), counts in bounds.items()]
    return {"upper_bounds": entries} if entries else {}


def _bound_text(counts: dict[str, Any]) -> str:
    return (
        f"{counts['questions']} of {counts['of']} questions: upper bounds in place of a probability, with up to "
        f"{counts['largest_share']:.2g} of a question's"
    )
