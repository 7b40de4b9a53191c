"""Results folders of oracles, as trainings of several sizes and seeds leave them, written without asking a model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.config import EvaluationConfig
from eval.data.readers import SMALL_SET
from eval.experiments.conditions import CONDITIONS
from eval.experiments.registry import EXPERIMENTS
from eval.files import write_json
from eval.metrics.measure import measure
from eval.metrics.version import METRICS_VERSION
from eval.runner.keys import RECORDS_VERSION, by_cell, record_key
from eval.types import Item
from eval.validation.coverage import answer
from eval.validation.oracle import Oracle, Preferences

CONFIG = EvaluationConfig(orders=1)


def items_of(experiments: Sequence[str]) -> dict[str, list[Item]]:
    return {e: EXPERIMENTS[e].load(SMALL_SET, CONFIG) for e in experiments}


def training(folder: Path, model_params: int, seed: int = 0) -> Path:
    """A training's folder with its run.json."""
    folder.mkdir(parents=True)
    described = {"policy": folder.name, "algorithm": "rloo", "model": f"m{model_params}", "model_params": model_params}
    write_json(folder / "run.json", described | {"seed": seed})
    return folder


def result(
    folder: Path, step: int, preferences: Preferences, seed: int, items: dict[str, list[Item]],
    conditions: Sequence[str] = ("Q", "Q+IF"), **said: Any,
) -> Path:  # fmt: skip
    """FOLDER/eval/step-N with records.jsonl and summary.json of an oracle. said: fields of the summary."""
    described = json.loads((folder / "run.json").read_text()) if (folder / "run.json").is_file() else {}
    oracle = Oracle(preferences, seed)
    cells = {
        (e, c): [{**r, "prompt_sha256": "0"} for r in answer(oracle, e, CONDITIONS[c], found, 1)]
        for e, found in items.items()
        for c in conditions
    }
    measured = measure(cells, 0, resamples=100)
    summary = {
        "model": "oracle", "model_params": described.get("model_params"), "step": step, "step_name": "RLHF step",
        "format": "oracle", "system_turn": "none", "dtype": "float64", "prompt_version": 1, "data": "small set",
        "data_sha256": dict.fromkeys(items, "0"), "evaluation": {}, "records_version": RECORDS_VERSION,
        "metrics_version": METRICS_VERSION, "adapter": "a",
        "metrics": [dataclasses.asdict(m) for m in measured.metrics],
        "effects": [dataclasses.asdict(e) for e in measured.effects],
        "records": by_cell(record_key(r) for records in cells.values() for r in records), **said,
    }  # fmt: skip
    where = folder / "eval" / f"step-{step:06d}"
    where.mkdir(parents=True)
    lines = [json.dumps(r) + "\n" for records in cells.values() for r in records]
    (where / "records.jsonl").write_text("".join(lines))
    write_json(where / "summary.json", summary)
    return where
