"""The numbers of a figure, each with its origin, and the places where a number is missing.

A cell is measured, undefined (asked, but the metric has no value) or not evaluated. Figures are drawn from cells, and
their CSV files hold the same cells, so what is drawn is what is written.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from eval.curves import kinds
from eval.curves.cautions import Caution, caution_of
from eval.curves.gather import Curve, find
from eval.curves.settings import differing, question_settings
from eval.experiments.bbq_metrics import MEAN
from eval.experiments.conditions import INVERSE
from eval.experiments.registry import EXPERIMENTS
from eval.views.figures.reference import PAPER_STEPS

MEASURED, UNDEFINED, ABSENT = "measured", "undefined", "not evaluated"
COT = "Q+IF+CoT"
ANOTHER_PAIR = "asked, but not Black against white"
"""For admissions that compared other races, or the sexes."""
PAPER = ("bbq", "winogender", "admissions")
"""The experiments of the paper's figures, in its order."""


@dataclass(frozen=True)
class Cell:
    """A metric of a checkpoint under a condition, or its absence. The fields are the columns of the CSV files.

    Attributes:
        model_params: number of parameters; None where unknown.
        step: None where the curve has no checkpoint that could be shown.
        metric: the metric's name in summary.json.
        caution: why the number means little; '' where it does not.
        results: the folder of summary.json.
        kind: the model's name without its size.
        asked: the settings that determine the questions, as JSON; '' where nothing was asked.
    """

    experiment: str
    condition: str
    category: str
    curve: str
    model: str
    algorithm: str
    seed: int | None
    model_params: int | None
    step: int | None
    step_name: str
    metric: str
    state: str
    value: float | None
    low: float | None
    high: float | None
    n_items: int | None
    n_clusters: int | None
    method: str
    note: str
    caution: str
    data: str
    results: str
    git_commit: str
    kind: str
    asked: str

    @property
    def group(self) -> tuple[str, str]:
        """(algorithm, kind of model): one line, or one mean, is only ever of policies with the same group."""
        return self.algorithm, self.kind

    @property
    def why_missing(self) -> str:
        """Why there is no number, in words."""
        return self.note if self.state == ABSENT and self.note else self.state

    @property
    def place(self) -> tuple[str, str]:
        """(experiment, category): the panel of the cell in figures with a panel for each."""
        return self.experiment, self.category


def cell(
    curve: Curve,
    step: int | None,
    experiment: str,
    condition: str,
    metric: str,
    category: str,
    cautions: Sequence[Caution],
) -> Cell:
    """The cell of a curve at a step.

    Args:
        step: None makes a cell without a number.
        cautions: the cautions of all curves.
    """
    summary = None if step is None else curve.at(step)
    m = None if summary is None else find(summary, experiment, condition, metric, category)
    values = m or {"note": _why_missing(curve, step, experiment, condition)}
    state = ABSENT if m is None else UNDEFINED if m["value"] is None else MEASURED
    caution = caution_of(cautions, curve.name, step or 0, m) if m is not None and "accuracy" not in metric else None
    return Cell(
        experiment, condition, category, curve.name, model_name(curve), curve.algorithm or "", curve.seed,
        curve.model_params, step, curve.step_name, metric, state,
        values.get("value"), values.get("low"), values.get("high"), values.get("n_items"), values.get("n_clusters"),
        values.get("method", ""), values.get("note", ""), caution.text if caution else "",
        summary["data"] if summary else "", summary["results"] if summary else "",
        str(summary.get("git_commit") or "") if summary else "", kinds.kind(curve),
        json.dumps(question_settings(summary, experiment, condition)) if summary and m is not None else "",
    )  # fmt: skip


def _why_missing(curve: Curve, step: int | None, experiment: str, condition: str) -> str:
    """Why a number is missing; '' where it simply was not asked."""
    summary = None if step is None else curve.at(step)
    if summary is None:
        return curve.unfinished.get(step, "") if step is not None else ""
    evaluated = any((m["experiment"], m["condition"]) == (experiment, condition) for m in summary["metrics"])
    return ANOTHER_PAIR if evaluated and experiment == "admissions" else ""


def model_name(curve: Curve) -> str:
    """The model as the user gave it. A folder of this machine is shortened to the name that all views use."""
    return kinds.model_name(curve) if Path(curve.model).is_absolute() else curve.model


def nearest_step(curve: Curve, experiment: str, requested: int | None = None) -> int | None:
    """The step that represents a curve where model sizes are compared.

    Args:
        requested: the step that the user asked for; None chooses one.

    Returns:
        `requested` if the experiment was evaluated there, else None. Without a request: for RLHF runs, the evaluated
        step nearest to the paper's (the smaller of two); for other curves, the last evaluated step. None where the
        experiment was not evaluated.
    """
    steps = [s["step"] for s in curve.summaries if any(m["experiment"] == experiment for m in s["metrics"])]
    if requested is not None:
        return requested if requested in steps else None
    if not steps:
        return None
    return min(steps, key=lambda s: (abs(s - PAPER_STEPS[experiment]), s)) if curve.rlhf else steps[-1]


def conditions(curves: Sequence[Curve], experiment: str) -> list[str]:
    """The paper's conditions of an experiment, evaluated or not, and the misuse probe where it was asked."""
    evaluated = {
        m["condition"] for c in curves for s in c.summaries for m in s["metrics"] if m["experiment"] == experiment
    }
    return [c for c in EXPERIMENTS[experiment].CONDITIONS if c != INVERSE or c in evaluated]


def categories(curves: Sequence[Curve]) -> list[str]:
    """BBQ's categories among the results, in alphabetical order."""
    names = {m["category"] for c in curves for s in c.summaries for m in s["metrics"] if m["experiment"] == "bbq"}
    return sorted(names - {"all", MEAN})


def largest(curves: Sequence[Curve]) -> list[Curve]:
    """The curves to draw against the step.

    These are all curves of the largest model that was evaluated at several steps, or of the largest model where none
    was. Where no size is known it is the first curve. RLHF runs are preferred, and all chosen curves count the same
    kind of steps.
    """
    pool = [c for c in curves if c.rlhf] or list(curves)
    several = [c for c in pool if len(c.steps) > 1] or pool
    sized = [c for c in several if c.model_params is not None]
    top = max((c.model_params or 0 for c in sized), default=None)
    return several[:1] if top is None else one_axis([c for c in sized if c.model_params == top])


def one_axis(curves: Sequence[Curve]) -> list[Curve]:
    """The curves whose steps fit on one axis: RLHF runs if there are any, else those that count the same as the
    first curve.
    """
    rlhf = [c for c in curves if c.rlhf]
    return rlhf or [c for c in curves if c.step_name == curves[0].step_name]


def questions_differ(curves: Sequence[Curve], experiment: str) -> list[str]:
    """The settings that change an experiment's questions and differ among the results that have the experiment.

    Numbers of curves that differ in them do not belong on one line.
    """
    settings: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for summary in (s for c in curves for s in c.summaries):
        conditions = {m["condition"] for m in summary["metrics"] if m["experiment"] == experiment}
        for reasoned in (False, True) if COT in conditions else (False,) if conditions else ():
            settings[reasoned].append(question_settings(summary, experiment, COT if reasoned else ""))
    return list(dict.fromkeys(name for group in settings.values() for name in differing(group)))


def cells_differ_in(cells: Iterable[Cell]) -> list[str]:
    """The settings in which the questions behind these cells differ. The cells are of one condition."""
    settings = {c.asked for c in cells if c.asked}
    return differing([json.loads(a) for a in sorted(settings)]) if len(settings) > 1 else []


def no_mean(cells: Sequence[Cell]) -> str:
    """Why the numbers of several policies must not be averaged, in words; '' where they may be."""
    measured = [c for c in cells if c.state == MEASURED]
    if differ := cells_differ_in(measured):
        return f"not asked the same ({', '.join(differ)})"
    return "not at the same step" if len({c.step for c in measured}) > 1 else ""


def missing(cells: Iterable[Cell]) -> list[str]:
    """Lines that say what is missing.

    There is one for every experiment and condition that lacks something, with the categories and curves, and one for
    every curve that was not evaluated at all at a step of others.
    """
    cells_without_value: dict[tuple[str, str, str, str], list[Cell]] = {}
    steps: dict[tuple[str, str], set[int]] = {}
    for c in cells:
        if c.step is not None and not c.results:
            steps.setdefault((c.curve, c.why_missing), set()).add(c.step)
        elif c.state != MEASURED:
            cells_without_value.setdefault((c.experiment, c.condition, c.why_missing, c.category), []).append(c)
    groups: dict[tuple[str, str, str], list[str]] = {}
    for (experiment, condition, state, category), where in cells_without_value.items():
        line = f"{condition}: {state} for {first_few(checkpoints(where), 6)}"
        groups.setdefault((experiment, state, line), []).append(category)
    lines = [
        f"{experiment}{'' if names == ['all'] else f' ({first_few(names, 11)})'}, {line}"
        for (experiment, _, line), names in groups.items()
    ]
    return lines + [f"{name}: {why} at step {', '.join(map(str, sorted(s)))}" for (name, why), s in steps.items()]


def checkpoints(cells: Iterable[Cell]) -> list[str]:
    """The checkpoints of the cells for each curve: 'run at step 60', 'other at steps 0, 60', or only the curve's
    name where no step is known.
    """
    steps: dict[str, set[int]] = {}
    for c in cells:
        steps.setdefault(c.curve, set()).update([] if c.step is None else [c.step])
    return [
        f"{curve} at step{'s' * (len(numbers) > 1)} {', '.join(map(str, sorted(numbers)))}" if numbers else curve
        for curve, numbers in steps.items()
    ]


def checkpoint_name(cell: Cell) -> str:
    """'run at step 60', or only the curve's name where the step is not known."""
    return cell.curve if cell.step is None else f"{cell.curve} at step {cell.step}"


def first_few(where: Sequence[str], most: int) -> str:
    """The first `most` names, and how many more there are."""
    more = f" and {len(where) - most} more" if len(where) > most else ""
    return ", ".join(where[:most]) + more


def as_csv(rows: Sequence[Any]) -> str:
    """Dataclass instances of one type as CSV with a header row; None becomes an empty field."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if rows:
        names = [f.name for f in fields(rows[0])]
        writer.writerow(names)
        writer.writerows([["" if (v := getattr(row, n)) is None else v for n in names] for row in rows])
    return out.getvalue()
