"""Chooses the tier that scores a model: the fastest that agrees with plain forward passes, whatever the model's name.

A model that ignores masks and positions, or interprets them differently, gives wrong numbers without an error. So each
tier and plain forward passes score a few of the actual prompts in fp32 (a half-precision model is widened module by
module, eval.scorers.local.widen). In half precision a tier must also be no noisier than plain scoring.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.scorers.local.llama_shape import UnsupportedModelError
from eval.scorers.local.portable import RequestedTokens, TokenLogprobs
from eval.scorers.local.prefix_tree import shared_length
from eval.scorers.local.widen import in_fp32

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest allowed difference of an fp32 log-probability from plain scoring, in nats."""
NOISE = 2.0
"""In half precision, how many times the stock model's mean difference from fp32 a tier's may be."""
LEAST_NOISE = 0.01  # nats; allowed even if the stock model happens to have almost no noise
SPREAD = 256
"""Tokens over the whole vocabulary on which noise is measured, besides a prompt's candidates. The few candidates have
nearly the same error, which by luck may be almost none.
"""

Run = Callable[[RequestedTokens, int], Iterator[TokenLogprobs]]
"""(requested tokens, tokens per batch) -> log-probabilities."""
ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
"""What models raise that accept no custom mask or no mixed dtypes. It is logged, since this code may be at fault."""


@dataclass(frozen=True)
class Verdict:
    """The chosen tier, the reason, and the length of the longest sequence that was checked."""

    tier: str
    reason: str
    longest: int


@dataclass(frozen=True)
class Tier:
    """A way to score.

    make(fp32) returns its run. With fp32, for the check, it computes as if all weights were fp32. The plain tier's run
    in half precision uses the model's own output layer, unlike scoring, which uses one in fp32.
    """

    name: str
    make: Callable[[bool], Run]


def choose(model: Any, half: bool, plain: Tier, tiers: Sequence[Tier], requested: RequestedTokens) -> Verdict:
    """Chooses the first tier that agrees with plain forward passes, and logs it.

    Args:
        model: The model.
        half: Whether its weights are in half precision.
        plain: The reference tier.
        tiers: The other tiers, fastest first.
        requested: The sequences to check, with their candidates' tokens.

    Returns:
        The verdict; its tier is plain if no other agrees.
    """
    longest, batch = max(map(len, requested)), 2048
    answer_tokens, requested = requested, _spread(requested, model.config.get_text_config().vocab_size)
    candidates = np.array([token in answer_tokens[s] for s in requested for token in sorted(requested[s])])
    outcomes: list[str] = []
    tier = plain.name
    try:
        with in_fp32(model):
            exact = _values(plain.make(True), requested, batch)
    except ERRORS as error:
        tiers, outcomes = (), [f"fp32 forward passes for a check raised {_describe_error(error)}"]
    else:
        noise = float(np.abs(_values(plain.make(False), requested, batch) - exact).mean()) if half else 0.0
        for candidate in tiers:
            agrees, outcome = _agrees(model, half, candidate, requested, batch, exact, candidates, noise)
            outcomes.append(f"{candidate.name}: {outcome}")
            if agrees:
                tier = candidate.name
                break
    verdict = Verdict(tier, f"{'; '.join(outcomes) or 'no other fits'} ({len(requested)} sequences)", longest)
    log.info("scoring tier: %s (%s)", verdict.tier, verdict.reason)
    return verdict


def _agrees(
    model: Any, half: bool, tier: Tier, requested: RequestedTokens, batch: int, exact: np.ndarray,
    candidates: np.ndarray, noise: float,
) -> tuple[bool, str]:  # fmt: skip
    """Whether a tier agrees with plain scoring, and the outcome as text.

    In fp32 the largest difference of a candidate counts, in half precision the mean difference of all tokens.
    """
    try:
        with in_fp32(model):
            difference = float(np.abs(_values(tier.make(True), requested, batch) - exact)[candidates].max())
        outcome = f"differs from plain fp32 forward passes by at most {difference:.1e}"
        if not difference <= TOLERANCE:  # a NaN does not agree either
            return False, f"{outcome}, more than {TOLERANCE:g}"
        if not half:
            return True, outcome
        mean = float(np.abs(_values(tier.make(False), requested, batch) - exact).mean())
    except UnsupportedModelError as error:
        return False, f"does not fit ({error})"
    except ERRORS as error:
        log.warning("scoring tier %s raised %s and is not used", tier.name, _describe_error(error))
        return False, f"raised {_describe_error(error)}"
    outcome += f"; in half precision by {mean:.3f} on average, the model as it is by {noise:.3f}"
    return mean <= max(NOISE * noise, LEAST_NOISE), outcome


def representative(contexts: Sequence[tuple[int, ...]]) -> list[int]:
    """Indices of prompts to check: the longest, the one sharing most with it, the shortest, one of median length."""
    order = sorted(range(len(contexts)), key=lambda i: contexts[i])
    longest = max(range(len(order)), key=lambda k: len(contexts[order[k]]))
    neighbours = [k for k in (longest - 1, longest + 1) if 0 <= k < len(order)]
    nearest = max(
        neighbours, key=lambda k: shared_length(contexts[order[k]], contexts[order[longest]]), default=longest
    )
    by_length = sorted(order, key=lambda i: len(contexts[i]))
    chosen = [order[longest], order[nearest], by_length[0], by_length[len(order) // 2]]
    return list(dict.fromkeys(chosen))


def _spread(requested: RequestedTokens, vocabulary: int) -> RequestedTokens:
    """Adds SPREAD tokens of the vocabulary to those of each sequence."""
    more = set(range(0, vocabulary, max(1, vocabulary // SPREAD)))
    return {sequence: tokens | more for sequence, tokens in requested.items()}


def _values(run: Run, requested: RequestedTokens, batch: int) -> np.ndarray:
    logprobs: TokenLogprobs = {}
    for part in run(requested, batch):
        logprobs |= part
    return np.array([logprobs[s][token] for s in requested for token in sorted(requested[s])])


def _describe_error(error: Exception) -> str:
    return f"{type(error).__name__} ({' '.join(str(error).split())[:120]})"
