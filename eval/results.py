"""Results on disk: one folder per checkpoint, written as they come, continued after a kill.

folder/provenance.json  what the results depend on; a folder of something else is refused, never mixed
folder/records.jsonl    one record per item x condition x order, appended pack by pack
folder/breakdown.jsonl  a row per template, occupation, profile and condition, written when all is answered
folder/summary.json     metrics and effects with intervals, written last and atomically: its presence means complete
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from eval.config import InputError
from eval.records import Measured, Record

Key = tuple[str, str, str, int]

IDENTITY = (
    "weights", "adapter_weights", "format", "system_turn", "dtype", "data", "data_sha256", "evaluation", "step",
)  # fmt: skip
"""The fields of the provenance that must agree for a folder's records to be continued."""


def record_key(record: Record) -> Key:
    """What identifies a record: experiment, condition, item, order."""
    return record["experiment"], record["condition"], record["item"], record["order"]


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: a reader sees the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


class Store:
    """The results of one checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records_path = folder / "records.jsonl"
        self.summary_path = folder / "summary.json"
        self.provenance_path = folder / "provenance.json"

    def open(self, provenance: dict[str, Any]) -> None:
        """Starts the folder or continues it. InputError where it holds results of something else."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.provenance_path.is_file():
            found = json.loads(self.provenance_path.read_text(encoding="utf-8"))
            if name := differing(found, provenance):
                raise InputError(
                    f"{self.folder} holds results with another {name} ({_short(found.get(name))} there, "
                    f"{_short(provenance.get(name))} now); choose another --output or remove the folder"
                )
        else:
            write_json(self.provenance_path, provenance)
        self._drop_torn_line()

    def _drop_torn_line(self) -> None:
        """A kill in the middle of a write leaves a last line without its end: it is cut off and asked again."""
        if not self.records_path.is_file():
            return
        with self.records_path.open("rb+") as handle:
            content = handle.read()
            end = content.rfind(b"\n") + 1
            if end != len(content):
                handle.truncate(end)

    def append(self, records: Iterable[Record]) -> None:
        """Appends whole lines and flushes them."""
        with self.records_path.open("a", encoding="utf-8") as handle:
            for record in records:
                handle.write(json.dumps(record, allow_nan=False) + "\n")
            handle.flush()

    def read(self) -> Iterator[Record]:
        """The records, in the order in which they were written."""
        if self.records_path.is_file():
            with self.records_path.open(encoding="utf-8") as handle:
                for number, line in enumerate(handle, 1):
                    try:
                        yield json.loads(line)
                    except json.JSONDecodeError as error:
                        raise InputError(f"{self.records_path}:{number} is damaged; remove the folder") from error

    def finish(self, measured: Measured, provenance: dict[str, Any]) -> None:
        """Writes breakdown.jsonl, then summary.json."""
        lines = [json.dumps(row, allow_nan=False) + "\n" for row in measured.breakdown]
        write_text(self.folder / "breakdown.jsonl", "".join(lines))
        told = {name: [dataclasses.asdict(m) for m in getattr(measured, name)] for name in ("metrics", "effects")}
        write_json(self.summary_path, {**provenance, **told})

    def summary(self) -> dict[str, Any] | None:
        """summary.json, or None where the evaluation is not complete."""
        if not self.summary_path.is_file():
            return None
        return json.loads(self.summary_path.read_text(encoding="utf-8"))


def differing(found: dict[str, Any], given: dict[str, Any]) -> str | None:
    """The first field of IDENTITY in which two provenances are not of the same results."""
    return next((name for name in IDENTITY if _identity(found, name) != _identity(given, name)), None)


def _identity(provenance: dict[str, Any], name: str) -> Any:
    value = provenance.get(name)
    if name == "evaluation" and value:  # earlier versions counted batch_tokens as a setting; it changes no result
        return {k: v for k, v in value.items() if k != "batch_tokens"}
    return value


def find_summaries(folder: Path) -> list[dict[str, Any]]:
    """All complete results of one run in `folder`, ordered by RLHF step, each with its own folder as 'results'.

    Raises InputError where there is none, or where they do not belong on one curve: two of a step, or results of
    different models, data, formats or settings.
    """
    if not folder.is_dir():
        raise InputError(f"run folder {folder} is not there; give the folder of a training run or of `eval run`")
    found = []
    for path in sorted(folder.rglob("summary.json")):
        summary = json.loads(path.read_text(encoding="utf-8"))
        if "metrics" in summary:
            found.append({**summary, "results": str(path.parent)})
    if not found:
        raise InputError(f"run folder {folder} has no finished evaluation (no summary.json in it)")
    for other in found[1:]:
        if name := _apart(found[0], other):
            raise InputError(
                f"{folder} holds results that do not belong on one curve: {name} differs between "
                f"{found[0]['results']} and {other['results']}; give the folder of one run or model"
            )
    by_step = {s["step"]: s["results"] for s in found}
    if len(by_step) < len(found):
        twice = next(s for s in found if by_step[s["step"]] != s["results"])
        raise InputError(
            f"{folder} holds two results of step {twice['step']}: {twice['results']} and {by_step[twice['step']]}; "
            "give the folder of one run or model"
        )
    return sorted(found, key=lambda s: s["step"])


def step_name(summaries: list[dict[str, Any]]) -> str:
    """What the steps of one curve count: 'RLHF step', 'training step' ..."""
    return summaries[0].get("step_name") or "RLHF step"


def _apart(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """In what two results differ that must be the same along a curve, None where they are. Whole checkpoints of one
    training are models under different names; revisions, and models of different size, are not.
    """
    if step_name([one]) != step_name([other]):
        return "step_name"
    names = ("model", "format", "system_turn", "dtype", "data", "data_sha256", "evaluation")
    wholes = not any(s.get("adapter") or s.get("revision") for s in (one, other))
    alike = wholes and one.get("model_params") == other.get("model_params")
    apart = (n for n in names if _identity(one, n) != _identity(other, n) and not (n == "model" and alike))
    return next(apart, None)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
