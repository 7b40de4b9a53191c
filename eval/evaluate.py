"""Asks one checkpoint all questions of a configuration and keeps the answers: the same code for `eval run` and for the
evaluation during training.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from eval.conditions import CONDITIONS, Condition
from eval.config import EvaluationConfig, InputError
from eval.experiments.registry import EXPERIMENTS
from eval.measure import Cell, measure
from eval.records import Answer, Item, Metric, Prompt, Record, Scorer
from eval.results import Key, Store, differing, record_key
from eval.sequential import RULE, Stop, Watch, in_packs, in_random_order, told
from eval.sources import data_folder, data_name, sha256
from eval.wordings import N_WORDINGS

log = logging.getLogger(__name__)

PROMPT_VERSION = 1
"""Raised whenever the words or their joining change, so that old results are never continued with new prompts."""
RECORDS_VERSION = 2
"""Raised whenever the columns of the records change (docs/results.md)."""
SCORED_CHUNK = 480  # questions scored and written together
SAMPLED_COST = 8  # a sampled reasoning counts as so many scored prompts on the progress bar
SETTINGS = (
    "experiments", "conditions", "categories", "limit", "cot_limit", "orders", "cot_max_new_tokens",
    "sample_batch", "seed", "paraphrases", "admissions_races", "admissions_vary",
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """An item under a condition, its options in an order."""

    experiment: str
    condition: Condition
    item: Item
    order: int

    @property
    def key(self) -> Key:
        return self.experiment, self.condition.name, self.item.id, self.order

    def prompt(self, reasoning: str | None = None) -> Prompt:
        """What is asked; under chain of thought the prompt to sample from, and with its reasoning the final one."""
        return EXPERIMENTS[self.experiment].ask(self.item, self.condition, self.order, reasoning)

    def seed(self, seed: int) -> int:
        """The seed of this question's sampled reasoning: of itself alone, whatever is asked beside it."""
        digest = hashlib.sha256("\0".join((str(seed), *map(str, self.key))).encode()).digest()
        return int.from_bytes(digest[:8], "big")


@dataclass
class Job:
    """An experiment's conditions with reasoning, or those without: questions in chunks that are asked together."""

    experiment: str
    reasoning: bool
    chunks: list[list[Question]]

    @property
    def questions(self) -> list[Question]:
        return [q for chunk in self.chunks for q in chunk]

    def watch(self, precision: float) -> Watch:
        """A new watch over this job."""
        items = list({q.item.id: q.item for q in self.questions}.values())
        return Watch(self.experiment, self.reasoning, items, len(self.questions), precision)


@dataclass
class Plan:
    """What is asked, in this order, and the data files it comes from."""

    jobs: list[Job]
    files: list[Path]

    @property
    def questions(self) -> list[Question]:
        return [q for job in self.jobs for q in job.questions]


def plan(config: EvaluationConfig) -> Plan:
    """What will be asked. Raises InputError for bad data, before any model is loaded.

    Conditions without reasoning stand together in a chunk, since their prompts begin alike. The chunks are the same
    whatever has been done already, so that a continued evaluation computes what an uninterrupted one would.
    With a precision the items stand in random order, the same for both jobs of an experiment (and for every
    checkpoint), and chunks hold whole groups.
    """
    folder = data_folder(config.data_dir)
    jobs: list[Job] = []
    files: list[Path] = []
    for name in config.experiments:
        experiment = EXPERIMENTS[name]
        files += experiment.files(folder, config)
        items = experiment.load(folder, config)
        if not items:
            raise InputError(f"{name}: {', '.join(map(str, experiment.files(folder, config)))} has no row to ask about")
        if config.precision is not None:
            items = in_random_order(name, items, config.seed)
        conditions = list(_worded(config, experiment.CONDITIONS))
        for reasoning, size in ((False, SCORED_CHUNK), (True, config.sample_batch)):
            asked = items
            if reasoning and config.cot_limit is not None and config.cot_limit < len(items):
                # BBQ takes half of a filling's rows; in random order the first are as good as any, and Q asks them too
                beginning = items if config.precision is None else items[: 2 * config.cot_limit]
                asked = experiment.sample(beginning, config.cot_limit)
            chosen = [c for c in conditions if c.reasoning == reasoning]
            if chosen:
                jobs.append(Job(name, reasoning, list(_chunks(config, name, asked, chosen, size))))
    if not jobs:
        raise InputError(f"none of the experiments {config.experiments} has one of the conditions {config.conditions}")
    return Plan(jobs, files)


def _chunks(
    config: EvaluationConfig, experiment: str, items: list[Item], conditions: list[Condition], size: int
) -> Iterator[list[Question]]:
    """All questions in chunks of `size`; with a precision a chunk ends with a group, and may be a little longer."""
    orders = range(EXPERIMENTS[experiment].orders(config))
    packs = [items] if config.precision is None else in_packs(items, -(-size // (len(conditions) * len(orders))))
    for pack in packs:
        questions = [Question(experiment, c, item, order) for item in pack for c in conditions for order in orders]
        step = size if config.precision is None else len(questions)
        yield from (questions[i : i + step] for i in range(0, len(questions), step))


def _worded(config: EvaluationConfig, known: tuple[str, ...]) -> Iterator[Condition]:
    """The chosen conditions of an experiment, and each of our wordings of those that have an instruction."""
    for condition in (CONDITIONS[c] for c in config.conditions if c in known):
        yield condition
        if config.paraphrases and condition.has_wordings:
            yield from (condition.worded(k) for k in range(1, N_WORDINGS + 1))


def describe_run(
    config: EvaluationConfig, files: list[Path], scorer: Scorer, policy: dict[str, Any], step: int
) -> dict:
    """The provenance: everything a number depends on, and the command that gave it."""
    return {
        **policy,
        **scorer.describe(),
        **_asked(config, files, step),
        "git_commit": git_commit(),
        "versions": {p: version(p) for p in ("torch", "transformers", "peft", "numpy", "scipy")}
        | {"python": platform.python_version()},
        "command": " ".join(sys.argv),
    }


def _asked(config: EvaluationConfig, files: list[Path], step: int) -> dict[str, Any]:
    """The part of the provenance that is known without the checkpoint."""
    return {
        "step": step,
        "data": data_name(data_folder(config.data_dir)),
        "data_sha256": sha256(files),
        "evaluation": {
            "prompt_version": PROMPT_VERSION,
            "records_version": RECORDS_VERSION,
            **{name: value for name, value in dataclasses.asdict(config).items() if name in SETTINGS},
            **({} if config.precision is None else {"precision": config.precision, "stopping_rule": RULE}),
        },
    }


def finished(
    config: EvaluationConfig, files: list[Path], folder: Path, known: dict[str, Any], step: int
) -> dict[str, Any] | None:
    """The summary of a complete folder that holds these very results, else None: a model need not be loaded for it.

    known: the policy, format and system turn. Of a dtype only dtype_asked is known: asked alike of the same weights
    it is the same.
    """
    summary = Store(folder).summary()
    if summary is None or summary.get("dtype_asked") != known["dtype_asked"]:
        return None
    given = {**known, **_asked(config, files, step), "dtype": summary["dtype"]}
    return None if differing(summary, given) else summary


def evaluate(
    scorer: Scorer,
    config: EvaluationConfig,
    folder: Path,
    policy: dict[str, Any],
    step: int = 0,
    planned: Plan | None = None,
) -> list[Metric]:
    """Asks what `folder` does not hold yet, writes records and summary there, and returns the metrics.

    A finished folder costs nothing; an interrupted one is continued and ends with the same records.
    """
    planned = planned or plan(config)
    store = Store(folder)
    store.open(describe_run(config, planned.files, scorer, policy, step))
    if summary := store.summary():
        return [Metric(**m) for m in summary["metrics"]]
    asked, stops = _ask_all(scorer, config, store, planned, f"evaluating step {step}")
    measured = measure(cells(store, asked), config.seed)
    measured.metrics = told(measured.metrics, stops)
    for m in measured.metrics:
        if m.note.startswith("warning:"):
            log.warning("%s, %s, %s = %.2f: %s", m.experiment, m.condition, m.name, m.value, m.note)
    stopping = {} if config.precision is None else {"stopping": [dataclasses.asdict(s) for s in stops]}
    store.finish(measured, describe_run(config, planned.files, scorer, policy, step) | stopping)
    return measured.metrics


def _ask_all(
    scorer: Scorer, config: EvaluationConfig, store: Store, planned: Plan, title: str
) -> tuple[list[Question], list[Stop]]:
    """Asks what the store does not hold yet; what was asked, and with a precision where each job stopped."""
    watched = config.precision is not None
    done: dict[Key, Record] = {record_key(r): r if watched else {} for r in store.read()}
    asked: list[Question] = []
    stops: list[Stop] = []
    total = sum(_cost(q) for q in planned.questions)
    with tqdm(total=total, desc=title, unit="prompt", smoothing=0.05, leave=False) as bar:
        for job in planned.jobs:
            bar.set_postfix_str(f"{job.experiment} {'with' if job.reasoning else 'without'} CoT")
            watch = None if config.precision is None else job.watch(config.precision)
            before = len(asked)
            for chunk in job.chunks:
                if all(q.key in done for q in chunk):
                    bar.update(sum(_cost(q) for q in chunk))
                else:
                    new = [r for r in _ask(scorer, config, chunk, bar) if record_key(r) not in done]
                    store.append(new)
                    done |= {record_key(r): r if watched else {} for r in new}
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


def _ask(scorer: Scorer, config: EvaluationConfig, chunk: list[Question], bar: Any) -> list[Record]:
    """The records of a chunk, in its order; reasoning is sampled first where the condition has it."""
    sampled: list[dict[str, Any]] = [{} for _ in chunk]
    if chunk[0].condition.reasoning:
        seeds = [q.seed(config.seed) for q in chunk]
        for i, text in scorer.sample([q.prompt() for q in chunk], seeds, config.cot_max_new_tokens):
            sampled[i] = {"reasoning": text, "seed": seeds[i]}
            bar.update(SAMPLED_COST - 1)
    prompts = [q.prompt(extra.get("reasoning")) for q, extra in zip(chunk, sampled, strict=True)]
    answers = {}
    for i, answer in scorer.score(prompts):
        if not np.isfinite(answer.logprobs).all():
            raise InputError(
                f"{chunk[i].key}: log-probabilities {answer.logprobs.tolist()} are not finite; the model or its dtype "
                "overflows: try --dtype float32"
            )
        answers[i] = answer
        bar.update(1)
    return [_record(q, prompts[i], answers[i]) | sampled[i] for i, q in enumerate(chunk)]


def _record(question: Question, prompt: Prompt, answer: Answer) -> Record:
    experiment, condition, item, order = question.key
    return {
        "experiment": experiment,
        "condition": condition,
        "item": item,
        "order": order,
        "candidates": list(prompt.candidates),
        "logprobs": [float(x) for x in answer.logprobs],
        "prompt_tokens": answer.prompt_tokens,
        "boundary_moved": answer.boundary_moved,
        "weight": question.item.weight,
        "cluster": question.item.cluster,
        **question.item.fields,
    }


def cells(store: Store, questions: list[Question]) -> dict[Cell, list[Record]]:
    """The records of the questions, from disk, by experiment and condition."""
    found = {record_key(r): r for r in store.read()}
    by_cell: dict[Cell, list[Record]] = {}
    for q in questions:
        by_cell.setdefault((q.experiment, q.condition.name), []).append(found[q.key])
    return by_cell


def git_commit() -> str | None:
    """The commit of this clone, with '+changes' if tracked files differ from it; None outside a git clone."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    return commit and commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
