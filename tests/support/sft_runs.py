"""Supervised fine-tuning of a tiny model, for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.cli.parser import parse
from train.data.answer_format import answer_format_rows

ROWS = answer_format_rows()[:48]
"""The rows of two templates; as a file they are the fixture `examples`."""


def sft_arguments(tiny: Path, examples: Path, output: Path, *more: object) -> list[str]:
    arguments = {
        "model_name_or_path": tiny, "examples": examples, "output_dir": output, "checkpoint_steps": "2 4",
        "max_steps": 4, "save_strategy": "no", "per_device_train_batch_size": 4, "learning_rate": 0.01,
        "gradient_checkpointing": "false", "bf16": "false", "use_cpu": "true", "logging_steps": 1, "report_to": "none",
        "disable_tqdm": "true", "seed": 3, "max_length": 400, "held_out": 0.25,
        "keep_optimizer_states": "all",
    }  # fmt: skip
    if "--num_train_epochs" in more:
        del arguments["checkpoint_steps"]
    return [part for k, v in arguments.items() for part in (f"--{k}", *str(v).split())] + [str(m) for m in more]


def sft(tiny: Path, examples: Path, output: Path, *more: object) -> dict[str, Any]:
    from trl import ModelConfig, SFTConfig

    from train.sft import SFTArguments, train

    argv = sft_arguments(tiny, examples, output, *more)
    return train(*parse([SFTArguments, SFTConfig, ModelConfig], argv, "train.sft"))
