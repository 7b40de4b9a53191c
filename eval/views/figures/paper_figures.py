"""Figures 1 to 8 of Ganguli et al. 2023, for our own results. Each function returns the figure with its cells.

1: metric against size. 2: metric against RLHF step. 3: BBQ's categories against size. 5: size x step. 6 to 8: BBQ's
accuracies, and its bias on disambiguated questions. Figure 4, Winogender's occupations, is in
eval.views.figures.occupations.
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
from eval.curves.headline import BIAS, describe_scoring, shared_metric_name
from eval.experiments.registry import EXPERIMENTS
from eval.views.figures import cells as data
from eval.views.figures.cells import ABSENT, MEASURED, PAPER, Cell, no_mean
from eval.views.figures.frame import Drawn, FigureRequest, complete, describe_chosen, format_steps, new, not_drawn
from eval.views.figures.lines import SIZE, STEP, joined, position, segments
from eval.views.figures.panels import draw, draw_empty, finish, mark_references, rug, why_missing
from eval.views.figures.style import GREY, SMALL


def at_sizes(request: FigureRequest, experiment: str, metric: str, category: str = "all") -> list[Cell]:
    """The cells of every curve of known size, at the step that represents it."""
    steps = {c.name: data.nearest_step(c, experiment, request.step) for c in request.sized}
    return [
        data.cell(c, steps[c.name], experiment, condition, metric, category, request.cautions)
        for condition in data.conditions(request.curves, experiment)
        for c in request.sized
    ]


def at_steps(request: FigureRequest, experiment: str, metric: str) -> list[Cell]:
    """The cells of every checkpoint of the chosen curves."""
    return [
        data.cell(c, step, experiment, condition, metric, "all", request.cautions)
        for condition in data.conditions(request.curves, experiment)
        for c in request.chosen
        for step in sorted({*c.steps, *c.unfinished})
    ]


def metric_of(request: FigureRequest, experiment: str, kind: str = BIAS) -> str:
    """The metric name of an experiment that all results have."""
    return shared_metric_name([s for c in request.curves for s in c.summaries], experiment, request.scoring, kind)


def label(experiment: str, metric: str) -> str:
    """The label of the value axis."""
    if experiment != "bbq":
        text = EXPERIMENTS[experiment].HEADLINE_LABEL
        return text.replace(" - ", " -\n") if " - " in text else textwrap.fill(text, 26)
    kind = "accuracy" if metric.startswith("accuracy") else "bias score"
    sub = {"bias score": " s_DIS" if "disambig" in metric else " s_AMB"}.get(kind, "")
    return f"{kind}{sub}\n({describe_scoring(metric)})"


def figure1(request: FigureRequest) -> Drawn:
    """Metric against model size, three panels."""
    figure = new(2.9)
    all_cells: list[Cell] = []
    for axes, experiment in zip(figure.subplots(1, 3), PAPER, strict=True):
        metric = metric_of(request, experiment)
        cells = at_sizes(request, experiment, metric)
        axes.set_title(f"{EXPERIMENTS[experiment].TITLE}\n{format_steps(cells)}".strip())
        _panel(axes, cells, SIZE, label(experiment, metric), SIGNS[experiment], request)
        all_cells += cells
    description = (
        "Bias against model size (log axis), a line for each condition, after RLHF: of each model the checkpoint whose "
        "step is nearest to the paper's (800 for BBQ and admissions, 50 for Winogender), of one without RLHF the last"
        if request.step is None
        else f"Bias against model size (log axis), a line for each condition, at step {request.step}"
    )
    return complete(
        Drawn(1, "Bias against model size", figure, all_cells, description + "."), request, [(all_cells, SIZE)]
    )


def figure2(request: FigureRequest) -> Drawn:
    """Metric against RLHF step, for the largest model."""
    figure = new(2.9)
    all_cells: list[Cell] = []
    for axes, experiment in zip(figure.subplots(1, 3), PAPER, strict=True):
        metric = metric_of(request, experiment)
        cells = at_steps(request, experiment, metric)
        axes.set_title(EXPERIMENTS[experiment].TITLE)
        _panel(axes, cells, STEP, label(experiment, metric), SIGNS[experiment], request)
        all_cells += cells
    description = f"Bias against the {request.step_name}, a line for each condition: {describe_chosen(request)}."
    remarks = [f"model: {describe_chosen(request)}", *not_drawn(request)]
    return complete(
        Drawn(2, f"Bias against {request.step_name}", figure, all_cells, description, remarks),
        request,
        [(all_cells, STEP)],
    )


def figure3(request: FigureRequest) -> Drawn:
    """BBQ's bias on ambiguous questions by category, against size."""
    metric = metric_of(request, "bbq")
    categories = data.categories(request.curves)
    columns = min(4, max(1, len(categories)))
    rows = max(1, math.ceil(len(categories) / columns))
    figure = new(0.75 + 1.75 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    all_cells: list[Cell] = []
    for k, axes in enumerate(grid.flat):
        if k >= max(1, len(categories)):
            axes.set_axis_off()
            continue
        cells = at_sizes(request, "bbq", metric, categories[k]) if categories else []
        axes.set_title((categories[k] if categories else "BBQ").replace("_", " "))
        _panel(axes, cells, SIZE, label("bbq", metric) if k % columns == 0 else "", "", request)
        axes.tick_params(labelleft=k % columns == 0)
        all_cells += cells
    description = (
        "BBQ's bias score on ambiguous questions by category, against model size (log axis), a line for each condition"
        f"; {SIGNS['bbq']}; {format_steps(all_cells) or 'no step'}."
    )
    return complete(
        Drawn(3, "BBQ bias by category against model size", figure, all_cells, description),
        request,
        [(all_cells, SIZE)],
    )


def figure5(request: FigureRequest) -> Drawn:
    """Size x step: against size, a line for each step; with a single size, against the step."""
    rlhf = [c for c in request.sized if c.rlhf]
    along = SIZE if len({c.model_params for c in rlhf}) > 1 else STEP
    columns = list(dict.fromkeys(n for e in PAPER for n in data.conditions(request.curves, e)))
    figure = new(5.4)
    grid = figure.subplots(len(PAPER), len(columns), squeeze=False, sharey="row")
    lines = sorted({s for c in rlhf for s in c.steps} if along == SIZE else {c.model_params or 0 for c in rlhf})
    colours = dict(
        zip(lines, matplotlib.colormaps["viridis_r"](np.linspace(1.0, 0.12, len(lines) or 1)[::-1]), strict=False)
    )
    all_cells: list[Cell] = []
    for row, experiment in zip(grid, PAPER, strict=True):
        metric = metric_of(request, experiment)
        for axes, condition in zip(row, columns, strict=True):
            if condition not in data.conditions(request.curves, experiment):
                axes.set_axis_off()
                continue
            cells = [
                data.cell(c, s, experiment, condition, metric, "all", request.cautions)
                for c in rlhf
                for s in (lines if along == SIZE else sorted({*c.steps, *c.unfinished}))
            ]
            _interaction(axes, cells, along, colours)
            short = EXPERIMENTS[experiment].TITLE.partition(",")[0]
            axes.set_title(f"{short}: {condition}", fontsize=7)
            axes.set_ylabel(label(experiment, metric) if axes is row[0] else "", fontsize=SMALL)
            axes.tick_params(labelleft=bool(axes is row[0]) and any(c.state != ABSENT for c in cells))
            all_cells += cells
    names = {line: f"step {line}" if along == SIZE else size_name(line) for line in lines}
    shown = lines if len(lines) <= 12 else [lines[k] for k in np.linspace(0, len(lines) - 1, 12).round().astype(int)]
    handles = [Line2D([], [], color=tuple(colours[line]), marker="o", label=names[line]) for line in shown]
    description = (
        "How model size and RLHF act together: against size (log axis) a line for each RLHF step, a panel for each "
        "experiment and condition"
        if along == SIZE
        else "One model size only, so how size and RLHF act together cannot be seen: the RLHF step is on the axis"
    )
    drawn = Drawn(5, "Interaction of model size and RLHF", figure, all_cells, f"{description}. Intervals: fig5.csv.")
    drawn.remarks += [f"no RLHF run, not drawn: {c.name}" for c in request.curves if not c.rlhf]
    cells_by_axis = [
        ([c for c in all_cells if (c.step if along == SIZE else c.model_params) == line], along) for line in lines
    ]
    return complete(drawn, request, cells_by_axis, handles)


def figure6(request: FigureRequest) -> Drawn:
    """BBQ's accuracy on ambiguous questions."""
    return _other(request, 6, "accuracy_ambig", "BBQ, ambiguous: accuracy")


def figure7(request: FigureRequest) -> Drawn:
    """BBQ's accuracy on disambiguated questions."""
    return _other(request, 7, "accuracy_disambig", "BBQ, disambiguated: accuracy")


def figure8(request: FigureRequest) -> Drawn:
    """BBQ's bias score on disambiguated questions."""
    return _other(request, 8, "bias_disambig", "BBQ, disambiguated: bias score s_DIS")


def _other(request: FigureRequest, number: int, kind: str, title: str) -> Drawn:
    """A figure of one BBQ metric, against size and against step."""
    metric = metric_of(request, "bbq", kind)
    figure = new(2.9)
    left, right = figure.subplots(1, 2, sharey=True)
    level = 0.0 if kind == "bias_disambig" else CHANCE
    sign = SIGNS["bbq"] if kind == "bias_disambig" else "dashed: guessing, 1/3"
    cells = at_sizes(request, "bbq", metric)
    left.set_title(f"Against size\n{format_steps(cells)}".strip())
    _panel(left, cells, SIZE, label("bbq", metric), sign, request, level)
    steps = at_steps(request, "bbq", metric)
    right.set_title(f"Against step\n{textwrap.shorten(describe_chosen(request), 60, placeholder=' ...')}")
    _panel(right, steps, STEP, "", sign, request, level)
    right.tick_params(labelleft=any(c.state != ABSENT for c in steps))
    description = (
        f"{title}, against model size (log axis) and against the {request.step_name} ({describe_chosen(request)})."
    )
    drawn = Drawn(number, title, figure, [*cells, *steps], description, not_drawn(request))
    return complete(drawn, request, [(cells, SIZE), (steps, STEP)])


def _panel(
    axes: Axes, cells: list[Cell], along: str, ylabel: str, sign: str, request: FigureRequest, level: float = 0.0
) -> None:
    """Draws a panel; an empty one where nothing was evaluated."""
    if cells and any(c.state != ABSENT for c in cells):
        draw(axes, cells, along)
        finish(axes, cells, along, sign, level)
        mark_references(axes, cells, along)
        axes.set_ylabel(ylabel, fontsize=SMALL)
    else:
        draw_empty(axes, why_missing(cells) if along == STEP or request.sized else "size not known")


def _interaction(axes: Axes, cells: list[Cell], along: str, colours: dict[Any, Any]) -> None:
    """Draws lines by step against size, or by size against step.

    Policies at the same place are averaged, or get a mark each where they have no mean.
    """
    if all(c.state == ABSENT for c in cells):
        draw_empty(axes, why_missing(cells) if cells else "no RLHF run of known size")
        return
    for line, colour in colours.items():
        line_cells = [c for c in cells if (c.step if along == SIZE else c.model_params) == line]
        for group in dict.fromkeys(c.group for c in line_cells):
            _mean_line(axes, [c for c in line_cells if c.group == group], along, tuple(colour), str(line))
    rug(axes, cells, [cells[0].condition], along, GREY)
    finish(axes, cells, along)


def _mean_line(axes: Axes, cells: list[Cell], along: str, colour: Any, line: str) -> None:
    """Draws one line, with marks, of policies that belong together. Against the step, a mean is of all policies or
    absent.
    """
    x = sorted({position(c, along) for c in cells})
    by_place = [[c for c in cells if position(c, along) == p and c.state == MEASURED] for p in x]
    curves = {c.curve for c in cells if c.state == MEASURED}
    has_mean = [bool(p) and not no_mean(p) and (along == SIZE or len(p) == len(curves)) for p in by_place]
    y = [
        float(np.mean([c.value for c in p if c.value is not None])) if w else np.nan
        for p, w in zip(by_place, has_mean, strict=True)
    ]
    for start, stop in segments(by_place) if joined(cells, along) else []:
        axes.plot(x[start:stop], y[start:stop], color=colour, linewidth=1.1, label=line)
    _dots(axes, x, y, [any(c.caution for c in p) for p in by_place], colour, line)
    single = [c for p, w in zip(by_place, has_mean, strict=True) for c in p if not w]
    at, values = [position(c, along) for c in single], [c.value or 0.0 for c in single]
    _dots(axes, at, values, [bool(c.caution) for c in single], colour, line)


def _dots(axes: Axes, x: list[float], y: list[float], doubtful: list[bool], colour: Any, line: str) -> None:
    """Draws the marks of a line, hollow where the number has a caution."""
    for hollow in (False, True):
        chosen = [k for k, value in enumerate(y) if np.isfinite(value) and doubtful[k] == hollow]
        if chosen:
            axes.plot(
                [x[k] for k in chosen], [y[k] for k in chosen], linestyle="none", marker="o", markersize=3.2,
                markeredgecolor=colour, markerfacecolor="white" if hollow else colour, zorder=4,
                label=f"_{'hollow' if hollow else 'filled'} {line}",
            )  # fmt: skip
