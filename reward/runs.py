"""Reads finished reward models from disk: reward.json, the probe, and the learning curve of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from eval.errors import InputError
from eval.files import read_json
from eval.models.checkpoints import weights_id

RESULT = "reward.json"
NEEDED = ("base_model", "base_weights", "pairs", "held_out_pairs", "accuracy", "calibration", "length_bias")
PROBE = Path("probe") / "probe.json"
SAME = ("held_out_sha256", "base_weights")
"""Runs of one learning curve must agree in these: the held-out pairs, and the weights that they start from."""
VARIED = {"pairs", "max_pairs"}
"""The settings that a learning curve varies."""


def read_run(folder: Path) -> dict[str, Any]:
    """The content of reward.json of a finished run, with "run": the folder.

    Raises:
        InputError: the folder is not a finished run, or an earlier version wrote it.
    """
    if not folder.is_dir():
        raise InputError(f"run folder {folder} is not there; give an output_dir of `accelerate launch -m reward.train`")
    result = read_json(folder / RESULT)
    if result is None:
        raise InputError(
            f"{folder} has no {RESULT}: no finished run of `accelerate launch -m reward.train`; start its command "
            "again to finish it, or give its output_dir"
        )
    missing = [n for n in NEEDED if n not in result]
    if missing or not isinstance(result["accuracy"], dict):
        raise InputError(
            f"{folder / RESULT} was written by an earlier selfcorrect (no {missing[0] if missing else 'subsets'}); "
            "train the reward model again"
        )
    return {**result, "run": str(folder)}


def read_probe(folder: Path) -> dict[str, Any] | None:
    """The probe of a run; None if it was not run.

    Raises:
        InputError: the probed weights are not those of the run's model.
    """
    probe = read_json(folder / PROBE)
    if probe is None:
        return None
    probed, model = probe.get("provenance", {}).get("weights"), folder / "model"
    if probed is not None and model.is_dir() and probed != (now := weights_id(str(model))):
        raise InputError(
            f"{folder / PROBE} is of other weights than {model} ({probed} there, {now} now); run "
            f"`{probe_command(folder)}` again"
        )
    return probe


def probe_command(folder: Path) -> str:
    """The command that probes a run's model."""
    return f"python -m reward probe --model {folder / 'model'}"


def learning_curve(runs: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Makes a learning curve of runs, ordered by the number of training pairs.

    Returns:
        ([{"run", "pairs", "accuracy"}], a line for each other setting in which the runs differ).

    Raises:
        InputError: the runs have different held-out pairs or starting weights, or two have the same number of pairs.
    """
    first = runs[0]
    for other in runs[1:]:
        for name in SAME:
            if first.get(name) != other.get(name):
                raise InputError(
                    f"{first['run']} and {other['run']} make no learning curve: their {name} differs "
                    f"({_short(first.get(name))}, {_short(other.get(name))}); give runs that differ in max_pairs only"
                )
    ordered = sorted(runs, key=lambda r: r["pairs"])
    for one, other in pairwise(ordered):
        if one["pairs"] == other["pairs"]:
            raise InputError(
                f"{one['run']} and {other['run']} were both trained on {one['pairs']} pairs; a learning curve takes "
                "one run of each number"
            )
    curve = [{"run": r["run"], "pairs": r["pairs"], "accuracy": r["accuracy"]["all"]} for r in ordered]
    settings = [{"git_commit": r.get("git_commit"), **r.get("settings", {})} for r in ordered]
    remarks = []
    for name in sorted({n for s in settings for n in s} - VARIED):
        values = [s.get(name) for s in settings]
        if any(v != values[0] for v in values):
            values_by_run = ", ".join(f"{_short(v)} for {r['pairs']}" for v, r in zip(values, ordered, strict=True))
            remarks.append(f"the runs of the learning curve differ also in {name}: {values_by_run} pairs")
    return curve, remarks


def limitations(run: dict[str, Any], probe: dict[str, Any] | None) -> list[str]:
    """What the numbers say against the model, and what they cannot say; one sentence each."""
    everything, length = run["accuracy"]["all"], run["length_bias"]
    sentences = []
    if everything["low"] is None or everything["low"] <= 0.5:
        sentences.append(
            "Its held-out accuracy cannot be distinguished from guessing (0.5 lies in the interval or below it)."
        )
    unsure = [s for s, e in run["accuracy"]["by_subset"].items() if e["low"] is None or e["low"] <= 0.5]
    if unsure and len(run["accuracy"]["by_subset"]) > 1:
        sentences.append(f"On these subsets it cannot be distinguished from guessing: {', '.join(unsure)}.")
    rule = length["always_shorter"]["value"]
    if rule is not None and everything["value"] is not None:
        best, name = max((rule, "shorter"), (1 - rule, "longer"))
        if everything["value"] <= best:
            sentences.append(
                f"Choosing the {name} answer, without reading it, is right in {best:.3f} of the held-out pairs: as "
                "often as the model or more often."
            )
    by_longer = length["longer_is_better"], length["longer_is_worse"]
    if all(e["low"] is not None for e in by_longer):
        for preferred, (one, other) in (("longer", by_longer), ("shorter", by_longer[::-1])):
            if one["low"] > other["high"]:
                sentences.append(
                    f"It leans to the {preferred} answer: where that is the better one it is right in "
                    f"{one['value']:.3f} of the pairs, where it is the worse one in {other['value']:.3f}. A policy "
                    "optimised against it may learn length instead of quality."
                )
    if run.get("data") == "small set":
        sentences.append("Trained on the small set of selfcorrect's own writing: for demonstration only.")
    if probe is None:
        sentences.append("Whether it prefers one group of people to another was not measured.")
    return [
        *sentences,
        "The held-out pairs come from the same source as the training pairs: accuracy elsewhere may be lower, on "
        "answers that a policy was optimised to have rewarded in particular.",
        "It predicts which answer the annotators preferred, which is neither truth nor safety; differences of its "
        "scores have a meaning between answers to the same prompt only.",
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
