"""`python -m eval live RUNS...`: results and trainings as a local trackio project, without account or network.

The files on disk are the truth, and the project is made from them. It has a run for each policy and condition, with the
metrics of all its checkpoints against their step, and one for each training's log (while it runs, as of its last
checkpoint). A run whose content has changed is rewritten in one transaction; an unchanged one is left alone. So
repeating the command changes nothing, and after a kill nothing is lost or duplicated. trackio draws no intervals: `eval
report` does.

trackio stores its projects in $TRACKIO_DIR, or in the cache folder of Hugging Face.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.cli.dispatch import CommandOutput
from eval.curves.cautions import SIGNS
from eval.curves.gather import Curve, gather
from eval.errors import InputError
from eval.files import read_json
from eval.models.target import numbered_checkpoints
from eval.tracking.ledger import check_distinct, ledger_of
from eval.tracking.publish import exclusive_folder
from eval.views.options import RunsConfig

log = logging.getLogger(__name__)

PROJECT = "selfcorrect"
QUERY = "?x_axis=rlhf_step&smoothing=0"
NEEDED = "trackio is not installed: pip install 'trackio==0.43.*' 'pillow<13' (no account is needed), then run again"
TRAINING = {
    "reward": "train/reward", "kl": "train/kl", "entropy": "train/entropy", "observed/tokens": "train/tokens",
    "loss": "train/loss",
}  # fmt: skip
"""Maps names in a training's log to names in the project."""


@dataclass
class LiveConfig(RunsConfig):
    """Options of `eval live`."""

    project: str = field(default=PROJECT, metadata={"help": "name of the trackio project"})
    follow: bool = field(default=False, metadata={"help": "look again and again, until interrupted"})
    every: float = field(default=10.0, metadata={"help": "seconds between two looks of --follow"})
    show: bool = field(default=False, metadata={"help": "serve the dashboard on this machine until ended"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.every < float("inf"):
            raise InputError(f"every must be a number of seconds above 0, not {self.every}")


@dataclass(frozen=True)
class MirroredRun:
    """A run of the project.

    Attributes:
        rows: (step, {metric: value}).
    """

    name: str
    config: dict[str, Any]
    rows: list[tuple[int, dict[str, float]]]

    @property
    def content(self) -> str:
        """A checksum of everything in the run."""
        return hashlib.sha256(json.dumps([self.config, self.rows], sort_keys=True).encode()).hexdigest()


def live(config: LiveConfig) -> CommandOutput:
    """Brings the project up to date; with --follow or --show, runs until interrupted.

    Returns:
        The text for the terminal, and {"project", "runs", "written", "url"}.

    Raises:
        InputError: trackio is not installed, or a run folder does not exist or has no results.
    """
    storage = _storage()
    written, runs = _update_project(storage, config)
    url = None
    if config.show or config.follow:
        url = _serve(storage, config)
    text = (
        f"trackio project {config.project}: {len(runs)} runs, {len(written)} of them new or changed\n"
        f"see it: python -m eval live {' '.join(config.runs)} --show (x axis rlhf_step, no smoothing: {QUERY})\n"
        f"signs: {'; '.join(f'{name} {meaning}' for name, meaning in SIGNS.items())}\n"
        "trackio draws no intervals; python -m eval report does"
    )
    return text, {"project": config.project, "runs": runs, "written": written, "url": url}


def _storage() -> Any:
    """trackio's storage. Raises InputError where trackio is not installed."""
    try:
        from trackio.sqlite_storage import SQLiteStorage  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(NEEDED) from error
    return SQLiteStorage


def _serve(storage: Any, config: LiveConfig) -> str | None:
    """Serves the dashboard and follows the results, as the options say, until interrupted. Returns the dashboard's
    address.
    """
    shown = url = None
    if config.show:
        import trackio  # pyright: ignore[reportMissingImports]

        shown = trackio.show(config.project, open_browser=False, block_thread=False)
        url = shown[1].rstrip("/") + f"/{QUERY}&project={config.project}"
        log.info("dashboard: %s (Ctrl-C ends it)", url)
    try:
        while True:
            time.sleep(config.every)
            if config.follow:
                for name in _update_project(storage, config)[0]:
                    log.info("updated: %s", name)
    except KeyboardInterrupt:
        log.info("ended")
    return url


def _update_project(storage: Any, config: LiveConfig) -> tuple[list[str], list[str]]:
    """Writes the runs that are new or changed. Returns (names written, all names)."""
    written, runs = [], []
    for run in mirrored_runs(gather(config.folders), config.folders):
        runs.append(run.name)
        if put(storage, config.project, run):
            written.append(run.name)
    return written, runs


def put(storage: Any, project: str, run: MirroredRun) -> bool:
    """Writes a run in place of its earlier state. Returns whether there was anything to write."""
    stored = storage.get_run_config(project, run.name)
    if stored is not None and stored.get("content") == run.content:
        return False
    storage.delete_run(project, run.name)
    storage.bulk_log(
        project, run.name, [metrics for _, metrics in run.rows], steps=[step for step, _ in run.rows],
        config={**run.config, "content": run.content},
    )  # fmt: skip
    return True


def mirrored_runs(curves: Sequence[Curve], folders: Sequence[Path]) -> Iterator[MirroredRun]:
    """Yields a run for each curve and condition, and one for each training whose log is known.

    They have the policy names that `eval publish` would give for these folders. Unlike curve names, these stay unique
    across calls with different folders.

    Raises:
        InputError: two trainings claim to be the same policy.
    """
    ledgers = [ledger_of(curve, exclusive_folder(curve, curves, folders)) for curve in curves]
    check_distinct(ledgers)
    for curve, name in zip(curves, (ledger.policy for ledger in ledgers), strict=True):
        about = {
            "_Group": name, "model": curve.model, "model_params": curve.model_params,
            "algorithm": curve.algorithm, "seed": curve.seed,
        }  # fmt: skip
        for condition in dict.fromkeys(m["condition"] for s in curve.summaries for m in s["metrics"]):
            rows = [(s["step"], _metrics(s, condition)) for s in curve.summaries]
            yield MirroredRun(
                f"{name} {condition}", about | {"condition": condition}, [r for r in rows if len(r[1]) > 1]
            )
        if rows := [(entry["step"], _logged(entry)) for entry in _log(curve) if "step" in entry]:
            yield MirroredRun(f"{name} training", about, [r for r in rows if len(r[1]) > 1])


def _metrics(summary: dict[str, Any], condition: str) -> dict[str, float]:
    """The metrics of whole experiments, under the names that W&B has."""
    values = {
        f"eval/{m['experiment']}/{m['name']}": m["value"]
        for m in summary["metrics"]
        if m["condition"] == condition and m["category"] == "all" and m["value"] is not None
    }
    return {"rlhf_step": summary["step"], **values}


def _logged(entry: dict[str, Any]) -> dict[str, float]:
    """The values of a row of a training's log, under the project's names."""
    values = {name: entry[key] for key, name in TRAINING.items() if isinstance(entry.get(key), int | float)}
    return {"rlhf_step": entry["step"], **values}


def _log(curve: Curve) -> list[dict[str, Any]]:
    """A training's log: from its result file, or from its last checkpoint while it runs."""
    if name := curve.described.get("result"):
        if result := read_json(curve.folder / name):
            return result["log"]
        states = {step: p / "trainer_state.json" for step, p in numbered_checkpoints(curve.folder).items()}
        if saved_steps := [step for step, state in states.items() if state.is_file()]:
            return (read_json(states[max(saved_steps)]) or {}).get("log_history", [])
    return []
