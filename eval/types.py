"""The types that all modules share: questions (Item, Prompt), models (Scorer), records and results (Metric, Effect)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True)
class Turn:
    """One turn of a dialogue."""

    role: Literal["human", "assistant"]
    text: str


@dataclass(frozen=True)
class Prompt:
    """A dialogue that ends with the beginning of an assistant's turn, and the candidates: strings that may follow it.

    A prompt without candidates is one to sample reasoning from.
    """

    turns: tuple[Turn, ...]
    candidates: tuple[str, ...] = ()


def prompt_sha256(prompts: Sequence[Prompt]) -> str:
    """A checksum of prompts: the roles and texts of all turns and the candidates of each prompt, in order.

    It does not depend on the dialogue format. It is the sha256 of the JSON list
    [[[[role, text], ...], [candidate, ...]], ...] without spaces, in ASCII.
    """
    content = [[[[t.role, t.text] for t in p.turns], list(p.candidates)] for p in prompts]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Item:
    """One question of an experiment, before a condition is applied.

    Attributes:
        id: identifies the item within its experiment.
        cluster: the unit that the bootstrap draws (template, occupation, profile).
        weight: how often the item occurs in the population.
        fields: columns of its records.
        texts: the texts that its prompts are made from.
        group: items of one group are always asked together (--precision draws groups). '': the cluster is the group.
    """

    id: str
    cluster: str
    weight: float = 1.0
    fields: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    group: str = ""


@dataclass(frozen=True)
class Answer:
    """A scorer's answer to one prompt.

    Attributes:
        logprobs: natural log-probability of each candidate over the full vocabulary, shape (candidates,).
        prompt_tokens: length of the prompt; None where a server does not report it.
        boundary_moved: see eval.models.prompt_format.Encoded.
        extra: further columns of the record. With the key `no_answer` (the reason) there is no answer; logprobs are
            NaN.
    """

    logprobs: np.ndarray
    prompt_tokens: int | None
    boundary_moved: int
    extra: dict[str, Any] = field(default_factory=dict)


Record = dict[str, Any]
"""One line of records.jsonl. docs/results.md describes its columns."""


@dataclass
class Metric:
    """One number with its interval and its origin. Where it is undefined, value and interval are None and `note` says
    why.

    category: 'all' for the whole experiment, else a part of it: a BBQ category, 'mean of categories', a sex.
    """

    experiment: str
    condition: str
    name: str
    value: float | None
    low: float | None
    high: float | None
    n_items: int
    n_clusters: int
    method: str
    note: str = ""
    category: str = "all"


@dataclass
class Effect:
    """The change from one condition to another on the same items: after - before, paired, with its interval.

    p_value is two-sided. p_holm is corrected over the experiments (eval.metrics.measure.correct_p_values); None where
    it was not.
    """

    experiment: str
    before: str
    after: str
    name: str
    value: float | None
    low: float | None
    high: float | None
    p_value: float | None
    p_holm: float | None
    value_before: float | None
    value_after: float | None
    n_items: int
    n_clusters: int
    note: str = ""
    category: str = "all"


@dataclass
class Measured:
    """All results of one checkpoint. breakdown: one row per template, occupation or profile, and condition."""

    metrics: list[Metric]
    effects: list[Effect]
    breakdown: list[dict[str, Any]]


class Scorer(Protocol):
    """A model as the experiments use it.

    To add one, add a file in eval/scorers that has these methods.
    """

    def score(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer]]:
        """Yields (index into prompts, Answer), in any order, as soon as each is ready."""
        ...

    def sample(self, prompts: Sequence[Prompt], seeds: Sequence[int], max_new_tokens: int) -> Iterator[tuple[int, str]]:
        """Yields (index into prompts, sampled continuation).

        A prompt's sample depends on its own seed only, not on the other prompts.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """The scorer's part of the provenance: format, tier, dtype ..."""
        ...


@runtime_checkable
class IndependentScorer(Scorer, Protocol):
    """A scorer whose answer to a prompt never depends on the other prompts of the call.

    Each answer is stored as soon as it arrives, and a later run evaluates only the missing ones.
    """

    def reason(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], max_new_tokens: int, then: Callable[[int, str], Prompt]
    ) -> Iterator[tuple[int, str, Answer]]:
        """Samples reasoning from each prompt and scores the prompt that `then(index, reasoning)` makes of it.

        Yields:
            (index into prompts, reasoning, Answer), in any order.
        """
        ...
