"""Dialogues and preference pairs: the nouns of this package, and how a dialogue becomes token ids."""

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

    subset: what accuracy is reported by ("harmless-base"); where: the file and line, or the dataset and row.
    prompt_ids: beginnings() of the prompt as it was before it was cut; empty where it was not cut.
    """

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    subset: str
    where: str
    prompt_ids: tuple[str, ...] = ()

    @property
    def was_cut(self) -> bool:
        """Whether oldest turns of the prompt were left out."""
        return bool(self.prompt_ids)

    @property
    def origin(self) -> str:
        """An id of the whole dialogue's beginning, up to its first human message: what prompts are kept apart by."""
        return (self.prompt_ids or prefix_ids(self.prompt))[0]

    def row(self) -> dict[str, list[Message]]:
        """The columns that TRL's RewardTrainer reads."""
        return {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}


def prefix_ids(prompt: Sequence[Message]) -> tuple[str, ...]:
    """An id for each beginning of the prompt that ends with a human message, the prompt itself last.

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
    """A whole dialogue in the tokenizer's chat template: what TRL's RewardTrainer trains on."""
    return all_token_ids(tokenizer, [messages])[0]


def all_token_ids(tokenizer: Any, dialogues: Sequence[Sequence[Message]]) -> list[list[int]]:
    """The same of several. Raises InputError where the template refuses one, for its system message for example."""
    try:
        written = tokenizer.apply_chat_template([list(d) for d in dialogues], tokenize=True, return_dict=True)
    except TemplateError as error:
        raise InputError(
            f"the chat template of {tokenizer.name_or_path} refuses a dialogue ({error}); use data that it can write, "
            "or a model whose template can write these"
        ) from error
    return written["input_ids"]


def cut_by_turns(messages: Sequence[Message], tokenizer: Any, max_length: int) -> list[Message] | None:
    """The dialogue without its oldest turns, as few as needed for at most `max_length` tokens; None where the last
    human turn and the answer alone are longer.

    A turn is a human message with the answer to it; a system message stays. What is left begins with a human message.
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
