"""Examples for supervised fine-tuning, a prompt and the completion to learn: reads, fits and splits them by prompt.

    {"prompt": "a text", "completion": "a text"}                                 a user's and an assistant's message
    {"prompt": [messages], "completion": [one assistant message]}                TRL's conversational form
    one of each works too; other columns are ignored

Files are .jsonl[.gz], .json (a list) or .parquet. Rows that are not examples are counted by reason, and the first of
each reason is reported with its place.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.data.readers import data_folder
from eval.errors import InputError
from reward.dialogues import Message, all_token_ids, prefix_ids
from reward.sources import SUFFIXES, LocalFile
from train.data.answer_format import SEED, answer_format_jsonl, answer_format_rows

log = logging.getLogger(__name__)
SHIPPED = "answer-format"
ROLES = ("system", "user", "assistant")


class InvalidExampleError(Exception):
    """A row is not an example. The text is the reason; rows of one kind share it, and are counted by it."""


@dataclass(frozen=True)
class Example:
    """A prompt and the completion to learn, as messages; the completion is one assistant message."""

    prompt: list[Message]
    completion: list[Message]
    where: str

    def row(self) -> dict[str, list[Message]]:
        """The columns that TRL's SFTTrainer reads."""
        return {"prompt": self.prompt, "completion": self.completion}


@dataclass
class Examples:
    """Examples and how they were read.

    unreadable: rows that are not examples, counted by reason. identity: one entry of each source, for the records.
    """

    examples: list[Example]
    unreadable: dict[str, int]
    identity: list[str]


def read_examples(paths: list[str] | None, data_dir: str | None) -> Examples:
    """Reads all examples of the files and folders.

    Args:
        paths: files and folders; None: those of data_dir/sft or, if there is none, the shipped set.

    Raises:
        InputError: a file does not exist, cannot be read or is given twice; or no example is left.
    """
    examples: list[Example] = []
    reasons: Counter[str] = Counter()
    first_place: dict[str, str] = {}
    identity = []
    for name, rows in _sources(paths, data_dir):
        identity.append(name)
        for where, row in rows:
            try:
                examples.append(parse_example(row, where))
            except InvalidExampleError as reason:
                reasons[str(reason)] += 1
                first_place.setdefault(str(reason), where)
    for reason, n in reasons.most_common():
        log.warning("%d rows of the examples left out: %s (the first: %s)", n, reason, first_place[reason])
    if not examples:
        counted = ", ".join(f"{n} x {reason} (the first: {first_place[reason]})" for reason, n in reasons.most_common())
        raise InputError(
            f"no usable example in {', '.join(identity)}: {counted or 'no rows'}; each row needs prompt and completion"
        )
    return Examples(examples, dict(reasons), identity)


def parse_example(row: object, where: str) -> Example:
    """The example in a row. Raises InvalidExampleError."""
    if not isinstance(row, Mapping) or not {"prompt", "completion"} <= row.keys():
        raise InvalidExampleError("no prompt or no completion")
    prompt = _messages(row["prompt"], "user")
    completion = _messages(row["completion"], "assistant")
    turns = prompt[1:] if prompt[:1] and prompt[0]["role"] == "system" else prompt
    if [m["role"] for m in turns] != [("user", "assistant")[i % 2] for i in range(len(turns))] or len(turns) % 2 == 0:
        raise InvalidExampleError("a prompt that does not alternate from user to assistant and end with the user")
    if [m["role"] for m in completion] != ["assistant"]:
        raise InvalidExampleError("a completion that is not one assistant message")
    return Example(prompt, completion, where)


def _messages(value: object, role: str) -> list[Message]:
    messages = [{"role": role, "content": value}] if isinstance(value, str) else value
    if not isinstance(messages, list):
        raise InvalidExampleError("prompt or completion is neither a text nor messages")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise InvalidExampleError("a message without a text as its content")
        if message.get("role") not in ROLES:
            raise InvalidExampleError("a message whose role is not system, user or assistant")
        if not message["content"].strip():
            raise InvalidExampleError("an empty prompt or completion")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def _sources(paths: list[str] | None, data_dir: str | None) -> Iterator[tuple[str, Iterator[tuple[str, Any]]]]:
    """Yields (identity, rows with their places) of each source."""
    folder = data_folder(data_dir) / "sft"
    if paths is None and not folder.is_dir():
        log.info("examples: the shipped set, since %s is not there", folder)
        checksum = hashlib.sha256(answer_format_jsonl().encode()).hexdigest()
        rows = ((f"{SHIPPED} row {i}", row) for i, row in enumerate(answer_format_rows()))
        yield f"{SHIPPED} (shipped, seed {SEED}) sha256:{checksum}", rows
        return
    files = _files([str(folder)] if paths is None else paths)
    for path in files:
        yield LocalFile(path).identity(), LocalFile(path).rows()


def _files(paths: list[str]) -> list[Path]:
    kinds = ", ".join(f"*{s}" for s in SUFFIXES)
    if not paths:
        raise InputError("examples names no file; give files or folders, or leave it out")
    files: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(p for p in path.glob("*") if p.is_file() and p.name.endswith(SUFFIXES))
        if path.is_dir() and not inside:
            raise InputError(f"examples: the folder {path} has none of {kinds}; give files, or a folder with some")
        if not path.is_dir() and not (path.is_file() and path.name.endswith(SUFFIXES)):
            problem = "is none of " + kinds if path.is_file() else "is not there"
            raise InputError(f"examples: {path} {problem}; give a file or folder of examples")
        files += inside or [path]
    for i, path in enumerate(files):
        if path in files[:i]:
            raise InputError(f"examples names {path} twice; name it once, or its rows would count twice")
    return files


def fit_examples(
    examples: Sequence[Example], tokenizer: Any, max_length: int | None
) -> tuple[list[Example], dict[str, int]]:
    """(examples of at most max_length tokens, number of longer ones by reason). Raises InputError if none is left."""
    if max_length is None:
        return list(examples), {}
    lengths = [len(ids) for ids in all_token_ids(tokenizer, [e.prompt + e.completion for e in examples])]
    kept = [e for e, length in zip(examples, lengths, strict=True) if length <= max_length]
    if not kept:
        raise InputError(f"no example has at most {max_length} tokens, the shortest {min(lengths)}; raise max_length")
    if len(kept) == len(examples):
        return kept, {}
    n = len(examples) - len(kept)
    log.warning("%d of %d examples are longer than %d tokens and left out", n, len(examples), max_length)
    return kept, {f"longer than {max_length} tokens": n}


def split_examples(examples: Sequence[Example], held_out: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Splits the examples by prompt; about a `held_out` share is held out.

    Examples with the same prompt, up to case and white space, are on one side.

    Returns:
        (training examples, held-out examples), each in their original order.

    Raises:
        InputError: a side would be empty.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        groups[prefix_ids(example.prompt)[-1]].append(i)
    shuffled = random.Random(seed).sample(sorted(groups), len(groups))
    target, chosen = round(held_out * len(examples)), set()
    for prompt in shuffled:
        if len(chosen) + len(groups[prompt]) <= target:
            chosen.update(groups[prompt])
    if not chosen or len(chosen) == len(examples):
        raise InputError(
            f"held_out {held_out} leaves {len(chosen)} of {len(examples)} examples held out; both sides need at least "
            "one"
        )
    return (
        [e for i, e in enumerate(examples) if i not in chosen],
        [e for i, e in enumerate(examples) if i in chosen],
    )
