"""Locates the data and reads it. Errors name the bad file and its line.

A data folder has bbq/*.jsonl, winogender/{templates,occupations-stats}.tsv and admissions/law_data.csv, and for
training preferences/*.jsonl[.gz], in the formats of the public sources. The small set in eval/data has the same layout,
so the same readers serve both.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.errors import InputError

FETCH = "python -m eval data fetch"
SMALL_SET = Path(__file__).parent
SMALL_SET_NOTE = (
    "Made with the small set of our own writing: for demonstration only, not comparable with published numbers."
)


def data_folder(data_dir: str | None) -> Path:
    """The data folder: --data-dir, else $SELFCORRECT_DATA, else the small set that comes with the project.

    Raises:
        InputError: the folder does not exist.
    """
    chosen = data_dir or os.environ.get("SELFCORRECT_DATA")
    if not chosen:
        return SMALL_SET
    folder = Path(chosen)
    if not folder.is_dir():
        raise InputError(
            f"data folder {folder} is not there; give --data-dir a folder with bbq/, winogender/, ..., or make it by "
            f"{fetch_command(folder)}"
        )
    return folder


def fetch_command(folder: Path) -> str:
    """The command that fetches the public data into `folder`, but never into the small set."""
    return FETCH if folder.resolve() == SMALL_SET.resolve() else f"{FETCH} --data-dir {shlex.quote(str(folder))}"


def data_name(folder: Path) -> str:
    """'small set' for the shipped data, else the folder's name."""
    return "small set" if folder.resolve() == SMALL_SET.resolve() else folder.resolve().name


def required(path: Path) -> Path:
    """Returns `path`, a file of a data folder (FOLDER/winogender/templates.tsv). InputError if it is missing."""
    command = fetch_command(path.parent.parent)
    return _present(path, f"get it by {command}, or give --data-dir a folder that has it")


def _present(path: Path, remedy: str = "give the path of a file that is there") -> Path:
    if not path.is_file():
        raise InputError(f"data file {path} is missing; {remedy}")
    return path


def read_jsonl(path: Path, keys: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads a JSONL file, which may be gzipped (.gz). Blank lines are skipped.

    Yields:
        ('file:line', object) for each line.

    Raises:
        InputError: a line is no object with all of `keys`, or the file cannot be read.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(_present(path), "rt", encoding="utf-8") as handle:
            for number, line in enumerate(handle, 1):
                if not line.strip():
                    continue
                where = f"{path}:{number}"
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise InputError(f"{where} is not valid JSON ({error.msg}); mend or remove the line") from error
                missing = [k for k in keys if not isinstance(row, dict) or k not in row]
                if missing:
                    raise InputError(f"{where} has no '{missing[0]}'; each line needs {', '.join(keys)}")
                yield where, row
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read after line {number} ({error}); fetch the file again") from error


def read_table(path: Path, columns: tuple[str, ...], delimiter: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Reads a CSV or TSV file with a header.

    Yields:
        ('file:line', row) for each line.

    Raises:
        InputError: a column is missing, a line is too short or has an empty cell, or the file cannot be read.
    """
    try:
        with _present(path).open(newline="", encoding="utf-8") as handle:
            reader = csv.DictReader(handle, delimiter=delimiter)
            absent = [c for c in columns if c not in (reader.fieldnames or [])]
            if absent:
                raise InputError(f"{path}:1 has no column '{absent[0]}'; it needs {', '.join(columns)}")
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if any(row[c] is None or row[c] == "" for c in columns):
                    raise InputError(f"{where} has fewer columns than the header; mend or remove the line")
                yield where, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); fetch the file again") from error


def number(text: str, where: str, column: str, low: float, high: float) -> float:
    """Converts `text` to a number within [low, high]. InputError, with `where` and `column`, if it is none."""
    try:
        value = float(text)
    except ValueError as error:
        raise InputError(f"{where}: {column} '{text}' is not a number") from error
    if not low <= value <= high:
        raise InputError(f"{where}: {column} {text} is outside {low:g} to {high:g}")
    return value


def sha256(paths: list[Path]) -> str:
    """One checksum over the names and contents of files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
