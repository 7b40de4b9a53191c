"""Which questions are asked of a checkpoint, in which order and in which company, and the data files they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.config import EvaluationConfig
from eval.data.readers import data_folder, data_name, sha256
from eval.errors import InputError
from eval.experiments import admissions
from eval.experiments.conditions import CONDITIONS, Condition
from eval.experiments.registry import EXPERIMENTS
from eval.experiments.words import N_WORDINGS
from eval.metrics.sequential import Watch, in_packs, in_random_order
from eval.runner.keys import Key
from eval.runner.provenance import file_checksums
from eval.types import Item, Prompt, Record, prompt_sha256

SCORED_CHUNK = 480  # questions scored and written together
SAMPLED_HERE = "{reasoning}"
"""Stands for the sampled reasoning where a prompt's checksum is taken, so that it is the same for every model."""


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
        """The seed of this question's sampled reasoning: of itself alone, whatever is asked beside it.

        It has 48 bits, so that readers that take JSON's numbers for floats keep it.
        """
        digest = hashlib.sha256("\0".join((str(seed), *map(str, self.key))).encode()).digest()
        return int.from_bytes(digest[:6], "big")

    def columns(self, style: str, config: EvaluationConfig) -> Record:
        """Everything in this question's record but the answer: what is asked, how, and what is known of the item."""
        prompt = self.prompt()
        asked, sampling = [prompt], {}
        if self.condition.reasoning:
            prompt = self.prompt(SAMPLED_HERE)
            asked = [*asked, prompt]
            sampling = {"seed": self.seed(config.seed), "max_new_tokens": config.cot_max_new_tokens}
        experiment, condition, item, order = self.key
        return {
            "experiment": experiment,
            "condition": condition,
            "item": item,
            "order": order,
            "format": style,
            "prompt_sha256": prompt_sha256(asked),
            "candidates": list(prompt.candidates),
            "weight": self.item.weight,
            "cluster": self.item.cluster,
            **self.item.fields,
            **sampling,
        }


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
    """What is asked, in this order, and the data files of each experiment, within their folder.

    students: the weight of every item of admissions, asked or not, which counts students among the rows that --limit
    takes; None where admissions is not asked.
    """

    jobs: list[Job]
    files: dict[str, list[Path]]
    folder: Path
    students: dict[str, float] | None = None

    @property
    def questions(self) -> list[Question]:
        return [q for job in self.jobs for q in job.questions]

    @cached_property
    def data(self) -> dict[str, Any]:
        """The data's fields of the provenance: name, a checksum for each experiment, and those of each file."""
        paths = dict.fromkeys(path for found in self.files.values() for path in found)
        return {
            "data": data_name(self.folder),
            "data_sha256": {experiment: sha256(found) for experiment, found in self.files.items()},
            "data_files": file_checksums(paths, self.folder),
        }


def plan(config: EvaluationConfig) -> Plan:
    """What will be asked. Raises InputError for bad data, before any model is loaded.

    Conditions without reasoning stand together in a chunk, since their prompts begin alike. The chunks are the same
    whatever has been done already, so that a continued evaluation computes what an uninterrupted one would.
    With a precision the items stand in random order, the same for both jobs of an experiment (and for every
    checkpoint), and chunks hold whole groups.
    """
    folder = data_folder(config.data_dir)
    jobs: list[Job] = []
    files: dict[str, list[Path]] = {}
    students = None
    for name in config.experiments:
        experiment = EXPERIMENTS[name]
        files[name] = experiment.files(folder, config)
        items = experiment.load(folder, config)
        if not items:
            raise InputError(f"{name}: {', '.join(map(str, files[name]))} has no row to ask about")
        if name == admissions.NAME:
            students = {i.id: i.weight for i in items}
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
    return Plan(jobs, files, folder, students)


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
