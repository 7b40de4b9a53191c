"""The lines of a panel: for each condition and group of policies their marks, intervals and means.

A line joins measured values only. It breaks where a number is missing, and where a policy was asked differently than
before. Means and bands of several policies are only taken over numbers of one step (or size and step) with the same
questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes

from eval.views.figures.cells import ABSENT, MEASURED, Cell, cells_differ_in, no_mean
from eval.views.figures.style import BAND, STYLES

SIZE, STEP = "size", "step"
SIDE_BY_SIDE = 0.06  # distance of conditions, in axis units, where there is a single place
Points = dict[float, list[Cell]]
Shift = Callable[[float], float]


def position(cell: Cell, along: str) -> float:
    """Where a cell stands on the axis."""
    return float((cell.model_params if along == SIZE else cell.step) or 0)


def draw_lines(axes: Axes, cells: Sequence[Cell], along: str) -> list[str]:
    """Draws the conditions of one panel.

    Each group of policies (`Cell.group`) gets a line, the first group the thickest.

    Returns:
        The names of the conditions that were evaluated.
    """
    places = sorted({position(c, along) for c in cells})
    names = [n for n in STYLES if any(c.condition == n and c.state != ABSENT for c in cells)]
    evaluated = {c.curve for c in cells if c.state != ABSENT}
    for k, name in enumerate(names):
        shift = _beside(k, len(names), along, places, _crowded(cells, along))
        groups = dict.fromkeys(c.group for c in cells if c.curve in evaluated)
        for number, group in enumerate(groups):
            group_cells = [c for c in cells if (c.condition, c.group) == (name, group) and c.curve in evaluated]
            if group_cells:
                _draw_group(axes, group_cells, name, along, shift, 1.4 if number == 0 else 0.8)
    return names


def joined(cells: Sequence[Cell], along: str) -> bool:
    """Whether a line may join these numbers of one condition and group.

    Over sizes, only where all were asked the same. Over steps always, since the line itself breaks where a policy's own
    checkpoints were asked differently.
    """
    return along == STEP or not cells_differ_in(cells)


def segments(by_place: Sequence[Sequence[Cell]]) -> list[tuple[int, int]]:
    """The (start, stop) ranges of places that one line may join.

    Args:
        by_place: for each place on the axis, its cells.
    """
    starts = [k for k in range(1, len(by_place)) if cells_differ_in([*by_place[k - 1], *by_place[k]])]
    return list(pairwise([0, *starts, len(by_place)]))


def _crowded(cells: Sequence[Cell], along: str) -> bool:
    """Whether several policies stand at one size, each with an interval bar."""
    places = [(c.condition, position(c, along)) for c in cells]
    return along == SIZE and len(set(places)) < len(places)


def _beside(k: int, n: int, along: str, places: Sequence[float], crowded: bool) -> Shift:
    """A function that moves a condition sideways so that intervals do not cover each other.

    It moves only where there is a single place, or several policies at one place.
    """
    by = k - (n - 1) / 2
    if len(places) == 1:
        return lambda x: x * (1 + SIDE_BY_SIDE) ** by if along == SIZE else x + 2 * SIDE_BY_SIDE * by
    if crowded:
        return lambda x: x * (max(places) / min(places)) ** (0.015 * by)
    return lambda x: x


def _draw_group(axes: Axes, cells: list[Cell], name: str, along: str, shift: Shift, width: float) -> None:
    """Draws one condition of policies that belong together.

    A single policy gets a line and an interval band. Of several, each is drawn faintly, with their mean on top where
    they have one (`no_mean`). Against the step, a mean needs a value of every policy, and a band spans the least to the
    greatest.
    """
    points: Points = {}
    for c in cells:
        points.setdefault(position(c, along), []).append(c)
    places = sorted(points)
    by_place = [points[p] for p in places]
    several = max(len(p) for p in by_place) > 1 or (along == STEP and len({c.curve for c in cells}) > 1)
    join = joined(cells, along)
    x = np.array([shift(p) for p in places])
    if not several:
        single = [p[0] for p in by_place]
        _line(axes, x, _column(single, "value"), name, width if join else 0.0, by_place)
        _intervals(axes, x, single, STYLES[name]["color"], banded=join)
        _markers(axes, x, single, name)
        return
    values = [[c.value for c in p if c.value is not None] for p in by_place]
    values = [[] if no_mean(p) else v for p, v in zip(by_place, values, strict=True)]
    if along == STEP:
        curves = list(dict.fromkeys(c.curve for c in cells))
        values = [v if len(v) == len(curves) else [] for v in values]
        _over_steps(axes, [[c for c in cells if c.curve == curve] for curve in curves], name, shift)
        _band(axes, x, by_place, values, name)
    else:
        for at, place_cells in zip(x, by_place, strict=True):
            _intervals(axes, np.full(len(place_cells), at), place_cells, STYLES[name]["color"], banded=False)
            if len(place_cells) > 1:
                _markers(axes, np.full(len(place_cells), at), place_cells, name, faint=True)
    means = np.array([np.mean(v) if v else np.nan for v in values])
    _line(axes, x, means, name, width if join else 0.0, by_place)
    for hollow in (False, True):
        doubtful = np.array([any(c.caution for c in p if c.state == MEASURED) for p in by_place])
        chosen = np.isfinite(means) & (doubtful == hollow)
        _marks(axes, x[chosen], means[chosen], name, hollow, faint=False)


def _over_steps(axes: Axes, policies: Sequence[list[Cell]], name: str, shift: Shift) -> None:
    """Draws every policy faintly."""
    for cells in policies:
        ordered = sorted(cells, key=lambda c: position(c, STEP))
        x = np.array([shift(position(c, STEP)) for c in ordered])
        _line(
            axes, x, _column(ordered, "value"), f"_{name}: {ordered[0].curve}", 0.7, [[c] for c in ordered], alpha=0.45
        )
        _markers(axes, x, ordered, name, faint=True)


def _band(axes: Axes, x: np.ndarray, by_place: Sequence[list[Cell]], values: Sequence[list[float]], name: str) -> None:
    """Draws the band from the least to the greatest policy, where there are values."""
    low, high = (np.array([f(v) if v else np.nan for v in values]) for f in (min, max))
    for start, stop in segments(by_place):
        axes.fill_between(
            x[start:stop], low[start:stop], high[start:stop], color=STYLES[name]["color"], alpha=BAND, linewidth=0,
            label=f"_range of {name}",
        )  # fmt: skip


def _column(cells: Sequence[Cell], field: str) -> np.ndarray:
    """The field of all cells as floats, NaN where it is None; a line breaks there."""
    values = [getattr(c, field) for c in cells]
    return np.array([np.nan if v is None else v for v in values], dtype=float)


def _line(
    axes: Axes, x: np.ndarray, y: np.ndarray, label: str, width: float, by_place: Sequence[Sequence[Cell]],
    alpha: float = 1.0,
) -> None:  # fmt: skip
    """Draws the line through the places; width 0 draws none."""
    breaks = [start for start, _ in segments(by_place)[1:]]
    x, y = np.insert(x, breaks, x[breaks]), np.insert(y, breaks, np.nan)
    name = label.removeprefix("_").partition(": ")[0]
    style = {k: v for k, v in STYLES[name].items() if k != "marker"}
    if not width:
        style["linestyle"] = "none"
    axes.plot(x, y, label=label, linewidth=width or 1.0, alpha=alpha, zorder=3, **style)


def _intervals(axes: Axes, x: np.ndarray, cells: Sequence[Cell], colour: str, banded: bool) -> None:
    """Draws the intervals of a single policy (banded), or of each of several."""
    for start, stop in segments([[c] for c in cells]) if banded else [(0, len(cells))]:
        _interval(axes, x[start:stop], cells[start:stop], colour, banded)


def _interval(axes: Axes, x: np.ndarray, cells: Sequence[Cell], colour: str, banded: bool) -> None:
    """Draws a band over neighbouring values, and a bar for a value without neighbours."""
    low, high = _column(cells, "low"), _column(cells, "high")
    finite = np.isfinite(low) & np.isfinite(high)
    beside = np.zeros(len(x), dtype=bool)
    if banded and len(x) > 1:
        beside[1:] |= finite[:-1]
        beside[:-1] |= finite[1:]
        axes.fill_between(x, low, high, where=(finite & beside).tolist(), color=colour, alpha=BAND, linewidth=0)
    bars = finite & ~beside
    axes.vlines(x[bars], low[bars], high[bars], color=colour, alpha=0.5, linewidth=1.4, zorder=2)


def _markers(axes: Axes, x: np.ndarray, cells: Sequence[Cell], name: str, faint: bool = False) -> None:
    """Draws the cells' marks, hollow where the number has a caution."""
    for hollow in (False, True):
        chosen = [k for k, c in enumerate(cells) if c.state == MEASURED and bool(c.caution) == hollow]
        _marks(axes, x[chosen], _column(cells, "value")[chosen], name, hollow, faint)


def _marks(axes: Axes, x: np.ndarray, y: np.ndarray, name: str, hollow: bool, faint: bool) -> None:
    """Draws marks of one kind."""
    if not len(x):
        return
    style = STYLES[name]
    kind = ("hollow" if hollow else "filled") + (" policy" if faint else "")
    axes.plot(
        x, y, linestyle="none", marker=style["marker"], markersize=2.6 if faint else 4.2, alpha=0.6 if faint else 1.0,
        markerfacecolor="white" if hollow else style["color"], markeredgecolor=style["color"], zorder=4,
        label=f"_{kind} {name}",
    )  # fmt: skip
