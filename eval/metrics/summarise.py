"""Summarises records: metrics and effects, with the notes that their readers need."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from eval.metrics import sampled_answers, upper_bounds
from eval.metrics.measure import Cell, measure
from eval.metrics.sequential import Stop, add_stop_notes
from eval.metrics.version import METRICS_VERSION
from eval.types import Measured, Record


def summarise(
    cells: Mapping[Cell, list[Record]], seed: int, stops: Sequence[Stop] = ()
) -> tuple[Measured, dict[str, Any]]:
    """Measures the records of each experiment and condition.

    Args:
        cells: the records, in the order in which they were asked.
        seed: of the bootstrap, and of redrawing sampled answers.
        stops: where each job of an evaluation with --precision stopped.

    Returns:
        The results with their notes, and the fields of summary.json on how they were computed.
    """
    answered, left_out = sampled_answers.drop_unanswered(cells)
    measured = measure(answered, seed)
    measured.metrics = add_stop_notes(measured.metrics, stops)
    noise = sampled_answers.sampling_noise(answered, seed)
    sampled_answers.add_notes(measured, left_out, noise)
    bounds = upper_bounds.count_bounds(answered)
    upper_bounds.add_notes(measured, bounds)
    stopping = {"stopping": [dataclasses.asdict(s) for s in stops]} if stops else {}
    fields = sampled_answers.summary_fields(left_out, noise) | upper_bounds.summary_fields(bounds) | stopping
    return measured, {"metrics_version": METRICS_VERSION, **fields}
