"""python -m eval COMMAND: measure a checkpoint and tell what was measured."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from eval.cli.dispatch import JSON_HELP, Told, dispatch
from eval.errors import run_main
from eval.runner.processes import one_voice

USAGE = """usage: python -m eval COMMAND [options] [--json]

commands
  run      evaluate checkpoints: --model HUB_ID|FOLDER|GGUF_FILE [--adapter PATH] (python -m eval run --help)
  watch    OUTPUT_DIR [--device cuda:1]: a training's checkpoints, each evaluated when it is complete (--help)
  measure  RUNS...: recompute the metrics of earlier results from their records, without a model
  list     [FOLDER]: every results folder below it (default: runs), how far it is, its primary metrics
  compare  A B [--metric all]: two results folders on the items that both have; what differs in where they come from
  report   RUNS... [-o DIR]: one page, report.html, that stands alone: bias against RLHF step and size, with everything
           that a reader may ask for
  figures  RUNS... [-o DIR]: the paper's Figures 1 to 8 of these runs, as SVG, PDF and PNG
  emergence RUNS...: from which size, and which step, the instruction reduces bias, with intervals
  publish  RUNS... [--project P] [--entity E]: send results to Weights & Biases (offline unless logged in)
  dashboard [RUNS...] [--project P] [--entity E] [-o DIR]: a workspace and a report on Weights & Biases, of what was
           published there
  live     RUNS... [--follow] [--show]: a local trackio dashboard, without an account (needs trackio)
  score    --predictions FILE [--answer-key FIELD]: BBQ's scores of answers produced anywhere
  oracle   [--trials N] [--emergence]: do the metrics find what is planted, and do their intervals hold it?
  data     fetch | verify | list [--data-dir FOLDER]: the public data, checked by its checksums

--json: one JSON object on stdout, everything else on stderr"""


@dataclass
class ListConfig:
    """`eval list`."""

    run_folder: str = field(default="runs", metadata={"help": "folder that is searched for results folders"})
    json: bool = field(default=False, metadata={"help": JSON_HELP})


def run(config: Any) -> Told:
    """Evaluates one checkpoint into --output, or several into its subfolders."""
    from eval.commands import run as running

    return running.run(config)


def watch(config: Any) -> Told:
    """Evaluates the checkpoints of a training that is running, or has run, in another process."""
    from eval.commands import watch as watching

    return watching.watch(config)


def measure(config: Any) -> Told:
    """Recomputes the metrics of earlier results."""
    from eval.commands import measure as measuring

    return measuring.remeasure(config)


def list_command(config: ListConfig) -> Told:
    """The results folders below a folder."""
    from eval.commands import list as listing

    folder = Path(config.run_folder)
    listed = listing.list_results(folder)
    return listing.text(listed, folder), listed


def compare(config: Any) -> Told:
    """Two results folders on what both have."""
    from eval.commands import compare as comparing

    compared = comparing.compare(config)
    return comparing.text(compared), compared


def report(config: Any) -> Told:
    """The table and the path of the page."""
    from eval.views.emergence import emergence
    from eval.views.page import report as reporting

    return reporting.report(config, emergence.default_thresholds)


def figures(config: Any) -> Told:
    """The paths of the figures, and what they lack."""
    from eval.views.figures import figures as drawing

    return drawing.figures(config)


def emergence(config: Any) -> Told:
    """Where along size and step the instruction begins to reduce bias."""
    from eval.views.emergence import emergence as emerging

    return emerging.emergence(config)


def publish(config: Any) -> Told:
    """Sends what was not sent yet."""
    from eval.tracking import publish as publishing

    return publishing.publish(config)


def dashboard(config: Any) -> Told:
    """Where the workspace and the report are."""
    from eval.tracking import dashboard as showing

    return showing.dashboard(config)


def live(config: Any) -> Told:
    """Brings a local trackio project up to date."""
    from eval.tracking import trackio_mirror as showing

    return showing.live(config)


def score(config: Any) -> Told:
    """BBQ's scores of a file of answers."""
    from eval.commands import score as scoring

    result = scoring.score(config)
    return scoring.table(result), result


def oracle(config: Any) -> Told:
    """Coverage of the planted values; with --precision, of the value over all questions where asking stopped early;
    with --emergence, of planted thresholds.
    """
    from eval.validation import coverage, early_stops, emergence_coverage

    chosen = coverage.coverage, coverage.table
    if config.precision is not None:
        chosen = early_stops.early_stops, early_stops.table
    if config.emergence:
        chosen = emergence_coverage.emergence_coverage, emergence_coverage.table
    result = chosen[0](config)
    return chosen[1](result), result


def data_fetch(config: Any) -> Told:
    """Fetches what is missing or wrong of the public data."""
    from eval.data import fetch

    result = fetch.fetch(config)
    return fetch.summary(result), result


def data_verify(config: Any) -> Told:
    """The state of every public file in the data folder."""
    from eval.data import catalog as public_data

    result = public_data.verify(config)
    return public_data.table(result), result


def data_list(config: Any) -> Told:
    """The same, where nothing need be there."""
    from eval.data import catalog as public_data

    result = public_data.inventory(config)
    return public_data.table(result), result


def config_type(command: str) -> type:
    """The options of a command; imported only when it is called, so that each starts quickly."""
    if command == "watch":
        from eval.commands.watch import config_type as of_watch

        return of_watch()
    if command == "score":
        from eval.commands.score import ScoreConfig

        return ScoreConfig
    if command == "oracle":
        from eval.validation.coverage import OracleConfig

        return OracleConfig
    if command == "compare":
        from eval.commands.compare import CompareConfig

        return CompareConfig
    if command == "data fetch":
        from eval.data.fetch import FetchConfig

        return FetchConfig
    if command.startswith("data "):
        from eval.data.catalog import DataConfig

        return DataConfig
    if command == "measure":
        from eval.commands.measure import MeasureConfig

        return MeasureConfig
    if command == "run":
        from eval.commands.run_config import RunConfig

        return RunConfig
    if command in VIEWS:
        module, name = VIEWS[command]
        return getattr(import_module(module), name)
    return {"list": ListConfig}[command]


COMMANDS: dict[str, Callable[[Any], Told]] = {
    "run": run, "watch": watch, "measure": measure, "list": list_command, "compare": compare, "report": report,
    "figures": figures, "emergence": emergence, "publish": publish, "dashboard": dashboard, "live": live,
    "score": score, "oracle": oracle, "data fetch": data_fetch, "data verify": data_verify, "data list": data_list,
}  # fmt: skip
POSITIONAL = {
    "watch": ("output_dir",), "measure": ("runs*",), "list": ("run_folder",), "compare": ("a", "b"),
    "report": ("runs*",), "figures": ("runs*",), "emergence": ("runs*",), "publish": ("runs*",),
    "dashboard": ("runs*",), "live": ("runs*",),
}  # fmt: skip
VIEWS = {
    "report": ("eval.views.page.report", "ReportConfig"), "figures": ("eval.views.figures.figures", "FiguresConfig"),
    "emergence": ("eval.views.emergence.emergence", "EmergenceConfig"),
    "publish": ("eval.tracking.publish", "PublishConfig"),
    "dashboard": ("eval.tracking.dashboard", "DashboardConfig"), "live": ("eval.tracking.trackio_mirror", "LiveConfig"),
}  # fmt: skip
"""The options of the commands that show results: module, and class."""


def main() -> None:
    with one_voice(sys.argv[1] if len(sys.argv) > 1 else ""):
        dispatch("eval", USAGE, COMMANDS, config_type, POSITIONAL)


if __name__ == "__main__":
    run_main(main)
