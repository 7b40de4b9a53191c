"""Online DPO, experimental: accelerate launch -m train.online_dpo --config configs/online_dpo/smollm2-135m.yaml

Uses TRL's experimental OnlineDPOTrainer (Guo et al. 2024, "Direct Language Model Alignment from Online AI Feedback").
It samples two answers to each prompt, prefers the one with the higher reward, and takes DPO's loss on the pair.

It is experimental in TRL and here. beta is DPO's temperature, not a KL coefficient, so the KL budget does not act.
TRL's objective/kl is a sum over answers that counts their padding too, so no alert uses it (the KL of the answers to
sample_prompts is exact). TRL sums several reward models before it logs anything of each. The rest is as in train.rloo.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

from eval.errors import run_main
from reward.functions import up_to_end
from train import online
from train.arguments import PolicyArguments


@dataclass
class PairedConfig(OnlineDPOConfig):
    """TRL's configuration, with the option names of the other trainers."""

    @property
    def max_completion_length(self) -> int:
        return self.max_new_tokens

    @property
    def mask_truncated_completions(self) -> bool:
        return False


class PairedTrainer(online.log_step_counts(OnlineDPOTrainer)):
    """TRL's trainer, which also logs what the reward functions observe and each step's mean reward.

    The reward functions get answers without their padding, as in the other trainers: with it, no padded answer would
    count as finished.
    """

    def __init__(self, *args: Any, reward_funcs: list[Any], **kwargs: Any) -> None:
        self.observed: dict[str, list[float]] = defaultdict(list)
        super().__init__(*args, reward_funcs=reward_funcs, **kwargs)

    def _calculate_rewards_from_functions(self, *args: Any, completion_ids_list: list[list[int]], **kwargs: Any) -> Any:
        def log_metric(name: str, value: float) -> None:
            self.observed[name].append(value)

        answers = [up_to_end(ids, self.eos_token_ids) for ids in completion_ids_list]
        rewards = super()._calculate_rewards_from_functions(
            *args, completion_ids_list=answers, log_metric=log_metric, **kwargs
        )
        log_metric("reward", float(rewards.mean()))
        return rewards

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        from accelerate.utils import gather_object

        if "loss" in logs:
            means = gather_object([{name: sum(values) / len(values) for name, values in self.observed.items()}])
            logs |= {name: sum(m[name] for m in means) / len(means) for name in means[0]}
            self.observed.clear()
        super().log(logs, start_time)


ALGORITHM = online.Algorithm("online_dpo", PairedTrainer, PairedConfig, adaptive=False)


def train(arguments: PolicyArguments, config: Any, model_args: Any) -> dict[str, Any]:
    """Checks everything, trains, and returns the content of OUTPUT/online_dpo.json."""
    return online.train(ALGORITHM, arguments, config, model_args)


def main() -> None:
    online.main(ALGORITHM, "train.online_dpo")


if __name__ == "__main__":
    run_main(main)
