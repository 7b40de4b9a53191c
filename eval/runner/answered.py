"""Which planned questions already have a record on disk."""

from __future__ import annotations

from collections.abc import Iterable

from eval.config import EvaluationConfig
from eval.errors import InputError
from eval.experiments import admissions
from eval.runner.keys import REMEDY, Key, record_key
from eval.runner.plan import Plan, Question
from eval.runner.store import Store
from eval.types import Record


class Answered:
    """Tracks which planned questions have a record on disk.

    Every record of a planned question is compared with the question as it is planned now.

    Attributes: done: Keys of the answered questions. The value is the record if a precision is set, else an empty dict.
        earlier: Keys of the answered questions whose records precede this selection. They are left out of the chunks.
        independent: True if the scorer answers each prompt by itself (IndependentScorer). Nothing in `done` is then
        scored again to complete a chunk. outdated_weights: True if a record on disk has another weight than the present
        --limit gives.

    Raises:
        InputError: A record was made by another prompt or setting than its question has now.
    """

    def __init__(
        self, store: Store, config: EvaluationConfig, planned: Plan, style: str, before: int, independent: bool = False
    ) -> None:
        self.store = store
        self.independent = independent
        self.questions = {q.key: q for q in planned.questions}
        self.done: dict[Key, Record] = {}
        self.earlier: set[Key] = set()
        self.outdated_weights = False
        self.watched = config.precision is not None
        self.students = planned.students
        for number, record in enumerate(store.read()):
            self.outdated_weights |= record["weight"] != self._weight(record)
            question = self.questions.get(record_key(record))
            if question is None:
                continue
            self._check(record, question.columns(style, config))
            self.add([record])
            if number < before:
                self.earlier.add(question.key)

    def add(self, records: Iterable[Record]) -> None:
        """Adds records of planned questions."""
        self.done.update({record_key(r): r if self.watched else {} for r in records})

    def pending(self, chunk: list[Question]) -> list[Question]:
        """Returns the questions of a chunk to score together, or [] if all of them are answered.

        Questions that were answered before this selection are left out. The others stay, so that the chunk is batched
        as in an uninterrupted run.
        """
        batch = [q for q in chunk if q.key not in (self.done if self.independent else self.earlier)]
        return [] if all(q.key in self.done for q in batch) else batch

    def _check(self, record: Record, now: Record) -> None:
        """Compares a record with its question's present columns. Weights may differ: `rewrite_weights` sets them."""
        for name, value in now.items():
            if name == "weight" or record.get(name) == value:
                continue
            experiment, condition, item, order = record_key(record)
            raise InputError(
                f"{self.store.records_path}: {experiment}, {condition}, item {item}, order {order} was asked with "
                f"another {name} ({record.get(name)!r} there, {value!r} now), so it is no answer to this question; "
                f"{REMEDY}"
            )

    def _weight(self, record: Record) -> float:
        """Returns a record's weight under the present --limit.

        For admissions it is the number of the profile's students among the rows taken, 0 without any. Other records
        keep their weight.
        """
        if self.students is None or record["experiment"] != admissions.NAME:
            return record["weight"]
        return self.students.get(record["item"], 0.0)

    def rewrite_weights(self) -> None:
        """Sets the weights of all records to those under the present --limit.

        That includes records whose questions are not planned now, so that the file never mixes two limits.
        Records of weight 0 stay for a larger limit; readers leave them out.
        """
        self.store.rewrite({**r, "weight": self._weight(r)} for r in self.store.read())
        for record in self.done.values():
            if record:
                record["weight"] = self._weight(record)
