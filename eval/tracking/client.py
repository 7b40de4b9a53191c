"""The Weights & Biases client: the only module on the evaluation's side that imports wandb.

Training and evaluation never call wandb: they write files. eval.tracking.send and eval.tracking.training_send send
these files with what is here: the destination, writing one part of a run and checking its arrival, and reading what the
server has of a run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import wandb
from wandb.apis.public.runs import RunNotFoundError
from wandb.errors import CommError
from wandb.sdk.lib.service.service_connection import WandbApiFailedError
from wandb.sdk.lib.service.service_token import WandbServiceConnectionError
from wandb.sdk.lib.wbauth import read_netrc_auth  # reads what `wandb login` wrote, as wandb's CLI does
from wandb.sdk.mailbox.mailbox import MailboxClosedError
from wandb.sdk.mailbox.mailbox_handle import HandleAbandonedError, ServerResponseError
from wandb.util import get_core_path

from eval.errors import InputError
from eval.secrets import masked_text
from eval.tracking.names import check_destination, missing_rows, picture_name

ERRORS = (
    wandb.Error, WandbApiFailedError, WandbServiceConnectionError, MailboxClosedError, HandleAbandonedError,
    ServerResponseError,
)  # fmt: skip
"""What wandb raises where the server refuses or is not reached, or where its own helper process fails."""
PROJECT = "selfcorrect"
FINISH_SECONDS = 60.0
"""How long to wait for a run's end. By default wandb waits for as long as it tries to reach the server."""
QUIET = wandb.Settings(
    silent=True, console="off", x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False,
    disable_git=True, finish_timeout=FINISH_SECONDS, finish_timeout_raises=True,
)  # fmt: skip
"""Settings that record nothing about the publishing process: the results' provenance says what evaluated them."""
RELEASE_SECONDS = 60.0
HELPER = "wandb-core"
ARRIVAL_SECONDS = 30.0
"""How long to wait at most for what was sent to arrive."""
SAME_MODES = {"run": "online", "dryrun": "offline"}


def mode() -> str:
    """Whether runs are sent: online, offline or disabled.

    $WANDB_MODE decides, else what `wandb offline` or `wandb disabled` saved in this folder. Without either it is online
    if the user is logged in, else offline.
    """
    settings = wandb.setup().settings
    environment = os.environ.get("WANDB_MODE")
    chosen = environment or settings.read_system_settings().all().get("mode", "online")
    chosen = SAME_MODES.get(chosen, chosen)
    if environment or chosen != "online":
        return chosen
    return "online" if settings.api_key or read_netrc_auth(host=settings.base_url) else "offline"


def user_entity() -> str | None:
    """The entity of the logged-in user; None where the server knows none.

    Raises:
        InputError: the server does not answer, or rejects the login.
    """
    try:
        return wandb.Api().default_entity
    except ERRORS as error:
        raise InputError(
            f"W&B did not take the login: {describe_error(error)}; check the network and `wandb login`, or set "
            "WANDB_MODE=offline and send later"
        ) from error


def default_entity() -> str:
    """The entity of the logged-in user.

    Raises:
        InputError: the server knows none, does not answer, or rejects the login.
    """
    entity = user_entity()
    if not entity:
        raise InputError("W&B does not say which entity is yours; run `wandb login`, or give --entity")
    return entity


def server() -> str:
    """The server's address without a password; '' for W&B's own server."""
    settings = wandb.setup().settings
    default_url = wandb.Settings.model_fields["base_url"].default
    return "" if settings.base_url == default_url else masked_text(settings.base_url)


@dataclass(frozen=True)
class Destination:
    """Where runs are sent. Raises InputError for names that W&B does not accept.

    Attributes:
        entity: None = not named by the user.
    """

    project: str = field(default_factory=lambda: os.environ.get("WANDB_PROJECT") or PROJECT)
    entity: str | None = field(default_factory=lambda: os.environ.get("WANDB_ENTITY") or None)

    def __post_init__(self) -> None:
        check_destination(self.project, self.entity)

    def target(self) -> str:
        """Server, entity and project, as the key that a ledger uses."""
        return f"{server()}/{self.entity or ''}/{self.project}"


def check_login() -> None:
    """Raises InputError if runs are to be sent online and the server rejects the login or knows no entity."""
    if mode() == "online" and not user_entity() and not Destination().entity:
        default_entity()


def monitored_settings(pid: int) -> wandb.Settings:
    """Settings of a run that records the machine use of the training with process id `pid`."""
    return QUIET.model_copy(update={"x_disable_stats": False, "x_disable_machine_info": False, "x_stats_pid": pid})


def samples_table(rows: list[dict[str, Any]], step: int) -> wandb.Table:
    """A table of a checkpoint's sampled answers."""
    scored = [f"{kind}/{name}" for kind in ("rewards", "judges") for name in rows[0][kind]]
    table = wandb.Table(columns=["rlhf_step", "prompt", "answer", "tokens", "kl", "entropy", *scored])
    for row in rows:
        scores = [row[kind][name] for kind in ("rewards", "judges") for name in row[kind]]
        prompt = "\n\n".join(f"{m['role']}: {m['content']}" for m in row["prompt"])
        table.add_data(step, prompt, row["answer"], row["tokens"], row["kl"], row["entropy"], *scores)
    return table


def media(files: Sequence[Path]) -> dict[str, Any]:
    """Pages (.html) and figures (.png) as values to log, by their names."""
    logged: dict[str, Any] = {picture_name(p): wandb.Html(p, inject=False) for p in files if p.suffix == ".html"}
    return logged | {picture_name(p): wandb.Image(str(p)) for p in files if p.suffix == ".png"}


def write_part(
    about: dict[str, Any], write: Callable[[Any], list[dict[str, Any]]], entity: str, project: str, online: bool,
    settings: wandb.Settings = QUIET,
) -> Path:  # fmt: skip
    """Writes a part of a run, and waits until all of it has arrived.

    wandb reports neither a full disk nor a server that refuses, so the arrival is checked here.

    Args:
        about: arguments of wandb.init.
        write: logs to the run, and returns the rows, or as much of them as can be compared, whose arrival is checked.
        online: whether to send to the server; else into an offline folder.

    Returns:
        wandb's folder of the part.

    Raises:
        InputError: not all rows arrived.
    """
    run = _start_run(
        **about,
        project=project,
        entity=entity or None,
        resume="allow",
        reinit="create_new",  # beside the trainer's run in the same process
        mode="online" if online else "offline",
        settings=settings,
    )
    try:
        rows = write(run)
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()
    folder, path = Path(run.settings.sync_dir), f"{entity}/{project}/{about['id']}"
    wait = time.monotonic() + ARRIVAL_SECONDS
    pause = 0.02
    while missing := _missing(rows, folder, path if online else None):
        if time.monotonic() > wait:
            raise InputError(
                f"{missing} of {path} did not arrive at the server; publish again: it is asked for what it has, and "
                "sent the rest"
                if online
                else f"{folder} was not written to its end ({missing} lacking); make room on the disk and publish again"
            )
        time.sleep(pause)  # the helper closes the file, and the server stores rows, a moment after the end
        pause = min(2 * pause, 2.0)
    return folder


def _missing(rows: list[dict[str, Any]], folder: Path, path: str | None) -> str:
    """What of a part has not arrived, in words; '' where everything has.

    Args:
        path: entity/project/run on the server; None = look into the offline `folder`.
    """
    records = [] if path else fragment_records(folder)
    arrived = history(path) if path else rows_in(records)
    n = len(missing_rows(arrived, rows))
    ended = path or (records and records[-1]["type"] == "exit")
    return "" if not n and ended else f"{n} of {len(rows)} rows{'' if ended else ' and the end'}"


def end_helpers() -> None:
    """Kills wandb's helpers of this process, with whatever they have not sent. wandb would wait for them at its
    exit.
    """
    helpers = [p for p in psutil.Process().children() if p.name() == HELPER]
    for process in helpers:
        process.kill()
    psutil.wait_procs(helpers, timeout=5)


def exit_process(status: int) -> None:
    """Ends this process. After a failure it ends at once, without what wandb would wait for."""
    if status:
        end_helpers()
        sys.stderr.flush()
        os._exit(status)
    sys.exit()


def _start_run(**about: Any) -> Any:
    """Calls wandb.init, and retries while the run's previous part, finished in this process, is not yet released."""
    until = time.monotonic() + RELEASE_SECONDS
    while True:
        try:
            return wandb.init(**about)
        except ServerResponseError as error:
            if "in use" not in str(error) or time.monotonic() > until:
                raise InputError(f"W&B's helper process did not begin {about['id']}: {error}; publish again") from error
            time.sleep(0.5)


def history(path: str) -> list[dict[str, Any]]:
    """All rows of entity/project/run on the server; [] where there is no such run."""
    try:
        return list(wandb.Api().run(path).scan_history(use_cache=False))
    except CommError as error:  # wandb raises it for every error here
        if isinstance(error.exc, RunNotFoundError):
            return []
        raise


def fragment_records(folder: Path) -> list[dict[str, Any]]:
    """The records in an offline folder, by wandb's own reader, up to where the file was cut off."""
    (path,) = folder.glob("*.wandb")
    command = [get_core_path(), "leet", "inspect", "--json", "--run-file", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{") and line.endswith("}")]


def rows_in(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a run's history."""
    return [r["history"]["item"] for r in records if r["type"] == "history"]


def describe_error(error: Exception) -> str:
    """An error of wandb's, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main() -> None:
    """`python -m eval.tracking.client`: checks the login, in a separate process that can be killed where W&B hangs."""
    try:
        check_login()
        status = 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    exit_process(status)


if __name__ == "__main__":
    main()
