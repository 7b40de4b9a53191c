"""RLHF by GRPO: accelerate launch -m train.grpo --config configs/grpo/smollm2-135m.yaml --data_dir data

Uses TRL's GRPOTrainer (Shao et al. 2024, "DeepSeekMath"). Advantages are the rewards of a prompt's answers relative to
each other, and the KL penalty is part of the loss, token by token, instead of the reward. TRL's default has no KL
penalty (beta 0), unlike the RLHF of the paper: here it is on, with the beta of Shao et al. Everything else is as in
train.rloo.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig, GRPOTrainer

from eval.errors import InputError, nearest, run_main
from train import online
from train.arguments import CheckedCounts, PolicyArguments

WORDS = {
    "loss_type": ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}
"""Options whose value TRL checks only in the first step."""


@dataclass
class KLGRPOConfig(CheckedCounts, GRPOConfig):
    """TRL's configuration, with the KL penalty on."""

    beta: float = field(default=0.04, metadata={"help": "coefficient of the KL penalty (Shao et al. 2024: 0.04)"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in WORDS.items():
            if (value := getattr(self, name)) not in choices:
                raise InputError(f"{name} must be {', '.join(choices)}, not '{value}'{nearest(value, choices)}")


ALGORITHM = online.Algorithm("grpo", online.log_step_counts(GRPOTrainer), KLGRPOConfig)


def train(arguments: PolicyArguments, config: Any, model_args: Any) -> dict[str, Any]:
    """Checks everything, trains, and returns the content of OUTPUT/grpo.json."""
    return online.train(ALGORITHM, arguments, config, model_args)


def main() -> None:
    online.main(ALGORITHM, "train.grpo")


if __name__ == "__main__":
    run_main(main)
