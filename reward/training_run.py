"""A training's own run on W&B: the training writes files, and a separate process sends them
(eval.tracking.follow_training).

So no error of W&B's client, helper process or server reaches a training, and the numbers are the same with and without
it. The training waits only for the login, before the work, and for the end, within the limit of
eval.tracking.training_log; by then the result is on disk.
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from transformers import TrainerCallback
from transformers.integrations.integration_utils import WandbCallback, rewrite_logs

from eval.errors import InputError
from eval.files import read_json, write_json, write_text
from eval.tracking.names import LONGEST_NAME, check_destination, setup_of
from eval.tracking.training_log import LIMIT, ROWS, RUN, STEP, as_line, limit_seconds, read_rows

log = logging.getLogger(__name__)

LAST_VALUES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos")
"""Entries of a log that are last values of the run, not part of a row."""
NOT_ONLINE = ("offline", "dryrun", "disabled")
LOGIN_SHARE = 1 / 3
"""Share of the limit for the login; the rest is for the end."""
FIRST_PAUSE = 60.0
"""Seconds before a failed process is started again; doubled each time."""


def check_training(report_to: Sequence[str], run_name: str | None) -> None:
    """Checks, before a training's work begins, that its run on W&B can be made; does nothing if report_to lacks wandb.

    Raises:
        InputError: W&B refuses run_name, $WANDB_PROJECT, $WANDB_ENTITY or, online, the login; or the limit of its time
            is no number.
    """
    if "wandb" not in report_to:
        return
    if run_name is not None and (not run_name.strip() or len(run_name) > LONGEST_NAME):
        raise InputError(f"run_name must have 1 to {LONGEST_NAME} characters, not '{run_name}'")
    check_destination(os.environ.get("WANDB_PROJECT") or None, os.environ.get("WANDB_ENTITY") or None)
    seconds = LOGIN_SHARE * limit_seconds()
    if os.environ.get("WANDB_MODE") in NOT_ONLINE or not _is_main():
        return
    process = _start_module("eval.tracking.client", stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, error_output = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"W&B did not answer within {seconds:g} s; check the network, or set WANDB_MODE=offline and send later"
        ) from error
    finally:
        _kill(process)
    if process.returncode == 2:
        raise InputError(error_output.rpartition("error: ")[2].strip())
    if process.returncode:
        log.warning("the login to W&B could not be checked: %s", error_output.strip().splitlines()[-1:])


def track_on_wandb(
    trainer: Any, folder: Path, policy: str, description: dict[str, Any], resumed: Path | None
) -> AbstractContextManager[TrainingRun | None]:
    """The training's run on W&B, a context to be kept open until the result is written.

    Args:
        resumed: the checkpoint from which the training resumes, if any.

    Returns:
        The run; a context of None if report_to has no wandb, or in a process other than the main one.
    """
    if "wandb" not in trainer.args.report_to:
        return nullcontext()
    trainer.remove_callback(WandbCallback)  # it would send from this process
    if not trainer.accelerator.is_main_process:
        return nullcontext()
    run = TrainingRun(folder)
    run.begin(policy, {**_settings(trainer), **description}, resumed)
    trainer.add_callback(_LogRows(run))
    return run


def publish_finished(folder: Path, report_to: Sequence[str]) -> None:
    """Sends what a finished training has not sent, because it was killed or cut off from W&B."""
    has_records = (folder / RUN).is_file() or any(folder.glob("eval/step-*/summary.json"))
    if "wandb" in report_to and has_records and _is_main():
        with TrainingRun(folder):
            pass


class TrainingRun:
    """The files of a training's run in `folder`, and the process that sends them, started by `with`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[Any] | None = None
        self.pause = FIRST_PAUSE
        self.next_start = 0.0

    def begin(self, policy: str, config: dict[str, Any], resumed: Path | None) -> None:
        """Describes the run in its file; keeps only those earlier rows that precede the checkpoint `resumed`."""
        earlier = read_json(self.folder / RUN) or {}
        policy = earlier.get("policy", policy)  # a resumed run keeps its name, wherever it resumes
        config = {**config, "policy": policy, "condition": "training", "setup": setup_of(config, policy)}
        record = {"policy": policy, "run": f"train-{policy}", "config": config, "summary": earlier.get("summary", {})}
        write_json(self.folder / RUN, json.loads(json.dumps(record, default=str), parse_constant=str))
        step = int(resumed.name.rpartition("-")[2]) if resumed else 0
        path = self.folder / ROWS
        rows = read_rows(path)
        if resumed and not path.is_file():  # started by an earlier version, or without W&B
            state = read_json(resumed / "trainer_state.json") or {}
            rows = [_row(entry, entry["step"]) for entry in state.get("log_history", [])]
        write_text(path, "".join(as_line(row) for row in rows if resumed and row[STEP] <= step))

    def log(self, logs: dict[str, Any], step: int) -> None:
        """Adds a row, and last values, as the Trainer logs them."""
        with (self.folder / ROWS).open("a", encoding="utf-8") as file:
            file.write(as_line(_row(logs, step)))
        self.summary({name: logs[name] for name in LAST_VALUES if name in logs})
        if self.process and self.process.poll() is not None and time.monotonic() > self.next_start:
            self._start()

    def summary(self, values: dict[str, Any]) -> None:
        """Sets last values of the run; values that are not finite are left out."""
        if values:
            about = read_json(self.folder / RUN) or {}
            finite_values = {n: v for n, v in values.items() if not isinstance(v, float) or math.isfinite(v)}
            write_json(self.folder / RUN, about | {"summary": about["summary"] | finite_values})

    def __enter__(self) -> TrainingRun:
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """Waits, within the limit, until all is sent. After an error it does not wait: the process ends by itself."""
        if kind is not None:
            self._close_input()
            return
        seconds = (1 - LOGIN_SHARE) * limit_seconds()
        until = time.monotonic() + seconds
        log.info("W&B: what was not sent yet is sent now, for at most %.0f s (Ctrl-C ends it)", seconds)
        try:
            for _ in range(2):  # the failure may be over by now, such as the end of its helper process
                if self.process is None or self.process.poll() is not None:
                    self._start()
                self._close_input()
                assert self.process is not None
                if self.process.wait(max(until - time.monotonic(), 0)) == 0:
                    return
        except subprocess.TimeoutExpired:
            log.warning(
                "W&B took longer than %.0f s (of $%s), so that it may lack a part of %s; the same command again sends "
                "it, or `python -m eval publish %s`", seconds, LIMIT, self.folder, self.folder,
            )  # fmt: skip
        finally:
            assert self.process is not None
            _kill(self.process)

    def _start(self) -> None:
        folder = str(self.folder.resolve())
        self.process = _start_module(
            "eval.tracking.follow_training", folder, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )  # fmt: skip
        self.next_start = time.monotonic() + self.pause
        self.pause *= 2

    def _close_input(self) -> None:
        if self.process and self.process.stdin:
            self.process.stdin.close()


class _LogRows(TrainerCallback):
    """Replaces transformers' WandbCallback."""

    def __init__(self, run: TrainingRun) -> None:
        self.run = run

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs:
            self.run.log(logs, state.global_step)


def _row(logs: dict[str, Any], step: int) -> dict[str, Any]:
    """A row under the names that WandbCallback uses."""
    return {STEP: step, **rewrite_logs({n: v for n, v in logs.items() if n not in (*LAST_VALUES, "step")})}


def _settings(trainer: Any) -> dict[str, Any]:
    """What WandbCallback records of a training: the model's configuration and the Trainer's arguments."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {**model.config.to_dict(), **trainer.args.to_dict(), "model/num_parameters": model.num_parameters()}


def _is_main() -> bool:
    from accelerate import PartialState

    return PartialState().is_main_process


def _start_module(module: str, *arguments: str, **streams: Any) -> subprocess.Popen[Any]:
    """Runs a module in its own session: Ctrl-C does not reach it, and it does not share wandb's helper process."""
    code = str(Path(__file__).resolve().parent.parent)
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(command, env=environment, start_new_session=True, **streams)


def _kill(process: subprocess.Popen[Any]) -> None:
    """Kills the process and wandb's helpers below it, unless they have ended."""
    if process.poll() is None:
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            child.kill()
        process.wait()
