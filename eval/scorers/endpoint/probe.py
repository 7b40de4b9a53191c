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
from eval.scorers.endpoint.exact import Echo, Path, Top
from eval.scorers.endpoint.http_client import GaveUp, Refused
from eval.scorers.endpoint.routes import CANNOT, Lacking, Listed, Route, RouteName, Served, choices, prompt_tokens
from eval.scorers.endpoint.sampled import Sampling
from eval.scorers.endpoint.tokenizer_check import check_asked, check_echoed
from eval.scorers.options import ScorerConfig
from eval.types import Prompt, Turn

log = logging.getLogger(__name__)

LISTED = (1000, 20, 5)
"""How many of the most probable tokens are asked for: the first number that the server takes (OpenAI: 20 and 5)."""
MOST_BOUND = 0.01  # of a question's probability may be owed to bounds, else the server is sampled from
TRIED = 5  # questions of each set of candidates
UNCUT = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Turns off what a server may have as its default (vLLM takes a model's generation_config.json for one). Sent with
every question, also where nothing is drawn: a server may list, or echo, what such settings have changed.
"""
CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}
MOST_ALIKE = 16
"""So many same answers at temperature 1 to OPEN_ENDED show that nothing is drawn."""
OPEN_ENDED = Prompt(
    (Turn("human", "Write down twenty random words."), Turn("assistant", "The words are")), (" a", " the")
)
"""What is asked where no planned question is needed; the same for every model."""


class Probe:
    """Finds out what a server can do; Lacking is raised for what it cannot. held: method of the folder's records."""

    def __init__(self, served: Served, config: ScorerConfig, held: str | None, planned: Plan) -> None:
        self.served, self.config, self.held = served, config, held
        self.found: dict[tuple[str, ...], list[Prompt]] = {}
        for question in planned.questions:
            prompt = question.prompt("" if question.condition.reasoning else None)
            few = self.found.setdefault(prompt.candidates, [])
            if len(few) < TRIED and prompt not in few:
                few.append(prompt)
        self.flags: dict[str, Any] | None = None
        self.settings: dict[RouteName, dict[str, Any]] = {}
        self.tokenizer_checked = False

    def run(self, job: Coroutine[Any, Any, Any]) -> Any:
        """What the job returns. Lacking where the server refuses what was asked, or answers something else."""
        client = self.served.client
        client.probing = True
        try:
            return client.one(job)
        except (Refused, GaveUp) as error:
            if error.status not in CANNOT and not (isinstance(error, GaveUp) and error.garbage):
                raise
            raise Lacking(str(error)) from error
        finally:
            client.probing = False

    def route(self, name: RouteName) -> Route:
        """The route, where the server continues a beginning on /chat/completions if the route is chat."""
        if name != "chat":
            return Route(name, self.served)
        if self.flags is None:
            self.flags = self._continuing()
        return Route(name, self.served, self.flags)

    def _neutral(self, route: Route) -> dict[str, Any]:
        """UNCUT, or nothing where the server takes requests without it only."""

        async def ask(settings: dict[str, Any]) -> None:
            await route.ask(route.body(OPEN_ENDED), lambda a: choices(a, 1), max_tokens=1, **settings)

        if route.name not in self.settings:
            try:
                self.run(ask(UNCUT))
                self.settings[route.name] = UNCUT
            except Lacking:
                self.run(ask({}))
                self.settings[route.name] = {}
        return self.settings[route.name]

    def _check_tokenizer(self, route: Route) -> None:
        """InputError where our token ids are other texts to the server; once."""
        if route.name == "ids" and not self.tokenizer_checked:
            check_asked(self.served, str(self.config.tokenizer), self.run)
            self.tokenizer_checked = True

    def echo(self, route: Route) -> Echo:
        """Echo: without a generated token and several prompts in a request, where the server does that."""
        why: Lacking | None = None
        settings = self._neutral(route)
        for together, generated in ((True, 0), (False, 0), (False, 1)):
            scorer = Echo(route, together, generated, settings)
            try:
                if route.name == "ids":
                    check_echoed(scorer, list(route.ids(OPEN_ENDED)), str(self.config.tokenizer), self.run)
                    self.tokenizer_checked = True
                self.run(scorer.score(OPEN_ENDED))
                return scorer
            except Lacking as error:
                why = why or error
        assert why is not None
        raise why

    def top(self, route: Route) -> Top:
        """Lists of the most probable tokens, where every candidate's tokens are listed or nearly impossible."""
        scorer = self._longest_list(route)
        self._check_tokenizer(route)
        if not any(text.startswith(" ") for text in self.run(scorer.ask(OPEN_ENDED)).logprobs):
            raise Lacking("the listed tokens have no white space, so they cannot be told apart")
        if route.name != "ids":
            paths = {candidates: self._paths(scorer, few) for candidates, few in self.found.items()}
            scorer = replace(scorer, paths=paths)
        answers = [self.run(scorer.score(p)) for few in self.found.values() for p in few]
        share = max(bound_share(a.logprobs, a.extra.get("bounded", [])) for a in answers)
        if share > MOST_BOUND:
            line = (
                f"an answer is not among the {scorer.listed} most probable tokens and may have a share of {share:.2g}"
            )
            if self.config.answer_method == "auto" and self.held is None:
                raise Lacking(line)
            log.warning("%s: such an answer's probability is taken at its upper bound", line)
        return scorer

    def _longest_list(self, route: Route) -> Top:
        why: Lacking | None = None
        settings = self._neutral(route)
        for n in LISTED:
            scorer = Top(route, n, {}, settings)
            try:
                received: Listed = self.run(scorer.ask(OPEN_ENDED))
            except Lacking as error:
                why = error
            else:
                return replace(scorer, received=min(n, received.count))
        assert why is not None
        raise why

    def _paths(self, scorer: Top, prompts: list[Prompt]) -> tuple[Path, ...]:
        """The tokens of each candidate."""
        return tuple(self._path(scorer, prompts, k) for k in range(len(prompts[0].candidates)))

    def _path(self, scorer: Top, prompts: list[Prompt], k: int) -> Path:
        """The texts of the tokens of the k-th candidate: listed ones, each of which adds one to the prompt's tokens."""
        candidate = prompts[0].candidates[k]
        for prompt in prompts:
            path: list[str] = []
            before = self.run(scorer.ask(prompt))
            first = before.prompt_tokens
            if first is None:
                raise Lacking("the server does not count the prompt's tokens")
            while (forced := "".join(path)) != candidate:
                rest = candidate[len(forced) :]
                for token in sorted((t for t in before.logprobs if t and rest.startswith(t)), key=len, reverse=True):
                    behind: Listed = self.run(scorer.ask(prompt, forced + token))
                    if behind.prompt_tokens == first + len(path) + 1:
                        path.append(token)
                        before = behind
                        break
                else:
                    break
            else:
                return tuple(path)
        raise Lacking(f"the tokens of {candidate!r} are not among the {scorer.listed} most probable")

    def sampling(self, route: Route) -> Sampling:
        """Sampling, with what the server takes: seeds, several answers in a request.

        InputError where MOST_ALIKE answers to an open question are the same: then nothing is drawn.
        """
        scorer, why = None, None
        settings = self._neutral(route)
        self._check_tokenizer(route)
        for seeded in (True, False):
            scorer = Sampling(route, self.config.answer_samples, self.config.seed, False, seeded, route.chat, settings)
            try:
                texts = [self._drawn(scorer, 1, seed) for seed in range(4)]
                break
            except Lacking as error:
                why = why or error
        else:
            assert why is not None
            raise why
        while (
            len({t for (t,) in texts}) == 1 and len(texts) < MOST_ALIKE
        ):  # a peaked model may say the same a few times
            texts.append(self._drawn(scorer, 1, len(texts)))
        if len({t for (t,) in texts}) == 1:
            raise InputError(
                f"{self.served.client.base_url} gives the same answer to {len(texts)} requests at temperature 1 "
                f"({texts[0][0][:40]!r}): it does not sample (a cache, or a fixed temperature?)"
            )
        more: list[str] = []
        with contextlib.suppress(Lacking):  # then they are asked for one by one
            more = self._drawn(scorer, 4, MOST_ALIKE)
        together = len(set(more)) > 1
        strips = not any(text[:1].isspace() for text in [*more, *(t for (t,) in texts)])
        loose = route.name == "instructed" or (route.chat and strips)
        return Sampling(
            route, self.config.answer_samples, self.config.seed, together, scorer.seeded, loose, scorer.settings
        )

    def _drawn(self, scorer: Sampling, n: int, seed: int) -> list[str]:
        said, _ = self.run(scorer.ask(scorer.route.body(OPEN_ENDED), n, seed, 16))
        return [s.text for s in said]

    def _continuing(self) -> dict[str, Any]:
        """The flags with which the server continues the beginning in the last message: CONTINUE, or none at all.

        Shown by its counts of prompt tokens. CONTINUE is honoured where it takes away both the end of the last turn
        (against add_generation_prompt alone) and the beginning of a new one (against no flag), and more words are more
        tokens: a gateway may hand on the flags and drop the beginning. Without flags a server continues where each of
        a beginning's words adds as many tokens and nothing else does.
        """
        with_flags = self._count(4, CONTINUE)
        closed = self._count(4, {"add_generation_prompt": False})
        plain = self._count(4, {})
        if plain is None:
            raise Lacking("the server does not count the prompt's tokens")
        if with_flags is not None and closed is not None and with_flags < closed and with_flags < plain:
            more = self._count(12, CONTINUE)
            if more is not None and more > with_flags:
                return CONTINUE
        longer, none = self._count(12, {}), self._count(0, {})
        if longer is None or none is None:
            raise Lacking("the server does not always count the prompt's tokens")
        if longer > plain > none and (longer - plain) % 8 == 0 and plain - (longer - plain) // 2 == none:
            return {}
        raise Lacking("the server's counts of prompt tokens do not show that it continues the beginning of an answer")

    def _count(self, words: int, flags: dict[str, Any]) -> int | None:
        """Prompt tokens of a question with a beginning of so many words; None where the flags are refused."""
        messages = [{"role": "user", "content": "What is it?"}]
        if words:
            messages.append({"role": "assistant", "content": " ".join(["a"] * words)})
        read: Callable[[Any], int | None] = prompt_tokens
        body = {"model": self.served.model, "messages": messages, "max_tokens": 1, "temperature": 1.0, **flags}
        try:
            return self.run(self.served.client.post("/chat/completions", body, read))
        except Lacking:
            if flags:
                return None
            raise
