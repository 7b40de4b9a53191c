"""W&B fails in a training: the result is the same, is written, the process ends in time, and the next command sends
what is missing, once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.training_log import ROWS, STEP, Reader, read_rows, row_key
from tests.outage_runs import SECONDS, Training, again, close, environment, once, serve, train_rows
from tests.test_train import learned, rloo, rloo_arguments
from tests.wandb_server import WandbServer

STEPS = 4
MORE = ("--sample_prompts", 2, "--report_to", "wandb", "--entropy_alert", 0.99, "--kl_target", 0)


@pytest.fixture
def server() -> Any:
    found = WandbServer()
    serve(found)
    yield found
    found.silent and found.silent.set()


@pytest.fixture(scope="module")
def undisturbed(tiny: Path, tiny_reward: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same training without W&B."""
    more = [*MORE[:2], "--report_to", "none", *MORE[4:]]
    return rloo(tiny, tiny_reward, tmp_path_factory.mktemp("undisturbed"), *more)


def published(folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "eval", "publish", str(folder), "--json"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def check_sent(folder: Path, server: WandbServer) -> None:
    """Every row, table and alert of the training's files is on the server, once."""
    wanted = Counter(row_key(item.row) for item in Reader(folder).items())
    assert Counter(row_key(row) for row in train_rows(server)) == wanted
    by_step = {row["train/reward"]: row[STEP] for row in train_rows(server) if "train/reward" in row}
    assert by_step == {row["train/reward"]: row[STEP] for row in read_rows(folder / ROWS) if "train/reward" in row}
    tables = [n for row in train_rows(server) for n in row if n.startswith("samples/step-")]
    assert len(tables) == len(list((folder / "samples").glob("step-*.jsonl")))


def hang(server: WandbServer, training: Training) -> None:
    import threading

    server.silent = threading.Event()


def refuse(status: int) -> Callable[[WandbServer, Training], None]:
    def do(server: WandbServer, training: Training) -> None:
        server.status = status

    return do


def kill_helper(server: WandbServer, training: Training) -> None:
    for helper in training.helpers():
        helper.kill()


OUTAGES: dict[str, Callable[[WandbServer, Training], None]] = {
    "closed": lambda server, training: close(server), "hangs": hang, "401": refuse(401), "500": refuse(500),
    "helper killed": kill_helper,
}  # fmt: skip
BEGIN, ROWS_SENT = "UpsertBucket", ""
"""When W&B fails: as the run is made, and as its first rows come."""


@pytest.mark.parametrize(
    ("name", "at"),
    [("closed", BEGIN), ("hangs", BEGIN), ("closed", ROWS_SENT), ("401", ROWS_SENT), ("500", ROWS_SENT),
     ("helper killed", ROWS_SENT)],
)  # fmt: skip
def test_an_outage_in_an_rl_training(
    name: str, at: str, server: WandbServer, undisturbed: Any, tiny: Path, tiny_reward: Path, tmp_path: Path
) -> None:
    output, env = tmp_path / "out", environment(server, tmp_path / "home")
    arguments = ["train.rloo", *rloo_arguments(tiny, tiny_reward, output, *MORE)]
    training = Training(arguments, output / "rloo.json", env)
    server.disturb = once(at, lambda: OUTAGES[name](server, training))
    status, seconds, said = training.ended()
    assert status == 0, said[-3000:]
    result = json.loads((output / "rloo.json").read_text())
    assert seconds < SECONDS + 5
    assert "Traceback" not in said
    assert learned(result) == learned(undisturbed)
    if name != "helper killed":
        assert "python -m eval publish" in said
    server.status, server.disturb = None, lambda name: None
    if server.silent:
        server.silent.set()
        server.silent = None
    back = again(server) if name == "closed" else server
    done = published(output, env)
    assert done.returncode == 0, done.stdout + done.stderr
    check_sent(output, back)
    assert json.loads(published(output, env).stdout)["trainings"][0]["runs"] == []
    check_sent(output, back)
