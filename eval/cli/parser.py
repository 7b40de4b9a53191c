"""Parses options from a YAML file and the command line into dataclasses.

Precedence: command line, then the YAML file of --config, then the default. An unknown key in any of them is an error
that names the nearest known one. (TRL's and transformers' own parsers ignore some unknown keys and do not check the
types of lists from YAML. Here YAML values go through the same parser as the command line.)

A file with a `sizes` mapping holds several sizes of one run. The settings at its top apply to all sizes; those below
`sizes` apply to one size and take precedence. --size NAME chooses the size (configs/ladders/).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import yaml

from eval.errors import InputError, nearest
from eval.secrets import hide_arguments


def parse(types: Sequence[type], argv: Sequence[str], prog: str) -> tuple[Any, ...]:
    """Parses arguments into dataclasses.

    Removes the secrets from this process's own command line, since trackers record it.

    Args:
        types: the dataclasses.
        argv: arguments, with an optional --config FILE of YAML, and --size NAME if that file has sizes.
        prog: program and command, for error messages.

    Returns:
        One instance of each dataclass.

    Raises:
        InputError: an unknown key, a value of the wrong type, a missing required one, or a value that the dataclass
            refuses (ValueError in its __post_init__).
    """
    from transformers import HfArgumentParser

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise InputError(f"{prog}: {message}")

    parser: Any = Parser(
        list(types),  # pyright: ignore[reportArgumentType]
        prog=prog,
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="YAML file with values for the options below; the command line wins")
    parser.add_argument("--size", help="which size, where the YAML file holds several (configs/ladders/)")
    known = [f.name for t in types for f in fields(t) if f.init]
    hide_arguments()
    argv, config = _take_option(list(argv), "--config", "the path of a YAML file", prog)
    argv, size = _take_option(argv, "--size", "the name of a size in the YAML file", prog)
    if size is not None and config is None:
        raise InputError(f"{prog}: --size {size} chooses among the sizes of a YAML file; add --config FILE")
    _check_flags(argv, known, prog)
    given = {_option_name(argument) for argument in argv if argument.startswith("--")}
    argv = (yaml_arguments(Path(config), size, known, given) if config else []) + argv
    try:
        # the __post_init__ of TRL's own options raises ValueError
        *values, rest = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, TypeError, ImportError) as error:  # ImportError: for a package that an option needs
        raise InputError(f"{prog}: {error}") from error
    if rest:
        raise InputError(f"{prog}: cannot read '{rest[0]}' on the command line; options are written --name value")
    return tuple(values[: len(types)])


def _take_option(argv: list[str], option: str, what: str, prog: str) -> tuple[list[str], str | None]:
    """Removes `option VALUE` or `option=VALUE` from argv.

    Returns:
        (the remaining arguments, VALUE or None if the option is absent).
    """
    taken, rest, i = None, [], 0
    while i < len(argv):
        name, _, value = argv[i].partition("=")
        if name != option:
            rest.append(argv[i])
        elif taken is not None:
            raise InputError(f"{prog}: {option} is given twice; give one")
        else:
            if not value:
                i += 1
                if i == len(argv):
                    raise InputError(f"{prog}: {option} needs {what}")
                value = argv[i]
            taken = value
        i += 1
    return rest, taken


def _check_flags(argv: list[str], known: list[str], prog: str) -> None:
    for argument in argv:
        if argument.startswith("--"):
            name = _option_name(argument)
            if name not in known and name.removeprefix("no_") not in known and name != "help":
                raise InputError(f"{prog}: unknown option --{argument[2:].partition('=')[0]}{nearest(name, known)}")


def _option_name(argument: str) -> str:
    """The option's key as a field name: '--batch-tokens=64' -> 'batch_tokens'."""
    return argument[2:].partition("=")[0].replace("-", "_")


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping.

    Raises:
        InputError: the file is missing, not YAML, or holds no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"config file {path}: {error.strerror}; give the path of a YAML file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"config file {path} is not valid YAML: {error}") from error
    except yaml.YAMLError as error:  # str(error) quotes the line, which may hold a secret
        problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise InputError(f"config file {path} is not valid YAML{where}: {problem or 'it cannot be read'}") from error
    if not isinstance(values, dict):
        raise InputError(f"config file {path} must hold a mapping of keys to values")
    return values


def check_seed(seed: int) -> None:
    """Raises InputError for a negative seed, which random generators refuse."""
    if seed < 0:
        raise InputError(f"seed must be at least 0, not {seed}")


def split_commas(values: list[str]) -> list[str]:
    """Splits each value at commas and removes duplicates: ['a,b', 'a'] -> ['a', 'b']."""
    return list(dict.fromkeys(part.strip() for v in values for part in v.split(",") if part.strip()))


SIZES = "sizes"


def yaml_arguments(path: Path, size: str | None, known: Sequence[str], given: set[str]) -> list[str]:
    """A YAML file's settings as command-line arguments, so that the same parser checks them.

    Args:
        path: the YAML file.
        size: the size to use, if the file has sizes.
        known: all allowed keys.
        given: keys that the command line sets; they are left out.

    Raises:
        InputError: an unknown key anywhere in the file, a key without a value, or a size that is missing, unknown, or
            requested of a file without sizes.
    """
    arguments = []
    for key, value in _settings_of_size(path, read_yaml(path), size, known).items():
        if key in given:
            continue
        if isinstance(value, list):
            arguments += [f"--{key}", *(json.dumps(v) if isinstance(v, dict | list) else _yaml_text(v) for v in value)]
        else:
            arguments.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else _yaml_text(value)}")
    return arguments


def _settings_of_size(path: Path, values: dict[str, Any], size: str | None, known: Sequence[str]) -> dict[str, Any]:
    """The settings of one size, merged with the shared ones. Checks the keys of all sizes."""
    if SIZES in known or SIZES not in values:
        if size is not None:
            raise InputError(f"{path} has no sizes; leave --size out")
        _check_keys(path, values, known)
        return values
    sizes = values.pop(SIZES)
    if not isinstance(sizes, dict) or not sizes or not all(isinstance(settings, dict) for settings in sizes.values()):
        raise InputError(f"{path}: '{SIZES}' must hold a mapping of keys to values for each size")
    _check_keys(path, values, known)
    settings_of = {str(name): settings for name, settings in sizes.items()}
    for name, settings in settings_of.items():
        _check_keys(path, settings, known, f" in size {name}")
    names = ", ".join(settings_of)
    if size is None:
        raise InputError(f"{path} holds several sizes; add --size with one of: {names}")
    if size not in settings_of:
        raise InputError(f"{path} has no size {size}; its sizes: {names}")
    return values | settings_of[size]


def _check_keys(path: Path, values: dict[str, Any], known: Sequence[str], where: str = "") -> None:
    for key, value in values.items():
        if key not in known:
            raise InputError(f"{path}: unknown key '{key}'{where}{nearest(str(key), known)}")
        if value is None:
            raise InputError(f"{path}: '{key}'{where} has no value; give one or leave the line out")


def _yaml_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
