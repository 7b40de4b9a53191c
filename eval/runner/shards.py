"""Shards: what each of several processes writes of one checkpoint, and how shards become records.jsonl.

folder/shards/JOB-rank-R.jsonl   records of one process, appended chunk by chunk like records.jsonl
folder/shards/JOB-rank-R.json    its provenance: its session, and how many records are done

JOB names one start of the command, so that a process that outlives its job cannot write into another job's shard.
Shards are merged by the next holder of the folder's lock, in however many processes: at the end of the job, or by the
next command after a kill. A shard is removed once its records are in records.jsonl. Until then a record may be in both
places and is read once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eval.errors import InputError
from eval.files import read_json
from eval.runner.keys import REMEDY, Key, record_key
from eval.runner.store import Store
from eval.types import Record

FOLDER = "shards"
REORDERING = "reordering"
"""Key in provenance.json while records.jsonl is being reordered. Holds the sessions as they will be afterwards, and the
sha256 that the file will have.
"""


class Shard(Store):
    """A store inside another's folder, for the records that one process of a job adds."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder)
        self.records_path = folder / FOLDER / f"{name}.jsonl"
        self.provenance_path = folder / FOLDER / f"{name}.json"
        self.state = {"records_before": 0, "sessions": []}


def shards(folder: Path, job: str = "*") -> list[Shard]:
    """Returns the shards in the folder, of one job or of all."""
    return [Shard(folder, path.stem) for path in sorted((folder / FOLDER).glob(f"{job}-rank-*.json"))]


def done_in(folder: Path, job: str) -> dict[str, dict[str, int]]:
    """Counts the records in the shards of a running job: {experiment: {condition: records}}."""
    return summed(*(shard.provenance()["done"] for shard in shards(folder, job)))


def summed(*counts: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Adds up numbers of records by experiment and condition."""
    total: dict[str, dict[str, int]] = {}
    for experiment, cells in (entry for each in counts for entry in each.items()):
        sums = total.setdefault(experiment, {})
        for condition, n in cells.items():
            sums[condition] = sums.get(condition, 0) + n
    return total


def new_records(folder: Path, job: str, read: dict[Path, int]) -> Iterator[Record]:
    """Yields the records that a job's shards have gained since the last call.

    Args:
        folder: The results folder.
        job: The job's name.
        read: Bytes already read of each file. Updated in place.
    """
    for shard in shards(folder, job):
        path = shard.records_path
        if path.is_file():
            with path.open("rb") as handle:
                handle.seek(read.get(path, 0))
                for line in handle:
                    yield json.loads(line)
                read[path] = handle.tell()


def open_with_shards(store: Store, provenance: dict[str, Any]) -> int:
    """Opens the store as Store.open does, after merging all shards into records.jsonl. The store must be locked.

    A kill at any moment leaves either the shards or all of their records. provenance.json is written first: a session
    whose records never followed is recognised by its first_record.

    Returns:
        The number of records that precede this selection.

    Raises:
        InputError: The folder or a shard holds results of something else.
    """
    if (state := read_json(store.provenance_path)) is not None and REORDERING in state:
        store.state = state
        _settle(store, state[REORDERING])
    before = store.open(provenance)
    unmerged = shards(store.folder)
    if not unmerged:
        return before
    if not store.provenance_path.is_file():
        raise InputError(f"{store.folder} has shards but no provenance.json to say of what; {REMEDY}")
    for shard in unmerged:
        shard.open(provenance)
    state = store.provenance()
    lines, keys = [], set()
    for line, record in store.read_lines():
        lines.append(line)
        keys.add(record_key(record))
    state["sessions"] = [s for s in state["sessions"] if s["first_record"] < len(lines)]
    n_before = len(lines)
    for shard in unmerged:
        first = len(lines)
        for line, record in shard.read_lines():
            if (key := record_key(record)) not in keys:
                keys.add(key)
                lines.append(line)
        if len(lines) > first:
            state["sessions"].append({**shard.state["sessions"][-1], "first_record": first})
    if len(lines) > n_before:
        store.state = state
        store.write_state()
        store.write_lines(lines)
    _remove(store.folder, unmerged)
    return store.open(provenance)


def _remove(folder: Path, merged: Sequence[Shard]) -> None:
    for shard in merged:
        shard.records_path.unlink(
            missing_ok=True
        )  # records first: without provenance nothing would say where they come from
        shard.provenance_path.unlink()
    if not any((folder / FOLDER).iterdir()):
        (folder / FOLDER).rmdir()


def put_in_order(store: Store, keys: Sequence[Key]) -> None:
    """Puts the records into the order in which a single process would have written them.

    Records that precede this selection come first, then those of `keys`. The others are dropped: one process scored
    them ahead, and another's answers showed that they were not needed.
    """
    sessions, before = store.state["sessions"], store.state["records_before"]
    if not any("rank" in s for s in sessions):
        return
    lines, position = [], {}
    for line, record in store.read_lines():
        position.setdefault(record_key(record), len(lines))
        lines.append(line)
    order = [*range(before), *(n for key in keys if (n := position[key]) >= before)]
    if order == list(range(len(lines))):
        return
    owner = owners(sessions, len(lines))
    lines = [lines[n] for n in order]
    moved = _with_lines(sessions, [owner[n] for n in order])
    pending = {"sessions": moved, "sha256": hashlib.sha256("".join(lines).encode()).hexdigest()}
    store.state[REORDERING] = pending
    store.write_state()
    store.write_lines(lines)
    _settle(store, pending)


def _settle(store: Store, pending: dict[str, Any]) -> None:
    """Completes a reordering, also after a kill: it has taken place if records.jsonl has the expected checksum."""
    if hashlib.sha256(store.records_path.read_bytes()).hexdigest() == pending["sha256"]:
        store.state["sessions"] = pending["sessions"]
    del store.state[REORDERING]
    store.write_state()


def owners(sessions: Sequence[dict[str, Any]], lines: int) -> list[int]:
    """Returns the number of the session that wrote each line.

    A session wrote its `lines`, if it has that field, else the lines from its first record up to the next session's.
    """
    owner = [0] * lines
    for number, session in enumerate(sessions):
        ranges = session.get("lines", f"{session['first_record']}-{lines - 1}")
        for first, _, last in (part.partition("-") for part in ranges.split(",")):
            for n in range(int(first), min(int(last or first) + 1, lines)):
                owner[n] = number
    return owner


def _with_lines(sessions: Sequence[dict[str, Any]], owner: Sequence[int]) -> list[dict[str, Any]]:
    """Returns the sessions that own a line, each with its `lines`, such as '0-479,960-1439', ordered by first line."""
    runs: dict[int, list[list[int]]] = {}
    for n, number in enumerate(owner):
        parts = runs.setdefault(number, [])
        if parts and parts[-1][1] == n - 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return [
        {**sessions[number], "first_record": parts[0][0], "lines": ",".join(f"{a}-{b}" for a, b in parts)}
        for number, parts in runs.items()
    ]
