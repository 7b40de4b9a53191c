"""Sends what is new in result files to Weights & Biases: one run per condition, in the policy's group.

The files are the truth. A ledger beside them (eval.tracking.ledger) records what was sent, so publishing again sends
nothing twice, and after a kill it sends the rest. Rows are logged against rlhf_step (training_step for revisions of a
model), so a checkpoint that comes late or out of order still has its place.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.curves.gather import Curve
from eval.errors import InputError
from eval.experiments.conditions import CONDITIONS, Condition
from eval.tracking import client as tracking
from eval.tracking.client import Destination
from eval.tracking.ledger import Ledger, digest, ledger_of, remove, synced, wait_for_helper
from eval.tracking.names import axis_of, by_experiment, cautions_of, config_of, final_values, rows_of


@dataclass
class Sent:
    """What became of a policy.

    Attributes:
        home: the ledger's folder.
        runs: ids of the runs written.
        rows: how many rows were written.
        changed: what was sent before and has another number now.
        held: why something could not be sent yet.
    """

    policy: str
    home: Path
    runs: list[str] = field(default_factory=list)
    rows: int = 0
    changed: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)


def send(curve: Curve, destination: Destination, exclusive: Path | None = None) -> Sent:
    """Sends what was not sent to the destination yet.

    If it is killed at any point and called again, nothing is lost or duplicated (eval.tracking.ledger). Where W&B is
    disabled, nothing is sent, and nothing is recorded as sent.

    Args:
        exclusive: a folder that holds this curve and no other.

    Raises:
        InputError: something did not arrive; it stays to be sent.
    """
    ledger = ledger_of(curve, exclusive)
    sent = Sent(ledger.policy, ledger.home)
    if tracking.mode() == "disabled":
        sent.held.append("W&B is disabled: nothing is sent, and nothing is taken for sent")
        return sent
    with ledger.opened(Destination().target(), [Path(s["results"]) for s in curve.summaries]):
        channel = Channel(ledger, destination)
        for condition in CONDITIONS.values():
            rows = rows_of(curve, condition.name)
            try:
                new, keys, changed = _unsent(channel, curve, condition, rows)
            except InputError as error:
                sent.held.append(str(error))
                continue
            sent.changed += [f"{condition.name}, step {step}, {experiment}" for step, experiment in changed]
            if new:
                _send_rows(channel, curve, condition, new, keys, changed)
                sent.runs.append(ledger.run_id(condition))
                sent.rows += len(new)
    return sent


def send_pictures(
    curves: Sequence[Curve], destination: Destination, exclusive: Path | None, draw: Callable[[], list[Path]]
) -> str | None:
    """Logs pages (.html) as report/page and figures (.png) as report/NAME, if results are new since the last time.

    They go into a run of their own: report-POLICY, or one for several policies together.

    Args:
        exclusive: a folder that holds the first curve and no other.
        draw: writes the files; only called if they are sent.

    Returns:
        The run's id; None where nothing is new.
    """
    if tracking.mode() == "disabled":
        return None
    content = digest([[s["step"], s["metrics"]] for c in curves for s in c.summaries])
    policies = sorted(ledger_of(c, None).policy for c in curves)
    run_id = f"report-{policies[0] if len(policies) == 1 else digest(policies)}"
    ledger = ledger_of(curves[0], exclusive)
    with ledger.opened(Destination().target()):
        channel = Channel(ledger, destination)
        for row in channel.arrived(run_id, known=run_id in channel.place["pictures"]):
            channel.place["pictures"][run_id] = row.get("report/content")
        if channel.place["pictures"].get(run_id) == content:
            return None
        files = draw()

        def write(run: Any) -> list[dict[str, Any]]:
            run.log({**tracking.media(files), "report/content": content})
            return [{"report/content": content}]

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
    """The offline folders of a policy that were not synced."""
    ledger = ledger_of(curve, None)
    if not ledger.path.is_file():
        return []
    with ledger.opened(Destination().target()):
        return [str(path) for path in ledger.unsynced()]


def _unsent(
    channel: Channel, curve: Curve, condition: Condition, rows: dict[int, dict[str, float]]
) -> tuple[dict[int, dict[str, float]], dict[str, str], list[tuple[int, str]]]:
    """Compares a condition's rows with what is at the destination.

    Returns:
        (rows that are not there, a checksum of each by its key, (step, experiment) of what was sent before with other
        numbers).
    """
    if not rows:
        return {}, {}, []
    done, axis = channel.place["sent"], axis_of(curve)
    start = f"{condition.slug}@"
    for row in channel.arrived(channel.ledger.run_id(condition), known=any(key.startswith(start) for key in done)):
        if axis in row:
            done |= {f"{start}{int(row[axis])}/{e}": digest(part) for e, part in by_experiment(row).items()}
    new: dict[int, dict[str, float]] = {}
    keys: dict[str, str] = {}
    changed: list[tuple[int, str]] = []
    for step, row in rows.items():
        step_key = f"{start}{step}"  # the key in ledgers from before each experiment had its own
        for experiment, part in by_experiment(row).items():
            key = f"{step_key}/{experiment}"
            if not {key, step_key} & done.keys():
                new.setdefault(step, {axis: step}).update(part)
                keys[key] = digest(part)
            elif done.get(key) not in (None, digest(part)):
                changed.append((step, experiment))
    return new, keys, changed


def _send_rows(
    channel: Channel, curve: Curve, condition: Condition, rows: dict[int, dict[str, float]], keys: dict[str, str],
    changed: Sequence[tuple[int, str]],
) -> None:  # fmt: skip
    """Sends rows, and the last values with them.

    Last values of an experiment are left out where W&B keeps other numbers for that step (`changed`).
    """
    axis, cautions = axis_of(curve), cautions_of(curve, condition.name)
    last = final_values(curve, condition.name)
    kept = {experiment for step, experiment in changed if last[f"final/{experiment}/step"] == step}
    last = {name: value for name, value in last.items() if name.split("/")[1] not in kept}

    def write(run: Any) -> list[dict[str, Any]]:
        run.define_metric(axis, hidden=True, summary="none")
        run.define_metric("eval/*", step_metric=axis, step_sync=False, summary="none")
        for row in rows.values():
            run.log(row)
        run.summary.update({**last, "cautions": cautions})
        return list(rows.values())

    notes = "\n".join(["Before believing these numbers:", *(f"- {line}" for line in cautions)]) if cautions else ""
    config, run_id = config_of(curve, channel.ledger.policy, condition.name), channel.ledger.run_id(condition)
    channel.write(run_id, "eval", config, notes, write)
    channel.place["sent"] |= keys
    channel.ledger.write()


class Channel:
    """Connects an opened ledger to a destination.

    Raises:
        InputError: the ledger cannot tell whether the destination was sent to before, or, online, W&B rejects the
            login.
    """

    def __init__(self, ledger: Ledger, destination: Destination) -> None:
        self.ledger = ledger
        self.online = tracking.mode() == "online"
        user_entity = tracking.user_entity() if self.online else None
        entity = ledger.entity(tracking.server(), destination.project, destination.entity, user_entity)
        if self.online and not entity:
            entity = tracking.default_entity()
        self.destination = Destination(destination.project, entity or None)
        self.target = self.destination.target()

    @property
    def place(self) -> dict[str, Any]:
        """What the ledger records about the destination."""
        return self.ledger.target(self.target)

    def arrived(self, run_id: str, known: bool) -> list[dict[str, Any]]:
        """Cleans up what a killed process left of a run.

        Args:
            known: whether the ledger has anything of this run at the destination.

        Returns:
            The run's rows at the destination that the ledger may not have yet; the caller records them.

        Raises:
            InputError: the run was being sent to another destination, or online while this process is offline: only the
                server can tell what has arrived.
        """
        self._check_open(run_id)
        opened = self.place["open"].get(run_id)
        rows: list[dict[str, Any]] = []
        for folder in self.ledger.unfinished(run_id):
            if folder.name.startswith("offline-") and synced(folder):
                records = tracking.fragment_records(folder)
                if not records:
                    raise InputError(
                        f"{folder} was synced and cannot be read; remove it if W&B has nothing of {run_id}"
                    )
                rows += tracking.rows_in(records)
                self.ledger.finished(folder)
        if self.online and (not known or (opened and opened["online"])):
            if opened:
                wait_for_helper(opened)
            rows += tracking.history(f"{self.destination.entity}/{self.destination.project}/{run_id}")
        for folder in self.ledger.unfinished(run_id):
            remove(folder)
        self.place["open"].pop(run_id, None)
        return rows

    def _check_open(self, run_id: str) -> None:
        """Raises InputError where a killed process was sending the run in a way that this process cannot check."""
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

    def write(
        self, run_id: str, job_type: str, config: dict[str, Any], notes: str, write: Any, settings: Any = tracking.QUIET
    ) -> None:
        """Writes a part of a run to its end.

        The ledger records on disk beforehand that the part is about to be written. That it was written is for the
        caller to record, together with what was sent.

        Args:
            write: logs to the run, as in tracking.write_part.

        Raises:
            InputError: not everything arrived. The ledger then has the part as started, as after a kill.
        """
        self.place["open"][run_id] = {"online": self.online, "node": platform.node(), "pid": os.getpid()}
        self.ledger.write()
        self.ledger.another_second(run_id)
        about = {
            "dir": str(self.ledger.home.resolve()), "id": run_id, "name": run_id, "group": config["policy"],
            "job_type": job_type, "notes": notes, "config": config,
        }  # fmt: skip
        entity, project = self.destination.entity or "", self.destination.project
        self.ledger.finished(tracking.write_part(about, write, entity, project, self.online, settings))
        del self.place["open"][run_id]
