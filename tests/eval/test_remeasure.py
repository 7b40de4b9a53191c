"""Results of an earlier version of the metrics: named, and recomputed from their records without a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from eval.commands.measure import MeasureConfig, remeasure
from eval.config import EvaluationConfig
from eval.curves.read import read_summaries
from eval.errors import InputError
from eval.metrics.version import METRICS_VERSION
from eval.runner.evaluate import evaluate
from eval.runner.plan import plan
from eval.runner.store import Store
from eval.validation.oracle import Oracle, Preferences

SETTINGS: dict[str, Any] = {"experiments": ["bbq", "winogender"], "conditions": ["Q", "Q+IF"], "categories": ["Age"]}


def evaluated(folder: Path, **settings: Any) -> Path:
    config = EvaluationConfig(**SETTINGS | settings)
    planned = plan(config)
    oracle = Oracle(Preferences(letter=3), 1, planned.questions)
    evaluate(oracle, config, folder, {"model": "oracle", "model_params": 0, "weights": "w"}, 7, planned)
    return folder


def outdated(folder: Path) -> tuple[dict[str, Any], str]:
    """Makes the summary one of version 1; as it was before, with its breakdown."""
    path = folder / "summary.json"
    current, breakdown = json.loads(path.read_text()), (folder / "breakdown.jsonl").read_text()
    old = {k: v for k, v in current.items() if k != "metrics_version"} | {"effects": []}
    old["metrics"] = [m | {"value": 0.5} for m in current["metrics"]]
    path.write_text(json.dumps(old))
    (folder / "breakdown.jsonl").write_text("")
    return current, breakdown


@pytest.mark.parametrize("settings", [{}, {"experiments": ["bbq"], "categories": [], "precision": 0.15, "orders": 3}])
def test_outdated_metrics_are_recomputed_from_the_records(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = evaluated(tmp_path / "results", **settings)
    current, breakdown = outdated(folder)
    with pytest.raises(InputError, match=r"metrics version 1, not 2\); `python -m eval measure .*results` recomputes"):
        read_summaries(folder)
    with pytest.raises(InputError, match="metrics version 1"):
        Store(folder).summary()
    _, result = remeasure(MeasureConfig([str(tmp_path)]))
    assert result == {"measured": [str(folder)], "current": [], "failed": {}}
    found = json.loads((folder / "summary.json").read_text())
    about = found.pop("remeasured")
    assert found == current and (folder / "breakdown.jsonl").read_text() == breakdown
    assert (about["from_version"], found["metrics_version"]) == (1, METRICS_VERSION)
    if "precision" in settings:
        assert 0 < found["stopping"][0]["questions_asked"] < found["stopping"][0]["questions"]
    before = (folder / "summary.json").read_bytes()
    _, result = remeasure(MeasureConfig([str(tmp_path)]))
    assert result["current"] == [str(folder)] and (folder / "summary.json").read_bytes() == before


def test_the_same_evaluation_again_recomputes_too(tmp_path: Path) -> None:
    """All records are there, so that no question is asked again."""
    folder = evaluated(tmp_path)
    current, _ = outdated(folder)
    records = (folder / "records.jsonl").read_bytes()
    config = EvaluationConfig(**SETTINGS)
    planned = plan(config)
    unasked = Oracle(Preferences(), 1, ())  # raises KeyError at every question
    evaluate(unasked, config, folder, {"model": "oracle", "model_params": 0, "weights": "w"}, 7, planned)
    assert json.loads((folder / "summary.json").read_text())["metrics"] == current["metrics"]
    assert (folder / "records.jsonl").read_bytes() == records


def test_a_summary_of_some_of_the_records_keeps_to_them(tmp_path: Path) -> None:
    """The folder was asked more first; which of its records count is known from the data, and without it refused."""
    folder = evaluated(tmp_path / "a")
    evaluated(folder, limit=16)
    current, _ = outdated(folder)
    other = shutil.copytree(folder, tmp_path / "b")
    summary = json.loads((other / "summary.json").read_text())
    (other / "summary.json").write_text(json.dumps(summary | {"data_sha256": {"bbq": "0", "winogender": "0"}}))
    text, result = remeasure(MeasureConfig([str(tmp_path)]))
    assert json.loads((folder / "summary.json").read_text())["metrics"] == current["metrics"]
    assert "holds other data than was asked" in result["error"] and "give that folder as --data-dir" in result["error"]
    assert list(result["failed"]) == [str(other)] and text == f"{folder}: recomputed from its records"


def test_a_damaged_summary_does_not_keep_the_others_back(tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "b")
    current, _ = outdated(folder)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "summary.json").write_text("{")
    _, result = remeasure(MeasureConfig([str(tmp_path)]))
    assert result["measured"] == [str(folder)] and "is damaged" in result["failed"][str(tmp_path / "a")]
    assert json.loads((folder / "summary.json").read_text())["metrics"] == current["metrics"]


def test_the_model_card_shows_the_recomputed_numbers(tmp_path: Path) -> None:
    """Results in OUTPUT/eval/step-N beside the checkpoint of one of our trainings."""
    checkpoint = tmp_path / "checkpoint-7"
    checkpoint.mkdir()
    policy = {"policy": "p", "algorithm": "rloo", "model": "oracle", "rlhf_step": 7, "model_params": 0}
    (checkpoint / "policy.json").write_text(json.dumps(policy))
    folder = evaluated(tmp_path / "eval" / "step-000007")
    current, _ = outdated(folder)
    old = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(old | {"adapter": str(checkpoint)}))
    remeasure(MeasureConfig([str(tmp_path)]))
    headline = next(m for m in current["metrics"] if m["name"] == "bias_ambig_expected_symmetrised")
    assert f"{headline['value']:.4f}" in (checkpoint / "README.md").read_text()


def test_folders_without_results_are_refused(tmp_path: Path) -> None:
    for runs, message in (([], "no run folder"), ([tmp_path / "x"], "is not there"), ([tmp_path], "no finished")):
        with pytest.raises(InputError, match=message):
            remeasure(MeasureConfig([str(run) for run in runs]))
