"""Which settings decide what was asked of a checkpoint, and in which of them results differ.

Numbers of checkpoints that were not asked the same have no mean, and no line joins them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from eval.experiments.conditions import CONDITIONS

ALL = ("limit", "cot_limit", "categories")
"""Settings of which none, or an empty list, means everything."""
SETUP = ("step_name", "data", "format", "system_turn", "dtype", "prompt_version")
"""What is told beside the evaluation's settings where one model was asked in several ways."""


def question_settings(summary: dict[str, Any], experiment: str, condition: str) -> dict[str, Any]:
    """The settings that decide what a checkpoint was asked in an experiment under a condition, and in which words."""
    evaluation = summary.get("evaluation") or {}
    names = ["limit", "precision"]
    names += ["categories", "orders"] if experiment == "bbq" else []
    names += ["cot_limit", "cot_max_new_tokens"] if condition in CONDITIONS and CONDITIONS[condition].reasoning else []
    return {
        **{name: summary.get(name) for name in ("data", "prompt_version", "format")},
        "data_sha256": (summary.get("data_sha256") or {}).get(experiment),
        **{name: evaluation.get(name) for name in names},
    }


def differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """The settings in which they are not all alike."""
    names = dict.fromkeys(name for entry in settings for name in entry)
    return [name for name in names if len({repr(entry.get(name)) for entry in settings}) > 1]


def describe_settings(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """Of each result in words what it has of the settings in which they differ, such as 'limit 60' and 'limit all';
    '' where none does.
    """
    setups = [{name: s.get(name) for name in SETUP} | (s.get("evaluation") or {}) for s in summaries]
    data = [{f"{e} data": str(v)[:8] for e, v in (s.get("data_sha256") or {}).items()} for s in summaries]
    models = [{"model": s.get("model")} for s in summaries]
    for entries in (setups, data, models):
        if names := differing(entries):
            return [", ".join(f"{name} {_format_value(name, entry.get(name))}" for name in names) for entry in entries]
    return ["" for _ in summaries]


def _format_value(name: str, value: Any) -> str:
    if value is None or value == []:
        return "all" if name in ALL else "none"
    return textwrap.shorten(", ".join(map(str, value)) if isinstance(value, list) else str(value), 50)
