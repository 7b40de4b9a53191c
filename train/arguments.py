"""Options of this project beside TRL's configuration classes, shared by the RL trainers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from eval.cli.parser import parse
from eval.config import EvaluationConfig
from eval.errors import InputError, nearest
from reward.functions import RewardOptions
from reward.preferences import check_share
from reward.stage import check_counts
from train.schedule import parse_steps

EVALUATE = ("in_process", "watch", "afterwards")
SEEN_PROMPTS = ("leave_out", "keep")
OPTIMIZER_STATES = ("last", "all")


@dataclass
class CheckpointOptions:
    """Options of all trainers: which checkpoints are kept, what they contain, and who evaluates them."""

    checkpoint_steps: list[str] = field(
        default_factory=lambda: ["paper"],
        metadata={"help": "steps at which a checkpoint is kept, or `paper`: 0, 50, 100, 200 ... 1000"},
    )
    keep_optimizer_states: str = field(
        default="last",
        metadata={"help": "of which checkpoints the optimizer's state stays on disk: last (to go on from), or all"},
    )
    evaluation: str | None = field(
        default=None, metadata={"help": "YAML file of the evaluation of each checkpoint; none = not evaluated here"}
    )
    evaluate: str = field(
        default="in_process",
        metadata={
            "help": "in_process (when saved), watch (by `python -m eval watch OUTPUT_DIR`, in another process or on "
            "another GPU), or afterwards (all checkpoints, when training has ended). With load_in_4bit or load_in_8bit "
            "watch or afterwards, which measure the adapter on the weights as they are stored, not quantised"
        },
    )
    data_dir: str | None = field(
        default=None,
        metadata={"help": "folder with preferences/, bbq/ ...; default $SELFCORRECT_DATA or the small set"},
    )

    def __post_init__(self) -> None:
        for name, choices in (("evaluate", EVALUATE), ("keep_optimizer_states", OPTIMIZER_STATES)):
            if (value := getattr(self, name)) not in choices:
                raise InputError(f"{name} must be {', '.join(choices)}, not '{value}'{nearest(value, choices)}")
        parse_steps(self.checkpoint_steps, 0)

    def evaluation_config(self) -> EvaluationConfig | None:
        """The evaluation's YAML, with this run's data folder unless the YAML names one; None without an evaluation."""
        if self.evaluation is None:
            return None
        (evaluation,) = parse([EvaluationConfig], ["--config", self.evaluation], "evaluation")
        evaluation.data_dir = evaluation.data_dir or self.data_dir
        return evaluation


class CheckedCounts:
    """Base class to place before one of TRL's RL configurations: checks the counts that it divides by first."""

    def __post_init__(self) -> None:
        check_counts(self)
        super().__post_init__()  # pyright: ignore[reportAttributeAccessIssue]


@dataclass
class PolicyArguments(CheckpointOptions, RewardOptions):
    """Options of an RL run beside TRL's configuration. RewardOptions has those of the reward."""

    preferences: list[str] | None = field(
        default=None,
        metadata={"help": "where the prompts come from, as in reward.train; default: data_dir/preferences"},
    )
    prompt_share: list[float] = field(
        default_factory=lambda: [0.0, 1.0],
        metadata={"help": "the part of the prompts that is used, from 0 to 1; shares apart have no prompt in common"},
    )
    seen_prompts: str = field(
        default="leave_out",
        metadata={"help": "prompts that a reward model of ours was trained on: leave_out, or keep"},
    )
    max_prompt_tokens: int = field(default=256, metadata={"help": "RL prompts longer than this are left out"})
    lora_top_layers: int | None = field(default=None, metadata={"help": "put LoRA on the last N layers only"})
    kl_target: float = field(
        default=0.15,
        metadata={"help": "KL per token to the starting policy above which beta is raised; 0 = beta stays as it is"},
    )
    kl_alert: float = field(default=0.3, metadata={"help": "alert at a higher KL per token; 0 = none"})
    entropy_alert: float = field(
        default=0.5, metadata={"help": "alert below this share of the first steps' entropy; 0 = none"}
    )
    repetition_alert: float = field(
        default=0.2, metadata={"help": "alert where repetition is this much above the first steps'; 0 = none"}
    )
    length_alert: float = field(
        default=2.0, metadata={"help": "alert where answers are this many times longer or shorter; 0 = none"}
    )
    finished_alert: bool = field(
        default=True, metadata={"help": "alert where not one answer of the last steps ended by itself; 0 = none"}
    )
    stop_on_alert: bool = field(default=False, metadata={"help": "end training at the first alert"})
    sample_prompts: int = field(
        default=32, metadata={"help": "prompts kept out of training, answered at each checkpoint; 0 = none"}
    )
    judges: list[str] = field(
        default_factory=list,
        metadata={"help": "reward models that score these answers and are not optimised; as in reward_model"},
    )

    def __post_init__(self) -> None:
        CheckpointOptions.__post_init__(self)
        RewardOptions.__post_init__(self)
        check_share(self.prompt_share)
        if self.seen_prompts not in SEEN_PROMPTS:
            raise InputError(f"seen_prompts must be {' or '.join(SEEN_PROMPTS)}, not '{self.seen_prompts}'")
        if self.max_prompt_tokens < 1:
            raise InputError(f"max_prompt_tokens must be at least 1, not {self.max_prompt_tokens}")
        for name in ("kl_target", "kl_alert", "entropy_alert", "repetition_alert", "length_alert", "sample_prompts"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise InputError(f"{name} must be a number of at least 0, not {value}; 0 switches it off")
        if self.entropy_alert >= 1 or 0 < self.length_alert <= 1:
            raise InputError(
                f"entropy_alert must be below 1 (it is {self.entropy_alert}) and length_alert above 1 (it is "
                f"{self.length_alert}), else the first steps themselves raise an alert; 0 switches one off"
            )
        if self.judges and not self.sample_prompts:
            raise InputError("judges score the answers to sample_prompts, which is 0; raise it or leave judges out")
