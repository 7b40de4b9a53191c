"""The files in a training's output folder from which any command can make its own run on W&B.

training-run.json   the run's id, policy, settings and last values
training-log.jsonl  a line for each row of the trainer's log, written at once
alerts.jsonl, samples/step-N.jsonl  written by the training in any case, and read from there
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.errors import InputError
from eval.tracking.names import digest, plain

RUN, ROWS = "training-run.json", "training-log.jsonl"
ALERTS, SAMPLES = "alerts.jsonl", "samples"
STEP = "train/global_step"
TABLE = "samples/step-"
NO_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""How a line writes numbers that JSON does not have."""
LIMIT = "SELFCORRECT_WANDB_SECONDS"


def limit_seconds() -> float:
    """How long W&B may delay a training in total: $SELFCORRECT_WANDB_SECONDS, or 120 seconds.

    Raises:
        InputError: the variable is not a number above 0.
    """
    text = os.environ.get(LIMIT) or "120"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise InputError(f"${LIMIT} must be a number of seconds above 0, not '{text}'; unset it for 120")
    return seconds


@dataclass(frozen=True)
class Item:
    """A row of the run.

    Attributes:
        alert: (title, text) of the alert sent with it.
        samples: the file of the table that is logged with it.
    """

    row: dict[str, Any]
    alert: tuple[str, str] | None = None
    samples: Path | None = None

    @property
    def key(self) -> str:
        return row_key(self.row)


def row_key(row: dict[str, Any]) -> str:
    """Identifies a row, as logged or as W&B returns it: its step, and a checksum of its names."""
    return f"{int(row[STEP])}/{digest(sorted(_values(row)))}"


def row_digest(row: dict[str, Any]) -> str:
    """A checksum of a row's values, without durations, which differ when a step is repeated after a kill."""
    return digest({n: plain(v) for n, v in _values(row).items() if "time" not in n and "per_second" not in n})


def _values(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what W&B adds, and without tables, which W&B returns in another form."""
    return {n: v for n, v in row.items() if not n.startswith(("_", TABLE))}


def as_line(row: dict[str, Any]) -> str:
    """A row as a line of training-log.jsonl, without values that are not numbers or text."""
    named = {plain(value): name for name, value in NO_NUMBERS.items()}
    kept = {name: named.get(plain(v), v) for name, v in row.items() if isinstance(v, int | float | str)}
    return json.dumps(kept, allow_nan=False) + "\n"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of training-log.jsonl, without a last one that a kill cut off; [] where there is no file."""
    *lines, _ = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    return [_row(line) for line in lines]


def _row(line: bytes) -> dict[str, Any]:
    """Parses a line of training-log.jsonl."""
    return {n: NO_NUMBERS.get(v, v) if isinstance(v, str) else v for n, v in json.loads(line).items()}


class Reader:
    """Reads a training's folder repeatedly while it is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = (folder / ROWS).open("rb")  # kept open, since a training that continues replaces the file
        self.rest = b""

    def items(self) -> Iterator[Item]:
        """Yields the rows that are new since the last call, and all alerts and tables of sampled answers."""
        *lines, self.rest = (self.rest + self.file.read()).split(b"\n")
        for line in lines:
            yield Item(_row(line))
        yield from self._alerts()
        for path in sorted((self.folder / SAMPLES).glob("step-*.jsonl")):
            step, answers = int(path.stem.removeprefix("step-")), path.read_text(encoding="utf-8").count("\n")
            yield Item({STEP: step, "samples/answers": answers}, samples=path)

    def _alerts(self) -> Iterator[Item]:
        """Yields all alerts."""
        path = self.folder / ALERTS
        if path.is_file():
            *lines, _ = path.read_bytes().split(b"\n")
            for alert in map(json.loads, lines):
                row = {STEP: alert["step"], f"alerts/{alert['alert']}": alert["text"]}
                yield Item(row, alert=(f"{alert['alert']} out of its band at step {alert['step']}", alert["text"]))
