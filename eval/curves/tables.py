"""Metrics and effects as text tables."""

from __future__ import annotations

from typing import Any

from eval.cli.columns import columns
from eval.experiments.registry import EXPERIMENTS
from eval.metrics.sampled_answers import SAMPLED
from eval.metrics.sequential import EARLY

COLUMNS = ("step", "experiment", "condition", "metric", "value", "95% interval", "items", "clusters")
EFFECT_COLUMNS = ("experiment", "effect", "metric", "difference", "95% interval", "p", "p (Holm)", "items", "clusters")


def metric_row(step: int, m: dict[str, Any]) -> tuple[str, ...]:
    """A metric as a row of cells under COLUMNS."""
    value = "undefined" if m["value"] is None else f"{m['value']:.4f}"
    interval = "" if m["low"] is None else f"[{m['low']:.4f}, {m['high']:.4f}]"
    name = m["name"] if m["category"] == "all" else f"{m['name']} ({m['category']})"
    return (
        str(step), m["experiment"], m["condition"], name, value, interval, str(m["n_items"]), str(m["n_clusters"]),
    )  # fmt: skip


def text_table(metrics: list[tuple[int, dict[str, Any]]]) -> str:
    """A table for the terminal: one line per (step, metric)."""
    return columns([COLUMNS, *(metric_row(step, m) for step, m in metrics)])


def remarks(metrics: list[dict[str, Any]]) -> list[str]:
    """Lines about whole-experiment metrics that are undefined, carry a warning, were stopped early or are sampled.

    Each gives the reason. Conditions with the same reason share a line.
    """
    conditions: dict[tuple[str, str, str], list[str]] = {}
    for m in metrics:
        if m["category"] == "all" and (m["value"] is None or m["note"].startswith(("warning:", EARLY, SAMPLED))):
            conditions.setdefault((m["experiment"], m["name"], m["note"].partition(";")[0]), []).append(m["condition"])
    return [
        f"{e}, {name} ({', '.join(condition_names)}): {note}" for (e, name, note), condition_names in conditions.items()
    ]


def effect_rows(effects: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each effect on an experiment's primary (first) metric and on its headline metric."""
    rows = []
    primary = {(e["experiment"], e["after"]): e["name"] for e in reversed(effects)}
    for e in effects:
        shown_names = (primary[e["experiment"], e["after"]], EXPERIMENTS[e["experiment"]].HEADLINE)
        if e["category"] != "all" or e["name"] not in shown_names:
            continue
        numbers = [None if e[k] is None else f"{e[k]:.4f}" for k in ("value", "low", "high", "p_value", "p_holm")]
        interval = "" if numbers[1] is None else f"[{numbers[1]}, {numbers[2]}]"
        rows.append(
            (
                e["experiment"], f"{e['before']} -> {e['after']}", e["name"], numbers[0] or "undefined", interval,
                numbers[3] or "", numbers[4] or "", str(e["n_items"]), str(e["n_clusters"]),
            )
        )  # fmt: skip
    return rows


def effects_table(effects: list[dict[str, Any]]) -> str:
    """The paired effects as a table for the terminal; '' where there are none."""
    rows = effect_rows(effects)
    return columns([EFFECT_COLUMNS, *rows]) if rows else ""
