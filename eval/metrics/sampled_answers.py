"""The cost of sampled answers: questions whose answers could not be read, and sampling noise of the others.

A question for which the server refused or returned no reasoning has no answer either, whatever the method.

A question without an answer is left out of every metric and of the paired effects. BBQ measures a question over its
option orders, so all of them are left out; in admissions, all values of the profile. The metrics' notes give the number
left out. The intervals already contain sampling noise, because clusters are drawn with their noisy answers. How large
it is, is reported as a standard deviation, found by redrawing every question's counts from its own frequencies.
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
"""How often the counts are redrawn: enough to know the standard deviation to a tenth of itself."""
FLOOR = 1e-12
"""Probability of a candidate that was never drawn. It prints as 0."""
SAMPLED = "sampled answers:"
"""Beginning of the part of a metric's note on how much of its spread is sampling noise."""


def drop_unanswered(cells: Mapping[Cell, list[Record]]) -> tuple[dict[Cell, list[Record]], dict[Cell, dict[str, Any]]]:
    """Keeps the questions that have an answer in every order.

    Returns:
        The kept records, and what was left out of each cell that has such questions or unread answers:
        {"questions": items left out, "records": records left out, "of": items in all,
        "unread": {reason: number of sampled answers}, "unreasoned": {reason: records whose reasoning is missing},
        "samples": sampled answers in all}.
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
    """Adds what was left out to all notes, and the noise to the headline metrics' notes. Logs what was left out."""
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
    """One line for each experiment and condition from which questions were left out."""
    return [f"{e}, {c}: {text}" for (e, c), lost in left_out.items() if (text := _left_out_text(lost))]


def summary_fields(left_out: Mapping[Cell, dict[str, Any]], noise: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fields of summary.json on left-out questions and sampling noise, if there are any."""
    lost = [{"experiment": e, "condition": c, **counts} for (e, c), counts in left_out.items()]
    return ({"left_out": lost} if lost else {}) | ({"sampling_noise": list(noise)} if noise else {})


def add_cell_notes(measured: Measured, notes_by_cell: Mapping[Cell, str]) -> None:
    """Adds each cell's note to its metrics, and to the effects from it and to it."""

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
    """Estimates the sampling noise of the headline metrics.

    Each question's answers are redrawn, as many as could be read, with their observed frequencies. A metric that noise
    attenuates, such as a correlation, has already been shifted by about `shift`.

    Returns:
        For each cell of sampled answers {"experiment", "condition", "metric", "sd", "shift"}. sd: standard deviation of
        the metric over REDRAWN redraws. shift: their mean minus the metric.
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
