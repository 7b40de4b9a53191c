"""Which settings determine the questions that a checkpoint was asked, and in which of them results differ.

Checkpoints that were asked different questions have no mean, and no line joins them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from eval.experiments.conditions import CONDITIONS

ALL = ("limit", "cot_limit", "categories")
"""Settings for which None, or an empty list, means everything."""
SETUP = ("step_name", "data", "format", "system_turn", "dtype", "prompt_version")
"""Settings to compare, besides the evaluation's own, where one model was evaluated in several ways."""


def question_settings(summary: dict[str, Any], experiment: str, condition: str) -> dict[str, Any]:
    """The settings that determine the questions of an experiment under a condition, and their wording."""
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
    """The names of the settings in which the entries are not all the same."""
    names = dict.fromkeys(name for entry in settings for name in entry)
    return [name for name in names if len({repr(entry.get(name)) for entry in settings}) > 1]


def describe_settings(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """Describes each result by the settings in which the results differ, such as 'limit 60' and 'limit all'.

    Returns:
        A text for each summary; '' for all where they do not differ.
    """
    setups = [{name: s.get(name) for name in SETUP} | (s.get("evaluation") or {}) for s in summaries]
    data = [{f"{e} data": str(v)[:8] for e, v in (s.get("data_sha256") or {}).items()} for s in summaries]
    models = [{"model": s.get("model")} for s in summaries]
    for entries in (setups, data, models):
        if names := differing(entries):
            return [", ".join(f"{name} {_format_value(name, entry.get(name))}" for name in names) for entry in entries]
    return ["" for _ in summaries]


def _format_value(name: str, value: Any) -> str:
    """The value in words, shortened to 50 characters; 'all' or 'none' where it is empty."""
    if value is None or value == []:
        return "all" if name in ALL else "none"
    return textwrap.shorten(", ".join(map(str, value)) if isinstance(value, list) else str(value), 50)
