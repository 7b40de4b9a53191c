"""The nouns: what is asked (Item, Prompt), what answers it (Scorer), what is kept (a record), what is told (Metric)."""

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
    """A dialogue whose last turn is the beginning of an assistant's turn, and the strings that may follow it.

    Without candidates it is a prompt to sample reasoning from.
    """

    turns: tuple[Turn, ...]
    candidates: tuple[str, ...] = ()


def prompt_sha256(prompts: Sequence[Prompt]) -> str:
    """A checksum of what was asked: the words and roles of all turns and the candidates, of each prompt in turn.

    It is taken before a dialogue format is put on them: of the JSON list [[[[role, text], ...], [candidate, ...]], ...]
    without spaces, in ASCII.
    """
    content = [[[[t.role, t.text] for t in p.turns], list(p.candidates)] for p in prompts]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Item:
    """One question of an experiment, before a condition is put on it.

    id identifies it within the experiment, cluster is the unit of the bootstrap (template, occupation, profile),
    weight counts how often it stands in the population, fields become columns of its records, texts make the prompts.
    group: items of one group are always asked together (--precision draws groups); '' = the cluster is the group.
    """

    id: str
    cluster: str
    weight: float = 1.0
    fields: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    group: str = ""


@dataclass(frozen=True)
class Answer:
    """What a scorer says of one prompt: natural-log probabilities, one per candidate, over the full vocabulary.

    extra: further columns of the record. With `no_answer` in it, the reason, there is none: logprobs are NaN.
    prompt_tokens is None where a server does not say it.
    """

    logprobs: np.ndarray
    prompt_tokens: int | None
    boundary_moved: int
    extra: dict[str, Any] = field(default_factory=dict)


Record = dict[str, Any]
"""One line of records.jsonl; its columns are described in docs/results.md."""


@dataclass
class Metric:
    """One number with where it comes from: value and interval are None where it is undefined, and `note` says why.

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
    """What changes from one condition to another on the same items: after - before, paired, with its interval.

    p_value is two-sided; p_holm is corrected over the experiments (see eval.metrics.measure.effects), None where it was
    not.
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
    """Everything that is told of one checkpoint. breakdown: a row per template, occupation, profile and condition."""

    metrics: list[Metric]
    effects: list[Effect]
    breakdown: list[dict[str, Any]]


class Scorer(Protocol):
    """A model as the experiments see it. Adding one is adding a file in eval/scorers with these methods."""

    def score(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer]]:
        """Yields (index into prompts, Answer) in any order, as they are done."""
        ...

    def sample(self, prompts: Sequence[Prompt], seeds: Sequence[int], max_new_tokens: int) -> Iterator[tuple[int, str]]:
        """Yields (index into prompts, sampled continuation); a prompt's sample depends on its own seed."""
        ...

    def describe(self) -> dict[str, Any]:
        """What belongs into the provenance: format, tier, dtype ..."""
        ...


@runtime_checkable
class IndependentScorer(Scorer, Protocol):
    """A scorer whose answer to a question is the same whatever is asked beside it: each is kept as soon as it is there,
    and only what is missing is asked again.
    """

    def reason(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], max_new_tokens: int, then: Callable[[int, str], Prompt]
    ) -> Iterator[tuple[int, str, Answer]]:
        """Samples from each prompt, scores what `then(index, text)` makes of it; yields (index, text, Answer)."""
        ...
