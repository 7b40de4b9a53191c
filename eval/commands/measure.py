"""`python -m eval measure RUNS...`: recomputes the metrics of earlier results from their records; no model is asked.

Every summary.json below RUNS that another version of the metrics made (METRICS_VERSION) is replaced, with its
breakdown.jsonl. It keeps where its records come from, and says under `remeasured` when and by which code its numbers
were recomputed. The data folder is read only where the records alone do not say which of them a summary is of: where
the folder holds more than its summary used, and for the half widths of a BBQ evaluation that stopped early.
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
from eval.runner.keys import record_key
from eval.runner.plan import Plan, plan
from eval.runner.provenance import command, git_commit, versions
from eval.runner.store import Store
from eval.types import Record

log = logging.getLogger(__name__)


@dataclass
class MeasureConfig:
    """`eval measure`."""

    runs: list[str] = field(
        default_factory=list, metadata={"help": "folders with results in them", "nargs": "+", "action": "extend"}
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "the data that was asked; default $SELFCORRECT_DATA or the small set"}
    )
    json: bool = field(default=False, metadata={"help": JSON_HELP})


def remeasure(config: MeasureConfig) -> CommandOutput:
    """Recomputes what is outdated below the folders.

    Returns:
        A line per folder, and {"measured": [folder], "current": [folder], "failed": {folder: why}}. A folder that
        cannot be recomputed does not keep the others from it, and is the command's error in the end.

    Raises:
        InputError: no folder is given, one is not there, or none holds a finished evaluation.
    """
    if not config.runs:
        raise InputError("no run folder is given; give folders of training runs or of `eval run`")
    result: dict[str, Any] = {"measured": [], "current": [], "failed": {}}
    paths: dict[Path, None] = {}
    for run in map(Path, config.runs):
        if not run.is_dir():
            raise InputError(f"run folder {run} is not there; give the folder of a training run or of `eval run`")
        paths |= dict.fromkeys(path for path in sorted(run.rglob("summary.json")) if _is_evaluation(path))
    if not paths:
        raise InputError(
            f"{', '.join(config.runs)}: no finished evaluation (no summary.json); give folders with results"
        )
    for path in paths:
        try:
            done = "measured" if _remeasured(Store(path.parent), config.data_dir) else "current"
            result[done].append(str(path.parent))
        except InputError as error:
            log.warning("%s", error)
            result["failed"][str(path.parent)] = str(error)
    lines = [f"{folder}: recomputed from its records" for folder in result["measured"]]
    lines += [f"{folder}: up to date" for folder in result["current"]]
    if result["failed"]:
        first = next(iter(result["failed"].values()))
        result["error"] = f"{len(result['failed'])} of {len(paths)} results could not be recomputed, the first: {first}"
    return "\n".join(lines), result


def _is_evaluation(path: Path) -> bool:
    return "metrics" in (read_json(path) or {})


def _remeasured(store: Store, data_dir: str | None) -> bool:
    """Replaces an outdated summary; whether there was something to replace."""
    with store.locked():
        summary = read_json(store.summary_path) or {}
        if (before := version_of(summary)) == METRICS_VERSION:
            return False
        store.check_version(summary)
        earlier = Earlier(store, summary, data_dir)
        measured, fields = summarise(earlier.cells(), summary["evaluation"]["seed"], earlier.stops())
        about = {"from_version": before, "when": now(), "command": command(), "git_commit": git_commit()}
        store.write_measured(measured, summary | fields | {"remeasured": about | {"versions": versions()}})
        return True


class Earlier:
    """The records that an outdated summary is of, and where its evaluation stopped."""

    def __init__(self, store: Store, summary: dict[str, Any], data_dir: str | None) -> None:
        self.store = store
        self.summary = summary
        self.data_dir = data_dir

    @cached_property
    def plan(self) -> Plan:
        """What was asked. Raises InputError where the data folder holds other data."""
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
        """The records by experiment and condition, in the order of the file.

        Raises InputError where those that the summary used cannot be told from others in the folder.
        """
        used = {(e, c): n for e, counts in self.summary["records"].items() for c, n in counts.items()}
        found: dict[Cell, list[Record]] = {cell: [] for cell in used}
        for record in self.store.read():
            cell = (record["experiment"], record["condition"])
            if cell in used and record["weight"] > 0:
                found[cell].append(record)
        for cell, n in used.items():
            if len(found[cell]) != n:
                keys = {q.key for q in self._asked(cell[0])}
                found[cell] = [r for r in found[cell] if record_key(r) in keys]
            if len(found[cell]) != n:
                raise InputError(
                    f"{self.store.folder}: {cell[0]}, {cell[1]}: the summary is of {n} records, and which of those in "
                    "records.jsonl is not known; evaluate again into another folder"
                )
        return found

    def _asked(self, experiment: str) -> list[Any]:
        """The questions of an experiment, up to where each of its jobs stopped."""
        ends = {(s["experiment"], s["reasoning"]): s["questions_asked"] for s in self.summary.get("stopping", [])}
        jobs = [job for job in self.plan.jobs if job.experiment == experiment]
        return [q for job in jobs for q in job.questions[: ends.get((job.experiment, job.reasoning))]]

    def stops(self) -> list[Stop]:
        """Where asking stopped, BBQ's half widths recomputed: its headline metric is another number now."""
        found = [Stop(**stop) for stop in self.summary.get("stopping", [])]
        return [self._watched_again(stop) if stop.experiment == bbq.NAME else stop for stop in found]

    def _watched_again(self, stop: Stop) -> Stop:
        records = {record_key(r): r for r in self.store.read() if r["experiment"] == stop.experiment}
        (job,) = (j for j in self.plan.jobs if (j.experiment, j.reasoning) == (stop.experiment, stop.reasoning))
        watch = job.watch(stop.precision)
        for chunk in job.chunks:
            if watch.stop.questions_asked == stop.questions_asked:
                break
            watch.look([records[q.key] for q in chunk])
        return watch.stop
