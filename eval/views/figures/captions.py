"""The caption of a figure.

It says what is drawn, of how many items, with which intervals, from which results, what the signs mean, what is missing
and which numbers mean little. Everything but the first sentence is computed from the cells that are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval.curves.cautions import OTHERS, READING
from eval.curves.gather import size_name
from eval.curves.headline import describe_scoring
from eval.experiments.registry import EXPERIMENTS
from eval.metrics.sampled_answers import SAMPLED
from eval.metrics.sequential import EARLY
from eval.views.figures import cells as data
from eval.views.figures.cells import MEASURED, PAPER, Cell, checkpoint_name, first_few
from eval.views.figures.frame import Drawn
from eval.views.figures.panels import SHIPPED, comparable, why_missing
from eval.views.figures.reference import SOURCE, describe_reference


def paragraphs(drawn: Drawn) -> list[str]:
    """The paragraphs of the caption."""
    measured = [c for c in drawn.cells if c.state == MEASURED]
    texts = [drawn.description]
    texts += [f"{r[0].upper()}{r[1:]}." for r in drawn.remarks]
    for experiment in (e for e in PAPER if any(c.experiment == e for c in drawn.cells)):
        texts.append(_experiment(drawn, experiment))
    if lines := data.missing(drawn.cells):
        texts.append("Missing, and drawn as missing: " + "; ".join(lines) + ".")
    texts += _doubts(measured)
    return [*texts, origin(measured)]


def document(entries: Sequence[dict[str, Any]], scoring: str) -> str:
    """The text of captions.md.

    Args:
        entries: an entry for each figure, as eval.views.figures.figures.write returns it.
        scoring: how BBQ was scored.
    """
    sections = ["# Figures", f"BBQ scored: {scoring}."]
    for entry in entries:
        sections += [f"## Figure {entry['figure']}: {entry['title']}", *entry["caption"]]
    return "\n\n".join(sections) + "\n"


def _experiment(drawn: Drawn, experiment: str) -> str:
    """What the numbers of an experiment are, of how many items, and with which intervals."""
    cells = [c for c in drawn.cells if c.experiment == experiment]
    measured = [c for c in cells if c.state == MEASURED]
    title = EXPERIMENTS[experiment].TITLE.partition(",")[0]
    if not measured:
        return f"{title}: {why_missing(cells)}."
    metric = measured[0].metric
    kind = next((k for k in OTHERS if metric.startswith(k)), None)
    reading = OTHERS[kind] if kind else READING[experiment]
    scored = f" Scored here: {words}." if (words := describe_scoring(metric)) else ""
    methods = "; ".join(dict.fromkeys(c.method for c in measured if c.method))
    intervals = f"95% intervals ({methods})" if methods else "95% intervals"
    text = f"{title}: {reading}{scored} Items (clusters): {_counts(measured)}. {intervals}."
    return f"{text} {_paper(drawn, experiment)}".strip()


def _counts(measured: Sequence[Cell]) -> str:
    """Numbers of items and clusters, such as 'Q 180 (45), Q+IF+CoT 15 to 20 (15)'."""
    counts = []
    for name in dict.fromkeys(c.condition for c in measured):
        cells = [c for c in measured if c.condition == name]
        items, clusters = (_range([getattr(c, n) for c in cells]) for n in ("n_items", "n_clusters"))
        counts.append(f"{name} {items} ({clusters})")
    return ", ".join(counts)


def _range(numbers: Sequence[int | None]) -> str:
    """'15', '15 to 20', or '-' where no number is known."""
    values = sorted({n for n in numbers if n is not None})
    return "-" if not values else f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def _paper(drawn: Drawn, experiment: str) -> str:
    """What the reference marks of Figures 1 and 2 are, or why there are none."""
    if drawn.number > 2:
        return ""
    cells = [c for c in drawn.cells if c.experiment == experiment]
    if comparable(cells):
        where = "marked where the axis reaches" if experiment == "admissions" else "the light marks"
        return f"Not ours, approximate ({where}): {describe_reference(experiment)}"
    if any(c.data == SHIPPED for c in cells):
        return f"No value of {SOURCE} is marked: this is the small set, not the public data."
    if experiment == "bbq" and any(c.state == MEASURED for c in cells):
        return f"No value of {SOURCE} is marked: its metric is the most probable answer's (--scoring most-probable)."
    return ""


def _doubts(measured: Sequence[Cell]) -> list[str]:
    """Cautions on what is drawn (one example, and where else they hold), warnings, early stops and sampled answers."""
    lines = []
    for experiment in dict.fromkeys(c.experiment for c in measured if c.caution):
        first, *others = [c for c in measured if c.experiment == experiment and c.caution]
        also = f" So too: {first_few([_place(c) for c in others], 12)}." if others else ""
        lines.append(f"Caution, drawn hollow: {first.caution} ({_place(first)}).{also}")
    notes: dict[str, list[str]] = {}
    for c in measured:
        if c.note.startswith(("warning:", EARLY, SAMPLED)):
            notes.setdefault(c.note, []).append(f"{c.experiment}, {_place(c)}")
    return lines + [f"Note: {note} ({first_few(where, 3)})." for note, where in notes.items()]


def _place(cell: Cell) -> str:
    """Checkpoint, condition and category of a cell, in words."""
    return f"{checkpoint_name(cell)} {cell.condition}" + ("" if cell.category == "all" else f" {cell.category}")


def origin(measured: Sequence[Cell]) -> str:
    """Where the numbers come from: results folders, data and the commits that measured them."""
    folders = list(dict.fromkeys(c.results for c in measured))
    commits = list(dict.fromkeys(c.git_commit[:12] for c in measured if c.git_commit))
    sets = list(dict.fromkeys(c.data for c in measured))
    if not folders:
        return "No results were found for this figure."
    models = dict.fromkeys(f"{c.curve}: {c.model}, {size_name(c.model_params)}" for c in measured)
    return (
        f"Checkpoints: {'; '.join(data.checkpoints(measured))}. Models: {'; '.join(models)}. "
        f"Data: {', '.join(sets)}. Results: {', '.join(folders)}. Measured by selfcorrect at commit "
        f"{', '.join(commits) or 'not known'}."
    )
