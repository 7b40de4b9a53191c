"""`python -m eval list [FOLDER]`: every results folder below FOLDER, how far it is, and its primary metrics."""

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
    """{"results": one entry per results folder, in the order of their names, "warnings": a line per damaged one}.

    Raises InputError where `folder` is not there.
    """
    if not folder.is_dir():
        raise InputError(f"folder {folder} is not there; give a folder that has results folders in it")
    found, warnings = [], []
    names = {path.parent for name in ("provenance.json", "records.jsonl") for path in folder.rglob(name)}
    for path in sorted(names):
        try:
            found.append({"folder": str(path), **entry(Store(path))})
        except InputError as error:
            warnings.append(str(error))
        except (KeyError, TypeError, AttributeError) as error:
            warnings.append(f"{path} is damaged (a field is missing or has no such form: {error!r}); remove it")
    for line in warnings:
        log.warning("left out: %s", line)
    return {"results": found, "warnings": warnings}


def entry(store: Store) -> dict[str, Any]:
    """What is told of one results folder. state: complete, in progress, or being extended: its metrics are then those
    of the questions that were asked before. Raises InputError, or KeyError and its like, for a damaged folder.
    """
    begun = store.provenance()
    summary = store.summary()
    complete = summary is not None and same_selection(summary, begun)
    told = begun if summary is None else summary
    state = "complete" if complete else "in progress" if summary is None else "being extended"
    planned, done = begun["planned"], begun["done"]
    sessions = begun["sessions"]
    return {
        **{name: told[name] for name in ("model", "step", "dtype", "format", "data")},
        **{name: told.get(name) for name in ("revision", "weights", "adapter", "adapter_weights", "model_params")},
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
    """Of each experiment and condition the metric that it reports first (bias_ambig, rho, gap), without reasoning."""
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for m in metrics:
        if m["category"] == "all" and m["condition"] in SHOWN:
            first.setdefault((m["experiment"], m["condition"]), m)
    return list(first.values())


def text(listed: dict[str, Any], root: Path) -> str:
    """The listing for the terminal: a line per folder, then a line per folder and experiment."""
    found = listed["results"]
    if not found:
        return f"no results below {root}"
    return columns([FOLDERS, *(_row(f, root) for f in found)]) + "\n\n" + columns(
        [METRICS, *(row for f in found for row in _metric_rows(f, root))]
    )  # fmt: skip


def _name(found: dict[str, Any], root: Path) -> str:
    return Path(found["folder"]).relative_to(root).as_posix()


def _row(found: dict[str, Any], root: Path) -> tuple[str, ...]:
    model = Path(found["model"]).name or found["model"]
    model += f"@{found['revision']}" if found["revision"] else ""
    model += f" + {Path(found['adapter']).name}" if found["adapter"] else ""
    return (
        _name(found, root), model, str(found["step"]), found["dtype"] or "", found["format"], found["data"],
        f"{found['done']}/{found['planned']}", found["state"], (found["date"] or "").removesuffix("+00:00"),
    )  # fmt: skip


def _metric_rows(found: dict[str, Any], root: Path) -> list[tuple[str, ...]]:
    rows = []
    for experiment, cells in found["cells"].items():
        known = {m["condition"]: m for m in found["metrics"] if m["experiment"] == experiment}
        asked = ", ".join(f"{c} {n['done']}/{n['planned']}" for c, n in cells.items())
        name = next((m["name"] for m in known.values()), "")
        rows.append((_name(found, root), experiment, asked, name, *(_value(known.get(c)) for c in SHOWN)))
    return rows


def _value(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return ""
    if metric["value"] is None:
        return "undefined"
    interval = "" if metric["low"] is None else f" [{metric['low']:.4f}, {metric['high']:.4f}]"
    return f"{metric['value']:.4f}{interval}"
