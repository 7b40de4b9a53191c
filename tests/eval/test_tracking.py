"""Weights & Biases offline: what is written is read back from the files by wandb's own reader."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from eval.curves.gather import gather
from eval.experiments.conditions import CONDITIONS
from eval.tracking import client as tracking
from eval.tracking.ledger import policy_name
from eval.tracking.names import rows_of
from tests.support.tracked_runs import alone, described, found, fragments, publish, read_back, records, summary


def test_offline_files_hold_what_the_results_hold(tmp_path: Path) -> None:
    described = {
        "policy": "p",
        "algorithm": "rloo",
        "model_params": 7,
        "seed": 3,
        "data": "named sources",
        "dtype": "bfloat16",
        "git_commit": "c",
    }
    (tmp_path / "run.json").write_text(json.dumps(described))
    summary(tmp_path, 20, 0.5, git_commit="e")
    summary(tmp_path, 0, 0.25, git_commit="e")
    written = publish(tmp_path)
    own = {"data": "small set", "dtype": "float32", "git_commit": "e"} | {
        f"training_{name}": described.pop(name) for name in ("data", "dtype", "git_commit")
    }
    assert written == ["eval-p-q", "eval-p-q-if", "eval-p-q-if-cot", "eval-p-q-match-stats", "eval-p-q-inverse"]
    found = read_back(tmp_path)
    assert sorted(found) == sorted(written)
    for k, (condition, run_id) in enumerate(zip(CONDITIONS, written, strict=True)):
        entry = found[run_id]
        assert (entry["run"]["run_group"], entry["run"]["job_type"]) == ("p", "eval")
        config = entry["run"]["config"]["update"]
        assert {**described, **own, "model": "m", "condition": condition}.items() <= config.items()
        rows = {r["rlhf_step"]: r["eval/winogender/rho"] for r in entry["rows"]}
        assert rows == {0: 0.25 + k, 20: 0.5 + k}
        assert entry["rows"][0]["eval/winogender/rho_low"] == -0.75
        assert entry["summary"]["final/winogender/rho"] == 0.5 + k
        assert not [name for r in entry["rows"] for name in r if "undefined" in name]
        assert {"glob_name": "eval/*", "step_metric": "rlhf_step"}.items() <= next(
            m for m in entry["metrics"] if "glob_name" in m
        ).items()


def test_a_folder_is_where_it_is_whatever_the_helpers_working_directory(tmp_path: Path, monkeypatch) -> None:
    publish(summary(tmp_path / "first", 0, 0.5).parents[1])  # wandb's helper is there, and works elsewhere
    summary(tmp_path / "run", 20, 0.5)
    monkeypatch.chdir(tmp_path)
    publish(Path("run"))
    assert len(fragments(tmp_path / "run")) == len(CONDITIONS)


def test_publishing_again_sends_only_what_is_new(tmp_path: Path) -> None:
    summary(tmp_path, 20, 0.5)
    assert len(publish(tmp_path)) == len(CONDITIONS)
    assert publish(tmp_path) == []
    summary(tmp_path, 10, 0.1)  # a checkpoint that comes late
    assert len(publish(tmp_path)) == len(CONDITIONS)
    name = policy_name(tmp_path, [(20, None, None)])
    found = read_back(tmp_path)
    for k, entry in enumerate(found[f"eval-{name}-{c.slug}"] for c in CONDITIONS.values()):
        assert {r["rlhf_step"]: r["eval/winogender/rho"] for r in entry["rows"]} == {10: 0.1 + k, 20: 0.5 + k}
        assert len(entry["rows"]) == 2
        assert entry["summary"]["final/winogender/rho"] == 0.5 + k  # of the largest step, not of the last sent


def test_an_experiment_that_is_asked_later_is_sent_alone(tmp_path: Path) -> None:
    """An evaluation in the training may ask less than one afterwards: what was sent then is not sent again."""
    summary(tmp_path, 20, 0.5)
    publish(tmp_path)
    path = tmp_path / "eval" / "step-000020" / "summary.json"
    more = json.loads(path.read_text())
    defined = [m for m in more["metrics"] if m["value"] is not None]
    more["metrics"] += [{**m, "experiment": "admissions", "name": "gap"} for m in defined]
    path.write_text(json.dumps(more))
    assert len(publish(tmp_path)) == len(CONDITIONS)
    assert publish(tmp_path) == []
    for entry in read_back(tmp_path).values():
        assert [("eval/winogender/rho" in r, "eval/admissions/gap" in r) for r in entry["rows"]] == [
            (True, False), (False, True),
        ]  # fmt: skip
        assert {r["rlhf_step"] for r in entry["rows"]} == {20}
        assert {"final/winogender/rho", "final/admissions/gap"} <= entry["summary"].keys()


def test_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert tracking.mode() == "disabled"
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert tracking.mode() == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + "a" * 40 + "\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert tracking.mode() == "online"


def test_mode_of_the_settings_file(tmp_path: Path) -> None:
    """What `wandb offline` and `wandb disabled` write in the folder that is worked in, though the user is logged in."""
    (tmp_path / "wandb").mkdir()
    code = (
        "import os; from eval.tracking import client as tracking\n"
        f"os.chdir({str(tmp_path)!r}); os.environ.pop('WANDB_MODE')\n"
        "for mode in ('offline', 'disabled', 'online'):\n"
        "    open('wandb/settings', 'w').write(f'[default]\\nmode = {mode}\\n'); print(tracking.mode())\n"
        "open('wandb/settings', 'w').write('[default]\\nmode = disabled\\n')\n"
        "for said in ('online', 'dryrun'): os.environ['WANDB_MODE'] = said; print(tracking.mode())"
    )
    environment = alone() | {"WANDB_API_KEY": "a" * 40}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["offline", "disabled", "online", "online", "offline"], done.stderr


def expected(folder: Path) -> Counter[tuple[str, int, str, float]]:
    """(run, step, metric, value) of everything that is to be sent, once each."""
    (curve,) = gather([folder])
    name = curve.described["policy"]
    return Counter(
        (f"eval-{name}-{c.slug}", step, metric, value)
        for c in CONDITIONS.values()
        for step, row in rows_of(curve, c.name).items()
        for metric, value in row.items()
    )


def test_killed_at_any_call_and_run_again_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    """kill -9 at each of the calls to wandb and to the ledger for the first run, and at some of the second's; then a
    publishing that is not killed.
    """
    points = [*range(1, 13), 15, 21]
    folders = [described(tmp_path / str(n)) for n in points]
    for folder in folders:
        for step in (20, 0):
            summary(folder, step, 0.5, ("Q", "Q+IF"))
    given = [word for n, folder in zip(points, folders, strict=True) for word in (str(n), str(folder))]
    command = [sys.executable, "-m", "tests.support.killed_publishing", *given]
    done = subprocess.run(command, capture_output=True, text=True, env=alone())
    assert done.returncode == 0, done.stderr[-3000:]
    called = done.stdout.split()
    assert called[:12] == [  # in the order of the points
        "write_json", "write_json", "init", "define_metric", "define_metric", "log", "log", "update", "finish",
        "finished", "write_json", "write_json",
    ]  # fmt: skip
    for folder in folders:
        publish(folder)
        assert found(folder) == expected(folder), folder.name
        assert all(records(path)[-1]["type"] == "exit" for path in fragments(folder)), folder.name
        assert publish(folder) == []


def test_killed_together_with_its_helper_while_that_writes(tmp_path: Path) -> None:
    """kill -9 of the publishing process and of wandb-core, in the middle of thousands of numbers: the last row is not
    logged, so that it is never over before it is killed.
    """
    folder = described(tmp_path / "run")
    for step in range(20):
        summary(folder, step, 0.5, ("Q",), parts=1000)
    code = (
        "import itertools, time; from pathlib import Path; from wandb.sdk.wandb_run import Run\n"
        "from tests.support.tracked_runs import publish\n"
        "log, calls = Run.log, itertools.count(1)\n"
        "Run.log = lambda *given, **more: log(*given, **more) if next(calls) < 20 else time.sleep(10**6)\n"
        f"publish(Path({str(folder)!r}))"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=alone())
    while not any(path.stat().st_size >= 100_000 for path in fragments(folder)):
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.002)
    for one in (process, *psutil.Process(process.pid).children()):
        one.send_signal(signal.SIGKILL)
    process.wait()
    (path,) = fragments(folder)
    assert not any(r["type"] == "exit" for r in records(path))
    publish(folder)
    assert found(folder) == expected(folder)
    assert len(fragments(folder)) == 1
