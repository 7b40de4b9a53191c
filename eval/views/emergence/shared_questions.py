"""The questions that several checkpoints were all asked, under Q and an instruction, and what is measured on them.

Records are read folder by folder and not kept: of each folder the headline quantities and the names of the questions
stay, and a folder is read again only where it was asked more than the others, or with other weights (a profile of
admissions weighs its students among the rows that --limit takes): one set of weights is taken for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.curves.gather import find
from eval.curves.headline import names
from eval.experiments.conditions import CONDITIONS
from eval.experiments.registry import EXPERIMENTS
from eval.metrics.measure import CONTROL
from eval.metrics.sampled_answers import drop_unanswered
from eval.runner.store import Store
from eval.stats.bootstrap import Quantity
from eval.types import Record

Question = tuple[str, int]
"""(item, order)."""


class NoShared(ValueError):
    """Nothing can be compared; the text says why."""


@dataclass(frozen=True)
class Pair:
    """The headline quantity of one checkpoint under Q and under the instruction, on the same questions."""

    before: Quantity
    after: Quantity


@dataclass
class Asked:
    """What is kept of a folder, by (experiment, condition): the questions asked, and the pair measured on them.

    weights: of the items, by experiment, where it is not 1.
    """

    folder: Path
    questions: dict[tuple[str, str], frozenset[Question]] = field(default_factory=dict)
    pairs: dict[tuple[str, str], Pair | None] = field(default_factory=dict)
    weights: dict[str, dict[str, float]] = field(default_factory=dict)

    def of_shared(self, experiment: str, shared: frozenset[Question]) -> dict[str, float]:
        """The weights of the items that the shared questions are of."""
        known = self.weights.get(experiment, {})
        return {item: known.get(item, 1.0) for item in sorted({item for item, _ in shared})}


def metric_name(experiment: str, summary: dict[str, Any], condition: str, measured: str) -> str:
    """The summary's name of what was measured: symmetrised where the summary is and the shared questions are not."""
    wanted = (measured, f"{measured}_symmetrised")
    return next((n for n in wanted if find(summary, experiment, condition, n)), measured)


def shared_pairs(
    folders: Sequence[Path], experiment: str, condition: str, scoring: str, asked: dict[Path, Asked]
) -> list[Pair] | None:
    """The pair of each folder, on the questions asked of all under both conditions; None where no folder was asked
    under the condition. `asked` keeps what was read. Where weights differ, those of the smallest --limit are taken for
    all: they count the students whom all were asked about.

    Raises NoShared where only some were, or share no question.
    """
    known = [asked.setdefault(f, Asked(f)) for f in folders]
    for one in known:
        if not one.questions:
            _read(one, scoring)
    cell = (experiment, condition)
    without = [one.folder for one in known if cell not in one.questions]
    if len(without) == len(known):
        return None
    if without:
        raise NoShared(f"{len(without)} of {len(known)} checkpoints were not asked, the first being {without[0]}")
    shared = frozenset.intersection(*(one.questions[cell] for one in known))
    if not shared:
        raise NoShared("the checkpoints share no question")
    weights = min((one.of_shared(experiment, shared) for one in known), key=lambda w: sum(w.values()))
    found = []
    for one in known:
        pair = one.pairs[cell]
        if one.questions[cell] != shared or one.of_shared(experiment, shared) != weights:
            pair = _measured(_cells(one.folder), experiment, condition, scoring, shared, weights)
        if pair is None:
            raise NoShared(f"{' or '.join(names(experiment, scoring))} is not measured in {one.folder}")
        found.append(pair)
    if len({p.before.name for p in found}) > 1:
        raise NoShared("the checkpoints were asked in different orders of the options")
    return found


def _cells(folder: Path) -> dict[tuple[str, str], dict[Question, Record]]:
    """The answers of a folder by experiment and condition, without questions that have no readable answer, or weigh
    nothing (kept for a larger --limit).
    """
    cells: dict[tuple[str, str], list[Record]] = {}
    for record in Store(folder).read():
        condition = record["condition"]
        if record["weight"] == 0:
            continue
        if condition == CONTROL or (condition in CONDITIONS and CONDITIONS[condition].instruction):
            cells.setdefault((record["experiment"], condition), []).append(record)
    found, _ = drop_unanswered(cells)
    return {cell: {(r["item"], r["order"]): r for r in records} for cell, records in found.items()}


def _read(one: Asked, scoring: str) -> None:
    cells = _cells(one.folder)
    for experiment, condition in cells:
        if condition == CONTROL or (experiment, CONTROL) not in cells:
            continue
        shared = frozenset(cells[experiment, condition].keys() & cells[experiment, CONTROL].keys())
        one.questions[experiment, condition] = shared
        records = cells[experiment, CONTROL].values()
        one.weights[experiment] = {r["item"]: r["weight"] for r in records if r["weight"] != 1}
        if shared:
            weights = one.of_shared(experiment, shared)
            one.pairs[experiment, condition] = _measured(cells, experiment, condition, scoring, shared, weights)


def _measured(
    cells: dict[tuple[str, str], dict[Question, Record]], experiment: str, condition: str, scoring: str,
    shared: frozenset[Question], weights: dict[str, float],
) -> Pair | None:  # fmt: skip
    """The headline quantities on the shared questions, in their order; None where there is none."""
    pair = []
    for name in (CONTROL, condition):
        records = [{**cells[experiment, name][q], "weight": weights[q[0]]} for q in sorted(shared)]
        whole = {q.name: q for q in EXPERIMENTS[experiment].measure(records) if q.category == "all" and q.reported}
        pair += [whole[n] for n in names(experiment, scoring) if n in whole][:1]
    return Pair(*pair) if len(pair) == 2 else None
