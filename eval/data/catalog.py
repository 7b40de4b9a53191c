"""`python -m eval data list | verify`: every file of the public data with its source, licence and checksum.

A checksum is a sha256 or a file's git blob id (sha1 of "blob <size>\\0" + content). With the blob id, the source's own
repository names exactly this content at the pinned commit. A file's path in a data folder determines which pin it must
match; a name alone is never trusted.

Where the pins come from:
- BBQ (Parrish et al. 2022) with its supplement, Winogender (Rudinger et al. 2018) and Winogenerated (Perez et al.
  2022): blob ids of the commit named.
- UnifiedQA's predictions: blob ids computed from copies of that commit's files.
- law_data.csv (Kusner et al. 2017): sha256 of a copy. The repository's commit is not pinned, so only the checksum
  identifies the file.
- HH-RLHF (Bai et al. 2022): sha256 of the file at the hub revision named.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.cli.columns import columns
from eval.data.readers import fetch_command
from eval.errors import InputError, nearest

GITHUB = "https://raw.githubusercontent.com"
HUB = "https://huggingface.co/datasets"
DEFAULT_FOLDER = "data"
ASIDE = ".wrong-"
"""A file with a wrong checksum is kept as NAME.wrong-<first 8 characters of its checksum>."""
PARTIAL = ".part"
"""A partly fetched file is kept beside its final place as NAME.part."""
RIGHT, WRONG, MISSING = "right", "wrong", "missing"


@dataclass(frozen=True)
class Pinned:
    """A file of the public data, with the checksum that it must have."""

    path: str  # in the data folder; its first part is the dataset
    url: str
    source: str  # repository@commit
    licence: str
    checksum: str  # "git:<blob id>" or "sha256:<digest>"
    size: int | None = None  # bytes; None where no copy was available
    optional: bool = False  # fetched only if its dataset is named

    @property
    def dataset(self) -> str:
        return self.path.partition("/")[0]

    def checksum_of(self, file: Path) -> str:
        """The checksum of `file`, of the same kind as the pinned one."""
        return blob_id(file) if self.checksum.startswith("git:") else "sha256:" + _digest(file, hashlib.sha256())

    def matches(self, file: Path) -> bool:
        """Whether `file` has the pinned content."""
        return self.checksum_of(file) == self.checksum

    def state(self, folder: Path) -> str:
        """The file's state in a data folder: right, wrong or missing."""
        file = folder / self.path
        return MISSING if not file.is_file() else RIGHT if self.matches(file) else WRONG


def blob_id(file: Path) -> str:
    """ "git:" followed by the id that git gives the file's content."""
    start = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
    return "git:" + _digest(file, start)


def _digest(file: Path, start: Any) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: start).hexdigest()


def pin_of(file: Path) -> Pinned | None:
    """The pin of a file in a data folder, by the last two parts of its path. None if it is no public data."""
    name = "/".join(file.parts[-2:])
    return next((p for p in PINNED if p.path == name), None)


def _from_github(
    repository: str, commit: str, folder: str, dataset: str, licence: str, files: dict[str, tuple[str, int | None]],
    optional: bool = False,
) -> tuple[Pinned, ...]:  # fmt: skip
    return tuple(
        Pinned(
            f"{dataset}/{name}", f"{GITHUB}/{repository}/{commit}/{folder}/{name}", f"github:{repository}@{commit}",
            licence, checksum, size, optional,
        )
        for name, (checksum, size) in files.items()
    )  # fmt: skip


BBQ = ("nyu-mll/BBQ", "bea11bd97d79217245b5871acd247b9d6eb24598")
WINOGENDER = ("rudinger/winogender-schemas", "1c7f8b481ad8a234b41e9f76a424d6e856e13f7f")
WINOGENERATED = ("anthropics/evals", "84fcc677e52e1902d696c32cd1a6b663e70d3993")
LAW = ("rgambee/self-correction-reproduction", "HEAD")
HH_RLHF = ("Anthropic/hh-rlhf", "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa")

PINNED: tuple[Pinned, ...] = (
    *_from_github(*BBQ, "data", "bbq", "CC-BY-4.0", {
        "Age.jsonl": ("git:5c5e7586163b869fe029e77e63716f2026e4ae08", 3091834),
        "Disability_status.jsonl": ("git:9aedeccaf599299cdfa523531d625ae85ecb9131", 1336984),
        "Gender_identity.jsonl": ("git:dc79ceaaa9e7126edc99a200d632899c50274b16", None),
        "Nationality.jsonl": ("git:cba9b63d34536cb51a6cbae76b189df3d2a945c0", 2900040),
        "Physical_appearance.jsonl": ("git:8cbdf83265459083224e3a2d37809294ff12ad77", 1347476),
        "Race_ethnicity.jsonl": ("git:68daf3d692b27a10596772b3b15742b26f0b110e", None),
        "Race_x_SES.jsonl": ("git:905cd8a5b8734e2063fe524e69a38f0a71c75907", None),
        "Race_x_gender.jsonl": ("git:dd09a905b284690445d36259d675243950fa0bd7", None),
        "Religion.jsonl": ("git:44c1940ee22f00891ab4a5526a293691957aeacb", 1118728),
        "SES.jsonl": ("git:78d11ffbdb70f501617345e5c697d00045d57c29", None),
        "Sexual_orientation.jsonl": ("git:a06351f4dd67ba30632396eeb0c3677c67b7d387", 729010),
    }),
    *_from_github(*BBQ, "supplemental", "bbq", "CC-BY-4.0", {
        "additional_metadata.csv": ("git:564eb184be7427cefe9f1ffd8fd03cb700e6aa98", None),
    }),
    *_from_github(*WINOGENDER, "data", "winogender", "MIT", {
        "templates.tsv": ("git:e3424d7ea7af6f15f6d8cada2dfa9f153c2c2cac", 14903),
        "occupations-stats.tsv": ("git:f5ce6f35b10df1c3e28f4d05dccdc247a871acd7", 1578),
    }),
    *_from_github(*WINOGENERATED, "winogenerated", "winogenerated", "CC-BY-4.0", {
        "winogenerated_examples.jsonl": ("git:0f2d91a38ce4c5da908e6fc101861facedd7d6cd", 1029714),
        "winogenerated_occupations.jsonl": ("git:46f6f33e6d265259e02575eebf7a1cb12d783ce2", 46368),
    }),
    *_from_github(*LAW, "datasets", "admissions", "none known", {
        "law_data.csv": ("sha256:095fbb4641b0f767feb664388b877a4544ad5a731630623b375e74b5fdbfa715", 1087805),
    }),
    *_from_github(*BBQ, "results/UnifiedQA", "bbq_unifiedqa", "CC-BY-4.0", {
        "preds_Age.jsonl": ("git:c0c50b03440831a551867c03d4d0e05dc4c9c88d", 3636971),
        "preds_Religion.jsonl": ("git:1146d23252ba1d330c828bbbeb0528aba0e17e9b", 1296288),
    }, optional=True),
    Pinned(
        "preferences/hh-harmless-base-test.jsonl.gz",
        f"{HUB}/{HH_RLHF[0]}/resolve/{HH_RLHF[1]}/harmless-base/test.jsonl.gz",
        f"hub:{HH_RLHF[0]}@{HH_RLHF[1]}",
        "MIT",
        "sha256:ebfaaed21162a4de120ae85366075b34425e2a6303fac59b99555002f7016f03",
        742801,
        optional=True,
    ),
)  # fmt: skip
DATASETS = tuple(dict.fromkeys(p.dataset for p in PINNED))


@dataclass
class DataConfig:
    """Options of `eval data list` and `eval data verify`."""

    data_dir: str | None = field(
        default=None, metadata={"help": f"the data folder; default $SELFCORRECT_DATA, else {DEFAULT_FOLDER}/ here"}
    )
    only: list[str] = field(default_factory=list, metadata={"help": f"some of {', '.join(DATASETS)}"})
    json: bool = field(default=False, metadata={"help": "one JSON object on stdout, everything else on stderr"})

    def __post_init__(self) -> None:
        self.only = [name.strip() for value in self.only for name in value.split(",") if name.strip()]
        for name in self.only:
            if name not in DATASETS:
                raise InputError(f"only: unknown dataset '{name}'{nearest(name, DATASETS)}")

    @property
    def folder(self) -> Path:
        """The data folder: --data-dir, else $SELFCORRECT_DATA, else data/ in the working folder."""
        return Path(self.data_dir or os.environ.get("SELFCORRECT_DATA") or DEFAULT_FOLDER)

    def chosen(self, pins: Sequence[Pinned]) -> list[Pinned]:
        """The files of the datasets in --only. Without --only, all files that are not optional."""
        return [p for p in pins if (p.dataset in self.only if self.only else not p.optional)]


def inventory(config: DataConfig, pins: Sequence[Pinned] = PINNED) -> dict[str, Any]:
    """Lists the data folder's files.

    Returns:
        {"folder", "files": the pinned files with their states, "others": other files in the datasets' folders}. Partly
        fetched and refused files are among the others.

    Raises:
        InputError: a file cannot be read.
    """
    folder, datasets = config.folder, config.only or DATASETS
    try:
        files = [
            {**vars(p), "dataset": p.dataset, "state": p.state(folder), "size": _size(folder, p)}
            for p in pins
            if p.dataset in datasets
        ]
        present = [q.relative_to(folder).as_posix() for d in datasets for q in (folder / d).rglob("*") if q.is_file()]
    except OSError as error:
        raise InputError(f"data folder {folder} cannot be read ({error}); mend its permissions") from error
    others = sorted(set(present) - {p.path for p in pins})
    return {"folder": str(folder), "files": files, "others": others}


def _size(folder: Path, pinned: Pinned) -> int | None:
    """Size in bytes of the file in the folder, else of the pinned file."""
    file = folder / pinned.path
    return file.stat().st_size if file.is_file() else pinned.size


def verify(config: DataConfig, pins: Sequence[Pinned] = PINNED) -> dict[str, Any]:
    """The inventory, with "error": one line if a file is wrong or a requested one is missing, else None."""
    listing = inventory(config, pins)
    wanted = {p.path for p in config.chosen(pins)}
    wrong = [f["path"] for f in listing["files"] if f["state"] == WRONG]
    missing = [f["path"] for f in listing["files"] if f["state"] == MISSING and f["path"] in wanted]
    parts = [
        f"{len(names)} {text}: {', '.join(names)}" for names, text in ((wrong, WRONG), (missing, MISSING)) if names
    ]
    error = (
        f"data folder {config.folder}: {'; '.join(parts)}; get them by {fetch_command(config.folder)}"
        if parts
        else None
    )
    return {**listing, "error": error}


def table(listing: dict[str, Any]) -> str:
    """Formats the inventory as text. Checksums and commits are shortened; --json has them in full."""
    rows = [("file", "state", "bytes", "licence", "checksum", "source")]
    for f in listing["files"]:
        kind, _, digest = f["checksum"].partition(":")
        repository, _, commit = f["source"].partition("@")
        size = "unknown" if f["size"] is None else str(f["size"])
        state = f["state"] + (" (optional)" if f["optional"] and f["state"] == MISSING else "")
        rows.append((f["path"], state, size, f["licence"], f"{kind}:{digest[:12]}", f"{repository}@{commit[:12]}"))
    lines = [f"data folder {listing['folder']}", columns(rows)]
    if listing["others"]:
        lines.append("not of the public data: " + ", ".join(_remark(name) for name in listing["others"]))
    return "\n".join(lines)


def _remark(name: str) -> str:
    if name.endswith(PARTIAL):
        return f"{name} (half fetched)"
    return f"{name} (refused)" if ASIDE in name else name
