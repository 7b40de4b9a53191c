"""One panel of a figure: the lines of its conditions (eval.views.figures.lines), its axis, reference marks, and marks
at the foot for what is missing.

A hollow marker is a number with a caution (eval.curves.cautions).
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator

from eval.curves.gather import size_name
from eval.views.figures.cells import ABSENT, MEASURED, UNDEFINED, Cell
from eval.views.figures.lines import SIZE, STEP, draw_lines, position
from eval.views.figures.reference import at_paper_step, parity
from eval.views.figures.style import GREY, SMALL, STYLES, lighter

SHIPPED = "small set"  # the name that eval.data.readers.data_name gives
NOT_EVALUATED, UNDEFINED_MARK = "x", "$?$"
CARET = 4  # matplotlib's caret to the left
RUG = (0.035, 0.06)
"""Fractions of the panel's height: where the lowest row of marks for missing numbers lies, and the distance of rows."""


def draw(axes: Axes, cells: Sequence[Cell], along: str) -> None:
    """Draws the conditions of one panel, and marks what is missing."""
    present = draw_lines(axes, cells, along)
    rug(axes, cells, present, along)
    if not present:
        draw_empty(axes)


def draw_empty(axes: Axes, text: str = "not evaluated") -> None:
    """Makes an empty panel that says why it is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.tick_params(left=False, labelleft=False, bottom=False, labelbottom=False)


def why_missing(cells: Iterable[Cell]) -> str:
    """Why the cells have no number: the note of a checkpoint that was evaluated if there is one, else 'not
    evaluated'.
    """
    return next((c.why_missing for c in cells if c.results and c.note), ABSENT)


def rug(axes: Axes, cells: Sequence[Cell], present: Sequence[str], along: str, colour: str = "") -> None:
    """Marks missing numbers at the foot of the panel: a row for each condition and kind of absence."""
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
    """Makes room for the marks at the foot, once for all panels that share their axis of values."""
    remaining = list(panels)
    while remaining:
        shared = [a for a in remaining if a is remaining[0] or remaining[0].get_shared_y_axes().joined(remaining[0], a)]
        remaining = [a for a in remaining if a not in shared]
        rows = max((len({str(line.get_label()) for line in _rug_of(a)}) for a in shared), default=0)
        if rows:
            share = RUG[0] + RUG[1] * rows
            low, high = shared[0].get_ylim()
            shared[0].set_ylim(low - share / (1 - share) * (high - low), high)


def _rug_of(axes: Axes) -> list[Line2D]:
    """The marks of missing numbers in a panel."""
    return [line for line in axes.lines if str(line.get_label()).startswith((f"_{ABSENT}", f"_{UNDEFINED}"))]


def comparable(cells: Sequence[Cell]) -> bool:
    """Whether the paper's values may be marked in the panel: the same metric as the paper's, and not the small set."""
    measured = [c for c in cells if c.state == MEASURED]
    by_paper = all(c.experiment != "bbq" or c.metric == "bias_ambig" for c in measured)
    return bool(measured) and by_paper and not any(c.data == SHIPPED for c in measured)


def mark_references(axes: Axes, cells: Sequence[Cell], along: str) -> bool:
    """Marks the paper's values: light carets outside the right edge, and its steps of parity on the parity line.

    Returns:
        Whether anything was drawn.
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
    """Draws the axis and the reference line, and names the conditions that are missing.

    Args:
        sign: what the sign of the metric means.
        level: the value of the reference line: parity, or guessing.
    """
    words = [{SIZE: "model parameters", STEP: cells[0].step_name if cells else "RLHF step"}[along]]
    words += [f"({sign})"] if sign else []
    names = list(dict.fromkeys(c.condition for c in cells))
    missing = [n for n in names if all(c.state == ABSENT for c in cells if c.condition == n)]
    reasons = {n: why_missing(c for c in cells if c.condition == n) for n in missing if len(missing) < len(names)}
    for reason in dict.fromkeys(reasons.values()):
        words += textwrap.wrap(f"{reason}: {', '.join(n for n in reasons if reasons[n] == reason)}", 36)
    axes.set_xlabel("\n".join(words), fontsize=SMALL)
    if len(missing) == len(names):
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
    """A linear axis with integer ticks."""
    if len(steps) == 1:
        axes.set_xticks(list(steps))
        axes.set_xlim(steps[0] - 0.5, steps[0] + 0.5)
        return
    pad = 0.06 * (max(steps) - min(steps))
    axes.set_xlim(min(steps) - pad, max(steps) + pad)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 2.5, 5, 10]))


def legend(figure: Figure, lines: Sequence[Line2D], panels: Sequence[Axes]) -> None:
    """Draws the legend: the lines, and what the marks in use mean; in one row, or in one row each if there are many."""

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
    """The legend's entry for each condition that is drawn."""
    drawn = [n for n in STYLES if any(c.condition == n and c.state != ABSENT for c in cells)]
    return [Line2D([], [], label=n, **STYLES[n]) for n in drawn]
