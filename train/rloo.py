"""RLHF by RLOO: accelerate launch -m train.rloo --config configs/demo/rloo.yaml

Uses TRL's RLOOTrainer (REINFORCE leave-one-out, Ahmadian et al. 2024, "Back to Basics") with LoRA or in full. It
maximises the reward of one or several learned reward models and of penalties (reward.functions), minus beta times the
KL divergence to the starting policy.

The paper (Ganguli et al. 2023) used PPO, which TRL no longer has. RLOO maximises the same KL-penalised reward of a
whole answer. Its baseline is the other answers to the prompt instead of a value model, and it has no PPO clipping of
several updates on the same answers (num_iterations 1). So the step axis is not PPO's: compare shapes over KL or reward,
not single steps.

A checkpoint is kept at every step of checkpoint_steps (0 = before RLHF) and evaluated into OUTPUT/eval/step-N. The same
command resumes after a kill, and does nothing if all is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trl import RLOOConfig, RLOOTrainer

from eval.errors import run_main
from train import online
from train.arguments import CheckedCounts, PolicyArguments


@dataclass
class CheckedRLOOConfig(CheckedCounts, RLOOConfig):
    """TRL's configuration, with its counts checked."""


ALGORITHM = online.Algorithm("rloo", online.log_step_counts(RLOOTrainer), CheckedRLOOConfig)


def train(arguments: PolicyArguments, config: Any, model_args: Any) -> dict[str, Any]:
    """Checks everything, trains, and returns the content of OUTPUT/rloo.json."""
    return online.train(ALGORITHM, arguments, config, model_args)


def main() -> None:
    online.main(ALGORITHM, "train.rloo")


if __name__ == "__main__":
    run_main(main)
