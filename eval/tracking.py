"""Weights & Biases: every run identity and metric name that this project uses. The only module that imports wandb here.

A trainer owns its run (job_type 'train'). Evaluation never calls wandb: it writes result files, and `publish` projects
them into one run per condition (job_type 'eval') in the same group, with the metrics eval/<experiment>/<metric> against
rlhf_step (training_step for revisions of a model). The files are the truth: a ledger beside them (eval.ledger) says
what was sent, so publishing again sends nothing again, and after a kill what was left undone.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wandb
from wandb.apis.public.runs import RunNotFoundError
from wandb.sdk.lib.wbauth import read_netrc_auth  # what `wandb login` wrote; wandb's own lookup, as its CLI does it
from wandb.sdk.mailbox.mailbox_handle import ServerResponseError

from eval.conditions import CONDITIONS, Condition
from eval.config import InputError
from eval.ledger import Ledger, digest, ledger_of, policy_name, read_fragment, remove, synced, wait_for_helper
from eval.tracked import axis_of, by_experiment, cautions_of, config_of, final_values, picture_name, rows_of, setup_of
from eval.views.gathered import Curve, gather

__all__ = ["policy_name"]  # those who train take it from here
PROJECT = "selfcorrect"
QUIET = wandb.Settings(
    silent=True, console="off", x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False,
    disable_git=True,
)  # fmt: skip
"""Of the publishing process nothing is recorded: what evaluated is in the results' provenance."""
RELEASE_SECONDS = 60.0


def mode() -> str:
    """$WANDB_MODE where it is set, else online where the user is logged in, else offline."""
    if chosen := os.environ.get("WANDB_MODE"):
        return chosen
    settings = wandb.setup().settings
    return "online" if settings.api_key or read_netrc_auth(host=settings.base_url) else "offline"


def default_entity() -> str:
    """The entity of the user who is logged in. Raises InputError where the server does not say."""
    entity = wandb.Api().default_entity
    if not entity:
        raise InputError("W&B does not say which entity is yours; run `wandb login`, or give --entity")
    return entity


@dataclass(frozen=True)
class Destination:
    """Where runs are sent. entity: None = the user's own."""

    project: str = field(default_factory=lambda: os.environ.get("WANDB_PROJECT") or PROJECT)
    entity: str | None = field(default_factory=lambda: os.environ.get("WANDB_ENTITY") or None)

    def target(self) -> str:
        """Server, entity and project as a ledger names them; W&B's own server and the user's own entity are ''."""
        entity = self.entity or ""
        if entity and mode() == "online" and entity == default_entity():
            entity = ""
        settings = wandb.setup().settings
        server = "" if settings.base_url == wandb.Settings.model_fields["base_url"].default else settings.base_url
        return f"{server}/{entity}/{self.project}"

    def path(self, run_id: str) -> str:
        """entity/project/run, for the server."""
        return f"{self.entity or default_entity()}/{self.project}/{run_id}"


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
        dir=str(folder.resolve()),  # the helper, where a parent process shares its own, has another working directory
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
    ledger = ledger_of(curve, alone)
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
                sent.runs.append(ledger.run_id(condition))
                sent.rows += len(new)
    return sent


def send_pictures(
    curves: Sequence[Curve], destination: Destination, alone: Path | None, draw: Callable[[], list[Path]]
) -> str | None:
    """Logs pages (.html) as report/page and figures (.png) as report/NAME into a run of their own, report-POLICY or
    that of several policies, where results are new since it was last done; its id, or None where nothing is new.

    draw: writes the files, called only where they are sent.
    """
    if mode() == "disabled":
        return None
    content = digest([[s["step"], s["metrics"]] for c in curves for s in c.summaries])
    policies = sorted(ledger_of(c, None).policy for c in curves)
    run_id = f"report-{policies[0] if len(policies) == 1 else digest(policies)}"
    ledger = ledger_of(curves[0], alone)
    with ledger.opened(Destination().target()):
        channel = Channel(ledger, destination)
        for row in channel.arrived(run_id, known=run_id in channel.place["pictures"]):
            channel.place["pictures"][run_id] = row.get("report/content")
        if channel.place["pictures"].get(run_id) == content:
            return None
        files = draw()

        def write(run: Any) -> None:
            media = {picture_name(p): wandb.Html(p, inject=False) for p in files if p.suffix == ".html"}
            media |= {picture_name(p): wandb.Image(str(p)) for p in files if p.suffix == ".png"}
            run.log({**media, "report/content": content})

        config = {
            "condition": "report",
            "policies": policies,
            "policy": policies[0] if len(policies) == 1 else "several",
        }
        channel.write(run_id, "report", {**config, "setup": config["policy"]}, "", write)
        channel.place["pictures"][run_id] = content
        ledger.write()
    return run_id


def unsynced(curve: Curve) -> list[str]:
    """The folders of a policy that lie offline and were not synced."""
    ledger = ledger_of(curve, None)
    if not ledger.path.is_file():
        return []
    with ledger.opened(Destination().target()):
        return [str(path) for path in ledger.unsynced()]


def _unsent(
    channel: Channel, curve: Curve, condition: Condition, rows: dict[int, dict[str, float]], sent: Sent
) -> tuple[dict[int, dict[str, float]], dict[str, str]]:
    """The rows that are not at the destination, and their keys with a checksum of each; what was sent before with other
    numbers is noted.
    """
    if not rows:
        return {}, {}
    done, axis = channel.place["sent"], axis_of(curve)
    start = f"{condition.slug}@"
    for row in channel.arrived(channel.ledger.run_id(condition), known=any(key.startswith(start) for key in done)):
        if axis in row:
            done |= {f"{start}{int(row[axis])}/{e}": digest(part) for e, part in by_experiment(row).items()}
    new: dict[int, dict[str, float]] = {}
    keys: dict[str, str] = {}
    for step, row in rows.items():
        whole = f"{start}{step}"  # the key before experiments had keys of their own
        for experiment, part in by_experiment(row).items():
            key = f"{whole}/{experiment}"
            if not {key, whole} & done.keys():
                new.setdefault(step, {axis: step}).update(part)
                keys[key] = digest(part)
            elif done.get(key) not in (None, digest(part)):
                sent.changed.append(f"{condition.name}, step {step}, {experiment}")
    return new, keys


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
    config, run_id = config_of(curve, channel.ledger.policy, condition.name), channel.ledger.run_id(condition)
    channel.write(run_id, "eval", config, notes, write)
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
                wait_for_helper(opened)
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
        self.ledger.another_second(run_id)
        run = _started(
            project=self.destination.project,
            entity=self.destination.entity,
            dir=str(self.ledger.home.resolve()),
            id=run_id,
            name=run_id,
            group=config["policy"],
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


def _started(**about: Any) -> Any:
    """wandb.init, again for a while where the run's last part, finished in this process, is not quite released yet."""
    until = time.monotonic() + RELEASE_SECONDS
    while True:
        try:
            return wandb.init(**about)
        except ServerResponseError as error:
            if "in use" not in str(error) or time.monotonic() > until:
                raise InputError(f"W&B's helper process did not begin {about['id']}: {error}; publish again") from error
            time.sleep(0.5)


def _history(path: str) -> list[dict[str, Any]]:
    """All rows of a run on the server; none where there is no such run."""
    try:
        return list(wandb.Api().run(path).scan_history(use_cache=False))
    except RunNotFoundError:
        return []
