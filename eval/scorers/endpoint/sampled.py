"""Probabilities counted in sampled answers, for servers that give no log-probabilities.

n answers of a few tokens are drawn at temperature 1, each with a recorded seed, and each is read by one rule: it is the
longest candidate that the continuation begins with, to the letter, a whole word (" her" is not " he"). White space at
the beginning counts as well, since another line is another answer, unless the server strips it (loose). Where the
beginning is only asked for (route instructed) the reply must begin with it, or directly with a candidate. What cannot
be read has a reason and is counted as such; it is never a candidate and never an abstention.

What is counted is whether the text begins with the candidate, over all tokens that write it so: more than echo's
probability of its own tokens where a token joins its end with what follows, as ")." does with " (c)".

A probability is count / n, all n answers. A count of 0 gives log(FLOOR), not a smoothed value, which would bias every
expected metric. Its standard error at p = .5 is .5 / sqrt(n): 0.05 for 100 answers, 0.01 takes 2,500.
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
    """together: a request may ask for several answers. settings: what else every request sends (see probe).
    loose: the server strips white space from what it says.
    """

    route: Route
    samples: int
    seed: int
    batched: bool = True
    seeded: bool = True
    lstrip: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    async def score(self, prompt: Prompt) -> Answer:
        """Counts as log-probabilities; where no answer could be read, NaN and extra['no_answer']."""
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
        """n answers, and the prompt's tokens."""
        settings = {"max_tokens": max_tokens, **self.settings, **more}
        settings |= {"seed": seed} if self.seeded else {}
        settings |= {"n": n} if n > 1 else {}
        return await self.route.request(body, lambda a: read_sampled(a, self.route.chat, n), **settings)

    def request_seed(self, prompt: Prompt, k: int) -> int:
        """The seed of a question's k-th request, 31 bits: of the words alone, whatever is asked beside them."""
        digest = hashlib.sha256(f"{self.seed}\0{prompt_sha256([prompt])}\0{k}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1

    def _max_tokens(self, prompt: Prompt) -> int:
        """Enough for any candidate and a character behind it, since a token has one at least; most texts have four."""
        most = max(map(len, prompt.candidates)) + 2
        return most + (len(prompt.turns[-1].text) // 2 if self.route.name == "instructed" else 0)


def counted(
    prompt: Prompt, route: Route, sampled: Sequence[SampledText], prompt_tokens: int | None, lstrip: bool
) -> Answer:
    """The answer from what was sampled. extra: counts, samples, unread (by reason), no_answer where all are unread."""
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
    """The candidate's number, or the reason why there is none. loose: white space at the beginning does not count.

    beginning: what the reply was asked to begin with, which may be left out.
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
                return CUT_OFF  # it may have been the beginning of a longer word
            return numbers[candidate]
    unfinished = any(c.startswith(text) for c in numbers) or (
        beginning and beginning.strip().startswith(sampled.text.strip())
    )
    return CUT_OFF if sampled.cut_off and unfinished else OTHER


def read_reasoning(sampled: SampledText, beginning: str = "") -> tuple[str, str | None]:
    """The reasoning, and why there is none: REFUSED, CUT_OFF before it had any text, or EMPTY where no text was given.
    A model that says nothing and ends has reasoned so: that is the empty text, and no reason.

    beginning: what the reply was asked to begin with, which is not kept.
    """
    text = sampled.text.strip().removeprefix(beginning.strip())
    if sampled.refused:
        return "", REFUSED
    if sampled.cut_off and not text.strip():
        return "", CUT_OFF
    return clean(text), EMPTY if sampled.missing else None


def _continues_word(candidate: str, rest: str) -> bool:
    """Whether the candidate's last word is only the beginning of the answer's."""
    return candidate[-1].isalnum() and rest[:1].isalnum()
