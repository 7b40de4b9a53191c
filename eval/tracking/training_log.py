"""What a training's own run on W&B is made from: files in its output folder, so that any command can send it.

training-run.json   the run's id, policy, settings and last values
training-log.jsonl  a line per row of the trainer's log, written as it comes
alerts.jsonl, samples/step-N.jsonl  what the training writes anyway, read from there
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.tracking.names import digest, plain

RUN, ROWS = "training-run.json", "training-log.jsonl"
ALERTS, SAMPLES = "alerts.jsonl", "samples"
STEP = "train/global_step"
TABLE = "samples/step-"
NO_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""How a line has what JSON has no number for."""
LIMIT = "SELFCORRECT_WANDB_SECONDS"


def limit_seconds() -> float:
    """How long W&B may hold a training in all: $SELFCORRECT_WANDB_SECONDS, or 120 seconds."""
    return float(os.environ.get(LIMIT) or 120)


@dataclass(frozen=True)
class Item:
    """A row of the run. alert: its (title, text); samples: the file of the table that is logged with it."""

    row: dict[str, Any]
    alert: tuple[str, str] | None = None
    samples: Path | None = None

    @property
    def key(self) -> str:
        return row_key(self.row)


def row_key(row: dict[str, Any]) -> str:
    """What identifies a row, as it is logged or as it comes back from W&B: its step, and which values it has."""
    return f"{int(row[STEP])}/{digest(sorted(_values(row)))}"


def row_digest(row: dict[str, Any]) -> str:
    """A checksum of a row's values, without durations, which differ when a step is done again after a kill."""
    return digest({n: plain(v) for n, v in _values(row).items() if "time" not in n and "per_second" not in n})


def _values(row: dict[str, Any]) -> dict[str, Any]:
    """Without what W&B adds, and without tables, which it gives back in another form."""
    return {n: v for n, v in row.items() if not n.startswith(("_", TABLE))}


def as_line(row: dict[str, Any]) -> str:
    """A row as a line of training-log.jsonl; what is no single value is left out."""
    named = {plain(value): name for name, value in NO_NUMBERS.items()}
    kept = {name: named.get(plain(v), v) for name, v in row.items() if isinstance(v, int | float | str)}
    return json.dumps(kept, allow_nan=False) + "\n"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of training-log.jsonl, without a last one that a kill cut off; none where there is no file."""
    *lines, _ = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    return [_row(line) for line in lines]


def _row(line: bytes) -> dict[str, Any]:
    return {n: NO_NUMBERS.get(v, v) if isinstance(v, str) else v for n, v in json.loads(line).items()}


class Reader:
    """Reads a training's folder again and again, while it is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = (folder / ROWS).open("rb")  # kept open: a training that goes on replaces the file
        self.rest = b""

    def items(self) -> Iterator[Item]:
        """Rows that came since the last call, and all alerts and tables of sampled answers."""
        *lines, self.rest = (self.rest + self.file.read()).split(b"\n")
        for line in lines:
            yield Item(_row(line))
        yield from self._alerts()
        for path in sorted((self.folder / SAMPLES).glob("step-*.jsonl")):
            step, answers = int(path.stem.removeprefix("step-")), path.read_text(encoding="utf-8").count("\n")
            yield Item({STEP: step, "samples/answers": answers}, samples=path)

    def _alerts(self) -> Iterator[Item]:
        path = self.folder / ALERTS
        if path.is_file():
            *lines, _ = path.read_bytes().split(b"\n")
            for alert in map(json.loads, lines):
                row = {STEP: alert["step"], f"alerts/{alert['alert']}": alert["text"]}
                yield Item(row, alert=(f"{alert['alert']} out of its band at step {alert['step']}", alert["text"]))
