"""Checks that a reward model scores dialogues in a batch as plain forward passes score each of them.

A model class that finds the last token in its own way, or reads padding as text, gives wrong rewards without an error.
So loading a reward model scores a few dialogues of different lengths both ways. A half-precision model is compared in
fp32 (eval.scorers.local.widen), since its rounding may be as large as the difference between two tokens. In addition,
its batch must not be noisier than its plain passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from eval.errors import InputError
from eval.scorers.local.selfcheck import ERRORS
from eval.scorers.local.widen import HALF, in_fp32
from reward.dialogues import all_token_ids
from reward.padding import DIALOGUE, pad_token_as

COUNTED = (3, 12, 30)
PROBES = [
    DIALOGUE,
    *([{"role": "user", "content": f"Count to {n}."},
       {"role": "assistant", "content": " ".join(map(str, range(1, n + 1)))}] for n in COUNTED),
]  # fmt: skip
"""One turn each: a template may refuse more."""
TOLERANCE = 1e-3
"""Largest difference in fp32: reward units, or relative to the largest reward if that is above 1. SmolLM2-135M with a
random head differs by 5e-7 from rounding, and by 0.06 to 0.5 if the token before the last is read.
"""
NOISE = 4.0
"""In half precision, a batch's mean difference from fp32 may be this many times that of plain passes. The sample is
small: SmolLM2-135M in bf16 differs by 0.023 in a batch and by 0.018 in plain passes.
"""
LEAST_NOISE = 0.02
"""The same in units of TOLERANCE, in case plain passes of these few dialogues have next to no noise."""


class Batched(Protocol):
    """The attributes of a reward.scoring.RewardModel that the check needs."""

    model: Any
    tokenizer: Any
    context: int | None

    @property
    def name(self) -> str: ...

    def batched_scores(self, ids: Sequence[Sequence[int]]) -> np.ndarray: ...


def check_pooling(reward_model: Batched) -> None:
    """Compares scores in a batch with those of plain forward passes.

    Raises:
        InputError: a dialogue's two scores differ, or one is not a finite number.
    """
    model, name = reward_model.model, f"reward model {reward_model.name} ({type(reward_model.model).__name__})"
    context = reward_model.context
    ids = [i for i in all_token_ids(reward_model.tokenizer, PROBES) if context is None or len(i) <= context]
    if not ids:
        raise InputError(f"{name} reads at most {context} tokens, fewer than a greeting has; give another reward model")
    half = any(p.dtype in HALF for p in model.parameters())
    try:
        with in_fp32(model):
            exact_N, batched_N = plain_scores(model, ids), reward_model.batched_scores(ids)
        plain_half_N, half_N = (plain_scores(model, ids), reward_model.batched_scores(ids)) if half else (exact_N,) * 2
    except ERRORS as error:
        text = " ".join(str(error).split())[:200]
        remedy = "load it in float32, or give" if half else "give"
        raise InputError(
            f"{name} cannot be checked against plain forward passes: {type(error).__name__} ({text}); {remedy} a "
            "sequence classification model of transformers"
        ) from error
    check_finite(half_N if half else batched_N, reward_model.name)
    check_finite(exact_N, reward_model.name)
    largest = max(1.0, np.abs(exact_N).max())
    off_N = np.abs(batched_N - exact_N)
    if not off_N.max() <= TOLERANCE * largest:
        worst = int(off_N.argmax())
        raise InputError(
            f"{name} gives a dialogue {batched_N[worst]:.4f} in a batch and {exact_N[worst]:.4f} alone, more than "
            f"{TOLERANCE * largest:g} apart: its class does not read the last token of a padded dialogue; give a "
            "reward model whose class does, as transformers' sequence classification"
        )
    noise, off = (float(np.abs(scores_N - exact_N).mean()) for scores_N in (plain_half_N, half_N))
    if half and off > max(NOISE * noise, LEAST_NOISE * largest):
        raise InputError(
            f"{name} in half precision is off by {off:.4f} in a batch and by {noise:.4f} alone, on average; load it in "
            "float32"
        )


def check_finite(scores_N: np.ndarray, name: str) -> None:
    """Raises InputError for a score that is not a finite number."""
    bad = np.flatnonzero(~np.isfinite(scores_N))
    if len(bad):
        raise InputError(
            f"the reward model {name} gives {scores_N[bad[0]]} to {len(bad)} of {len(scores_N)} dialogues, first "
            f"to number {bad[0] + 1}; its weights are broken or overflow: load it in float32, or train it again"
        )


@torch.inference_mode()
def plain_scores(model: Any, ids: Sequence[Sequence[int]]) -> np.ndarray:
    """(N,) scores by one forward pass for each dialogue's tokens, without padding."""
    device, pad = next(model.parameters()).device, getattr(model.config.get_text_config(), "pad_token_id", None)
    scores = []
    for dialogue_ids in ids:
        with pad_token_as(model, None if pad in dialogue_ids else pad):
            scores.append(model(input_ids=torch.tensor([dialogue_ids], device=device)).logits[0, 0].item())
    return np.array(scores)
