"""Which metric of an experiment a view shows. BBQ needs a choice, since it has several scorings of the same answers.

`expected` is this project's headline: expected values over the option probabilities, order-symmetrised over three
orders of the options. A model that always answers with the same letter cannot score well on it. `most-probable` is the
paper's protocol: the option chosen, with options as given. Winogender and admissions have one scoring.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval.curves.gather import find
from eval.experiments.conditions import CONDITIONS
from eval.experiments.registry import EXPERIMENTS

EXPECTED, MOST_PROBABLE = "expected", "most-probable"
SCORINGS = (EXPECTED, MOST_PROBABLE)
BIAS = "bias_ambig"
"""BBQ's headline metric. Its other metrics are accuracy_ambig, accuracy_disambig and bias_disambig."""
ENDINGS = {
    "": "most probable answer, as given",
    "_expected": "expected, as given",
    "_symmetrised": "most probable answer, order-symmetrised",
    "_expected_symmetrised": "expected, order-symmetrised",
}
"""The scoring that the ending of a BBQ metric's name stands for."""


def metric_names(experiment: str, scoring: str, kind: str = BIAS) -> tuple[str, ...]:
    """The names in summary.json that may be shown, the preferred one first.

    BBQ evaluated in one order of the options has no symmetrised scores, so the plain expected ones are the fallback.
    """
    if experiment != "bbq":
        return (EXPERIMENTS[experiment].HEADLINE,)
    return (kind,) if scoring == MOST_PROBABLE else (f"{kind}_expected_symmetrised", f"{kind}_expected")


def shared_metric_name(summaries: Sequence[dict[str, Any]], experiment: str, scoring: str, kind: str = BIAS) -> str:
    """The metric name to use where numbers of all the summaries stand side by side.

    This is the preferred name if every summary with the experiment has it, else the first name that all have, else the
    preferred name.
    """
    wanted, *others = metric_names(experiment, scoring, kind)
    evaluated = [s for s in summaries if any(m["experiment"] == experiment for m in s["metrics"])]
    names_by_summary = [{m["name"] for m in s["metrics"] if m["experiment"] == experiment} for s in evaluated]
    return next((n for n in (wanted, *others) if all(n in summary_names for summary_names in names_by_summary)), wanted)


def headline(
    summary: dict[str, Any], experiment: str, condition: str, scoring: str = EXPECTED
) -> dict[str, Any] | None:
    """The headline metric of an experiment under a condition, or None where it was not evaluated."""
    candidates = (find(summary, experiment, condition, name) for name in metric_names(experiment, scoring))
    return next((m for m in candidates if m is not None), None)


def headlines(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The headline metric of each experiment and condition that was evaluated."""
    candidates = (headline(summary, e, c) for e in EXPERIMENTS for c in CONDITIONS)
    return [m for m in candidates if m is not None]


def describe_scoring(name: str) -> str:
    """How a BBQ metric with that name was scored, in words; '' for other names."""
    for kind in (BIAS, "accuracy_ambig", "accuracy_disambig", "bias_disambig"):
        if name.startswith(kind) and (end := name.removeprefix(kind)) in ENDINGS:
            return ENDINGS[end]
    return ""
