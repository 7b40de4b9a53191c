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
from eval.scorers.endpoint.routes import Lacking, Route, RouteName, Served
from eval.scorers.endpoint.sampled import Sampling
from eval.scorers.options import ScorerConfig

log = logging.getLogger(__name__)

Method = Literal["echo", "top", "sampling"]


@dataclass(frozen=True)
class Wanted:
    """What may be used, the best first. style: the tokenizer's; held: the method of the records that are there."""

    choices: tuple[tuple[Method, RouteName], ...]
    tokenizer: Any
    style: Format | None
    held: str | None
    config: ScorerConfig

    @staticmethod
    def of(config: ScorerConfig, tokenizer: Any, held: str | None) -> Wanted:
        """What the options leave. Raises InputError where they leave nothing."""
        style = choose_format(config.format, tokenizer, config.system_turn) if tokenizer else None
        asked: list[Method] = ["echo", "top", "sampling"]
        if config.answer_method != "auto":
            asked = [m for m in asked if m == config.answer_method]
        found: list[tuple[Method, RouteName]] = [
            (m, r) for m in asked for r in _routes(m, config.format, style, config.system_turn)
        ]
        if not found:
            raise InputError(
                f"answer_method {config.answer_method} in the format {config.format} needs --tokenizer, the folder or "
                "hub id of the model's tokenizer"
            )
        found = [c for c in found if "/".join(c) == held] or found
        return Wanted(tuple(found), tokenizer, style, held, config)

    def known(self, found: dict[str, Any]) -> dict[str, Any]:
        """What Opened.known can say before the server is reached; found: the provenance of the folder's records."""
        known: dict[str, Any] = {}
        if self.tokenizer is not None:
            known["tokenizer_sha256"] = tokenizer_sha256(self.tokenizer)
        method, route = self.choices[0]
        if self.held is not None:
            known["method"] = f"{method}/{route}"
            if method == "sampling":
                known |= {"answer_samples": self.config.answer_samples, "answer_seed": self.config.seed}
        if self.style is not None:
            known |= {"format": self.style.name}
        elif self.config.format != "auto":
            known["format"] = self.config.format
        else:
            known["format"] = found.get("format", "chat")
        return known


def _routes(method: str, form: str, style: Format | None, system_turn: str) -> tuple[RouteName, ...]:
    """The routes that keep to the dialogue format, the most faithful first."""
    chats: dict[str, tuple[RouteName, ...]] = {"echo": (), "top": ("chat",), "sampling": ("chat", "instructed")}
    on_chat = chats[method]
    if style is not None:
        if style.name == "paper":
            return ("ids", "text")
        return ("ids",) if system_turn == "drop" else ("ids", *on_chat)
    if form == "paper":
        return ("text",)
    if form == "chat":
        return on_chat
    if method == "sampling":
        return ("chat", "text", "instructed")
    return (*on_chat, "text")


@dataclass(frozen=True)
class Ability:
    """What is used. scorer gives the answers, reasons draws texts; lacking: why nothing better is used, a line each."""

    method: Method
    route: Route
    scorer: Echo | Top | Sampling
    reasons: Sampling | None
    lacking: tuple[str, ...] = field(default=())


def find_out(served: Served, wanted: Wanted, planned: Plan) -> Ability:
    """Asks the server. InputError where it can do nothing of what is wanted."""
    probe = Probe(served, wanted.config, wanted.held, planned)
    lacking: list[str] = []
    for method, name in wanted.choices:
        try:
            route = probe.route(name)
            scorer = getattr(probe, method)(route)
            reasons = scorer if isinstance(scorer, Sampling) else None
            if reasons is None and any(q.condition.reasoning for q in planned.questions):
                reasons = probe.sampling(route)
        except Lacking as error:
            lacking.append(f"no {method} by {name}: {error}")
            continue
        for line in lacking:
            log.info("%s", line)
        return Ability(method, route, scorer, reasons, tuple(lacking))
    raise InputError(f"{served.client.base_url} cannot be asked for the answers: {'; '.join(lacking)}")
