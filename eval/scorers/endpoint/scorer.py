"""The scorer of --scorer endpoint: evaluates a served model by the method that capabilities.py detected."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from eval.errors import InputError
from eval.metrics.upper_bounds import bound_share
from eval.models.prompt_format import TURN_MARKS
from eval.runner.provenance import tokenizer_sha256
from eval.scorers.endpoint.capabilities import Capability
from eval.scorers.endpoint.exact import Top
from eval.scorers.endpoint.probe import MAX_BOUNDED_SHARE
from eval.scorers.endpoint.routes import ServedModel
from eval.scorers.endpoint.sampled import Sampling, read_reasoning
from eval.types import Answer, Prompt

log = logging.getLogger(__name__)


class EndpointScorer:
    """Implements eval.types.Scorer and IndependentScorer for a served model.

    Args:
        served: The model on its server.
        capability: The method and route to use.
        samples: Answers per question, where the method is sampling.
        seed: The run's seed.
    """

    def __init__(self, served: ServedModel, capability: Capability, samples: int, seed: int) -> None:
        self.served, self.capability, self.samples, self.seed = served, capability, samples, seed
        self.warned_of_bounds = False
        log.info("%s: answers by %s", served.client.base_url, self.method)
        if capability.route.name == "instructed":
            log.warning(
                "the server continues no beginning of an answer: each question asks for it in words of ours, so it is "
                "not the paper's question"
            )
        if capability.route.name == "text" and served.tokenizer is None:
            log.warning("without --tokenizer questions are in the paper's format, whatever the model's own is")
        if isinstance(capability.scorer, Sampling) and capability.scorer.lstrip and capability.route.name == "chat":
            log.warning("the server strips white space from what it says: an answer on a new line is read as well")
        if not capability.scorer.settings:
            log.warning(
                "the server refuses settings that turn off a repetition penalty or a limit such as top_k: if it has "
                "one as its default, that is in the numbers"
            )
        if capability.method == "sampling":
            log.warning(
                "probabilities are counted in %d sampled answers: the standard error at .5 is %.3f (0.01 takes 2,500), "
                "and correlations come out smaller than they are",
                samples, self.standard_error,
            )  # fmt: skip

    @property
    def method(self) -> str:
        """ "method/route", as recorded."""
        return f"{self.capability.method}/{self.capability.route.name}"

    @property
    def standard_error(self) -> float:
        """The standard error of a probability of one half, where the method is sampling."""
        return 0.5 / self.samples**0.5

    def describe(self) -> dict[str, Any]:
        """Server, method and its cost, format. used: requests, retries and tokens of this process so far."""
        route, sampler = self.capability.route, self.capability.reasoning_sampler
        description: dict[str, Any] = {
            "scorer": "endpoint",
            "method": self.method,
            "method_reasons": list(self.capability.rejected),
            "base_url": self.served.client.base_url,
            "server": self.served.server,
            "served": self.served.info,
            "served_root": self.served.info.get("root"),
            "format": route.format,
            "system_turn": route.system_turn,
            "dtype": None,
            "used": dict(self.served.client.used),
        }
        if self.served.tokenizer is not None:
            description["tokenizer_sha256"] = tokenizer_sha256(self.served.tokenizer)
        if not isinstance(self.capability.scorer, Sampling):
            description["asked_with"] = self.capability.scorer.settings
        if sampler is not None:
            description["sampled_with"] = {
                "seeded": sampler.seeded, "together": sampler.batched, "white_space_stripped": sampler.lstrip,
                **sampler.settings,
            }  # fmt: skip
        if isinstance(self.capability.scorer, Sampling):
            description |= {
                "answer_samples": self.samples,
                "answer_seed": self.seed,
                "standard_error": round(self.standard_error, 4),
            }
        if isinstance(self.capability.scorer, Top):
            description["listed"] = self.capability.scorer.received
        return description

    def score(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer]]:
        """Yields (index, Answer) as they are done.

        Raises:
            InputError: The server stays unreachable or refuses a request.
        """

        async def score_one(i: int, prompt: Prompt) -> tuple[int, Answer]:
            return i, await self._answer(prompt)

        yield from self.served.client.run_all([score_one(i, p) for i, p in enumerate(prompts)])

    def sample(self, prompts: Sequence[Prompt], seeds: Sequence[int], max_new_tokens: int) -> Iterator[tuple[int, str]]:
        """Yields (index, text) as they are done, sampled at temperature 1 without truncation, each with its own seed.

        Raises:
            InputError: The server refused a prompt or gave no text for it.
        """

        async def sample_one(i: int, prompt: Prompt) -> tuple[int, str]:
            text, failure = await self._draw(prompt, seeds[i], max_new_tokens)
            if failure is not None:
                raise InputError(f"{self.served.client.base_url} gave no text to go on from: {failure}")
            return i, text

        yield from self.served.client.run_all([sample_one(i, p) for i, p in enumerate(prompts)])

    def reason(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], max_new_tokens: int, then: Callable[[int, str], Prompt]
    ) -> Iterator[tuple[int, str, Answer]]:
        """Implements eval.types.IndependentScorer: samples from each prompt, then scores the prompt that `then`
        returns.

        A question without reasoning is not scored, since that would be another condition: Answer.extra holds the
        reason.

        Args:
            prompts: The prompts to sample reasoning from.
            seeds: A seed for each prompt.
            max_new_tokens: Token limit of the reasoning.
            then: Makes the final prompt from the index and the reasoning.

        Yields:
            (index, reasoning, Answer), as they are done.
        """

        async def reason_and_answer(i: int, prompt: Prompt) -> tuple[int, str, Answer]:
            text, failure = await self._draw(prompt, seeds[i], max_new_tokens)
            final = then(i, text)
            if failure is not None:
                extra = {"no_answer": f"no reasoning: {failure}", "no_reasoning": failure}
                return i, text, Answer(np.full(len(final.candidates), math.nan), None, 0, extra)
            return i, text, await self._answer(final)

        yield from self.served.client.run_all([reason_and_answer(i, p) for i, p in enumerate(prompts)])

    async def _answer(self, prompt: Prompt) -> Answer:
        answer = await self.capability.scorer.score(prompt)
        if "bounded" in answer.extra and not self.warned_of_bounds:
            share = bound_share(answer.logprobs, answer.extra["bounded"])
            if share > MAX_BOUNDED_SHARE:
                self.warned_of_bounds = True
                log.warning(
                    "%.2g of a question's probability is an upper bound: an answer is not among the most probable "
                    "tokens; for numbers to publish use --answer_method sampling, or a server that echoes",
                    share,
                )
        return answer

    async def _draw(self, prompt: Prompt, seed: int, max_new_tokens: int) -> tuple[str, str | None]:
        """Samples the reasoning. Returns it, and None or why there is none."""
        sampler = self.capability.reasoning_sampler
        assert sampler is not None  # detect_capability finds one where reasoning is planned
        route = sampler.route
        stop: dict[str, Any] = {"stop": list(TURN_MARKS)} if route.format == "paper" else {}
        # 31 bits of the question's seed: some servers accept no more
        (sampled,), _ = await sampler.request(route.body(prompt), 1, seed & 0x7FFFFFFF, max_new_tokens, **stop)
        return read_reasoning(sampled, prompt.turns[-1].text if route.name == "instructed" else "")
