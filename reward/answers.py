"""Reads files of answers to be ranked. An error names the file and the line.

A prompt is a text, or messages that end with the user's turn. An answer is a text or one assistant message. Texts are
scored unchanged, white space included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.data.readers import read_jsonl
from eval.errors import InputError
from reward.dialogues import Message

FORMS = (
    '{"prompt", "answers": [...]}, {"prompt", "answer"}, {"prompt", "chosen", "rejected"}, or {"messages"}, a whole '
    "dialogue"
)


@dataclass(frozen=True)
class Line:
    """One input line: the prompt, and the texts of the answers to it.

    labels: "chosen" and "rejected" for a preference pair, else empty.
    """

    where: str
    id: Any
    prompt: list[Message]
    answers: list[str]
    labels: tuple[str, ...] = ()

    def dialogues(self) -> list[list[Message]]:
        """The whole dialogue of each answer: the prompt with the answer appended."""
        return [[*self.prompt, {"role": "assistant", "content": a}] for a in self.answers]


def read_lines(path: Path) -> Iterator[Line]:
    """Yields the lines of an answers file.

    Raises:
        InputError: a line has none of the FORMS. The message names file and line.
    """
    for where, row in read_jsonl(path, ()):
        if not isinstance(row, dict):
            raise InputError(f"{where} is no object; it must be {FORMS}")
        yield _line(row, where)


def _line(row: dict[str, Any], where: str) -> Line:
    kinds = [k for k in ("answers", "answer", "chosen", "messages") if k in row]
    if len(kinds) != 1:
        present = " and ".join(kinds) or "neither answers, answer, chosen nor messages"
        raise InputError(f"{where} has {present}; it must be one of {FORMS}")
    (kind,) = kinds
    if kind == "messages":
        dialogue = _messages(row["messages"], where, "messages")
        if dialogue[-1]["role"] != "assistant":
            raise InputError(
                f"{where}: messages end with the {dialogue[-1]['role']}'s turn; the last must be an answer"
            )
        prompt, answers = dialogue[:-1], [dialogue[-1]["content"]]
    else:
        names = ("prompt", "chosen", "rejected") if kind == "chosen" else ("prompt", kind)
        missing = [n for n in names if n not in row]
        if missing:
            raise InputError(f"{where} has no '{missing[0]}'; it must be one of {FORMS}")
        prompt = _messages(row["prompt"], where, "prompt")
        if kind == "answers" and (not isinstance(row["answers"], list) or not row["answers"]):
            raise InputError(f"{where} has no answers; 'answers' must be a list with at least one text")
        raw_answers = row["answers"] if kind == "answers" else [row[n] for n in names[1:]]
        answers = [_answer(a, where, k) for k, a in enumerate(raw_answers, 1)]
    if not prompt or prompt[-1]["role"] != "user":
        ends = f"ends with the {prompt[-1]['role']}'s turn" if prompt else "is empty"
        raise InputError(f"{where}: the prompt {ends}; it must end with the user's turn, which the answers answer")
    return Line(where, row.get("id"), prompt, answers, ("chosen", "rejected") if kind == "chosen" else ())


def _messages(value: object, where: str, name: str) -> list[Message]:
    """Turns a text into one user message, and returns messages unchanged.

    Raises InputError unless user and assistant alternate.
    """
    if isinstance(value, str):
        if "\n\nHuman:" in value or "\n\nAssistant:" in value:
            raise InputError(f"{where}: {name} is a dialogue in the text form of HH-RLHF; write it as messages")
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: {name} must be a text or a list of messages, not {type(value).__name__}")
    for m in value:
        content = m.get("content") if isinstance(m, dict) else None
        if not isinstance(content, str) or m.get("role") not in ("system", "user", "assistant"):
            raise InputError(
                f"{where}: {name} has a message that is not {{role: system, user or assistant, content: text}}"
            )
        if not content.strip():
            part = "answer" if m is value[-1] and m["role"] == "assistant" else f"{m['role']} message"
            raise InputError(f"{where}: an empty {part}; write or remove it")
    turns = [m["role"] for m in value if m is not value[0] or m["role"] != "system"]
    if turns != [("user", "assistant")[k % 2] for k in range(len(turns))]:
        raise InputError(f"{where}: {name} must alternate user, assistant, ..., after at most one system message")
    return [{"role": m["role"], "content": m["content"]} for m in value]


def _answer(value: object, where: str, number: int) -> str:
    """The text of an answer that is written as a text or as [one assistant message]."""
    if (
        isinstance(value, list)
        and len(value) == 1
        and isinstance(value[0], dict)
        and value[0].get("role") == "assistant"
    ):
        value = value[0].get("content")
    if not isinstance(value, str):
        raise InputError(f"{where}: answer {number} must be a text or one assistant message")
    if not value.strip():
        raise InputError(f"{where}: answer {number} is empty; write or remove it")
    return value
