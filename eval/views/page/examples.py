"""Example items of the page: the question as it was asked, the candidates' probabilities, the sampled reasoning.

A rule chooses the items, so that nobody can pick them: for each experiment those where the instruction moved the answer
most, and some at random with a recorded seed. Prompts are rebuilt from the data folder, and shown only if their
checksum is the recorded one.
"""

from __future__ import annotations

import html
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from eval.config import EvaluationConfig
from eval.curves.gather import Curve
from eval.data.readers import SMALL_SET, data_folder
from eval.errors import InputError
from eval.experiments.conditions import CONDITIONS, INVERSE
from eval.experiments.registry import EXPERIMENTS
from eval.runner.plan import REASONING_PLACEHOLDER, Question
from eval.runner.store import Store
from eval.types import Item, Record
from eval.views.figures.cells import largest

SEED = 0
SCROLL = "<div class='scroll' tabindex='0' role='region' aria-label='Table'>"
Shown = tuple[Curve, dict[str, Any]]


@dataclass
class Example:
    """A question, or a profile with all its values.

    Attributes:
        unit: the item, or the profile.
        why: why it was chosen.
        rank: its place among those chosen for the same reason.
        records: by (checkpoint, condition, item).
    """

    experiment: str
    unit: str
    why: str
    rank: int
    items: list[str]
    records: dict[tuple[int, str, str], Record] = field(default_factory=dict)


def checkpoints(curves: Sequence[Curve]) -> list[Shown]:
    """The first and the last checkpoint of the largest model that has several; of several such models, the first by
    name.
    """
    curve = largest(curves)[0]
    ends = dict.fromkeys((0, len(curve.summaries) - 1))
    return [(curve, curve.summaries[k]) for k in ends]


def examples(shown: Sequence[Shown], each: int) -> list[Example]:
    """Chooses examples for each experiment: `each` items that the instruction changed most at the last checkpoint,
    and `each` at random.
    """
    last = _answers_by_item(shown[-1][1])
    chosen = [e for name in EXPERIMENTS if name in last for e in _choose(name, last[name], each)]
    for place, (_, summary) in enumerate(shown):
        wanted = {(e.experiment, item): e for e in chosen for item in e.items}
        for record in _records(summary):
            example = wanted.get((record["experiment"], record["item"]))
            if example is not None:
                example.records[place, record["condition"], record["item"]] = record
    return chosen


def _records(summary: dict[str, Any]) -> Iterable[Record]:
    """The records with options as given, under the paper's wordings."""
    records = Store(Path(summary["results"])).read()
    return (r for r in records if r["order"] == 0 and r["condition"] in CONDITIONS)


def _answers_by_item(summary: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """{experiment: {item: {condition: probabilities, 'unit': ..., 'ambiguous': ...}}}."""
    by_experiment: dict[str, dict[str, dict[str, Any]]] = {}
    for r in _records(summary):
        item = by_experiment.setdefault(r["experiment"], {}).setdefault(r["item"], {})
        item["unit"] = r["cluster"] if r["experiment"] == "admissions" else r["item"]
        item["ambiguous"] = r.get("context_condition") != "disambig"
        if r["logprobs"] is not None:
            item[r["condition"]] = normalised(r["logprobs"])
    return by_experiment


def _choose(experiment: str, answers: dict[str, dict[str, Any]], each: int) -> list[Example]:
    """Chooses among the items that were asked under the most conditions, so that sampled reasoning is included."""
    most = max(len(a) for a in answers.values())
    full = sorted(item for item, a in answers.items() if len(a) == most)
    moved = {item: _moved(answers[item]) for item in full if answers[item]["ambiguous"]}
    order = sorted((m for m in moved if moved[m] is not None), key=lambda m: (-(moved[m] or 0), m))
    units: dict[str, tuple[str, int]] = {}
    for item in order:
        if len(units) < each:
            why = f"moved most by the instruction: {moved[item]:.3f} of its probability"
            units.setdefault(answers[item]["unit"], (why, len(units)))
    rest = sorted({answers[item]["unit"] for item in full} - set(units))
    drawn = random.Random(f"{SEED} {experiment}").sample(rest, min(each, len(rest)))
    units |= {unit: (f"drawn at random, seed {SEED}", rank) for rank, unit in enumerate(drawn)}
    members = {unit: [i for i, a in answers.items() if a["unit"] == unit] for unit in units}
    return [Example(experiment, unit, why, rank, members[unit]) for unit, (why, rank) in units.items()]


def _moved(answers: dict[str, Any]) -> float | None:
    """Total variation distance between the answers under Q and Q+IF; None where one of them is missing."""
    if "Q" not in answers or "Q+IF" not in answers:
        return None
    return sum(abs(a - b) for a, b in zip(answers["Q"], answers["Q+IF"], strict=True)) / 2


def normalised(logprobs: Sequence[float]) -> list[float]:
    """Probabilities among the candidates."""
    top = max(logprobs)
    weights = [math.exp(x - top) for x in logprobs]
    return [w / sum(weights) for w in weights]


class Words:
    """The items of the data folder, to rebuild prompts from. `missing`: why an experiment's items are not available."""

    def __init__(self, summary: dict[str, Any], wanted: Iterable[str], data_dir: str | None) -> None:
        self.items: dict[tuple[str, str], Item] = {}
        self.missing: dict[str, str] = {}
        small = summary["data"] == "small set"
        folder = SMALL_SET if small else data_folder(data_dir)
        option_names = {f.name for f in fields(EvaluationConfig)}
        options = {k: v for k, v in summary["evaluation"].items() if k in option_names}
        options["inverse"] = INVERSE in options["conditions"]
        self.config = EvaluationConfig(**options, data_dir=str(folder))
        for name in dict.fromkeys(wanted):
            if folder == SMALL_SET and not small:
                self.missing[name] = f"the data folder '{summary['data']}' is not at hand: give it by --data-dir"
                continue
            try:
                self.items |= {(name, i.id): i for i in EXPERIMENTS[name].load(folder, self.config)}
            except InputError as error:
                self.missing[name] = str(error)

    def question(self, record: Record) -> tuple[Question | None, str]:
        """The question of a record and '', or None and why it cannot be shown."""
        name = record["experiment"]
        if name in self.missing:
            return None, self.missing[name]
        item = self.items.get((name, record["item"]))
        if item is None:
            return None, "the item is not in the data folder"
        question = Question(name, CONDITIONS[record["condition"]], item, 0)
        if question.columns(record["format"], self.config)["prompt_sha256"] != record["prompt_sha256"]:
            return None, "the data folder, or this version, words it otherwise than it was asked"
        return question, ""


def examples_html(
    shown: Sequence[Shown], chosen: Sequence[Example], words: Words, text: int, left_out: bool = False
) -> str:
    """The examples as HTML.

    Args:
        text: a sampled text is cut after this many characters, and says so.
        left_out: whether there are none because of the page's size.
    """
    if not chosen:
        return f"<p>{html.escape(_why_none(*shown[-1], left_out))}</p>"
    named = " and ".join(f"{c.step_name} {s['step']}" for c, s in shown)
    parts = [
        f"<p>From {html.escape(shown[0][0].name)}, {html.escape(named)}; options as given. Chosen by rule at the last "
        "of these: in each experiment the items (BBQ: ambiguous ones) where the answer under Q+IF differs most from "
        f"that under Q, then others drawn at random with seed {SEED}; where reasoning was sampled for a part of the "
        "items, among those. p is the probability among the candidates. Every answer is in records.jsonl.</p>"
    ]
    for name in dict.fromkeys(e.experiment for e in chosen):
        parts.append(f"<h3>{html.escape(EXPERIMENTS[name].TITLE.partition(',')[0])}</h3>")
        parts += [_example(shown, e, words, text) for e in chosen if e.experiment == name]
    return "".join(parts)


def _why_none(curve: Curve, summary: dict[str, Any], left_out: bool) -> str:
    """Why the page has no examples."""
    path = Store(Path(summary["results"])).records_path
    if not path.is_file():
        return (
            f"There are none: {path.name} is not beside the summary.json of {curve.name}, {curve.step_name} "
            f"{summary['step']}."
        )
    if left_out:
        return f"Left out, to keep the page below its size; the records are in {path.name}."
    return f"There are none: {path.name} has no answer under the paper's wordings, with the options as given."


def _example(shown: Sequence[Shown], example: Example, words: Words, text: int) -> str:
    """One example, folded."""
    keys = sorted({(c, i) for _, c, i in example.records}, key=lambda k: (example.items.index(k[1]), k[0]))
    order = list(CONDITIONS)
    keys.sort(key=lambda k: order.index(k[0]))
    body = "".join(_item_html(shown, example, condition, item, words, text) for condition, item in keys)
    return (
        f"<details class='example'><summary>{html.escape(example.unit)} <span class='quiet'>"
        f"({html.escape(example.why)})</span></summary>{body}</details>"
    )


def _item_html(shown: Sequence[Shown], example: Example, condition: str, item: str, words: Words, text: int) -> str:
    """One item under one condition: prompt, candidates with each checkpoint's numbers, sampled texts."""
    records = [example.records.get((k, condition, item)) for k in range(len(shown))]
    first = next(r for r in records if r is not None)
    question, why = words.question(first)
    about = f" ({html.escape(first['race'])} {html.escape(first['sex'])})" if "race" in first else ""
    parts = [f"<h4>{html.escape(condition)}{about}</h4>"]
    if question is None:
        parts.append(f"<p class='quiet'>Item {html.escape(item)}. Its words are not shown: {html.escape(why)}.</p>")
    else:
        prompt = question.prompt(REASONING_PLACEHOLDER if question.condition.reasoning else None)
        turns = (
            f"<dt>{'Human' if t.role == 'human' else 'Assistant'}</dt><dd>{_turn(t.text)}</dd>" for t in prompt.turns
        )
        parts.append(f"<dl class='dialogue'>{''.join(turns)}</dl>")
    parts.append(_answers(shown, records, question))
    for (curve, summary), record in zip(shown, records, strict=True):
        if record is not None and "reasoning" in record:
            excerpt, cut = record["reasoning"][:text], len(record["reasoning"]) > text
            end = f" [cut here after {text} characters; the whole is in records.jsonl]" if cut else ""
            parts.append(
                f"<figure class='sampled'><figcaption>Sampled at {html.escape(curve.step_name)} {summary['step']}, "
                f"seed {record['seed']}</figcaption><blockquote>{html.escape(excerpt)}{end}</blockquote></figure>"
            )
    return f"<section>{''.join(parts)}</section>"


def _turn(text: str) -> str:
    """A turn of the dialogue, with a mark where the sampled text stood."""
    return html.escape(text).replace(html.escape(REASONING_PLACEHOLDER), "<em>[the sampled text below]</em>")


def _answers(shown: Sequence[Shown], records: Sequence[Record | None], question: Question | None) -> str:
    """A table of the candidates with each checkpoint's log-probability and probability."""
    first = next(r for r in records if r is not None)
    heads = "".join(
        f"<th scope='col'>log-prob, {html.escape(c.step_name)} {s['step']}</th><th scope='col'>p</th>" for c, s in shown
    )
    rows = []
    for k, candidate in enumerate(first["candidates"]):
        cells = "".join(_numbers(r, k) for r in records)
        rows.append(
            f"<tr><th scope='row'>{html.escape(candidate.strip())}{_meaning(first, k, question)}</th>{cells}</tr>"
        )
    counted = "".join(
        f"<p class='quiet'>{html.escape(curve.step_name)} {s['step']}: {html.escape(_counted(r))}.</p>"
        for (curve, s), r in zip(shown, records, strict=True)
        if r is not None and "samples" in r
    )
    head = f"<thead><tr><th scope='col'>candidate</th>{heads}</tr></thead>"
    body = f"<tbody>{''.join(rows)}</tbody>"
    return f"{SCROLL}<table>{head}{body}</table></div>{counted}"


def _counted(record: Record) -> str:
    """For sampled answers: how many began with each candidate, how many could not be read, and why."""
    counts = (f"{c.strip()} {n}" for c, n in zip(record["candidates"], record["counts"], strict=True))
    unread = (f"{reason} {n}" for reason, n in record.get("unread", {}).items())
    none = f"; no answer: {record['no_answer']}" if "no_answer" in record else ""
    return f"of {record['samples']} sampled answers: {', '.join([*counts, *unread])}{none}"


def _meaning(record: Record, k: int, question: Question | None) -> str:
    """For BBQ: the option's text, and what answering with it means."""
    if record["experiment"] != "bbq":
        return ""
    kinds = [
        word
        for word, is_it in (
            ("right", k == record["label"]), ("unknown", k == record["unknown"]), ("biased", k in record["biased"])
        )
        if is_it
    ]  # fmt: skip
    option_text = question.item.texts[f"ans{k}"] if question else ""
    return html.escape(f" {option_text}" + (f" [{', '.join(kinds)}]" if kinds else ""))


def _numbers(record: Record | None, k: int) -> str:
    """The two cells of a candidate at a checkpoint; '≤' marks a log-probability that is an upper bound."""
    if record is None or record["logprobs"] is None:
        return "<td class='number'></td><td class='number'></td>"
    p = normalised(record["logprobs"])[k]
    least = "≤ " if k in record.get("bounded", ()) else ""
    return f"<td class='number'>{least}{record['logprobs'][k]:.3f}</td><td class='number'>{p:.3f}</td>"
