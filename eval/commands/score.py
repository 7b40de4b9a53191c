"""`python -m eval score`: computes BBQ's metrics from answers that were produced anywhere.

Each line of the predictions file (JSONL, may be gzipped) is one of two kinds. It may be a BBQ row with the answer in
one more field, as in the released UnifiedQA predictions. Or it has category, example_id and the answer, and the
question is looked up in the folder that the user names. The small set is never the default for that, since ids alone do
not say which data they are of.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.cli.columns import columns
from eval.cli.parser import check_seed
from eval.config import QuestionsConfig
from eval.data.readers import data_folder, read_jsonl, sha256
from eval.errors import InputError, nearest
from eval.experiments import bbq, bbq_groups
from eval.experiments.bbq_answers import read_answer
from eval.experiments.bbq_metrics import MEAN
from eval.metrics.measure import measure
from eval.runner.provenance import git_commit
from eval.types import Item, Metric, Record

ANSWER_FIELDS = ("answer", "prediction", "pred", "response", "completion")
MEAN_KEY = "mean_of_categories"
NO_TARGET = "BBQ's supplement names no target"
CERTAINLY = 1000.0  # nats from the chosen option to the others
SCORES = tuple(f"{score}_{context}" for score in ("bias", "accuracy") for context in ("ambig", "disambig"))
Located = tuple[str, dict[str, Any]]
"""('file:line', row)."""


@dataclass
class ScoreConfig:
    """Options of `python -m eval score`."""

    predictions: str = field(default="", metadata={"help": "JSONL file, a line per question with its answer"})
    experiment: str = field(default="bbq", metadata={"help": "bbq"})
    answer_key: str = field(default="", metadata={"help": "field with the answer: an option's text, letter or number"})
    data_dir: str | None = field(
        default=None, metadata={"help": "folder with bbq/, for lines that give only category and example_id"}
    )
    seed: int = field(default=0, metadata={"help": "seed of the bootstrap"})
    json: bool = field(default=False, metadata={"help": "one JSON object on stdout, everything else on stderr"})

    def __post_init__(self) -> None:
        if not self.predictions:
            raise InputError("eval score: --predictions is missing; give a JSONL file with a line per question")
        if self.experiment != "bbq":
            raise InputError(f"experiment must be bbq, not '{self.experiment}'; the others are scored by probabilities")
        check_seed(self.seed)

    @property
    def folder(self) -> Path | None:
        """The data folder that the user names, by --data-dir or $SELFCORRECT_DATA."""
        named = self.data_dir or os.environ.get("SELFCORRECT_DATA")
        return data_folder(named) if named else None


def score(config: ScoreConfig) -> dict[str, Any]:
    """Scores a file of answers.

    Returns:
        {"categories": {name: scores}, "all": scores, "mean_of_categories": scores, ...}, as fractions, None if
            undefined. `unread` counts the answers that could not be read, which no score includes; `unread_reasons`
            gives the reasons.

    Raises:
        InputError: A file, line or field cannot be used, or a question has two answers.
    """
    path = Path(config.predictions)
    rows = list(read_jsonl(path, ("category", "example_id")))
    if not rows:
        raise InputError(f"{path} has no line; each needs category, example_id and an answer")
    key = config.answer_key or _answer_field(path, rows)
    if not any(key in row for _, row in rows):
        fields = [k for k in rows[0][1] if k not in bbq.KEYS]
        raise InputError(f"{path}: no line has the field '{key}'{nearest(key, fields)}; give it as --answer-key")
    rows = _with_questions(rows, config)
    items = _items(rows, config)
    records: list[Record] = []
    unread: dict[str, Counter[str]] = {i.fields["category"]: Counter() for i in items}
    for item, (_, row) in zip(items, rows, strict=True):
        option = read_answer(row, key) if item.fields["biased"] or not crossed(item) else NO_TARGET
        if isinstance(option, str):
            unread[item.fields["category"]][option] += 1
        else:
            logprobs = [0.0 if k == option else -CERTAINLY for k in range(3)]
            records.append({"item": item.id, "order": 0, "cluster": item.cluster, "logprobs": logprobs, **item.fields})
    metrics = measure({("bbq", "answers"): records}, config.seed).metrics if records else []
    return {
        "experiment": "bbq", "predictions": str(path), "predictions_sha256": sha256([path]), "answer_key": key,
        "data": str(config.folder) if config.folder else None, "seed": config.seed, "git_commit": git_commit(),
        **_all_scores(metrics, records, unread),
    }  # fmt: skip


def crossed(item: Item) -> bool:
    """Returns True if the question is of an intersection category."""
    return item.fields["category"] in bbq_groups.INTERSECTIONS


def _answer_field(path: Path, rows: list[Located]) -> str:
    """Returns the field with the answer if the user names none: a usual name, or the only field with no other use."""
    fields = list(dict.fromkeys(k for _, row in rows for k in row if k not in bbq.KEYS))
    usual = [k for k in ANSWER_FIELDS if k in fields]
    if len(usual or fields) == 1:
        return (usual or fields)[0]
    raise InputError(f"{path}: which field is the answer? Give --answer-key one of: {', '.join(usual or fields)}")


def _with_questions(rows: list[Located], config: ScoreConfig) -> list[Located]:
    """Completes lines that are not whole BBQ rows from the data folder. Their fields must agree with it."""
    partial = [row for _, row in rows if not all(k in row for k in bbq.KEYS)]
    if not partial:
        return rows
    folder = config.folder
    if folder is None:
        raise InputError(
            f"{config.predictions}: some lines are no whole BBQ rows; give --data-dir the folder whose bbq/ has the "
            "questions"
        )
    questions = {}
    for category in dict.fromkeys(str(row["category"]) for row in partial):
        questions |= {(category, str(r["example_id"])): r for _, r in _questions(folder, category)}
    completed = []
    for where, row in rows:
        if not all(k in row for k in bbq.KEYS):
            question = questions.get((row["category"], str(row["example_id"])))
            if question is None:
                raise InputError(f"{where}: {folder} has no question {row['category']} {row['example_id']}")
            differing = [k for k in bbq.KEYS if k in row and k != "example_id" and row[k] != question[k]]
            if differing:
                raise InputError(
                    f"{where}: '{differing[0]}' is not that of the question in {folder}; give the data it is of"
                )
            row = {**row, **question}
        completed.append((where, row))
    return completed


def _questions(folder: Path, category: str) -> list[Located]:
    """Returns the rows of a category's file. Raises InputError if it is not there."""
    path = bbq.files(folder, QuestionsConfig(categories=[category]))[0]
    return list(read_jsonl(path, bbq.KEYS))


def _items(rows: list[Located], config: ScoreConfig) -> list[Item]:
    biased: dict[str, dict[str, list[int]]] = {}
    for category in dict.fromkeys(row["category"] for _, row in rows if row["category"] in bbq_groups.INTERSECTIONS):
        supplement = bbq_groups.supplement_path(config.folder) if config.folder else None
        if config.folder is None or supplement is None:
            raise InputError(f"{category} needs BBQ's supplement: put {bbq_groups.SUPPLEMENT} into bbq/ of --data-dir")
        # of the whole file, since sibling questions show whether the targets have the polarity applied
        biased[category] = bbq_groups.Supplement(supplement).biased(_questions(config.folder, category))
    items = [bbq.item(w, r, biased.get(r["category"], {}).get(str(r["example_id"]))) for w, r in rows]
    seen: dict[str, str] = {}
    for item, (where, _) in zip(items, rows, strict=True):
        if item.id in seen:
            raise InputError(f"{where}: a second answer to {item.id} (the first: {seen[item.id]}); keep one")
        seen[item.id] = where
    return items


def _all_scores(metrics: list[Metric], records: list[Record], unread: dict[str, Counter[str]]) -> dict[str, Any]:
    categories = {c: _scores(metrics, records, c, c, unread[c]) for c in unread}
    everything = sum(unread.values(), Counter())
    scores = {"categories": categories, "all": _scores(metrics, records, "all", None, everything)}
    if len(unread) > 1:
        scores[MEAN_KEY] = _scores(metrics, records, MEAN, None, everything)
    return scores


def _scores(
    metrics: list[Metric], records: list[Record], part: str, category: str | None, unread: Counter[str]
) -> dict[str, Any]:
    """Returns the scores of one part of the metrics. `category` selects the records to count; None selects all."""
    by_name = {m.name: m for m in metrics if m.category == part}
    chosen = [r for r in records if category in (None, r["category"])]
    contexts = Counter(r["context_condition"] for r in chosen)
    return {
        **{name: by_name[name].value if name in by_name else None for name in SCORES},
        "n_ambig": contexts["ambig"],
        "n_disambig": contexts["disambig"],
        "unread": sum(unread.values()),
        "unread_reasons": dict(unread),
        "not_one_target": sum(not r["one_target"] for r in chosen),
        "intervals": {n: [by_name[n].low, by_name[n].high] for n in SCORES if n in by_name},
        "notes": {n: by_name[n].note for n in SCORES if n in by_name and by_name[n].note},
    }


def table(result: dict[str, Any]) -> str:
    """Formats the scores as text, in per cent as Parrish et al. print them, with 95% intervals."""
    lines = [("category", *SCORES, "read", "unread")]
    parts = {**result["categories"], **{k: result[k] for k in ("all", MEAN_KEY) if k in result}}
    for name, s in parts.items():
        cells = []
        for score_name in SCORES:
            low, high = s["intervals"].get(score_name, [None, None])
            value = s[score_name]
            interval = "" if low is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
            cells.append("undefined" if value is None else f"{100 * value:.1f}{interval}")
        lines.append((name, *cells, str(s["n_ambig"] + s["n_disambig"]), str(s["unread"])))
    reasons = [f"{n} unread: {reason}" for reason, n in result["all"]["unread_reasons"].items()]
    return "\n".join([columns(lines), *reasons])
