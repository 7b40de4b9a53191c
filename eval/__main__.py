"""python -m eval COMMAND: measure a checkpoint and tell what was measured."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.commands import JSON_HELP, Told, dispatch
from eval.config import InputError, run_main
from eval.processes import one_voice

USAGE = """usage: python -m eval COMMAND [options] [--json]

commands
  run      evaluate checkpoints: --model HUB_ID|FOLDER|GGUF_FILE [--adapter PATH] (python -m eval run --help)
  watch    OUTPUT_DIR [--device cuda:1]: a training's checkpoints, each evaluated when it is complete (--help)
  list     [FOLDER]: every results folder below it (default: runs), how far it is, its primary metrics
  compare  A B [--metric all]: two results folders on the items that both have; what differs in where they come from
  report   RUN_FOLDER [--output DIR]: table, figures and report.html from the results in it
  publish  RUN_FOLDER: send its results to Weights & Biases (offline unless logged in)
  score    --predictions FILE [--answer-key FIELD]: BBQ's scores of answers produced anywhere
  oracle   [--trials N]: do the metrics find what is planted, and do their intervals hold it?
  data     fetch | verify | list [--data-dir FOLDER]: the public data, checked by its checksums

--json: one JSON object on stdout, everything else on stderr"""


@dataclass
class FolderConfig:
    """`eval publish`."""

    run_folder: str = field(default="", metadata={"help": "folder of a training run or of `eval run`"})
    json: bool = field(default=False, metadata={"help": JSON_HELP})

    def __post_init__(self) -> None:
        if not self.run_folder:
            raise InputError("the run folder is missing; give the folder of a training run or of `eval run`")


@dataclass
class ReportConfig(FolderConfig):
    """`eval report`."""

    output: str | None = field(default=None, metadata={"help": "folder of the report; default RUN_FOLDER/report"})


@dataclass
class ListConfig:
    """`eval list`."""

    run_folder: str = field(default="runs", metadata={"help": "folder that is searched for results folders"})
    json: bool = field(default=False, metadata={"help": JSON_HELP})


def run(config: Any) -> Told:
    """Evaluates one checkpoint into --output, or several into its subfolders."""
    from eval import run as running

    return running.run(config)


def watch(config: Any) -> Told:
    """Evaluates the checkpoints of a training that is running, or has run, in another process."""
    from eval import watch as watching

    return watching.watch(config)


def list_command(config: ListConfig) -> Told:
    """The results folders below a folder."""
    from eval import listing

    folder = Path(config.run_folder)
    listed = listing.list_results(folder)
    return listing.text(listed, folder), listed


def compare(config: Any) -> Told:
    """Two results folders on what both have."""
    from eval import compare as comparing

    compared = comparing.compare(config)
    return comparing.text(compared), compared


def report(config: ReportConfig) -> Told:
    """The table and the paths of the figures and the page."""
    from eval.curves import find_summaries
    from eval.report import build_report

    folder = Path(config.run_folder)
    table, paths = build_report(folder, Path(config.output) if config.output else None)
    told = {"checkpoints": find_summaries(folder), "files": [str(p) for p in paths]}
    return "\n".join([table, *told["files"]]), told


def publish(config: FolderConfig) -> Told:
    """Sends what was not sent yet."""
    from eval import tracking

    written, mode = tracking.publish(Path(config.run_folder)), tracking.mode()
    told = f"{len(written)} runs written ({mode}): {', '.join(written) or 'nothing new'}"
    return told, {"mode": mode, "written": written}


def score(config: Any) -> Told:
    """BBQ's scores of a file of answers."""
    from eval import score as scoring

    result = scoring.score(config)
    return scoring.table(result), result


def oracle(config: Any) -> Told:
    """Coverage of the planted values; with --precision, of the value over all questions where asking stopped early."""
    from eval import coverage, early_stops

    chosen = coverage.coverage, coverage.table
    if config.precision is not None:
        chosen = early_stops.early_stops, early_stops.table
    result = chosen[0](config)
    return chosen[1](result), result


def data_fetch(config: Any) -> Told:
    """Fetches what is missing or wrong of the public data."""
    from eval import fetch

    result = fetch.fetch(config)
    return fetch.summary(result), result


def data_verify(config: Any) -> Told:
    """The state of every public file in the data folder."""
    from eval import public_data

    result = public_data.verify(config)
    return public_data.table(result), result


def data_list(config: Any) -> Told:
    """The same, where nothing need be there."""
    from eval import public_data

    result = public_data.inventory(config)
    return public_data.table(result), result


def config_type(command: str) -> type:
    """The options of a command; imported only when it is called, so that each starts quickly."""
    if command == "watch":
        from eval.watch import config_type as of_watch

        return of_watch()
    if command == "score":
        from eval.score import ScoreConfig

        return ScoreConfig
    if command == "oracle":
        from eval.coverage import OracleConfig

        return OracleConfig
    if command == "compare":
        from eval.compare import CompareConfig

        return CompareConfig
    if command == "data fetch":
        from eval.fetch import FetchConfig

        return FetchConfig
    if command.startswith("data "):
        from eval.public_data import DataConfig

        return DataConfig
    if command == "run":
        from eval.run_config import RunConfig

        return RunConfig
    return {"list": ListConfig, "report": ReportConfig, "publish": FolderConfig}[command]


COMMANDS: dict[str, Callable[[Any], Told]] = {
    "run": run, "watch": watch, "list": list_command, "compare": compare, "report": report, "publish": publish,
    "score": score, "oracle": oracle, "data fetch": data_fetch, "data verify": data_verify, "data list": data_list,
}  # fmt: skip
POSITIONAL = {
    "watch": ("output_dir",), "list": ("run_folder",), "compare": ("a", "b"), "report": ("run_folder",),
    "publish": ("run_folder",),
}  # fmt: skip


def main() -> None:
    with one_voice(sys.argv[1] if len(sys.argv) > 1 else ""):
        dispatch("eval", USAGE, COMMANDS, config_type, POSITIONAL)


if __name__ == "__main__":
    run_main(main)
