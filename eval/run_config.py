"""The options of `python -m eval run`: which checkpoints, asked by which scorer, into which folder."""

from __future__ import annotations

from dataclasses import dataclass, field

from eval.commands import JSON_HELP
from eval.config import EvaluationConfig, InputError, nearest, split_commas
from eval.scorers import endpoint
from eval.scorers.opening import SCORERS
from eval.scorers.vllm import VllmOptions


@dataclass
class RunConfig(EvaluationConfig, VllmOptions, endpoint.EndpointOptions):
    """`python -m eval run`: evaluate one checkpoint, or several in turn."""

    model: list[str] = field(
        default_factory=list, metadata={"action": "extend", "help": "hub id, folder, GGUF file; may be repeated"}
    )
    models: str | None = field(
        default=None, metadata={"help": "file of lines MODEL [--revision R] [--adapter A] [--step N], and # comments"}
    )
    adapter: str | None = field(default=None, metadata={"help": "folder or hub id of a LoRA adapter on top of it"})
    adapter_base_differs: bool = field(
        default=False, metadata={"help": "accept an adapter whose recorded base has another name than --model"}
    )
    revision: list[str] = field(
        default_factory=list, metadata={"action": "extend", "help": "hub revision, or several: step1000,step2000"}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "execute code that the model's repository brings along; read it first"}
    )
    dtype: str = field(default="auto", metadata={"help": "auto (as stored), float32, bfloat16 or float16"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:0 ..."})
    output: str = field(default="", metadata={"help": "results folder; default runs/eval/<model>, or runs/eval"})
    step: int | None = field(
        default=None,
        metadata={"help": "the checkpoint's step, for the report's axis; default: recorded in it, or named"},
    )
    scorer: str = field(default="transformers", metadata={"help": f"what asks the model: {', '.join(SCORERS)}"})
    json: bool = field(default=False, metadata={"help": JSON_HELP})

    def __post_init__(self) -> None:
        super().__post_init__()
        VllmOptions.__post_init__(self)
        given = [name for name, default in vars(VllmOptions()).items() if getattr(self, name) != default]
        if given and self.scorer != "vllm":
            raise InputError(f"--{given[0]} belongs to --scorer vllm, and the scorer is {self.scorer}")
        self.revision = split_commas(self.revision)
        if not self.model and not self.models:
            raise InputError("eval run: --model is missing; give a hub id, a folder, a GGUF file, or --models FILE")
        if self.scorer not in SCORERS:
            raise InputError(
                f"scorer must be one of {', '.join(SCORERS)}, not '{self.scorer}'{nearest(self.scorer, SCORERS)}"
            )
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise InputError(f"dtype must be auto, float32, bfloat16 or float16, not '{self.dtype}'")
        if self.step is not None and self.step < 0:
            raise InputError(f"step must be at least 0, not {self.step}")
        endpoint.check(self)
