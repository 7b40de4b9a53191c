"""Trainings in processes of their own, online at a server of ours, and what is done to W&B while they run."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.support.tracked_runs import alone
from tests.support.wandb_server import WandbServer

SECONDS = 75
"""The limit that these trainings are given."""


def environment(server: WandbServer, home: Path, **more: str) -> dict[str, str]:
    home.mkdir(exist_ok=True)
    return alone() | {
        "WANDB_API_KEY": "a" * 40, "WANDB_MODE": "online", "WANDB_SILENT": "true", "WANDB_BASE_URL": server.url,
        "HOME": str(home), "SELFCORRECT_WANDB_SECONDS": str(SECONDS), **more,
    }  # fmt: skip


class Training:
    """A command of ours while it runs. seconds: how long it went on after its result was there."""

    def __init__(self, arguments: list[str], result: Path, env: dict[str, str]) -> None:
        self.result = result
        self.process = subprocess.Popen(
            [sys.executable, "-m", *arguments], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def helpers(self) -> list[psutil.Process]:
        """wandb's helpers below it."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [p for p in children if p.name() == "wandb-core"]

    def ended(self) -> tuple[int, float, str]:
        """(status, seconds between its result and its end, what it told)."""
        told: list[str] = []
        reader = threading.Thread(target=lambda: told.append(self.process.stderr.read()))  # pyright: ignore[reportOptionalMemberAccess]
        reader.start()
        while self.process.poll() is None and not self.result.is_file():
            time.sleep(0.05)
        written = time.monotonic()
        status = self.process.wait(timeout=300)
        seconds = time.monotonic() - written
        reader.join()
        return status, seconds, told[0]


def serve(server: WandbServer) -> None:
    threading.Thread(target=server.serve_forever, daemon=True).start()


def close(server: WandbServer) -> None:
    """Nothing listens on its port any more."""
    server.shutdown()
    server.server_close()


def again(server: WandbServer) -> WandbServer:
    """A server with what that one has, on its port."""
    other = WandbServer(server.server_port)
    other.runs = server.runs
    serve(other)
    return other


def once(name: str, do: Callable[[], Any]) -> Callable[[str], None]:
    """For `disturb`: does it, in a thread, when an operation of that name comes the first time."""
    begun = threading.Event()

    def disturb(asked: str) -> None:
        if asked == name and not begun.is_set():
            begun.set()
            threading.Thread(target=do, daemon=True).start()
            time.sleep(0.3)

    return disturb


def train_rows(server: WandbServer) -> list[dict[str, Any]]:
    """The rows of the training's run, which is the only one: transformers' callback makes none of its own."""
    (run,) = server.runs
    assert run.startswith("train-")
    return server.rows(run)
