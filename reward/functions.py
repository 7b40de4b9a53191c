"""The reward that an RL trainer optimises: learned rewards and penalties, each a TRL reward function with its own log.

The reward of an answer is the sum over parts of weight x part. The parts are:

- each entry of reward_model: the reward model's score. Members joined by "+" form an ensemble: mean - ensemble_penalty
  x standard deviation between the members (with divisor k for k members). Coste et al. 2024, "Reward Model Ensembles
  Help Mitigate Overoptimization", subtract the variance (their UWO); its root keeps the unit of the reward;
- cut_off: -cut_off_penalty for an answer that ends at max_completion_length instead of an end token. The reward model
  cannot see this: it reads decoded text, put into its own template;
- length: -length_penalty for every token beyond length_penalty_from.

TRL logs rewards/PART/mean and /std. Measures that do not change training (reward.detectors, an ensemble's spread) are
logged as observed/NAME.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eval.errors import InputError
from eval.files import read_json
from eval.models.checkpoints import is_hub_id, weights_id
from eval.models.hub import commit_of
from reward.detectors import OBSERVABLES, Answer
from reward.dialogues import Message
from reward.scoring import DESCRIPTION, RewardModel, check_reward_model, load_reward_model

CUT_OFF, LENGTH = "cut_off", "length"

RewardFunction = Callable[..., list[float]]


@dataclass
class RewardOptions:
    """The options of the reward, shared by all RL trainers. TRL's configuration adds reward_weights."""

    reward_model: list[str] = field(
        default_factory=list,
        metadata={"help": "folders or hub ids of reward models; members joined by + form an ensemble: a+b+c"},
    )
    ensemble_penalty: float = field(
        default=1.0, metadata={"help": "an ensemble's reward is mean - this x standard deviation between its members"}
    )
    standardise_rewards: bool | None = field(
        default=None,
        metadata={
            "help": "every reward model's score minus the mean, over the standard deviation, of its held-out scores; "
            "default: where there are several reward models, whose scales differ; not with one"
        },
    )
    reward_dtype: str = field(default="auto", metadata={"help": "of reward models: auto (as stored), float32, ..."})
    cut_off_penalty: float = field(
        default=0.0, metadata={"help": "subtracted from answers cut off at max_completion_length"}
    )
    length_penalty: float = field(
        default=0.0, metadata={"help": "subtracted for every token beyond length_penalty_from"}
    )
    length_penalty_from: int = field(default=0, metadata={"help": "tokens of an answer that cost nothing"})

    def __post_init__(self) -> None:
        if not self.reward_model:
            raise InputError("reward_model is missing; give the folder of a trained reward model")
        for name in ("ensemble_penalty", "cut_off_penalty", "length_penalty", "length_penalty_from"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise InputError(f"{name} must be a number of at least 0 (it is subtracted), not {value}")
        if self.reward_dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise InputError(f"reward_dtype must be auto, float32, bfloat16 or float16, not '{self.reward_dtype}'")
        if self.length_penalty_from and not self.length_penalty:
            raise InputError(
                f"length_penalty_from is {self.length_penalty_from} and length_penalty is 0: nothing would be "
                "subtracted; give length_penalty, the reward that each further token costs"
            )


class Rewards(NamedTuple):
    """Arguments for a TRL trainer: reward_funcs, its configuration's reward_weights, and the names in its log."""

    functions: list[RewardFunction]
    weights: list[float]
    names: list[str]


def check_rewards(options: RewardOptions, config: Any) -> list[dict[str, Any]]:
    """Checks the parts of the reward and describes them for the records. Loads no model weights.

    Args:
        config: TRL's, of which reward_weights (one per entry of reward_model), max_completion_length and
            mask_truncated_completions are read.

    Returns:
        The parts. Each has name, weight, and either penalty, or ensemble_penalty and members (reward_model, commit,
        weights, mean and std: a score s counts as (s - mean) / std).

    Raises:
        InputError: an option does not fit the others or the reward models.
    """
    entries = [_members(entry) for entry in options.reward_model]
    weights = _weights(config.reward_weights, options.reward_model)
    standardise = options.standardise_rewards
    if standardise is None:
        standardise = sum(map(len, entries)) > 1
    _check_penalties(options, config)
    used_names = [CUT_OFF, LENGTH]
    parts: list[dict[str, Any]] = []
    for members, weight in zip(entries, weights, strict=True):
        member_records = [_member_record(path, standardise) for path in members]
        _check_different(member_records)
        used_names.append(_name(members, used_names))
        parts.append(
            {
                "name": used_names[-1],
                "weight": weight,
                "members": member_records,
                "ensemble_penalty": options.ensemble_penalty if len(members) > 1 else None,
            }
        )
    if options.cut_off_penalty:
        parts.append({"name": CUT_OFF, "weight": 1.0, "penalty": options.cut_off_penalty})
    if options.length_penalty:
        penalty = {"penalty": options.length_penalty, "from_tokens": options.length_penalty_from}
        parts.append({"name": LENGTH, "weight": 1.0, **penalty})
    return parts


def build_rewards(parts: list[dict[str, Any]], device: str, end_ids: Sequence[int], dtype: str = "auto") -> Rewards:
    """Builds the reward functions of the parts that check_rewards returned; loads the reward models on `device`.

    Args:
        end_ids: the tokens that end an answer of the policy (see end_token_ids).

    Raises:
        InputError: load_reward_model refuses a reward model.
    """
    functions: list[RewardFunction] = []
    for part in parts:
        if part["name"] == CUT_OFF:
            functions.append(CutOffPenalty(part["penalty"], end_ids))
        elif part["name"] == LENGTH:
            functions.append(LengthPenalty(part["penalty"], part["from_tokens"]))
        else:
            models = [load_reward_model(m["reward_model"], m["commit"], dtype, device) for m in part["members"]]
            functions.append(LearnedReward(part, models))
    functions[0] = Observed(functions[0], end_ids)
    return Rewards(functions, [p["weight"] for p in parts], [p["name"] for p in parts])


def end_token_ids(model: str, revision: str | None, tokenizer: Any) -> list[int]:
    """The tokens at which TRL ends an answer of the policy: its generation config's and its tokenizer's, if any."""
    from transformers import AutoConfig, GenerationConfig

    try:
        eos_token_id: Any = GenerationConfig.from_pretrained(model, revision=revision or "main").eos_token_id
    except OSError:  # no generation_config.json: transformers makes one from the model's configuration
        config = AutoConfig.from_pretrained(model, revision=revision)
        eos_token_id = GenerationConfig.from_model_config(config).eos_token_id
    listed = eos_token_id if isinstance(eos_token_id, list) else [eos_token_id]
    ids: list[int] = [i for i in dict.fromkeys([tokenizer.eos_token_id, *listed]) if i is not None]
    return ids


class LearnedReward:
    """A reward model's score, or an ensemble's mean - penalty x standard deviation."""

    def __init__(self, part: dict[str, Any], models: list[RewardModel]) -> None:
        self.__name__ = part["name"]  # its name in TRL's log
        self.models = models
        self.scales = [(m["mean"], m["std"]) for m in part["members"]]
        self.penalty = part["ensemble_penalty"]

    def __call__(
        self,
        prompts: list[list[Message]],
        completions: list[list[Message]],
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float]:
        """One reward per answer. Raises InputError if a score is not a finite number."""
        dialogues = [[*prompt, *answer] for prompt, answer in zip(prompts, completions, strict=True)]
        scores_KN = np.stack(
            [(m.scores(dialogues) - mean) / std for m, (mean, std) in zip(self.models, self.scales, strict=True)]
        )
        if self.penalty is None:
            return scores_KN[0].tolist()
        mean_N, spread_N = scores_KN.mean(axis=0), scores_KN.std(axis=0)
        if log_metric is not None:
            log_metric(f"observed/{self.__name__}/mean", float(mean_N.mean()))
            log_metric(f"observed/{self.__name__}/spread", float(spread_N.mean()))
        return (mean_N - self.penalty * spread_N).tolist()


class CutOffPenalty:
    """-penalty for an answer that does not end with an end token; TRL keeps the end token in completion_ids."""

    def __init__(self, penalty: float, end_ids: Sequence[int]) -> None:
        self.__name__ = CUT_OFF
        self.penalty = penalty
        self.end_ids = frozenset(end_ids)

    def __call__(self, completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [0.0 if is_finished(ids, self.end_ids) else -self.penalty for ids in completion_ids]


class LengthPenalty:
    """-penalty for every token of an answer beyond `from_tokens`; the end token counts."""

    def __init__(self, penalty: float, from_tokens: int) -> None:
        self.__name__ = LENGTH
        self.penalty = penalty
        self.from_tokens = from_tokens

    def __call__(self, completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [0.0 - self.penalty * max(0, len(ids) - self.from_tokens) for ids in completion_ids]


class Observed:
    """Wraps a reward function and also logs the OBSERVABLES of reward.detectors; the rewards stay the same.

    latest: (prompts, answers) of the last call, for callbacks that show them.
    """

    def __init__(self, function: RewardFunction, end_ids: Sequence[int]) -> None:
        self.__name__ = function.__name__
        self.function = function
        self.end_ids = frozenset(end_ids)
        self.latest: tuple[list[list[Message]], list[list[Message]]] = ([], [])

    def __call__(self, completions: list[list[Message]], completion_ids: list[list[int]], **more: Any) -> list[float]:
        self.latest = more["prompts"], completions
        answers = [
            Answer(messages[-1]["content"], ids, is_finished(ids, self.end_ids))
            for messages, ids in zip(completions, completion_ids, strict=True)
        ]
        for name, measure in OBSERVABLES.items():
            more["log_metric"](f"observed/{name}", sum(map(measure, answers)) / len(answers))
        return self.function(completions=completions, completion_ids=completion_ids, **more)


def up_to_end(ids: list[int], end_ids: Container[int]) -> list[int]:
    """The answer up to and including its end token, without the padding after it."""
    for i, token in enumerate(ids):
        if token in end_ids:
            return ids[: i + 1]
    return ids


def is_finished(ids: Sequence[int], end_ids: frozenset[int]) -> bool:
    """Whether an answer ended by itself: its last token is an end token."""
    return bool(ids) and ids[-1] in end_ids


def _members(entry: str) -> list[str]:
    """The reward models of an entry: 'a+b' -> ['a', 'b']. An existing path with a + in its name stays whole."""
    members = [entry] if Path(entry).exists() else entry.split("+")
    if not all(member.strip() for member in members):
        raise InputError(f"reward_model '{entry}' has an empty name; an ensemble is written a+b, without spaces")
    return members


def _weights(requested: list[float] | None, entries: list[str]) -> list[float]:
    """One weight per entry of reward_model; 1 each if none is requested."""
    weights = [1.0] * len(entries) if requested is None else [float(weight) for weight in requested]
    if len(weights) != len(entries):
        raise InputError(
            f"reward_weights has {len(weights)} values and reward_model {len(entries)} entries; give one weight per "
            "entry (an ensemble a+b is one entry, the penalties are given in units of the reward)"
        )
    for weight in weights:
        if not math.isfinite(weight):
            raise InputError(f"reward_weights must be finite numbers, not {weight}")
    return weights


def _check_penalties(options: RewardOptions, config: Any) -> None:
    """Raises InputError for a penalty that cannot act in this run."""
    if options.cut_off_penalty and config.mask_truncated_completions:
        raise InputError(
            f"cut_off_penalty {options.cut_off_penalty} cannot act while mask_truncated_completions takes cut-off "
            "answers out of the loss; use one of the two"
        )
    longest = config.max_completion_length
    if options.length_penalty and longest is not None and options.length_penalty_from >= longest:
        raise InputError(
            f"length_penalty_from {options.length_penalty_from} must be below max_completion_length {longest}, else "
            "no answer is long enough for length_penalty"
        )


def _member_record(path: str, standardise: bool) -> dict[str, Any]:
    """The record of a reward model; a hub id is pinned to a commit."""
    commit = commit_of(path) if is_hub_id(path) else None
    check_reward_model(path, commit)
    mean, std = _scale(path) if standardise else (0.0, 1.0)
    weights = weights_id(path, commit)
    return {"reward_model": path, "commit": commit, "weights": weights, "mean": mean, "std": std}


def _scale(path: str) -> tuple[float, float]:
    """Mean and standard deviation of the reward model's scores of held-out answers, from its description file."""
    description = (read_json(Path(path) / DESCRIPTION) or {}) if Path(path).is_dir() else {}
    mean, std = description.get("score_mean"), description.get("score_std")
    if mean is None or std is None:
        raise InputError(
            f"reward model {path} has no {DESCRIPTION} with the mean and standard deviation of its scores, which "
            "puts several reward models on one scale: train it again with this version, or take the scores as they "
            "are by --standardise_rewards false and --reward_weights"
        )
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in (mean, std)) or std <= 0:
        raise InputError(
            f"reward model {path}: {DESCRIPTION} has score_mean {mean} and score_std {std}, they must be finite and "
            "score_std above 0; train it again"
        )
    return float(mean), float(std)


def _check_different(members: list[dict[str, Any]]) -> None:
    """Raises InputError if two members of an ensemble are the same reward model: their spread would mean nothing."""
    path_by_weights: dict[str, str] = {}
    for member in members:
        if other := path_by_weights.get(member["weights"]):
            raise InputError(
                f"the ensemble's members {other} and {member['reward_model']} have the same weights; an ensemble needs "
                "reward models that were trained apart, with other seeds for example"
            )
        path_by_weights[member["weights"]] = member["reward_model"]


def _name(members: list[str], used_names: list[str]) -> str:
    """A short name for the logs: the folder's, or its parent's if the folder is called 'model' (runs/x/reward/model ->
    'reward'); with '-ensemble' for several members, and a number if another part has the name.
    """
    path = Path(members[0]).absolute()
    name = (path.parent.name if path.name == "model" else path.name) or path.name
    name += "-ensemble" if len(members) > 1 else ""
    number = 2
    unique = name
    while unique in used_names:
        unique, number = f"{name}-{number}", number + 1
    return unique
