"""The trackio view: what it shows, that doing it twice changes nothing, and one line where trackio is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import main
from eval.curves.gather import gather
from eval.errors import InputError
from eval.files import write_json
from eval.tracking.publish import PublishConfig, publish
from eval.tracking.trackio_mirror import mirrored_runs, put
from eval.validation.oracle import Preferences
from tests.support.planted_runs import items_of, result, training
from tests.support.tracked_runs import summary

ITEMS = items_of(["admissions"])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = training(tmp_path / "policy", 1_000_000, seed=3)
    described = json.loads((folder / "run.json").read_text())
    write_json(folder / "run.json", described | {"result": "rloo.json"})
    for step in (0, 50):
        result(folder, step, Preferences(removed=0.5), step, ITEMS)
    log = [{"step": n, "reward": 0.1 * n, "kl": 0.01, "loss": 1.0, "learning_rate": 1e-5} for n in (1, 2)]
    write_json(folder / "checkpoint-2" / "trainer_state.json", {"log_history": [*log, {"train_runtime": 3, "step": 2}]})
    (folder / "checkpoint-50-keep").mkdir()  # somebody's own copy is no checkpoint
    write_json(folder / "checkpoint-50-keep" / "trainer_state.json", {"log_history": []})
    return folder


class Storage:
    """trackio's storage as far as it is used: a run is there or not, and is written whole."""

    def __init__(self) -> None:
        self.runs: dict[str, Any] = {}
        self.writes = 0

    def get_run_config(self, project: str, run: str) -> dict[str, Any] | None:
        return self.runs[run][1] if run in self.runs else None

    def delete_run(self, project: str, run: str) -> bool:
        return self.runs.pop(run, None) is not None

    def bulk_log(self, project: str, run: str, metrics: Any, steps: Any, config: Any) -> None:
        assert run not in self.runs, "a run that is there would get its rows twice"
        self.runs[run] = metrics, config, steps
        self.writes += 1


def test_what_is_shown(run: Path) -> None:
    shown = {s.name: s for s in mirrored_runs(gather([run]), [run])}
    assert list(shown) == ["policy Q", "policy Q+IF", "policy training"]
    summary = json.loads((run / "eval" / "step-000050" / "summary.json").read_text())
    gap = next(m["value"] for m in summary["metrics"] if (m["condition"], m["name"], m["category"])
               == ("Q", "gap", "all"))  # fmt: skip
    step, metrics = shown["policy Q"].rows[1]
    assert (step, metrics["rlhf_step"], metrics["eval/admissions/gap"]) == (50, 50, gap)
    assert shown["policy Q"].config["_Group"] == "policy" and shown["policy Q"].config["seed"] == 3
    assert shown["policy training"].rows[1] == (
        2, {"rlhf_step": 2, "train/reward": 0.2, "train/kl": 0.01, "train/loss": 1.0}
    )  # fmt: skip
    assert len(shown["policy training"].rows) == 2
    (run / "rloo.json").write_text(json.dumps({"log": [{"step": 1, "reward": 5.0}]}))  # the end of training
    ended = {s.name: s for s in mirrored_runs(gather([run]), [run])}
    assert ended["policy training"].rows == [(1, {"rlhf_step": 1, "train/reward": 5.0})]


def test_only_what_changed_is_written_and_in_its_place(run: Path) -> None:
    storage = Storage()
    assert [put(storage, "p", s) for s in mirrored_runs(gather([run]), [run])] == [True] * 3
    assert [put(storage, "p", s) for s in mirrored_runs(gather([run]), [run])] == [False] * 3
    result(run, 25, Preferences(removed=0.5), 25, ITEMS)  # late
    assert [put(storage, "p", s) for s in mirrored_runs(gather([run]), [run])] == [True, True, False]
    assert storage.runs["policy Q"][2] == [0, 25, 50] and storage.writes == 5


def test_results_given_in_different_calls_are_different_runs(tmp_path: Path) -> None:
    """Both lie in a folder `results`, and neither has a run.json."""
    storage = Storage()
    for name, value in (("a", 0.1), ("b", 0.9)):
        folder = tmp_path / name / "results"
        summary(folder, 20, value, ("Q",), model="m")
        for _ in range(2):
            for shown in mirrored_runs(gather([folder]), [folder]):
                put(storage, "p", shown)
    assert [rows[0]["eval/winogender/rho"] for rows, _, _ in storage.runs.values()] == [0.1, 0.9]
    assert storage.writes == 2


def test_two_trainings_that_say_to_be_one_policy_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        training(tmp_path / name / "exp", 7)
        summary(tmp_path / name / "exp", 20, 0.5, ("Q",))
    with pytest.raises(InputError, match="both are the policy 'exp'"):
        list(mirrored_runs(gather([tmp_path]), [tmp_path]))
    _, told = publish(PublishConfig(runs=[str(tmp_path)], pictures=False))
    assert [len(p["runs"]) for p in told["policies"]] == [1, 0] and "both are the policy 'exp'" in told["error"]


@pytest.mark.skipif(importlib.util.find_spec("trackio") is not None, reason="trackio is installed")
def test_without_trackio_one_line_says_what_to_do(run: Path, ended: Callable[..., str]) -> None:
    assert "pip install 'trackio==0.43.*' 'pillow<13'" in ended(main, "live", run)
    assert "every must be a number of seconds above 0" in ended(main, "live", run, "--every", "0")


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is not installed")
def test_in_trackio_itself(run: Path, tmp_path: Path) -> None:
    place = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "eval", "live", str(run), "--json"]

    def told() -> Any:
        return json.loads(subprocess.run(command, env=place, capture_output=True, text=True, check=True).stdout)

    assert len(told()["written"]) == 3
    assert told()["written"] == []
    look = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as s; "
        "print(json.dumps(s.get_logs('selfcorrect', 'policy Q')))"
    )
    seen = subprocess.run([sys.executable, "-c", look], env=place, capture_output=True, text=True, check=True)
    rows = json.loads(seen.stdout)
    assert [r["step"] for r in rows] == [0, 50] and all("eval/admissions/gap" in r for r in rows)
