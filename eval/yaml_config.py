"""The YAML of --config as command-line arguments, and files that hold several sizes of one run.

A file with a `sizes` mapping has the settings that all sizes share at its top and, below `sizes`, each size's own,
which win over the shared ones; --size NAME says which one is meant (configs/ladders/).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.config import InputError, nearest, read_yaml

SIZES = "sizes"


def yaml_arguments(path: Path, size: str | None, known: Sequence[str], given: set[str]) -> list[str]:
    """A YAML mapping as command-line arguments, so that its values are checked in the same way; without those that
    are `given` on the command line.

    Raises InputError for a key that is not in `known`, wherever it stands, one without a value, and a size that is
    missing, unknown, or asked of a file without sizes.
    """
    arguments = []
    for key, value in _chosen(path, read_yaml(path), size, known).items():
        if key in given:
            continue
        if isinstance(value, list):
            arguments += [f"--{key}", *(json.dumps(v) if isinstance(v, dict | list) else _text(v) for v in value)]
        else:
            arguments.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else _text(value)}")
    return arguments


def _chosen(path: Path, values: dict[str, Any], size: str | None, known: Sequence[str]) -> dict[str, Any]:
    """The mapping of one size, all keys of all sizes being checked."""
    if SIZES in known or SIZES not in values:
        if size is not None:
            raise InputError(f"{path} has no sizes; leave --size out")
        _check(path, values, known)
        return values
    sizes = values.pop(SIZES)
    if not isinstance(sizes, dict) or not sizes or not all(isinstance(own, dict) for own in sizes.values()):
        raise InputError(f"{path}: '{SIZES}' must hold a mapping of keys to values for each size")
    _check(path, values, known)
    own_of = {str(name): own for name, own in sizes.items()}
    for name, own in own_of.items():
        _check(path, own, known, f" in size {name}")
    names = ", ".join(own_of)
    if size is None:
        raise InputError(f"{path} holds several sizes; add --size with one of: {names}")
    if size not in own_of:
        raise InputError(f"{path} has no size {size}; its sizes: {names}")
    return values | own_of[size]


def _check(path: Path, values: dict[str, Any], known: Sequence[str], where: str = "") -> None:
    for key, value in values.items():
        if key not in known:
            raise InputError(f"{path}: unknown key '{key}'{where}{nearest(str(key), known)}")
        if value is None:
            raise InputError(f"{path}: '{key}'{where} has no value; give one or leave the line out")


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
