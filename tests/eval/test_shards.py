"""The shards of several processes become the records of one, wherever that is killed and whatever lies there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from eval import files
from eval.config import EvaluationConfig
from eval.errors import InputError
from eval.runner import evaluate as evaluating
from eval.runner import store as results
from eval.runner.keys import record_key
from eval.runner.plan import plan
from eval.runner.store import Store
from tests.support.oracle_processes import (
    SMALL,
    ask,
    records,
    summary,
    writers,
)


class Killed(Exception):
    """Stands for a kill."""


def asked_only(folder: Path, **settings: Any) -> Path:
    """Everything is in shards there, and the job was killed before they were put together."""
    lead = evaluating.lead

    def killed(*arguments: Any) -> None:
        lead(*arguments)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluating, "lead", killed)
        assert isinstance(ask(folder, 2, **settings)[1][0], Killed)
    return folder


def test_killed_at_any_moment_while_the_shards_are_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each file that is written or removed from then on, in turn."""
    ask(tmp_path / "one")
    asked_only(tmp_path / "asked")
    write, unlink = results.write_text, Path.unlink
    moment, calls = 0, 0

    def counted() -> None:
        nonlocal calls
        calls += 1
        if calls == moment + 1:
            raise Killed

    while True:
        folder, calls = tmp_path / str(moment), 0
        shutil.copytree(tmp_path / "asked", folder)
        with monkeypatch.context() as patch:
            for module in (files, results):  # records and provenance
                patch.setattr(module, "write_text", lambda *a: (counted(), write(*a)))
            patch.setattr(Path, "unlink", lambda *a, **b: (counted(), unlink(*a, **b)))
            (end,) = ask(folder)[1]
        if not isinstance(end, Killed):
            break
        asked, _ = ask(folder, 1 + moment % 2)
        assert asked == 0, moment
        assert records(folder) == records(tmp_path / "one") and summary(folder) == summary(tmp_path / "one"), moment
        assert set(writers(folder)) == {0, 1} and not (folder / "shards").exists(), moment
        moment += 1
    assert moment > 10


def test_shards_with_torn_lines_and_doubles(tmp_path: Path) -> None:
    ask(tmp_path / "one")
    whole = records(tmp_path / "one").splitlines(keepends=True)
    folder = asked_only(tmp_path / "asked")
    first, second = sorted((folder / "shards").glob("*.jsonl"))
    lines = second.read_bytes().splitlines(keepends=True)
    first.write_bytes(first.read_bytes() + lines[0] + lines[1])
    second.write_bytes(b"".join(lines[:-1]) + lines[-1][:50])
    (folder / "records.jsonl").write_bytes(b"".join(whole[:3]))  # by a process alone, before
    torn = record_key(json.loads(lines[-1]))
    chunks = [[q.key for q in chunk] for job in plan(EvaluationConfig(**SMALL)).jobs for chunk in job.chunks]
    assert ask(folder, 2)[0] == len(next(chunk for chunk in chunks if torn in chunk))  # in its company
    assert records(folder) == b"".join(whole)


def test_shards_of_one_selection_are_there_for_the_next(tmp_path: Path) -> None:
    more: dict[str, Any] = {"experiments": ["bbq"], "limit": 120, "orders": 1}
    asked_only(tmp_path, experiments=["bbq"])
    lines = [line for path in (tmp_path / "shards").glob("*.jsonl") for line in path.read_text().splitlines()]
    there = {record_key(json.loads(line)) for line in lines}
    wanted = {q.key for q in plan(EvaluationConfig(**{**SMALL, **more})).questions}
    assert there & wanted
    assert ask(tmp_path, 2, **more)[0] == len(wanted - there)
    keys = [record_key(r) for r in Store(tmp_path).read()]
    assert len(keys) == len(set(keys)) and set(keys) == there | wanted


def test_shards_of_something_else_are_refused(tmp_path: Path) -> None:
    for path in (asked_only(tmp_path) / "shards").glob("*.json"):
        path.write_text(path.read_text().replace('"weights": "w"', '"weights": "v"'))
    (end,) = ask(tmp_path)[1]
    assert isinstance(end, InputError) and "another weights" in str(end)
