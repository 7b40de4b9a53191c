"""What the scoring benchmark scores: real questions of the experiments as prompts, and how many tokens they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from eval.config import QuestionsConfig
from eval.errors import InputError
from eval.experiments import admissions, bbq, winogender
from eval.experiments.conditions import CONDITIONS
from eval.models.prompt_format import Encoded, choose_format, encode
from eval.runner.plan import Question
from eval.types import Item, Prompt, Turn

SIBLINGS = 4  # rows of BBQ that share a filling: ambiguous or not, negative or not


@dataclass(frozen=True)
class Kind:
    """A workload: its conditions, dtype, format, default number of questions, and the ratio to reach."""

    name: str
    experiment: str
    conditions: tuple[str, ...]
    dtype: str
    style: str
    questions: int
    goal: float | None


KINDS = {
    k.name: k
    for k in (
        Kind("bf16", "bbq", ("Q", "Q+IF"), "bfloat16", "paper", 400, 4.0),
        Kind("fp32", "bbq", ("Q", "Q+IF"), "float32", "paper", 200, 6.5),
        Kind("chat_bf16", "bbq", ("Q", "Q+IF"), "bfloat16", "chat", 200, 4.5),
        Kind("admissions_bf16", "admissions", ("Q", "Q+IF"), "bfloat16", "paper", 324, 5.0),
        Kind("winogender_bf16", "winogender", ("Q", "Q+IF", "Q+Match Stats"), "bfloat16", "paper", 60, None),
        Kind("cot_bf16", "bbq", ("Q", "Q+IF", "Q+IF+CoT"), "bfloat16", "paper", 64, 2.0),
    )
}


def even_shares(sizes: Sequence[int], wanted: int) -> list[int]:
    """Shares `wanted` out as evenly as the sizes allow: larger ones take what small ones cannot."""
    shares = [0] * len(sizes)
    remaining = min(wanted, sum(sizes))
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    for k, i in enumerate(order):
        shares[i] = min(sizes[i], -(-remaining // (len(order) - k)))
        remaining -= shares[i]
    return shares


def spread(items: Sequence[Item], wanted: int) -> list[Item]:
    """Returns about `wanted` BBQ items as whole groups of siblings, evenly over the categories and within each."""
    groups: dict[str, list[Sequence[Item]]] = {}
    start = 0
    while start < len(items):
        category = items[start].fields["category"]
        group = [i for i in items[start : start + SIBLINGS] if i.fields["category"] == category]
        groups.setdefault(category, []).append(group)
        start += len(group)
    shares = even_shares([len(g) for g in groups.values()], max(1, round(wanted / SIBLINGS)))
    chosen: list[Item] = []
    for category_groups, share in zip(groups.values(), shares, strict=True):
        for k in np.linspace(0, len(category_groups) - 1, share).round().astype(int) if share else []:
            chosen += category_groups[k]
    return chosen


def load_items(experiment: str, data_dir: str, wanted: int | None) -> list[Item]:
    """Loads an experiment's items from a data folder, about `wanted` of them spread evenly; None or 0 loads all."""
    config, folder = QuestionsConfig(data_dir=data_dir), Path(data_dir)
    if not folder.is_dir():
        raise InputError(f"data folder {data_dir} is not there; give --data-dir a folder with bbq/, winogender/, ...")
    module: Any = {"bbq": bbq, "admissions": admissions, "winogender": winogender}[experiment]
    items = module.load(folder, config)
    if not wanted or wanted >= len(items):
        return items
    return spread(items, wanted) if experiment == "bbq" else module.sample(items, wanted)


def questions(items: Sequence[Item], experiment: str, conditions: Sequence[str]) -> list[Question]:
    """Returns the items under the conditions, an item's questions side by side, options in the given order."""
    return [Question(experiment, CONDITIONS[c], item, 0) for item in items for c in conditions]


def final_prompt(question: Question, whole_candidates: bool, reasoning: str | None = None) -> Prompt:
    """Returns the prompt to score. `whole_candidates` leaves BBQ's candidates as they are."""
    prompt = question.prompt(reasoning)
    return prompt if whole_candidates or question.experiment != "bbq" else by_letter(prompt)


def by_letter(prompt: Prompt) -> Prompt:
    """Moves BBQ's opening bracket into the assistant's beginning, so that each candidate is one token.

    lm-eval scores ' (a)', three tokens, by a forward pass per candidate; with one-token candidates it needs one pass
    per prompt. This is its best case, and gives the smaller ratio.
    """
    last = prompt.turns[-1]
    letters = tuple(c.strip().strip("()") for c in prompt.candidates)
    assert prompt.candidates == tuple(f" ({letter})" for letter in letters)
    return Prompt((*prompt.turns[:-1], Turn(last.role, last.text + " (")), letters)


def encoded(prompts: Sequence[Prompt], tokenizer: Any, style: str) -> list[Encoded]:
    """Returns the prompts' token ids, as the scorer encodes them."""
    return encode(prompts, tokenizer, choose_format(style, tokenizer))


@dataclass(frozen=True)
class Tokens:
    """Numbers of tokens.

    Attributes:
        raw: Sum over all distinct sequences.
        unique: Nodes of the prefix tree of all sequences.
        leaves: Distributions that are read.
    """

    raw: int
    unique: int
    leaves: int


def count_tokens(prompts: Sequence[Encoded]) -> Tokens:
    """Counts the tokens that scoring the prompts needs. A candidate's last token is not needed."""
    sequences = sorted({e.context + c[:-1] for e in prompts for c in e.candidates})
    leaves = {e.context + c[:k] for e in prompts for c in e.candidates for k in range(len(c))}
    return Tokens(sum(map(len, sequences)), unique_tokens(sequences), len(leaves))


def unique_tokens(sequences: Sequence[tuple[int, ...]]) -> int:
    """Returns the number of distinct beginnings of the sequences (nodes of the prefix tree)."""
    ordered = sorted(sequences)
    if not ordered:
        return 0
    shared = sum(_shared(a, b) for a, b in pairwise(ordered))
    return sum(map(len, ordered)) - shared


def _shared(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    for n, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return n
    return min(len(a), len(b))
