"""What several processes write of one checkpoint, each into a shard of its own, and how it becomes records.jsonl.

folder/shards/JOB-rank-R.jsonl   records of one process, appended chunk by chunk like records.jsonl
folder/shards/JOB-rank-R.json    its provenance: its session, and how much is done

JOB is a name of one start of the command, so that a process that outlived its job cannot write into another's shard.
Shards are taken in by whoever holds the folder's lock next, in however many processes: when all is asked, or by the
next command where a job was killed. A shard is removed when its records are safely in records.jsonl. Until then they
may lie in both places, and are read once.
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
"""In provenance.json while records.jsonl is put in order: the sessions as they are afterwards, and its sha256 then."""


class Shard(Store):
    """A store within another's folder, for what one process of a job adds to it."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder)
        self.records_path = folder / FOLDER / f"{name}.jsonl"
        self.provenance_path = folder / FOLDER / f"{name}.json"
        self.state = {"records_before": 0, "sessions": []}


def shards(folder: Path, job: str = "*") -> list[Shard]:
    """Those that lie in the folder, of one job or of all."""
    return [Shard(folder, path.stem) for path in sorted((folder / FOLDER).glob(f"{job}-rank-*.json"))]


def done_in(folder: Path, job: str) -> dict[str, dict[str, int]]:
    """{experiment: {condition: records}} in the shards of a job that is running."""
    return summed(*(shard.provenance()["done"] for shard in shards(folder, job)))


def summed(*counts: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Numbers of records by experiment and condition, added up."""
    total: dict[str, dict[str, int]] = {}
    for experiment, cells in (entry for each in counts for entry in each.items()):
        there = total.setdefault(experiment, {})
        for condition, n in cells.items():
            there[condition] = there.get(condition, 0) + n
    return total


def new_records(folder: Path, job: str, read: dict[Path, int]) -> Iterator[Record]:
    """The records in the shards of a job behind the bytes that were `read` of each file, which is brought forward."""
    for shard in shards(folder, job):
        path = shard.records_path
        if path.is_file():
            with path.open("rb") as handle:
                handle.seek(read.get(path, 0))
                for line in handle:
                    yield json.loads(line)
                read[path] = handle.tell()


def open_whole(store: Store, provenance: dict[str, Any]) -> int:
    """Store.open, with everything in records.jsonl that shards hold. The store is locked.

    A kill at any moment leaves the shards, or all of their records; provenance.json is written first, since sessions
    whose records never came are known by that.
    """
    if (state := read_json(store.provenance_path)) is not None and REORDERING in state:
        store.state = state
        _settle(store, state[REORDERING])
    before = store.open(provenance)
    found = shards(store.folder)
    if not found:
        return before
    if not store.provenance_path.is_file():
        raise InputError(f"{store.folder} has shards but no provenance.json to say of what; {REMEDY}")
    for shard in found:
        shard.open(provenance)
    state = store.provenance()
    lines, known = [], set()
    for line, record in store.read_lines():
        lines.append(line)
        known.add(record_key(record))
    state["sessions"] = [s for s in state["sessions"] if s["first_record"] < len(lines)]
    there = len(lines)
    for shard in found:
        first = len(lines)
        for line, record in shard.read_lines():
            if (key := record_key(record)) not in known:
                known.add(key)
                lines.append(line)
        if len(lines) > first:
            state["sessions"].append({**shard.state["sessions"][-1], "first_record": first})
    if len(lines) > there:
        store.state = state
        store.write_state()
        store.write_lines(lines)
    _remove(store.folder, found)
    return store.open(provenance)


def _remove(folder: Path, found: Sequence[Shard]) -> None:
    for shard in found:
        shard.records_path.unlink(missing_ok=True)  # records first: without provenance they would be of nobody
        shard.provenance_path.unlink()
    if not any((folder / FOLDER).iterdir()):
        (folder / FOLDER).rmdir()


def in_order(store: Store, asked: Sequence[Key]) -> None:
    """Puts the records into the order in which one process would have written them: those that were there before
    these questions were asked, then those of `asked`. Others are dropped: asked ahead by one process, while another's
    answers told that they were not needed.
    """
    sessions, before = store.state["sessions"], store.state["records_before"]
    if not any("rank" in s for s in sessions):
        return
    lines, place = [], {}
    for line, record in store.read_lines():
        place.setdefault(record_key(record), len(lines))
        lines.append(line)
    order = [*range(before), *(n for key in asked if (n := place[key]) >= before)]
    if order == list(range(len(lines))):
        return
    owner = owners(sessions, len(lines))
    lines = [lines[n] for n in order]
    moved = _owning(sessions, [owner[n] for n in order])
    pending = {"sessions": moved, "sha256": hashlib.sha256("".join(lines).encode()).hexdigest()}
    store.state[REORDERING] = pending
    store.write_state()
    store.write_lines(lines)
    _settle(store, pending)


def _settle(store: Store, pending: dict[str, Any]) -> None:
    """Ends a reordering, or what a kill left of it: it was done where records.jsonl is as it was to be."""
    if hashlib.sha256(store.records_path.read_bytes()).hexdigest() == pending["sha256"]:
        store.state["sessions"] = pending["sessions"]
    del store.state[REORDERING]
    store.write_state()


def owners(sessions: Sequence[dict[str, Any]], lines: int) -> list[int]:
    """Which session wrote each line: from its first record to the next session's, or the `lines` that it tells."""
    owner = [0] * lines
    for number, session in enumerate(sessions):
        told = session.get("lines", f"{session['first_record']}-{lines - 1}")
        for first, _, last in (part.partition("-") for part in told.split(",")):
            for n in range(int(first), min(int(last or first) + 1, lines)):
                owner[n] = number
    return owner


def _owning(sessions: Sequence[dict[str, Any]], owner: Sequence[int]) -> list[dict[str, Any]]:
    """The sessions that own a line, each with its `lines`, such as '0-479,960-1439', in the order of their first."""
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
