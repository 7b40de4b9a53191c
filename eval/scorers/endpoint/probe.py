"""The questions that are put to a server to find out what it can do (eval.scorers.endpoint.capabilities uses the best
of it).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from eval.errors import InputError
from eval.metrics.upper_bounds import bound_share
from eval.runner.plan import Plan
from eval.scorers.endpoint.exact import Echo, TokenPath, Top
from eval.scorers.endpoint.http_client import RefusedError, RetryError
from eval.scorers.endpoint.routes import (
    UNSUPPORTED_STATUSES,
    Route,
    RouteName,
    ServedModel,
    TopTokens,
    UnsupportedError,
    choices,
    prompt_tokens,
)
from eval.scorers.endpoint.sampled import Sampling
from eval.scorers.endpoint.tokenizer_check import check_by_completions, check_by_echo
from eval.scorers.options import ScorerConfig
from eval.types import Prompt, Turn

log = logging.getLogger(__name__)

TOP_LOGPROBS = (1000, 20, 5)
"""How many of the most probable tokens are asked for: the first number that the server takes (OpenAI: 20 and 5)."""
MAX_BOUNDED_SHARE = 0.01  # of a question's probability may be owed to bounds, else the server is sampled from
PROMPTS_PER_SET = 5  # questions of each set of candidates
UNMODIFIED = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Turns off what a server may have as its default (vLLM takes a model's generation_config.json for one). Sent with
every question, also where nothing is drawn: a server may list, or echo, what such settings have changed.
"""
CONTINUE_FLAGS = {"continue_final_message": True, "add_generation_prompt": False}
MAX_IDENTICAL = 16
"""So many same answers at temperature 1 to OPEN_ENDED show that nothing is drawn."""
OPEN_ENDED = Prompt(
    (Turn("human", "Write down twenty random words."), Turn("assistant", "The words are")), (" a", " the")
)
"""What is asked where no planned question is needed; the same for every model."""


class Probe:
    """Finds out what a server can do; Lacking is raised for what it cannot. held: method of the folder's records."""

    def __init__(self, served: ServedModel, config: ScorerConfig, recorded_method: str | None, plan: Plan) -> None:
        self.served, self.config, self.recorded_method = served, config, recorded_method
        self.prompts_by_candidates: dict[tuple[str, ...], list[Prompt]] = {}
        for question in plan.questions:
            prompt = question.prompt("" if question.condition.reasoning else None)
            prompts = self.prompts_by_candidates.setdefault(prompt.candidates, [])
            if len(prompts) < PROMPTS_PER_SET and prompt not in prompts:
                prompts.append(prompt)
        self.flags: dict[str, Any] | None = None
        self.settings: dict[RouteName, dict[str, Any]] = {}
        self.tokenizer_checked = False

    def run(self, job: Coroutine[Any, Any, Any]) -> Any:
        """What the job returns. Lacking where the server refuses what was asked, or answers something else."""
        client = self.served.client
        client.probing = True
        try:
            return client.run(job)
        except (RefusedError, RetryError) as error:
            if error.status not in UNSUPPORTED_STATUSES and not (isinstance(error, RetryError) and error.malformed):
                raise
            raise UnsupportedError(str(error)) from error
        finally:
            client.probing = False

    def route(self, name: RouteName) -> Route:
        """The route, where the server continues a beginning on /chat/completions if the route is chat."""
        if name != "chat":
            return Route(name, self.served)
        if self.flags is None:
            self.flags = self._continuation_flags()
        return Route(name, self.served, self.flags)

    def _neutral_settings(self, route: Route) -> dict[str, Any]:
        """UNCUT, or nothing where the server takes requests without it only."""

        async def request(settings: dict[str, Any]) -> None:
            await route.request(route.body(OPEN_ENDED), lambda a: choices(a, 1), max_tokens=1, **settings)

        if route.name not in self.settings:
            try:
                self.run(request(UNMODIFIED))
                self.settings[route.name] = UNMODIFIED
            except UnsupportedError:
                self.run(request({}))
                self.settings[route.name] = {}
        return self.settings[route.name]

    def _check_tokenizer(self, route: Route) -> None:
        """InputError where our token ids are other texts to the server; once."""
        if route.name == "ids" and not self.tokenizer_checked:
            check_by_completions(self.served, str(self.config.tokenizer), self.run)
            self.tokenizer_checked = True

    def echo(self, route: Route) -> Echo:
        """Echo: without a generated token and several prompts in a request, where the server does that."""
        first_error: UnsupportedError | None = None
        settings = self._neutral_settings(route)
        for batched, generated in ((True, 0), (False, 0), (False, 1)):
            scorer = Echo(route, batched, generated, settings)
            try:
                if route.name == "ids":
                    check_by_echo(scorer, list(route.ids(OPEN_ENDED)), str(self.config.tokenizer), self.run)
                    self.tokenizer_checked = True
                self.run(scorer.score(OPEN_ENDED))
                return scorer
            except UnsupportedError as error:
                first_error = first_error or error
        assert first_error is not None
        raise first_error

    def top(self, route: Route) -> Top:
        """Lists of the most probable tokens, where every candidate's tokens are listed or nearly impossible."""
        scorer = self._longest_list(route)
        self._check_tokenizer(route)
        if not any(text.startswith(" ") for text in self.run(scorer.request(OPEN_ENDED)).logprobs):
            raise UnsupportedError("the listed tokens have no white space, so they cannot be told apart")
        if route.name != "ids":
            paths = {
                candidates: self._paths(scorer, prompts) for candidates, prompts in self.prompts_by_candidates.items()
            }
            scorer = replace(scorer, paths=paths)
        answers = [self.run(scorer.score(p)) for prompts in self.prompts_by_candidates.values() for p in prompts]
        share = max(bound_share(a.logprobs, a.extra.get("bounded", [])) for a in answers)
        if share > MAX_BOUNDED_SHARE:
            line = (
                f"an answer is not among the {scorer.requested} most probable tokens and may have a share of "
                f"{share:.2g}"
            )
            if self.config.answer_method == "auto" and self.recorded_method is None:
                raise UnsupportedError(line)
            log.warning("%s: such an answer's probability is taken at its upper bound", line)
        return scorer

    def _longest_list(self, route: Route) -> Top:
        first_error: UnsupportedError | None = None
        settings = self._neutral_settings(route)
        for n in TOP_LOGPROBS:
            scorer = Top(route, n, {}, settings)
            try:
                received: TopTokens = self.run(scorer.request(OPEN_ENDED))
            except UnsupportedError as error:
                first_error = error
            else:
                return replace(scorer, received=min(n, received.count))
        assert first_error is not None
        raise first_error

    def _paths(self, scorer: Top, prompts: list[Prompt]) -> tuple[TokenPath, ...]:
        """The tokens of each candidate."""
        return tuple(self._path(scorer, prompts, k) for k in range(len(prompts[0].candidates)))

    def _path(self, scorer: Top, prompts: list[Prompt], k: int) -> TokenPath:
        """The texts of the tokens of the k-th candidate: listed ones, each of which adds one to the prompt's tokens."""
        candidate = prompts[0].candidates[k]
        for prompt in prompts:
            path: list[str] = []
            current = self.run(scorer.request(prompt))
            base_tokens = current.prompt_tokens
            if base_tokens is None:
                raise UnsupportedError("the server does not count the prompt's tokens")
            while (forced := "".join(path)) != candidate:
                rest = candidate[len(forced) :]
                for token in sorted((t for t in current.logprobs if t and rest.startswith(t)), key=len, reverse=True):
                    extended: TopTokens = self.run(scorer.request(prompt, forced + token))
                    if extended.prompt_tokens == base_tokens + len(path) + 1:
                        path.append(token)
                        current = extended
                        break
                else:
                    break
            else:
                return tuple(path)
        raise UnsupportedError(f"the tokens of {candidate!r} are not among the {scorer.requested} most probable")

    def sampling(self, route: Route) -> Sampling:
        """Sampling, with what the server takes: seeds, several answers in a request.

        InputError where MOST_ALIKE answers to an open question are the same: then nothing is drawn.
        """
        scorer, first_error = None, None
        settings = self._neutral_settings(route)
        self._check_tokenizer(route)
        for seeded in (True, False):
            scorer = Sampling(route, self.config.answer_samples, self.config.seed, False, seeded, route.chat, settings)
            try:
                texts = [self._draw_texts(scorer, 1, seed) for seed in range(4)]
                break
            except UnsupportedError as error:
                first_error = first_error or error
        else:
            assert first_error is not None
            raise first_error
        while (
            len({t for (t,) in texts}) == 1 and len(texts) < MAX_IDENTICAL
        ):  # a peaked model may say the same a few times
            texts.append(self._draw_texts(scorer, 1, len(texts)))
        if len({t for (t,) in texts}) == 1:
            raise InputError(
                f"{self.served.client.base_url} gives the same answer to {len(texts)} requests at temperature 1 "
                f"({texts[0][0][:40]!r}): it does not sample (a cache, or a fixed temperature?)"
            )
        more: list[str] = []
        with contextlib.suppress(UnsupportedError):  # then they are asked for one by one
            more = self._draw_texts(scorer, 4, MAX_IDENTICAL)
        batched = len(set(more)) > 1
        strips = not any(text[:1].isspace() for text in [*more, *(t for (t,) in texts)])
        lstrip = route.name == "instructed" or (route.chat and strips)
        return Sampling(
            route, self.config.answer_samples, self.config.seed, batched, scorer.seeded, lstrip, scorer.settings
        )

    def _draw_texts(self, scorer: Sampling, n: int, seed: int) -> list[str]:
        sampled, _ = self.run(scorer.request(scorer.route.body(OPEN_ENDED), n, seed, 16))
        return [s.text for s in sampled]

    def _continuation_flags(self) -> dict[str, Any]:
        """The flags with which the server continues the beginning in the last message: CONTINUE, or none at all.

        Shown by its counts of prompt tokens. CONTINUE is honoured where it takes away both the end of the last turn
        (against add_generation_prompt alone) and the beginning of a new one (against no flag), and more words are more
        tokens: a gateway may hand on the flags and drop the beginning. Without flags a server continues where each of
        a beginning's words adds as many tokens and nothing else does.
        """
        with_flags = self._count(4, CONTINUE_FLAGS)
        closed = self._count(4, {"add_generation_prompt": False})
        plain = self._count(4, {})
        if plain is None:
            raise UnsupportedError("the server does not count the prompt's tokens")
        if with_flags is not None and closed is not None and with_flags < closed and with_flags < plain:
            more = self._count(12, CONTINUE_FLAGS)
            if more is not None and more > with_flags:
                return CONTINUE_FLAGS
        longer, none = self._count(12, {}), self._count(0, {})
        if longer is None or none is None:
            raise UnsupportedError("the server does not always count the prompt's tokens")
        if longer > plain > none and (longer - plain) % 8 == 0 and plain - (longer - plain) // 2 == none:
            return {}
        raise UnsupportedError(
            "the server's counts of prompt tokens do not show that it continues the beginning of an answer"
        )

    def _count(self, words: int, flags: dict[str, Any]) -> int | None:
        """Prompt tokens of a question with a beginning of so many words; None where the flags are refused."""
        messages = [{"role": "user", "content": "What is it?"}]
        if words:
            messages.append({"role": "assistant", "content": " ".join(["a"] * words)})
        read: Callable[[Any], int | None] = prompt_tokens
        body = {"model": self.served.model, "messages": messages, "max_tokens": 1, "temperature": 1.0, **flags}
        try:
            return self.run(self.served.client.post("/chat/completions", body, read))
        except UnsupportedError:
            if flags:
                return None
            raise
