"""An oracle evaluated by several processes, which are threads of the test: what they ask and what they leave."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.distributed import HashStore

from eval.config import EvaluationConfig
from eval.runner.evaluate import evaluate
from eval.runner.plan import Plan, plan
from eval.runner.processes import ProcessGroup
from eval.validation.oracle import Oracle, Preferences

SMALL: dict[str, Any] = {
    "categories": ["Age"], "limit": 60, "cot_limit": 12, "cot_max_new_tokens": 4, "sample_batch": 5
}  # fmt: skip
POLICY = {"model": "oracle", "model_params": 0, "weights": "w"}
APART = {"started", "ended", "seconds", "sessions", "command", "model"}
"""What a summary says of how it came about."""


def records(folder: Path) -> bytes:
    return (folder / "records.jsonl").read_bytes()


def summary(folder: Path) -> dict[str, Any]:
    return {name: value for name, value in sessions_too(folder).items() if name not in APART}


def sessions_too(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def writers(folder: Path) -> dict[int | None, int]:
    """How many lines the sessions of each rank say that they wrote, after looking that each line has one session."""
    found, n = Counter(), records(folder).count(b"\n")
    lines = Counter()
    for session in sessions_too(folder)["sessions"]:
        for first, _, last in (part.partition("-") for part in session["lines"].split(",")):
            found[session.get("rank")] += int(last) + 1 - int(first)
            lines.update(range(int(first), int(last) + 1))
        assert session["first_record"] == int(session["lines"].partition("-")[0])
        assert "rank" not in session or session["processes"] == 2
    assert lines == Counter(range(n))
    return found


def in_threads(n: int, work: Any) -> list[Any]:
    """What work(team) returns or raises in each of n processes' places, threads here."""
    store = HashStore()
    ends: list[Any] = [None] * n

    def one(rank: int) -> None:
        try:
            ends[rank] = work(ProcessGroup(store, rank, n))
        except BaseException as error:
            ends[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    return ends


class Counting(Oracle):
    """An oracle that counts the prompts that it scores, and breaks after `patience`."""

    def __init__(self, planned: Plan, patience: int = 10**9) -> None:
        super().__init__(Preferences(), 3, planned.questions)
        self.scored: list[Any] = []
        self.patience = patience

    def score(self, prompts: Any) -> Iterator[Any]:
        for answer in super().score(prompts):
            if len(self.scored) == self.patience:
                raise RuntimeError("broken")
            self.scored.append(prompts[answer[0]])
            yield answer


def ask(folder: Path, n: int = 1, patience: tuple[int, ...] = (), **settings: Any) -> tuple[int, list[Any]]:
    """Evaluates an oracle in n processes: how many prompts were scored, and how each process ended."""
    config = EvaluationConfig(**{**SMALL, **settings})
    planned = plan(config)
    oracles = [Counting(planned, patience[rank] if rank < len(patience) else 10**9) for rank in range(n)]

    def work(us: ProcessGroup) -> Any:
        with us.task("oracle"):
            return evaluate(oracles[us.rank], config, folder, POLICY, planned=planned, group=us if n > 1 else None)

    ends = in_threads(n, work)
    return sum(len(o.scored) for o in oracles), ends
