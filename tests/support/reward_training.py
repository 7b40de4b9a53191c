"""Short trainings of a tiny reward model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.cli.parser import parse

LORA = (
    "--use_peft",
    "true",
    "--lora_task_type",
    "SEQ_CLS",
    "--lora_r",
    "4",
    "--lora_target_modules",
    "q_proj",
    "v_proj",
)


def options(tiny: Path, output: Path, *more: object, batch: int = 8) -> list[str]:
    argv = (
        f"--model_name_or_path {tiny} --output_dir {output} --max_steps 6 --per_device_train_batch_size {batch} "
        "--learning_rate 0.01 --use_cpu true --bf16 false --gradient_checkpointing false --report_to none "
        "--disable_tqdm true --save_strategy steps --save_steps 3 --held_out 0.25 --seed 0"
    ).split()
    return [*argv, *map(str, more)]


def trained(tiny: Path, output: Path, *more: object) -> dict[str, Any]:
    from trl import ModelConfig, RewardConfig

    from reward.train import RewardArguments, train

    return train(*parse([RewardArguments, RewardConfig, ModelConfig], options(tiny, output, *more), "reward.train"))
