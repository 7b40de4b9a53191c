"""How the processes of one job communicate, wait, fail and end. torchrun or accelerate launch starts them.

    torchrun --nproc_per_node 8 -m eval run --model MODEL ...
    accelerate launch --num_processes 8 -m eval run --model MODEL ...

What work they share is decided in eval.runner.distribute. They communicate by polling the key-value store that the
launcher provides. There is no collective operation, so no time-out ends an unevenly shared evaluation, and every
process can be killed at any time. The others notice a failure when they wait or start their next chunk. Only the first
process to fail reports its error.
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

SHUTDOWN_SECONDS = 60.0
"""How long rank 0 waits at the end for the other ranks to leave first: its process may host the store."""


class RemoteError(InputError):
    """Another process of this job failed and reports it; this one ends without a message."""


class ProcessGroup:
    """The processes of one job, and this process's place among them.

    Attributes:
        store: A torch.distributed store of any kind.
        rank: This process's rank.
        size: The number of processes.
        local_rank: Its rank on this machine.
        scope: The current task's name, which prefixes the store's keys.
    """

    def __init__(self, store: Any, rank: int, size: int, local_rank: int = 0) -> None:
        self.store = store
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self.scope = ""

    def broadcast(self, name: str, value: Any) -> None:
        """Publishes a JSON value of this task to the other processes."""
        self._call("set", f"{self.scope}/{name}", json.dumps(value))

    def receive(self, name: str) -> Any:
        """Waits for a value that another process broadcasts, and returns it.

        Raises:
            RemoteError: A process failed first.
        """
        self.wait(lambda: self._is_set(f"{self.scope}/{name}"))
        return self._get(f"{self.scope}/{name}")

    def count(self, name: str, more: int = 0) -> int:
        """Adds `more` to a counter that all processes share, and returns the new value."""
        return self._call("add", f"{self.scope}/{name}", more)

    def wait(self, ready: Callable[[], bool], meanwhile: Callable[[], None] = lambda: None) -> None:
        """Waits until `ready()`, without a time limit, calling `meanwhile` between checks.

        Raises:
            RemoteError: Another process failed.
        """
        pause = 0.005
        while not ready():
            self.raise_if_failed()
            meanwhile()
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def raise_if_failed(self) -> None:
        """Raises RemoteError if another process has failed at this task or at the whole job."""
        for scope in {self.scope, ""}:
            if self._is_set(f"{scope}/error"):
                raise RemoteError(self._get(f"{scope}/error"))

    def report_failure(self, error: Exception) -> bool:
        """Reports this process's failure to the other ranks.

        Returns:
            True if this process failed first. Its error is the one that the user sees.
        """
        first = self.count("failures", 1) == 1
        if first:
            self.broadcast("error", self.format_error(error))
        return first

    def format_error(self, error: Exception) -> str:
        """Returns an error as one line. Anything but an InputError is given with its type and this rank."""
        text = " ".join(str(error).split())
        return text if isinstance(error, InputError) else f"rank {self.rank}: {type(error).__name__}: {text[:200]}"

    @contextlib.contextmanager
    def task(self, name: str) -> Iterator[None]:
        """Runs a task that ends when rank 0 ends it, and that fails on all processes if it fails on one.

        The first process to fail raises its own error; the others raise RemoteError.
        """
        outer, self.scope = self.scope, name
        try:
            yield
            if self.rank == 0:
                self.broadcast("end", True)
            else:
                self.receive("end")
        except RemoteError:
            raise
        except Exception as error:
            if not self.report_failure(error):
                raise RemoteError(self.receive("error")) from error
            raise
        finally:
            self.scope = outer

    def from_rank_0(self, name: str, value: Any) -> Any:
        """Returns rank 0's value on all processes. It must be JSON."""
        if self.rank > 0:
            return self.receive(name)
        self.broadcast(name, value)
        return value

    def device(self, requested: str) -> str:
        """Returns this process's device.

        It is a GPU of its own if `requested` is auto or cuda and there are GPUs, else `requested`.

        Raises:
            InputError: There are more processes than GPUs.
        """
        import torch

        if requested not in ("auto", "cuda") or not torch.cuda.is_available():
            return requested
        if self.local_rank >= torch.cuda.device_count():
            raise InputError(
                f"there are more processes than GPUs ({torch.cuda.device_count()}) on this machine; start one for each "
                "GPU, or say --device cpu, or --device cuda:0 for all of them on one"
            )
        torch.cuda.set_device(self.local_rank)
        return f"cuda:{self.local_rank}"

    def leave(self) -> None:
        """Ends the job. Rank 0 leaves last."""
        if self.rank > 0:
            self.count("left", 1)
        deadline = time.monotonic() + SHUTDOWN_SECONDS
        while self.rank == 0 and self.count("left") < self.size - 1 and time.monotonic() < deadline:
            time.sleep(0.01)

    def _is_set(self, key: str) -> bool:
        return self._call("check", [key])

    def _get(self, key: str) -> Any:
        return json.loads(self._call("get", key))

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self.store, method)(*arguments)
        except RuntimeError as error:  # torch raises it when the connection breaks
            log.warning("no connection to the launcher any more (%s): this process ends", type(error).__name__)
            raise RemoteError("the launcher has ended") from error


@functools.lru_cache(maxsize=1)
def team() -> ProcessGroup | None:
    """Returns this job's processes if torchrun or accelerate launch started several, else None."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size < 2 or "LOCAL_RANK" not in os.environ:  # without it another tool has set WORLD_SIZE
        return None
    from torch.distributed import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(iter(rendezvous("env://")))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun --max_restarts may keep the store
    return ProcessGroup(PrefixStore(f"selfcorrect {attempt}", store), rank, size, int(os.environ["LOCAL_RANK"]))


@contextlib.contextmanager
def report_as_one(command: str) -> Iterator[None]:
    """Runs a command so that several processes report as one: rank 0 prints, one error is reported, and all end.

    Raises:
        InputError: The command does not support several processes, or this process was the first to fail.
    """
    group = team()
    if group is None:
        yield
        return
    if group.rank > 0:
        _quiet(group.rank)
    try:
        with group.task(""), Path(os.devnull).open("w") as devnull:
            if command != "run":
                raise InputError(
                    f"eval {command} is the work of one process: start it by python -m eval, without torchrun or "
                    "accelerate launch (several `eval watch` share the checkpoints between them)"
                )
            with contextlib.redirect_stdout(devnull if group.rank else sys.stdout):
                yield
        group.leave()
    except Exception as error:
        _end(group, error)
    except KeyboardInterrupt:
        if group.rank > 0:
            sys.exit(130)
        raise


def _end(group: ProcessGroup, error: Exception) -> NoReturn:
    if isinstance(error, RemoteError):
        sys.exit(2)
    raise InputError(group.format_error(error)) from error


def _quiet(rank: int) -> None:
    """Limits the log of a rank other than 0 to warnings, prefixed with the rank."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.basicConfig(level=logging.WARNING, format=f"rank {rank}: %(message)s", stream=sys.stderr)
