"""Log-probabilities of whole candidates from a server, by echo or from lists of the most probable next tokens.

- echo: the server repeats prompt and candidate with the log-probability of each token. Sent as token ids, the tokens
  are those of eval.models.prompt_format.encode. Sent as text, the context is the tokens that the prompt alone and the
  prompt with each of its candidates share; tokens that a merge moved across the boundary are counted as there.
- top: the candidate's first token is looked up in the list of the most probable next tokens. It is then appended to the
  prompt and the next token looked up, and so on; the probabilities are multiplied. The tokenizer gives the tokens of a
  candidate; without one they are found once from the server's counts of prompt tokens, and these counts check them
  again at every prompt. A token that is not listed is less probable than the listed ones. It gets the least listed
  probability, an upper bound; the record names such candidates (`bounded`) and they are counted.
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
"""The tokens of an echoed text: (token, log-probability, or None for the first token)."""
WITHOUT_TOKENIZER = "give --tokenizer, the folder or hub id of the model's tokenizer, or --answer_method sampling"


@dataclass(frozen=True)
class Echo:
    """Scores candidates by echo.

    Attributes:
        route: The route of the requests: ids or text.
        batched: Several prompts go into one request.
        generated: New tokens to generate: 0, or 1 where the server refuses 0.
        settings: Further settings of every request (see probe.UNMODIFIED).
    """

    route: Route
    batched: bool = True
    generated: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    async def score(self, prompt: Prompt) -> Answer:
        """The candidates' log-probabilities.

        Raises:
            InputError: The echoed tokens do not show where a candidate begins.
        """
        if self.route.name == "text":
            text = paper_text(prompt)
            rows = await self.rows([text, *(text + c for c in prompt.candidates)])
            return split(prompt, rows)
        encoded = self.route.served.encode(prompt)
        rows = await self.rows([[*encoded.context, *candidate] for candidate in encoded.candidates])
        sums = [_total(row[len(encoded.context) :]) for row in rows]
        return Answer(np.array(sums), len(encoded.context), encoded.boundary_moved)

    async def rows(self, prompts: list[Any]) -> list[EchoedRow]:
        """Each prompt's echoed tokens, without any generated token.

        Args:
            prompts: Texts, or lists of token ids.
        """
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
    """Computes the answer from the echoed tokens, splitting as eval.models.prompt_format splits token ids.

    Args:
        prompt: The prompt with its candidates.
        rows: The echo of the prompt alone, then of the prompt with each candidate.

    Raises:
        InputError: The tokens do not show where a candidate begins.
    """
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
    """Scores candidates from the lists of the most probable next tokens.

    Attributes:
        route: The route of the requests.
        requested: How many of the next tokens each request asks for.
        paths: The candidates' tokens, by set of candidates; needed only without a tokenizer.
        settings: Further settings of every request (see probe.UNMODIFIED).
        received: How many tokens the server lists; it may silently list fewer than requested.
    """

    route: Route
    requested: int
    paths: dict[tuple[str, ...], tuple[TokenPath, ...]]
    settings: dict[str, Any] = field(default_factory=dict)
    received: int = 0

    async def score(self, prompt: Prompt) -> Answer:
        """The candidates' log-probabilities. Upper bounds among them are named in Answer.extra["bounded"].

        Raises:
            InputError: The server's tokenizer merges a candidate with the prompt, or lists two tokens with a
                candidate's text.
        """
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
        """The most probable tokens after the prompt and `forced`.

        Args:
            prompt: The prompt.
            forced: Text to append to the prompt.
            require_count: Reject an answer that does not count the prompt's tokens.
        """

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
        """The most probable tokens after the context and the token ids `forced`."""
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
    """Sums the log-probabilities along each candidate's steps.

    Args:
        steps: For each candidate the (list, token) of each of its tokens.
        prompt_tokens: Number of tokens of the prompt.
        boundary_moved: Number of prompt tokens that were moved into the candidates.

    Raises:
        InputError: The server lists two tokens with the same text as a candidate's token.
    """
    sums, bounded = [], []
    for k, candidate_steps in enumerate(steps):
        for listed, token in candidate_steps:
            if token in listed.ambiguous:
                raise InputError(
                    f"the server lists two tokens as {token!r}, so which one belongs to the answer is unknown; use "
                    "--answer_method sampling"
                )
        if any(token not in listed.logprobs for listed, token in candidate_steps):
            bounded.append(k)
        sums.append(sum(listed.logprobs.get(token, listed.bound) for listed, token in candidate_steps))
    return Answer(np.array(sums), prompt_tokens, boundary_moved, {"bounded": bounded} if bounded else {})
