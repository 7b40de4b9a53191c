"""Prompts, and their log-probabilities by a tier."""

from __future__ import annotations

import numpy as np

from eval.scorers.local.transformers import TransformersScorer
from eval.types import Prompt, Turn

CANDIDATES = (" (a)", " (b)", " (c) or so")


TEXTS = ("What is it?", "What is it? Tell me.", "Who was it?", "What is it? Tell me all that you know of it, and why.")


PROMPTS = [Prompt((Turn("human", text), Turn("assistant", "I think that")), CANDIDATES) for text in TEXTS]


def scored(scorer: TransformersScorer, prompts: list[Prompt]) -> np.ndarray:
    answers = dict(scorer.score(prompts))
    return np.concatenate([answers[i].logprobs for i in range(len(prompts))])
