"""Figures of a reward model's card: learning curve, calibration, length bias and probe.

eval.views.figures.style saves them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "0.45"
POINT: dict[str, Any] = {"fmt": "o", "markersize": 5, "capsize": 3, "linewidth": 1.4, "elinewidth": 1.2}
LENGTHS = (
    ("longer_is_worse", "longer answer is worse"),
    ("longer_is_better", "longer answer is better"),
    ("same_length", "same length"),
)


def _plain(axes: Axes, xlabel: str, ylabel: str = "") -> None:
    axes.set_xlabel(xlabel, fontsize=9)
    axes.set_ylabel(ylabel, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _error(e: dict[str, Any], value: str = "value", low: str = "low", high: str = "high") -> list[list[float]]:
    """Matplotlib's error bars of one value, [[below], [above]]; of length 0 if there is no interval."""
    if e[low] is None:
        return [[0.0], [0.0]]
    return [[max(0.0, e[value] - e[low])], [max(0.0, e[high] - e[value])]]


def learning_curve(curve: Sequence[dict[str, Any]], always_shorter: float | None) -> Figure:
    """Held-out accuracy against the number of training pairs (log axis). A line shows the rule of length alone."""
    figure, axes = plt.subplots(figsize=(5.2, 3.6))
    shown = [p for p in curve if p["accuracy"]["value"] is not None]
    axes.axhline(0.5, color=GREY, linestyle="--", linewidth=0.9, label="guessing")
    levels = [0.5]
    if always_shorter is not None:
        best, name = max((always_shorter, "shorter"), (1 - always_shorter, "longer"))
        axes.axhline(best, color=ORANGE, linestyle=":", linewidth=1.4, label=f"rule: the {name} answer")
        levels.append(best)
    axes.plot([p["pairs"] for p in shown], [p["accuracy"]["value"] for p in shown], color=BLUE, linewidth=1.4)
    for k, p in enumerate(shown):
        label = "this reward model, 95% interval" if k == 0 else None
        axes.errorbar(p["pairs"], p["accuracy"]["value"], _error(p["accuracy"]), color=BLUE, label=label, **POINT)
        levels += [v for v in (p["accuracy"][n] for n in ("value", "low", "high")) if v is not None]
    axes.set_xscale("log")
    axes.set_xticks([p["pairs"] for p in shown], [f"{p['pairs']:,}" for p in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(shown[0]["pairs"] / 1.25, shown[-1]["pairs"] * 1.25)
    axes.set_ylim(min(0.45, min(levels) - 0.02), min(1.0, max(levels) + 0.03))
    n = shown[-1]["accuracy"]
    _plain(
        axes, "training pairs (log scale)",
        f"accuracy on {n['n_pairs']:,} held-out pairs\n({n['n_prompts']:,} prompts)",
    )  # fmt: skip
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, columnspacing=1.2)
    figure.tight_layout()
    return figure


def reliability(calibration: dict[str, Any]) -> Figure:
    """Reliability diagram: how often the preferred answer is right, against the model's probability for it."""
    figure, axes = plt.subplots(figsize=(4.6, 4.3))
    axes.plot([0.5, 1], [0.5, 1], color=GREY, linestyle="--", linewidth=0.9, label="calibrated")
    bins = calibration["bins"]
    for k, b in enumerate(bins):
        label = "held-out pairs, 95% interval" if k == 0 else None
        error = _error(b, "accuracy", "accuracy_low", "accuracy_high")
        axes.errorbar(b["confidence"], b["accuracy"], error, color=BLUE, label=label, **POINT)
    bottom = min([0.4, *(b["accuracy_low"] - 0.03 for b in bins if b["accuracy_low"] is not None)])
    axes.set_ylim(max(-0.02, bottom), 1.02)
    axes.set_xlim(0.49, 1.01)
    sizes = sorted({b["n"] for b in bins})
    n = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    axes.set_title(f"{len(bins)} bins of {n} pairs; points at the bins' means", fontsize=8, color="0.3")
    axes.axhline(0.5, color="0.8", linewidth=0.8, zorder=0)
    _plain(axes, "the model's probability for the answer that it prefers", "share of pairs in which it is right")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    figure.tight_layout()
    return figure


def length_bias(run: dict[str, Any]) -> Figure:
    """Accuracy by which answer is longer, and accuracy of the rule that uses length alone."""
    rows = [(run["accuracy"]["all"], "all held-out pairs", BLUE)]
    rows += [(run["length_bias"][key], name, BLUE) for key, name in LENGTHS]
    rows.append((run["length_bias"]["always_shorter"], "rule: shorter is better", ORANGE))
    shown = [f for f in rows if f[0]["value"] is not None]
    figure, axes = plt.subplots(figsize=(5.8, 0.45 * len(shown) + 1.3))
    axes.axvline(0.5, color=GREY, linestyle="--", linewidth=0.9)
    for y, (e, _, colour) in enumerate(shown):
        axes.errorbar(e["value"], y, xerr=_error(e), color=colour, **POINT)
        axes.text(1.02, y, f"{e['value']:.2f}  ({e['n_pairs']:,} pairs)", fontsize=8, va="center", clip_on=False)
    axes.set_yticks(range(len(shown)), [name for _, name, _ in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    _plain(axes, "share of pairs right, 95% interval (dashed: guessing)")
    figure.tight_layout()
    return figure


def probe(dimensions: Sequence[dict[str, Any]]) -> Figure:
    """A forest plot of every group's gap with its interval, by dimension."""
    rows: list[tuple[str, dict[str, Any] | None]] = []
    for d in dimensions:
        rows += [(d["dimension"].replace("_", " "), None), *((g["group"], g) for g in d["groups"])]
    figure, axes = plt.subplots(figsize=(6.0, 0.19 * len(rows) + 1.0))
    axes.axvline(0.0, color=GREY, linestyle="--", linewidth=0.9)
    farthest = 0.0
    for y, (_, g) in enumerate(rows):
        if g is None:
            axes.axhspan(y - 0.5, y + 0.5, color="0.93", linewidth=0)
            continue
        if g["gap"] is None:
            continue
        excludes_zero = g["low"] is not None and (g["low"] > 0 or g["high"] < 0)
        style: dict[str, Any] = POINT | {"markersize": 4, "capsize": 0}
        axes.errorbar(g["gap"], y, xerr=_error(g, "gap"), color=BLUE if excludes_zero else GREY, **style)
        farthest = max([farthest, *(abs(g[n]) for n in ("gap", "low", "high") if g[n] is not None)])
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    for label, (_, g) in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if g is None else "normal")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    if farthest and math.isfinite(farthest):
        axes.set_xlim(-1.08 * farthest, 1.08 * farthest)
    _plain(axes, "score of the group's version less the mean of all groups' (reward units)")
    axes.tick_params(axis="y", labelsize=7.5, length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title(
        "right of 0: versions with this group score higher; 95% intervals, not\ncorrected for many comparisons; "
        "blue: 0 lies outside",
        fontsize=8, color="0.3",
    )  # fmt: skip
    figure.tight_layout()
    return figure
