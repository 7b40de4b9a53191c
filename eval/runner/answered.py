"""The records on disk that answer a planned question."""

from __future__ import annotations

from collections.abc import Iterable

from eval.config import EvaluationConfig
from eval.errors import InputError
from eval.experiments import admissions
from eval.runner.keys import REMEDY, Key, record_key
from eval.runner.plan import Plan, Question
from eval.runner.store import Store
from eval.types import Record


class Known:
    """The records on disk that answer a planned question, each found to be of the very question that is planned.

    done: their keys, with the record where a precision watches; earlier: those of them that were there before these
    questions were asked, which are left out of the chunks; alone: nothing that is done is asked again for company, as
    each answer stands alone (IndependentScorer). Raises InputError for a record that was asked otherwise.
    """

    def __init__(
        self, store: Store, config: EvaluationConfig, planned: Plan, style: str, before: int, alone: bool = False
    ) -> None:
        self.store = store
        self.alone = alone
        self.questions = {q.key: q for q in planned.questions}
        self.done: dict[Key, Record] = {}
        self.earlier: set[Key] = set()
        self.stale_weights = False
        self.watched = config.precision is not None
        self.students = planned.students
        for number, record in enumerate(store.read()):
            self.stale_weights |= record["weight"] != self._weight(record)
            question = self.questions.get(record_key(record))
            if question is None:
                continue
            self._check(record, question.columns(style, config))
            self.learn([record])
            if number < before:
                self.earlier.add(question.key)

    def learn(self, records: Iterable[Record]) -> None:
        """Takes in records of planned questions."""
        self.done.update({record_key(r): r if self.watched else {} for r in records})

    def left(self, chunk: list[Question]) -> list[Question]:
        """What of a chunk is asked together, if any of it is not known: all but what was there before."""
        together = [q for q in chunk if q.key not in (self.done if self.alone else self.earlier)]
        return [] if all(q.key in self.done for q in together) else together

    def _check(self, record: Record, now: Record) -> None:
        """A weight may differ: `rewrite_weights` sets it."""
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
        """What a record weighs under the present --limit: a profile of admissions its students among the rows taken, 0
        where there is none of them; else what it weighs already.
        """
        if self.students is None or record["experiment"] != admissions.NAME:
            return record["weight"]
        return self.students.get(record["item"], 0.0)

    def rewrite_weights(self) -> None:
        """Sets the weights of all records, asked now or not, to those under the present --limit, that the file never
        holds a mix of two limits. What weighs 0 stays for a larger limit; who reads the file leaves it out.
        """
        self.store.rewrite({**r, "weight": self._weight(r)} for r in self.store.read())
        for record in self.done.values():
            if record:
                record["weight"] = self._weight(record)
