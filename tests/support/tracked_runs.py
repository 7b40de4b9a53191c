"""Results folders as they are published, and what wandb wrote of them."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wandb.util import get_core_path

from eval.curves.gather import gather
from eval.experiments.conditions import CONDITIONS
from eval.metrics.version import METRICS_VERSION
from eval.runner.keys import RECORDS_VERSION
from eval.tracking import client as tracking
from eval.tracking import send as sending


def summary(
    folder: Path, step: int, value: float, conditions: Sequence[str] = tuple(CONDITIONS), parts: int = 0, **more: Any
) -> Path:
    """Writes the result of a checkpoint; the k-th condition's rho is value + k. parts: more metrics of the first."""
    interval = {"low": None, "high": None} if step else {"low": value - 1, "high": value + 1}
    common = {"experiment": "winogender", "name": "rho", "category": "all", "n_items": 60, "note": "", **interval}
    metrics: list[dict[str, Any]] = [
        {**common, "condition": condition, "value": value + k} for k, condition in enumerate(conditions)
    ]
    metrics += [{**metrics[0], "name": f"p_{k}"} for k in range(parts)]
    metrics.append({**metrics[0], "name": "undefined_one", "value": None})
    target = folder / "eval" / f"step-{step:06d}"
    target.mkdir(parents=True, exist_ok=True)
    written = {
        "step": step,
        "metrics": metrics,
        "model": "m",
        "format": "chat",
        "dtype": "float32",
        "data": "small set",
        "records_version": RECORDS_VERSION,
        "metrics_version": METRICS_VERSION,
    } | more
    (target / "summary.json").write_text(json.dumps(written))
    return target


def publish(folder: Path) -> list[str]:
    """Sends what is new of a folder of results; the ids of the runs written."""
    curves = gather([folder])
    alone = folder if len(curves) == 1 else None
    return [run for curve in curves for run in sending.send(curve, tracking.Destination(), alone).runs]


def fragments(folder: Path) -> list[Path]:
    """The files of all offline runs in a folder, in the order of their times."""
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"))


def records(path: Path) -> list[dict[str, Any]]:
    """What is in a file, by `wandb leet inspect --json` without the start of Python around it."""
    command = [get_core_path(), "leet", "inspect", "--json", "--run-file", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def read_back(folder: Path) -> dict[str, dict[str, Any]]:
    """run id -> {run, rows, summary, metrics} of all offline runs in `folder`, by wandb's own reader."""
    found: dict[str, dict[str, Any]] = {}
    for path in fragments(folder):
        read = records(path)
        (run,) = [r["run"] for r in read if r["type"] == "run"]
        entry = found.setdefault(run["run_id"], {"run": run, "rows": [], "summary": {}, "metrics": []})
        entry["rows"] += [r["history"]["item"] for r in read if r["type"] == "history"]
        entry["metrics"] += [r["metric"] for r in read if r["type"] == "metric"]
        for r in read:
            if r["type"] == "summary":
                entry["summary"] |= r["summary"]["update"]
    return found


def found(folder: Path) -> Counter[tuple[str, int, str, float]]:
    """The same as it lies in all offline runs of the folder, all of which `wandb sync` would send."""
    return Counter(
        (run, row["rlhf_step"], metric, value)
        for run, entry in read_back(folder).items()
        for row in entry["rows"]
        for metric, value in row.items()
        if metric.startswith("eval/")
    )


def described(folder: Path) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"policy": "p", "algorithm": "rloo"}))
    return folder


def alone() -> dict[str, str]:
    """The environment without wandb's helper of this process, which a process started from it would share."""
    return {k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"}
