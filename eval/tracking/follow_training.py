"""`python -m eval.tracking.follow_training OUTPUT_DIR`: sends a training's own run, and its evaluations, while their
files grow.

A training starts it (reward.training_run) as a separate process, so that nothing that W&B does reaches the training. It
follows the files until its standard input ends, which happens when the training ends, even by a kill. If W&B fails, it
ends with a line and status 1. The next process, of the training or of a later command, then continues as after a kill:
it asks the server what has arrived (eval.tracking.send.Channel).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path

from eval.tracking import client as tracking
from eval.tracking.during_training import publish_pending
from eval.tracking.publish import describe_changed
from eval.tracking.training_log import LIMIT, ROWS, limit_seconds
from eval.tracking.training_send import send_training

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0


class Following:
    """Polls whether the training has ended, and publishes new evaluations between two polls.

    The training has ended when this process's standard input ends.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.training_ended = threading.Event()
        self.evaluated: set[Path] = set()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """Waits for the training's end, then ends this process if W&B takes too long."""
        sys.stdin.buffer.read()
        self.training_ended.set()
        threading.Event().wait(limit_seconds())  # a killed training does not end this process
        log.warning("%s", describe_missing(self.folder, f"W&B took longer than {limit_seconds():g} s ({LIMIT})"))
        tracking.end_helpers()
        os._exit(1)

    def __call__(self) -> bool:
        """Waits for a moment and publishes new evaluations. Returns whether the training has ended."""
        training_ended = self.training_ended.wait(POLL_SECONDS)
        summaries = set(self.folder.glob("eval/step-*/summary.json"))
        if not training_ended and summaries - self.evaluated and (why := publish_pending(self.folder)):
            log.warning("%s", why)
        self.evaluated = summaries
        return training_ended


def describe_missing(folder: Path, why: str) -> str:
    """What W&B may lack, why, and what to do about it."""
    return f"{folder}: W&B may lack a part of the training's run: {why}; `python -m eval publish {folder}` sends it"


def follow(folder: Path) -> int:
    """Sends a training and its evaluations until its end. Returns the process's exit status."""
    following, status = Following(folder), 0
    try:
        if (folder / ROWS).is_file():
            once = following.training_ended.wait(0.2)
            ended, settings = (None, None) if once else (following, tracking.monitored_settings(os.getppid()))
            sent = send_training(folder, tracking.Destination(), ended, settings, wait=True)
            if sent.changed:
                log.warning("%s: %s", folder, describe_changed(sent.changed))
    except Exception as error:  # any failure of wandb, its helper, the server, its folders or the disk
        log.warning("%s", describe_missing(folder, tracking.describe_error(error)))
        status = 1
    if not following.training_ended.is_set():
        return status
    if any(folder.glob("eval/step-*/summary.json")) and (why := publish_pending(folder, pictures=True)):
        log.warning("%s", why)
        status = 1
    return status


def main() -> None:
    """Runs the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    tracking.exit_process(follow(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
