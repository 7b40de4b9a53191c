"""One panel of a figure: lines of conditions against size or step, with intervals, gaps and reference marks.

A line joins measured values only and breaks where a number is missing; the place is marked at the foot of the panel.
A hollow marker is a number with a caution (eval.views.explained).
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator

from eval.views.cells import ABSENT, MEASURED, UNDEFINED, Cell
from eval.views.gathered import size_name
from eval.views.reference import at_paper_step, parity
from eval.views.style import BAND, GREY, SMALL, STYLES, lighter

SIZE, STEP = "size", "step"
SHIPPED = "small set"  # eval.sources.data_name
NOT_EVALUATED, UNDEFINED_MARK = "x", "$?$"
CARET = 4  # matplotlib's caret to the left
SIDE_BY_SIDE = 0.06  # of the axis' unit, between conditions where there is one place only
RUG = (0.035, 0.06)
"""Of a panel's height: the lowest row of marks of what is missing, and the distance of rows."""
Points = dict[float, list[Cell]]


def position(cell: Cell, along: str) -> float:
    """Where a cell stands on the axis."""
    return float((cell.model_params if along == SIZE else cell.step) or 0)


def draw(axes: Axes, cells: Sequence[Cell], along: str, join: bool = True) -> None:
    """The conditions of one panel. join: whether values of different models may be joined by a line."""
    places = sorted({position(c, along) for c in cells})
    names = [n for n in STYLES if any(c.condition == n for c in cells)]
    present = [n for n in names if any(c.condition == n and c.state != ABSENT for c in cells)]
    for k, name in enumerate(present):
        shift = _beside(k, len(present), along, places, _crowded(cells, along))
        mine = [c for c in cells if c.condition == name]
        groups = list(dict.fromkeys(c.algorithm for c in cells))
        for number, algorithm in enumerate(groups):
            group = [c for c in mine if c.algorithm == algorithm]
            if group:
                _group(axes, group, name, along, join, shift, 1.4 if number == 0 else 0.8)
    rug(axes, cells, present, along)
    if not present:
        nothing(axes)


def nothing(axes: Axes, text: str = "not evaluated") -> None:
    """An empty panel that says so."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.tick_params(left=False, labelleft=False, bottom=False, labelbottom=False)


def _crowded(cells: Sequence[Cell], along: str) -> bool:
    """Whether several policies stand at one size, each with its interval as a bar."""
    found = [(c.condition, c.algorithm, position(c, along)) for c in cells]
    return along == SIZE and len(set(found)) < len(found)


def _beside(k: int, n: int, along: str, places: Sequence[float], crowded: bool) -> Callable[[float], float]:
    """Moves a condition a little to its side where intervals would lie on each other: where there is one place, or
    several policies at one.
    """
    by = k - (n - 1) / 2
    if len(places) == 1:
        return lambda x: x * (1 + SIDE_BY_SIDE) ** by if along == SIZE else x + 2 * SIDE_BY_SIDE * by
    if crowded:
        return lambda x: x * (max(places) / min(places)) ** (0.015 * by)
    return lambda x: x


def _group(
    axes: Axes, cells: list[Cell], name: str, along: str, join: bool, shift: Callable[[float], float], width: float
) -> None:
    """One condition of the policies of one algorithm. A policy for itself: line and interval band. Several: every
    policy faint, and their mean; against step where all have a value, with a band from the least to the greatest.
    """
    points: Points = {}
    for c in cells:
        points.setdefault(position(c, along), []).append(c)
    places = sorted(points)
    several = max(len(p) for p in points.values()) > 1 or (along == STEP and len({c.curve for c in cells}) > 1)
    colour = STYLES[name]["color"]
    x = np.array([shift(p) for p in places])
    if not several:
        alone = [points[p][0] for p in places]
        _line(axes, x, _column(alone, "value"), name, width if join else 0.0)
        _interval(axes, x, alone, colour, banded=join)
        _markers(axes, x, alone, name)
        return
    values = [[c.value for c in points[p] if c.value is not None] for p in places]
    if along == STEP:
        values = _over_steps(axes, cells, points, name, shift)
    else:
        for at, p in zip(x, places, strict=True):
            _interval(axes, np.full(len(points[p]), at), points[p], colour, banded=False)
            if len(points[p]) > 1:
                _markers(axes, np.full(len(points[p]), at), points[p], name, faint=True)
    means = np.array([np.mean(v) if v else np.nan for v in values])
    _line(axes, x, means, name, width if join or along == STEP else 0.0)
    for hollow in (False, True):
        doubtful = np.array([any(c.caution for c in points[p] if c.state == MEASURED) for p in places])
        chosen = np.isfinite(means) & (doubtful == hollow)
        _marks(axes, x[chosen], means[chosen], name, hollow, faint=False)


def _over_steps(
    axes: Axes, cells: list[Cell], points: Points, name: str, shift: Callable[[float], float]
) -> list[list[float]]:
    """Every policy faint, and a band from the least to the greatest where all have a value; returns these values."""
    curves = list(dict.fromkeys(c.curve for c in cells))
    places = sorted(points)
    for curve in curves:
        own = sorted((c for c in cells if c.curve == curve), key=lambda c: position(c, STEP))
        at = np.array([shift(position(c, STEP)) for c in own])
        _line(axes, at, _column(own, "value"), f"_{name}: {curve}", 0.7, alpha=0.45)
        _markers(axes, at, own, name, faint=True)
    values = [[c.value for c in points[p] if c.value is not None] for p in places]
    values = [v if len(v) == len(curves) else [] for v in values]
    low, high = (np.array([f(v) if v else np.nan for v in values]) for f in (min, max))
    x = [shift(p) for p in places]
    axes.fill_between(x, low, high, color=STYLES[name]["color"], alpha=BAND, linewidth=0, label=f"_range of {name}")
    return values


def _column(cells: Sequence[Cell], field: str) -> np.ndarray:
    """The field of all cells, NaN where it is None: a line breaks there."""
    found = [getattr(c, field) for c in cells]
    return np.array([np.nan if v is None else v for v in found], dtype=float)


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, label: str, width: float, alpha: float = 1.0) -> None:
    name = label.removeprefix("_").partition(": ")[0]
    style = {k: v for k, v in STYLES[name].items() if k != "marker"}
    if not width:
        style["linestyle"] = "none"
    axes.plot(x, y, label=label, linewidth=width or 1.0, alpha=alpha, zorder=3, **style)


def _interval(axes: Axes, x: np.ndarray, cells: Sequence[Cell], colour: str, banded: bool) -> None:
    """A band over neighbours, a bar for a value that stands alone."""
    low, high = _column(cells, "low"), _column(cells, "high")
    known = np.isfinite(low) & np.isfinite(high)
    beside = np.zeros(len(x), dtype=bool)
    if banded and len(x) > 1:
        beside[1:] |= known[:-1]
        beside[:-1] |= known[1:]
        axes.fill_between(x, low, high, where=(known & beside).tolist(), color=colour, alpha=BAND, linewidth=0)
    bars = known & ~beside
    axes.vlines(x[bars], low[bars], high[bars], color=colour, alpha=0.5, linewidth=1.4, zorder=2)


def _markers(axes: Axes, x: np.ndarray, cells: Sequence[Cell], name: str, faint: bool = False) -> None:
    for hollow in (False, True):
        chosen = [k for k, c in enumerate(cells) if c.state == MEASURED and bool(c.caution) == hollow]
        _marks(axes, x[chosen], _column(cells, "value")[chosen], name, hollow, faint)


def _marks(axes: Axes, x: np.ndarray, y: np.ndarray, name: str, hollow: bool, faint: bool) -> None:
    if not len(x):
        return
    style = STYLES[name]
    kind = ("hollow" if hollow else "filled") + (" policy" if faint else "")
    axes.plot(
        x, y, linestyle="none", marker=style["marker"], markersize=2.6 if faint else 4.2, alpha=0.6 if faint else 1.0,
        markerfacecolor="white" if hollow else style["color"], markeredgecolor=style["color"], zorder=4,
        label=f"_{kind} {name}",
    )  # fmt: skip


def rug(axes: Axes, cells: Sequence[Cell], present: Sequence[str], along: str, colour: str = "") -> None:
    """At the foot of the panel, a row for each condition that lacks something: where, and of which kind."""
    row = 0
    for name in present:
        points: dict[float, set[str]] = {}
        for c in cells:
            if c.condition == name:
                points.setdefault(position(c, along), set()).add(c.state)
        before = row
        for state, marker, size in ((ABSENT, NOT_EVALUATED, 4.0), (UNDEFINED, UNDEFINED_MARK, 5.5)):
            at = [p for p, states in points.items() if MEASURED not in states and state in states]
            if at:
                axes.plot(
                    at, [RUG[0] + RUG[1] * before] * len(at), transform=axes.get_xaxis_transform(), zorder=5,
                    linestyle="none", marker=marker, markersize=size, color=colour or STYLES[name]["color"],
                    markeredgewidth=0.9 if state == ABSENT else 0.3, label=f"_{state}: {name}",
                )  # fmt: skip
                row = before + 1


def make_room(panels: Sequence[Axes]) -> None:
    """Room at the foot of the panels that mark something there, once for those that share their axis of values."""
    left = list(panels)
    while left:
        shared = [a for a in left if a is left[0] or left[0].get_shared_y_axes().joined(left[0], a)]
        left = [a for a in left if a not in shared]
        rows = max((len({str(line.get_label()) for line in _rug_of(a)}) for a in shared), default=0)
        if rows:
            share = RUG[0] + RUG[1] * rows
            low, high = shared[0].get_ylim()
            shared[0].set_ylim(low - share / (1 - share) * (high - low), high)


def _rug_of(axes: Axes) -> list[Line2D]:
    return [line for line in axes.lines if str(line.get_label()).startswith((f"_{ABSENT}", f"_{UNDEFINED}"))]


def comparable(cells: Sequence[Cell]) -> bool:
    """Whether the panel's numbers are of the paper's metric and not of the small set: its values may stand there."""
    measured = [c for c in cells if c.state == MEASURED]
    by_paper = all(c.experiment != "bbq" or c.metric == "bias_ambig" for c in measured)
    return bool(measured) and by_paper and not any(c.data == SHIPPED for c in measured)


def mark_references(axes: Axes, cells: Sequence[Cell], along: str) -> bool:
    """The paper's values as light carets outside the right edge, its steps of parity on the line of parity.

    Returns whether any was drawn.
    """
    if not cells or cells[0].category != "all" or not comparable(cells):
        return False
    marked = False
    for r in at_paper_step(cells[0].experiment):
        axes.plot(
            [1.03], [r.value], transform=axes.get_yaxis_transform(), marker=CARET, markersize=5, clip_on=False,
            color=lighter(STYLES[r.condition]["color"]), linestyle="none", label=f"_paper {r.condition}",
        )  # fmt: skip
        marked = True
    steps = [c.step or 0 for c in cells]
    for r in parity(cells[0].experiment) if along == STEP else ():
        if r.step <= max(steps):
            axes.plot(
                [r.step], [r.value], marker=STYLES[r.condition]["marker"], markersize=6, linestyle="none", zorder=1,
                color=lighter(STYLES[r.condition]["color"]), label=f"_paper {r.condition}",
            )  # fmt: skip
            marked = True
    return marked


def finish(axes: Axes, cells: Sequence[Cell], along: str, sign: str = "", level: float = 0.0) -> None:
    """Axis, line of reference and what is not there. level: of parity, or of guessing."""
    lines = [{SIZE: "model parameters", STEP: cells[0].step_name if cells else "RLHF step"}[along]]
    lines += [f"({sign})"] if sign else []
    names = list(dict.fromkeys(c.condition for c in cells))
    lacking = [n for n in names if all(c.state == ABSENT for c in cells if c.condition == n)]
    if lacking and len(lacking) < len(names):
        lines += textwrap.wrap(f"not evaluated: {', '.join(lacking)}", 36)
    axes.set_xlabel("\n".join(lines), fontsize=SMALL)
    if len(lacking) == len(names):
        return
    axes.axhline(level, color=GREY, linestyle=(0, (4, 3)), linewidth=0.7, zorder=1, label="_reference")
    places = sorted({position(c, along) for c in cells})
    if along == SIZE:
        size_axis(axes, places)
    else:
        step_axis(axes, places)


def size_axis(axes: Axes, sizes: Sequence[float]) -> None:
    """A log axis with a tick at each size."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(sizes)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(lambda value, _: size_name(round(value)))
    pad = (max(sizes) / min(sizes)) ** 0.12 if len(sizes) > 1 else 1.5
    axes.set_xlim(min(sizes) / pad, max(sizes) * pad)


def step_axis(axes: Axes, steps: Sequence[float]) -> None:
    """A linear axis with whole numbers."""
    if len(steps) == 1:
        axes.set_xticks(list(steps))
        axes.set_xlim(steps[0] - 0.5, steps[0] + 0.5)
        return
    pad = 0.06 * (max(steps) - min(steps))
    axes.set_xlim(min(steps) - pad, max(steps) + pad)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 2.5, 5, 10]))


def legend(figure: Figure, lines: Sequence[Line2D], panels: Sequence[Axes]) -> None:
    """The lines, and what the marks mean that occur: in one row, or, where they are many, in a row each."""

    def mark(marker: Any, label: str, **style: Any) -> Line2D:
        return Line2D([], [], linestyle="none", marker=marker, color=GREY, label=label, **style)

    marks = []
    labels = {str(line.get_label()) for axes in panels for line in axes.lines}
    if any(label.startswith("_hollow") for label in labels):
        marks.append(mark("o", "hollow: means little (see caption)", markerfacecolor="white"))
    if any(label.startswith(f"_{ABSENT}") for label in labels):
        marks.append(mark(NOT_EVALUATED, "not evaluated"))
    if any(label.startswith(f"_{UNDEFINED}") for label in labels):
        marks.append(mark(UNDEFINED_MARK, "undefined"))
    if any(label.startswith("_paper") for label in labels):
        marks.append(
            Line2D([], [], linestyle="none", marker=CARET, color="#BBBBBB", label="paper's 175B (approximate)")
        )
    handles = [*lines, *marks]
    columns = len(handles)
    if sum(len(str(h.get_label())) + 8 for h in handles) > 130:
        columns = max(len(lines), len(marks))
        blank = Line2D([], [], linestyle="none", label=" ")
        rows = [[*row, *[blank] * (columns - len(row))] for row in (lines, marks)]
        handles = [h for column in zip(*rows, strict=True) for h in column]
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=columns, columnspacing=1.4, handlelength=1.8)


def condition_lines(cells: Sequence[Cell]) -> list[Line2D]:
    """A line of the legend for each condition that is drawn."""
    drawn = [n for n in STYLES if any(c.condition == n and c.state != ABSENT for c in cells)]
    return [Line2D([], [], label=n, **STYLES[n]) for n in drawn]
