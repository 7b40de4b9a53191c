"""`python -m eval emergence RUNS...`: at which size, and at which step, does the instruction begin to reduce bias?

Along size: curves of one algorithm, at one step that all of them have; trainings of one size are its seeds. Along step:
the curves of one size, together where they have enough steps in common. Effects are computed on the questions that all
of them were asked under both conditions, so that the bootstrap can draw templates for all of them together. The
statistics are in eval.stats.change_point, the words in eval.views.emergence.sentences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eval.cli.dispatch import CommandOutput
from eval.cli.parser import check_seed, split_commas
from eval.curves.cautions import caution_of, checkpoint_cautions
from eval.curves.gather import Curve, find, gather
from eval.curves.headline import EXPECTED, MOST_PROBABLE, SCORINGS
from eval.errors import InputError, nearest
from eval.experiments.conditions import CONDITIONS
from eval.experiments.registry import EXPERIMENTS
from eval.metrics.measure import CONTROL
from eval.stats.bootstrap import Bootstrap, Quantity, holm
from eval.stats.change_point import Effects, Undefined, change_point, over_trainings, reductions
from eval.views.emergence import sentences
from eval.views.emergence.axes import STEP, Axis, axes, describe_family
from eval.views.emergence.shared_questions import FolderQuestions, NoSharedQuestions, metric_name, shared_pairs
from eval.views.options import RunsConfig

RESAMPLES = 2000


@dataclass
class EmergenceConfig(RunsConfig):
    """Options of `eval emergence`."""

    experiments: list[str] = field(default_factory=list, metadata={"help": "which experiments; default: all there are"})
    step: int | None = field(
        default=None, metadata={"help": "step at which sizes are compared; default: the largest that all of them have"}
    )
    scoring: str = field(
        default=EXPECTED,
        metadata={"help": "BBQ's answers: expected (order-symmetrised where asked so) or most-probable, as the paper"},
    )
    seed: int = field(default=0, metadata={"help": "seed of the bootstrap"})
    resamples: int = field(default=RESAMPLES, metadata={"help": "resamples of the bootstrap"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.experiments = split_commas(self.experiments)
        for name in self.experiments:
            if name not in EXPERIMENTS:
                raise InputError(f"experiments: unknown '{name}'{nearest(name, list(EXPERIMENTS))}")
        if self.scoring not in SCORINGS:
            raise InputError(f"scoring must be {EXPECTED} or {MOST_PROBABLE}, not '{self.scoring}'")
        if self.resamples < 200:
            raise InputError(f"resamples must be at least 200, not {self.resamples}")
        check_seed(self.seed)


def emergence(config: EmergenceConfig) -> CommandOutput:
    """Runs `eval emergence`.

    Returns:
        The text for the terminal, and {"thresholds": [...], "left_out": [lines], "seed", "resamples", "scoring"}.

    Raises:
        InputError: the runs have no Q, no instruction, neither enough sizes nor enough steps, or a size lacks the step.
    """
    curves = gather(config.folders)
    check_conditions(curves)
    entries, left_out = thresholds(
        curves, config.seed, config.resamples, config.experiments, config.step, config.scoring, strict=True
    )
    if not entries:
        raise InputError(f"no threshold can be looked for: {'; '.join(left_out)}")
    result = {
        "thresholds": entries, "left_out": left_out, "seed": config.seed, "resamples": config.resamples,
        "scoring": config.scoring,
    }  # fmt: skip
    return sentences.text(entries, left_out), result


def default_thresholds(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """The thresholds of these curves with the command's default options; [] where none can be looked for."""
    return thresholds(curves)[0]


def thresholds(
    curves: Sequence[Curve], seed: int = 0, resamples: int = RESAMPLES, experiments: Sequence[str] = (),
    step: int | None = None, scoring: str = EXPECTED, strict: bool = False,
) -> tuple[list[dict[str, Any]], list[str]]:  # fmt: skip
    """Looks for a threshold on each axis, for each experiment and condition.

    Args:
        experiments: which experiments; empty = all.
        step: the step at which sizes are compared; None = the largest that all have.
        strict: whether a `step` that some size lacks is an error; else the size axis is left out.

    Returns:
        (an entry for each threshold, a line for each that was left out).

    Raises:
        InputError: `strict`, and some size lacks the `step`.
    """
    left_out: list[str] = []
    entries = []
    cache: dict[Path, FolderQuestions] = {}
    for axis in axes(curves, step, left_out, strict):
        axis_entries = list(_along(axis, cache, seed, resamples, experiments, scoring, left_out))
        for condition in {e["condition"] for e in axis_entries}:
            family = [e for e in axis_entries if e["condition"] == condition]
            for entry, p in zip(family, holm([e["p_value"] for e in family]), strict=True):
                sentences.conclude(entry, p)
        entries += axis_entries
    return entries, list(dict.fromkeys(left_out))


def check_conditions(curves: Sequence[Curve]) -> None:
    """Raises InputError where no result is with the instruction, or none without."""
    evaluated = {m["condition"] for c in curves for s in c.summaries for m in s["metrics"]}
    if CONTROL not in evaluated:
        raise InputError(f"no result has the condition {CONTROL}, which an instruction is compared with; evaluate it")
    if not any(c in CONDITIONS and CONDITIONS[c].instruction for c in evaluated):
        raise InputError("no result has the condition Q+IF or Q+IF+CoT, whose effect is looked for; evaluate one")


def _along(
    axis: Axis, cache: dict[Path, FolderQuestions], seed: int, resamples: int, experiments: Sequence[str], scoring: str,
    left_out: list[str],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Yields an entry for each experiment and condition that all of the axis' checkpoints were asked under."""
    bootstrap = Bootstrap(seed, resamples)
    folders = [Path(s["results"]) for _, s in axis.checkpoints]
    for name in [e for e in EXPERIMENTS if not experiments or e in experiments]:
        for condition in [c.name for c in CONDITIONS.values() if c.instruction]:
            where = f"{axis.kind}, {describe_family([c for c, _ in axis.checkpoints])}, {name}, {condition}"
            try:
                _check_same_questions(axis, name)
                pairs = shared_pairs(folders, name, condition, scoring, cache)
                if pairs is None:  # no checkpoint has this condition
                    continue
                before, after = [p.before for p in pairs], [p.after for p in pairs]
                reduced = reductions(before, after, bootstrap)
            except (NoSharedQuestions, Undefined) as error:
                left_out.append(f"{where}: {error}")
                continue
            place_P = np.array([k for k, place in enumerate(axis.places) for _ in place.checkpoints])
            effects = over_trainings(*reduced, place_P, seed, same_trainings=axis.kind == STEP)
            threshold = change_point(axis.x_M, effects)
            means = [_means(part, place_P) for part in (before, after)]
            entry = sentences.entry(axis, name, condition, before[0], threshold)
            entry["points"] = _points(axis, effects, means)
            entry["cautions"] = _cautions(axis, name, condition, before[0].name)
            yield entry | {"seed": seed, "resamples": resamples}


def _means(measured: Sequence[Quantity], place_P: np.ndarray) -> list[float]:
    """The value at each place.

    Several trainings of a place are averaged by absolute value, since reduction is defined on it: signed biases that
    point to opposite sides would cancel.
    """
    values = np.array([q.value for q in measured])
    at = [values[place_P == k] for k in range(int(place_P.max()) + 1)]
    return [float(abs(v).mean() if len(v) > 1 else v[0]) for v in at]


def _check_same_questions(axis: Axis, experiment: str) -> None:
    """Raises NoSharedQuestions where the checkpoints were evaluated on different data, or with different prompts."""
    for key, difference in (("data_sha256", "other data"), ("prompt_version", "other words")):
        values = []
        for _, summary in axis.checkpoints:
            value = summary.get(key)
            values.append(value.get(experiment) if isinstance(value, dict) else value)
        recorded = [v for v in values if v is not None]
        if any(v != recorded[0] for v in recorded):
            raise NoSharedQuestions(f"the checkpoints were asked with {difference} ({key} differs)")


def _points(axis: Axis, effects: Effects, means: list[list[float]]) -> list[dict[str, Any]]:
    """An entry for each place: the reduction with its interval, and the bias under both conditions."""
    rows = zip(axis.places, effects.values, effects.intervals(), effects.trainings, *means, strict=True)
    return [
        {
            "at": place.at, "reduction": float(value), "low": float(low), "high": float(high), "trainings": int(n),
            "before": q, "after": instructed,
        }
        for place, value, (low, high), n, q, instructed in rows
    ]  # fmt: skip


def _cautions(axis: Axis, experiment: str, condition: str, name: str) -> list[dict[str, Any]]:
    """{"at", "condition", "text"} for each place and condition whose number means little."""
    by_place: dict[tuple[int, str], dict[str, Any]] = {}  # by place and condition
    for place in axis.places:
        for curve, summary in place.checkpoints:
            cautions = list(checkpoint_cautions(summary, curve.name))
            for of in (CONTROL, condition):
                metric = find(summary, experiment, of, metric_name(experiment, summary, of, name))
                if metric and (caution := caution_of(cautions, curve.name, summary["step"], metric)):
                    by_place.setdefault((place.at, of), {"at": place.at, "condition": of, "text": caution.text})
    return list(by_place.values())
