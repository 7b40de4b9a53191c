"""Loads and checks a reward model, which gives each dialogue one number.

A dialogue is a list of {"role", "content"} messages that ends with the assistant's answer. The reward model's own chat
template formats it, exactly as TRL's RewardTrainer does in training. A dialogue longer than the training limit is cut
from the left by whole turns (reward.dialogues), as in training; if its last turn alone is longer, it is read whole, up
to the model's context. The reward is the head's output at the last token, whatever token the model or the tokenizer
pads with (reward.padding). reward.selfcheck checks this when the model is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from eval.errors import InputError
from eval.files import read_json
from eval.models.checkpoints import (
    UNREADABLE,
    check_model,
    choose_device,
    is_hub_id,
    load_error,
    load_tokenizer,
    weights_id,
)
from eval.models.checks import check_all_loaded, check_vocabulary
from eval.models.hub import commit_of
from reward.dialogues import Message, Pair, cut_by_turns, prefix_ids, token_ids
from reward.padding import DIALOGUE, closing_token, loading_options, pad_token_as, unused_token
from reward.quality import ScoredPair
from reward.selfcheck import check_finite, check_pooling

log = logging.getLogger(__name__)

DESCRIPTION = "reward_model.json"
"""In the folder of a reward model trained here: its training data, max_length and quality."""
TRAINING_PROMPTS = "training_prompts.json"
"""In the same folder: Pair.origin of every training pair, with which RL leaves these prompts out."""
HINT = "train one with `accelerate launch -m reward.train`"


@dataclass
class RewardModel:
    """A reward model with its tokenizer and limits.

    model: sequence classification with one output, in evaluation mode. max_length: tokens; None: no limit.
    description: reward_model.json; empty for a reward model trained elsewhere. provenance: name, weights, dtype.
    padding: the token that batches are padded with, as in training; None: one that no dialogue of a batch has.
    """

    model: Any
    tokenizer: Any
    max_length: int | None
    context: int | None
    provenance: dict[str, Any]
    description: dict[str, Any] = field(default_factory=dict)
    batch_tokens: int = 8192
    padding: int | None = None

    @property
    def name(self) -> str:
        return self.provenance["reward_model"]

    def ids(self, dialogue: Sequence[Message]) -> list[int]:
        """The token ids that the model reads. Raises InputError if there are more than its context."""
        messages = list(dialogue)
        if self.max_length is not None:
            messages = cut_by_turns(messages, self.tokenizer, self.max_length) or messages
        ids = token_ids(self.tokenizer, messages)
        if self.context is not None and len(ids) > self.context:
            raise InputError(
                f"a dialogue has {len(ids)} tokens in its last turn and answer, the reward model {self.name} reads at "
                f"most {self.context}; shorten or remove it"
            )
        return ids

    def scores(self, dialogues: Sequence[Sequence[Message]], progress: bool = False) -> np.ndarray:
        """Scores N dialogues; up to rounding, a score does not depend on the batch.

        Returns:
            (N,) float64 rewards, in the order of the dialogues.

        Raises:
            InputError: a score is not a finite number.
        """
        scores_N = self._run_batches(dialogues, progress)[:, 0]
        check_finite(scores_N, self.name)
        return scores_N

    def batched_scores(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """(N,) scores of N dialogues' token ids in one padded batch; not checked to be finite."""
        return self._forward(ids, None)[:, 0]

    def features(self, dialogues: Sequence[Sequence[Message]], progress: bool = False) -> np.ndarray:
        """(N, H) float64: the input of the head for each dialogue, the last token's hidden state."""
        hidden_states: list[torch.Tensor] = []
        hook = self.model.score.register_forward_pre_hook(lambda _, inputs: hidden_states.append(inputs[0]))
        try:
            return self._run_batches(dialogues, progress, hidden_states)
        finally:
            hook.remove()

    def _run_batches(
        self, dialogues: Sequence[Sequence[Message]], progress: bool, hidden_states: list[torch.Tensor] | None = None
    ) -> np.ndarray:
        """(N, 1) scores, or (N, H) of the hidden states that each forward pass appends to `hidden_states`."""
        ids = [self.ids(d) for d in dialogues]
        outputs: list[np.ndarray] = [np.empty(0)] * len(ids)
        with tqdm(total=len(ids), desc="reading", unit="dialogue", disable=not progress) as bar:
            for batch in batches([len(i) for i in ids], self.batch_tokens):
                rows = self._forward([ids[i] for i in batch], hidden_states)
                for i, row in zip(batch, rows, strict=True):
                    outputs[i] = row
                bar.update(len(batch))
        return np.array(outputs)

    @torch.inference_mode()
    def _forward(self, ids: Sequence[Sequence[int]], hidden_states: list[torch.Tensor] | None) -> np.ndarray:
        padding = self._choose_padding(ids)
        if padding is None and len(ids) > 1:  # the dialogues use every token of the vocabulary
            return np.concatenate([self._forward([one], hidden_states) for one in ids])
        rows = torch.full((len(ids), max(map(len, ids))), padding or 0)
        mask = torch.zeros_like(rows)
        for row, row_mask, one in zip(rows, mask, ids, strict=True):
            row[: len(one)] = torch.tensor(one)
            row_mask[: len(one)] = 1
        device = next(self.model.parameters()).device
        with pad_token_as(self.model, padding):
            logits = self.model(input_ids=rows.to(device), attention_mask=mask.to(device)).logits
        if hidden_states is None:
            return logits.double().cpu().numpy()
        last = torch.tensor([len(one) - 1 for one in ids])
        return hidden_states.pop()[torch.arange(len(ids)), last.to(device)].double().cpu().numpy()

    def _choose_padding(self, ids: Sequence[Sequence[int]]) -> int | None:
        if self.padding is not None:
            return self.padding
        config = self.model.config.get_text_config()
        preferred = getattr(config, "pad_token_id", None), self.tokenizer.pad_token_id
        return unused_token(ids, getattr(config, "vocab_size", len(self.tokenizer)), preferred)


def score_pairs(reward_model: RewardModel, pairs: Sequence[Pair]) -> list[ScoredPair]:
    """The pairs with the scores of both answers."""
    answers = [answer for p in pairs for answer in (p.prompt + p.chosen, p.prompt + p.rejected)]
    scores = reward_model.scores(answers, progress=True)
    lengths = [len(reward_model.tokenizer(d[-1]["content"], add_special_tokens=False).input_ids) for d in answers]
    scored_pairs = []
    for i, p in zip(range(0, len(answers), 2), pairs, strict=True):
        chosen, rejected = map(float, scores[i : i + 2])
        prompt_id = (p.prompt_ids or prefix_ids(p.prompt))[-1]
        scored_pairs.append(ScoredPair(p.where, p.subset, prompt_id, chosen, rejected, lengths[i], lengths[i + 1]))
    return scored_pairs


def batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices in batches of similar lengths, longest first, each of at most `batch_tokens` padded tokens."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= batch_tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def load_reward_model(
    path: str, revision: str | None = None, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
) -> RewardModel:
    """Loads a reward model from a folder or the hub.

    Raises:
        InputError: it cannot be loaded, or its head or its tokenizer does not fit.
    """
    from transformers import AutoModelForSequenceClassification

    commit = commit_of(path, revision) if is_hub_id(path) else None
    config = check_reward_model(path, commit, trust_remote_code)
    tokenizer = load_tokenizer(path, commit, trust_remote_code)
    check_fits(tokenizer, config, path)
    try:
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            path, revision=commit, dtype=dtype, output_loading_info=True, trust_remote_code=trust_remote_code,
            **loading_options(config),
        )  # fmt: skip
    except UNREADABLE as error:
        raise InputError(f"reward model {path} cannot be loaded: {load_error(error, path, revision)}") from error
    model, loading_info = loaded
    check_all_loaded(loading_info, path, "reward model")
    head_in_fp32(model)
    description = (read_json(Path(path) / DESCRIPTION) or {}) if Path(path).is_dir() else {}
    provenance = {
        "reward_model": path,
        "commit": commit,
        "weights": weights_id(path, commit),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    if tokenizer.pad_token_id == closing_token(tokenizer):
        provenance["read_at"] = "last token"  # an earlier version read the token before
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    reward_model = RewardModel(
        model.to(choose_device(device)).eval(), tokenizer, description.get("max_length"), context, provenance,
        description,
    )  # fmt: skip
    check_trained_token(reward_model)
    check_pooling(reward_model)
    return reward_model


def check_trained_token(reward_model: RewardModel) -> None:
    """Warns of a padding token that ends dialogues: with it, transformers alone reads the token before.

    Raises:
        InputError: an earlier version trained the reward model on that token.
    """
    closing = closing_token(reward_model.tokenizer)
    if getattr(reward_model.model.config.get_text_config(), "pad_token_id", None) != closing:
        return
    text = reward_model.tokenizer.decode([closing])
    if reward_model.description:
        raise InputError(
            f"reward model {reward_model.name} was trained by an earlier version on the token before {text!r}, which "
            "it pads with; what is read now is the last token, on which it was not trained: train it again"
        )
    log.warning(
        "reward model %s pads with %r, which also ends its dialogues: read is this last token, while transformers "
        "alone reads the token before; if it was trained so, its rewards here are not those it was trained for",
        reward_model.name, text,
    )  # fmt: skip


def check_reward_model(path: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The configuration. Raises InputError unless it is a sequence classification model with one output."""
    if not is_hub_id(path) and not Path(path).exists():
        raise InputError(f"reward model {path}: there is no such folder; {HINT}")
    config = check_model(path, revision, trust_remote_code)
    architectures = getattr(config, "architectures", None) or []
    if not any("SequenceClassification" in name or "RewardModel" in name for name in architectures):
        names = ", ".join(architectures) or "nothing known"
        raise InputError(f"reward model {path} is {names}, it must be a sequence classification model; {HINT}")
    if config.num_labels != 1:
        raise InputError(f"reward model {path} has {config.num_labels} outputs, it must have one; {HINT}")
    return config


def check_fits(tokenizer: Any, config: Any, path: str) -> None:
    """Raises InputError if the tokenizer has no chat template, or writes tokens that the model does not have."""
    if not tokenizer.chat_template:
        raise InputError(
            f"the tokenizer of reward model {path} has no chat template, by which it reads dialogues; save the one "
            "that it was trained with beside the tokenizer"
        )
    check_vocabulary(tokenizer, config, path)
    rows = getattr(config.get_text_config(), "vocab_size", None)
    largest = max(token_ids(tokenizer, DIALOGUE))
    if rows is not None and largest >= rows:
        raise InputError(
            f"reward model {path} has tokens 0 to {rows - 1} and its tokenizer writes token {largest} "
            f"({tokenizer.decode([largest])!r}): they do not belong together; give a folder with its own tokenizer"
        )


def head_in_fp32(model: Any) -> None:
    """Makes the head of a half-precision model read and return fp32: with 8 bits, many pairs would tie."""
    head = getattr(model, "score", None)
    if isinstance(head, torch.nn.Linear) and head.weight.dtype != torch.float32:
        head.float()
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))
