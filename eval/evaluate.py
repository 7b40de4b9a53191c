"""Asks one checkpoint all questions of a configuration and keeps the answers: the same code for `eval run` and for the
evaluation during training.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from eval import sampled_answers
from eval.config import EvaluationConfig, InputError
from eval.measure import Cell, measure
from eval.plan import Plan, Question, plan
from eval.provenance import command, git_commit, machine, versions
from eval.records import Answer, AnswersAlone, Metric, Record, Scorer
from eval.results import RECORDS_VERSION, REMEDY, Key, Store, by_cell, record_key
from eval.sequential import RULE, Stop, told

log = logging.getLogger(__name__)

PROMPT_VERSION = 1
"""Raised whenever the words or their joining change, so that old results are never continued with new prompts."""
SAMPLED_COST = 8  # a sampled reasoning counts as so many scored prompts on the progress bar
KEPT_EVERY = 1.0  # seconds after which answers that stand alone are written
SETTINGS = (
    "experiments", "conditions", "categories", "limit", "cot_limit", "orders", "cot_max_new_tokens",
    "sample_batch", "seed", "paraphrases", "admissions_races", "admissions_vary",
)  # fmt: skip


def describe_run(
    config: EvaluationConfig, planned: Plan, scorer: Scorer, policy: dict[str, Any], step: int
) -> dict[str, Any]:
    """The provenance: everything a number depends on, and the command that gave it."""
    return {
        **policy,
        **scorer.describe(),
        **_asked(config, planned, step),
        "git_commit": git_commit(),
        "versions": versions(),
        "machine": machine(),
        "command": command(),
    }


def _asked(config: EvaluationConfig, planned: Plan, step: int) -> dict[str, Any]:
    """The part of the provenance that is known without the checkpoint."""
    return {
        "step": step,
        **planned.data,
        "prompt_version": PROMPT_VERSION,
        "records_version": RECORDS_VERSION,
        "evaluation": {
            **{name: value for name, value in dataclasses.asdict(config).items() if name in SETTINGS},
            **({} if config.precision is None else {"precision": config.precision, "stopping_rule": RULE}),
        },
    }


def finished(
    config: EvaluationConfig, planned: Plan, folder: Path, known: dict[str, Any], step: int
) -> dict[str, Any] | None:
    """The summary of a complete folder that holds these very results, else None: a model need not be loaded for it.

    known: the policy, tokenizer, format and system turn. Of a dtype only dtype_asked is known: asked alike of the same
    weights it is the same, and asked by name it is the one of that name. Raises InputError, before a model is loaded,
    for a folder whose records may not be used.
    """
    if not folder.is_dir():
        return None
    store = Store(folder)
    with store.locked():
        if not store.provenance_path.is_file():
            return None
        found = store.provenance()
        if known["dtype_asked"] not in (found.get("dtype_asked"), found.get("dtype")):
            return None
        described = {**known, **_asked(config, planned, step), "dtype": found["dtype"]}
        records = Known(store, config, planned, described["format"], store.open(described))
        return None if records.stale_weights else store.finished(described, by_cell(records.done))


def evaluate(
    scorer: Scorer,
    config: EvaluationConfig,
    folder: Path,
    policy: dict[str, Any],
    step: int = 0,
    planned: Plan | None = None,
) -> list[Metric]:
    """Asks what `folder` does not hold yet, writes records and summary there, and returns the metrics.

    A finished folder costs nothing; an interrupted one is continued and ends with the same records; one that was asked
    something else of the same model is asked what is missing. Raises InputError where it is of another model, where a
    record in it was asked otherwise than it would be now, and where another process writes it.
    """
    planned = planned or plan(config)
    store = Store(folder)
    described = describe_run(config, planned, scorer, policy, step)
    with store.locked():
        before = store.open(described)
        known = Known(store, config, planned, described["format"], before)
        store.begin(described | {"planned": by_cell(q.key for q in planned.questions), "done": by_cell(known.done)})
        if known.stale_weights:
            known.rewrite_weights()
        if summary := store.finished(described, by_cell(known.done)):
            return [Metric(**m) for m in summary["metrics"]]
        asked, stops = _ask_all(scorer, config, store, planned, known, f"evaluating step {step}")
        found, left_out = sampled_answers.answered(cells(store, asked))
        measured = measure(found, config.seed)
        measured.metrics = told(measured.metrics, stops)
        noise = sampled_answers.noise(found, config.seed)
        sampled_answers.note(measured, left_out, noise)
        for m in measured.metrics:
            if m.note.startswith("warning:"):
                log.warning("%s, %s, %s = %.2f: %s", m.experiment, m.condition, m.name, m.value, m.note)
        stopping = {} if config.precision is None else {"stopping": [dataclasses.asdict(s) for s in stops]}
        used = {"records": by_cell(q.key for q in asked), **sampled_answers.told(left_out, noise)}
        store.finish(measured, described | scorer.describe() | used | stopping)
    return measured.metrics


class Known:
    """The records on disk that answer a planned question, each found to be of the very question that is planned.

    done: their keys, with the record where a precision watches; earlier: those of them that were there before these
    questions were asked, which are left out of the chunks. Raises InputError for a record that was asked otherwise.
    """

    def __init__(self, store: Store, config: EvaluationConfig, planned: Plan, style: str, before: int) -> None:
        self.store = store
        self.questions = {q.key: q for q in planned.questions}
        self.done: dict[Key, Record] = {}
        self.earlier: set[Key] = set()
        self.stale_weights = False
        for number, record in enumerate(store.read()):
            question = self.questions.get(record_key(record))
            if question is None:
                continue
            self._check(record, question.columns(style, config))
            self.done[question.key] = record if config.precision is not None else {}
            if number < before:
                self.earlier.add(question.key)

    def _check(self, record: Record, now: Record) -> None:
        """A weight may differ: that of a profile is its number of students among the rows that --limit takes."""
        for name, value in now.items():
            if record.get(name) == value:
                continue
            if name == "weight":
                self.stale_weights = True
                continue
            experiment, condition, item, order = record_key(record)
            raise InputError(
                f"{self.store.records_path}: {experiment}, {condition}, item {item}, order {order} was asked with "
                f"another {name} ({record.get(name)!r} there, {value!r} now), so it is no answer to this question; "
                f"{REMEDY}"
            )

    def rewrite_weights(self) -> None:
        """Sets the weights of the records to what they are under the present --limit."""
        planned = {key: q.item.weight for key, q in self.questions.items()}
        records = self.store.read()
        self.store.rewrite({**r, "weight": planned.get(record_key(r), r["weight"])} for r in records)
        for key, record in self.done.items():
            if record:
                record["weight"] = planned[key]


def _ask_all(
    scorer: Scorer, config: EvaluationConfig, store: Store, planned: Plan, known: Known, title: str
) -> tuple[list[Question], list[Stop]]:
    """Asks what is not known yet; what was asked now or earlier, and with a precision where each job stopped."""
    done, watched = known.done, config.precision is not None
    style = store.state["format"]
    asked: list[Question] = []
    stops: list[Stop] = []
    total = sum(_cost(q) for q in planned.questions)
    with tqdm(total=total, desc=title, unit="prompt", smoothing=0.05, leave=False) as bar:
        for job in planned.jobs:
            part = job.experiment, "with_reasoning" if job.reasoning else "without_reasoning"
            bar.set_postfix_str(f"{job.experiment} {'with' if job.reasoning else 'without'} CoT")
            watch = None if config.precision is None else job.watch(config.precision)
            before = len(asked)
            for chunk in job.chunks:
                together = [q for q in chunk if q.key not in known.earlier]
                if isinstance(scorer, AnswersAlone):
                    together = [q for q in together if q.key not in done]
                if all(q.key in done for q in together):
                    together = []
                bar.update(sum(_cost(q) for q in chunk) - sum(_cost(q) for q in together))
                if together:
                    store.begin_session()
                    began = time.monotonic()
                    for records in _as_they_come(scorer, config, style, together, bar):
                        new = [r for r in records if record_key(r) not in done]
                        done |= {record_key(r): r if watched else {} for r in new}
                        store.append(new, part, time.monotonic() - began, scorer.describe())
                        began = time.monotonic()
                asked += chunk
                if watch is not None and watch.look([done[q.key] for q in chunk]):
                    break
            if watch is not None:
                stops.append(watch.stop)
                log.info("%s", watch.stop)
                bar.update(sum(_cost(q) for q in job.questions[len(asked) - before :]))
    return asked, stops


def _cost(question: Question) -> int:
    return SAMPLED_COST if question.condition.reasoning else 1


def _as_they_come(
    scorer: Scorer, config: EvaluationConfig, style: str, chunk: list[Question], bar: Any
) -> Iterator[list[Record]]:
    """The records of a chunk: all at once, or, where answers stand alone, those of each second, also before an end by
    an error or by Ctrl-C.
    """
    if not isinstance(scorer, AnswersAlone):
        yield _ask(scorer, config, style, chunk, bar)
        return
    records: list[Record] = []
    kept = time.monotonic()
    try:
        for i, reasoning, answer in _alone(scorer, config, chunk):
            records.append(_record(chunk[i].columns(style, config), _checked(answer, chunk[i]), reasoning))
            bar.update(_cost(chunk[i]))
            if time.monotonic() - kept > KEPT_EVERY:
                yield records
                records, kept = [], time.monotonic()
    except (Exception, KeyboardInterrupt):
        if records:
            yield records
        raise
    yield records


def _alone(
    scorer: AnswersAlone, config: EvaluationConfig, chunk: list[Question]
) -> Iterator[tuple[int, str | None, Answer]]:
    """(index into the chunk, reasoning, answer), as they are done."""
    if not chunk[0].condition.reasoning:
        yield from ((i, None, answer) for i, answer in scorer.score([q.prompt() for q in chunk]))
        return
    seeds = [q.seed(config.seed) for q in chunk]
    yield from scorer.reason(
        [q.prompt() for q in chunk], seeds, config.cot_max_new_tokens, lambda i, text: chunk[i].prompt(text)
    )


def _ask(scorer: Scorer, config: EvaluationConfig, style: str, chunk: list[Question], bar: Any) -> list[Record]:
    """The records of a chunk, in its order; reasoning is sampled first where the condition has it."""
    reasoning: list[str | None] = [None for _ in chunk]
    if chunk[0].condition.reasoning:
        seeds = [q.seed(config.seed) for q in chunk]
        for i, text in scorer.sample([q.prompt() for q in chunk], seeds, config.cot_max_new_tokens):
            reasoning[i] = text
            bar.update(SAMPLED_COST - 1)
    prompts = [q.prompt(text) for q, text in zip(chunk, reasoning, strict=True)]
    answers = {}
    for i, answer in scorer.score(prompts):
        answers[i] = _checked(answer, chunk[i])
        bar.update(1)
    return [_record(q.columns(style, config), answers[i], reasoning[i]) for i, q in enumerate(chunk)]


def _checked(answer: Answer, question: Question) -> Answer:
    """The answer; InputError for log-probabilities that are none."""
    if "no_answer" not in answer.extra and not np.isfinite(answer.logprobs).all():
        raise InputError(
            f"{question.key}: log-probabilities {answer.logprobs.tolist()} are not finite; the model or its dtype "
            "overflows: try --dtype float32"
        )
    return answer


def _record(columns: Record, answer: Answer, reasoning: str | None) -> Record:
    given = {
        "logprobs": None if "no_answer" in answer.extra else [float(x) for x in answer.logprobs],
        "prompt_tokens": answer.prompt_tokens,
        "boundary_moved": answer.boundary_moved,
        **answer.extra,
    }
    return columns | given | ({} if reasoning is None else {"reasoning": reasoning})


def cells(store: Store, questions: list[Question]) -> dict[Cell, list[Record]]:
    """The records of the questions, from disk, by experiment and condition."""
    found = {record_key(r): r for r in store.read()}
    by_cell: dict[Cell, list[Record]] = {}
    for q in questions:
        by_cell.setdefault((q.experiment, q.condition.name), []).append(found[q.key])
    return by_cell
