"""Checks, before anything is scored, that the tokenizer can encode every question and distinguish its answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from eval.config import EvaluationConfig
from eval.errors import InputError
from eval.models.prompt_format import Format, encode
from eval.runner.plan import Plan, Question
from eval.types import Prompt

CHECKED_PER_CELL = 64  # the longest questions of each experiment and condition are encoded before scoring


def check_questions(
    plan: Plan,
    evaluation: EvaluationConfig,
    tokenizer: PreTrainedTokenizerBase,
    style: Format,
    model_config: Any,
    model: str,
) -> None:
    """Encodes the longest questions of every experiment and condition.

    Args:
        plan: All questions of the evaluation.
        evaluation: Its options; read here: cot_max_new_tokens.
        tokenizer: The model's tokenizer.
        style: The dialogue format.
        model_config: The model's transformers configuration.
        model: The model's name, for error messages.

    Raises:
        InputError: A token is outside the model's vocabulary, two candidates have the same tokens, the tokenizer does
            not know a candidate, or a question with its sampled reasoning is longer than the model's context.
    """
    text_config = model_config.get_text_config()
    context = getattr(text_config, "max_position_embeddings", None)
    vocabulary_size = getattr(text_config, "vocab_size", None)
    for question in _longest(plan):
        reasoning_tokens = evaluation.cot_max_new_tokens if question.condition.reasoning else 0
        prompt = question.prompt("" if reasoning_tokens else None)
        (encoded,) = encode([prompt], tokenizer, style)
        _check_candidates(prompt, encoded.candidates, tokenizer, model)
        ids = [*encoded.context, *(token for candidate in encoded.candidates for token in candidate)]
        if vocabulary_size is not None and max(ids) >= vocabulary_size:
            raise InputError(
                f"model {model}: its tokenizer writes token {max(ids)} ({tokenizer.decode([max(ids)])!r}), and the "
                f"model has tokens 0 to {vocabulary_size - 1} only; give a folder with the model's own tokenizer"
            )
        needed = len(encoded.context) + reasoning_tokens + max(map(len, encoded.candidates))
        if context is not None and needed > context:
            with_reasoning = f" with {reasoning_tokens} tokens of reasoning" if reasoning_tokens else ""
            remedy = "lower --cot_max_new_tokens, or " if reasoning_tokens else ""
            raise InputError(
                f"model {model} has a context of {context} tokens, and a question of {question.experiment} under "
                f"{question.condition.name} needs {needed}{with_reasoning}; {remedy}leave that experiment or condition "
                "out (--experiments, --conditions)"
            )


def _longest(plan: Plan) -> Iterator[Question]:
    """The CHECKED_PER_CELL questions with the longest texts, for each experiment and condition."""
    by_cell: dict[tuple[str, str], list[Question]] = {}
    for question in plan.questions:
        by_cell.setdefault((question.experiment, question.condition.name), []).append(question)
    for questions in by_cell.values():
        yield from sorted(questions, key=lambda q: -sum(map(len, q.item.texts.values())))[:CHECKED_PER_CELL]


def _check_candidates(
    prompt: Prompt, candidates: tuple[tuple[int, ...], ...], tokenizer: PreTrainedTokenizerBase, model: str
) -> None:
    unk_id = tokenizer.unk_token_id
    for text, ids in zip(prompt.candidates, candidates, strict=True):
        if unk_id is not None and unk_id in ids:
            raise InputError(f"model {model}: its tokenizer does not know the answer {text!r}, so it cannot be scored")
    if len(set(candidates)) < len(candidates):
        raise InputError(
            f"model {model}: its tokenizer writes some of the answers {list(prompt.candidates)} with the same tokens, "
            "so they cannot be distinguished"
        )
