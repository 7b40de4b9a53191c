"""Measures of the answers that are logged while a policy is trained, and never optimised.

They are heuristics. They show a collapse of the policy that a rising reward hides: one refusal to everything, loops,
ever longer answers. Compare their numbers within a run and between runs of the same kind; none measures safety.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

OPENING = 200
"""A refusal is searched in this many first characters of an answer: one that comes later is part of an answer."""
NGRAM = 3

_CANNOT = (
    r"(?:can ?not|can't|could ?n[o']t|won't|will not|shouldn't|am not able to|'m not able to|am unable to|'m unable to)"
)
_HELP = (
    r"(?:help|assist|answer|provide|comply|do (?:that|this)|support|discuss|fulfil|participate|engage|continue with|"
    r"give (?:you )?(?:advice|instructions|information)|tell you how|share (?:that|this)|create|write (?:that|this)|"
    r"generate|offer|recommend|encourage|condone)"
)
REFUSALS = (
    re.compile(
        rf"\bI(?: simply| really| just)? ?{_CANNOT}(?: in good conscience| ethically| legally)? {_HELP}\b", re.I
    ),
    re.compile(r"\bI(?: must|'ll have to| have to| will have to)? (?:respectfully )?(?:decline|refuse)\b", re.I),
    re.compile(rf"\b(?:sorry|apologi[sz]e|afraid)\b[^.!?]{{0,40}}\bI ?{_CANNOT}\b", re.I),
    re.compile(rf"\bas an? (?:AI|artificial intelligence|language model)\b[^.!?]{{0,60}}\bI ?{_CANNOT}\b", re.I),
    re.compile(r"\bI(?: am|'m) not (?:comfortable|willing|allowed|permitted|going to (?:help|answer|do))\b", re.I),
    re.compile(
        r"\bI (?:do not|don't) (?:feel comfortable|want to help|think I (?:can|should) (?:help|answer))\b", re.I
    ),
    re.compile(r"\b(?:it would be|that(?: is|'s)) (?:inappropriate|unethical|illegal)[^.!?]{0,20} for me to\b", re.I),
)
"""English phrases by which an answer refuses, collected for this project."""


@dataclass(frozen=True)
class Answer:
    """One answer of the policy.

    ids: the sampled tokens, including the end token if there is one. finished: whether it ends with an end token.
    """

    text: str
    ids: Sequence[int]
    finished: bool


def is_refusal(text: str) -> bool:
    """Whether the first OPENING characters contain one of the phrases in REFUSALS. English only; a heuristic.

    It matches wording, not intent: it misses a refusal in other words, and may count an apology followed by help.
    """
    opening = text.strip()[:OPENING].replace("\u2019", "'")
    return any(pattern.search(opening) for pattern in REFUSALS)


def repeated_ngrams(ids: Sequence[int], n: int = NGRAM) -> float:
    """Share of the n-grams that occurred earlier in the answer: 1 - distinct n-grams / n-grams, in [0, 1).

    This is seq-rep-n of Welleck et al. 2020 ("Neural Text Generation with Unlikelihood Training", there with n = 4),
    over the policy's own tokens. An answer of fewer than n tokens has no n-gram, and gets 0.
    """
    ngrams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


OBSERVABLES: dict[str, Callable[[Answer], float]] = {
    "refusals": lambda answer: float(is_refusal(answer.text)),
    "repetition": lambda answer: repeated_ngrams(answer.ids[:-1] if answer.finished else answer.ids),
    "tokens": lambda answer: float(len(answer.ids)),
    "finished": lambda answer: float(answer.finished),
}
"""Each is logged as observed/NAME, the mean over the answers of a step. All are shares, except `tokens`."""
