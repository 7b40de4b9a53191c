"""python -m eval COMMAND: evaluates checkpoints and shows the results."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from eval.cli.dispatch import JSON_HELP, CommandOutput, dispatch
from eval.errors import run_main
from eval.runner.processes import report_as_one

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
    """Options of `eval list`."""

    run_folder: str = field(default="runs", metadata={"help": "folder that is searched for results folders"})
    json: bool = field(default=False, metadata={"help": JSON_HELP})


def run(config: Any) -> CommandOutput:
    """Evaluates one checkpoint into --output, or several into its subfolders."""
    from eval.commands import run as running

    return running.run(config)


def watch(config: Any) -> CommandOutput:
    """Evaluates the checkpoints of a training in another process, while it runs or afterwards."""
    from eval.commands import watch as watching

    return watching.watch(config)


def measure(config: Any) -> CommandOutput:
    """Recomputes the metrics of earlier results."""
    from eval.commands import measure as measuring

    return measuring.remeasure(config)


def list_command(config: ListConfig) -> CommandOutput:
    """Lists the results folders below a folder."""
    from eval.commands import list as listing

    folder = Path(config.run_folder)
    listed = listing.list_results(folder)
    return listing.text(listed, folder), listed


def compare(config: Any) -> CommandOutput:
    """Compares two results folders on the items that both have."""
    from eval.commands import compare as comparing

    compared = comparing.compare(config)
    return comparing.text(compared), compared


def report(config: Any) -> CommandOutput:
    """Writes the page. Returns the table and the page's path."""
    from eval.views.emergence import emergence
    from eval.views.page import report as reporting

    return reporting.report(config, emergence.default_thresholds)


def figures(config: Any) -> CommandOutput:
    """Draws the figures. Returns their paths and what is missing in them."""
    from eval.views.figures import figures as drawing

    return drawing.figures(config)


def emergence(config: Any) -> CommandOutput:
    """Estimates at which size and step the instruction begins to reduce bias."""
    from eval.views.emergence import emergence as emerging

    return emerging.emergence(config)


def publish(config: Any) -> CommandOutput:
    """Sends the results that are not on Weights & Biases yet."""
    from eval.tracking import publish as publishing

    return publishing.publish(config)


def dashboard(config: Any) -> CommandOutput:
    """Makes the workspace and the report on Weights & Biases, and returns where they are."""
    from eval.tracking import dashboard as showing

    return showing.dashboard(config)


def live(config: Any) -> CommandOutput:
    """Brings a local trackio project up to date."""
    from eval.tracking import trackio_mirror as showing

    return showing.live(config)


def score(config: Any) -> CommandOutput:
    """Computes BBQ's scores of a file of answers."""
    from eval.commands import score as scoring

    result = scoring.score(config)
    return scoring.table(result), result


def oracle(config: Any) -> CommandOutput:
    """Measures the coverage of planted values.

    With --precision the value to cover is that over all questions, where evaluation stopped early. With --emergence it
    is a planted threshold.
    """
    from eval.validation import coverage, early_stops, emergence_coverage

    chosen = coverage.coverage, coverage.table
    if config.precision is not None:
        chosen = early_stops.early_stops, early_stops.table
    if config.emergence:
        chosen = emergence_coverage.emergence_coverage, emergence_coverage.table
    result = chosen[0](config)
    return chosen[1](result), result


def data_fetch(config: Any) -> CommandOutput:
    """Fetches the public data that are missing or wrong."""
    from eval.data import fetch

    result = fetch.fetch(config)
    return fetch.summary(result), result


def data_verify(config: Any) -> CommandOutput:
    """Checks every public file in the data folder."""
    from eval.data import catalog as public_data

    result = public_data.verify(config)
    return public_data.table(result), result


def data_list(config: Any) -> CommandOutput:
    """Lists the public files, whether or not they are there."""
    from eval.data import catalog as public_data

    result = public_data.inventory(config)
    return public_data.table(result), result


def config_type(command: str) -> type:
    """Returns the class of a command's options, imported only now so that each command starts quickly."""
    if command == "watch":
        from eval.commands.watch import config_type as watch_config_type

        return watch_config_type()
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


COMMANDS: dict[str, Callable[[Any], CommandOutput]] = {
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
"""Commands that show results -> module and class of their options."""


def main() -> None:
    with report_as_one(sys.argv[1] if len(sys.argv) > 1 else ""):
        dispatch("eval", USAGE, COMMANDS, config_type, POSITIONAL)


if __name__ == "__main__":
    run_main(main)
