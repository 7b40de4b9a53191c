"""Test requests that show what a server can do. eval.scorers.endpoint.capabilities then uses the best of it."""

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
"""How many of the most probable tokens to request: the first number that the server accepts (OpenAI: 20 and 5)."""
MAX_BOUNDED_SHARE = 0.01  # of a question's probability may come from upper bounds; beyond it answers are sampled
PROMPTS_PER_SET = 5  # prompts to test for each set of candidates
UNMODIFIED = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Turns off settings that a server may have by default (vLLM takes them from a model's generation_config.json).

Sent with every request, also where nothing is sampled: a server may list or echo probabilities that such settings have
changed.
"""
CONTINUE_FLAGS = {"continue_final_message": True, "add_generation_prompt": False}
MAX_IDENTICAL = 16
"""So many identical answers to OPEN_ENDED at temperature 1 show that the server does not sample."""
OPEN_ENDED = Prompt(
    (Turn("human", "Write down twenty random words."), Turn("assistant", "The words are")), (" a", " the")
)
"""The prompt for tests that need no planned question. It is the same for every model."""


class Probe:
    """Tests what a server can do. Methods raise UnsupportedError for what it cannot do.

    Args:
        served: The model on its server.
        config: The scorer's options.
        recorded_method: The method of the results folder's records, or None.
        plan: All questions of the evaluation.
    """

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
        """Runs a job of the client and returns its result.

        Raises:
            UnsupportedError: The server refuses the request, or its answer has another form than requested.
        """
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
        """The route by its name.

        Raises:
            UnsupportedError: The route is chat, and the server does not continue the beginning of an answer.
        """
        if name != "chat":
            return Route(name, self.served)
        if self.flags is None:
            self.flags = self._continuation_flags()
        return Route(name, self.served, self.flags)

    def _neutral_settings(self, route: Route) -> dict[str, Any]:
        """UNMODIFIED, or {} if the server accepts requests only without it."""

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
        """Checks once whether --tokenizer is the served model's. Raises InputError if its ids are other texts there."""
        if route.name == "ids" and not self.tokenizer_checked:
            check_by_completions(self.served, str(self.config.tokenizer), self.run)
            self.tokenizer_checked = True

    def echo(self, route: Route) -> Echo:
        """Tests echo, preferably without a generated token and with several prompts in a request."""
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
        """Tests the lists of the most probable tokens.

        Raises:
            UnsupportedError: The server gives no usable lists, or a candidate's tokens are not listed although they may
                be probable. With --answer_method top or records of this method, the latter is only a warning.
        """
        scorer = self._longest_list(route)
        self._check_tokenizer(route)
        if not any(text.startswith(" ") for text in self.run(scorer.request(OPEN_ENDED)).logprobs):
            raise UnsupportedError("the listed tokens have no white space, so some of them look the same")
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
        """The scorer with the first length of list in TOP_LOGPROBS that the server accepts."""
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
        """The token texts of each candidate."""
        return tuple(self._path(scorer, prompts, k) for k in range(len(prompts[0].candidates)))

    def _path(self, scorer: Top, prompts: list[Prompt], k: int) -> TokenPath:
        """The token texts of the k-th candidate. Each must be listed and raise the count of prompt tokens by one."""
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
        """Tests sampling, with seeds and with several answers in a request where the server accepts them.

        Raises:
            InputError: MAX_IDENTICAL answers to an open question are identical, so the server does not sample.
            UnsupportedError: The server does not accept the requests.
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
        ):  # a peaked model may give the same answer a few times
            texts.append(self._draw_texts(scorer, 1, len(texts)))
        if len({t for (t,) in texts}) == 1:
            raise InputError(
                f"{self.served.client.base_url} gives the same answer to {len(texts)} requests at temperature 1 "
                f"({texts[0][0][:40]!r}): it does not sample (a cache, or a fixed temperature?)"
            )
        more: list[str] = []
        with contextlib.suppress(UnsupportedError):  # then each answer takes its own request
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
        """The flags that make the server continue the beginning in the last message: CONTINUE_FLAGS or {}.

        The server's counts of prompt tokens show it. CONTINUE_FLAGS work if they remove both the end of the last turn
        (compared with add_generation_prompt alone) and the start of a new one (compared with no flag), and if more
        words give more tokens: a gateway may pass the flags on and drop the beginning. Without flags the server
        continues if each word of a beginning adds the same number of tokens and nothing else adds any.

        Raises:
            UnsupportedError: The counts show neither.
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
        """Prompt tokens of a question with a beginning of `words` words; None if the server refuses the flags."""
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
