"""`python -m eval list [FOLDER]`: lists the results folders below FOLDER, their progress and their primary metrics."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from eval.cli.columns import columns
from eval.errors import InputError
from eval.runner.keys import same_selection
from eval.runner.store import Store

log = logging.getLogger(__name__)

SHOWN = ("Q", "Q+IF")
FOLDERS = ("folder", "model", "step", "dtype", "format", "data", "records", "state", "last written (UTC)")
METRICS = ("folder", "experiment", "records done/planned", "metric", *SHOWN)


def list_results(folder: Path) -> dict[str, Any]:
    """Lists the results folders below a folder.

    Returns:
        {"results": an entry per results folder, ordered by name, "warnings": a line per damaged folder}.

    Raises:
        InputError: `folder` is not there.
    """
    if not folder.is_dir():
        raise InputError(f"folder {folder} is not there; give a folder that has results folders in it")
    results, warnings = [], []
    names = {path.parent for name in ("provenance.json", "records.jsonl") for path in folder.rglob(name)}
    for path in sorted(names):
        try:
            results.append({"folder": str(path), **entry(Store(path))})
        except InputError as error:
            warnings.append(str(error))
        except (KeyError, TypeError, AttributeError) as error:
            warnings.append(f"{path} is damaged (a field is missing or has no such form: {error!r}); remove it")
    for line in warnings:
        log.warning("left out: %s", line)
    return {"results": results, "warnings": warnings}


def entry(store: Store) -> dict[str, Any]:
    """Returns the entry of one results folder.

    Its state is complete, in progress, or being extended. In the last case the metrics are those of the earlier
    selection of questions.

    Raises:
        InputError: The folder is damaged. KeyError, TypeError and AttributeError mean the same.
    """
    provenance = store.provenance()
    summary = store.summary()
    complete = summary is not None and same_selection(summary, provenance)
    source = provenance if summary is None else summary
    state = "complete" if complete else "in progress" if summary is None else "being extended"
    planned, done = provenance["planned"], provenance["done"]
    sessions = provenance["sessions"]
    return {
        **{name: source[name] for name in ("model", "step", "dtype", "format", "data")},
        **{name: source.get(name) for name in ("revision", "weights", "adapter", "adapter_weights", "model_params")},
        "cells": {
            e: {c: {"done": done.get(e, {}).get(c, 0), "planned": n} for c, n in cells.items()}
            for e, cells in planned.items()
        },
        "done": sum(sum(cells.values()) for cells in done.values()),
        "planned": sum(sum(cells.values()) for cells in planned.values()),
        "state": state,
        "date": summary["ended"] if complete and summary else sessions[-1]["ended"] if sessions else None,
        "metrics": primary_metrics(summary["metrics"]) if summary else [],
    }


def primary_metrics(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the metric that each experiment and condition reports first (bias_ambig, rho, gap), without reasoning."""
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for m in metrics:
        if m["category"] == "all" and m["condition"] in SHOWN:
            first.setdefault((m["experiment"], m["condition"]), m)
    return list(first.values())


def text(listed: dict[str, Any], root: Path) -> str:
    """Formats the listing for the terminal: a line per folder, then a line per folder and experiment."""
    results = listed["results"]
    if not results:
        return f"no results below {root}"
    return columns([FOLDERS, *(_row(f, root) for f in results)]) + "\n\n" + columns(
        [METRICS, *(row for f in results for row in _metric_rows(f, root))]
    )  # fmt: skip


def _name(result: dict[str, Any], root: Path) -> str:
    return Path(result["folder"]).relative_to(root).as_posix()


def _row(result: dict[str, Any], root: Path) -> tuple[str, ...]:
    model = Path(result["model"]).name or result["model"]
    model += f"@{result['revision']}" if result["revision"] else ""
    model += f" + {Path(result['adapter']).name}" if result["adapter"] else ""
    return (
        _name(result, root), model, str(result["step"]), result["dtype"] or "", result["format"], result["data"],
        f"{result['done']}/{result['planned']}", result["state"], (result["date"] or "").removesuffix("+00:00"),
    )  # fmt: skip


def _metric_rows(result: dict[str, Any], root: Path) -> list[tuple[str, ...]]:
    rows = []
    for experiment, cells in result["cells"].items():
        by_condition = {m["condition"]: m for m in result["metrics"] if m["experiment"] == experiment}
        progress = ", ".join(f"{c} {n['done']}/{n['planned']}" for c, n in cells.items())
        name = next((m["name"] for m in by_condition.values()), "")
        rows.append((_name(result, root), experiment, progress, name, *(_value(by_condition.get(c)) for c in SHOWN)))
    return rows


def _value(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return ""
    if metric["value"] is None:
        return "undefined"
    interval = "" if metric["low"] is None else f" [{metric['low']:.4f}, {metric['high']:.4f}]"
    return f"{metric['value']:.4f}{interval}"
