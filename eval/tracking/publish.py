"""`python -m eval publish RUNS...`: sends results, wherever they were made, to Weights & Biases.

Each policy gets a run per condition (eval.tracking.client), and a run report-POLICY with what W&B's own panels cannot
draw: our page, and Figures 1 and 2 with their interval bands. Several policies together get one more such run. A
training publishes after each checkpoint without these pictures, since drawing takes seconds, and at its end with them.
What a training's own run lacks, for example after an outage, is sent from the training's files.
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
"""The figures that are logged: bias against size, and against RLHF step."""


@dataclass
class PublishConfig(RunsConfig):
    """Options of `eval publish`."""

    project: str | None = field(default=None, metadata={"help": "default $WANDB_PROJECT or selfcorrect"})
    entity: str | None = field(default=None, metadata={"help": "user or team; default $WANDB_ENTITY or your own"})
    pictures: bool = field(default=True, metadata={"help": "also send the page, and Figures 1 and 2, of each policy"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_destination(self.project, self.entity)


def publish(config: PublishConfig, pictures: Pictures | None = None, trainings: bool = True) -> CommandOutput:
    """Sends what was not sent yet, policy by policy. A policy that fails does not keep the others back.

    Later failures do not raise: they are in the object's 'error', and in that of the policy or training concerned. An
    example is a second training that claims to be the same policy as another.

    Args:
        pictures: draws what is logged beside the numbers; default: `draw_pictures`.
        trainings: whether to send what the trainings' own runs lack, too.

    Returns:
        The text for the terminal, and the object for --json.

    Raises:
        InputError: a folder does not exist or has no results.
    """
    from eval.tracking import client as tracking

    trained = _trainings(config.folders) if trainings else []
    folders = [f for f in config.folders if not _only_trained(f, trained)]
    curves = gather(folders) if folders else []
    given = {k: v for k, v in (("project", config.project), ("entity", config.entity)) if v}
    destination = tracking.Destination(**given)
    places = [exclusive_folder(curve, curves, config.folders) for curve in curves]
    draw = (pictures or draw_pictures) if config.pictures else None
    ledgers: list[Ledger] = []
    policies = [_publish_one(c, destination, place, draw, ledgers) for c, place in zip(curves, places, strict=True)]
    mode = tracking.mode()
    lines = [_line(t, mode) for t in policies]
    runs = [_send_training(folder, destination) for folder in trained]
    lines += [line for t in runs for line in _training_lines(t)]
    failed = [t for t in policies if t["error"]]
    combined_report = error = None
    if failed:
        error = f"{len(failed)} of {len(curves)} policies failed: {failed[0]['policy']}: {failed[0]['error']}"
    elif draw and len(curves) > 1:
        try:
            combined_report = _send_pictures(curves, destination, places[0], draw)
            lines += [f"page and figures of all {len(curves)}: {combined_report}"] if combined_report else []
        except (*FAILURES, *tracking.ERRORS) as failure:
            error = f"page and figures of all {len(curves)} failed: {_log_failure(destination, failure)}"
            lines.append(error)
    if failed_runs := [t for t in runs if t["error"]]:
        error = "; ".join(
            filter(None, [error, f"{len(failed_runs)} of {len(runs)} training runs failed: {failed_runs[0]['error']}"])
        )
    unsynced = sorted({path for t in (*policies, *runs) for path in t["unsynced"]})
    if unsynced:
        folders = dict.fromkeys(str(Path(path).parent / "offline-run-*") for path in unsynced)
        lines.append(f"`wandb sync {' '.join(folders)}` sends what lies offline, once you are logged in")
    return "\n".join(lines), {
        "mode": mode, "project": destination.project, "entity": destination.entity, "policies": policies,
        "trainings": runs, "report": combined_report,
        "unsynced": unsynced, "error": error,
    }  # fmt: skip


def _trainings(folders: Sequence[Path]) -> list[Path]:
    """The trainings in the folders that have a run on W&B."""
    return list(dict.fromkeys(path.parent for folder in folders for path in sorted(folder.rglob(RUN))))


def _only_trained(folder: Path, trained: Sequence[Path]) -> bool:
    """Whether a folder holds trainings, none of which was evaluated."""
    return any(folder in (t, *t.parents) for t in trained) and not any(
        "metrics" in (read_json(path) or {}) for path in folder.rglob("summary.json")
    )


def _send_training(folder: Path, destination: Any) -> dict[str, Any]:
    """Sends a training's own run. Returns the outcome for --json."""
    from eval.tracking import client as tracking
    from eval.tracking import training_send as training_sending

    result: dict[str, Any] = {
        "training": str(folder), "runs": [], "rows": 0, "changed": [], "held": [], "unsynced": [], "error": None,
    }  # fmt: skip
    try:
        sent = training_sending.send_training(folder, destination)
        result |= {name: getattr(sent, name) for name in ("runs", "rows", "changed", "held")}
        result["unsynced"] = training_sending.unsynced(folder)
    except Busy as busy:
        result["held"].append(str(busy))
    except (*FAILURES, *tracking.ERRORS) as error:
        result["error"] = _log_failure(folder, error)
    return result


def _training_lines(result: dict[str, Any]) -> list[str]:
    """The outcome of a training's own run, as lines for the terminal."""
    what = f"{result['rows']} rows written" if result["runs"] else "nothing new"
    lines = [
        f"{result['training']}: the training's own run: " + (f"failed: {result['error']}" if result["error"] else what)
    ]
    lines += [f"  not sent: {why}" for why in result["held"]]
    if result["changed"]:
        lines.append(f"  {describe_changed(result['changed'])}")
    return lines


def describe_changed(changed: Sequence[str]) -> str:
    """What to know about rows of a training's run that have other numbers on W&B."""
    return (
        f"{len(changed)} rows on W&B are of steps that were done again after a kill and have other numbers now "
        f"({changed[0]} ...): W&B keeps the old ones"
    )


def _publish_one(
    curve: Curve, destination: Any, exclusive: Path | None, draw: Pictures | None, ledgers: list[Ledger]
) -> dict[str, Any]:
    """Publishes one policy. Returns the outcome for --json.

    Args:
        exclusive: a folder that holds this curve and no other.
        ledgers: the ledgers of the policies before it; this policy's is appended.
    """
    from eval.tracking import client as tracking
    from eval.tracking import send as sending

    result: dict[str, Any] = {
        "policy": curve.name, "steps": curve.steps, "runs": [], "rows": 0, "report": None, "changed": [], "held": [],
        "unsynced": [], "error": None,
    }  # fmt: skip
    try:
        ledger = ledger_of(curve, exclusive)
        check_distinct([*ledgers, ledger])
        ledgers.append(ledger)
        sent = sending.send(curve, destination, exclusive)
        result |= {name: getattr(sent, name) for name in ("policy", "runs", "rows", "changed", "held")}
        if draw:
            result["report"] = _send_pictures([curve], destination, exclusive, draw)
        result["unsynced"] = sending.unsynced(curve)
    except (*FAILURES, *tracking.ERRORS) as error:
        result["error"] = _log_failure(curve.folder, error)
    return result


def _log_failure(what: object, error: Exception) -> str:
    """Logs the failure and returns it as one line; errors of wandb's are shortened."""
    from eval.tracking import client as tracking

    return log_failure(
        what, InputError(tracking.describe_error(error)) if isinstance(error, tracking.ERRORS) else error
    )


def _send_pictures(curves: Sequence[Curve], destination: Any, exclusive: Path | None, draw: Pictures) -> str | None:
    """Draws the pictures into a temporary folder and sends them. Returns the run's id, or None where nothing is new."""
    from eval.tracking import send as sending

    with tempfile.TemporaryDirectory() as folder:
        return sending.send_pictures(curves, destination, exclusive, lambda: draw(curves, Path(folder)))


def _line(result: dict[str, Any], mode: str) -> str:
    """The outcome of a policy, as lines for the terminal."""
    n = len(result["runs"])
    what = f"{n} {'run' if n == 1 else 'runs'} written ({mode}), {result['rows']} rows" if n else "nothing new"
    if result["report"]:
        what += f"; page and figures: {result['report']}"
    lines = [f"{result['policy']}: {what}", *(f"  not sent: {why}" for why in result["held"])]
    if result["error"]:
        lines = (
            [f"{result['policy']}: failed: {result['error']}"] if not n else [*lines, f"  failed: {result['error']}"]
        )
    if result["changed"]:
        lines.append(
            f"  {len(result['changed'])} results were sent before and have other numbers now "
            f"({result['changed'][0]} ...): W&B keeps the old ones, since rows there cannot be replaced; "
            "send all anew with another --project"
        )
    return "\n".join(lines)


def exclusive_folder(curve: Curve, curves: Sequence[Curve], folders: Sequence[Path]) -> Path | None:
    """The first of the given folders that holds all of this curve and nothing of another; None where there is none."""
    for folder in folders:
        inside = [c for c in curves if any(_lies_in(s, folder) for s in c.summaries)]
        if [c.name for c in inside] == [curve.name] and all(_lies_in(s, folder) for s in curve.summaries):
            return folder
    return None


def _lies_in(summary: dict[str, Any], folder: Path) -> bool:
    """Whether a summary's results lie in the folder."""
    results = Path(summary["results"]).resolve()
    return folder.resolve() in (results, *results.parents)


def draw_pictures(curves: Sequence[Curve], folder: Path) -> list[Path]:
    """Draws the page, and Figures 1 and 2, of the curves into the folder. Returns the paths."""
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
