"""Dispatches `python -m PACKAGE COMMAND [options] [--json]` to its command. eval and reward use it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import Any

from eval.cli.parser import parse
from eval.errors import InputError, nearest

JSON_HELP = "one JSON object on stdout, everything else on stderr"
CommandOutput = tuple[str, dict[str, Any]]
"""A command's output: the text for the terminal, and the object for --json. A text at the object's key "error" means
that the command did what could be done; it then ends with that line and status 2.
"""


def dispatch(
    package: str,
    usage: str,
    commands: Mapping[str, Callable[[Any], CommandOutput]],
    config_type: Callable[[str], type],
    positional: Mapping[str, tuple[str, ...]],
) -> None:
    """Runs the command that sys.argv names and prints its output.

    Args:
        package: name of the package, for error messages.
        usage: help text, printed without a command or with --help.
        commands: {command: function}. A command may have two words ("data fetch").
        config_type: the dataclass of a command's options.
        positional: {command: options whose names may be left out} (see `name_positionals`).

    Raises:
        InputError: an unknown command or option, or an output with an "error". Errors of the command itself pass
            through.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    arguments = sys.argv[1:]
    groups = {c.partition(" ")[0] for c in commands if " " in c}
    grouped = bool(arguments) and arguments[0] in groups
    if not arguments or arguments[0] in ("-h", "--help") or (grouped and arguments[1:] in (["-h"], ["--help"])):
        print(usage)
        return
    words = 2 if grouped else 1
    command, argv = " ".join(arguments[:words]), arguments[words:]
    if command not in commands:
        raise InputError(f"{package}: unknown command '{command}'{nearest(command, list(commands))}")
    argv = name_positionals(argv, positional.get(command, ()))
    (config,) = parse([config_type(command)], argv, f"{package} {command}")
    with redirect_stdout(sys.stderr) if config.json else redirect_stdout(sys.stdout):
        text, result = commands[command](config)
    print(json.dumps(result, allow_nan=False) if config.json else text, flush=True)
    if result.get("error"):
        raise InputError(result["error"])


def name_positionals(argv: list[str], names: tuple[str, ...]) -> list[str]:
    """Adds option names to positional arguments, so that folders may stand without theirs (--run_folder; --a, --b).

    Args:
        argv: the arguments. Positional ones may stand before or after the options.
        names: the option names, in order. If the last one ends with '*', it takes every remaining positional argument;
            its field has the action "extend".
    """
    completed, remaining = [], list(names)
    for i, word in enumerate(argv):
        takes_value = i > 0 and argv[i - 1].startswith("-") and "=" not in argv[i - 1] and argv[i - 1] != "--json"
        if remaining and not word.startswith("-") and not takes_value:
            completed.append(f"--{remaining[0].removesuffix('*')}")
            if not remaining[0].endswith("*"):
                remaining.pop(0)
        completed.append(word)
    return completed
