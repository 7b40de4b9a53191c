"""python -m eval run | report | publish: measure a checkpoint, draw what was measured, send it to Weights & Biases."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from eval.config import InputError, RunConfig, nearest, parse, prepare_output, run_main

USAGE = """usage: python -m eval COMMAND [options]

commands
  run      evaluate a checkpoint: --model PATH_OR_HUB_ID [--adapter PATH] (python -m eval run --help)
  report   RUN_FOLDER [--output DIR]: table, figures and report.html from the results in it
  publish  RUN_FOLDER: send its results to Weights & Biases (offline unless logged in)"""


def run(argv: list[str]) -> None:
    """Evaluates one checkpoint into --output and prints its table."""
    (config,) = parse([RunConfig], argv, "eval run")
    output = Path(config.output or Path("runs") / "eval" / Path(config.model).name)
    prepare_output(output)
    from eval.evaluate import evaluate, plan

    planned = plan(config)
    from eval.checkpoints import load_checkpoint
    from eval.report import text_table
    from eval.scorers.transformers import TransformersScorer

    checkpoint = load_checkpoint(
        config.model, config.adapter, config.revision, config.dtype, config.device, config.adapter_base_differs
    )
    scorer = TransformersScorer(
        checkpoint.model, checkpoint.tokenizer, config.format, config.batch_tokens, config.sample_batch
    )
    metrics = evaluate(scorer, config, output, checkpoint.provenance, config.step, planned)
    print(text_table([(config.step, vars(m)) for m in metrics if m.category == "all"]))
    print(f"records and summary: {output}")


def report(argv: list[str]) -> None:
    """Prints the table and the paths of the figures and the page."""
    from eval.report import build_report

    parser = _Parser(prog="eval report", allow_abbrev=False)
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args(argv)
    table, paths = build_report(arguments.run_folder, arguments.output)
    print(table)
    for path in paths:
        print(path)


def publish(argv: list[str]) -> None:
    """Sends what was not sent yet."""
    parser = _Parser(prog="eval publish", allow_abbrev=False)
    parser.add_argument("run_folder", type=Path)
    arguments = parser.parse_args(argv)
    from eval import tracking

    written = tracking.publish(arguments.run_folder)
    print(f"{len(written)} runs written ({tracking.mode()}): {', '.join(written) or 'nothing new'}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise InputError(f"{self.prog}: {message}")


COMMANDS = {"run": run, "report": report, "publish": publish}


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(USAGE)
        return
    if sys.argv[1] not in COMMANDS:
        raise InputError(f"eval: unknown command '{sys.argv[1]}'{nearest(sys.argv[1], list(COMMANDS))}")
    COMMANDS[sys.argv[1]](sys.argv[2:])


if __name__ == "__main__":
    run_main(main)
