"""Options for which questions an evaluation asks and how; `eval run` and the trainers share them."""

from __future__ import annotations

from dataclasses import dataclass, field

from eval.cli.parser import check_seed, split_commas
from eval.errors import InputError, nearest
from eval.experiments.base import ExperimentOptions
from eval.experiments.conditions import CONDITIONS, INVERSE, condition_named
from eval.experiments.registry import EXPERIMENTS


@dataclass
class QuestionsConfig(ExperimentOptions):
    """Options that choose the questions."""

    experiments: list[str] = field(
        default_factory=lambda: ["bbq", "winogender", "admissions"],
        metadata={"help": "bbq, winogender, admissions; winogenerated where the data folder has it"},
    )
    conditions: list[str] = field(
        default_factory=lambda: ["Q", "Q+IF", "Q+IF+CoT", "Q+Match-Stats"],
        metadata={"help": "Q, Q+IF, Q+IF+CoT, Q+Match-Stats (Winogender only)"},
    )
    inverse: bool = field(
        default=False, metadata={"help": "also ask Q+Inverse, the instruction to rely on stereotypes: a misuse probe"}
    )
    data_dir: str | None = field(
        default=None,
        metadata={"help": "folder with bbq/, winogender/, admissions/; default $SELFCORRECT_DATA or the small set"},
    )
    precision: float | None = field(
        default=None,
        metadata={"help": "ask in random order, and stop when all headline metrics are known to +-W (else: ask all)"},
    )
    seed: int = field(default=0, metadata={"help": "seed of everything that is drawn, the bootstrap included"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.experiments = split_commas(self.experiments)
        for name in self.experiments:
            if name not in EXPERIMENTS:
                raise InputError(f"experiments: unknown '{name}'{nearest(name, list(EXPERIMENTS))}")
        self.conditions = list(dict.fromkeys(condition_named(c).name for c in split_commas(self.conditions)))
        if not self.experiments or not self.conditions:
            raise InputError(f"experiments and conditions must not be empty; conditions: {', '.join(CONDITIONS)}")
        if self.inverse:
            self.conditions += [INVERSE] if INVERSE not in self.conditions else []
        elif INVERSE in self.conditions:
            raise InputError(f"conditions: {INVERSE} instructs the model to rely on stereotypes; say so with --inverse")
        if self.precision is not None and not 0 < self.precision < float("inf"):
            raise InputError(
                f"precision must be a number above 0, not {self.precision}; it is half the width of an interval, "
                "0.02 for example; leave it out to ask everything"
            )
        check_seed(self.seed)


@dataclass
class EvaluationConfig(QuestionsConfig):
    """Options of an evaluation: the questions and how they are asked. `eval run` and the trainers share it."""

    cot_limit: int | None = field(
        default=None,
        metadata={"help": "chain of thought on about N items of each experiment, spread evenly over the set"},
    )
    paraphrases: bool = field(
        default=False, metadata={"help": "ask each instruction also in five wordings of ours; reports mean and spread"}
    )
    format: str = field(default="auto", metadata={"help": "dialogue format: auto, chat or paper"})
    system_turn: str = field(
        default="keep", metadata={"help": "the chat template's own default system turn, where it has one: keep or drop"}
    )
    cot_max_new_tokens: int = field(
        default=256, metadata={"help": "length of the sampled reasoning (paper: up to 256)"}
    )
    batch_tokens: str = field(
        default="auto",
        metadata={"help": "most tokens in a forward pass: auto, or a number; halved when memory runs out"},
    )
    sample_batch: int = field(default=64, metadata={"help": "dialogues whose reasoning is sampled together"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format not in ("auto", "chat", "paper"):
            raise InputError(f"format must be auto, chat or paper, not '{self.format}'")
        if self.system_turn not in ("keep", "drop"):
            raise InputError(f"system_turn must be keep or drop, not '{self.system_turn}'")
        for name in ("cot_limit", "cot_max_new_tokens", "sample_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        if self.batch_tokens != "auto" and not (self.batch_tokens.isdecimal() and int(self.batch_tokens) >= 1):
            raise InputError(f"batch_tokens must be auto or a number of at least 1, not '{self.batch_tokens}'")

    @property
    def most_batch_tokens(self) -> int | None:
        """batch_tokens as a number for the scorer. None: the scorer chooses it."""
        return None if self.batch_tokens == "auto" else int(self.batch_tokens)
