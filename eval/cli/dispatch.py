"""A command line of several commands, `python -m PACKAGE COMMAND [options] [--json]`: eval's and reward's."""

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
Told = tuple[str, dict[str, Any]]
"""What a command prints: a text for the terminal, and the object for --json; with a text at "error" in the object, the
command has done what could be done and ends with that line and status 2."""


def dispatch(
    package: str,
    usage: str,
    commands: Mapping[str, Callable[[Any], Told]],
    config_type: Callable[[str], type],
    positional: Mapping[str, tuple[str, ...]],
) -> None:
    """Runs the command that sys.argv names, with the options of the dataclass `config_type(command)`.

    A command may be of two words ("data fetch"). positional: the options whose names may be left out (see `named`).
    Raises InputError for an unknown command or option, and whatever the command raises.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    asked = sys.argv[1:]
    groups = {c.partition(" ")[0] for c in commands if " " in c}
    grouped = bool(asked) and asked[0] in groups
    if not asked or asked[0] in ("-h", "--help") or (grouped and asked[1:] in (["-h"], ["--help"])):
        print(usage)
        return
    words = 2 if grouped else 1
    command, argv = " ".join(asked[:words]), asked[words:]
    if command not in commands:
        raise InputError(f"{package}: unknown command '{command}'{nearest(command, list(commands))}")
    argv = named(argv, positional.get(command, ()))
    (config,) = parse([config_type(command)], argv, f"{package} {command}")
    with redirect_stdout(sys.stderr) if config.json else redirect_stdout(sys.stdout):
        text, told = commands[command](config)
    print(json.dumps(told, allow_nan=False) if config.json else text, flush=True)
    if told.get("error"):
        raise InputError(told["error"])


def named(argv: list[str], names: tuple[str, ...]) -> list[str]:
    """Folders may stand without their option (--run_folder; --a, --b), before or after the options.

    A last name with '*' takes every folder that is left; its field has the action "extend".
    """
    found, left = [], list(names)
    for i, word in enumerate(argv):
        takes_value = i > 0 and argv[i - 1].startswith("-") and "=" not in argv[i - 1] and argv[i - 1] != "--json"
        if left and not word.startswith("-") and not takes_value:
            found.append(f"--{left[0].removesuffix('*')}")
            if not left[0].endswith("*"):
                left.pop(0)
        found.append(word)
    return found
