"""The data types of this package, dialogues and preference pairs, and how a dialogue becomes token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from eval.errors import InputError

Message = dict[str, str]
"""{"role": "system", "user" or "assistant", "content": text}."""


@dataclass(frozen=True)
class Pair:
    """A human's preference between two answers to the same prompt, in TRL's conversational form.

    subset: the group that accuracy is reported for ("harmless-base"). where: file and line, or data set and row.
    prompt_ids: prefix_ids() of the prompt before it was cut; empty if it was not cut.
    """

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    subset: str
    where: str
    prompt_ids: tuple[str, ...] = ()

    @property
    def was_cut(self) -> bool:
        """Whether the oldest turns of the prompt were removed."""
        return bool(self.prompt_ids)

    @property
    def origin(self) -> str:
        """Id of the dialogue's start, up to its first human message. Splits of prompts compare this id."""
        return (self.prompt_ids or prefix_ids(self.prompt))[0]

    def row(self) -> dict[str, list[Message]]:
        """The columns that TRL's RewardTrainer reads."""
        return {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}


def prefix_ids(prompt: Sequence[Message]) -> tuple[str, ...]:
    """An id for each prefix of the prompt that ends with a human message; the last id is that of the whole prompt.

    Prompts that differ only in case or white space have the same ids.
    """
    digest, ids = hashlib.sha256(), []
    for message in prompt:
        text = " ".join(message["content"].split()).casefold()
        digest.update(f"{message['role']}\0{text}\0".encode(errors="surrogatepass"))
        if message["role"] == "user":
            ids.append(digest.hexdigest()[:24])
    return tuple(ids)


def token_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """The token ids of a whole dialogue in the tokenizer's chat template: what TRL's RewardTrainer trains on."""
    return all_token_ids(tokenizer, [messages])[0]


def all_token_ids(tokenizer: Any, dialogues: Sequence[Sequence[Message]]) -> list[list[int]]:
    """The token ids of several whole dialogues (see token_ids).

    Raises:
        InputError: the chat template refuses a dialogue, for its system message for example.
    """
    try:
        written = tokenizer.apply_chat_template([list(d) for d in dialogues], tokenize=True, return_dict=True)
    except TemplateError as error:
        raise InputError(
            f"the chat template of {tokenizer.name_or_path} refuses a dialogue ({error}); use data that it can write, "
            "or a model whose template can write these"
        ) from error
    return written["input_ids"]


def cut_by_turns(messages: Sequence[Message], tokenizer: Any, max_length: int) -> list[Message] | None:
    """Removes the oldest turns of a dialogue, as few as needed for at most `max_length` tokens.

    A turn is a human message with the answer to it. A system message stays. The rest begins with a human message.

    Returns:
        The shorter dialogue, or None if the last human message and its answer alone are too long.
    """
    dialogue = list(messages)
    system = dialogue[:1] if dialogue and dialogue[0]["role"] == "system" else []
    turns = dialogue[len(system) :]
    while len(token_ids(tokenizer, system + turns)) > max_length:
        starts = [i for i, m in enumerate(turns) if m["role"] == "user" and i > 0]
        if not starts:
            return None
        turns = turns[starts[0] :]
    return system + turns
