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
from eval.metrics.sampled_answers import put_beside
from eval.types import Measured, Record

log = logging.getLogger(__name__)


def bound_share(logprobs: Sequence[float] | np.ndarray, bounded: Sequence[int]) -> float:
    """How much of the candidates' normalised probability may be owed to bounds; bounded: which of them are bounds."""
    p = np.exp(logprobs - np.logaddexp.reduce(logprobs))
    return float(p[list(bounded)].sum())


def counted(cells: Mapping[Cell, Sequence[Record]]) -> dict[Cell, dict[str, Any]]:
    """Of each cell with such answers {"questions": items with one in any order, "of": items, "largest_share"}."""
    found = {}
    for cell, records in cells.items():
        bounded = [r for r in records if "bounded" in r]
        if bounded:
            found[cell] = {
                "questions": len({r["item"] for r in bounded}),
                "of": len({r["item"] for r in records}),
                "largest_share": round(max(bound_share(r["logprobs"], r["bounded"]) for r in bounded), 6),
            }
    return found


def note(measured: Measured, bounds: Mapping[Cell, dict[str, Any]]) -> None:
    """Says so beside every metric and effect, and in the log."""
    for line in lines(bounds):
        log.warning("%s", line)
    put_beside(measured, {cell: _said(found) for cell, found in bounds.items()})


def lines(bounds: Mapping[Cell, dict[str, Any]]) -> list[str]:
    """A line for every experiment and condition with such answers."""
    return [f"{e}, {c}: {_said(found)}" for (e, c), found in bounds.items()]


def told(bounds: Mapping[Cell, dict[str, Any]]) -> dict[str, Any]:
    """What the summary says, where there is anything to say."""
    found = [{"experiment": e, "condition": c, **counts} for (e, c), counts in bounds.items()]
    return {"upper_bounds": found} if found else {}


def _said(found: dict[str, Any]) -> str:
    return (
        f"{found['questions']} of {found['of']} questions: upper bounds in place of a probability, with up to "
        f"{found['largest_share']:.2g} of a question's"
    )
