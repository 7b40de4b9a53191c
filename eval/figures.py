"""Figures from summaries: bias against step, a panel per experiment, a line per condition, bands for intervals.

Colours stay apart for colour-blind readers. Figure 2 of Ganguli et al. 2023 is the model of the three panels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eval.conditions import CONDITIONS
from eval.curves import step_name
from eval.experiments.registry import EXPERIMENTS
from eval.views.explained import SIGNS

STYLES: dict[str, dict[str, Any]] = {
    "Q": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "Q+IF": {"color": "#E69F00", "marker": "s", "linestyle": "-"},
    "Q+IF+CoT": {"color": "#009E73", "marker": "^", "linestyle": "-"},
    "Q+Match Stats": {"color": "#A50026", "marker": "D", "linestyle": "--"},
    "Q+Inverse": {"color": "#555555", "marker": "v", "linestyle": ":"},
}
plt.rcParams["svg.hashsalt"] = "selfcorrect"


def headline(summary: dict[str, Any], experiment: str, condition: str) -> dict[str, Any] | None:
    """The metric that stands for an experiment; BBQ asked in one order only has no symmetrised score: the expected."""
    wanted = EXPERIMENTS[experiment].HEADLINE
    names = [wanted, wanted.removesuffix("_symmetrised")]
    for name in names:
        for m in summary["metrics"]:
            if (m["experiment"], m["condition"], m["name"], m["category"]) == (experiment, condition, name, "all"):
                return m
    return None


def series(summaries: list[dict[str, Any]], experiment: str, condition: str) -> list[tuple[int, dict[str, Any]]]:
    """(step, metric) of all checkpoints that have a defined value."""
    found = [(s["step"], headline(s, experiment, condition)) for s in summaries]
    return [(step, m) for step, m in found if m is not None and m["value"] is not None]


def draw_panel(axes: Axes, summaries: list[dict[str, Any]], experiment: str) -> None:
    """One experiment against the step."""
    axes.axhline(0.0, color="0.45", linestyle="--", linewidth=0.8)
    drawn = {c: p for c in EXPERIMENTS[experiment].CONDITIONS if (p := series(summaries, experiment, c))}
    alone = len({step for points in drawn.values() for step, _ in points}) == 1
    for k, (condition, points) in enumerate(drawn.items()):
        style = STYLES.get(condition, {"color": "0.5", "marker": ".", "linestyle": "-"})
        beside = 0.1 * (k - (len(drawn) - 1) / 2) if alone else 0.0  # one step: the conditions side by side
        points = [(step + beside, m) for step, m in points]
        steps = [step for step, _ in points]
        axes.plot(steps, [m["value"] for _, m in points], label=condition, markersize=4, linewidth=1.4, **style)
        banded = [(s, m["low"], m["high"]) for s, m in points if m["low"] is not None]
        if len(banded) == 1:
            step, low, high = banded[0]
            axes.vlines(step, low, high, color=style["color"], alpha=0.5, linewidth=2)
        elif banded:
            x, low, high = zip(*banded, strict=True)
            axes.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
    axes.set_title(EXPERIMENTS[experiment].TITLE, fontsize=9)
    axes.set_ylabel(EXPERIMENTS[experiment].HEADLINE_LABEL, fontsize=7)
    axes.set_xlabel(f"{step_name(summaries)}\n({SIGNS[experiment]})", fontsize=7)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if alone:
        step = summaries[0]["step"]
        axes.set_xticks([step])
        axes.set_xlim(step - 0.5, step + 0.5)


def bias_against_step(summaries: list[dict[str, Any]], note: str = "") -> Figure:
    """The three panels in one row, with one legend; `note` stands below."""
    experiments = [e for e in EXPERIMENTS if any(m["experiment"] == e for s in summaries for m in s["metrics"])]
    figure, grid = plt.subplots(1, len(experiments), figsize=(2.6 * len(experiments) + 0.4, 3.1), squeeze=False)
    handles: dict[str, Any] = {}
    for axes, experiment in zip(grid[0], experiments, strict=True):
        draw_panel(axes, summaries, experiment)
        handles |= {label: h for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    ordered = [c for c in CONDITIONS if c in handles]
    figure.legend(
        [handles[c] for c in ordered], ordered, loc="upper center", ncols=len(ordered), frameon=False, fontsize=8
    )
    figure.text(0.5, 0.01, note, ha="center", va="bottom", fontsize=6, color="0.35", wrap=True)
    figure.tight_layout(rect=(0, 0.05 if note else 0, 1, 0.93))
    return figure


def one_panel(summaries: list[dict[str, Any]], experiment: str) -> Figure:
    """One experiment alone, for slides."""
    figure, axes = plt.subplots(figsize=(4.2, 3.2))
    draw_panel(axes, summaries, experiment)
    axes.legend(frameon=False, fontsize=7)
    figure.tight_layout()
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Writes PNG or SVG by the file's ending, without dates, and closes the figure."""
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    figure.savefig(path, dpi=200, metadata=metadata)
    plt.close(figure)
    return path
