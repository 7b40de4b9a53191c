"""python -m tests.support.killed_publishing N FOLDER N FOLDER ...: publishes each folder in a process of its own, which
is killed by kill -9 just before its N-th call to wandb or to the ledger. Prints the names of the calls. The processes
are forked from this one, which has imported everything.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import wandb
from wandb.sdk.wandb_run import Run
from wandb.sdk.wandb_summary import Summary

from eval.tracking import ledger
from tests.support.tracked_runs import publish

POINTS: list[tuple[Any, str]] = [
    (ledger, "write_json"), (wandb, "init"), (Run, "define_metric"), (Run, "log"), (Summary, "update"),
    (Run, "finish"), (ledger.Ledger, "finished"),
]  # fmt: skip
TOGETHER = 5


def killed_at(n: int, told: int) -> None:
    """This process ends at the n-th of the POINTS from now on, and tells which it was."""
    calls = 0

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == n:
                os.write(told, name.encode())
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for owner, name in POINTS:
        setattr(owner, name, counted(name, getattr(owner, name)))


def killed(n: int, folder: Path) -> int:
    """Starts a process that will be killed; where it tells at which call."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        killed_at(n, writing)
        publish(folder)
        os._exit(0)
    os.close(writing)
    return reading


def main() -> None:
    given = sys.argv[1:]
    pairs = list(zip(map(int, given[::2]), map(Path, given[1::2]), strict=True))
    for k in range(0, len(pairs), TOGETHER):
        started = [killed(n, folder) for n, folder in pairs[k : k + TOGETHER]]
        statuses = [os.wait()[1] for _ in started]
        assert all(map(os.WIFSIGNALED, statuses)), "there are not so many calls"
        print(*(os.read(reading, 100).decode() for reading in started), sep="\n")


if __name__ == "__main__":
    main()
