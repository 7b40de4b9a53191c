"""The questions that several checkpoints were all asked, under Q and under an instruction, and the metrics on them.

Records are read folder by folder and not kept. Of each folder only the headline quantities and the names of the
questions stay. A folder is read again where it was asked more than the others, or where its item weights differ: a
profile of admissions weighs its students among the rows that --limit takes. One set of weights is used for all folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.curves.gather import find
from eval.curves.headline import metric_names
from eval.experiments.conditions import CONDITIONS
from eval.experiments.registry import EXPERIMENTS
from eval.metrics.measure import CONTROL
from eval.metrics.sampled_answers import drop_unanswered
from eval.runner.store import Store
from eval.stats.bootstrap import Quantity
from eval.types import Record

Question = tuple[str, int]
"""(item, order)."""


class NoSharedQuestions(ValueError):
    """Nothing can be compared; the text says why."""


@dataclass(frozen=True)
class Pair:
    """The headline quantity of one checkpoint under Q and under the instruction, on the same questions."""

    before: Quantity
    after: Quantity


@dataclass
class FolderQuestions:
    """What is kept of a results folder.

    Attributes:
        questions: the questions asked under both Q and the condition, by (experiment, condition).
        pairs: the pair measured on them, by (experiment, condition).
        weights: by experiment, the weights of items where they are not 1.
    """

    folder: Path
    questions: dict[tuple[str, str], frozenset[Question]] = field(default_factory=dict)
    pairs: dict[tuple[str, str], Pair | None] = field(default_factory=dict)
    weights: dict[str, dict[str, float]] = field(default_factory=dict)

    def item_weights(self, experiment: str, shared: frozenset[Question]) -> dict[str, float]:
        """The weights of the items that the shared questions are about."""
        weights = self.weights.get(experiment, {})
        return {item: weights.get(item, 1.0) for item in sorted({item for item, _ in shared})}


def metric_name(experiment: str, summary: dict[str, Any], condition: str, measured: str) -> str:
    """The name that the summary has for what was measured.

    It is the symmetrised one where the summary is symmetrised and the shared questions are not.
    """
    wanted = (measured, f"{measured}_symmetrised")
    return next((n for n in wanted if find(summary, experiment, condition, n)), measured)


def shared_pairs(
    folders: Sequence[Path], experiment: str, condition: str, scoring: str, cache: dict[Path, FolderQuestions]
) -> list[Pair] | None:
    """Measures each folder on the questions that all folders were asked under both conditions.

    Where item weights differ, those of the smallest --limit are used for all, since they count the students whom all
    were asked about.

    Args:
        cache: keeps what was read of each folder.

    Returns:
        The pair of each folder; None where no folder was asked under the condition.

    Raises:
        NoSharedQuestions: only some folders were asked, or they share no question.
    """
    entries = [cache.setdefault(f, FolderQuestions(f)) for f in folders]
    for entry in entries:
        if not entry.questions:
            _read(entry, scoring)
    cell = (experiment, condition)
    without = [entry.folder for entry in entries if cell not in entry.questions]
    if len(without) == len(entries):
        return None
    if without:
        raise NoSharedQuestions(
            f"{len(without)} of {len(entries)} checkpoints were not asked, the first being {without[0]}"
        )
    shared = frozenset.intersection(*(entry.questions[cell] for entry in entries))
    if not shared:
        raise NoSharedQuestions("the checkpoints share no question")
    weights = min((entry.item_weights(experiment, shared) for entry in entries), key=lambda w: sum(w.values()))
    pairs = []
    for entry in entries:
        pair = entry.pairs[cell]
        if entry.questions[cell] != shared or entry.item_weights(experiment, shared) != weights:
            pair = _measure(_cells(entry.folder), experiment, condition, scoring, shared, weights)
        if pair is None:
            raise NoSharedQuestions(
                f"{' or '.join(metric_names(experiment, scoring))} is not measured in {entry.folder}"
            )
        pairs.append(pair)
    if len({p.before.name for p in pairs}) > 1:
        raise NoSharedQuestions("the checkpoints were asked in different orders of the options")
    return pairs


def _cells(folder: Path) -> dict[tuple[str, str], dict[Question, Record]]:
    """The answers of a folder by (experiment, condition).

    Questions without a readable answer are left out, and so are those with weight 0, which are kept for a larger
    --limit.
    """
    cells: dict[tuple[str, str], list[Record]] = {}
    for record in Store(folder).read():
        condition = record["condition"]
        if record["weight"] == 0:
            continue
        if condition == CONTROL or (condition in CONDITIONS and CONDITIONS[condition].instruction):
            cells.setdefault((record["experiment"], condition), []).append(record)
    answered_cells, _ = drop_unanswered(cells)
    return {cell: {(r["item"], r["order"]): r for r in records} for cell, records in answered_cells.items()}


def _read(entry: FolderQuestions, scoring: str) -> None:
    """Reads a folder and fills its entry."""
    cells = _cells(entry.folder)
    for experiment, condition in cells:
        if condition == CONTROL or (experiment, CONTROL) not in cells:
            continue
        shared = frozenset(cells[experiment, condition].keys() & cells[experiment, CONTROL].keys())
        entry.questions[experiment, condition] = shared
        records = cells[experiment, CONTROL].values()
        entry.weights[experiment] = {r["item"]: r["weight"] for r in records if r["weight"] != 1}
        if shared:
            weights = entry.item_weights(experiment, shared)
            entry.pairs[experiment, condition] = _measure(cells, experiment, condition, scoring, shared, weights)


def _measure(
    cells: dict[tuple[str, str], dict[Question, Record]], experiment: str, condition: str, scoring: str,
    shared: frozenset[Question], weights: dict[str, float],
) -> Pair | None:  # fmt: skip
    """The headline quantities on the shared questions, in the questions' order; None where one is missing."""
    pair = []
    for name in (CONTROL, condition):
        records = [{**cells[experiment, name][q], "weight": weights[q[0]]} for q in sorted(shared)]
        quantities = {q.name: q for q in EXPERIMENTS[experiment].measure(records) if q.category == "all" and q.reported}
        pair += [quantities[n] for n in metric_names(experiment, scoring) if n in quantities][:1]
    return Pair(*pair) if len(pair) == 2 else None
