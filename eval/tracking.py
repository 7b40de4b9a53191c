"""Weights & Biases: every run identity and metric name that this project uses. The only module that imports wandb here.

A trainer owns its run (job_type 'train'). Evaluation never calls wandb: it writes result files, and `publish` projects
them into one run per condition (job_type 'eval') in the same group, with the metrics eval/<experiment>/<metric> against
rlhf_step (training_step for revisions of a model). The files are the truth: a ledger beside them (eval.ledger) says
what was sent, so publishing again sends nothing again, and after a kill what was left undone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import wandb
from wandb.apis.public.runs import RunNotFoundError
from wandb.sdk.lib.wbauth import read_netrc_auth  # what `wandb login` wrote; wandb's own lookup, as its CLI does it

from eval.conditions import CONDITIONS, Condition
from eval.config import InputError
from eval.ledger import Ledger, digest, ledger_of, read_fragment, remove, synced
from eval.tracked import axis_of, cautions_of, config_of, final_values, rows_of, setup_of
from eval.views.gathered import Curve, gather

log = logging.getLogger(__name__)

PROJECT = "selfcorrect"
QUIET = wandb.Settings(
    silent=True, console="off", x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False,
    disable_git=True,
)  # fmt: skip
"""Of the publishing process nothing is recorded: what evaluated is in the results' provenance."""
HELPER_SECONDS = 30.0
"""How long the helper of a killed process, which goes on sending for a moment, is waited for."""


def mode() -> str:
    """$WANDB_MODE where it is set, else online where the user is logged in, else offline."""
    if chosen := os.environ.get("WANDB_MODE"):
        return chosen
    settings = wandb.setup().settings
    return "online" if settings.api_key or read_netrc_auth(host=settings.base_url) else "offline"


def policy_name(folder: Path, *distinguishing: Any) -> str:
    """A readable name: the folder's, and a hash of machine, path and what it holds.

    Runs elsewhere or with other settings get other names; the same run started again goes on under its own.
    """
    path = folder.resolve()
    what = json.dumps([platform.node(), str(path), *distinguishing], sort_keys=True, default=str)
    return f"{path.parent.name}-{path.name}-{hashlib.sha256(what.encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class Destination:
    """Where runs are sent. entity: None = the user's own."""

    project: str = field(default_factory=lambda: os.environ.get("WANDB_PROJECT") or PROJECT)
    entity: str | None = field(default_factory=lambda: os.environ.get("WANDB_ENTITY") or None)

    def target(self) -> str:
        """Server, entity and project as a ledger names them; the user's own entity is '' whether named or not."""
        entity = self.entity or ""
        if entity and mode() == "online" and entity == wandb.Api().default_entity:
            entity = ""
        return f"{wandb.setup().settings.base_url}/{entity}/{self.project}"

    def path(self, run_id: str) -> str:
        """entity/project/run, for the server."""
        return f"{self.entity or wandb.Api().default_entity}/{self.project}/{run_id}"


@dataclass
class Sent:
    """What became of a policy. runs: ids of those written; rows: how many; changed: what was sent before and is
    another number now; held: why something could not be sent yet.
    """

    policy: str
    home: Path
    runs: list[str] = field(default_factory=list)
    rows: int = 0
    changed: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)


def start_training_run(folder: Path, policy: str, run_id: str, config: dict[str, Any]) -> Any:
    """The training's own run; the Trainer's W&B callback logs into it. Continued under the same id after a kill."""
    folder.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        dir=str(folder),
        id=run_id,
        name=run_id,
        group=policy,
        job_type="train",
        resume="allow",
        mode=mode(),  # pyright: ignore[reportArgumentType]
        config={**config, "condition": "training", "setup": setup_of(config, policy)},
    )


def log_samples(run: Any, rows: list[dict[str, Any]], step: int) -> None:
    """A table of a checkpoint's sampled answers in the training's own run, at its step on that run's axis."""
    scored = [f"{kind}/{name}" for kind in ("rewards", "judges") for name in rows[0][kind]]
    table = wandb.Table(columns=["rlhf_step", "prompt", "answer", "tokens", "kl", "entropy", *scored])
    for row in rows:
        scores = [row[kind][name] for kind in ("rewards", "judges") for name in row[kind]]
        prompt = "\n\n".join(f"{m['role']}: {m['content']}" for m in row["prompt"])
        table.add_data(step, prompt, row["answer"], row["tokens"], row["kl"], row["entropy"], *scores)
    run.log({f"samples/step-{step:06d}": table, "train/global_step": step})


def publish(run_folder: Path) -> list[str]:
    """Sends the finished evaluations in `run_folder` that were not sent yet; returns the ids of the runs written.

    One publisher at a time (file lock). A checkpoint that comes late or out of order keeps its place, since the axis
    is rlhf_step and not the order of logging. Of each checkpoint and condition every experiment is sent once, to
    $WANDB_PROJECT of $WANDB_ENTITY. Raises InputError where there is no finished evaluation.
    """
    curves = gather([run_folder])
    alone = run_folder if len(curves) == 1 else None
    return [run for curve in curves for run in send(curve, Destination(), alone).runs]


def send(curve: Curve, destination: Destination, alone: Path | None = None) -> Sent:
    """Sends what was not sent to the destination yet. alone: a folder that holds this curve and no other.

    Killed anywhere and called again it loses and doubles nothing (eval.ledger). Where W&B is disabled nothing is sent,
    and nothing is taken for sent.
    """
    ledger = ledger_of(curve, alone, policy_name)
    sent = Sent(ledger.policy, ledger.home)
    if mode() == "disabled":
        sent.held.append("W&B is disabled: nothing is sent, and nothing is taken for sent")
        return sent
    with ledger.opened(Destination().target(), [Path(s["results"]) for s in curve.summaries]):
        channel = Channel(ledger, destination)
        for condition in CONDITIONS.values():
            rows = rows_of(curve, condition.name)
            try:
                new, keys = _unsent(channel, curve, condition, rows, sent)
            except InputError as error:
                sent.held.append(str(error))
                continue
            if new:
                _send_rows(channel, curve, condition, new, keys)
                sent.runs.append(_run_id(ledger, condition))
                sent.rows += len(new)
    return sent


def send_pictures(curve: Curve, destination: Destination, alone: Path | None, files: Sequence[Path]) -> str | None:
    """Logs pages (.html) as report/page and figures (.png) as report/NAME into the policy's run report-POLICY, where
    they are not those that were logged last; the run's id, or None where nothing is new.
    """
    ledger = ledger_of(curve, alone, policy_name)
    if mode() == "disabled" or not files:
        return None
    content = digest([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
    run_id = f"report-{ledger.policy}"
    with ledger.opened(Destination().target()):
        channel = Channel(ledger, destination)
        for row in channel.arrived(run_id, known=run_id in channel.place["pictures"]):
            channel.place["pictures"][run_id] = row.get("report/content")
        if channel.place["pictures"].get(run_id) == content:
            return None

        def write(run: Any) -> None:
            media = {picture_name(p): wandb.Html(p, inject=False) for p in files if p.suffix == ".html"}
            media |= {picture_name(p): wandb.Image(str(p)) for p in files if p.suffix == ".png"}
            run.log({**media, "report/content": content})

        config = {**config_of(curve, ledger.policy, "report"), "condition": "report"}
        channel.write(run_id, "report", config, "", write)
        channel.place["pictures"][run_id] = content
        ledger.write()
    return run_id


def picture_name(path: Path) -> str:
    """The name under which a picture is logged: a panel's media key."""
    return "report/page" if path.suffix == ".html" else f"report/{path.stem}"


def _run_id(ledger: Ledger, condition: Condition) -> str:
    return f"eval-{ledger.policy}-{condition.slug}"


def _unsent(
    channel: Channel, curve: Curve, condition: Condition, rows: dict[int, dict[str, float]], sent: Sent
) -> tuple[dict[int, dict[str, float]], dict[str, str]]:
    """The rows that are not at the destination, and their keys with a checksum of each; what was sent before with other
    numbers is noted.
    """
    done, axis = channel.place["sent"], axis_of(curve)
    start = f"{condition.slug}@"
    for row in channel.arrived(_run_id(channel.ledger, condition), known=any(key.startswith(start) for key in done)):
        if axis in row:
            done |= {f"{start}{int(row[axis])}/{e}": digest(part) for e, part in _by_experiment(row).items()}
    new: dict[int, dict[str, float]] = {}
    keys: dict[str, str] = {}
    for step, row in rows.items():
        whole = f"{start}{step}"  # the key before experiments had keys of their own
        for experiment, part in _by_experiment(row).items():
            key = f"{whole}/{experiment}"
            if not {key, whole} & done.keys():
                new.setdefault(step, {axis: step}).update(part)
                keys[key] = digest(part)
            elif done.get(key) not in (None, digest(part)):
                sent.changed.append(f"{condition.name}, step {step}, {experiment}")
    return new, keys


def _by_experiment(row: dict[str, Any]) -> dict[str, dict[str, float]]:
    parts: dict[str, dict[str, float]] = {}
    for name, value in row.items():
        if name.startswith("eval/"):
            parts.setdefault(name.split("/")[1], {})[name] = value
    return parts


def _send_rows(
    channel: Channel, curve: Curve, condition: Condition, rows: dict[int, dict[str, float]], keys: dict[str, str]
) -> None:
    axis, told = axis_of(curve), cautions_of(curve, condition.name)

    def write(run: Any) -> None:
        run.define_metric(axis, hidden=True, summary="none")
        run.define_metric("eval/*", step_metric=axis, step_sync=False, summary="none")
        for row in rows.values():
            run.log(row)
        run.summary.update({**final_values(curve, condition.name), "cautions": told})

    notes = "\n".join(["Before believing these numbers:", *(f"- {line}" for line in told)]) if told else ""
    config = config_of(curve, channel.ledger.policy, condition.name)
    channel.write(_run_id(channel.ledger, condition), "eval", config, notes, write)
    channel.place["sent"] |= keys
    channel.ledger.write()


class Channel:
    """From an opened ledger to a destination."""

    def __init__(self, ledger: Ledger, destination: Destination) -> None:
        self.ledger = ledger
        self.destination = destination
        self.target = destination.target()
        self.online = mode() == "online"

    @property
    def place(self) -> dict[str, Any]:
        """What the ledger knows of the destination."""
        return self.ledger.target(self.target)

    def arrived(self, run_id: str, known: bool) -> list[dict[str, Any]]:
        """Clears up what a killed process left of a run; the rows of it that are at the destination, as far as the
        ledger does not know (then to be put into it). known: whether the ledger has any of this run there.

        Raises InputError where it was being sent elsewhere, or online and this process is not: only the server can
        tell then what has arrived.
        """
        self._check_open(run_id)
        opened = self.place["open"].pop(run_id, None)
        rows: list[dict[str, Any]] = []
        for folder in self.ledger.unfinished(run_id):
            if folder.name.startswith("offline-") and synced(folder):
                rows += read_fragment(folder)
                self.ledger.finished(folder)
        if self.online and (not known or (opened and opened["online"])):
            if opened:
                _wait_for_helper(opened)
            rows += _history(self.destination.path(run_id))
        for folder in self.ledger.unfinished(run_id):
            remove(folder)
        return rows

    def _check_open(self, run_id: str) -> None:
        for target, place in self.ledger.entry["targets"].items():
            opened = place["open"].get(run_id)
            if opened and target != self.target:
                raise InputError(
                    f"{run_id} was being sent to {target} when its process was killed; publish there once (--project, "
                    "--entity), so that it is known what has arrived"
                )
            if opened and opened["online"] and not self.online:
                raise InputError(
                    f"{run_id} was being sent online when its process was killed; publish online once, which asks the "
                    "server what has arrived"
                )

    def write(self, run_id: str, job_type: str, config: dict[str, Any], notes: str, write: Any) -> None:
        """Writes a part of a run to its end. That it is about to is on the disk before; that it has is for the caller
        to write, together with what was sent.
        """
        self.place["open"][run_id] = {"online": self.online, "node": platform.node(), "pid": os.getpid()}
        self.ledger.write()
        _another_second(self.ledger, run_id)
        run = wandb.init(
            project=self.destination.project,
            entity=self.destination.entity,
            dir=str(self.ledger.home),
            id=run_id,
            name=run_id,
            group=self.ledger.policy,
            job_type=job_type,
            notes=notes,
            resume="allow",
            reinit="create_new",  # beside the trainer's run in the same process
            mode="online" if self.online else "offline",
            config=config,
            settings=QUIET,
        )
        try:
            write(run)
        except BaseException:
            run.finish(exit_code=1)
            raise
        run.finish()
        self.ledger.finished(Path(run.settings.sync_dir))
        del self.place["open"][run_id]


def _another_second(ledger: Ledger, run_id: str) -> None:
    """wandb names folders by the second: a second one of a run in the same second would be the same folder."""
    while any(time.time() - folder.stat().st_ctime < 1.1 and _named_now(folder) for folder in ledger.folders(run_id)):
        time.sleep(0.05)


def _named_now(folder: Path) -> bool:
    return time.strftime("%Y%m%d_%H%M%S") in folder.name


def _history(path: str) -> list[dict[str, Any]]:
    """All rows of a run on the server; none where there is no such run."""
    try:
        return list(wandb.Api().run(path).scan_history(use_cache=False))
    except RunNotFoundError:
        return []


def _wait_for_helper(opened: dict[str, Any]) -> None:
    """wandb's helper outlives the process that was killed, and goes on sending for a moment."""
    until = time.monotonic() + HELPER_SECONDS
    if opened["node"] == platform.node() and opened["pid"] != os.getpid():
        while _helper_of(opened["pid"]) and time.monotonic() < until:
            time.sleep(0.2)


def _helper_of(pid: int) -> bool:
    lines: Iterable[list[str]] = (p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"]))
    return any(line and Path(line[0]).name == "wandb-core" and str(pid) in line for line in lines)
