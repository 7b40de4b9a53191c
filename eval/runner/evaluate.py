"""Asks one checkpoint all questions of a configuration and keeps the answers: the same code for `eval run` and for the
evaluation during training.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.config import EvaluationConfig
from eval.metrics.measure import Cell
from eval.metrics.sequential import RULE, Stop
from eval.metrics.summarise import summarise
from eval.runner.answered import Known
from eval.runner.ask import Asking, cost
from eval.runner.distribute import follow, lead
from eval.runner.keys import RECORDS_VERSION, by_cell, record_key
from eval.runner.plan import Plan, Question, plan
from eval.runner.processes import Team
from eval.runner.provenance import command, git_commit, machine, versions
from eval.runner.shards import in_order, open_whole
from eval.runner.store import Store
from eval.types import IndependentScorer, Metric, Record, Scorer

log = logging.getLogger(__name__)

PROMPT_VERSION = 2
"""Raised whenever the words or their joining change, so that old results are never continued with new prompts.
Version 2 prints LSAT and GPA as the survey's file has them (39.0); version 1 printed 39.
"""
SETTINGS = (
    "experiments", "conditions", "categories", "limit", "cot_limit", "orders", "cot_max_new_tokens",
    "sample_batch", "seed", "paraphrases", "admissions_races", "admissions_vary",
)  # fmt: skip


def describe_run(
    config: EvaluationConfig, planned: Plan, scorer: Scorer, policy: dict[str, Any], step: int
) -> dict[str, Any]:
    """The provenance: everything a number depends on, and the command that gave it."""
    described = scorer.describe()
    return {
        **policy,
        **described,
        **_asked(config, planned, step),
        "git_commit": git_commit(),
        "versions": versions(described.get("scorer", "")),
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
    us: Team | None = None,
) -> list[Metric]:
    """Asks what `folder` does not hold yet, writes records and summary there, and returns the metrics.

    A finished folder costs nothing; an interrupted one is continued and ends with the same records; one that was asked
    something else of the same model is asked what is missing. Raises InputError where it is of another model, where a
    record in it was asked otherwise than it would be now, and where another process writes it.

    With `us`, the processes of this job, each calls it and asks its share (eval.runner.distribute). The first does the
    rest; the others return no metrics.
    """
    planned = planned or plan(config)
    store = Store(folder)
    described = describe_run(config, planned, scorer, policy, step)
    style = described["format"]
    if us is not None and us.rank > 0:
        with tqdm(disable=True) as bar:
            follow(us, scorer, planned, store, described, Asking(scorer, config, style, bar))
        return []
    with store.locked():
        known = _begun(store, config, planned, described, isinstance(scorer, IndependentScorer))
        if summary := store.finished(described, by_cell(known.done)):
            if us is not None:
                us.say("begun", None)
            return [Metric(**m) for m in summary["metrics"]]
        title = f"evaluating step {step}"
        if us is not None:
            with _bar(planned, title) as bar:
                bar.update(sum(cost(known.questions[key]) for key in known.done))
                ask = Asking(scorer, config, style, bar, known)
                lead(us, config, scorer, planned, store, known, described, ask, bar.update)
            known = _begun(store, config, planned, described | scorer.describe(), known.alone)
        asked, stops = _ask_all(scorer, config, store, planned, known, title)
        in_order(store, [q.key for q in asked])
        measured, fields = summarise(cells(store, asked), config.seed, stops)
        for m in measured.metrics:
            if m.note.startswith("warning:"):
                log.warning("%s, %s, %s = %.2f: %s", m.experiment, m.condition, m.name, m.value, m.note)
        used = {"records": by_cell(q.key for q in asked), **fields}
        store.finish(measured, described | scorer.describe() | used)
    return measured.metrics


def _begun(store: Store, config: EvaluationConfig, planned: Plan, described: dict[str, Any], alone: bool) -> Known:
    """Opens the folder for these questions: what it knows of them already, written down."""
    known = Known(store, config, planned, described["format"], open_whole(store, described), alone)
    store.begin(described | {"planned": by_cell(q.key for q in planned.questions), "done": by_cell(known.done)})
    if known.stale_weights:
        known.rewrite_weights()
    return known


def _ask_all(
    scorer: Scorer, config: EvaluationConfig, store: Store, planned: Plan, known: Known, title: str
) -> tuple[list[Question], list[Stop]]:
    """Asks what is not known yet; what was asked now or earlier, and with a precision where each job stopped."""
    asked: list[Question] = []
    stops: list[Stop] = []
    with _bar(planned, title) as bar:
        ask = Asking(scorer, config, store.state["format"], bar, known)
        for job in planned.jobs:
            bar.set_postfix_str(f"{job.experiment} {'with' if job.reasoning else 'without'} CoT")
            watch = None if config.precision is None else job.watch(config.precision)
            before = len(asked)
            for chunk in job.chunks:
                together = known.left(chunk)
                bar.update(sum(cost(q) for q in chunk) - sum(cost(q) for q in together))
                if together:
                    ask(job, together, store)
                asked += chunk
                if watch is not None and watch.look([known.done[q.key] for q in chunk]):
                    break
            if watch is not None:
                stops.append(watch.stop)
                log.info("%s", watch.stop)
                bar.update(sum(cost(q) for q in job.questions[len(asked) - before :]))
    return asked, stops


def _bar(planned: Plan, title: str) -> tqdm:
    total = sum(cost(q) for q in planned.questions)
    return tqdm(total=total, desc=title, unit="prompt", smoothing=0.05, leave=False)


def cells(store: Store, questions: list[Question]) -> dict[Cell, list[Record]]:
    """The records of the questions, from disk, by experiment and condition."""
    found = {record_key(r): r for r in store.read()}
    by_cell: dict[Cell, list[Record]] = {}
    for q in questions:
        by_cell.setdefault((q.experiment, q.condition.name), []).append(found[q.key])
    return by_cell
