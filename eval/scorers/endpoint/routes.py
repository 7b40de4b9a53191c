"""A model behind OpenAI's API: is it served, how a dialogue is sent to it, and how its answers are parsed.

Four routes send a dialogue that ends with the beginning of the assistant's turn:
- ids: /completions with token ids of a local tokenizer, exactly those of the other scorers;
- text: /completions with the paper's format as text, which the server tokenizes;
- chat: /chat/completions, where the server continues the beginning in the last message;
- instructed: /chat/completions of a server that does not continue it. The end of the user's turn asks for the beginning
  (BEGIN), which changes the question.
For answers of another form the functions raise one of http_client.MALFORMED, and the client repeats the request.
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
"""Appended to the user's turn, followed by the assistant's beginning, where the server cannot continue a beginning."""
NEUTRAL = {"temperature": 1.0, "top_p": 1.0}
"""Sent with every request: the model's own probabilities, neither sharpened nor truncated."""
INFO_FIELDS = ("root", "parent", "owned_by", "max_model_len", "meta")
UNSUPPORTED_STATUSES = (400, 404, 405, 415, 422, 500, 501)
"""Statuses with which servers refuse what they do not support. Others say nothing about capabilities."""
REPLACEMENT = "\ufffd"
"""Stands for bytes that are not a whole character."""
ROUNDING = 1e-3  # how far a log-probability may exceed 0, or a sum of probabilities 1


class UnsupportedError(Exception):
    """The server cannot do something. The message says what in its answers shows this."""


@dataclass
class ServedModel:
    """A model on a server.

    Attributes:
        client: The client of the server.
        model: The name under which the model is served.
        tokenizer: The local tokenizer, or None.
        style: The tokenizer's dialogue format.
        info: What /v1/models says of the model.
        server: The server's version, if it reports one.
    """

    client: Client
    model: str
    tokenizer: Any = None
    style: Format = field(default_factory=lambda: Format("paper"))
    info: dict[str, Any] = field(default_factory=dict)
    server: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def connect(config: ScorerConfig, model: str, key: str | None, tokenizer: Any, style: Format) -> ServedModel:
        """Connects to the server and reads the model's entry.

        Raises:
            InputError: The server does not answer, or does not serve the model.
        """
        assert config.base_url is not None  # options.check_endpoint has checked it
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
            pass  # only some servers report a version

    def encode(self, prompt: Prompt) -> Encoded:
        """eval.models.prompt_format.encode of one prompt. Needs a local tokenizer."""
        (encoded,) = encode([prompt], self.tokenizer, self.style)
        return encoded

    async def completions(self, prompt: Any, read: Any, **settings: Any) -> Any:
        """Sends POST /completions.

        Args:
            prompt: Text, token ids, or a list of either.
            read: Parses the answer, as in Client.post.
            settings: Further fields of the request.
        """
        return await self.client.post(
            "/completions", {"model": self.model, "prompt": prompt} | NEUTRAL | settings, read
        )


@dataclass(frozen=True)
class Route:
    """A way to send a dialogue to the model. flags: fields with which /chat/completions continues a beginning."""

    name: RouteName
    served: ServedModel
    flags: dict[str, Any] = field(default_factory=dict)

    @property
    def chat(self) -> bool:
        return self.name in ("chat", "instructed")

    @property
    def format(self) -> str:
        """The dialogue format, as recorded."""
        if self.name == "ids":
            return self.served.style.name
        return "paper" if self.name == "text" else "chat"

    @property
    def system_turn(self) -> str:
        """How a system turn is treated, as recorded."""
        if self.name == "ids":
            return self.served.style.system_turn
        return "none" if self.name == "text" else "unknown: the server renders its chat template"

    def ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of the prompt without its candidates."""
        return self.served.encode(Prompt(prompt.turns)).context

    def body(self, prompt: Prompt, forced: str = "") -> dict[str, Any]:
        """The dialogue as fields of a request.

        Args:
            prompt: The dialogue.
            forced: Text to append to the assistant's beginning; not on the route ids.
        """
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
        """Sends a request on this route: fields of `body`, then `settings`. read: as in Client.post."""
        path = "/chat/completions" if self.chat else "/completions"
        return await self.served.client.post(path, {"model": self.served.model} | NEUTRAL | body | settings, read)


def load_tokenizer(config: ScorerConfig) -> Any:
    """Loads the tokenizer that --tokenizer names.

    Raises:
        InputError: It does not exist or cannot be loaded.
    """
    name = config.tokenizer or ""
    if not Path(name).exists() and not checkpoints.is_hub_id(name):
        raise InputError(f"tokenizer {name}: there is no such folder; give the model's folder or its hub id")
    commit = commit_of(name) if checkpoints.is_hub_id(name) else None
    return checkpoints.load_tokenizer(name, commit, config.trust_remote_code)


def choices(answer: Any, n: int) -> list[Any]:
    """The n choices of an answer, ordered by index."""
    ordered = sorted(answer["choices"], key=lambda c: c["index"])
    if len(ordered) != n:
        raise ValueError(f"{len(ordered)} choices instead of {n}")
    return ordered


def prompt_tokens(answer: Any) -> int | None:
    """The server's count of prompt tokens, or None if it gives none."""
    count = (answer.get("usage") or {}).get("prompt_tokens")
    return int(count) if count else None


def logprob(value: Any) -> float:
    """Returns the value as a log-probability (nats). Raises ValueError if it is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value <= ROUNDING:
        raise ValueError(f"{value!r} is no log-probability")
    return float(value)


@dataclass(frozen=True)
class TopTokens:
    """The most probable next tokens of one position.

    Texts that several tokens share are left out of logprobs, since a value could belong to any of them. So are parts of
    a character (REPLACEMENT), which many tokens share: where texts are keys, the sampled token's value replaces
    another's.

    Attributes:
        logprobs: Log-probability (nats) by token text.
        bound: No token outside the list is more probable than this log-probability.
        ambiguous: Texts that several tokens share.
        prompt_tokens: The server's count of prompt tokens, or None.
        count: Number of listed texts, ambiguous ones included.
    """

    logprobs: dict[str, float]
    bound: float
    ambiguous: frozenset[str]
    prompt_tokens: int | None
    count: int


def read_top_tokens(answer: Any, chat: bool) -> TopTokens:
    """Parses the list of the first generated token. The sampled token may replace the least probable listed one."""
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
    """A token's text, from its bytes where they are given: part of a character has no text."""
    if entry.get("bytes") is None:
        return entry["token"]
    return bytes(entry["bytes"]).decode("utf-8", errors="replace")


@dataclass(frozen=True)
class SampledText:
    """A sampled answer.

    Attributes:
        text: Its text.
        cut_off: It ended at the token limit.
        refused: The server's filter or the model refused.
        missing: The server gave no text, not even an empty one: all of it went into a separate reasoning field.
    """

    text: str
    cut_off: bool
    refused: bool
    missing: bool = False


def read_sampled(answer: Any, chat: bool, n: int) -> tuple[list[SampledText], int | None]:
    """Parses the n sampled texts and the server's count of prompt tokens."""
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
    """Parses n echoed prompts.

    Returns:
        For each prompt (token, log-probability; None for the first token) of every token, and the server's count of all
        their tokens, or None.
    """
    rows = []
    for choice in choices(answer, n):
        listing = choice["logprobs"]
        tokens: Sequence[str] = listing["tokens"]
        values: Sequence[Any] = listing["token_logprobs"]
        rows.append([(token, None if v is None else logprob(v)) for token, v in zip(tokens, values, strict=True)])
    return rows, prompt_tokens(answer)
