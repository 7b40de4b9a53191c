"""What a policy's results become on Weights & Biases: names, rows, settings and last values, without wandb.

eval/<experiment>/<metric>[/<category>][_low|_high] are the rows' names, against the axis that the policy's steps count;
final/... the same at its last step, for the panels against size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.ledger import digest
from eval.views.explained import of_checkpoint
from eval.views.gathered import Curve

RUN_KEYS = ("data", "git_commit", "format", "dtype")
"""Of an evaluation; what the training says of these is recorded beside them, as training_data ..."""
FREE_SETTINGS = ("seed", "data_seed", "run_name", "output_dir")
"""Settings of a training that may differ between seeds of one set-up."""


def axis_of(curve: Curve) -> str:
    """rlhf_step, or what else the steps count."""
    return curve.step_name.lower().replace(" ", "_")


def setup_of(described: dict[str, Any], policy: str) -> str:
    """What seeds of one training have in common: model, algorithm and a checksum of the settings. Runs of one set-up
    are drawn as one line. A model trained elsewhere is one by itself.
    """
    if "algorithm" not in described:
        return policy
    settings = {k: v for k, v in described.get("settings", {}).items() if k not in FREE_SETTINGS}
    name = Path(str(described.get("model") or "model")).name
    return f"{name} {described['algorithm']} {digest([described.get('model'), settings])[:4]}"


def config_of(curve: Curve, policy: str, condition: str) -> dict[str, Any]:
    """The settings of an evaluation's run."""
    kept = {k: curve.summaries[0].get(k) for k in RUN_KEYS}
    trained = {f"training_{k}": curve.described[k] for k in RUN_KEYS if k in curve.described}
    return {
        **kept, **trained, "condition": condition, "policy": policy, "setup": setup_of(curve.described, policy),
        "model": curve.model, "model_params": curve.model_params, "algorithm": curve.algorithm, "seed": curve.seed,
        "step_name": curve.step_name,
    }  # fmt: skip


def metric_name(metric: dict[str, Any]) -> str:
    """<experiment>/<metric>[/<category>] of a metric of summary.json."""
    part = "" if metric["category"] == "all" else "/" + metric["category"].replace(" ", "_")
    return f"{metric['experiment']}/{metric['name']}{part}"


def rows_of(curve: Curve, condition: str) -> dict[int, dict[str, float]]:
    """{step: {name: value}} of a condition, steps in their order; undefined values are left out."""
    rows = {s["step"]: _values(s, condition, "eval/") for s in curve.summaries}
    return {step: found for step, row in sorted(rows.items()) if (found := _defined(row))}


def final_values(curve: Curve, condition: str) -> dict[str, float | None]:
    """Every metric at the last step at which its experiment was asked, and that step; None where undefined there, so
    that no value of an earlier step stays.
    """
    found: dict[str, float | None] = {}
    last: dict[str, int] = {}
    for summary in curve.summaries:
        for metric in summary["metrics"]:
            if metric["condition"] == condition:
                last[metric["experiment"]] = max(summary["step"], last.get(metric["experiment"], 0))
    for experiment, step in last.items():
        summary = curve.at(step)
        assert summary is not None
        row = _values(summary, condition, "final/")
        found |= {name: value for name, value in row.items() if name.split("/")[1] == experiment}
        found[f"final/{experiment}/step"] = step
    return found


def cautions_of(curve: Curve, condition: str) -> list[str]:
    """What to know before believing the condition's numbers, by step; of BBQ's categories at the last step only."""
    lines = []
    for summary in curve.summaries:
        for caution in of_checkpoint(summary, curve.name):
            if caution.condition == condition and (caution.category == "all" or caution.step == curve.steps[-1]):
                lines.append(f"step {caution.step}, {caution.experiment}: {caution.text}")
    return lines


def _values(summary: dict[str, Any], condition: str, prefix: str) -> dict[str, float | None]:
    row: dict[str, float | None] = {}
    for metric in summary["metrics"]:
        if metric["condition"] == condition:
            name = prefix + metric_name(metric)
            row |= {name: metric["value"], name + "_low": metric["low"], name + "_high": metric["high"]}
    return row


def _defined(row: dict[str, float | None]) -> dict[str, float]:
    """Without what is undefined, and without the interval of what is."""
    return {
        n: v for n, v in row.items() if v is not None and row[n.removesuffix("_low").removesuffix("_high")] is not None
    }


def by_experiment(row: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The metrics of a row, experiment by experiment."""
    parts: dict[str, dict[str, float]] = {}
    for name, value in row.items():
        if name.startswith("eval/"):
            parts.setdefault(name.split("/")[1], {})[name] = value
    return parts


def picture_name(path: Path) -> str:
    """The name under which a picture is logged: a panel's media key."""
    return "report/page" if path.suffix == ".html" else f"report/{path.stem}"
