"""Options shared by the commands that show results: RUNS..., and -o DIR."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from eval.cli.dispatch import JSON_HELP
from eval.errors import InputError


@dataclass
class RunsConfig:
    """The folders whose results are shown."""

    runs: list[str] = field(
        default_factory=list,
        metadata={
            "action": "extend",
            "help": "folders of training runs or of `eval run`, results made elsewhere too; each may hold several",
        },
    )
    json: bool = field(default=False, metadata={"help": JSON_HELP})

    def __post_init__(self) -> None:
        if not self.runs:
            raise InputError("the run folder is missing; give folders of training runs or of `eval run`")

    @property
    def folders(self) -> list[Path]:
        return [Path(name) for name in self.runs]


@dataclass
class OutputConfig(RunsConfig):
    """RUNS..., and a folder to write into."""

    output: str | None = field(
        default=None, metadata={"aliases": ["-o"], "help": "folder of what is made; default: report in the first RUN"}
    )

    def folder(self, name: str) -> Path:
        """The output folder; without --output it is `name` in the first run's folder."""
        return Path(self.output) if self.output else self.folders[0] / name
