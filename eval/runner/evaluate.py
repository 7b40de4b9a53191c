"""Evaluates one checkpoint on all questions of a configuration, in `eval run` and during training."""

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
from eval.runner.answered import Answered
from eval.runner.ask import Evaluator, cost
from eval.runner.distribute import follow, lead
from eval.runner.keys import RECORDS_VERSION, by_cell, record_key
from eval.runner.plan import Plan, Question, plan
from eval.runner.processes import ProcessGroup
from eval.runner.provenance import command, git_commit, machine, versions
from eval.runner.shards import open_with_shards, put_in_order
from eval.runner.store import Store
from eval.types import IndependentScorer, Metric, Record, Scorer

log = logging.getLogger(__name__)

PROMPT_VERSION = 2
"""Raised whenever the prompts' words or their joining change, so that old results are never continued with new prompts.
Version 2 prints LSAT and GPA as the survey's file has them (39.0); version 1 printed 39.
"""
SETTINGS = (
    "experiments", "conditions", "categories", "limit", "cot_limit", "orders", "cot_max_new_tokens",
    "sample_batch", "seed", "paraphrases", "admissions_races", "admissions_vary",
)  # fmt: skip


def describe_run(
    config: EvaluationConfig, planned: Plan, scorer: Scorer, policy: dict[str, Any], step: int
) -> dict[str, Any]:
    """Returns the provenance: everything that a number depends on, and the command that produced it."""
    described = scorer.describe()
    return {
        **policy,
        **described,
        **_plan_provenance(config, planned, step),
        "git_commit": git_commit(),
        "versions": versions(described.get("scorer", "")),
        "machine": machine(),
        "command": command(),
    }


def _plan_provenance(config: EvaluationConfig, planned: Plan, step: int) -> dict[str, Any]:
    """Returns the part of the provenance that is known without the checkpoint."""
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
    config: EvaluationConfig, planned: Plan, folder: Path, policy: dict[str, Any], step: int
) -> dict[str, Any] | None:
    """Returns the summary if the folder already holds exactly these results, so that no model need be loaded.

    Args:
        config: What to evaluate.
        planned: Its plan.
        folder: The results folder.
        policy: The provenance known without loading the model: policy, tokenizer, format, system turn and dtype_asked,
            which stands for the dtype. One equal to the recorded dtype_asked gives the same dtype on the same weights;
            one that names a dtype gives that dtype.
        step: The checkpoint's training step.

    Returns:
        The summary, or None if the folder is not complete.

    Raises:
        InputError: The folder's records may not be used. Raised before a model is loaded.
    """
    if not folder.is_dir():
        return None
    store = Store(folder)
    with store.locked():
        if not store.provenance_path.is_file():
            return None
        recorded = store.provenance()
        if policy["dtype_asked"] not in (recorded.get("dtype_asked"), recorded.get("dtype")):
            return None
        described = {**policy, **_plan_provenance(config, planned, step), "dtype": recorded["dtype"]}
        answered = Answered(store, config, planned, described["format"], store.open(described))
        return None if answered.outdated_weights else store.finished(described, by_cell(answered.done))


def evaluate(
    scorer: Scorer,
    config: EvaluationConfig,
    folder: Path,
    policy: dict[str, Any],
    step: int = 0,
    planned: Plan | None = None,
    group: ProcessGroup | None = None,
) -> list[Metric]:
    """Scores the questions that `folder` does not hold yet, writes records and summary there, and returns the metrics.

    A finished folder costs nothing. An interrupted one is continued and ends with the same records. A folder with
    another selection of the same model is extended by what is missing.

    Args:
        scorer: Scores the prompts.
        config: What to evaluate.
        folder: The results folder.
        policy: The model's part of the provenance.
        step: The checkpoint's training step.
        planned: The plan of `config`, if it was made already.
        group: The processes of this job. Each calls this function and scores its share (eval.runner.distribute).

    Returns:
        The metrics; [] on ranks other than 0.

    Raises:
        InputError: The folder holds another model's results, a record in it was made by another prompt or setting than
            its question has now, or another process is writing the folder.
    """
    planned = planned or plan(config)
    store = Store(folder)
    described = describe_run(config, planned, scorer, policy, step)
    style = described["format"]
    if group is not None and group.rank > 0:
        with tqdm(disable=True) as bar:
            follow(group, scorer, planned, store, described, Evaluator(scorer, config, style, bar))
        return []
    with store.locked():
        answered = _open_store(store, config, planned, described, isinstance(scorer, IndependentScorer))
        if summary := store.finished(described, by_cell(answered.done)):
            if group is not None:
                group.broadcast("begun", None)
            return [Metric(**m) for m in summary["metrics"]]
        title = f"evaluating step {step}"
        if group is not None:
            with _bar(planned, title) as bar:
                bar.update(sum(cost(answered.questions[key]) for key in answered.done))
                evaluator = Evaluator(scorer, config, style, bar, answered)
                lead(group, config, scorer, planned, store, answered, described, evaluator, bar.update)
            answered = _open_store(store, config, planned, described | scorer.describe(), answered.independent)
        questions, stops = _evaluate_jobs(scorer, config, store, planned, answered, title)
        put_in_order(store, [q.key for q in questions])
        measured, fields = summarise(cells(store, questions), config.seed, stops)
        for m in measured.metrics:
            if m.note.startswith("warning:"):
                log.warning("%s, %s, %s = %.2f: %s", m.experiment, m.condition, m.name, m.value, m.note)
        extra = {"records": by_cell(q.key for q in questions), **fields}
        store.finish(measured, described | scorer.describe() | extra)
    return measured.metrics


def _open_store(
    store: Store, config: EvaluationConfig, planned: Plan, described: dict[str, Any], independent: bool
) -> Answered:
    """Opens the folder for these questions, records the plan there, and returns what is answered already."""
    answered = Answered(store, config, planned, described["format"], open_with_shards(store, described), independent)
    store.begin(described | {"planned": by_cell(q.key for q in planned.questions), "done": by_cell(answered.done)})
    if answered.outdated_weights:
        answered.rewrite_weights()
    return answered


def _evaluate_jobs(
    scorer: Scorer, config: EvaluationConfig, store: Store, planned: Plan, answered: Answered, title: str
) -> tuple[list[Question], list[Stop]]:
    """Scores the pending questions. Returns all questions of the jobs, and with a precision where each job stopped."""
    questions: list[Question] = []
    stops: list[Stop] = []
    with _bar(planned, title) as bar:
        evaluator = Evaluator(scorer, config, store.state["format"], bar, answered)
        for job in planned.jobs:
            bar.set_postfix_str(f"{job.experiment} {'with' if job.reasoning else 'without'} CoT")
            watch = None if config.precision is None else job.watch(config.precision)
            before = len(questions)
            for chunk in job.chunks:
                batch = answered.pending(chunk)
                bar.update(sum(cost(q) for q in chunk) - sum(cost(q) for q in batch))
                if batch:
                    evaluator(job, batch, store)
                questions += chunk
                if watch is not None and watch.look([answered.done[q.key] for q in chunk]):
                    break
            if watch is not None:
                stops.append(watch.stop)
                log.info("%s", watch.stop)
                bar.update(sum(cost(q) for q in job.questions[len(questions) - before :]))
    return questions, stops


def _bar(planned: Plan, title: str) -> tqdm:
    total = sum(cost(q) for q in planned.questions)
    return tqdm(total=total, desc=title, unit="prompt", smoothing=0.05, leave=False)


def cells(store: Store, questions: list[Question]) -> dict[Cell, list[Record]]:
    """Returns the questions' records from disk, by experiment and condition."""
    records = {record_key(r): r for r in store.read()}
    by_cell: dict[Cell, list[Record]] = {}
    for q in questions:
        by_cell.setdefault((q.experiment, q.condition.name), []).append(records[q.key])
    return by_cell
