"""python -m eval publish RUNS...: results, wherever they were made, onto Weights & Biases.

Each policy gets a run per condition (eval.tracking.client), and a run report-POLICY with what W&B's own panels cannot
draw: our page, and Figures 1 and 2 with their interval bands; several policies together get one more. A training
publishes after each checkpoint without these pictures, since drawing them takes seconds, and at its end with them. What
a training's own run lacks, as after an outage, is sent from the training's files.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.cli.dispatch import CommandOutput
from eval.curves.gather import Curve, gather
from eval.errors import FAILURES, InputError, log_failure
from eval.files import read_json
from eval.runner.store import Busy
from eval.tracking.ledger import Ledger, check_distinct, ledger_of
from eval.tracking.names import check_destination
from eval.tracking.training_log import RUN
from eval.views.options import RunsConfig

log = logging.getLogger(__name__)

Pictures = Callable[[Sequence[Curve], Path], list[Path]]
HERO = ("fig1", "fig2")
"""Figures that are logged: bias against size, and against RLHF step."""


@dataclass
class PublishConfig(RunsConfig):
    """`eval publish`."""

    project: str | None = field(default=None, metadata={"help": "default $WANDB_PROJECT or selfcorrect"})
    entity: str | None = field(default=None, metadata={"help": "user or team; default $WANDB_ENTITY or your own"})
    pictures: bool = field(default=True, metadata={"help": "also send the page, and Figures 1 and 2, of each policy"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_destination(self.project, self.entity)


def publish(config: PublishConfig, pictures: Pictures | None = None, trainings: bool = True) -> CommandOutput:
    """Sends what was not sent yet, policy by policy; one that fails does not keep the others back.

    pictures: draws what is logged beside the numbers, `pictures` of this module by default. trainings: also what the
    trainings' own runs lack. Raises InputError where a
    folder is not there or holds no result. What fails later, as the second of two trainings that say that they are the
    same policy does, stands in the object's 'failed' and 'error'.
    """
    from eval.tracking import client as tracking

    trained = _trainings(config.folders) if trainings else []
    folders = [f for f in config.folders if not _only_trained(f, trained)]
    curves = gather(folders) if folders else []
    given = {k: v for k, v in (("project", config.project), ("entity", config.entity)) if v}
    destination = tracking.Destination(**given)
    places = [alone_in(curve, curves, config.folders) for curve in curves]
    draw = (pictures or draw_pictures) if config.pictures else None
    known: list[Ledger] = []
    told = [_publish_one(c, destination, place, draw, known) for c, place in zip(curves, places, strict=True)]
    mode = tracking.mode()
    lines = [_line(t, mode) for t in told]
    runs = [_send_training(folder, destination) for folder in trained]
    lines += [line for t in runs for line in _training_lines(t)]
    failed = [t for t in told if t["error"]]
    together = error = None
    if failed:
        error = f"{len(failed)} of {len(curves)} policies failed: {failed[0]['policy']}: {failed[0]['error']}"
    elif draw and len(curves) > 1:
        try:
            together = _send_pictures(curves, destination, places[0], draw)
            lines += [f"page and figures of all {len(curves)}: {together}"] if together else []
        except (*FAILURES, *tracking.ERRORS) as failure:
            error = f"page and figures of all {len(curves)} failed: {_told_failure(destination, failure)}"
            lines.append(error)
    if lost := [t for t in runs if t["error"]]:
        error = "; ".join(filter(None, [error, f"{len(lost)} of {len(runs)} training runs failed: {lost[0]['error']}"]))
    unsynced = sorted({path for t in (*told, *runs) for path in t["unsynced"]})
    if unsynced:
        folders = dict.fromkeys(str(Path(path).parent / "offline-run-*") for path in unsynced)
        lines.append(f"`wandb sync {' '.join(folders)}` sends what lies offline, once you are logged in")
    return "\n".join(lines), {
        "mode": mode, "project": destination.project, "entity": destination.entity, "policies": told,
        "trainings": runs, "report": together,
        "unsynced": unsynced, "error": error,
    }  # fmt: skip


def _trainings(folders: Sequence[Path]) -> list[Path]:
    """The trainings in the folders that have a run on W&B."""
    return list(dict.fromkeys(path.parent for folder in folders for path in sorted(folder.rglob(RUN))))


def _only_trained(folder: Path, trained: Sequence[Path]) -> bool:
    """Whether a folder holds trainings, and none that was evaluated."""
    return any(folder in (t, *t.parents) for t in trained) and not any(
        "metrics" in (read_json(path) or {}) for path in folder.rglob("summary.json")
    )


def _send_training(folder: Path, destination: Any) -> dict[str, Any]:
    """What became of a training's own run."""
    from eval.tracking import client as tracking
    from eval.tracking import training_send as training_sending

    told: dict[str, Any] = {
        "training": str(folder), "runs": [], "rows": 0, "changed": [], "held": [], "unsynced": [], "error": None,
    }  # fmt: skip
    try:
        sent = training_sending.send_training(folder, destination)
        told |= {name: getattr(sent, name) for name in ("runs", "rows", "changed", "held")}
        told["unsynced"] = training_sending.unsynced(folder)
    except Busy as busy:
        told["held"].append(str(busy))
    except (*FAILURES, *tracking.ERRORS) as error:
        told["error"] = _told_failure(folder, error)
    return told


def _training_lines(told: dict[str, Any]) -> list[str]:
    what = f"{told['rows']} rows written" if told["runs"] else "nothing new"
    lines = [f"{told['training']}: the training's own run: " + (f"failed: {told['error']}" if told["error"] else what)]
    lines += [f"  not sent: {why}" for why in told["held"]]
    if told["changed"]:
        lines.append(f"  {describe_changed(told['changed'])}")
    return lines


def describe_changed(changed: Sequence[str]) -> str:
    """What to know of rows of a training's run that W&B has otherwise."""
    return (
        f"{len(changed)} rows on W&B are of steps that were done again after a kill and have other numbers now "
        f"({changed[0]} ...): W&B keeps the old ones"
    )


def _publish_one(
    curve: Curve, destination: Any, alone: Path | None, draw: Pictures | None, known: list[Ledger]
) -> dict[str, Any]:
    """What became of one policy. known: the policies before it, to which it is added."""
    from eval.tracking import client as tracking
    from eval.tracking import send as sending

    told: dict[str, Any] = {
        "policy": curve.name, "steps": curve.steps, "runs": [], "rows": 0, "report": None, "changed": [], "held": [],
        "unsynced": [], "error": None,
    }  # fmt: skip
    try:
        ledger = ledger_of(curve, alone)
        check_distinct([*known, ledger])
        known.append(ledger)
        sent = sending.send(curve, destination, alone)
        told |= {name: getattr(sent, name) for name in ("policy", "runs", "rows", "changed", "held")}
        if draw:
            told["report"] = _send_pictures([curve], destination, alone, draw)
        told["unsynced"] = sending.unsynced(curve)
    except (*FAILURES, *tracking.ERRORS) as error:
        told["error"] = _told_failure(curve.folder, error)
    return told


def _told_failure(what: object, error: Exception) -> str:
    """The same in a line where W&B is what failed."""
    from eval.tracking import client as tracking

    return log_failure(what, InputError(tracking.line(error)) if isinstance(error, tracking.ERRORS) else error)


def _send_pictures(curves: Sequence[Curve], destination: Any, alone: Path | None, draw: Pictures) -> str | None:
    from eval.tracking import send as sending

    with tempfile.TemporaryDirectory() as folder:
        return sending.send_pictures(curves, destination, alone, lambda: draw(curves, Path(folder)))


def _line(told: dict[str, Any], mode: str) -> str:
    """A policy in a line, and a line for each thing to know of it."""
    n = len(told["runs"])
    what = f"{n} {'run' if n == 1 else 'runs'} written ({mode}), {told['rows']} rows" if n else "nothing new"
    if told["report"]:
        what += f"; page and figures: {told['report']}"
    lines = [f"{told['policy']}: {what}", *(f"  not sent: {why}" for why in told["held"])]
    if told["error"]:
        lines = [f"{told['policy']}: failed: {told['error']}"] if not n else [*lines, f"  failed: {told['error']}"]
    if told["changed"]:
        lines.append(
            f"  {len(told['changed'])} results were sent before and have other numbers now ({told['changed'][0]} ...): "
            "W&B keeps the old ones, since rows there cannot be replaced; send all anew with another --project"
        )
    return "\n".join(lines)


def alone_in(curve: Curve, curves: Sequence[Curve], folders: Sequence[Path]) -> Path | None:
    """The folder, of those given, that holds all of this curve and nothing of another."""
    for folder in folders:
        inside = [c for c in curves if any(_lies_in(s, folder) for s in c.summaries)]
        if [c.name for c in inside] == [curve.name] and all(_lies_in(s, folder) for s in curve.summaries):
            return folder
    return None


def _lies_in(summary: dict[str, Any], folder: Path) -> bool:
    results = Path(summary["results"]).resolve()
    return folder.resolve() in (results, *results.parents)


def draw_pictures(curves: Sequence[Curve], folder: Path) -> list[Path]:
    """The page, and Figures 1 and 2, of the curves, drawn into the folder."""
    from eval.views.figures import figures
    from eval.views.figures.figures import FiguresConfig
    from eval.views.page import report
    from eval.views.page import text as page_text

    page, _ = report.build(curves, page_text.notes(curves))
    files = [folder / "page.html"]
    files[0].write_bytes(page)
    drawn = figures.draw(curves, FiguresConfig(runs=[str(c.folder) for c in curves]))
    for one in (d for d in drawn if d.stem in HERO):
        files.append(folder / f"{one.stem}.png")
        one.figure.savefig(files[-1], dpi=200)
    return files
