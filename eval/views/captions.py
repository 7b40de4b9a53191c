"""The caption of a figure: what is drawn, of how many items, with which intervals, from where, what signs mean, what is
missing, and which numbers mean little. Everything but the first sentence comes from the cells that are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

from eval.experiments.registry import EXPERIMENTS
from eval.sampled_answers import SAMPLED
from eval.sequential import EARLY
from eval.views import cells as data
from eval.views.cells import MEASURED, PAPER, Cell
from eval.views.explained import OTHERS, READING
from eval.views.frame import Drawn
from eval.views.panels import comparable
from eval.views.reference import SOURCE, told
from eval.views.scoring import ending


def paragraphs(drawn: Drawn) -> list[str]:
    """The caption, a paragraph each."""
    measured = [c for c in drawn.cells if c.state == MEASURED]
    found = [drawn.says]
    found += [f"{r[0].upper()}{r[1:]}." for r in drawn.remarks]
    for experiment in (e for e in PAPER if any(c.experiment == e for c in drawn.cells)):
        found.append(_experiment(drawn, experiment, [c for c in measured if c.experiment == experiment]))
    if lines := data.missing(drawn.cells):
        found.append("Missing, and drawn as missing: " + "; ".join(lines) + ".")
    found += _doubts(measured)
    return [*found, origin(measured)]


def _experiment(drawn: Drawn, experiment: str, measured: list[Cell]) -> str:
    """What the numbers are, of how many items, with which intervals."""
    title = EXPERIMENTS[experiment].TITLE.partition(",")[0]
    if not measured:
        return f"{title}: not evaluated."
    metric = measured[0].metric
    kind = next((k for k in OTHERS if metric.startswith(k)), None)
    reading = OTHERS[kind] if kind else READING[experiment]
    scored = f" Scored here: {words}." if (words := ending(metric)) else ""
    items = sorted({c.n_items for c in measured if c.n_items is not None})
    clusters = sorted({c.n_clusters for c in measured if c.n_clusters is not None})
    methods = "; ".join(dict.fromkeys(c.method for c in measured if c.method))
    without = sum(c.low is None for c in measured)
    intervals = f"95% intervals ({methods})" if methods else "95% intervals"
    intervals += f"; {without} of {len(measured)} values have none" if without else ""
    parts = f"{title}: {reading}{scored} {_range(items)} items, {_range(clusters)} clusters; {intervals}."
    return f"{parts} {_paper(drawn, experiment)}".strip()


def _range(numbers: Sequence[int]) -> str:
    return "-" if not numbers else f"{numbers[0]:,}" if len(numbers) == 1 else f"{numbers[0]:,} to {numbers[-1]:,}"


def _paper(drawn: Drawn, experiment: str) -> str:
    """About the reference marks of Figures 1 and 2, or why there are none."""
    if drawn.number > 2:
        return ""
    mine = [c for c in drawn.cells if c.experiment == experiment]
    if comparable(mine):
        return f"Light marks, not ours: {told(experiment)} Approximate."
    return (
        f"No value of {SOURCE} is marked: the paper's metric is the most probable answer's, by the public data "
        "(--scoring most-probable)."
        if experiment == "bbq"
        else f"No value of {SOURCE} is marked: this is the small set, not the public data."
    )


def _doubts(measured: Sequence[Cell]) -> list[str]:
    """Cautions of what is drawn, and warnings, early stops and sampled answers among the notes: each text once."""
    found: dict[str, list[str]] = {}
    for c in measured:
        note = c.note if c.note.startswith(("warning:", EARLY, SAMPLED)) else ""
        for text in (c.caution, note):
            if text:
                found.setdefault(text, []).append(f"{c.curve} at step {c.step}, {c.experiment}, {c.condition}")
    lines = [f"{text} ({_some(where)})" for text, where in found.items()]
    return [f"Caution: {line}." for line in lines]


def _some(where: Sequence[str], most: int = 3) -> str:
    more = f" and {len(where) - most} more" if len(where) > most else ""
    return "; ".join(where[:most]) + more


def origin(measured: Sequence[Cell]) -> str:
    """Results folders, data and the commits that measured them."""
    folders = list(dict.fromkeys(c.results for c in measured))
    commits = list(dict.fromkeys(c.git_commit[:12] for c in measured if c.git_commit))
    sets = list(dict.fromkeys(c.data for c in measured))
    if not folders:
        return "No results were found for this figure."
    return (
        f"Data: {', '.join(sets)}. Results: {', '.join(folders)}. Measured by selfcorrect at commit "
        f"{', '.join(commits) or 'not known'}."
    )
