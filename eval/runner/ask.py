"""Scores the questions of a chunk and makes records of the answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.config import EvaluationConfig
from eval.errors import InputError
from eval.runner.keys import record_key
from eval.runner.plan import Job, Question
from eval.runner.store import Store
from eval.types import Answer, IndependentScorer, Record, Scorer

if TYPE_CHECKING:
    from eval.runner.answered import Answered

SAMPLED_COST = 8  # progress-bar units of a sampled reasoning; a scored prompt is 1
WRITE_EVERY = 1.0  # seconds between writes where each prompt is answered by itself


class Evaluator:
    """Scores questions of one chunk together and appends the new records to a store.

    Moves the progress bar with each answer. With `answered`, records of questions that it already holds are not
    appended.
    """

    def __init__(
        self, scorer: Scorer, config: EvaluationConfig, style: str, bar: Any, answered: Answered | None = None
    ) -> None:
        self.scorer = scorer
        self.config = config
        self.style = style
        self.bar = bar
        self.answered = answered

    def __call__(self, job: Job, questions: list[Question], store: Store) -> int:
        """Scores the questions and appends their records.

        Args:
            job: The job that the questions belong to.
            questions: The questions to score in one batch.
            store: The store or shard that the records go to.

        Returns:
            The questions' share of the progress bar, in its units.
        """
        store.begin_session()
        part = job.experiment, "with_reasoning" if job.reasoning else "without_reasoning"
        started = time.monotonic()
        for new in _record_batches(self.scorer, self.config, self.style, questions, self.bar):
            if self.answered is not None:
                new = [r for r in new if record_key(r) not in self.answered.done]
                self.answered.add(new)
            store.append(new, part, time.monotonic() - started, self.scorer.describe())
            started = time.monotonic()
        return sum(cost(q) for q in questions)


def cost(question: Question) -> int:
    """Returns a question's share of the progress bar, in its units."""
    return SAMPLED_COST if question.condition.reasoning else 1


def _record_batches(
    scorer: Scorer, config: EvaluationConfig, style: str, chunk: list[Question], bar: Any
) -> Iterator[list[Record]]:
    """Yields a chunk's records: all at once, or about every second if each prompt is answered by itself.

    In the second case the finished records are also yielded before an error or Ctrl-C ends the loop.
    """
    if not isinstance(scorer, IndependentScorer):
        yield _score_together(scorer, config, style, chunk, bar)
        return
    records: list[Record] = []
    last_write = time.monotonic()
    try:
        for i, reasoning, answer in _independent_answers(scorer, config, chunk):
            records.append(_record(chunk[i].columns(style, config), _checked(answer, chunk[i]), reasoning))
            bar.update(cost(chunk[i]))
            if time.monotonic() - last_write > WRITE_EVERY:
                yield records
                records, last_write = [], time.monotonic()
    except (Exception, KeyboardInterrupt):
        if records:
            yield records
        raise
    yield records


def _independent_answers(
    scorer: IndependentScorer, config: EvaluationConfig, chunk: list[Question]
) -> Iterator[tuple[int, str | None, Answer]]:
    """Yields (index into the chunk, reasoning, answer) in the order in which the answers arrive."""
    if not chunk[0].condition.reasoning:
        yield from ((i, None, answer) for i, answer in scorer.score([q.prompt() for q in chunk]))
        return
    seeds = [q.seed(config.seed) for q in chunk]
    yield from scorer.reason(
        [q.prompt() for q in chunk], seeds, config.cot_max_new_tokens, lambda i, text: chunk[i].prompt(text)
    )


def _score_together(
    scorer: Scorer, config: EvaluationConfig, style: str, chunk: list[Question], bar: Any
) -> list[Record]:
    """Returns a chunk's records in its order. Reasoning is sampled first if the condition has it."""
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
    """Returns the answer. Raises InputError if a log-probability is not finite."""
    if "no_answer" not in answer.extra and not np.isfinite(answer.logprobs).all():
        raise InputError(
            f"{question.key}: log-probabilities {answer.logprobs.tolist()} are not finite; the model or its dtype "
            "overflows: try --dtype float32"
        )
    return answer


def _record(columns: Record, answer: Answer, reasoning: str | None) -> Record:
    answer_columns = {
        "logprobs": None if "no_answer" in answer.extra else [float(x) for x in answer.logprobs],
        "prompt_tokens": answer.prompt_tokens,
        "boundary_moved": answer.boundary_moved,
        **answer.extra,
    }
    return columns | answer_columns | ({} if reasoning is None else {"reasoning": reasoning})
