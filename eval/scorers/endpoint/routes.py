"""A model behind the OpenAI routes: whether it is there, how a dialogue is put to it, how its answers are read.

Four routes, by which a dialogue with the beginning of the assistant's turn reaches the model:
- ids: /completions with token ids of a tokenizer that is here, so that they are exactly those of the other scorers;
- text: /completions with the paper's format as text, which the server's own tokenizer reads;
- chat: /chat/completions, where the server continues the beginning that stands as the last message;
- instructed: /chat/completions of a server that does not; the beginning is asked for at the end of the user's turn
  (BEGIN), which changes the question.
Answers of another form raise one of http_client.UNREADABLE here, and are asked for again there.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from eval.errors import InputError, nearest
from eval.models import checkpoints
from eval.models.hub import commit_of
from eval.models.prompt_format import CHAT_ROLES, Encoded, Format, encode, paper_text
from eval.scorers.endpoint.http_client import Client, RefusedError, RetryError
from eval.scorers.options import ScorerConfig
from eval.types import Prompt

log = logging.getLogger(__name__)

RouteName = Literal["ids", "text", "chat", "instructed"]
BEGIN = "\n\nBegin your answer with: "
"""Put, with the assistant's beginning, at the end of the user's turn where the server continues no beginning."""
NEUTRAL = {"temperature": 1.0, "top_p": 1.0}
"""With every request: the model's own probabilities, neither sharpened nor cut off."""
INFO_FIELDS = ("root", "parent", "owned_by", "max_model_len", "meta")
UNSUPPORTED_STATUSES = (400, 404, 405, 415, 422, 500, 501)
"""Statuses with which servers refuse what they do not know; others say nothing of what a server can do."""
REPLACEMENT = "\ufffd"
"""Stands for bytes that are no whole character."""
ROUNDING = 1e-3  # a log-probability may be above 0, or a sum of probabilities above 1, by so much


class UnsupportedError(Exception):
    """The server cannot do it, and why, as its answers show."""


@dataclass
class ServedModel:
    """A model that the server has. tokenizer and style where a tokenizer is here; info: what /v1/models says of the
    model; server: its version, as far as told.
    """

    client: Client
    model: str
    tokenizer: Any = None
    style: Format = field(default_factory=lambda: Format("paper"))
    info: dict[str, Any] = field(default_factory=dict)
    server: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def connect(config: ScorerConfig, model: str, key: str | None, tokenizer: Any, style: Format) -> ServedModel:
        """The model, once the server has answered. InputError where it does not, or does not serve it."""
        assert config.base_url is not None  # endpoint.check has seen to it
        client = Client(
            config.base_url, key, config.api_key_env, config.concurrency, config.timeout, config.retries, config.seed
        )
        served = ServedModel(client, model, tokenizer, style)
        client.run(served._read_info())
        return served

    async def _read_info(self) -> None:
        def read(answer: Any) -> dict[str, dict[str, Any]]:
            models = {str(entry["id"]): entry for entry in answer["data"]}
            json.dumps([e[name] for e in models.values() for name in INFO_FIELDS if name in e], allow_nan=False)
            return models

        try:
            models = await self.client.get(f"{self.client.base_url}/models", read)
        except RefusedError as error:
            if error.status not in UNSUPPORTED_STATUSES:
                raise
            log.info("%s has no list of its models; %s is taken to be there", self.client.base_url, self.model)
            return
        if self.model not in models:
            names = sorted(models)
            more = f" and {len(names) - 20} more" if len(names) > 20 else ""
            raise InputError(
                f"{self.client.base_url} does not serve '{self.model}'{nearest(self.model, names)}; it serves "
                f"{', '.join(names[:20]) or 'no model'}{more}; give one of them as --model"
            )
        entry = models[self.model]
        self.info = {name: entry[name] for name in INFO_FIELDS if entry.get(name) is not None}
        try:
            root = self.client.base_url.removesuffix("/v1")
            self.server = {"version": await self.client.get(f"{root}/version", lambda a: str(a["version"]), tries=1)}
        except (RefusedError, RetryError):
            pass  # only some servers say it

    def encode(self, prompt: Prompt) -> Encoded:
        """eval.models.prompt_format.encode, where a tokenizer is here."""
        (encoded,) = encode([prompt], self.tokenizer, self.style)
        return encoded

    async def completions(self, prompt: Any, read: Any, **settings: Any) -> Any:
        """POST /completions; prompt: text, token ids, or a list of either."""
        return await self.client.post(
            "/completions", {"model": self.model, "prompt": prompt} | NEUTRAL | settings, read
        )


@dataclass(frozen=True)
class Route:
    """A way to put a dialogue to the model. flags: what a request of /chat/completions needs so that it continues."""

    name: RouteName
    served: ServedModel
    flags: dict[str, Any] = field(default_factory=dict)

    @property
    def chat(self) -> bool:
        return self.name in ("chat", "instructed")

    @property
    def format(self) -> str:
        """The dialogue format of the records."""
        if self.name == "ids":
            return self.served.style.name
        return "paper" if self.name == "text" else "chat"

    @property
    def system_turn(self) -> str:
        if self.name == "ids":
            return self.served.style.system_turn
        return "none" if self.name == "text" else "unknown: the server renders its chat template"

    def ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of the prompt without its candidates."""
        return self.served.encode(Prompt(prompt.turns)).context

    def body(self, prompt: Prompt, forced: str = "") -> dict[str, Any]:
        """What is asked: the dialogue, and `forced` as more of the assistant's beginning (not on the route ids)."""
        if self.name == "ids":
            assert not forced
            return {"prompt": list(self.ids(prompt))}
        if self.name == "text":
            return {"prompt": paper_text(prompt) + forced}
        messages = [{"role": CHAT_ROLES[t.role], "content": t.text} for t in prompt.turns]
        beginning = messages.pop()["content"] + forced
        if self.name == "chat":
            return {"messages": [*messages, {"role": "assistant", "content": beginning}], **self.flags}
        messages[-1]["content"] += BEGIN + beginning
        return {"messages": messages}

    async def request(self, body: dict[str, Any], read: Any, **settings: Any) -> Any:
        path = "/chat/completions" if self.chat else "/completions"
        return await self.served.client.post(path, {"model": self.served.model} | NEUTRAL | body | settings, read)


def load_tokenizer(config: ScorerConfig) -> Any:
    """The tokenizer of --tokenizer. InputError where there is none."""
    name = config.tokenizer or ""
    if not Path(name).exists() and not checkpoints.is_hub_id(name):
        raise InputError(f"tokenizer {name}: there is no such folder; give the model's folder or its hub id")
    commit = commit_of(name) if checkpoints.is_hub_id(name) else None
    return checkpoints.load_tokenizer(name, commit, config.trust_remote_code)


def choices(answer: Any, n: int) -> list[Any]:
    """The n choices of an answer, in the order of their index."""
    ordered = sorted(answer["choices"], key=lambda c: c["index"])
    if len(ordered) != n:
        raise ValueError(f"{len(ordered)} choices instead of {n}")
    return ordered


def prompt_tokens(answer: Any) -> int | None:
    """How many tokens the server counts in the prompt, where it says so."""
    count = (answer.get("usage") or {}).get("prompt_tokens")
    return int(count) if count else None


def logprob(value: Any) -> float:
    """A log-probability. ValueError for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value <= ROUNDING:
        raise ValueError(f"{value!r} is no log-probability")
    return float(value)


@dataclass(frozen=True)
class TopTokens:
    """The most probable next tokens, each text with its log-probability; bound: no other token's is above it; count:
    of how many texts.

    A text that two tokens share is left out (`doubled` holds it): which of them is meant cannot be told. So is a part
    of a character (PART), which many tokens share: where texts are keys, the sampled one's value takes another's place.
    """

    logprobs: dict[str, float]
    bound: float
    ambiguous: frozenset[str]
    prompt_tokens: int | None
    count: int


def read_top_tokens(answer: Any, chat: bool) -> TopTokens:
    """The list of the first generated token. The sampled token may stand in it instead of the least of the others."""
    (choice,) = choices(answer, 1)
    if chat:
        first = choice["logprobs"]["content"][0]
        entries = [(_text(e), logprob(e["logprob"])) for e in first["top_logprobs"]]
        sampled = _text(first)
    else:
        listing = choice["logprobs"]
        entries = [(text, logprob(value)) for text, value in listing["top_logprobs"][0].items()]
        sampled = listing["tokens"][0]
    others = [value for text, value in entries if text != sampled]
    if not others or sum(math.exp(value) for _, value in entries) > 1 + ROUNDING:
        raise ValueError("no list of the most probable tokens")
    texts = [text for text, _ in entries]
    ambiguous = frozenset(text for text in texts if texts.count(text) > 1 or REPLACEMENT in text)
    logprobs = {text: value for text, value in entries if text not in ambiguous}
    return TopTokens(logprobs, min(others), ambiguous, prompt_tokens(answer), len(entries))


def _text(entry: Any) -> str:
    """A token's text, by its bytes where they are given: a part of a character has no text of its own."""
    if entry.get("bytes") is None:
        return entry["token"]
    return bytes(entry["bytes"]).decode("utf-8", errors="replace")


@dataclass(frozen=True)
class SampledText:
    """A sampled answer. null: there is no text at all, not even an empty one (all went into a reasoning kept apart)."""

    text: str
    cut_off: bool
    refused: bool
    missing: bool = False


def read_sampled(answer: Any, chat: bool, n: int) -> tuple[list[SampledText], int | None]:
    """The n sampled texts, and the prompt's tokens."""
    sampled = []
    for choice in choices(answer, n):
        finish = choice.get("finish_reason")
        refused = finish == "content_filter"
        if chat:
            message = choice["message"]
            text, refused = message.get("content"), refused or bool(message.get("refusal"))
            missing, text = text is None, text or ""
        else:
            text, missing = choice["text"], False
        if not isinstance(text, str):
            raise TypeError("a text that is none")
        sampled.append(SampledText(text, finish == "length", refused, missing))
    return sampled, prompt_tokens(answer)


def read_echo(answer: Any, n: int) -> tuple[list[list[tuple[str, float | None]]], int | None]:
    """(token, log-probability; None for the first) of every token of n echoed prompts, and all their tokens' count."""
    rows = []
    for choice in choices(answer, n):
        listing = choice["logprobs"]
        tokens: Sequence[str] = listing["tokens"]
        values: Sequence[Any] = listing["token_logprobs"]
        rows.append([(token, None if v is None else logprob(v)) for token, v in zip(tokens, values, strict=True)])
    return rows, prompt_tokens(answer)
