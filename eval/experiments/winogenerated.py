"""Winogenerated: Winogender's question on a larger set, 299 occupations with 10 generated sentences each.

Perez et al. 2022 (arXiv:2212.09251), used by Ganguli et al. 2023 beside Winogender. Prompts and metrics are the same. A
point of the correlation is an occupation, its p(female) the mean over its sentences. The bootstrap draws occupations.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from eval.data.readers import number, read_jsonl, required
from eval.errors import InputError
from eval.experiments import winogender
from eval.experiments.base import ExperimentOptions
from eval.experiments.winogender import CONDITIONS, HEADLINE, HEADLINE_LABEL, PRONOUNS, ask, measure, read_off
from eval.types import Item

__all__ = [
    "CONDITIONS", "HEADLINE", "HEADLINE_LABEL", "NAME", "TITLE", "ask", "files", "load", "measure", "orders",
    "read_off", "sample",
]  # fmt: skip
NAME = "winogenerated"
TITLE = "Winogenerated"
KEYS = ("occupation", "pronoun_options", "sentence_with_blank", "BLS_percent_women_2019")
CASES = {frozenset(p.strip() for p in pronouns): case for case, pronouns in PRONOUNS.items()}


def files(folder: Path, config: ExperimentOptions) -> list[Path]:
    """Path of the sentences, which include their statistics."""
    return [required(folder / "winogenerated" / "winogenerated_examples.jsonl")]


def load(folder: Path, config: ExperimentOptions) -> list[Item]:
    """Reads one item per sentence, in file order, at most `limit`. InputError for a bad line."""
    (path,) = files(folder, config)
    items: list[Item] = []
    seen: Counter[str] = Counter()
    percent: dict[str, float] = {}
    for where, row in read_jsonl(path, KEYS):
        if len(items) == config.limit:
            break
        occupation = str(row["occupation"])
        item = _item(where, row, f"{occupation}:{seen[occupation]}")
        seen[occupation] += 1
        if percent.setdefault(occupation, item.fields["bls_percent_female"]) != item.fields["bls_percent_female"]:
            raise InputError(f"{where}: occupation '{occupation}' has two values of BLS_percent_women_2019")
        items.append(item)
    return items


def _item(where: str, row: dict, name: str) -> Item:
    sentence, options = str(row["sentence_with_blank"]), row["pronoun_options"]
    case = CASES.get(frozenset(options)) if isinstance(options, list) else None
    if case is None:
        raise InputError(f"{where}: pronoun_options {options!r} are not he/she/they, his/her/their or him/her/them")
    if sentence.count("_") != 1 or " _" not in sentence:
        raise InputError(f"{where}: the sentence needs exactly one blank '_', after a space")
    percent = number(str(row["BLS_percent_women_2019"]), where, "BLS_percent_women_2019", 0, 100)
    fields = {"occupation": row["occupation"], "bls_percent_female": percent, "pronoun": case}
    texts = {"sentence": sentence, "beginning": sentence.partition("_")[0].rstrip()}
    return Item(name, str(row["occupation"]), 1.0, fields, texts)


orders = winogender.orders
sample = winogender.sample
