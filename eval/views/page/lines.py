"""What one line of the page, against size, may join: sizes of one kind of model, of one training with one seed, that
were all asked the same questions.

Sizes that are not joined for another reason than training or seed are explained in a sentence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from eval.curves.gather import Curve
from eval.curves.kinds import kind
from eval.experiments.registry import EXPERIMENTS
from eval.views.figures.cells import first_few, questions_differ


def family(curve: Curve) -> str:
    """The label of what one line against size joins: the same algorithm, seed and kind of model."""
    parts = [curve.algorithm, None if curve.seed is None else f"seed {curve.seed}", kind(curve)]
    return ", ".join(p for p in parts if p)


def question_keys(curves: Sequence[Curve], experiment: str) -> list[str]:
    """A key for each checkpoint, in order: equal keys mean the same questions in the experiment.

    The key has the values of the settings in which the curves' questions differ. Checkpoints with different keys do not
    belong on one line.
    """
    differ = questions_differ(curves, experiment)
    return [json.dumps([_setting(s, experiment, name) for name in differ]) for c in curves for s in c.summaries]


def _setting(summary: dict[str, Any], experiment: str, name: str) -> Any:
    """A setting of a summary or of its evaluation; where it is by experiment, that of the experiment."""
    value = summary.get(name, (summary.get("evaluation") or {}).get(name))
    return value.get(experiment) if isinstance(value, dict) else value


def describe_unjoined(curves: Sequence[Curve], experiments: Sequence[str]) -> str:
    """Which sizes no line joins although training and seed are the same, and why; '' where there are none."""
    sized = [c for c in curves if c.model_params is not None]
    reasons = []
    for trained in _of_sizes(sized, lambda c: (c.algorithm, c.seed)):
        if len(kinds := list(dict.fromkeys(kind(c) for c in trained))) > 1:
            reasons.append(f"{' | '.join(kinds)} (different models)")
    for joined in _of_sizes(sized, family):
        differences: dict[str, tuple[list[str], dict[str, None]]] = {}
        for experiment in experiments:
            if differ := questions_differ(joined, experiment):
                titles, settings = differences.setdefault(_describe_groups(joined, experiment), ([], {}))
                titles.append(EXPERIMENTS[experiment].TITLE.partition(",")[0])
                settings |= dict.fromkeys(differ)
        for names, (titles, settings) in differences.items():
            reasons.append(f"{names} ({', '.join(titles)}: asked differently in {', '.join(settings)})")
    return f"Not joined by lines: {'; '.join(dict.fromkeys(reasons))}." if reasons else ""


def _of_sizes(curves: Sequence[Curve], key: Callable[[Curve], Any]) -> list[list[Curve]]:
    """Groups the curves by key, and keeps the groups with several sizes."""
    groups: dict[Any, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(key(curve), []).append(curve)
    return [g for g in groups.values() if len({c.model_params for c in g}) > 1]


def _describe_groups(curves: Sequence[Curve], experiment: str) -> str:
    """'a, b | c': the curves that were asked the same questions stand together."""
    groups: dict[str, list[str]] = {}
    checkpoints = [(c, s) for c in curves for s in c.summaries]
    for (curve, summary), settings in zip(checkpoints, question_keys(curves, experiment), strict=True):
        if any(m["experiment"] == experiment for m in summary["metrics"]):
            groups.setdefault(settings, []).append(curve.name)
    return " | ".join(first_few(list(dict.fromkeys(names)), 4) for names in groups.values())
