"""Reads results, and decides which belong on one curve: checkpoints of one training, or revisions of one model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.errors import InputError
from eval.files import read_json
from eval.metrics.version import check_metrics
from eval.runner.keys import RECORDS_VERSION, SELECTION

REMEDY = "remove it and evaluate again: records are kept"


def find_summaries(folder: Path) -> list[dict[str, Any]]:
    """Reads all complete results of one run.

    Args:
        folder: a run folder that holds exactly one curve.

    Returns:
        The summaries ordered by RLHF step, each with its own folder as 'results'.

    Raises:
        InputError: there are no results, or they do not belong on one curve: two of the same step, or results of
            different models, data, formats or settings.
    """
    summaries = read_summaries(folder)
    for other in summaries[1:]:
        if name := differs_in(summaries[0], other):
            raise InputError(
                f"{folder} holds results that do not belong on one curve: {name} differs between "
                f"{summaries[0]['results']} and {other['results']}; give the folder of one run or model"
            )
    return by_step(summaries, folder)


def read_summaries(folder: Path) -> list[dict[str, Any]]:
    """Reads all complete results below a folder.

    Returns:
        The summaries in the order of their paths, each with its own folder as 'results'.

    Raises:
        InputError: the folder does not exist or has no results, or a result is damaged or of another records version.
    """
    if not folder.is_dir():
        raise InputError(f"run folder {folder} is not there; give the folder of a training run or of `eval run`")
    summaries = []
    for path in sorted(folder.rglob("summary.json")):
        summary = read_json(path, REMEDY)
        if summary is not None and "metrics" in summary:
            _check(path, summary)
            if "step" not in summary:
                raise InputError(
                    f"{path} has no 'step', so it cannot be placed on a curve; evaluate again: records are kept"
                )
            summaries.append({**summary, "results": str(path.parent)})
    if not summaries:
        raise InputError(f"run folder {folder} has no finished evaluation (no summary.json in it)")
    return summaries


def _check(path: Path, summary: dict[str, Any]) -> None:
    """Raises InputError for a summary of another records version or with numbers that are not finite."""
    version = summary.get("records_version")
    if version != RECORDS_VERSION:
        raise InputError(
            f"{path} was written by another selfcorrect (records version {version}, not {RECORDS_VERSION}); evaluate "
            "again into another folder, or give RUNS without it"
        )
    check_metrics(path, summary)
    try:
        json.dumps(summary, allow_nan=False)
    except ValueError as error:
        raise InputError(f"{path} is damaged (a number in it is not finite); {REMEDY}") from error


def by_step(summaries: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Sorts summaries by step. Raises InputError where two are of the same step."""
    seen = {s["step"]: s["results"] for s in summaries}
    if len(seen) < len(summaries):
        twice = next(s for s in summaries if seen[s["step"]] != s["results"])
        raise InputError(
            f"{folder} holds two results of step {twice['step']}: {twice['results']} and {seen[twice['step']]}; "
            "give the folder of one run or model"
        )
    return sorted(summaries, key=lambda s: s["step"])


def step_name(summaries: list[dict[str, Any]]) -> str:
    """What the steps of one curve count: 'RLHF step', 'training step' ..."""
    return summaries[0].get("step_name") or "RLHF step"


def differs_in(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """The first setting in which two results differ although it must be the same along a curve, or None.

    Full checkpoints of one training are models under different names, so the name alone does not separate them.
    Revisions, and models of different size, are separated by name.
    """
    if step_name([one]) != step_name([other]):
        return "step_name"
    names = ("model", "format", "system_turn", "dtype", "prompt_version", *SELECTION)
    full_checkpoints = not any(s.get("adapter") or s.get("revision") for s in (one, other))
    same_training = full_checkpoints and one.get("model_params") == other.get("model_params")
    return next((n for n in names if one.get(n) != other.get(n) and not (n == "model" and same_training)), None)
