"""What all figures share: the request, the legend above, the footnote below, and labels that do not overlap."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eval.curves.cautions import Caution
from eval.curves.gather import Curve, size_name, unfinished
from eval.data.readers import SMALL_SET_NOTE
from eval.views.figures import cells as data
from eval.views.figures import panels, unjoined
from eval.views.figures.cells import Cell
from eval.views.figures.lines import SIZE
from eval.views.figures.style import GREY, SETTINGS, SMALL, WIDTH

NOTE_WIDTH = 138
"""How many characters of the smallest text fit across a figure."""
SEVERAL = (
    "small marks and faint lines are single policies, large marks and thick lines their means, over steps only where "
    "all have a value; bars are intervals of single policies; bands over steps go from the least to the greatest "
    "policy and are no intervals"
)


@dataclass(frozen=True)
class FigureRequest:
    """What is to be drawn.

    Attributes:
        curves: all curves.
        chosen: the curves that stand for the largest model, or for the model that the user named.
        scoring: how BBQ is scored.
        step: the step at which sizes are compared; None = the nearest to the paper's.
        cautions: the cautions of all curves.
        named: whether the user named the model.
        left_out: curves of the same model, or as large or larger, that are not drawn against the step.
    """

    curves: tuple[Curve, ...]
    chosen: tuple[Curve, ...]
    scoring: str
    step: int | None
    cautions: tuple[Caution, ...]
    named: bool = False
    left_out: tuple[Curve, ...] = ()

    @property
    def step_name(self) -> str:
        """What the steps of the chosen curves count."""
        return self.chosen[0].step_name

    @property
    def sized(self) -> list[Curve]:
        """The curves of known size, which have a place on an axis of sizes."""
        return [c for c in self.curves if c.model_params is not None]


@dataclass
class Drawn:
    """A drawn figure.

    Attributes:
        number: 1 to 8.
        cells: the numbers drawn.
        description: what the figure shows, in a sentence or two; the caption begins with it.
        remarks: what a reader has to know, in the footnote and caption.
        rows: content of the CSV file; empty = the cells.
    """

    number: int
    title: str
    figure: Figure
    cells: list[Cell]
    description: str
    remarks: list[str] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)

    @property
    def stem(self) -> str:
        return f"fig{self.number}"


def new(height: float) -> Figure:
    """An empty figure as wide as a page's text, independent of pyplot's state.

    Args:
        height: in inches.
    """
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def format_steps(cells: Sequence[Cell]) -> str:
    """'RLHF step 800', 'RLHF steps 50 to 60', or '' where no number has a step."""
    steps = sorted({c.step for c in cells if c.step is not None})
    names = {c.step_name for c in cells if c.step is not None}
    if not steps or len(names) > 1:
        return "steps: see caption" if steps else ""
    name = names.pop()
    return f"{name} {steps[0]}" if len(steps) == 1 else f"{name}s {steps[0]} to {steps[-1]}"


def describe_chosen(request: FigureRequest) -> str:
    """Names the model that the figures of one model show."""
    names = ", ".join(c.name for c in request.chosen)
    size = size_name(request.chosen[0].model_params)
    what = "the model asked for" if request.named else "the largest model"
    return f"{what}, {size} ({names})"


def not_drawn(request: FigureRequest) -> list[str]:
    """Remarks on curves that are not drawn against the step although their model is as large, or was requested."""
    size = request.chosen[0].model_params
    larger = [c for c in request.left_out if size is not None and (c.model_params or 0) > size]
    groups = {"larger, but ": larger, "": [c for c in request.left_out if c not in larger]}
    return [
        f"{which}not drawn against the step: {data.first_few([_of_steps(c, request) for c in curves], 4)}"
        for which, curves in groups.items()
        if curves
    ]


def _of_steps(curve: Curve, request: FigureRequest) -> str:
    """The curve's name, and why it is not drawn if its size does not explain it."""
    if curve.step_name != request.step_name:
        return f"{curve.name} ({curve.step_name})"
    return f"{curve.name} (one step only)" if len(curve.steps) == 1 else curve.name


def complete(
    drawn: Drawn,
    request: FigureRequest,
    cells_by_axis: Sequence[tuple[Sequence[Cell], str]],
    lines: list[Line2D] | None = None,
) -> Drawn:
    """Adds legend, footnote and remarks, and drops tick labels that would overlap.

    Args:
        cells_by_axis: (cells that stand on one axis, SIZE or STEP).
        lines: entries of the legend; None = the conditions.
    """
    figure = drawn.figure
    shown = [a for a in figure.axes if a.axison]
    panels.make_room(shown)
    panels.legend(figure, panels.condition_lines(drawn.cells) if lines is None else lines, shown)
    drawn_checkpoints = {(c.curve, c.step) for c in drawn.cells}
    shown_curves = [c for c in request.curves if c.name in {name for name, _ in drawn_checkpoints}]
    drawn.remarks = [
        *unjoined.describe_unjoined(cells_by_axis),
        *drawn.remarks,
        *unfinished(shown_curves, drawn_checkpoints),
    ]
    drawn.remarks += describe_policies(drawn)
    measured = [c for c in drawn.cells if c.state == data.MEASURED]
    if bare := sum(c.low is None for c in measured):
        drawn.remarks.append(f"{bare} of {len(measured)} values have no interval ({drawn.stem}.csv says why)")
    if any(along == SIZE for _, along in cells_by_axis):
        drawn.remarks += [f"size not known, not drawn: {c.name}" for c in request.curves if c.model_params is None]
    write_footnote(drawn, request)
    drop_overlapping_labels(figure)
    return drawn


def describe_policies(drawn: Drawn) -> list[str]:
    """Remarks on how policies that do not belong together, and several policies of one size, are shown."""
    remarks = []
    cells = [c for c in drawn.cells if c.state != data.ABSENT]
    sizes: dict[tuple[str, str], dict[str, None]] = {}
    for c in sorted(cells, key=lambda c: c.model_params or 0):
        sizes.setdefault(c.group, {})[size_name(c.model_params)] = None
    groups = list(dict.fromkeys(c.group for c in cells))
    if len(groups) > 1:
        group_names = "; ".join(
            f"{kind} ({made or 'no RLHF run of ours'}): {', '.join(sizes[made, kind])}" for made, kind in groups
        )
        remarks.append(f"lines apart for {group_names}" + ("" if drawn.number == 5 else "; the first is the thickest"))
    policies: dict[tuple[int | None, tuple[str, str]], set[str]] = {}
    for c in cells:
        policies.setdefault((c.model_params, c.group), set()).add(c.curve)
    several = [f"{len(names)} of {size_name(size)}" for (size, _), names in policies.items() if len(names) > 1]
    if several:
        how = "marks and lines are their means, or, where there is none, each of them" if drawn.number == 5 else SEVERAL
        remarks.append(f"several policies ({', '.join(several)}): {how}")
    return remarks


def write_footnote(drawn: Drawn, request: FigureRequest) -> None:
    """Writes the remarks below the figure."""
    lines = [SMALL_SET_NOTE] if any(c.data == panels.SHIPPED for c in drawn.cells) else []
    lines += [f"{r[0].upper()}{r[1:]}." for r in drawn.remarks]
    text = "\n".join(part for line in lines for part in textwrap.wrap(line, NOTE_WIDTH))
    if text:
        drawn.figure.supxlabel(text, fontsize=SMALL, color=GREY, x=0.01, ha="left")


def drop_overlapping_labels(figure: Figure) -> None:
    """Lays the figure out, once for all formats, and drops each tick label that would touch the one before it."""
    for _ in range(2):  # the layout changes the ticks, and their labels change the layout
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in (a for a in figure.axes if a.axison):
        labels = [t for t in axes.get_xticklabels() if t.get_text()]
        boxes = [t.get_window_extent() for t in labels]
        kept, texts = None, {}
        for text, box in sorted(zip(labels, boxes, strict=True), key=lambda pair: pair[1].x0):
            touches = kept is not None and box.x0 < kept.x1 + 3
            texts[round(text.get_position()[0], 6)] = "" if touches else text.get_text()
            kept = kept if touches else box
        if "" in texts.values():
            ticks = axes.get_xticks()
            axes.set_xticks(ticks, [texts.get(round(t, 6), "") for t in ticks])


def settings() -> Any:
    """The matplotlib context in which figures are drawn."""
    return matplotlib.rc_context(SETTINGS)
