"""Figures 1 to 8 of Ganguli et al. 2023 of our own results; each function gives the figure with its cells.

1 metric against size, 2 against RLHF step, 3 BBQ's categories against size, 5 size x step, 6 to 8 BBQ's accuracies and
its bias on disambiguated questions. Figure 4, Winogender's occupations, is in eval.views.figures.occupations.
"""

from __future__ import annotations

import math
import textwrap
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from eval.curves.cautions import CHANCE, SIGNS
from eval.curves.gather import size_name
from eval.curves.headline import BIAS, ending, name_for_all
from eval.experiments.registry import EXPERIMENTS
from eval.views.figures import cells as data
from eval.views.figures.cells import ABSENT, MEASURED, PAPER, Cell, no_mean
from eval.views.figures.frame import Asked, Drawn, chosen_told, complete, new, not_drawn, steps_told
from eval.views.figures.lines import SIZE, STEP, joined, position, runs
from eval.views.figures.panels import draw, finish, mark_references, nothing, rug, why
from eval.views.figures.style import GREY, SMALL


def at_sizes(asked: Asked, experiment: str, metric: str, category: str = "all") -> list[Cell]:
    """Every curve of known size at the step that stands for it."""
    steps = {c.name: data.nearest_step(c, experiment, asked.step) for c in asked.sized}
    return [
        data.cell(c, steps[c.name], experiment, condition, metric, category, asked.found)
        for condition in data.conditions(asked.curves, experiment)
        for c in asked.sized
    ]


def at_steps(asked: Asked, experiment: str, metric: str) -> list[Cell]:
    """Every checkpoint of the chosen curves."""
    return [
        data.cell(c, step, experiment, condition, metric, "all", asked.found)
        for condition in data.conditions(asked.curves, experiment)
        for c in asked.chosen
        for step in sorted({*c.steps, *c.unfinished})
    ]


def metric_of(asked: Asked, experiment: str, kind: str = BIAS) -> str:
    """The metric's name that all results have."""
    return name_for_all([s for c in asked.curves for s in c.summaries], experiment, asked.scoring, kind)


def label(experiment: str, metric: str) -> str:
    """Of the axis of values."""
    if experiment != "bbq":
        told = EXPERIMENTS[experiment].HEADLINE_LABEL
        return told.replace(" - ", " -\n") if " - " in told else textwrap.fill(told, 26)
    kind = "accuracy" if metric.startswith("accuracy") else "bias score"
    sub = {"bias score": " s_DIS" if "disambig" in metric else " s_AMB"}.get(kind, "")
    return f"{kind}{sub}\n({ending(metric)})"


def figure1(asked: Asked) -> Drawn:
    """Metric against model size, three panels."""
    figure = new(2.9)
    every: list[Cell] = []
    for axes, experiment in zip(figure.subplots(1, 3), PAPER, strict=True):
        metric = metric_of(asked, experiment)
        cells = at_sizes(asked, experiment, metric)
        axes.set_title(f"{EXPERIMENTS[experiment].TITLE}\n{steps_told(cells)}".strip())
        _panel(axes, cells, SIZE, label(experiment, metric), SIGNS[experiment], asked)
        every += cells
    says = (
        "Bias against model size (log axis), a line for each condition, after RLHF: of each model the checkpoint whose "
        "step is nearest to the paper's (800 for BBQ and admissions, 50 for Winogender), of one without RLHF the last"
        if asked.step is None
        else f"Bias against model size (log axis), a line for each condition, at step {asked.step}"
    )
    return complete(Drawn(1, "Bias against model size", figure, every, says + "."), asked, [(every, SIZE)])


def figure2(asked: Asked) -> Drawn:
    """Metric against RLHF step, largest model."""
    figure = new(2.9)
    every: list[Cell] = []
    for axes, experiment in zip(figure.subplots(1, 3), PAPER, strict=True):
        metric = metric_of(asked, experiment)
        cells = at_steps(asked, experiment, metric)
        axes.set_title(EXPERIMENTS[experiment].TITLE)
        _panel(axes, cells, STEP, label(experiment, metric), SIGNS[experiment], asked)
        every += cells
    says = f"Bias against the {asked.step_name}, a line for each condition: {chosen_told(asked)}."
    remarks = [f"model: {chosen_told(asked)}", *not_drawn(asked)]
    return complete(Drawn(2, f"Bias against {asked.step_name}", figure, every, says, remarks), asked, [(every, STEP)])


def figure3(asked: Asked) -> Drawn:
    """BBQ's bias on ambiguous questions by category against size."""
    metric = metric_of(asked, "bbq")
    parts = data.categories(asked.curves)
    columns = min(4, max(1, len(parts)))
    rows = max(1, math.ceil(len(parts) / columns))
    figure = new(0.75 + 1.75 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    every: list[Cell] = []
    for k, axes in enumerate(grid.flat):
        if k >= max(1, len(parts)):
            axes.set_axis_off()
            continue
        cells = at_sizes(asked, "bbq", metric, parts[k]) if parts else []
        axes.set_title((parts[k] if parts else "BBQ").replace("_", " "))
        _panel(axes, cells, SIZE, label("bbq", metric) if k % columns == 0 else "", "", asked)
        axes.tick_params(labelleft=k % columns == 0)
        every += cells
    says = (
        "BBQ's bias score on ambiguous questions by category, against model size (log axis), a line for each condition"
        f"; {SIGNS['bbq']}; {steps_told(every) or 'no step'}."
    )
    return complete(Drawn(3, "BBQ bias by category against model size", figure, every, says), asked, [(every, SIZE)])


def figure5(asked: Asked) -> Drawn:
    """Size x step: against size a line for each step; of one size, against step."""
    rlhf = [c for c in asked.sized if c.rlhf]
    along = SIZE if len({c.model_params for c in rlhf}) > 1 else STEP
    columns = list(dict.fromkeys(n for e in PAPER for n in data.conditions(asked.curves, e)))
    figure = new(5.4)
    grid = figure.subplots(len(PAPER), len(columns), squeeze=False, sharey="row")
    lines = sorted({s for c in rlhf for s in c.steps} if along == SIZE else {c.model_params or 0 for c in rlhf})
    colours = dict(
        zip(lines, matplotlib.colormaps["viridis_r"](np.linspace(1.0, 0.12, len(lines) or 1)[::-1]), strict=False)
    )
    every: list[Cell] = []
    for row, experiment in zip(grid, PAPER, strict=True):
        metric = metric_of(asked, experiment)
        for axes, condition in zip(row, columns, strict=True):
            if condition not in data.conditions(asked.curves, experiment):
                axes.set_axis_off()
                continue
            cells = [
                data.cell(c, s, experiment, condition, metric, "all", asked.found)
                for c in rlhf
                for s in (lines if along == SIZE else sorted({*c.steps, *c.unfinished}))
            ]
            _interaction(axes, cells, along, colours)
            short = EXPERIMENTS[experiment].TITLE.partition(",")[0]
            axes.set_title(f"{short}: {condition}", fontsize=7)
            axes.set_ylabel(label(experiment, metric) if axes is row[0] else "", fontsize=SMALL)
            axes.tick_params(labelleft=bool(axes is row[0]) and any(c.state != ABSENT for c in cells))
            every += cells
    names = {line: f"step {line}" if along == SIZE else size_name(line) for line in lines}
    shown = lines if len(lines) <= 12 else [lines[k] for k in np.linspace(0, len(lines) - 1, 12).round().astype(int)]
    handles = [Line2D([], [], color=tuple(colours[line]), marker="o", label=names[line]) for line in shown]
    says = (
        "How model size and RLHF act together: against size (log axis) a line for each RLHF step, a panel for each "
        "experiment and condition"
        if along == SIZE
        else "One model size only, so how size and RLHF act together cannot be seen: the RLHF step is on the axis"
    )
    drawn = Drawn(5, "Interaction of model size and RLHF", figure, every, f"{says}. Intervals: fig5.csv.")
    drawn.remarks += [f"no RLHF run, not drawn: {c.name}" for c in asked.curves if not c.rlhf]
    parts = [([c for c in every if (c.step if along == SIZE else c.model_params) == line], along) for line in lines]
    return complete(drawn, asked, parts, handles)


def figure6(asked: Asked) -> Drawn:
    """BBQ's accuracy on ambiguous questions."""
    return _other(asked, 6, "accuracy_ambig", "BBQ, ambiguous: accuracy")


def figure7(asked: Asked) -> Drawn:
    """BBQ's accuracy on disambiguated questions."""
    return _other(asked, 7, "accuracy_disambig", "BBQ, disambiguated: accuracy")


def figure8(asked: Asked) -> Drawn:
    """BBQ's bias score on disambiguated questions."""
    return _other(asked, 8, "bias_disambig", "BBQ, disambiguated: bias score s_DIS")


def _other(asked: Asked, number: int, kind: str, title: str) -> Drawn:
    metric = metric_of(asked, "bbq", kind)
    figure = new(2.9)
    left, right = figure.subplots(1, 2, sharey=True)
    level = 0.0 if kind == "bias_disambig" else CHANCE
    sign = SIGNS["bbq"] if kind == "bias_disambig" else "dashed: guessing, 1/3"
    cells = at_sizes(asked, "bbq", metric)
    left.set_title(f"Against size\n{steps_told(cells)}".strip())
    _panel(left, cells, SIZE, label("bbq", metric), sign, asked, level)
    steps = at_steps(asked, "bbq", metric)
    right.set_title(f"Against step\n{textwrap.shorten(chosen_told(asked), 60, placeholder=' ...')}")
    _panel(right, steps, STEP, "", sign, asked, level)
    right.tick_params(labelleft=any(c.state != ABSENT for c in steps))
    says = f"{title}, against model size (log axis) and against the {asked.step_name} ({chosen_told(asked)})."
    drawn = Drawn(number, title, figure, [*cells, *steps], says, not_drawn(asked))
    return complete(drawn, asked, [(cells, SIZE), (steps, STEP)])


def _panel(axes: Axes, cells: list[Cell], along: str, ylabel: str, sign: str, asked: Asked, level: float = 0.0) -> None:
    if cells and any(c.state != ABSENT for c in cells):
        draw(axes, cells, along)
        finish(axes, cells, along, sign, level)
        mark_references(axes, cells, along)
        axes.set_ylabel(ylabel, fontsize=SMALL)
    else:
        nothing(axes, why(cells) if along == STEP or asked.sized else "size not known")


def _interaction(axes: Axes, cells: list[Cell], along: str, colours: dict[Any, Any]) -> None:
    """Lines by step against size, or by size against step; policies of the same place by their mean, or, where they
    have none, by a mark each.
    """
    if all(c.state == ABSENT for c in cells):
        nothing(axes, why(cells) if cells else "no RLHF run of known size")
        return
    for line, colour in colours.items():
        mine = [c for c in cells if (c.step if along == SIZE else c.model_params) == line]
        for group in dict.fromkeys(c.group for c in mine):
            _mean_line(axes, [c for c in mine if c.group == group], along, tuple(colour), str(line))
    rug(axes, cells, [cells[0].condition], along, GREY)
    finish(axes, cells, along)


def _mean_line(axes: Axes, cells: list[Cell], along: str, colour: Any, line: str) -> None:
    """One line of policies that belong together, with its marks; against step their mean is of all or of none."""
    x = sorted({position(c, along) for c in cells})
    parts = [[c for c in cells if position(c, along) == p and c.state == MEASURED] for p in x]
    curves = {c.curve for c in cells if c.state == MEASURED}
    whole = [bool(p) and not no_mean(p) and (along == SIZE or len(p) == len(curves)) for p in parts]
    y = [
        float(np.mean([c.value for c in p if c.value is not None])) if w else np.nan
        for p, w in zip(parts, whole, strict=True)
    ]
    for start, stop in runs(parts) if joined(cells, along) else []:
        axes.plot(x[start:stop], y[start:stop], color=colour, linewidth=1.1, label=line)
    _dots(axes, x, y, [any(c.caution for c in p) for p in parts], colour, line)
    single = [c for p, w in zip(parts, whole, strict=True) for c in p if not w]
    at, values = [position(c, along) for c in single], [c.value or 0.0 for c in single]
    _dots(axes, at, values, [bool(c.caution) for c in single], colour, line)


def _dots(axes: Axes, x: list[float], y: list[float], doubtful: list[bool], colour: Any, line: str) -> None:
    """The marks of a line; hollow where a caution concerns the number."""
    for hollow in (False, True):
        chosen = [k for k, value in enumerate(y) if np.isfinite(value) and doubtful[k] == hollow]
        if chosen:
            axes.plot(
                [x[k] for k in chosen], [y[k] for k in chosen], linestyle="none", marker="o", markersize=3.2,
                markeredgecolor=colour, markerfacecolor="white" if hollow else colour, zorder=4,
                label=f"_{'hollow' if hollow else 'filled'} {line}",
            )  # fmt: skip
