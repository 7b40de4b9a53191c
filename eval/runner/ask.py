"""Asks a scorer the questions of a chunk and makes records of its answers."""

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
    from eval.runner.answered import Known

SAMPLED_COST = 8  # a sampled reasoning counts as so many scored prompts on the progress bar
KEPT_EVERY = 1.0  # seconds after which answers that stand alone are written


class Asking:
    """Asks questions of a chunk together and appends to a store what is not known; with each, the bar moves on.

    Returns what they are worth on it.
    """

    def __init__(
        self, scorer: Scorer, config: EvaluationConfig, style: str, bar: Any, known: Known | None = None
    ) -> None:
        self.scorer = scorer
        self.config = config
        self.style = style
        self.bar = bar
        self.known = known

    def __call__(self, job: Job, together: list[Question], store: Store) -> int:
        store.begin_session()
        part = job.experiment, "with_reasoning" if job.reasoning else "without_reasoning"
        began = time.monotonic()
        for new in _as_they_come(self.scorer, self.config, self.style, together, self.bar):
            if self.known is not None:
                new = [r for r in new if record_key(r) not in self.known.done]
                self.known.learn(new)
            store.append(new, part, time.monotonic() - began, self.scorer.describe())
            began = time.monotonic()
        return sum(cost(q) for q in together)


def cost(question: Question) -> int:
    """What a question is worth on the progress bar."""
    return SAMPLED_COST if question.condition.reasoning else 1


def _as_they_come(
    scorer: Scorer, config: EvaluationConfig, style: str, chunk: list[Question], bar: Any
) -> Iterator[list[Record]]:
    """The records of a chunk: all at once, or, where answers stand alone, those of each second, also before an end by
    an error or by Ctrl-C.
    """
    if not isinstance(scorer, IndependentScorer):
        yield _ask(scorer, config, style, chunk, bar)
        return
    records: list[Record] = []
    kept = time.monotonic()
    try:
        for i, reasoning, answer in _alone(scorer, config, chunk):
            records.append(_record(chunk[i].columns(style, config), _checked(answer, chunk[i]), reasoning))
            bar.update(cost(chunk[i]))
            if time.monotonic() - kept > KEPT_EVERY:
                yield records
                records, kept = [], time.monotonic()
    except (Exception, KeyboardInterrupt):
        if records:
            yield records
        raise
    yield records


def _alone(
    scorer: IndependentScorer, config: EvaluationConfig, chunk: list[Question]
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
