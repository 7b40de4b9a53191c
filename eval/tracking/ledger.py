"""Records what was sent to Weights & Biases, beside the results, so that sending again, or after a kill, duplicates
nothing.

wandb-ledger.json lies in the folder of a training, or of results made elsewhere, and has an entry for each policy:

    results    the policy's results folders, relative to the ledger's own
    fragments  the folders below wandb/ that were written to their end
    targets    by server, entity and project: what was `sent` there ({condition@step/experiment: digest of the row}),
               what was being sent online and may have arrived (`open`), and the `pictures` sent (by run: digest)

A folder of wandb's that is not among the fragments is left over from a process that was killed. Offline it is removed
and sent anew, unless it was synced in between. Online the server is asked what has arrived (eval.tracking.client).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from eval.curves.gather import RUN_FILE, Curve, training_folder
from eval.errors import InputError
from eval.experiments.conditions import Condition
from eval.files import read_json, write_json
from eval.runner.store import Busy
from eval.tracking.names import LONGEST_NAME, SETUP_KEYS, digest

LEDGER, TRAINING_LEDGER = "wandb-ledger.json", "wandb-training-ledger.json"
"""LEDGER is of evaluations. TRAINING_LEDGER is of a training's own run; the training holds it while it sends."""
HELPER_SECONDS = 30.0
"""How long to wait at most for the helper of a killed process."""


class Ledger:
    """One policy's entry in a ledger. Read and change it only within `opened`."""

    def __init__(self, home: Path, policy: str, name: str = LEDGER) -> None:
        self.home = home
        self.policy = policy
        self.name = name
        self.content: dict[str, Any] = {"version": 2, "policies": {}}

    @property
    def path(self) -> Path:
        return self.home / self.name

    @property
    def entry(self) -> dict[str, Any]:
        return self.content["policies"][self.policy]

    @contextmanager
    def opened(self, default_target: str, results: Sequence[Path] = (), wait: bool = True) -> Iterator[Ledger]:
        """Locks the folder's ledger and reads it. The policy's entry then exists on disk, with these results in it.

        Args:
            default_target: where a ledger of the first version, which did not record it, was sent to.
            results: the policy's results folders.
            wait: whether to wait for another process that holds the lock.

        Raises:
            Busy: another process holds the lock, and `wait` is False.
            InputError: the folder cannot be written.
        """
        try:
            handle = (self.home / f".{self.name}.lock").open("w")
        except OSError as error:
            raise InputError(
                f"{self.home} cannot be written ({error.strerror}), where what was sent is written down; make it "
                "writable, or publish a copy of it"
            ) from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Busy(f"another process is sending from {self.home}; publish again after its end") from error
            self.content = _read(self.home, default_target, self.name)
            entry = self.content["policies"].setdefault(
                self.policy, {"results": [], "fragments": [], "targets": {}}
            )  # fmt: skip
            recorded = set(entry["results"] or [])
            entry["results"] = sorted(recorded | {os.path.relpath(p.resolve(), self.home.resolve()) for p in results})
            self.write()
            yield self
            self.write()

    def run_id(self, condition: Condition) -> str:
        """The id of a condition's run."""
        return f"eval-{self.policy}-{condition.slug}"

    def target(self, name: str) -> dict[str, Any]:
        """What was sent to a server, entity and project."""
        return self.entry["targets"].setdefault(name, {"sent": {}, "open": {}, "pictures": {}})

    def entity(self, server: str, project: str, named: str | None, user_entity: str | None) -> str:
        """The entity that a project's results go to; '' for the user's own, if its name is not known.

        It is the one named, else the only one that the ledger has for the project, else the user's own. What was
        recorded as sent to '' was sent to the user's own.

        Args:
            named: the entity that the user named.
            user_entity: the name of the user's own entity, which only the server knows (None offline).

        Raises:
            InputError: it cannot be known whether what was sent to '' was sent to the entity named.
        """
        start, end = f"{server}/", f"/{project}"
        targets = self.entry["targets"]
        used = {
            name.removeprefix(start).removesuffix(end): place
            for name, place in targets.items()
            if name.startswith(start) and name.endswith(end) and name.count("/") == server.count("/") + 2
            and any(place.values())
        }  # fmt: skip
        if user_entity and "" in used:
            place = self.target(f"{start}{user_entity}{end}")
            for part, content in targets.pop(start + end).items():
                place[part] |= content
            used[user_entity] = used.pop("")
        if named and named not in used and "" in used:
            raise InputError(
                f"{self.policy} was sent to your own entity of project {project} before, and offline it is not known "
                f"whether '{named}' is that; leave out --entity and $WANDB_ENTITY to go on there, or publish online"
            )
        return named or (next(iter(used)) if len(used) == 1 else user_entity or "")

    def write(self) -> None:
        """Writes the file atomically."""
        write_json(self.path, self.content)

    def folders(self, run_id: str) -> list[Path]:
        """wandb's folders of a run, ordered by time: offline-run-TIME-ID, or run-TIME-ID if online."""
        name = re.compile(rf"(offline-)?run-\d{{8}}_\d{{6}}-{re.escape(run_id)}")
        paths = [p for p in (self.home / "wandb").glob("*run-*") if name.fullmatch(p.name) and not p.is_symlink()]
        return sorted(paths, key=lambda p: p.name.removeprefix("offline-"))

    def unfinished(self, run_id: str) -> list[Path]:
        """The folders of a run that were not written to their end."""
        return [p for p in self.folders(run_id) if p.name not in self.entry["fragments"]]

    def finished(self, folder: Path) -> None:
        """Records a folder that was written to its end."""
        self.entry["fragments"].append(folder.name)

    def another_second(self, run_id: str) -> None:
        """Waits for the next second if a folder of this run was made in this one. wandb names folders by the
        second, so two would collide.
        """
        while any(time.strftime("%Y%m%d_%H%M%S") in folder.name for folder in self.folders(run_id)):
            time.sleep(0.05)

    def unsynced(self) -> list[Path]:
        """The finished offline folders that `wandb sync` has not sent yet."""
        folders = (self.home / "wandb" / name for name in self.entry["fragments"] if name.startswith("offline-"))
        return [p for p in folders if p.is_dir() and not synced(p)]


def policy_name(folder: Path, *distinguishing: Any, readable: str | None = None) -> str:
    """A readable policy name with a hash of machine, path and `distinguishing`.

    Runs in another place, or with other settings, get other names.

    Args:
        distinguishing: values that separate policies of one folder, such as settings.
        readable: the readable part; None = the folder's name.
    """
    path = folder.resolve()
    what = json.dumps([platform.node(), str(path), *distinguishing], sort_keys=True, default=str)
    name = (readable or f"{path.parent.name}-{path.name}")[:LONGEST_NAME]
    return safe_name(f"{name}-{hashlib.sha256(what.encode()).hexdigest()[:6]}")


def safe_name(name: str) -> str:
    """Replaces each character that W&B does not accept in a run's id by a hyphen."""
    return re.sub(r"[:;,#?/'\\%]", "-", name.strip())


def training_policy(folder: Path, settings: dict[str, Any], run_name: str | None) -> str:
    """The policy of a training: the one in its run.json, wherever the training continues, else a new name with run_name
    in it.

    Raises:
        InputError: run.json is damaged.
    """
    kept = (read_json(folder / RUN_FILE) or {}).get("policy")
    return safe_name(kept) if kept else policy_name(folder, settings, readable=run_name)


def ledger_of(curve: Curve, exclusive: Path | None) -> Ledger:
    """The ledger of a curve: the one above its results that has one of them, else a new one.

    A new one lies in the training's folder, else in `exclusive`, else in the curve's own folder. Its policy is the one
    in run.json, else policy_name of that folder.

    Args:
        exclusive: a folder that the user gave and that holds this curve and no other; or None.
    """
    results = [Path(s["results"]).resolve() for s in curve.summaries]
    for place in results:
        for folder in (place, *place.parents):
            for policy, entry in _read(folder, "")["policies"].items():
                covered = [(folder / name).resolve() for name in entry["results"] or []]
                if place in covered or (entry["results"] is None and training_folder(place) in (None, folder)):
                    return Ledger(folder, policy)
    home = curve.folder if training_folder(results[0]) or exclusive is None else exclusive
    first = curve.summaries[0]
    made_of = [(first["step"], first.get("weights"), first.get("adapter_weights"))]
    recorded_name = curve.described.get("policy")
    name = safe_name(recorded_name) if recorded_name else policy_name(home, made_of)
    taken = _read(home, "")["policies"].get(name)
    if taken and any((home / place / "summary.json").is_file() for place in taken["results"] or []):
        name = f"{name}-{digest({k: first.get(k) for k in SETUP_KEYS})[:6]}"  # same policy, other settings
    return Ledger(home, name)


def _read(folder: Path, default_target: str, name: str = LEDGER) -> dict[str, Any]:
    """A ledger's content, of either version. Raises InputError where it is damaged."""
    content = read_json(folder / name)
    if content is None:
        return {"version": 2, "policies": {}}
    if content.get("version") == 2:
        return content
    if not {"policy", "sent"} <= content.keys():
        raise InputError(f"{folder / name} is damaged; remove it, and the runs that it is of on W&B, and send again")
    target = {"sent": dict.fromkeys(content["sent"]), "open": {}, "pictures": {}}
    eval_run = re.compile(rf"(offline-)?run-\d{{8}}_\d{{6}}-eval-{re.escape(content['policy'])}-q.*")
    finished = sorted(p.name for p in (folder / "wandb").glob("*run-*") if eval_run.fullmatch(p.name))
    entry = {"results": None, "fragments": finished, "targets": {default_target: target}}
    return {"version": 2, "policies": {content["policy"]: entry}}


def check_distinct(ledgers: Sequence[Ledger]) -> None:
    """Raises InputError where two trainings claim to be the same policy, since they would share their runs.

    Earlier versions could cause this: trainings with the same run_name had the same policy.
    """
    homes: dict[str, Path] = {}
    for ledger in ledgers:
        if (home := homes.setdefault(ledger.policy, ledger.home)).resolve() != ledger.home.resolve():
            raise InputError(
                f"{home} and {ledger.home} both are the policy '{ledger.policy}' by their run.json; mixed they "
                "would mean nothing: give them one at a time, each with a --project of its own"
            )


def synced(folder: Path) -> bool:
    """Whether `wandb sync` has sent an offline folder. It then leaves a marker file."""
    return any(folder.glob("*.wandb.synced"))


def remove(folder: Path) -> None:
    """Removes a folder of wandb's. Retries, since the helper of the killed process may still write into it for a
    moment.
    """
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
    raise InputError(
        f"{folder} is the rest of a publishing that was killed, and is in the way; remove it, and try again"
    )


def wait_for_helper(opened: dict[str, Any]) -> None:
    """Waits for wandb's helper of a killed process, which continues to send for a moment.

    Args:
        opened: what the killed process recorded when it began to send: node and pid.
    """
    until = time.monotonic() + HELPER_SECONDS
    if opened["node"] == platform.node() and opened["pid"] != os.getpid():
        while _helper_of(opened["pid"]) and time.monotonic() < until:
            time.sleep(0.2)


def _helper_of(pid: int) -> bool:
    """Whether wandb's helper of the process with this id is still running."""
    lines = (p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"]))
    return any(line and Path(line[0]).name == "wandb-core" and str(pid) in line for line in lines)
