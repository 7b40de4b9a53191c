"""What sampled answers cost: questions that nobody could read an answer to, and the noise of those that could be read.
A question whose reasoning the server refused, or gave none of, has no answer either, by whatever method.

A question without an answer is left out of every metric and of the paired effects, with all of its option orders (BBQ
measures a question over its orders) or, in admissions, with all values of its profile; how many there are stands with
the metrics. The intervals contain the noise of sampling already, since clusters are drawn with their noisy answers; how
much of it that is, is told as a standard deviation, found by drawing every question's counts anew from its own.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from eval.experiments.registry import EXPERIMENTS
from eval.metrics.measure import Cell
from eval.metrics.sequential import headline
from eval.types import Effect, Measured, Record

log = logging.getLogger(__name__)

REDRAWN = 50
"""How often the counts are drawn anew: the standard deviation is then known to a tenth of itself."""
FLOOR = 1e-12
"""Probability of a candidate that was never drawn: 0 to all printed digits."""
SAMPLED = "sampled answers:"
"""How the note of a metric begins that says how much of its spread is sampling."""


def drop_unanswered(cells: Mapping[Cell, list[Record]]) -> tuple[dict[Cell, list[Record]], dict[Cell, dict[str, Any]]]:
    """The records of questions that have an answer, in every order, and what was left out of each cell:
    {"questions": items, "records", "of": items in all, "unread": {reason: number of sampled answers},
    "unreasoned": {reason: records without the reasoning that they ask for}}.
    """
    kept: dict[Cell, list[Record]] = {}
    left_out: dict[Cell, dict[str, Any]] = {}
    for cell, records in cells.items():
        lost = {r["item"] for r in records if r["logprobs"] is None}
        if any(r["logprobs"] is not None and r["item"] not in lost for r in records):
            kept[cell] = [r for r in records if r["item"] not in lost]
        unread: dict[str, int] = {}
        for reason, n in ((reason, n) for r in records for reason, n in r.get("unread", {}).items()):
            unread[reason] = unread.get(reason, 0) + n
        if lost or unread:
            left_out[cell] = {
                "questions": len(lost),
                "records": sum(r["item"] in lost for r in records),
                "of": len({r["item"] for r in records}),
                "unread": unread,
                "unreasoned": dict(Counter(r["no_reasoning"] for r in records if "no_reasoning" in r)),
                "samples": sum(r.get("samples", 0) for r in records),
            }
    return kept, left_out


def add_notes(measured: Measured, left_out: Mapping[Cell, dict[str, Any]], noise: Sequence[dict[str, Any]]) -> None:
    """Puts what was left out beside every metric and effect, and the noise beside the headline metrics; tells both."""
    for (experiment, condition), lost in left_out.items():
        if lost["unread"]:
            where = f"{experiment}, {condition}"
            reasons = ", ".join(f"{n} {reason}" for reason, n in lost["unread"].items())
            log.warning("%s: %d of %d sampled answers could not be read: %s", where, sum(lost["unread"].values()),
                        lost["samples"], reasons)  # fmt: skip
    for line in left_out_lines(left_out):
        log.warning("%s", line)
    add_cell_notes(measured, {cell: _left_out_text(lost) for cell, lost in left_out.items()})
    for entry in noise:
        text = (
            f"{SAMPLED} drawing them anew moves the value by {entry['sd']:.4f} (standard deviation, in the interval "
            f"already) and by {entry['shift']:+.4f} on average"
        )
        measured.metrics = [
            replace(m, note=_join_notes(text, m.note))
            if (m.experiment, m.condition, m.name, m.category)
            == (entry["experiment"], entry["condition"], entry["metric"], "all")
            else m
            for m in measured.metrics
        ]


def left_out_lines(left_out: Mapping[Cell, dict[str, Any]]) -> list[str]:
    """A line for every experiment and condition of which questions were left out."""
    return [f"{e}, {c}: {text}" for (e, c), lost in left_out.items() if (text := _left_out_text(lost))]


def summary_fields(left_out: Mapping[Cell, dict[str, Any]], noise: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the summary says of both, where there is anything to say."""
    lost = [{"experiment": e, "condition": c, **counts} for (e, c), counts in left_out.items()]
    return ({"left_out": lost} if lost else {}) | ({"sampling_noise": list(noise)} if noise else {})


def add_cell_notes(measured: Measured, notes_by_cell: Mapping[Cell, str]) -> None:
    """Adds what is said of a cell to the notes of its metrics, and of the effects from it and to it."""

    def noted(e: Effect) -> Effect:
        both = [f"{c}: {line}" for c in (e.before, e.after) if (line := notes_by_cell.get((e.experiment, c)))]
        return replace(e, note=_join_notes(e.note, *both))

    measured.metrics = [
        replace(m, note=_join_notes(m.note, notes_by_cell.get((m.experiment, m.condition), "")))
        for m in measured.metrics
    ]
    measured.effects = [noted(e) for e in measured.effects]


def _left_out_text(lost: dict[str, Any]) -> str:
    if not lost["questions"]:
        return ""
    why = ", ".join(f"{n} {reason}" for reason, n in lost.get("unreasoned", {}).items())
    text = f"{lost['questions']} of {lost['of']} questions have no answer that could be read and are left out"
    return f"{text} (reasoning that the server did not give: {why})" if why else text


def _join_notes(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def sampling_noise(cells: Mapping[Cell, list[Record]], seed: int) -> list[dict[str, Any]]:
    """Of each cell of sampled answers {"experiment", "condition", "metric", "sd", "shift"} of its headline metric.

    Each question's answers are drawn anew, as many as could be read, with the probabilities that were counted: sd is
    the standard deviation of the metric over REDRAWN such draws, shift its mean less the metric. A metric that noise
    attenuates, such as a correlation, has been shifted by about as much already.
    """
    rng = np.random.default_rng(seed)
    entries = []
    for (experiment, condition), records in cells.items():
        if not all("counts" in r for r in records):
            continue
        measured = EXPERIMENTS[experiment].measure(records)
        quantity = headline(experiment, measured)
        if quantity is None or quantity.undefined or not np.isfinite(quantity.value):
            continue
        values = []
        for _ in range(REDRAWN):
            again = headline(experiment, EXPERIMENTS[experiment].measure([_redrawn(r, rng) for r in records]))
            if again is not None and again.name == quantity.name and np.isfinite(again.value):
                values.append(again.value)
        if len(values) > 1:
            sd, shift = float(np.std(values, ddof=1)), float(np.mean(values) - quantity.value)
            where = {"experiment": experiment, "condition": condition, "metric": quantity.name}
            entries.append({**where, "sd": sd, "shift": shift})
    return entries


def _redrawn(record: Record, rng: np.random.Generator) -> Record:
    counts = np.array(record["counts"])
    drawn = rng.multinomial(counts.sum(), counts / counts.sum())
    logprobs = np.log(np.maximum(drawn / record["samples"], FLOOR))
    return {**record, "counts": drawn.tolist(), "logprobs": logprobs.tolist()}
