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
from eval.scorers.endpoint.routes import Route, TopTokens, read_echo, read_top_tokens
from eval.types import Answer, Prompt

TokenPath = tuple[str, ...]
"""The texts of a candidate's tokens."""
EchoedRow = list[tuple[str, float | None]]
"""An echoed text: (token, log-probability)."""
WITHOUT_TOKENIZER = "give --tokenizer, the folder or hub id of the model's tokenizer, or --answer_method sampling"


@dataclass(frozen=True)
class Echo:
    """together: several prompts go in one request. generated: 1 where the server cannot do without a new token.
    settings: what else every request sends (see probe).
    """

    route: Route
    batched: bool = True
    generated: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    async def score(self, prompt: Prompt) -> Answer:
        """The candidates' log-probabilities. InputError where their tokens cannot be told from the prompt's."""
        if self.route.name == "text":
            text = paper_text(prompt)
            rows = await self.rows([text, *(text + c for c in prompt.candidates)])
            return split(prompt, rows)
        encoded = self.route.served.encode(prompt)
        rows = await self.rows([[*encoded.context, *candidate] for candidate in encoded.candidates])
        sums = [_total(row[len(encoded.context) :]) for row in rows]
        return Answer(np.array(sums), len(encoded.context), encoded.boundary_moved)

    async def rows(self, prompts: list[Any]) -> list[EchoedRow]:
        """Each prompt's tokens, without what was generated behind it."""
        if self.batched:
            return await self._request(prompts)
        return [rows[0] for rows in await asyncio.gather(*(self._request([p]) for p in prompts))]

    async def _request(self, prompts: list[Any]) -> list[EchoedRow]:
        def read(answer: Any) -> list[EchoedRow]:
            rows, counted_tokens = read_echo(answer, len(prompts))
            is_ids = isinstance(prompts[0], list)
            expected = sum(map(len, prompts)) if is_ids else counted_tokens
            if expected is None or counted_tokens not in (None, expected):
                raise ValueError(f"{counted_tokens} prompt tokens counted instead of {expected}")
            if not is_ids and self.generated and len(prompts) == 1:
                rows = [rows[0][:expected]]
            prompt_rows = [row[: len(p)] if is_ids else row for row, p in zip(rows, prompts, strict=True)]
            if sum(map(len, prompt_rows)) != expected or any(
                len(r) > len(c) + self.generated for r, c in zip(rows, prompt_rows, strict=True)
            ):
                raise ValueError(f"{sum(map(len, rows))} tokens echoed instead of {expected}")
            for row in prompt_rows:
                if any(value is None for _, value in row[1:]):
                    raise ValueError("a token without its log-probability")
            return prompt_rows

        return await self.route.served.completions(
            prompts if self.batched else prompts[0], read, max_tokens=self.generated, echo=True, logprobs=1,
            **self.settings,
        )  # fmt: skip


def _total(row: EchoedRow) -> float:
    values = [value for _, value in row]
    assert all(v is not None for v in values)
    return float(sum(v for v in values if v is not None))


def split(prompt: Prompt, rows: list[EchoedRow]) -> Answer:
    """The answer from the echoed prompt alone and with each candidate, as models.prompt_format splits token ids."""
    texts = [[token for token, _ in row] for row in rows]
    context, with_candidates = texts[0], texts[1:]
    shared = len(context)
    for tokens in with_candidates:
        equal = [a == b for a, b in zip(context, tokens, strict=False)]
        shared = min(shared, equal.index(False) if False in equal else len(equal))
    moved = "".join(context[shared:])
    for candidate, tokens in zip(prompt.candidates, with_candidates, strict=True):
        if "".join(tokens[shared:]) != moved + candidate or shared == 0:
            raise InputError(
                f"the tokens that the server echoes do not tell where the answer {candidate!r} begins "
                f"({tokens[shared:]} behind {context[:shared][-2:]}); {WITHOUT_TOKENIZER}"
            )
    return Answer(np.array([_total(row[shared:]) for row in rows[1:]]), shared, len(context) - shared)


@dataclass(frozen=True)
class Top:
    """listed: how many of the next tokens are asked for; paths: of each set of candidates, without a tokenizer;
    settings: what else every request sends (see probe); received: how many come, which may be fewer without a word.
    """

    route: Route
    requested: int
    paths: dict[tuple[str, ...], tuple[TokenPath, ...]]
    settings: dict[str, Any] = field(default_factory=dict)
    received: int = 0

    async def score(self, prompt: Prompt) -> Answer:
        """The candidates' log-probabilities, or their upper bounds (Answer.extra)."""
        if self.route.name == "ids":
            return await self._by_ids(prompt)
        paths = self.paths[prompt.candidates]
        prefixes = list(dict.fromkeys("".join(path[:k]) for path in paths for k in range(len(path))))
        responses = await asyncio.gather(*(self.request(prompt, prefix, require_count=True) for prefix in prefixes))
        lists = dict(zip(prefixes, responses, strict=True))
        base_tokens = lists[""].prompt_tokens
        assert base_tokens is not None  # require_count
        for path in paths:
            for k in range(len(path)):
                counted_tokens = lists["".join(path[:k])].prompt_tokens
                if counted_tokens != base_tokens + k:
                    raise InputError(
                        f"the server's tokenizer joins {''.join(path[:k])!r} with the prompt that ends "
                        f"{prompt.turns[-1].text[-20:]!r} ({counted_tokens} tokens, {base_tokens} without it); "
                        f"{WITHOUT_TOKENIZER}"
                    )
        steps = [[(lists["".join(path[:k])], token) for k, token in enumerate(path)] for path in paths]
        return _multiply(steps, base_tokens, 0)

    async def _by_ids(self, prompt: Prompt) -> Answer:
        tokenizer = self.route.served.tokenizer
        encoded = self.route.served.encode(prompt)
        prefixes = list(dict.fromkeys(c[:k] for c in encoded.candidates for k in range(len(c))))
        responses = await asyncio.gather(*(self.request_ids(encoded, prefix) for prefix in prefixes))
        lists = dict(zip(prefixes, responses, strict=True))
        steps = [[(lists[c[:k]], str(tokenizer.decode([t]))) for k, t in enumerate(c)] for c in encoded.candidates]
        return _multiply(steps, len(encoded.context), encoded.boundary_moved)

    async def request(self, prompt: Prompt, forced: str = "", require_count: bool = False) -> TopTokens:
        """What follows the prompt and `forced`; must_count: an answer without the prompt's tokens is none."""

        def read(answer: Any) -> TopTokens:
            top_tokens = read_top_tokens(answer, self.route.chat)
            if require_count and top_tokens.prompt_tokens is None:
                raise ValueError("the prompt's tokens are not counted")
            return top_tokens

        names = {"logprobs": True, "top_logprobs": self.requested} if self.route.chat else {"logprobs": self.requested}
        return await self.route.request(
            self.route.body(prompt, forced), read, max_tokens=1, **names,
            **self.settings,
        )  # fmt: skip

    async def request_ids(self, encoded: Encoded, forced: tuple[int, ...]) -> TopTokens:
        """What follows the context and the token ids `forced`."""
        ids = [*encoded.context, *forced]

        def read(answer: Any) -> TopTokens:
            top_tokens = read_top_tokens(answer, chat=False)
            if top_tokens.prompt_tokens not in (None, len(ids)):
                raise ValueError(f"{top_tokens.prompt_tokens} prompt tokens counted instead of {len(ids)}")
            return top_tokens

        return await self.route.served.completions(
            ids, read, max_tokens=1, logprobs=self.requested, **self.settings
        )  # fmt: skip


def _multiply(steps: list[list[tuple[TopTokens, str]]], prompt_tokens: int, boundary_moved: int) -> Answer:
    """The sums over each candidate's (list, token). InputError where a listed text may be either of two tokens."""
    sums, bounded = [], []
    for k, candidate_steps in enumerate(steps):
        for listed, token in candidate_steps:
            if token in listed.ambiguous:
                raise InputError(
                    f"the server lists two tokens as {token!r}, so which is the answer's cannot be told; use "
                    "--answer_method sampling"
                )
        if any(token not in listed.logprobs for listed, token in candidate_steps):
            bounded.append(k)
        sums.append(sum(listed.logprobs.get(token, listed.bound) for listed, token in candidate_steps))
    return Answer(np.array(sums), prompt_tokens, boundary_moved, {"bounded": bounded} if bounded else {})
