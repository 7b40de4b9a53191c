"""Our few own fields beside TRL's config classes, shared by the RL trainers."""

from __future__ import annotations

from dataclasses import dataclass, field

from eval.config import InputError
from reward.functions import RewardOptions


@dataclass
class PolicyArguments(RewardOptions):
    """What an RL run needs beyond TRL's configuration; what it optimises is in RewardOptions."""

    checkpoint_steps: list[int] = field(
        default_factory=lambda: [0, 50, *range(100, 1001, 100)],
        metadata={"help": "RLHF steps at which a checkpoint is kept; default the paper's, and 0"},
    )
    evaluation: str | None = field(
        default=None, metadata={"help": "YAML file of the evaluation run at each checkpoint; none = not evaluated here"}
    )
    data_dir: str | None = field(
        default=None,
        metadata={"help": "folder with preferences/, bbq/ ...; default $SELFCORRECT_DATA or the small set"},
    )
    preferences: list[str] | None = field(
        default=None,
        metadata={"help": "where the prompts come from, as in reward.train; default: data_dir/preferences"},
    )
    max_prompt_tokens: int = field(default=256, metadata={"help": "RL prompts longer than this are left out"})
    lora_top_layers: int | None = field(default=None, metadata={"help": "put LoRA on the last N layers only"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_prompt_tokens < 1:
            raise InputError(f"max_prompt_tokens must be at least 1, not {self.max_prompt_tokens}")
