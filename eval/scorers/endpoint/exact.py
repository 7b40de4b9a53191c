"""Log-probabilities of whole candidates from a server: by echo, or token by token from lists of the most probable.

- echo: the server repeats prompt and candidate with the log-probability of each token. As token ids they are those of
  eval.models.prompt_format.encode; as text the tokens that the prompt alone and the prompt with its candidates share
  are the context, and what was moved across the boundary by a merge is counted as there.
- top: what follows the prompt is looked up in the list of the most probable next tokens; then the candidate's first
  token is put at the end of the prompt and the next one looked up, and so on; the probabilities are multiplied. Which
  tokens a candidate is made of is known from the tokenizer, or found once by the server's counts of prompt tokens, and
  checked by these counts at every prompt. A token that is not listed is less probable than those that are: it gets the
  least listed probability, an upper bound; such candidates are named in the record (`bounded`) and counted.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval.errors import InputError
from eval.models.prompt_format import Encoded, paper_text
from eval.scorers.endpoint.routes import Listed, Route, read_echo, read_listed
from eval.types import Answer, Prompt

Path = tuple[str, ...]
"""The texts of a candidate's tokens."""
Row = list[tuple[str, float | None]]
"""An echoed text: (token, log-probability)."""
WITHOUT_TOKENIZER = "give --tokenizer, the folder or hub id of the model's tokenizer, or --answer_method sampling"


@dataclass(frozen=True)
class Echo:
    """together: several prompts go in one request. generated: 1 where the server cannot do without a new token.
    settings: what else every request sends (see probe).
    """

    route: Route
    together: bool = True
    generated: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    async def score(self, prompt: Prompt) -> Answer:
        """The candidates' log-probabilities. InputError where their tokens cannot be told from the prompt's."""
        if self.route.name == "text":
            text = paper_text(prompt)
            rows = await self.rows([text, *(text + c for c in prompt.candidates)])
            return split(prompt, rows)
        e = self.route.served.encode(prompt)
        rows = await self.rows([[*e.context, *candidate] for candidate in e.candidates])
        sums = [_sum(row[len(e.context) :]) for row in rows]
        return Answer(np.array(sums), len(e.context), e.boundary_moved)

    async def rows(self, prompts: list[Any]) -> list[Row]:
        """Each prompt's tokens, without what was generated behind it."""
        if self.together:
            return await self._asked(prompts)
        return [rows[0] for rows in await asyncio.gather(*(self._asked([p]) for p in prompts))]

    async def _asked(self, prompts: list[Any]) -> list[Row]:
        def read(answer: Any) -> list[Row]:
            rows, counted = read_echo(answer, len(prompts))
            ids = isinstance(prompts[0], list)
            wanted = sum(map(len, prompts)) if ids else counted
            if wanted is None or counted not in (None, wanted):
                raise ValueError(f"{counted} prompt tokens counted instead of {wanted}")
            if not ids and self.generated and len(prompts) == 1:
                rows = [rows[0][:wanted]]
            cut = [row[: len(p)] if ids else row for row, p in zip(rows, prompts, strict=True)]
            if sum(map(len, cut)) != wanted or any(
                len(r) > len(c) + self.generated for r, c in zip(rows, cut, strict=True)
            ):
                raise ValueError(f"{sum(map(len, rows))} tokens echoed instead of {wanted}")
            for row in cut:
                if any(value is None for _, value in row[1:]):
                    raise ValueError("a token without its log-probability")
            return cut

        return await self.route.served.completions(
            prompts if self.together else prompts[0], read, max_tokens=self.generated, echo=True, logprobs=1,
            **self.settings,
        )  # fmt: skip


def _sum(row: Row) -> float:
    values = [value for _, value in row]
    assert all(v is not None for v in values)
    return float(sum(v for v in values if v is not None))


def split(prompt: Prompt, rows: list[Row]) -> Answer:
    """The answer from the echoed prompt alone and with each candidate, as models.prompt_format splits token ids."""
    texts = [[token for token, _ in row] for row in rows]
    context, wholes = texts[0], texts[1:]
    shared = len(context)
    for whole in wholes:
        alike = [a == b for a, b in zip(context, whole, strict=False)]
        shared = min(shared, alike.index(False) if False in alike else len(alike))
    moved = "".join(context[shared:])
    for candidate, whole in zip(prompt.candidates, wholes, strict=True):
        if "".join(whole[shared:]) != moved + candidate or shared == 0:
            raise InputError(
                f"the tokens that the server echoes do not tell where the answer {candidate!r} begins "
                f"({whole[shared:]} behind {context[:shared][-2:]}); {WITHOUT_TOKENIZER}"
            )
    return Answer(np.array([_sum(row[shared:]) for row in rows[1:]]), shared, len(context) - shared)


@dataclass(frozen=True)
class Top:
    """listed: how many of the next tokens are asked for; paths: of each set of candidates, without a tokenizer;
    settings: what else every request sends (see probe); received: how many come, which may be fewer without a word.
    """

    route: Route
    listed: int
    paths: dict[tuple[str, ...], tuple[Path, ...]]
    settings: dict[str, Any] = field(default_factory=dict)
    received: int = 0

    async def score(self, prompt: Prompt) -> Answer:
        """The candidates' log-probabilities, or their upper bounds (Answer.extra)."""
        if self.route.name == "ids":
            return await self._by_ids(prompt)
        paths = self.paths[prompt.candidates]
        before = list(dict.fromkeys("".join(path[:k]) for path in paths for k in range(len(path))))
        asked = await asyncio.gather(*(self.ask(prompt, b, must_count=True) for b in before))
        lists = dict(zip(before, asked, strict=True))
        first = lists[""].prompt_tokens
        assert first is not None  # must_count
        for path in paths:
            for k in range(len(path)):
                counted = lists["".join(path[:k])].prompt_tokens
                if counted != first + k:
                    raise InputError(
                        f"the server's tokenizer joins {''.join(path[:k])!r} with the prompt that ends "
                        f"{prompt.turns[-1].text[-20:]!r} ({counted} tokens, {first} without it); {WITHOUT_TOKENIZER}"
                    )
        steps = [[(lists["".join(path[:k])], token) for k, token in enumerate(path)] for path in paths]
        return _multiplied(steps, first, 0)

    async def _by_ids(self, prompt: Prompt) -> Answer:
        tokenizer = self.route.served.tokenizer
        e = self.route.served.encode(prompt)
        before = list(dict.fromkeys(c[:k] for c in e.candidates for k in range(len(c))))
        asked = await asyncio.gather(*(self.ask_ids(e, b) for b in before))
        lists = dict(zip(before, asked, strict=True))
        steps = [[(lists[c[:k]], str(tokenizer.decode([t]))) for k, t in enumerate(c)] for c in e.candidates]
        return _multiplied(steps, len(e.context), e.boundary_moved)

    async def ask(self, prompt: Prompt, forced: str = "", must_count: bool = False) -> Listed:
        """What follows the prompt and `forced`; must_count: an answer without the prompt's tokens is none."""

        def read(answer: Any) -> Listed:
            found = read_listed(answer, self.route.chat)
            if must_count and found.prompt_tokens is None:
                raise ValueError("the prompt's tokens are not counted")
            return found

        names = {"logprobs": True, "top_logprobs": self.listed} if self.route.chat else {"logprobs": self.listed}
        return await self.route.ask(
            self.route.body(prompt, forced), read, max_tokens=1, **names,
            **self.settings,
        )  # fmt: skip

    async def ask_ids(self, e: Encoded, forced: tuple[int, ...]) -> Listed:
        """What follows the context and the token ids `forced`."""
        ids = [*e.context, *forced]

        def read(answer: Any) -> Listed:
            found = read_listed(answer, chat=False)
            if found.prompt_tokens not in (None, len(ids)):
                raise ValueError(f"{found.prompt_tokens} prompt tokens counted instead of {len(ids)}")
            return found

        return await self.route.served.completions(
            ids, read, max_tokens=1, logprobs=self.listed, **self.settings
        )  # fmt: skip


def _multiplied(steps: list[list[tuple[Listed, str]]], prompt_tokens: int, moved: int) -> Answer:
    """The sums over each candidate's (list, token). InputError where a listed text may be either of two tokens."""
    sums, bounded = [], []
    for k, found in enumerate(steps):
        for listed, token in found:
            if token in listed.doubled:
                raise InputError(
                    f"the server lists two tokens as {token!r}, so which is the answer's cannot be told; use "
                    "--answer_method sampling"
                )
        if any(token not in listed.logprobs for listed, token in found):
            bounded.append(k)
        sums.append(sum(listed.logprobs.get(token, listed.bound) for listed, token in found))
    return Answer(np.array(sums), prompt_tokens, moved, {"bounded": bounded} if bounded else {})
