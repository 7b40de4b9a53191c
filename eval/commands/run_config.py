"""The options of `python -m eval run`: which checkpoints, by which scorer, into which folder."""

from __future__ import annotations

from dataclasses import dataclass, field

from eval.cli.dispatch import JSON_HELP
from eval.cli.parser import split_commas
from eval.errors import InputError
from eval.scorers.options import ScorerConfig, check_endpoint


@dataclass
class RunConfig(ScorerConfig):
    """Options of `python -m eval run`, which evaluates one checkpoint, or several in turn."""

    model: list[str] = field(
        default_factory=list, metadata={"action": "extend", "help": "hub id, folder, GGUF file; may be repeated"}
    )
    models: str | None = field(
        default=None, metadata={"help": "file of lines MODEL [--revision R] [--adapter A] [--step N], and # comments"}
    )
    adapter: str | None = field(default=None, metadata={"help": "folder or hub id of a LoRA adapter on top of it"})
    revision: list[str] = field(
        default_factory=list, metadata={"action": "extend", "help": "hub revision, or several: step1000,step2000"}
    )
    output: str = field(default="", metadata={"help": "results folder; default runs/eval/<model>, or runs/eval"})
    step: int | None = field(
        default=None,
        metadata={"help": "the checkpoint's step, for the report's axis; default: recorded in it, or named"},
    )
    json: bool = field(default=False, metadata={"help": JSON_HELP})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.revision = split_commas(self.revision)
        if not self.model and not self.models:
            raise InputError("eval run: --model is missing; give a hub id, a folder, a GGUF file, or --models FILE")
        if self.step is not None and self.step < 0:
            raise InputError(f"step must be at least 0, not {self.step}")
        check_endpoint(self, self.adapter, self.revision)
