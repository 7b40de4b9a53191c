"""Short RL trainings of a tiny model."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from eval.cli.parser import parse


def run(algorithm: str, tiny: Path, reward: Path, output: Path, *more: object) -> dict[str, Any]:
    from trl import ModelConfig

    from train.arguments import PolicyArguments

    module = importlib.import_module(f"train.{algorithm}")
    argv = rloo_arguments(tiny, reward, output, *more)
    if algorithm == "online_dpo":
        argv = [*without(argv, "--num_generations", "--max_completion_length"), "--max_new_tokens", "6"]
    return module.train(*parse([PolicyArguments, module.ALGORITHM.config, ModelConfig], argv, f"train.{algorithm}"))


def without(argv: list[str], *names: str) -> list[str]:
    """argv less options of one value."""
    return [a for i, a in enumerate(argv) if a not in names and (i == 0 or argv[i - 1] not in names)]


def same_weights(a: Path, b: Path, name: str = "adapter_model.safetensors") -> None:
    one, other = load_file(a / name), load_file(b / name)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one)


class Killed(BaseException):
    """No handler of errors catches it, like a kill."""


def rloo_arguments(tiny: Path, reward: Path, output: Path, *more: object) -> list[str]:
    arguments = {
        "model_name_or_path": tiny, "reward_model": reward, "output_dir": output, "checkpoint_steps": "0 2 4",
        "max_steps": 4, "save_strategy": "no", "use_peft": "true", "lora_r": 4, "lora_target_modules": "q_proj v_proj",
        "per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 6, "learning_rate": 0.01,
        "gradient_checkpointing": "false", "bf16": "false", "use_cpu": "true", "logging_steps": 1, "report_to": "none",
        "disable_tqdm": "true", "seed": 3, "max_prompt_tokens": 1000,
    }  # fmt: skip
    return [part for k, v in arguments.items() for part in (f"--{k}", *str(v).split())] + [str(m) for m in more]


def rloo(tiny: Path, reward: Path, output: Path, *more: object) -> dict[str, Any]:
    from trl import ModelConfig, RLOOConfig

    from train.arguments import PolicyArguments
    from train.rloo import train

    argv = rloo_arguments(tiny, reward, output, *more)
    return train(*parse([PolicyArguments, RLOOConfig, ModelConfig], argv, "train.rloo"))


def learned(result: dict[str, Any]) -> list[tuple[float, ...]]:
    return [(e["loss"], e["reward"], e["kl"], e["entropy"], e["grad_norm"]) for e in result["log"]]
