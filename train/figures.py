"""The figure of an RL run: do the optimised rewards rise, do the others, and does the policy stay healthy?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.views.figures.style import save

OPTIMISED, JUDGE = "#0072B2", "#E69F00"


def training_figure(result: dict[str, Any], path: Path) -> Path:
    """Draws six panels against the RLHF step.

    They show the reward in training, the change of the rewards on prompts kept out, KL, beta, entropy, and tokens per
    answer.
    """
    from matplotlib.figure import Figure

    log, samples = result["log"], result["samples"]
    figure = Figure(figsize=(10.5, 5.4), layout="constrained")
    axes = figure.subplots(2, 3)
    _line(axes[0, 0], log, "reward", "reward in training", OPTIMISED)
    _changes(axes[0, 1], samples)
    _line(axes[0, 2], log, "kl", "KL to the start, nats per token", OPTIMISED)
    target = result["settings"].get("kl_target")
    if target:
        axes[0, 2].axhline(target, color="0.4", linestyle="--", linewidth=1, label=f"kl_target {target:g}")
        axes[0, 2].legend(frameon=False)
    _line(axes[1, 0], log, "beta", "beta", OPTIMISED)
    if len({entry.get("beta") for entry in log}) > 1:
        axes[1, 0].set_yscale("log")
    _line(axes[1, 1], log, "entropy", "entropy, nats per token", OPTIMISED)
    _line(axes[1, 2], log, "observed/tokens", "tokens per answer", OPTIMISED)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_xlabel("RLHF step")
    return save(figure, path)


def _line(ax: Any, log: list[dict[str, Any]], key: str, title: str, colour: str) -> None:
    """Draws every step as a thin line, and the mean of the five steps around it."""
    points = [(entry["step"], entry[key]) for entry in log if entry.get(key) is not None]
    ax.set_title(title, loc="left", fontsize="medium")
    if not points:
        ax.text(0.5, 0.5, "not logged", transform=ax.transAxes, ha="center", color="0.4")
        return
    steps, values = zip(*points, strict=True)
    smooth = [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i - 2) : i + 3])]
    ax.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
    ax.plot(steps, smooth, color=colour, linewidth=1.6)


def _changes(ax: Any, samples: list[dict[str, Any]]) -> None:
    ax.set_title("prompts kept out: change since step 0", loc="left", fontsize="medium")
    names = [n for n in (samples[-1].get("change", {}) if samples else {}) if n.startswith(("rewards/", "judges/"))]
    if not names:
        ax.text(0.5, 0.5, "not sampled", transform=ax.transAxes, ha="center", color="0.4")
        return
    for name in names:
        kind, part = name.split("/", 1)
        points = [(s["step"], *s["change"][name]) for s in samples if "change" in s]
        steps, values, lows, highs = (list(column) for column in zip(*points, strict=True))
        colour, marker = (OPTIMISED, "o") if kind == "rewards" else (JUDGE, "s")
        label = f"{part} ({'optimised' if kind == 'rewards' else 'not optimised'})"
        ax.plot([0, *steps], [0, *values], color=colour, marker=marker, markersize=4, label=label)
        if None not in lows:
            ax.fill_between([0, *steps], [0, *lows], [0, *highs], color=colour, alpha=0.18, linewidth=0)
    ax.axhline(0, color="0.4", linestyle="--", linewidth=1)
    ax.legend(frameon=False, fontsize="small")
