"""python -m eval.training_sending OUTPUT_DIR: sends a training's own run, and its evaluations, as their files grow.

A training starts it (reward.training_run) as a process of its own, so that nothing that W&B does reaches the training.
It follows the files until its standard input ends, as it does with the training, also by a kill. Where W&B fails it
ends with a line and status 1, and the next one, of the training or of a later command, goes on as after a kill: what
has arrived is asked of the server (eval.sending.Channel).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eval import tracking
from eval.config import InputError
from eval.ledger import TRAINING_LEDGER, Ledger
from eval.results import read_json
from eval.sending import Channel, Sent
from eval.tracked import digest
from eval.training_log import LIMIT, ROWS, RUN, STEP, Item, Reader, limit_seconds, row_digest, row_key
from eval.views.publishing import describe_changed
from eval.watch import not_sent

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
SUMMARY = "summary"
"""What the ledger has the last values under."""


def send_training(
    folder: Path, destination: tracking.Destination, ended: Callable[[], bool] | None = None, settings: Any = None,
    wait: bool = False,
) -> Sent:  # fmt: skip
    """Sends what the training's own run lacks.

    Args:
        folder: the training's output folder.
        destination: where to.
        ended: called between two looks at the files: whether the next one is the last. None = one look, and nothing is
            begun where nothing is new.
        settings: of wandb, for a training that is running.
        wait: for another process that is sending the same, as the training itself; else Busy is raised.

    Raises:
        InputError: something did not arrive; it counts as not sent. What wandb raises is not caught.
    """
    about = read_json(folder / RUN)
    if about is None:
        raise InputError(f"{folder} has no {RUN}: it is of no training that was sent to W&B; give the folder of one")
    ledger = Ledger(folder, about["policy"], TRAINING_LEDGER)
    sent = Sent(ledger.policy, folder)
    if tracking.mode() == "disabled":
        sent.held.append("W&B is disabled: nothing is sent, and nothing is taken for sent")
        return sent
    with ledger.opened(destination.target(), wait=wait):
        channel, run_id = Channel(ledger, destination), about["run"]
        done = channel.place["sent"]
        for row in channel.arrived(run_id, known=bool(done)):
            if STEP in row:
                done[row_key(row)] = row_digest(row)
        ledger.write()
        part = Part(folder, done)
        if ended is None and not part.pending() and done.get(SUMMARY) == digest(about[SUMMARY]):
            return sent
        write = lambda run: part.write(run, ended or (lambda: True))  # noqa: E731
        channel.write(run_id, "train", about["config"], "", write, settings or tracking.QUIET)
        done |= part.keys
        ledger.write()
        sent.runs.append(run_id)
        sent.rows = len(part.rows)
        sent.changed = list(part.changed)
    return sent


def unsynced(folder: Path) -> list[str]:
    """The folders of a training's own run that lie offline and were not synced."""
    about = read_json(folder / RUN) or {}
    ledger = Ledger(folder, about["policy"], TRAINING_LEDGER)
    with ledger.opened(tracking.Destination().target(), wait=False):
        return [str(path) for path in ledger.unsynced()]


class Part:
    """What is sent of a training at a time. done: what of it is at the destination, a checksum by key."""

    def __init__(self, folder: Path, done: dict[str, Any]) -> None:
        self.folder = folder
        self.done = done
        self.reader = Reader(folder)
        self.read: list[Item] = []
        self.rows: list[dict[str, Any]] = []
        self.keys: dict[str, str] = {}
        self.changed: dict[str, None] = {}

    def pending(self) -> list[Item]:
        """What is to be sent of what the files have now; it stays pending until it is logged."""
        known = {item.key for item in self.read}
        for item in self.reader.items():
            if item.key in self.done:
                if item.samples is None and self.done[item.key] != row_digest(item.row):
                    self.changed[f"{STEP} {item.row[STEP]}"] = None
            elif item.key not in self.keys and item.key not in known:
                self.read.append(item)
                known.add(item.key)
        return self.read

    def write(self, run: Any, ended: Callable[[], bool]) -> list[dict[str, Any]]:
        """Logs what the files have until the training has ended; the rows."""
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        last = False
        while not last:
            last = ended()  # before the files are read: nothing is written to them afterwards
            for item in self.pending():
                self._log(run, item)
            self.read = []
        values = (read_json(self.folder / RUN) or {})[SUMMARY]
        if values:
            run.summary.update(values)
        self.keys[SUMMARY] = digest(values)
        return self.rows

    def _log(self, run: Any, item: Item) -> None:
        row = dict(item.row)
        if item.samples is not None:
            answers = [json.loads(line) for line in item.samples.read_text(encoding="utf-8").splitlines()]
            row[item.samples.stem.join(("samples/", ""))] = tracking.samples_table(answers, row[STEP])
        if item.alert is not None:
            run.alert(*item.alert)
        run.log(row)
        self.rows.append(item.row)
        self.keys[item.key] = row_digest(item.row)


class Following:
    """Until this process's standard input ends: new evaluations are sent between two looks at the training's files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.over = threading.Event()
        self.evaluated: set[Path] = set()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        sys.stdin.buffer.read()
        self.over.set()
        threading.Event().wait(limit_seconds())  # a training that was killed does not end this process
        log.warning("%s", lacking_line(self.folder, f"W&B took longer than {limit_seconds():g} s ({LIMIT})"))
        tracking.end_helpers()
        os._exit(1)

    def __call__(self) -> bool:
        over = self.over.wait(POLL_SECONDS)
        found = set(self.folder.glob("eval/step-*/summary.json"))
        if not over and found - self.evaluated and (why := not_sent(self.folder)):
            log.warning("%s", why)
        self.evaluated = found
        return over


def lacking_line(folder: Path, why: str) -> str:
    """What to know, and to do, where not all was sent."""
    return f"{folder}: W&B may lack a part of the training's run: {why}; `python -m eval publish {folder}` sends it"


def follow(folder: Path) -> int:
    """Sends a training and its evaluations until its end; the process's status."""
    following, status = Following(folder), 0
    try:
        if (folder / ROWS).is_file():
            once = following.over.wait(0.2)
            ended, settings = (None, None) if once else (following, tracking.beside(os.getppid()))
            sent = send_training(folder, tracking.Destination(), ended, settings, wait=True)
            if sent.changed:
                log.warning("%s: %s", folder, describe_changed(sent.changed))
    except Exception as error:  # whatever wandb, its helper, the server, its folders or the disk do
        log.warning("%s", lacking_line(folder, tracking.line(error)))
        status = 1
    if not following.over.is_set():
        return status
    if any(folder.glob("eval/step-*/summary.json")) and (why := not_sent(folder, pictures=True)):
        log.warning("%s", why)
        status = 1
    return status


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    tracking.leave(follow(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
