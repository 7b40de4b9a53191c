"""Publishing online, against a server of ours: created, written, refused, gone on with; nothing lost or doubled."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.tracked_runs import alone


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("online")
    command = [sys.executable, "-m", "tests.support.online_publishing", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=alone(), timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_first_time_a_run_is_made_and_the_second_nothing_is_sent(steps: dict[str, Any]) -> None:
    first = steps["first"]
    assert first["told"]["error"] is None and first["told"]["runs"] == ["eval-p-q"]
    assert first["rows"] == steps["again"]["rows"] == {"eval-p-q": [[0, 0.0]]}
    assert steps["again"]["told"]["runs"] == []


def test_rows_that_the_server_refuses_are_not_taken_for_sent(steps: dict[str, Any]) -> None:
    refused = steps["refused"]
    assert "1 of 1 rows of team/selfcorrect/eval-p-q did not arrive" in refused["told"]["error"]
    assert refused["rows"] == {"eval-p-q": [[0, 0.0]]}
    place = refused["targets"]["/team/selfcorrect"]
    assert list(place["sent"]) == ["q@0/winogender"] and list(place["open"]) == ["eval-p-q"]
    taken = steps["taken"]
    assert taken["told"]["error"] is None and taken["rows"] == {"eval-p-q": [[0, 0.0], [20, 1.0]]}
    assert taken["targets"]["/team/selfcorrect"]["open"] == {}


def test_without_the_ledger_the_server_says_what_it_has(steps: dict[str, Any]) -> None:
    """0.0 and 1.0 come back as 0 and 1, and are the same numbers."""
    told = steps["without ledger"]["told"]
    assert (told["error"], told["runs"], told["changed"]) == (None, [], [])
    assert steps["without ledger"]["rows"] == steps["taken"]["rows"]


def test_ones_own_entity_is_one_destination_named_or_not(steps: dict[str, Any]) -> None:
    assert steps["entity named"]["told"]["runs"] == []
    assert list(steps["entity named"]["targets"]) == ["/team/selfcorrect"]


def test_pictures_once(steps: dict[str, Any]) -> None:
    assert steps["pictures"]["told"]["report"] == "report-p" and steps["pictures"]["told"]["error"] is None
    assert steps["pictures again"]["told"]["report"] is None
    assert len(steps["pictures again"]["rows"]["report-p"]) == 1


def test_refusals_are_a_line(steps: dict[str, Any]) -> None:
    """Where the server says no, nothing that computes stops; a training is refused before it begins."""
    assert steps["forbidden"].startswith("not all results were sent (1 of 1 policies failed: p: ")
    assert "permission denied" in steps["forbidden"] and "eval publish" in steps["forbidden"]
    assert "W&B did not take the login" in steps["no login"] and "WANDB_MODE=offline" in steps["no login"]
    assert "W&B did not take the login" in steps["no training"] and "\n" not in steps["no training"]
