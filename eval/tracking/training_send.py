"""Sends a training's own run to W&B from its files: the rows of its log, its sampled answers, its last values."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eval.errors import InputError
from eval.files import read_json
from eval.tracking import client as tracking
from eval.tracking.ledger import TRAINING_LEDGER, Ledger
from eval.tracking.names import digest
from eval.tracking.send import Channel, Sent
from eval.tracking.training_log import RUN, STEP, Item, Reader, row_digest, row_key

log = logging.getLogger(__name__)

SUMMARY = "summary"
"""The ledger's key for the last values."""


def send_training(
    folder: Path, destination: tracking.Destination, ended: Callable[[], bool] | None = None, settings: Any = None,
    wait: bool = False,
) -> Sent:  # fmt: skip
    """Sends what the training's own run lacks.

    Args:
        folder: the training's output folder.
        destination: where to send.
        ended: called between two reads of the files; returns whether the next read is the last. None = read once, and
            start no run if nothing is new.
        settings: wandb's settings, for a training that is still running.
        wait: whether to wait for another process that sends the same run, such as the training itself; else Busy is
            raised.

    Raises:
        InputError: something did not arrive; it counts as not sent. Errors of wandb's are not caught.
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

        def write(run: Any) -> list[dict[str, Any]]:
            return part.write(run, ended or (lambda: True))

        channel.write(run_id, "train", about["config"], "", write, settings or tracking.QUIET)
        done |= part.keys
        ledger.write()
        sent.runs.append(run_id)
        sent.rows = len(part.rows)
        sent.changed = list(part.changed)
    return sent


def unsynced(folder: Path) -> list[str]:
    """The offline folders of a training's own run that were not synced."""
    about = read_json(folder / RUN) or {}
    ledger = Ledger(folder, about["policy"], TRAINING_LEDGER)
    with ledger.opened(tracking.Destination().target(), wait=False):
        return [str(path) for path in ledger.unsynced()]


class Part:
    """What is sent of a training at a time.

    Args:
        done: what is already at the destination: a checksum by key.
    """

    def __init__(self, folder: Path, done: dict[str, Any]) -> None:
        self.folder = folder
        self.done = done
        self.reader = Reader(folder)
        self.read: list[Item] = []
        self.rows: list[dict[str, Any]] = []
        self.keys: dict[str, str] = {}
        self.changed: dict[str, None] = {}

    def pending(self) -> list[Item]:
        """The rows to send, given what the files have now. A row stays pending until it is logged."""
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
        """Logs what the files have until the training has ended. Returns the rows."""
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        last = False
        while not last:
            last = ended()  # asked before reading: once ended, nothing more is written
            for item in self.pending():
                self._log(run, item)
            self.read = []
        values = (read_json(self.folder / RUN) or {})[SUMMARY]
        if values:
            run.summary.update(values)
        self.keys[SUMMARY] = digest(values)
        return self.rows

    def _log(self, run: Any, item: Item) -> None:
        """Logs one row, with its table of sampled answers and its alert."""
        row = dict(item.row)
        if item.samples is not None:
            answers = [json.loads(line) for line in item.samples.read_text(encoding="utf-8").splitlines()]
            row[item.samples.stem.join(("samples/", ""))] = tracking.samples_table(answers, row[STEP])
        if item.alert is not None:
            run.alert(*item.alert)
        run.log(row)
        self.rows.append(item.row)
        self.keys[item.key] = row_digest(item.row)
