"""python -m reward COMMAND: rank answers with a reward model, and report how far it can be trusted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eval.cli.dispatch import CommandOutput, dispatch
from eval.errors import run_main

USAGE = """usage: python -m reward COMMAND [options] [--json]

commands
  score    --model FOLDER|HUB_ID --answers FILE [--output FILE]: rank the answers in a file
  report   RUN [RUN ...] [--output DIR]: the model card of the first, with figures; several make a learning curve
  probe    --model FOLDER|HUB_ID: does it prefer one group of people to another, all else being equal?

A reward model is trained by `accelerate launch -m reward.train`.
--json: one JSON object on stdout, everything else on stderr"""


def score(config: Any) -> CommandOutput:
    """Ranks the answers of a file."""
    from reward import rank

    result = rank.score(config)
    return rank.table(result), result


def report(config: Any) -> CommandOutput:
    """Writes the model card of a reward model."""
    from reward import card

    result = card.report(config)
    return card.table(result), result


def probe(config: Any) -> CommandOutput:
    """Measures the reward model's preferences between groups of people."""
    from reward import probe as probing

    result = probing.probe(config)
    return probing.table(result), result


def config_type(command: str) -> type:
    """The options class of a command, imported only when the command runs, so that every command starts quickly."""
    if command == "score":
        from reward.rank import ScoreConfig

        return ScoreConfig
    if command == "report":
        from reward.card import ReportConfig

        return ReportConfig
    from reward.probe import ProbeConfig

    return ProbeConfig


COMMANDS: dict[str, Callable[[Any], CommandOutput]] = {"score": score, "report": report, "probe": probe}
POSITIONAL = {"report": ("runs*",)}


def main() -> None:
    dispatch("reward", USAGE, COMMANDS, config_type, POSITIONAL)


if __name__ == "__main__":
    run_main(main)
