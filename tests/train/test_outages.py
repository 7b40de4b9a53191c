"""W&B fails in a training: the result is the same, is written, the process ends in time, and the next command sends
what is missing, once.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from eval.errors import InputError
from eval.files import read_json
from eval.tracking.client import Destination
from eval.tracking.training_log import ROWS, RUN, STEP, Reader, as_line, read_rows, row_key
from eval.tracking.training_send import send_training
from reward.training_run import TrainingRun, check_training
from tests.support.outage_runs import SECONDS, Training, again, close, environment, once, serve, train_rows
from tests.support.reward_training import LORA, options, trained
from tests.support.rl_runs import learned, rloo, rloo_arguments
from tests.support.sft_runs import sft, sft_arguments
from tests.support.tracked_runs import read_back
from tests.support.wandb_server import WandbServer

STEPS = 4
MORE = ("--sample_prompts", 2, "--report_to", "wandb", "--entropy_alert", 0.99, "--kl_target", 0)


@pytest.fixture
def server() -> Any:
    found = WandbServer()
    serve(found)
    yield found
    if found.silent:
        found.silent.set()


@pytest.fixture(scope="module")
def undisturbed(tiny: Path, tiny_reward: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same training without W&B."""
    more = [*MORE[:2], "--report_to", "none", *MORE[4:]]
    return rloo(tiny, tiny_reward, tmp_path_factory.mktemp("undisturbed"), *more)


def published(folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "eval", "publish", str(folder), "--json"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def check_sent(folder: Path, server: WandbServer, value: str = "train/reward") -> None:
    """Every row, table and alert of the training's files is on the server, once."""
    wanted = Counter(row_key(item.row) for item in Reader(folder).items())
    assert Counter(row_key(row) for row in train_rows(server)) == wanted
    logged = {row[STEP]: row[value] for row in read_rows(folder / ROWS) if value in row}
    assert logged and logged == {row[STEP]: row[value] for row in train_rows(server) if value in row}
    tables = [n for row in train_rows(server) for n in row if n.startswith("samples/step-")]
    assert len(tables) == len(list((folder / "samples").glob("step-*.jsonl")))


def endured(training: Training) -> tuple[dict[str, Any], str]:
    """The result of a training that ends well, and in time; what it told."""
    status, seconds, said = training.ended()
    assert status == 0, said[-3000:]
    assert seconds < SECONDS + 5
    assert "Traceback" not in said
    return json.loads(training.result.read_text()), said


def hang(server: WandbServer, *_: Training) -> None:
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
    result, said = endured(training)
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


@pytest.mark.parametrize("module", ["train.sft", "reward.train"])
def test_the_same_command_sends_what_an_outage_in_another_trainer_left(
    module: str, server: WandbServer, tiny: Path, examples: Path, tmp_path: Path
) -> None:
    output, env, more = tmp_path / "out", environment(server, tmp_path / "home"), ("--report_to", "wandb")
    if module == "train.sft":
        whole = sft(tiny, examples, tmp_path / "whole")
        arguments = sft_arguments(tiny, examples, output, *more)
    else:
        few = (*LORA, "--max_pairs", 24, "--logging_steps", 1)
        whole = trained(tiny, tmp_path / "whole", *few)
        arguments = options(tiny, output, *few, *more)
    training = Training(
        [module, *arguments], output / f"{module.partition('.')[2].replace('train', 'reward')}.json", env
    )
    server.disturb = once(BEGIN, lambda: close(server))
    result, said = endured(training)
    assert (output / "model" / "config.json").is_file()
    name = "held_out" if module == "train.sft" else "accuracy"
    assert result[name] == json.loads(json.dumps(whole[name]))
    assert "the same command again" in said or "python -m eval publish" in said
    back = again(server)
    assert Training([module, *arguments], training.result, env).ended()[0] == 0
    check_sent(output, back, "train/loss")
    summary = json.loads(back.runs[(read_json(output / RUN) or {})["run"]]["summary"])
    assert summary["train_loss"] > 0 and ("reward/accuracy" in summary) == (module == "reward.train")


def test_a_home_that_cannot_be_written(
    server: WandbServer, undisturbed: Any, tiny: Path, tiny_reward: Path, tmp_path: Path
) -> None:
    output, env = tmp_path / "out", environment(server, tmp_path / "home")
    (tmp_path / "file").touch()
    arguments = ["train.rloo", *rloo_arguments(tiny, tiny_reward, output, *MORE)]
    result, said = endured(Training(arguments, output / "rloo.json", env | {"HOME": str(tmp_path / "file")}))
    assert learned(result) == learned(undisturbed)
    assert "PermissionError" in said and "python -m eval publish" in said
    assert published(output, env).returncode == 0
    check_sent(output, server)


def test_a_server_that_never_answers_the_login_ends_in_a_line(
    server: WandbServer, tiny: Path, tiny_reward: Path, tmp_path: Path
) -> None:
    hang(server)
    output, env = tmp_path / "out", environment(server, tmp_path / "home", SELFCORRECT_WANDB_SECONDS="24")
    arguments = ["train.rloo", *rloo_arguments(tiny, tiny_reward, output, *MORE)]
    status, _, said = Training(arguments, output / "rloo.json", env).ended()
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert status == 2 and "W&B did not answer within 8 s" in line and "WANDB_MODE=offline" in line
    assert not list(output.glob("checkpoint-*"))


def test_the_wait_at_the_end_can_be_interrupted(
    server: WandbServer, tiny: Path, tiny_reward: Path, tmp_path: Path
) -> None:
    output, env = tmp_path / "out", environment(server, tmp_path / "home", SELFCORRECT_WANDB_SECONDS="300")
    server.disturb = once(BEGIN, lambda: hang(server))
    training = Training(["train.rloo", *rloo_arguments(tiny, tiny_reward, output, *MORE)], output / "rloo.json", env)
    while not (training.result.is_file() and server.silent):
        assert training.process.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    below = psutil.Process(training.process.pid).children(recursive=True)
    training.process.send_signal(signal.SIGINT)
    assert training.process.wait(timeout=20) == 130
    assert below and not psutil.wait_procs(below, timeout=5)[1]


def rows_of(reward: float, *steps: int) -> list[tuple[dict[str, Any], int]]:
    return [({"reward": reward + step, "step_time": time.time(), "kl": float("nan")}, step) for step in steps]


def test_offline_pieces_of_a_training_that_was_killed_hold_each_row_once(tmp_path: Path) -> None:
    """Sender and helper killed by kill -9, and the training's steps done again from its checkpoint."""
    run = TrainingRun(tmp_path)
    run.begin("p", {"seed": 3}, None)
    run.__enter__()
    for logs, step in rows_of(0.5, 1, 2, 3):
        run.log(logs, step)
    while not list(tmp_path.glob("wandb/offline-run-*/*.wandb")):
        time.sleep(0.1)
    time.sleep(3)
    assert run.process is not None
    for one in [*psutil.Process(run.process.pid).children(recursive=True), psutil.Process(run.process.pid)]:
        one.kill()
    run.process.wait()
    with (tmp_path / ROWS).open("a") as file:
        file.write('{"train/global_step": 4, "trai')  # cut off by the kill
    run = TrainingRun(tmp_path)
    run.begin("other", {"seed": 3}, tmp_path / "checkpoint-2")
    with run:
        for logs, step in rows_of(0.5, 3, 4):
            run.log(logs, step)
        run.log({"train_loss": 0.25}, 4)
    entry = read_back(tmp_path)["train-p"]
    rows = [(row[STEP], row["train/reward"]) for row in entry["rows"] if "train/reward" in row]
    assert rows == [(step, 0.5 + step) for step in (1, 2, 3, 4)]
    assert all(row["train/kl"] == "NaN" for row in entry["rows"] if "train/reward" in row)
    assert entry["summary"]["train_loss"] == 0.25
    assert (entry["run"]["run_group"], entry["run"]["job_type"]) == ("p", "train")
    assert send_training(tmp_path, Destination()).runs == []


def test_a_limit_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("soon", "0", "-3", "inf"):
        monkeypatch.setenv("SELFCORRECT_WANDB_SECONDS", text)
        with pytest.raises(InputError, match=f"must be a number of seconds above 0, not '{text}'"):
            check_training(["wandb"], None)


def test_a_row_is_read_as_it_was_logged(tmp_path: Path) -> None:
    row = {STEP: 3, "a": float("nan"), "b": -float("inf"), "c": 1e-5, "d": [1], "e": None, "f": True}
    (tmp_path / ROWS).write_text(as_line(row) + as_line({STEP: 4})[:-1])
    (read,) = read_rows(tmp_path / ROWS)
    assert read.pop("a") != 0 and read == {STEP: 3, "b": -float("inf"), "c": 1e-5, "f": True}
    assert row_key({STEP: 3.0, "a": 1, "_step": 0}) == row_key({"a": "NaN", STEP: 3, "samples/step-000003": {}})
