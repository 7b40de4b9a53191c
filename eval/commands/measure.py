"""`python -m eval measure RUNS...`: recomputes the metrics of earlier results from their records, without a model.

Every summary.json below RUNS that another version of the metrics made (METRICS_VERSION) is replaced, with its
breakdown.jsonl. The new summary keeps its provenance and records under `remeasured` when and by which code it was
recomputed. The model card of a checkpoint beside it is written anew. The data folder is read only if the records alone
do not show which of them a summary used: if the folder holds more than its summary used, and for the half widths of a
BBQ evaluation that stopped early.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.cli.dispatch import JSON_HELP, CommandOutput
from eval.config import EvaluationConfig
from eval.data.readers import data_folder
from eval.errors import InputError
from eval.experiments import bbq
from eval.experiments.conditions import INVERSE
from eval.files import now, read_json
from eval.metrics.measure import Cell
from eval.metrics.sequential import Stop
from eval.metrics.summarise import summarise
from eval.metrics.version import METRICS_VERSION, version_of
from eval.models.target import Target
from eval.runner.keys import record_key
from eval.runner.plan import Plan, plan
from eval.runner.provenance import command, git_commit, versions
from eval.runner.store import Store
from eval.types import Record
from eval.views.model_card import write_card

log = logging.getLogger(__name__)


@dataclass
class MeasureConfig:
    """Options of `eval measure`."""

    runs: list[str] = field(
        default_factory=list, metadata={"help": "folders with results in them", "nargs": "+", "action": "extend"}
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "the data that was asked; default $SELFCORRECT_DATA or the small set"}
    )
    json: bool = field(default=False, metadata={"help": JSON_HELP})


def remeasure(config: MeasureConfig) -> CommandOutput:
    """Recomputes the outdated summaries below the folders.

    Returns:
        A line per folder, and {"measured": [folder], "current": [folder], "failed": {folder: why}}. A folder that
            cannot be recomputed does not stop the others; it is the command's error at the end.

    Raises:
        InputError: No folder is given, one is not there, or none holds a finished evaluation.
    """
    if not config.runs:
        raise InputError("no run folder is given; give folders of training runs or of `eval run`")
    result: dict[str, Any] = {"measured": [], "current": [], "failed": {}}
    paths: dict[Path, None] = {}
    for run in map(Path, config.runs):
        if not run.is_dir():
            raise InputError(f"run folder {run} is not there; give the folder of a training run or of `eval run`")
        paths |= dict.fromkeys(sorted(run.rglob("summary.json")))
    for path in paths:
        try:
            if state := _remeasured(Store(path.parent), config.data_dir):
                result[state].append(str(path.parent))
        except (InputError, OSError) as error:
            log.warning("%s", error)
            result["failed"][str(path.parent)] = str(error)
    if not any(result.values()):
        raise InputError(
            f"{', '.join(config.runs)}: no finished evaluation (no summary.json); give folders with results"
        )
    lines = [f"{folder}: recomputed from its records" for folder in result["measured"]]
    lines += [f"{folder}: up to date" for folder in result["current"]]
    if result["failed"]:
        first = next(iter(result["failed"].values()))
        result["error"] = f"{len(result['failed'])} of {len(paths)} results could not be recomputed, the first: {first}"
    return "\n".join(lines), result


def _remeasured(store: Store, data_dir: str | None) -> str:
    """Replaces the summary if it is outdated, and the model card that shows it.

    Returns:
        'measured'; 'current' if it was up to date, or '' if the file is not an evaluation's.
    """
    summary = read_json(store.summary_path) or {}
    if "metrics" not in summary:  # a training's samples have a summary too
        return ""
    with store.locked():
        if (before := version_of(summary)) == METRICS_VERSION:
            return "current"
        store.check_version(summary)
        earlier = EarlierResults(store, summary, data_dir)
        measured, fields = summarise(earlier.cells(), summary["evaluation"]["seed"], earlier.stops())
        about = {"from_version": before, "when": now(), "command": command(), "git_commit": git_commit()}
        store.write_measured(measured, summary | fields | {"remeasured": about | {"versions": versions()}})
    names = ("model", "adapter", "revision", "step", "step_name")
    target = Target(**{name: summary.get(name) for name in names}, folder=store.folder)  # pyright: ignore[reportArgumentType]
    if checkpoint := target.training_checkpoint:
        write_card(checkpoint, store.summary() or {})
    return "measured"


class EarlierResults:
    """The records that an outdated summary used, and where its evaluation stopped."""

    def __init__(self, store: Store, summary: dict[str, Any], data_dir: str | None) -> None:
        self.store = store
        self.summary = summary
        self.data_dir = data_dir

    @cached_property
    def plan(self) -> Plan:
        """The plan of the evaluation that wrote the summary.

        Raises:
            InputError: The data folder holds other data.
        """
        settings = {name: value for name, value in self.summary["evaluation"].items() if name != "stopping_rule"}
        inverse = INVERSE in settings["conditions"]
        planned = plan(EvaluationConfig(**settings, inverse=inverse, data_dir=self.data_dir))
        if planned.data["data_sha256"] != self.summary["data_sha256"]:
            raise InputError(
                f"{self.store.folder}: {data_folder(self.data_dir)} holds other data than was asked "
                f"({self.summary['data']}); give that folder as --data-dir"
            )
        return planned

    def cells(self) -> dict[Cell, list[Record]]:
        """Returns the records by experiment and condition, in the order of the file.

        Raises:
            InputError: The records that the summary used cannot be distinguished from others in the folder.
        """
        used = {(e, c): n for e, counts in self.summary["records"].items() for c, n in counts.items()}
        records: dict[Cell, list[Record]] = {cell: [] for cell in used}
        for record in self.store.read():
            cell = (record["experiment"], record["condition"])
            if cell in used and record["weight"] > 0:
                records[cell].append(record)
        for cell, n in used.items():
            if len(records[cell]) != n:
                keys = {q.key for q in self._questions(cell[0])}
                records[cell] = [r for r in records[cell] if record_key(r) in keys]
            if len(records[cell]) != n:
                raise InputError(
                    f"{self.store.folder}: {cell[0]}, {cell[1]}: the summary is of {n} records, and which of those in "
                    "records.jsonl is not known; evaluate again into another folder"
                )
        return records

    def _questions(self, experiment: str) -> list[Any]:
        """Returns an experiment's questions, up to where each of its jobs stopped."""
        ends = {(s["experiment"], s["reasoning"]): s["questions_asked"] for s in self.summary.get("stopping", [])}
        jobs = [job for job in self.plan.jobs if job.experiment == experiment]
        return [q for job in jobs for q in job.questions[: ends.get((job.experiment, job.reasoning))]]

    def stops(self) -> list[Stop]:
        """Returns where each job stopped early.

        BBQ's half widths are recomputed, since its headline metric has changed.
        """
        stops = [Stop(**stop) for stop in self.summary.get("stopping", [])]
        return [self._recomputed(stop) if stop.experiment == bbq.NAME else stop for stop in stops]

    def _recomputed(self, stop: Stop) -> Stop:
        records = {record_key(r): r for r in self.store.read() if r["experiment"] == stop.experiment}
        (job,) = (j for j in self.plan.jobs if (j.experiment, j.reasoning) == (stop.experiment, stop.reasoning))
        watch = job.watch(stop.precision)
        for chunk in job.chunks:
            if watch.stop.questions_asked == stop.questions_asked:
                break
            watch.look([records[q.key] for q in chunk])
        return watch.stop
