"""Figure 4: Winogender by occupation, from breakdown.jsonl.

It stacks the pronoun probabilities, and plots p(female) against the share of women in the labour statistics, which the
prompt of Q+Match Stats gives to the model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from eval.curves.gather import Curve, size_name, unfinished
from eval.errors import InputError
from eval.views.figures import cells as data
from eval.views.figures.cells import MEASURED, UNDEFINED, Cell
from eval.views.figures.frame import Drawn, FigureRequest, drop_overlapping_labels, format_steps, new, write_footnote
from eval.views.figures.panels import draw_empty
from eval.views.figures.style import GREY, PRONOUNS, SMALL, STYLES

MATCH = "Q+Match Stats"
WINOGENDER = "winogender"


@dataclass(frozen=True)
class Occupation:
    """A row of fig4.csv: the probabilities of the three pronouns, which sum to 1, and the statistics' share of
    women.
    """

    curve: str
    model: str
    model_params: int | None
    step: int
    condition: str
    occupation: str
    p_female: float
    p_male: float
    p_neutral: float
    bls_share: float
    results: str


def occupations(curve: Curve, step: int) -> list[Occupation]:
    """The occupations of a checkpoint under every condition; [] where there is no breakdown.jsonl.

    Raises:
        InputError: breakdown.jsonl is damaged.
    """
    summary = curve.at(step)
    path = Path(summary["results"]) / "breakdown.jsonl" if summary else None
    if path is None or summary is None or not path.is_file():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); remove it and evaluate again: records are kept") from error
    return [
        Occupation(
            curve.name, data.model_name(curve), curve.model_params, step, r["condition"], r["group"],
            r["p_female"], r["p_male"], r["p_neutral"], r["bls_share"], summary["results"],
        )
        for r in rows
        if (r["experiment"], r["by"]) == (WINOGENDER, "occupation")
    ]  # fmt: skip


def figure4(request: FigureRequest) -> Drawn:
    """Draws the largest model: stacks sorted by p(neutral) for each condition, and calibration under Q+Match Stats."""
    curve = request.chosen[0]
    step = data.nearest_step(curve, WINOGENDER, request.step)
    rows = occupations(curve, step) if step is not None else []
    names = data.conditions([curve], WINOGENDER)
    figure = new(4.6)
    cells = [data.cell(curve, step, WINOGENDER, n, "rho", "all", request.cautions) for n in names]
    upper: list[Any] = ["stack 0", "stack 1", "stack 2"]
    lower: list[Any] = ["stack 3", "stack 4" if len(names) > 4 else "calibration", "calibration"]
    panels = figure.subplot_mosaic([upper, lower])
    for k, (name, cell) in enumerate(zip(names, cells, strict=True)):
        axes = panels[f"stack {k}"]
        _stack(axes, [o for o in rows if o.condition == name], cell)
        axes.set_ylabel("probability" if k % 3 == 0 else "")
    _calibration(panels["calibration"], [o for o in rows if o.condition == MATCH])
    handles = [Patch(facecolor=colour, label=f"p({name[2:]})") for name, colour in PRONOUNS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return _finish(request, figure, cells, rows, curve)


def _finish(request: FigureRequest, figure: Any, cells: list[Cell], rows: list[Occupation], curve: Curve) -> Drawn:
    """Adds description, remarks and footnote."""
    rho = {c.condition: c for c in cells}
    values = "; ".join(
        f"{n}: rho {c.value:.2f}" + (f" [{c.low:.2f}, {c.high:.2f}]" if c.low is not None else "")
        for n, c in rho.items()
        if c.state == MEASURED
    )
    description = (
        f"Winogender, {size_name(curve.model_params)} ({curve.name}), {format_steps(cells) or 'no step'}: for each "
        "condition, each occupation's probabilities of the three pronouns, normalised and sorted by p(neutral); and "
        "p(female) against the share of women in US labour statistics (BLS) under Q+Match Stats, where the dashed "
        f"line is what was asked for. {values}."
    )
    drawn = Drawn(4, "Winogender by occupation", figure, cells, description, rows=rows)
    same = [c.name for c in request.chosen[1:]]
    drawn.remarks.append(
        f"model: {curve.name}, {size_name(curve.model_params)}, {format_steps(cells) or 'not evaluated'}"
    )
    if same:
        drawn.remarks.append(f"one policy is drawn of several of this size; not drawn: {', '.join(same)}")
    drawn.remarks += unfinished([curve])
    if not rows and any(c.state == MEASURED for c in cells):
        drawn.remarks.append("breakdown.jsonl is not there, so occupations cannot be drawn; run the evaluation again")
    write_footnote(drawn, request)
    drop_overlapping_labels(figure)
    return drawn


def _stack(axes: Axes, rows: list[Occupation], cell: Cell) -> None:
    """Draws the pronoun probabilities of a condition, a bar for each occupation."""
    rho = "rho undefined" if cell.state == UNDEFINED else f"rho {cell.value:.2f}" if cell.value is not None else ""
    axes.set_title(f"{cell.condition}\n{rho}".strip())
    if not rows:
        draw_empty(axes)
        return
    rows = sorted(rows, key=lambda o: (round(o.p_neutral, 6), o.p_female, o.occupation))
    x, bottom = np.arange(len(rows)), np.zeros(len(rows))
    for name, colour in PRONOUNS.items():
        heights = np.array([getattr(o, name) for o in rows])
        axes.bar(x, heights, bottom=bottom, width=1.0, color=colour, linewidth=0, label=name)
        bottom += heights
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.set_ylim(0, 1)
    axes.set_xticks([])
    axes.set_xlabel(f"{len(rows)} occupations, sorted by p(neutral)", fontsize=SMALL)


def _calibration(axes: Axes, rows: list[Occupation]) -> None:
    """Draws p(female) against the statistics under Q+Match Stats."""
    axes.set_title(f"Calibration, {MATCH}")
    if not rows:
        draw_empty(axes)
        return
    style = STYLES[MATCH]
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (4, 3)), linewidth=0.7, label="_reference")
    axes.plot(
        [o.bls_share for o in rows], [o.p_female for o in rows], linestyle="none", marker=style["marker"],
        markersize=3.2, markerfacecolor=style["color"], markeredgewidth=0, alpha=0.7, label="occupations",
    )  # fmt: skip
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("share of women in the statistics (BLS)", fontsize=SMALL)
    axes.set_ylabel("p(female) of the model")
