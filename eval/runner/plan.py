"""Which questions a checkpoint is evaluated on, in which order and batches, and the data files they come from."""

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
REASONING_PLACEHOLDER = "{reasoning}"
"""Stands for the sampled reasoning in the prompt whose checksum is recorded, so that the checksum is the same for every
model.
"""


@dataclass(frozen=True)
class Question:
    """An item under a condition, with its options in one order."""

    experiment: str
    condition: Condition
    item: Item
    order: int

    @property
    def key(self) -> Key:
        return self.experiment, self.condition.name, self.item.id, self.order

    def prompt(self, reasoning: str | None = None) -> Prompt:
        """Returns the prompt to score.

        Under chain of thought it is the prompt to sample reasoning from; with `reasoning` given, the final prompt.
        """
        return EXPERIMENTS[self.experiment].ask(self.item, self.condition, self.order, reasoning)

    def seed(self, seed: int) -> int:
        """Returns the seed of this question's sampled reasoning.

        It depends only on the run's seed and the question, never on batching. It has 48 bits, so that readers that
        parse JSON numbers as floats keep it exact.
        """
        digest = hashlib.sha256("\0".join((str(seed), *map(str, self.key))).encode()).digest()
        return int.from_bytes(digest[:6], "big")

    def columns(self, style: str, config: EvaluationConfig) -> Record:
        """Returns this question's record without the answer: prompt checksum, settings and the item's fields."""
        prompt = self.prompt()
        prompts, sampling = [prompt], {}
        if self.condition.reasoning:
            prompt = self.prompt(REASONING_PLACEHOLDER)
            prompts = [*prompts, prompt]
            sampling = {"seed": self.seed(config.seed), "max_new_tokens": config.cot_max_new_tokens}
        experiment, condition, item, order = self.key
        return {
            "experiment": experiment,
            "condition": condition,
            "item": item,
            "order": order,
            "format": style,
            "prompt_sha256": prompt_sha256(prompts),
            "candidates": list(prompt.candidates),
            "weight": self.item.weight,
            "cluster": self.item.cluster,
            **self.item.fields,
            **sampling,
        }


@dataclass
class Job:
    """An experiment's conditions with reasoning, or those without, as chunks of questions that are batched together."""

    experiment: str
    reasoning: bool
    chunks: list[list[Question]]

    @property
    def questions(self) -> list[Question]:
        return [q for chunk in self.chunks for q in chunk]

    def watch(self, precision: float) -> Watch:
        """Returns a new stopping rule for this job."""
        items = list({q.item.id: q.item for q in self.questions}.values())
        return Watch(self.experiment, self.reasoning, items, len(self.questions), precision)


@dataclass
class Plan:
    """The questions to evaluate, in order, and the data files of each experiment, within their folder.

    Attributes:
        jobs: The questions by experiment, without and with reasoning.
        files: The data files of each experiment.
        folder: The folder that they lie in.
        students: The weight of every admissions item, evaluated or not: its students among the rows that --limit takes.
            None if admissions is not evaluated.
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
        """The data's provenance fields: name, a checksum for each experiment, and those of each file."""
        paths = dict.fromkeys(path for experiment_files in self.files.values() for path in experiment_files)
        return {
            "data": data_name(self.folder),
            "data_sha256": {
                experiment: sha256(experiment_files) for experiment, experiment_files in self.files.items()
            },
            "data_files": file_checksums(paths, self.folder),
        }


def plan(config: EvaluationConfig) -> Plan:
    """Plans the questions of a configuration.

    Conditions without reasoning share a chunk, since their prompts have a common beginning. The chunks do not depend on
    what is answered already, so that a continued evaluation computes what an uninterrupted one would. With a precision
    the items are in random order, the same for both jobs of an experiment and for every checkpoint, and chunks hold
    whole groups.

    Raises:
        InputError: The data are bad or the selection is empty. Raised before any model is loaded.
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
            selected = items
            if reasoning and config.cot_limit is not None and config.cot_limit < len(items):
                # BBQ samples half of a filling's rows; in random order the first are as good as any, and Q has them too
                beginning = items if config.precision is None else items[: 2 * config.cot_limit]
                selected = experiment.sample(beginning, config.cot_limit)
            chosen = [c for c in conditions if c.reasoning == reasoning]
            if chosen:
                jobs.append(Job(name, reasoning, list(_chunks(config, name, selected, chosen, size))))
    if not jobs:
        raise InputError(f"none of the experiments {config.experiments} has one of the conditions {config.conditions}")
    return Plan(jobs, files, folder, students)


def _chunks(
    config: EvaluationConfig, experiment: str, items: list[Item], conditions: list[Condition], size: int
) -> Iterator[list[Question]]:
    """Yields all questions in chunks of `size`; with a precision each chunk ends with a group, so may be longer."""
    orders = range(EXPERIMENTS[experiment].orders(config))
    packs = [items] if config.precision is None else in_packs(items, -(-size // (len(conditions) * len(orders))))
    for pack in packs:
        questions = [Question(experiment, c, item, order) for item in pack for c in conditions for order in orders]
        step = size if config.precision is None else len(questions)
        yield from (questions[i : i + step] for i in range(0, len(questions), step))


def _worded(config: EvaluationConfig, available: tuple[str, ...]) -> Iterator[Condition]:
    """Yields the chosen conditions of an experiment, each followed by its chosen paraphrases."""
    for condition in (CONDITIONS[c] for c in config.conditions if c in available):
        yield condition
        if config.paraphrases and condition.has_wordings:
            yield from (condition.worded(k) for k in range(1, N_WORDINGS + 1))
