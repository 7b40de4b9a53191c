"""Which tier the self-check takes, on runs whose errors are planted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from eval.scorers.local.portable import RequestedTokens, TokenLogprobs
from eval.scorers.local.selfcheck import Run, Tier, choose

WANTED: RequestedTokens = {(1, 2, 3): {5, 6, 7}, (1, 2, 4): {5, 6, 7}}
VOCABULARY = 1000


def tier(name: str, error: Callable[[int, np.random.Generator], float], off: float = 0.0) -> Tier:
    """Log-probabilities that are -token in fp32, wrong by `off`, and wrong by `error` in half precision."""

    def make(fp32: bool) -> Run:
        rng = np.random.default_rng(len(name))

        def run(wanted: RequestedTokens, batch_tokens: int) -> Iterator[TokenLogprobs]:
            yield {s: {t: -t + (off if fp32 else error(t, rng)) for t in tokens} for s, tokens in wanted.items()}

        return run

    return Tier(name, make)


def lucky(token: int, rng: np.random.Generator) -> float:
    """Half precision that happens to be right on the candidates."""
    return 0.0 if token in (5, 6, 7) else rng.normal(0, 0.05)


@pytest.mark.parametrize(
    ("fast", "taken"),
    [
        (tier("fast", lambda _, rng: rng.normal(0, 0.05)), "fast"),
        (tier("fast", lambda _, rng: rng.normal(0, 0.5)), "plain"),
        (tier("fast", lucky, off=2e-4), "plain"),
        (tier("fast", lucky, off=float("nan")), "plain"),
    ],
)
def test_noise_is_not_judged_by_a_few_lucky_candidates(fast: Tier, taken: str) -> None:
    model: Any = torch.nn.Linear(1, 1).bfloat16()
    model.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=VOCABULARY))
    assert choose(model, True, tier("plain", lucky), [fast], WANTED).tier == taken
