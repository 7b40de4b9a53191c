"""Probabilities counted in sampled answers, for servers that give no log-probabilities.

n answers of a few tokens are sampled at temperature 1, each with a recorded seed. One rule reads them: an answer is the
longest candidate with which the continuation begins, to the letter and as a whole word (" her" is not " he"). White
space at the beginning counts, since another line is another answer, unless the server strips it (lstrip). On the route
instructed, the reply must begin with the requested beginning or directly with a candidate. An unreadable answer is
counted by its reason; it is never a candidate and never an abstention.

The count covers all token sequences that spell the candidate. It exceeds echo's probability of the candidate's own
tokens where a token joins the candidate's end with what follows, as ")." does with " (c)".

A probability is count / n, over all n answers. A count of 0 gives log(FLOOR) and no smoothed value, which would bias
every expected metric. The standard error at p = .5 is .5 / sqrt(n): 0.05 for 100 answers; 0.01 takes 2,500.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval.metrics.sampled_answers import FLOOR
from eval.models.prompt_format import clean
from eval.scorers.endpoint.routes import Route, SampledText, read_sampled
from eval.types import Answer, Prompt, prompt_sha256

EMPTY, OTHER, CUT_OFF, REFUSED = "empty", "other text", "cut off", "refused"
"""Why an answer could not be read, or a question has no reasoning."""
MAX_PER_REQUEST = 128  # answers in a request


@dataclass(frozen=True)
class Sampling:
    """Samples texts from a server.

    Attributes:
        route: The route of the requests.
        samples: Answers per question.
        seed: The run's seed.
        batched: A request may ask for several answers.
        seeded: The server accepts seeds.
        lstrip: The server strips white space from its answers.
        settings: Further settings of every request (see probe.UNMODIFIED).
    """

    route: Route
    samples: int
    seed: int
    batched: bool = True
    seeded: bool = True
    lstrip: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    async def score(self, prompt: Prompt) -> Answer:
        """Samples answers to the prompt and counts the candidates.

        Returns:
            The counts as log-probabilities; if no answer could be read, NaN and the reason in extra["no_answer"].
        """
        size = min(self.samples, MAX_PER_REQUEST) if self.batched else 1
        sizes = [min(size, self.samples - start) for start in range(0, self.samples, size)]
        body, max_tokens = self.route.body(prompt), self._max_tokens(prompt)
        responses = await asyncio.gather(
            *(self.request(body, n, self.request_seed(prompt, k), max_tokens) for k, n in enumerate(sizes))
        )
        sampled = [answer for answers, _ in responses for answer in answers]
        return counted(prompt, self.route, sampled, responses[0][1], self.lstrip)

    async def request(
        self, body: dict[str, Any], n: int, seed: int, max_tokens: int, **more: Any
    ) -> tuple[list[SampledText], int | None]:
        """Samples n texts.

        Args:
            body: Fields of the request that hold the dialogue.
            n: Number of texts.
            seed: Seed of the request.
            max_tokens: Token limit of each text.
            more: Further fields of the request.

        Returns:
            The texts, and the server's count of prompt tokens.
        """
        settings = {"max_tokens": max_tokens, **self.settings, **more}
        settings |= {"seed": seed} if self.seeded else {}
        settings |= {"n": n} if n > 1 else {}
        return await self.route.request(body, lambda a: read_sampled(a, self.route.chat, n), **settings)

    def request_seed(self, prompt: Prompt, k: int) -> int:
        """The seed (31 bits) of a question's k-th request. Depends only on the run seed and the prompt."""
        digest = hashlib.sha256(f"{self.seed}\0{prompt_sha256([prompt])}\0{k}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1

    def _max_tokens(self, prompt: Prompt) -> int:
        """Enough tokens for any candidate and one more character: a token has at least one; most have four."""
        most = max(map(len, prompt.candidates)) + 2
        return most + (len(prompt.turns[-1].text) // 2 if self.route.name == "instructed" else 0)


def counted(
    prompt: Prompt, route: Route, sampled: Sequence[SampledText], prompt_tokens: int | None, lstrip: bool
) -> Answer:
    """Counts the candidates among the sampled answers.

    Args:
        prompt: The prompt with its candidates.
        route: The route by which they were sampled.
        sampled: The sampled answers.
        prompt_tokens: The server's count of prompt tokens, or None.
        lstrip: Ignore white space at the beginning of an answer.

    Returns:
        The answer. extra: counts, samples, unread (by reason), and no_answer if none could be read.
    """
    beginning = prompt.turns[-1].text if route.name == "instructed" else ""
    readings = [read_answer(s, prompt.candidates, beginning, lstrip) for s in sampled]
    counts = [sum(r == k for r in readings) for k in range(len(prompt.candidates))]
    unread = Counter(r for r in readings if isinstance(r, str))
    extra: dict[str, Any] = {"counts": counts, "samples": len(sampled), "unread": dict(sorted(unread.items()))}
    if not sum(counts):
        reasons = ", ".join(f"{n} {reason}" for reason, n in unread.most_common())
        extra["no_answer"] = f"none of {len(sampled)} sampled answers could be read: {reasons}"
        return Answer(np.full(len(counts), math.nan), prompt_tokens, 0, extra)
    return Answer(np.log(np.maximum(np.array(counts) / len(sampled), FLOOR)), prompt_tokens, 0, extra)


def read_answer(
    sampled: SampledText, candidates: Sequence[str], beginning: str = "", lstrip: bool = False
) -> int | str:
    """Reads the candidate with which a sampled answer begins.

    Args:
        sampled: The sampled answer.
        candidates: The texts of the candidates.
        beginning: The text with which the prompt asked the reply to begin; the reply may omit it.
        lstrip: Ignore white space at the beginning.

    Returns:
        The candidate's index, or the reason why there is none.
    """
    text = sampled.text
    if sampled.refused:
        return REFUSED
    if not text.strip():
        return CUT_OFF if sampled.cut_off else EMPTY
    if beginning and text.lstrip().startswith(beginning.strip()):
        text = text.lstrip()[len(beginning.strip()) :]
        if sampled.cut_off and not text.strip():
            return CUT_OFF
    numbers = {c.lstrip() if lstrip else c: k for k, c in enumerate(candidates)}
    text = text.lstrip() if lstrip else text
    for candidate in sorted(numbers, key=len, reverse=True):
        if text.startswith(candidate) and not _continues_word(candidate, text[len(candidate) :]):
            if sampled.cut_off and text == candidate and candidate[-1].isalnum():
                return CUT_OFF  # the word may have gone on
            return numbers[candidate]
    unfinished = any(c.startswith(text) for c in numbers) or (
        beginning and beginning.strip().startswith(sampled.text.strip())
    )
    return CUT_OFF if sampled.cut_off and unfinished else OTHER


def read_reasoning(sampled: SampledText, beginning: str = "") -> tuple[str, str | None]:
    """Reads the reasoning from a sampled text.

    A model that ends at once with an empty text has reasoned that way: the result is the empty text and no reason.

    Args:
        sampled: The sampled text.
        beginning: The text with which the prompt asked the reply to begin; it is removed.

    Returns:
        The reasoning, and None or why there is none: REFUSED, CUT_OFF before any text, or EMPTY if the server gave no
        text.
    """
    text = sampled.text.strip().removeprefix(beginning.strip())
    if sampled.refused:
        return "", REFUSED
    if sampled.cut_off and not text.strip():
        return "", CUT_OFF
    return clean(text), EMPTY if sampled.missing else None


def _continues_word(candidate: str, rest: str) -> bool:
    """Whether the answer's text goes on within the candidate's last word."""
    return candidate[-1].isalnum() and rest[:1].isalnum()
