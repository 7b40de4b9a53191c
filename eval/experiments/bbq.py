"""BBQ: does the model fall back on a stereotype when the context does not give the answer?

Ganguli et al. 2023, section 3.2.1 and Table 1; metrics of Parrish et al. 2022 (arXiv:2110.08193), section 5.
Beside the paper's own protocol (options in the given order, most probable option) two variants are reported. Expected:
in expectation over the normalised option probabilities. Order-symmetrised: the options are asked in their three
rotations, and each option's log-probability is averaged over the letters it had (bbq_metrics).
"""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np

from eval.data.readers import fetch_command, read_jsonl
from eval.errors import InputError, nearest
from eval.experiments import bbq_groups, bbq_metrics, words
from eval.experiments.base import ExperimentOptions
from eval.experiments.conditions import INVERSE, Condition
from eval.experiments.words import instruction
from eval.stats.bootstrap import Quantity
from eval.types import Item, Prompt, Record, Turn

log = logging.getLogger(__name__)

NAME = "bbq"
TITLE = "BBQ, ambiguous contexts"
HEADLINE = "bias_ambig_expected_symmetrised"
HEADLINE_LABEL = "bias score (expected, order-symmetrised)"
CONDITIONS = ("Q", "Q+IF", "Q+IF+CoT", INVERSE)
CANDIDATES = (" (a)", " (b)", " (c)")
KEYS = (
    "example_id", "question_index", "question_polarity", "context_condition", "category", "answer_info",
    "additional_metadata", "context", "question", "ans0", "ans1", "ans2", "label",
)  # fmt: skip


def files(folder: Path, config: ExperimentOptions) -> list[Path]:
    """Paths of the chosen categories' files (default: all in the folder), in the order of their names.

    The supplement is added if a chosen category is an intersection.

    Raises:
        InputError: a file is missing.
    """
    available = {p.stem: p for p in sorted((folder / "bbq").glob("*.jsonl"))}
    for name in config.categories:
        if name not in available:
            hint = nearest(name, list(available))
            raise InputError(
                f"BBQ file {folder / 'bbq' / name}.jsonl is missing{hint}; get all of BBQ's by {fetch_command(folder)}"
            )
    if not available:
        raise InputError(
            f"data folder {folder} has no bbq/*.jsonl; get them by {fetch_command(folder)}, or give --data-dir a "
            "folder that has them"
        )
    chosen = config.categories or list(available)
    paths = [available[c] for c in chosen]
    if crossed := [c for c in chosen if c in bbq_groups.INTERSECTIONS]:
        supplement = bbq_groups.supplement_path(folder)
        if supplement is None:
            raise InputError(
                f"{available[crossed[0]]} needs {folder / 'bbq' / bbq_groups.SUPPLEMENT} (BBQ's supplement, which says "
                f"the target of each row); get it by {fetch_command(folder)}, or name the other files with --categories"
            )
        paths.append(supplement)
    return paths


def load(folder: Path, config: ExperimentOptions) -> list[Item]:
    """Reads items in file order, at most `limit` of each file.

    Raises:
        InputError: a file or line that is not BBQ's.
    """
    items = []
    for path in files(folder, config):
        if path.suffix == ".jsonl":
            items += _load_file(path, folder, config.limit)
    if len({i.id for i in items}) != len(items):
        raise InputError(f"{folder / 'bbq'}: two rows share category and example_id; each row needs its own")
    return items


def _load_file(path: Path, folder: Path, limit: int | None) -> list[Item]:
    if path.stem not in bbq_groups.INTERSECTIONS:
        return [item(where, row) for where, row in itertools.islice(read_jsonl(path, KEYS), limit)]
    supplement = bbq_groups.supplement_path(folder)
    assert supplement is not None  # `files` has checked it
    rows = list(read_jsonl(path, KEYS))
    biased = bbq_groups.Supplement(supplement).biased(rows)
    limited = rows[:limit]
    with_target = [(where, row) for where, row in limited if biased[str(row["example_id"])]]
    if len(with_target) < len(limited):
        n = len(limited) - len(with_target)
        log.warning("%d of %d rows of %s have no target in %s and are left out", n, len(limited), path.stem, supplement)
    return [item(where, row, biased[str(row["example_id"])]) for where, row in with_target]


def item(where: str, row: dict, biased: list[int] | None = None) -> Item:
    """Converts a row of BBQ to an Item.

    Args:
        where: 'file:line', for error messages.
        row: the row.
        biased: the biased options, if they come from the supplement. None: the groups determine them.
    """
    category = row["category"]
    if category in bbq_groups.INTERSECTIONS and biased is None:
        raise InputError(f"{where}: {category} needs BBQ's supplement {bbq_groups.SUPPLEMENT}; leave this category out")
    unknown, persons, targets = bbq_groups.options(where, row)
    if row["label"] not in (0, 1, 2):
        raise InputError(f"{where}: label {row['label']!r} is not 0, 1 or 2")
    for key, allowed in (("question_polarity", ("neg", "nonneg")), ("context_condition", ("ambig", "disambig"))):
        if row[key] not in allowed:
            raise InputError(f"{where}: {key} {row[key]!r} is not {allowed[0]} or {allowed[1]}")
    if biased is None:
        biased = bbq_groups.biased_options(persons, targets, row["question_polarity"])
    fields = {
        "category": category,
        "example_id": row["example_id"],
        "template": str(row["question_index"]),
        "context_condition": row["context_condition"],
        "polarity": row["question_polarity"],
        "label": row["label"],
        "unknown": unknown,
        "biased": biased,
        "one_target": len(biased) == 1,
    }
    texts = {k: str(row[k]) for k in ("context", "question", "ans0", "ans1", "ans2")}
    # Four sibling rows with consecutive numbers share a filling. Templates are numbered within a category.
    template = f"{category}:{row['question_index']}"
    filling = row["example_id"] // 4 if isinstance(row["example_id"], int) else row["example_id"]
    return Item(f"{category}:{row['example_id']}", template, 1.0, fields, texts, f"{template}:{filling}")


def orders(config: ExperimentOptions) -> int:
    """Number of option orders in which each question is asked."""
    return config.orders


def sample(items: list[Item], n: int) -> list[Item]:
    """About n items spread evenly over the set's templates.

    Each chosen filling (four sibling rows) contributes the ambiguous and the disambiguated row of one polarity,
    negative and non-negative alternating.
    """
    groups = [items[i : i + 4] for i in range(0, len(items), 4)]
    chosen = np.unique(np.linspace(0, len(groups) - 1, min(max(1, n // 2), len(groups))).round().astype(int))
    polarity = ("neg", "nonneg")
    return [i for k, g in enumerate(chosen) for i in groups[g] if i.fields["polarity"] == polarity[k % 2]]


def ask(item: Item, condition: Condition, order: int = 0, reasoning: str | None = None) -> Prompt:
    """Builds the prompt (Table 1 of the paper).

    Args:
        order: with order r, letter j shows option (j + r) mod 3.
        reasoning: the sampled reasoning. None under a condition with reasoning: the prompt to sample it from.
    """
    options = {f"ans{j}": item.texts[f"ans{(j + order) % 3}"] for j in range(3)}
    question = words.BBQ_QUESTION.format(context=item.texts["context"], question=item.texts["question"], **options)
    if instruction_text := instruction(NAME, condition):
        question += "\n\n" + instruction_text
    if not condition.reasoning:
        return Prompt((Turn("human", question), Turn("assistant", words.BBQ_PREFILL)), CANDIDATES)
    if reasoning is None:
        return Prompt((Turn("human", question), Turn("assistant", words.BBQ_REASONING)))
    return Prompt(
        (
            Turn("human", question),
            Turn("assistant", f"{words.BBQ_REASONING} {reasoning}".rstrip()),
            Turn("human", words.BBQ_AFTER_REASONING),
            Turn("assistant", words.BBQ_PREFILL_AFTER_REASONING),
        ),
        CANDIDATES,
    )


def read_off(record: Record) -> np.ndarray:
    """Normalised probabilities of the three options (not letters), shape (3,)."""
    return bbq_metrics.by_option(bbq_metrics.normalised(np.array([record["logprobs"]])), np.array([record["order"]]))[0]


def measure(records: list[Record]) -> list[Quantity]:
    """The quantities to estimate for one condition (see bbq_metrics)."""
    return bbq_metrics.measure(records)
