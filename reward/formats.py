"""Turns a row of a preference data set into a pair. The row's columns decide the form.

chosen, rejected                       texts as HH-RLHF writes them, "\\n\\nHuman: ...\\n\\nAssistant: ..." (Bai et al.
                                       2022)
chosen, rejected                       lists of messages, whole dialogues that differ in the last answer
prompt, chosen, rejected               the prompt is a text or messages; the others are answers (texts or messages) or
                                       whole dialogues that begin with it (UltraFeedback-binarized, Tunstall et al.
                                       2023)
prompt, response_0, response_1, and    PKU-SafeRLHF (Ji et al. 2024) has two labels: better_response_id (the more
better_/safer_response_id              helpful answer) and safer_response_id (the more harmless one); the caller chooses

If a row has score_chosen and score_rejected (or chosen_score, chosen-rating ...), they must agree with the order: equal
scores are no preference. A system column becomes a system message. All other columns are ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from reward.dialogues import Message, Pair

TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
LABELS = ("better", "safer")
SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)
KNOWN_FORMS = (
    "chosen and rejected (HH-RLHF's text form, or messages), with or without prompt; or prompt, response_0, "
    "response_1 and better_response_id or safer_response_id (PKU-SafeRLHF)"
)


class InvalidPairError(Exception):
    """A row is not a pair. The text is the reason; rows of one kind share it, and are counted by it."""


def has_known_form(row: object) -> bool:
    """Whether the row has the columns of one of the forms above, whatever their content."""
    return isinstance(row, Mapping) and ({"chosen", "rejected"} <= row.keys() or _is_two_responses(row))


def parse_pair(row: object, subset: str, where: str, label: str = "better") -> Pair:
    """The pair in a row. The row's own "subset" column, if there is one, takes precedence over `subset`.

    Args:
        label: "better" or "safer", the label that decides if a row has both (PKU-SafeRLHF).

    Raises:
        InvalidPairError: the row is not a pair.
    """
    if not isinstance(row, Mapping):
        raise InvalidPairError("not an object with columns")
    if not has_known_form(row):
        raise InvalidPairError("columns of no known form")
    row_subset = row.get("subset")
    subset = row_subset if isinstance(row_subset, str) and row_subset.strip() else subset
    prompt, chosen, rejected = _two_responses(row, label) if _is_two_responses(row) else _chosen_rejected(row)
    _check_scores(row)
    if prompt and prompt[0]["role"] != "system":
        prompt = _system(row) + prompt
    _check_prompt(prompt)
    if not chosen.strip() or not rejected.strip():
        raise InvalidPairError("an empty answer")
    if chosen.strip() == rejected.strip():
        raise InvalidPairError("chosen equals rejected")
    answers = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    return Pair(prompt, answers[0], answers[1], subset, where)


def _is_two_responses(row: Mapping[Any, Any]) -> bool:
    return {"prompt", "response_0", "response_1"} <= row.keys() and any(f"{x}_response_id" in row for x in LABELS)


def _two_responses(row: Mapping[Any, Any], label: str) -> tuple[list[Message], str, str]:
    column = f"{label}_response_id"
    best = row.get(column)
    if best is None:
        raise InvalidPairError(f"no {column}")
    if isinstance(best, bool) or best not in (0, 1):
        raise InvalidPairError(f"{column} is neither 0 nor 1: no preference")
    responses = [row["response_0"], row["response_1"]]
    if not all(isinstance(text, str) for text in responses):
        raise InvalidPairError("response_0 or response_1 is no text")
    if not isinstance(row["prompt"], str):
        raise InvalidPairError("prompt is no text")
    return [{"role": "user", "content": row["prompt"]}], responses[int(best)], responses[1 - int(best)]


def _chosen_rejected(row: Mapping[Any, Any]) -> tuple[list[Message], str, str]:
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    for name in ("chosen", "rejected"):
        if not isinstance(row[name], str | list):
            raise InvalidPairError(f"{name} is neither a text nor messages")
    if prompt is not None and not isinstance(prompt, str | list):
        raise InvalidPairError("prompt is neither a text nor messages")
    if prompt is None and isinstance(chosen, str) and isinstance(rejected, str):
        return _common_prompt(_hh_dialogue(chosen), _hh_dialogue(rejected))
    if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        if _is_hh_text(prompt) and _is_hh_text(chosen) and _is_hh_text(rejected):
            if not all(_single_spaced(text).startswith(_single_spaced(prompt)) for text in (chosen, rejected)):
                raise InvalidPairError("chosen or rejected does not begin with the prompt")
            return _common_prompt(_hh_dialogue(chosen), _hh_dialogue(rejected))
        return _prompt_messages(prompt), chosen, rejected
    if prompt is None or not isinstance(prompt, list):
        dialogues = [_messages(chosen), _messages(rejected)]
        if isinstance(prompt, str) and all(len(d) == 1 for d in dialogues):
            return _prompt_messages(prompt), _answer(dialogues[0]), _answer(dialogues[1])
        common = _common_prompt(*dialogues)
        if isinstance(prompt, str) and _single_spaced(prompt) not in [_single_spaced(m["content"]) for m in common[0]]:
            raise InvalidPairError("prompt is not in the dialogue")
        return common
    messages = _messages(prompt)
    return messages, _answer(_following(chosen, messages)), _answer(_following(rejected, messages))


def _following(value: object, prompt: list[Message]) -> list[Message]:
    """The messages after the prompt. value: a text (an answer) or messages (the answer, or the whole dialogue)."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    messages = _messages(value)
    return messages[len(prompt) :] if messages[: len(prompt)] == prompt else messages


def _answer(messages: list[Message]) -> str:
    if not messages:
        raise InvalidPairError("an empty answer")
    if len(messages) > 1 and messages[0]["role"] != "assistant":
        raise InvalidPairError("chosen or rejected does not begin with the prompt")
    if len(messages) > 1:
        raise InvalidPairError("chosen and rejected differ before the last answer")
    if messages[0]["role"] != "assistant":
        raise InvalidPairError("a dialogue that does not end with the assistant")
    return messages[0]["content"]


def _common_prompt(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], str, str]:
    for dialogue in (chosen, rejected):
        if not dialogue:
            raise InvalidPairError("an empty dialogue")
        if dialogue[-1]["role"] != "assistant":
            raise InvalidPairError("a dialogue that does not end with the assistant")
        _check_alternates(dialogue[:-1])
    if chosen[:-1] != rejected[:-1]:
        raise InvalidPairError("chosen and rejected differ before the last answer")
    return chosen[:-1], chosen[-1]["content"], rejected[-1]["content"]


def _is_hh_text(text: str) -> bool:
    return text.lstrip().startswith("Human:")


def _hh_dialogue(text: str) -> list[Message]:
    """Parses HH-RLHF's text into messages; strips the white space around each."""
    if not _is_hh_text(text):
        raise InvalidPairError("a text that does not begin with 'Human:', and no prompt beside it")
    parts = TURN.split("\n\n" + text.lstrip())
    return [{"role": ROLES[parts[i]], "content": parts[i + 1].strip()} for i in range(1, len(parts), 2)]


def _prompt_messages(prompt: str) -> list[Message]:
    """Parses a prompt's text: HH-RLHF's form with or without the last 'Assistant:', otherwise one human message."""
    if not _is_hh_text(prompt):
        return [{"role": "user", "content": prompt}]
    messages = _hh_dialogue(prompt)
    return messages[:-1] if messages[-1] == {"role": "assistant", "content": ""} else messages


def _messages(value: object) -> list[Message]:
    """Role and content of each message; other keys that data sets have are dropped."""
    if not isinstance(value, list):
        raise InvalidPairError("of chosen and rejected one is a text, the other messages")
    for message in value:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise InvalidPairError("a message without a text as its content")
        if message.get("role") not in ("system", "user", "assistant"):
            raise InvalidPairError("a message whose role is not system, user or assistant")
    return [{"role": m["role"], "content": m["content"]} for m in value]


def _system(row: Mapping[Any, Any]) -> list[Message]:
    text = row.get("system")
    return [{"role": "system", "content": text}] if isinstance(text, str) and text.strip() else []


def _check_scores(row: Mapping[Any, Any]) -> None:
    for names in SCORES:
        scores: list[Any] = [row.get(name) for name in names]
        if all(score is None for score in scores):
            continue
        for name, score in zip(names, scores, strict=True):
            if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
                raise InvalidPairError(f"{name} is not a number")
        if scores[0] == scores[1]:
            raise InvalidPairError(f"{names[0]} equals {names[1]}: no preference")
        if scores[0] < scores[1]:
            raise InvalidPairError(f"{names[0]} is below {names[1]}")


def _check_alternates(prompt: list[Message]) -> None:
    roles = [m["role"] for m in prompt]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if turns != [("user", "assistant")[i % 2] for i in range(len(turns))] or len(turns) % 2 == 0:
        raise InvalidPairError("a dialogue that does not alternate from user to assistant")


def _check_prompt(prompt: list[Message]) -> None:
    if not prompt or not prompt[-1]["content"].strip():
        raise InvalidPairError("an empty prompt")
    _check_alternates(prompt)
    if not all(m["content"].strip() for m in prompt):
        raise InvalidPairError("an empty message in the prompt")


def _single_spaced(text: str) -> str:
    return " ".join(text.split())
