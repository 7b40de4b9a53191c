"""What a server can do, found out at the start by asking it (probe.py): the best method and route for all planned
questions.

In this order: echo, top, sampling; each by the routes that the dialogue format and --tokenizer allow. Nothing is taken
from the server's name: every ability is shown by an answer to a planned question, or it is not used, and why the better
ones are not is recorded. A folder that holds records goes on by the method it holds.
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
    """What may be used, the best first. style: the tokenizer's; held: the method of the records that are there."""

    choices: tuple[tuple[Method, RouteName], ...]
    tokenizer: Any
    style: Format | None
    recorded_method: str | None
    config: ScorerConfig

    @staticmethod
    def from_options(config: ScorerConfig, tokenizer: Any, recorded_method: str | None) -> AllowedMethods:
        """What the options leave. Raises InputError where they leave nothing."""
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
        """What Opened.known can say before the server is reached; found: the provenance of the folder's records."""
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
    """The routes that keep to the dialogue format, the most faithful first."""
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
    """What is used. scorer gives the answers, reasons draws texts; lacking: why nothing better is used, a line each."""

    method: Method
    route: Route
    scorer: Echo | Top | Sampling
    reasoning_sampler: Sampling | None
    rejected: tuple[str, ...] = field(default=())


def detect_capability(served: ServedModel, allowed: AllowedMethods, plan: Plan) -> Capability:
    """Asks the server. InputError where it can do nothing of what is wanted."""
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
