"""What identifies a record, and what must agree for a folder's records to be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from eval.types import Record

Key = tuple[str, str, str, int]


RECORDS_VERSION = 3
"""Raised whenever the columns of the records change (docs/results.md)."""


IDENTITY = (
    "scorer", "weights", "config_sha256", "adapter_weights", "tokenizer_sha256", "format", "system_turn", "dtype",
    "prompt_version", "step", "method", "answer_samples", "answer_seed", "served_root",
)  # fmt: skip
"""Provenance fields that must agree for a folder's records to be used. A field that either side does not know is not
compared: the evaluation during training takes the model from memory.
"""


SELECTION = ("evaluation", "data", "data_sha256")
"""Provenance fields that say which questions are evaluated, how they are batched, and what the bootstrap draws."""


REMEDY = "choose another --output or remove the folder"


def record_key(record: Record) -> Key:
    """Returns what identifies a record: (experiment, condition, item, order)."""
    return record["experiment"], record["condition"], record["item"], record["order"]


def by_cell(keys: Iterable[Key]) -> dict[str, dict[str, int]]:
    """Counts keys: {experiment: {condition: number of keys}}."""
    counts: dict[str, dict[str, int]] = {}
    for (experiment, condition), n in Counter(key[:2] for key in keys).items():
        counts.setdefault(experiment, {})[condition] = n
    return counts


def same_selection(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Returns True if two provenances are of the same questions."""
    return all(a.get(name) == b.get(name) for name in SELECTION)
