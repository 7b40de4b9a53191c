"""The processes of one job, started by torchrun or accelerate launch: how they speak, wait, fail and end together.

    torchrun --nproc_per_node 8 -m eval run --model MODEL ...
    accelerate launch --num_processes 8 -m eval run --model MODEL ...

What they share stands in eval.runner.distribute. They speak through the key-value store that the launcher has anyway,
by looking again and again: no collective operation whose time-out would end an evaluation that is not evenly shared,
nothing that cannot be killed. A failure on one is seen by the others when they wait or begin their next chunk; the
first to fail tells it, the others are silent.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from eval.errors import InputError

log = logging.getLogger(__name__)

LAST_WORDS_SECONDS = 60.0
"""How long rank 0 waits at the end for the others to go first: it may be what holds the store."""


class Elsewhere(InputError):
    """Another process of this job failed and tells it: this one ends too, in silence."""


class Team:
    """The processes of this job. store: torch.distributed's, of any kind; scope: the task that is being done."""

    def __init__(self, store: Any, rank: int, size: int, local_rank: int = 0) -> None:
        self.store = store
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self.scope = ""

    def say(self, name: str, value: Any) -> None:
        """Tells the others something of this task that JSON can hold."""
        self._call("set", f"{self.scope}/{name}", json.dumps(value))

    def hear(self, name: str) -> Any:
        """What another says, once it does. Raises Elsewhere where one fails first."""
        self.wait(lambda: self._said(f"{self.scope}/{name}"))
        return self._get(f"{self.scope}/{name}")

    def count(self, name: str, more: int = 0) -> int:
        """A number that all processes add to, after this addition."""
        return self._call("add", f"{self.scope}/{name}", more)

    def wait(self, ready: Callable[[], bool], meanwhile: Callable[[], None] = lambda: None) -> None:
        """Waits as long as it takes. Raises Elsewhere where another process fails."""
        pause = 0.005
        while not ready():
            self.look()
            meanwhile()
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def look(self) -> None:
        """Raises Elsewhere where another process has failed at this task, or altogether."""
        for scope in {self.scope, ""}:
            if self._said(f"{scope}/error"):
                raise Elsewhere(self._get(f"{scope}/error"))

    def fail(self, error: Exception) -> bool:
        """Says that this process failed at this task; whether it is the first, who is to tell the user."""
        first = self.count("failures", 1) == 1
        if first:
            self.say("error", self.line(error))
        return first

    def line(self, error: Exception) -> str:
        """An error in a line; one that is no bad input with its kind, and with the rank that it may be of alone."""
        text = " ".join(str(error).split())
        return text if isinstance(error, InputError) else f"rank {self.rank}: {type(error).__name__}: {text[:200]}"

    @contextlib.contextmanager
    def task(self, name: str) -> Iterator[None]:
        """Work that ends when rank 0 has ended it, and fails on all processes where it fails on one.

        There the error stays what it is on the first that failed, and is Elsewhere on the others.
        """
        outer, self.scope = self.scope, name
        try:
            yield
            if self.rank == 0:
                self.say("end", True)
            else:
                self.hear("end")
        except Elsewhere:
            raise
        except Exception as error:
            if not self.fail(error):
                raise Elsewhere(self.hear("error")) from error
            raise
        finally:
            self.scope = outer

    def of_first(self, name: str, mine: Any) -> Any:
        """What rank 0 has, on all processes, by way of JSON."""
        if self.rank > 0:
            return self.hear(name)
        self.say(name, mine)
        return mine

    def device(self, asked: str) -> str:
        """The device of this process where `asked` leaves it open: a GPU of its own. Raises InputError without one."""
        import torch

        if asked not in ("auto", "cuda") or not torch.cuda.is_available():
            return asked
        if self.local_rank >= torch.cuda.device_count():
            raise InputError(
                f"there are more processes than GPUs ({torch.cuda.device_count()}) on this machine; start one for each "
                "GPU, or say --device cpu, or --device cuda:0 for all of them on one"
            )
        torch.cuda.set_device(self.local_rank)
        return f"cuda:{self.local_rank}"

    def leave(self) -> None:
        """The end of all: rank 0 goes last."""
        if self.rank > 0:
            self.count("left", 1)
        until = time.monotonic() + LAST_WORDS_SECONDS
        while self.rank == 0 and self.count("left") < self.size - 1 and time.monotonic() < until:
            time.sleep(0.01)

    def _said(self, key: str) -> bool:
        return self._call("check", [key])

    def _get(self, key: str) -> Any:
        return json.loads(self._call("get", key))

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self.store, method)(*arguments)
        except RuntimeError as error:  # torch's errors of a connection
            log.warning("no connection to the launcher any more (%s): this process ends", type(error).__name__)
            raise Elsewhere("the launcher has ended") from error


@functools.lru_cache(maxsize=1)
def team() -> Team | None:
    """This process's place in the job that torchrun or accelerate launch started; None for one process alone."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size < 2 or "LOCAL_RANK" not in os.environ:  # without it the variable is of something else
        return None
    from torch.distributed import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(iter(rendezvous("env://")))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun --max_restarts may keep the store
    return Team(PrefixStore(f"selfcorrect {attempt}", store), rank, size, int(os.environ["LOCAL_RANK"]))


@contextlib.contextmanager
def one_voice(command: str) -> Iterator[None]:
    """Runs a command so that several processes sound like one: rank 0 prints, one error is told, and all end.

    Raises InputError for a command that several processes do not share. Where they fail, the first tells it.
    """
    us = team()
    if us is None:
        yield
        return
    if us.rank > 0:
        _quiet(us.rank)
    try:
        with us.task(""), Path(os.devnull).open("w") as nowhere:
            if command != "run":
                raise InputError(
                    f"eval {command} is the work of one process: start it by python -m eval, without torchrun or "
                    "accelerate launch (several `eval watch` share the checkpoints between them)"
                )
            with contextlib.redirect_stdout(nowhere if us.rank else sys.stdout):
                yield
        us.leave()
    except Exception as error:
        _end(us, error)
    except KeyboardInterrupt:
        if us.rank > 0:
            sys.exit(130)
        raise


def _end(us: Team, error: Exception) -> NoReturn:
    if isinstance(error, Elsewhere):
        sys.exit(2)
    raise InputError(us.line(error)) from error


def _quiet(rank: int) -> None:
    """Lets a process beside rank 0 say warnings only, with its rank."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.basicConfig(level=logging.WARNING, format=f"rank {rank}: %(message)s", stream=sys.stderr)
