"""Results on disk: one folder per checkpoint, written as answers come, resumed after a kill, extended by later runs.

folder/provenance.json  what the records depend on, the questions planned now, and who wrote how many records when
folder/records.jsonl    one record per item x condition x order, appended pack by pack
folder/breakdown.jsonl  a row per template, occupation, profile and condition, written when all is answered
folder/summary.json     metrics and effects with intervals of one selection, written last and atomically

Every record depends on the IDENTITY fields: a folder of something else is refused, never mixed. The SELECTION fields
say which questions are evaluated. They may change from one command to the next, and records on disk are used again.
eval.runner.answered checks record by record that it answers the question as it is planned now.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from eval.errors import InputError
from eval.files import now, read_json, write_json, write_text
from eval.metrics.version import METRICS_VERSION, check_metrics, version_of
from eval.runner.keys import IDENTITY, RECORDS_VERSION, REMEDY, record_key, same_selection
from eval.types import Measured, Record

SESSION = (
    "command", "git_commit", "versions", "machine", "device", "device_name", "tier", "tier_reason", "kernels",
    "batch_tokens", "tensor_parallel_size", "max_model_len", "vllm_options", "base_url", "server", "served", "used",
    "rank", "processes",
)  # fmt: skip
"""Fields kept for every process that wrote records. rank and processes are there if several shared the questions."""


class Busy(InputError):
    """Another process is writing these results."""


class Store:
    """The results of one checkpoint.

    To write, call `locked`, `open`, `begin`, `begin_session`, `append` ..., `finish`, in this order.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records_path = folder / "records.jsonl"
        self.summary_path = folder / "summary.json"
        self.provenance_path = folder / "provenance.json"
        self.state: dict[str, Any] = {}  # the content of provenance.json
        self.session: dict[str, Any] | None = None  # this process's, once it scores

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and locks it. The lock ends with the process at the latest.

        Raises:
            Busy: Another process holds the lock.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise Busy(
                f"{self.folder} is being written by another process; wait for its end or choose another --output"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def open(self, provenance: dict[str, Any]) -> int:
        """Checks that the folder's records may be used. Changes nothing but a torn last line.

        Returns:
            The number of records that were written before this selection of questions.

        Raises:
            InputError: The folder holds results of something else.
        """
        recorded = read_json(self.provenance_path)
        self._drop_torn_line()
        lines = self._lines()
        if recorded is None:
            if lines:
                raise InputError(f"{self.folder} has records but no provenance.json to say of what; {REMEDY}")
            self.state = {"records_before": 0, "sessions": []}
            return 0
        self.check_version(recorded)
        recorded.setdefault("scorer", "transformers")  # provenance of early versions has no scorer
        for name in IDENTITY:
            if name in recorded and name in provenance:
                _check_same(self.folder, name, recorded[name], provenance[name])
        for name in recorded["data_files"].keys() & provenance["data_files"].keys():
            _check_same(
                self.folder, name, recorded["data_files"][name]["sha256"], provenance["data_files"][name]["sha256"]
            )
        before = recorded["records_before"] if same_selection(recorded, provenance) else lines
        # a records file that something else cut short holds fewer lines
        self.state = {**recorded, "records_before": min(before, lines)}
        return self.state["records_before"]

    def provenance(self) -> dict[str, Any]:
        """Returns provenance.json, to be read only.

        Raises:
            InputError: It is not there, or is of another records version.
        """
        recorded = read_json(self.provenance_path)
        if recorded is None:
            raise InputError(f"{self.folder} holds no results (no provenance.json); give an --output of `eval run`")
        self.check_version(recorded)
        return recorded

    def check_version(self, described: dict[str, Any]) -> None:
        """Raises InputError for a provenance or summary of records with other columns."""
        version = described.get("records_version") or described.get("evaluation", {}).get("records_version")
        if version != RECORDS_VERSION:
            raise InputError(
                f"{self.folder} was written by an earlier selfcorrect (records version {version}, now "
                f"{RECORDS_VERSION}); {REMEDY}"
            )

    def begin(self, provenance: dict[str, Any]) -> None:
        """Records that these questions are being evaluated. A summary of other questions stays until it is replaced."""
        files = {**self.state.get("data_files", {}), **provenance["data_files"]}
        kept = {name: self.state[name] for name in ("records_before", "sessions")}
        self.state = {**provenance, "data_files": files, **kept}
        self.write_state()

    def write_state(self) -> None:
        """Writes provenance.json."""
        self._write_json(self.provenance_path, self.state)

    def begin_session(self) -> None:
        """Records that this process is about to add records, if it has not done so yet."""
        if self.session is None:
            lines = self._lines()
            kept = [
                s for s in self.state["sessions"] if s["first_record"] < lines
            ]  # the others were killed before their first record
            fields = {name: self.state[name] for name in SESSION if name in self.state}
            self.session = {"started": now(), "ended": now(), "first_record": lines, "seconds": {}, **fields}
            self.state["sessions"] = [*kept, self.session]
            self.write_state()

    def _drop_torn_line(self) -> None:
        """Cuts off a last line that a kill left unfinished. Its question is then pending again."""
        if not self.records_path.is_file():
            return
        with self.records_path.open("rb+") as handle:
            content = handle.read()
            end = content.rfind(b"\n") + 1
            if end != len(content):
                handle.truncate(end)

    def _lines(self) -> int:
        if not self.records_path.is_file():
            return 0
        with self.records_path.open("rb") as handle:
            return sum(1 for _ in handle)

    def append(self, records: list[Record], part: tuple[str, str], seconds: float, scorer: dict[str, Any]) -> None:
        """Appends records as whole lines, and updates the counts and times in provenance.json.

        Args:
            records: The records.
            part: (experiment, 'without_reasoning' or 'with_reasoning').
            seconds: Wall time that the records took.
            scorer: The scorer's present description.

        Raises:
            InputError: The disk cannot be written. What was written stays.
        """
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        try:
            with self.records_path.open("ab") as handle:
                handle.write(lines.encode())
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise _not_written(self.records_path, error) from error
        assert self.session is not None  # begin_session was called
        self.state |= scorer
        for experiment, condition, *_ in map(record_key, records):
            cells = self.state["done"].setdefault(experiment, {})
            cells[condition] = cells.get(condition, 0) + 1
        spent = self.session["seconds"].setdefault(part[0], {})
        spent[part[1]] = round(spent.get(part[1], 0.0) + seconds, 3)
        fields = {name: self.state[name] for name in SESSION if name in self.state}
        self.session |= {"ended": now(), **fields}
        self.write_state()

    def rewrite(self, records: Iterable[Record]) -> None:
        """Replaces all records atomically."""
        self.write_lines(json.dumps(r, allow_nan=False) + "\n" for r in records)

    def write_lines(self, lines: Iterable[str]) -> None:
        """Replaces all records atomically, given as lines of the file."""
        try:
            write_text(self.records_path, "".join(lines))
        except OSError as error:
            raise _not_written(self.records_path, error) from error

    def read(self) -> Iterator[Record]:
        """Yields the records in the order of writing, without a last line that is still being written."""
        return (record for _, record in self.read_lines())

    def read_lines(self) -> Iterator[tuple[str, Record]]:
        """Yields (line, record)."""
        if self.records_path.is_file():
            with self.records_path.open("rb") as handle:
                for number, line in enumerate(handle, 1):
                    if not line.endswith(b"\n"):
                        return
                    try:
                        record = json.loads(line)
                        record_key(record)
                    except (ValueError, KeyError, TypeError) as error:
                        raise InputError(f"{self.records_path}:{number} is damaged; remove the folder") from error
                    yield line.decode(), record

    def finish(self, measured: Measured, provenance: dict[str, Any]) -> None:
        """Writes breakdown.jsonl, then summary.json, of a finished evaluation."""
        sessions = self.state["sessions"]
        when = {
            "started": sessions[0]["started"],
            "ended": now(),
            "seconds": total_seconds(sessions),
            "sessions": sessions,
        }
        self.write_measured(measured, {**provenance, **when})

    def write_measured(self, measured: Measured, described: dict[str, Any]) -> None:
        """Writes breakdown.jsonl, then summary.json: the description, then metrics and effects."""
        lines = [json.dumps(row, allow_nan=False) + "\n" for row in measured.breakdown]
        results = {name: [dataclasses.asdict(m) for m in getattr(measured, name)] for name in ("metrics", "effects")}
        try:
            write_text(self.folder / "breakdown.jsonl", "".join(lines))
        except OSError as error:
            raise _not_written(self.folder / "breakdown.jsonl", error) from error
        self._write_json(self.summary_path, {**described, **results})

    def _write_json(self, path: Path, value: dict[str, Any]) -> None:
        try:
            write_json(path, value)
        except OSError as error:
            raise _not_written(path, error) from error

    def summary(self) -> dict[str, Any] | None:
        """Returns summary.json, of whatever selection. None if there is none yet.

        Raises:
            InputError: Another version of the metrics made it.
        """
        summary = read_json(self.summary_path)
        if summary is not None:
            check_metrics(self.summary_path, summary)
        return summary

    def finished(self, provenance: dict[str, Any], done: dict[str, dict[str, int]]) -> dict[str, Any] | None:
        """Returns the summary of exactly these questions, or None.

        Args:
            provenance: The provenance of the questions.
            done: Numbers of records on disk. A summary that used more than these is not returned.
        """
        summary = read_json(self.summary_path)
        if summary is None or version_of(summary) != METRICS_VERSION:
            return None
        if not same_selection(summary, provenance):
            return None
        names = summary.keys() & provenance.keys() & {*IDENTITY, "records_version"}
        if any(summary[name] != provenance[name] for name in names):
            return None
        used = summary["records"].items()
        lost = any(done.get(e, {}).get(c, 0) < n for e, conditions in used for c, n in conditions.items())
        return None if lost else summary


def total_seconds(sessions: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Adds up the seconds of all sessions, by experiment, without and with reasoning."""
    total: dict[str, dict[str, float]] = {}
    for experiment, spent in ((e, s) for session in sessions for e, s in session["seconds"].items()):
        for part, seconds in spent.items():
            parts = total.setdefault(experiment, {})
            parts[part] = round(parts.get(part, 0.0) + seconds, 3)
    return total


def _check_same(folder: Path, name: str, recorded: Any, current: Any) -> None:
    if recorded != current:
        raise InputError(
            f"{folder} holds results with another {name} ({_short(recorded)} there, {_short(current)} now); {REMEDY}"
        )


def _not_written(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path} cannot be written ({error.strerror}); make room and run the same command again: it goes on with what "
        "is there"
    )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
