"""Reads preference data as rows with their places, from local files and folders and from data sets of the hub.

    data/pairs.jsonl, data/pairs.jsonl.gz, data/pairs.parquet, data/pairs.json, data/folder-of-these
    OWNER/NAME[:SUBSET][@SPLIT][#REVISION]      Anthropic/hh-rlhf:harmless-base@test

SUBSET is a configuration of the data set or, if it has none of that name, a folder in it (HH-RLHF). Rows of Parquet,
JSON and hub data are counted from 0, as in the hub's viewer; lines from 1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.data.readers import data_folder, fetch_command, read_jsonl, sha256
from eval.errors import InputError
from eval.models.hub import commit_of, explain_hub_error

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", ".json")
HUB_SOURCE = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(:(?P<subset>[\w./-]+))?(@(?P<split>[\w.-]+))?(#(?P<revision>[\w./-]+))?"
)
DEFAULT_SPLITS = {"HuggingFaceH4/ultrafeedback_binarized": "train_prefs"}
ALL_SUBSETS = {
    "Anthropic/hh-rlhf": ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"),
}
"""The subsets for an id without one. Each is read separately, so that every pair knows its subset."""


@dataclass(frozen=True)
class LocalFile:
    """A file of preference pairs."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def subset(self) -> str:
        return self.path.name.removesuffix(_suffix(self.path))

    def identity(self) -> str:
        """The file's name and the checksum of its content."""
        return f"{self.path.name} sha256:{sha256([self.path])}"

    def rows(self) -> Iterator[tuple[str, Any]]:
        """Yields (place, row). Raises InputError if the file cannot be read."""
        suffix = _suffix(self.path)
        if suffix == ".parquet":
            return _parquet(self.path)
        return _json(self.path) if suffix == ".json" else read_jsonl(self.path, ())


@dataclass(frozen=True)
class HubData:
    """A split of a data set of the hub, at one commit."""

    repo: str
    part: str | None
    split: str
    commit: str

    @property
    def name(self) -> str:
        return self.identity()

    @property
    def subset(self) -> str:
        return self.part or self.repo.rpartition("/")[2]

    def identity(self) -> str:
        """OWNER/NAME@COMMIT:SUBSET:SPLIT."""
        return f"{self.repo}@{self.commit}:{self.part or 'default'}:{self.split}"

    def rows(self) -> Iterator[tuple[str, Any]]:
        """Yields (place, row). Raises InputError if it cannot be fetched or has no such subset or split."""
        return hub_rows(self.repo, self.part, self.split, self.commit)


def parse_sources(preferences: list[str] | None, data_dir: str | None) -> list[LocalFile | HubData]:
    """The sources that --preferences names; None: the files in data_dir/preferences.

    Raises:
        InputError: a source does not exist, is of an unknown kind, or is named twice.
    """
    if preferences is None:
        return [LocalFile(path) for path in preference_files(data_dir)]
    if not preferences:
        raise InputError("preferences names no data; give files, folders or hub ids, or leave it out")
    sources = [source for text in preferences for source in _parse_source(text)]
    for i, source in enumerate(sources):
        if source in sources[:i]:
            raise InputError(f"preferences names {source.name} twice; name it once, or its pairs would count twice")
    return sources


def preference_files(data_dir: str | None) -> list[Path]:
    """The files in data_dir/preferences. Raises InputError if there is none."""
    folder = data_folder(data_dir) / "preferences"
    files = _files(folder)
    if not files:
        command = fetch_command(folder.parent)
        raise InputError(
            f"{folder} has no {_suffix_list()} with preference pairs; get some by {command} --only preferences"
        )
    return files


def _suffix_list() -> str:
    return ", ".join(f"*{s}" for s in SUFFIXES[:-1]) + f" or *{SUFFIXES[-1]}"


def _suffix(path: Path) -> str:
    return next((s for s in SUFFIXES if path.name.endswith(s)), "")


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*") if p.is_file() and _suffix(p))


def _parse_source(text: str) -> list[LocalFile | HubData]:
    path = Path(text)
    if path.is_dir():
        files = _files(path)
        if not files:
            raise InputError(
                f"preferences: the folder {text} has no {_suffix_list()}; give files, or a folder with some"
            )
        return [LocalFile(p) for p in files]
    if path.is_file() and not _suffix(path):
        raise InputError(f"preferences: {text} is no {_suffix_list()}; give the data in one of these forms")
    if path.is_file():
        return [LocalFile(path)]
    match = HUB_SOURCE.fullmatch(text)
    if _suffix(path) or text.startswith((".", "/", "~")) or match is None:
        raise InputError(
            f"preferences: {text} is not there; give a file or folder that is, or a hub id of the form "
            "OWNER/NAME[:SUBSET][@SPLIT][#REVISION]"
        )
    repo, split = match["repo"], match["split"] or DEFAULT_SPLITS.get(match["repo"], "train")
    commit = commit_of(repo, match["revision"], "dataset")
    parts = (match["subset"],) if match["subset"] else ALL_SUBSETS.get(repo, (None,))
    return [HubData(repo, part, split, commit) for part in parts]


def hub_rows(repo: str, subset: str | None, split: str, commit: str | None) -> Iterator[tuple[str, Any]]:
    """Yields (place, row) of a data set's split, with the `datasets` library.

    Args:
        repo: a hub id, or a local folder with the layout of a data set of the hub.

    Raises:
        InputError: as HubData.rows.
    """
    from datasets import get_dataset_config_names, load_dataset
    from datasets.exceptions import DatasetsError
    from httpx2 import HTTPError

    place = f"{repo}@{commit}" if commit else repo
    try:
        is_config = subset is not None and subset in get_dataset_config_names(repo, revision=commit)
        data: Any = load_dataset(
            repo,
            name=subset if is_config else None,
            data_dir=None if is_config else subset,
            split=split,
            revision=commit,
        )
    except (DatasetsError, HTTPError, OSError, ValueError) as error:
        part = f" ({subset})" if subset else ""
        raise InputError(
            f"preferences: split {split} of {repo}{part}: {explain_hub_error(error, repo, commit, 'dataset')}"
        ) from error
    for i, row in enumerate(data):
        yield f"{place} row {i}", row


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        number = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield f"{path} row {number}", row
                    number += 1
    except (ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())}); fetch the file again") from error


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as JSON ({error}); where each line is an object, name the file *.jsonl"
        ) from error
    if not isinstance(rows, list):
        raise InputError(f"{path} holds no list of rows; write one, or one object a line in a *.jsonl")
    for i, row in enumerate(rows):
        yield f"{path} row {i}", row
