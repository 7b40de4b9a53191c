"""Preference pairs from data_dir/preferences/*.jsonl[.gz] -> TRL's conversational form.

Each line has 'chosen' and 'rejected', a whole dialogue each in the text form of Anthropic's HH-RLHF ("\\n\\nHuman: ...
\\n\\nAssistant: ...") that differ in the last assistant turn. Lines that are not pairs are counted by reason and
reported, never dropped in silence.
"""

from __future__ import annotations

import logging
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

from eval.config import InputError
from eval.sources import data_folder, fetch_command, read_jsonl

log = logging.getLogger(__name__)

TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
Pair = dict[str, list[dict[str, str]]]


def preference_files(data_dir: str | None) -> list[Path]:
    """The files in data_dir/preferences. InputError where there is none."""
    folder = data_folder(data_dir) / "preferences"
    found = sorted(p for p in folder.glob("*") if p.name.endswith((".jsonl", ".jsonl.gz")))
    if not found:
        command = fetch_command(folder.parent)
        raise InputError(
            f"{folder} has no *.jsonl or *.jsonl.gz with preference pairs; get some by {command} --only preferences"
        )
    return found


def read_pairs(files: list[Path]) -> tuple[list[Pair], dict[str, int]]:
    """(pairs, unreadable lines by reason); a pair is {"prompt": messages, "chosen": [message], "rejected": [message]}.

    Raises InputError for a line that is not JSON or lacks a key, and where no usable pair is left.
    """
    pairs: list[Pair] = []
    reasons: Counter[str] = Counter()
    for path in files:
        before = len(pairs) + reasons.total()
        for _, row in read_jsonl(path, ("chosen", "rejected")):
            pair = _pair(row)
            if isinstance(pair, str):
                reasons[pair] += 1
            else:
                pairs.append(pair)
        if len(pairs) + reasons.total() == before:
            raise InputError(f"preference file {path} is empty; it needs lines with 'chosen' and 'rejected'")
    for reason, n in reasons.items():
        log.warning("%d preference pairs left out: %s", n, reason)
    if not pairs:
        raise InputError(f"no usable preference pair in {', '.join(map(str, files))}: {dict(reasons)}")
    return pairs, dict(reasons)


def _pair(row: dict[str, Any]) -> Pair | str:
    """A pair, or the reason why the line is none."""
    chosen, rejected = _messages(row["chosen"]), _messages(row["rejected"])
    if not chosen or not rejected:
        return "a dialogue that does not alternate from Human to Assistant"
    if chosen[:-1] != rejected[:-1]:
        return "chosen and rejected differ before the last answer"
    if chosen[-1] == rejected[-1]:
        return "chosen equals rejected"
    if not chosen[-1]["content"] or not rejected[-1]["content"]:
        return "an empty answer"
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def _messages(text: object) -> list[dict[str, str]] | None:
    """HH text as messages that alternate user, assistant, ... and end with the assistant; None otherwise."""
    parts = TURN.split(text) if isinstance(text, str) else []
    if len(parts) < 5 or parts[0].strip():
        return None
    turns = [(ROLES[parts[i]], parts[i + 1].strip()) for i in range(1, len(parts), 2)]
    roles = [role for role, _ in turns]
    if roles != ["user", "assistant"] * (len(turns) // 2):
        return None
    return [{"role": role, "content": content} for role, content in turns]


def split_by_prompt(pairs: list[Pair], held_out: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(training pairs, held-out pairs): a `held_out` share of the distinct prompts, so none stands on both sides."""
    prompts = sorted({repr(p["prompt"]) for p in pairs})
    n = round(held_out * len(prompts))
    if not 1 <= n < len(prompts):
        raise InputError(
            f"held_out {held_out} leaves {n} of {len(prompts)} prompts held out; both sides need at least one"
        )
    chosen = set(random.Random(seed).sample(prompts, n))
    return (
        [p for p in pairs if repr(p["prompt"]) not in chosen],
        [p for p in pairs if repr(p["prompt"]) in chosen],
    )
