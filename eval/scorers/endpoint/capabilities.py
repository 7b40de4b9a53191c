"""Finds the best answer method and route that a server supports for all planned questions, by test requests (probe.py).

Methods are tried in the order echo, top, sampling, each on the routes that the dialogue format and --tokenizer allow.
Nothing is assumed from the server's name: a method is used only if it answered a planned question. The reasons why
better methods were rejected are recorded. If the results folder holds records, only their method is tried.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, Literal

from eval.errors import InputError
from eval.models.prompt_format import Format, choose_format
from eval.runner.plan import Plan
from eval.runner.provenance import tokenizer_sha256
from eval.scorers.endpoint.exact import Echo, Top
from eval.scorers.endpoint.probe import Probe
from eval.scorers.endpoint.routes import Route, RouteName, ServedModel, UnsupportedError
from eval.scorers.endpoint.sampled import Sampling
from eval.scorers.options import ScorerConfig

log = logging.getLogger(__name__)

Method = Literal["echo", "top", "sampling"]


@dataclass(frozen=True)
class AllowedMethods:
    """The methods and routes that the options and earlier records allow.

    Attributes:
        choices: (method, route), best first.
        tokenizer: The tokenizer of --tokenizer, or None.
        style: The tokenizer's dialogue format, or None without a tokenizer.
        recorded_method: "method/route" of the records in the results folder, or None if it holds none.
        config: The scorer's options.
    """

    choices: tuple[tuple[Method, RouteName], ...]
    tokenizer: Any
    style: Format | None
    recorded_method: str | None
    config: ScorerConfig

    @staticmethod
    def from_options(config: ScorerConfig, tokenizer: Any, recorded_method: str | None) -> AllowedMethods:
        """Lists the methods that the options allow.

        Raises:
            InputError: They allow none.
        """
        style = choose_format(config.format, tokenizer, config.system_turn) if tokenizer else None
        methods: list[Method] = ["echo", "top", "sampling"]
        if config.answer_method != "auto":
            methods = [m for m in methods if m == config.answer_method]
        choices: list[tuple[Method, RouteName]] = [
            (m, r) for m in methods for r in _matching_routes(m, config.format, style, config.system_turn)
        ]
        if not choices:
            raise InputError(
                f"answer_method {config.answer_method} in the format {config.format} needs --tokenizer, the folder or "
                "hub id of the model's tokenizer"
            )
        choices = [c for c in choices if "/".join(c) == recorded_method] or choices
        return AllowedMethods(tuple(choices), tokenizer, style, recorded_method, config)

    def known_provenance(self, recorded: dict[str, Any]) -> dict[str, Any]:
        """What OpenedTarget.known can contain before the server is contacted.

        Args:
            recorded: The provenance of the records in the results folder, or {} if it holds none.
        """
        provenance: dict[str, Any] = {}
        if self.tokenizer is not None:
            provenance["tokenizer_sha256"] = tokenizer_sha256(self.tokenizer)
        method, route = self.choices[0]
        if self.recorded_method is not None:
            provenance["method"] = f"{method}/{route}"
            if method == "sampling":
                provenance |= {"answer_samples": self.config.answer_samples, "answer_seed": self.config.seed}
        if self.style is not None:
            provenance |= {"format": self.style.name}
        elif self.config.format != "auto":
            provenance["format"] = self.config.format
        else:
            provenance["format"] = recorded.get("format", "chat")
        return provenance


def _matching_routes(method: str, format_name: str, style: Format | None, system_turn: str) -> tuple[RouteName, ...]:
    """The routes that keep to the dialogue format, most faithful first."""
    chat_routes: dict[str, tuple[RouteName, ...]] = {"echo": (), "top": ("chat",), "sampling": ("chat", "instructed")}
    allowed_chat = chat_routes[method]
    if style is not None:
        if style.name == "paper":
            return ("ids", "text")
        return ("ids",) if system_turn == "drop" else ("ids", *allowed_chat)
    if format_name == "paper":
        return ("text",)
    if format_name == "chat":
        return allowed_chat
    if method == "sampling":
        return ("chat", "text", "instructed")
    return (*allowed_chat, "text")


@dataclass(frozen=True)
class Capability:
    """What is used to evaluate the server.

    Attributes:
        method: The answer method.
        route: The route of the requests.
        scorer: Gets the answers.
        reasoning_sampler: Samples the reasoning; None where none is planned.
        rejected: Why no better method is used, one line for each.
    """

    method: Method
    route: Route
    scorer: Echo | Top | Sampling
    reasoning_sampler: Sampling | None
    rejected: tuple[str, ...] = field(default=())


def detect_capability(served: ServedModel, allowed: AllowedMethods, plan: Plan) -> Capability:
    """Tests the allowed methods on the server and returns the first that works.

    Raises:
        InputError: No allowed method works.
    """
    probe = Probe(served, allowed.config, allowed.recorded_method, plan)
    rejected: list[str] = []
    for method, name in allowed.choices:
        try:
            route = probe.route(name)
            scorer = getattr(probe, method)(route)
            reasoning_sampler = scorer if isinstance(scorer, Sampling) else None
            if reasoning_sampler is None and any(q.condition.reasoning for q in plan.questions):
                reasoning_sampler = probe.sampling(route)
        except UnsupportedError as error:
            rejected.append(f"no {method} by {name}: {error}")
            continue
        for line in rejected:
            log.info("%s", line)
        return Capability(method, route, scorer, reasoning_sampler, tuple(rejected))
    raise InputError(f"{served.client.base_url} cannot be asked for the answers: {'; '.join(rejected)}")
