"""What a policy's results become on Weights & Biases: names, rows, settings and last values. Does not use wandb.

Rows are named eval/<experiment>/<metric>[/<category>][_low|_high], against the axis that the policy's steps count.
final/... has the same at the policy's last step, for the panels against size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.errors import InputError

if TYPE_CHECKING:  # checking the login must not import what evaluation needs
    from eval.curves.gather import Curve

RUN_KEYS = ("data", "git_commit", "format", "dtype")
"""Settings of an evaluation that its run records. What the training recorded under these names is added as
training_data ...
"""
SETUP_KEYS = ("format", "system_turn", "dtype", "prompt_version", "evaluation", "data", "data_sha256")
"""How a policy was asked: what two curves of one training may differ in."""
NO_NUMBERS = ("experiments", "conditions", "paraphrases")
"""Settings of an evaluation that choose what else is asked, and do not change any number that is asked anyway."""
FORBIDDEN = "/\\#?%:"
"""Characters that W&B does not accept in the name of a project."""
LONGEST_NAME = 100
"""Longest policy name before its hash, in characters. A run's id, with what is added around it, may have 128."""
FREE_SETTINGS = ("seed", "data_seed", "run_name", "output_dir")
"""Settings of a training that may differ between seeds of one set-up."""


def digest(value: Any) -> str:
    """A short checksum of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def check_destination(project: str | None, entity: str | None) -> None:
    """Raises InputError for names that W&B does not accept. None means not named."""
    for name, value in (("project", project), ("entity", entity)):
        if value is not None and (not value.strip() or len(value) > 128 or set(value) & set(FORBIDDEN)):
            raise InputError(f"{name} must have 1 to 128 characters without {' '.join(FORBIDDEN)}, not '{value}'")


def axis_of(curve: Curve) -> str:
    """rlhf_step, or the name of what else the steps count."""
    return axis_name(curve.step_name)


def axis_name(step_name: str) -> str:
    """'RLHF step' -> rlhf_step."""
    return step_name.lower().replace(" ", "_")


def setup_of(described: dict[str, Any], policy: str) -> str:
    """What the seeds of one training share: model, algorithm and a checksum of the settings.

    A model trained elsewhere is its own set-up.
    """
    if "algorithm" not in described:
        return policy
    settings = {k: v for k, v in described.get("settings", {}).items() if k not in FREE_SETTINGS}
    name = Path(str(described.get("model") or "model")).name
    return f"{name} {described['algorithm']} {digest([described.get('model'), settings])[:4]}"


def evaluated_setup(curve: Curve, policy: str) -> str:
    """The set-up of an evaluation's run: the training's set-up, and a checksum of how it was asked.

    Runs of one set-up are drawn as one line, so they must have been asked the same questions.
    """
    setup, first = setup_of(curve.described, policy), curve.summaries[0]
    if "algorithm" not in curve.described:
        return setup
    questions = {name: first.get(name) for name in SETUP_KEYS}
    questions["evaluation"] = {k: v for k, v in (first.get("evaluation") or {}).items() if k not in NO_NUMBERS}
    return f"{setup}, asked {digest(questions)[:4]}"


def trained_setup(setup: str) -> str:
    """The training's part of an evaluated set-up, which is the set-up of the training's own run."""
    return setup.partition(", asked ")[0]


def config_of(curve: Curve, policy: str, condition: str) -> dict[str, Any]:
    """The settings (wandb config) of an evaluation's run."""
    kept = {k: curve.summaries[0].get(k) for k in RUN_KEYS}
    trained = {f"training_{k}": curve.described[k] for k in RUN_KEYS if k in curve.described}
    return {
        **kept, **trained, "condition": condition, "policy": policy, "setup": evaluated_setup(curve, policy),
        "model": curve.model, "model_params": curve.model_params, "algorithm": curve.algorithm, "seed": curve.seed,
        "step_name": curve.step_name,
    }  # fmt: skip


def metric_name(metric: dict[str, Any]) -> str:
    """<experiment>/<metric>[/<category>] for a metric of summary.json."""
    part = "" if metric["category"] == "all" else "/" + metric["category"].replace(" ", "_")
    return f"{metric['experiment']}/{metric['name']}{part}"


def rows_of(curve: Curve, condition: str) -> dict[int, dict[str, float]]:
    """{step: {name: value}} of a condition, ordered by step, without undefined values."""
    rows = {s["step"]: _values(s, condition, "eval/") for s in curve.summaries}
    return {step: defined for step, row in sorted(rows.items()) if (defined := _defined(row))}


def final_values(curve: Curve, condition: str) -> dict[str, float | None]:
    """Every metric at the last step at which its experiment was asked, and that step.

    A metric that is undefined there is None, so that no value of an earlier step stays.
    """
    values: dict[str, float | None] = {}
    last: dict[str, int] = {}
    for summary in curve.summaries:
        for metric in summary["metrics"]:
            if metric["condition"] == condition:
                last[metric["experiment"]] = max(summary["step"], last.get(metric["experiment"], 0))
    for experiment, step in last.items():
        summary = curve.at(step)
        assert summary is not None
        row = _values(summary, condition, "final/")
        values |= {name: value for name, value in row.items() if name.split("/")[1] == experiment}
        values[f"final/{experiment}/step"] = step
    return values


def cautions_of(curve: Curve, condition: str) -> list[str]:
    """What to know before believing the condition's numbers, by step.

    Cautions on categories, and on differing numbers of items, are given for the last step only.
    """
    from eval.curves.cautions import checkpoint_cautions, different_items, leading

    lines = []
    for summary in curve.summaries:
        for caution in leading(checkpoint_cautions(summary, curve.name)):
            if caution.condition == condition and (caution.category == "all" or caution.step == curve.steps[-1]):
                lines.append(f"step {caution.step}, {caution.experiment}: {caution.text}")
    last = curve.summaries[-1]
    return [*lines, *(f"step {last['step']}: {line}" for line in different_items(last))]


def _values(summary: dict[str, Any], condition: str, prefix: str) -> dict[str, float | None]:
    """Values and interval ends of a condition's metrics, by prefixed name."""
    row: dict[str, float | None] = {}
    for metric in summary["metrics"]:
        if metric["condition"] == condition:
            name = prefix + metric_name(metric)
            row |= {name: metric["value"], name + "_low": metric["low"], name + "_high": metric["high"]}
    return row


def _defined(row: dict[str, float | None]) -> dict[str, float]:
    """Drops undefined values, and the intervals of undefined metrics."""
    return {
        n: v for n, v in row.items() if v is not None and row[n.removesuffix("_low").removesuffix("_high")] is not None
    }


def by_experiment(row: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The metrics of a row by experiment, as floats, since W&B returns 1.0 as 1."""
    grouped: dict[str, dict[str, float]] = {}
    for name, value in row.items():
        if name.startswith("eval/") and value is not None:
            grouped.setdefault(name.split("/")[1], {})[name] = float(value)
    return grouped


def missing_rows(rows: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The wanted rows that have not arrived.

    Args:
        rows: rows as W&B returns them.
        wanted: rows that were sent. One has arrived if some row has all its values.
    """
    by_first_value: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name in {
        next(iter(wanted_row)) for wanted_row in wanted
    }:  # index by the first value, since a training has thousands of rows
        for row in rows:
            if name in row:
                by_first_value.setdefault((name, plain(row[name])), []).append(row)

    def arrived(wanted_row: dict[str, Any]) -> bool:
        name, value = next(iter(wanted_row.items()))
        candidates = by_first_value.get((name, plain(value)), [])
        return any(all(n in row and plain(row[n]) == plain(v) for n, v in wanted_row.items()) for row in candidates)

    return [wanted_row for wanted_row in wanted if not arrived(wanted_row)]


def plain(value: Any) -> str:
    """A value as text for comparison: 1 equals 1.0, and NaN and infinities equal their names."""
    try:
        return repr(float(value))
    except (TypeError, ValueError):
        return str(value)


def picture_name(path: Path) -> str:
    """The name under which a picture is logged, which is also a panel's media key."""
    return "report/page" if path.suffix == ".html" else f"report/{path.stem}"
