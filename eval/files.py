"""Writes JSON and text files atomically: a reader sees the old file or the new one, never a part."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eval.errors import InputError


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON, atomically. NaN and infinity raise ValueError."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def append_json(path: Path, value: Any) -> None:
    """Appends one line of JSON to a file. NaN and infinity raise ValueError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as out:
        out.write(json.dumps(value, allow_nan=False) + "\n")


def read_json(path: Path, remedy: str = "remove it or its folder") -> dict[str, Any] | None:
    """Reads a JSON object.

    Args:
        path: the file.
        remedy: what the user can do about a damaged file; it ends the error message.

    Returns:
        The object, or None if there is no file.

    Raises:
        InputError: the file is damaged or holds no JSON object.
    """
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged (no JSON object); {remedy}")
    return value


def prepare_output(folder: Path, needed_mib: int = 16) -> None:
    """Creates the output folder and checks, before any work, that it is writable and has free space.

    Raises:
        InputError: the folder cannot be created or written, or has fewer than `needed_mib` MiB free.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".write-test-") as probe:
            probe.write(b"x" * 4096)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise InputError(
            f"output folder {folder} cannot be written ({error.strerror}); choose another folder"
        ) from error
    free_mib = shutil.disk_usage(folder).free // 2**20
    if free_mib < needed_mib:
        raise InputError(
            f"output folder {folder} has {free_mib} MiB free and the run needs about {needed_mib}; "
            "free some space or choose another folder"
        )


def now() -> str:
    """The current time in UTC as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
