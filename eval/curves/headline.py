"""Which of an experiment's metrics a view shows: BBQ has several scorings of the same answers.

`expected` is the project's headline: expected values over the option probabilities, order-symmetrised over three orders
of the options, which a model that answers by the letter cannot fake. `most-probable` is the paper's protocol: the
option chosen, options as given. Winogender and admissions have one scoring.
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
"""BBQ's metric that stands for it; the others are accuracy_ambig, accuracy_disambig and bias_disambig."""
ENDINGS = {
    "": "most probable answer, as given",
    "_expected": "expected, as given",
    "_symmetrised": "most probable answer, order-symmetrised",
    "_expected_symmetrised": "expected, order-symmetrised",
}
"""What the end of a BBQ metric's name says."""


def metric_names(experiment: str, scoring: str, kind: str = BIAS) -> tuple[str, ...]:
    """The names in summary.json that may be shown, the wanted one first. BBQ asked in one order only has no
    symmetrised scores, and the expected ones are shown.
    """
    if experiment != "bbq":
        return (EXPERIMENTS[experiment].HEADLINE,)
    return (kind,) if scoring == MOST_PROBABLE else (f"{kind}_expected_symmetrised", f"{kind}_expected")


def shared_metric_name(summaries: Sequence[dict[str, Any]], experiment: str, scoring: str, kind: str = BIAS) -> str:
    """The one name under which numbers of all the summaries can stand beside each other: the wanted one where every
    summary with the experiment has it.
    """
    wanted, *others = metric_names(experiment, scoring, kind)
    evaluated = [s for s in summaries if any(m["experiment"] == experiment for m in s["metrics"])]
    names_by_summary = [{m["name"] for m in s["metrics"] if m["experiment"] == experiment} for s in evaluated]
    return next((n for n in (wanted, *others) if all(n in summary_names for summary_names in names_by_summary)), wanted)


def headline(
    summary: dict[str, Any], experiment: str, condition: str, scoring: str = EXPECTED
) -> dict[str, Any] | None:
    """The metric that stands for an experiment, None where it was not asked."""
    candidates = (find(summary, experiment, condition, name) for name in metric_names(experiment, scoring))
    return next((m for m in candidates if m is not None), None)


def headlines(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each experiment and condition the metric that stands for it."""
    candidates = (headline(summary, e, c) for e in EXPERIMENTS for c in CONDITIONS)
    return [m for m in candidates if m is not None]


def describe_scoring(name: str) -> str:
    """How a BBQ metric of that name was scored, in words; '' for other names."""
    for kind in (BIAS, "accuracy_ambig", "accuracy_disambig", "bias_disambig"):
        if name.startswith(kind) and (end := name.removeprefix(kind)) in ENDINGS:
            return ENDINGS[end]
    return ""
