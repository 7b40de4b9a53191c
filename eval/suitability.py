"""Whether a model can answer the questions at all: every reason why not is one line, told before anything is scored.

A model that was not trained to continue text, or whose weights were not all in its checkpoint, scores without an error
and wrongly.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from eval.config import EvaluationConfig, InputError
from eval.dialogue import Format, encode
from eval.plan import Plan, Question
from eval.records import Prompt

OTHER_HEADS = (
    "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice", "RewardModel",
)  # fmt: skip
LOOKED_AT = 64  # questions of each experiment and condition that are encoded beforehand, the longest


def check_language_model(config: Any, model: str) -> None:
    """InputError for a sequence-to-sequence or encoder-only model, and for one saved with another head.

    By what its configuration says of it; check_all_loaded goes by the weights.
    """
    architectures = getattr(config, "architectures", None) or []
    said = f" ({', '.join(architectures)})" if architectures else ""
    need = "needed is a causal language model, which continues text"
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"model {model} is a sequence-to-sequence model{said}; {need}")
    decodes = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decodes:
        raise InputError(f"model {model} is an encoder-only model{said}; {need}")
    if architectures and all(name.endswith(OTHER_HEADS) for name in architectures):
        raise InputError(f"model {model} was saved without a language model's head{said}; {need}")


def check_all_loaded(
    found: Mapping[str, Any], model: str, kind: str = "causal language model", made_anew: Collection[str] = ()
) -> None:
    """InputError where transformers filled in weights at random: `found` is its loading info.

    kind: what the model is to be. made_anew: tensors that are meant to be random.

    Weights that are tied to others are not missing, by its own account.
    """
    random = sorted({*map(str, (*found["missing_keys"], *found["mismatched_keys"]))} - {*made_anew})
    if random:
        raise InputError(
            f"model {model} has no weights for {len(random)} tensors of a {kind}, such as {random[0]}: "
            f"they would be random; give a complete checkpoint of a {kind}"
        )


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: Any, model: str) -> None:
    """InputError where the tokenizer's vocabulary (without tokens added later) is larger than the model's."""
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if rows is not None and tokenizer.vocab_size > rows:
        raise InputError(
            f"model {model} has {rows} tokens and its tokenizer {tokenizer.vocab_size}: they do not belong together; "
            "give a folder with the model's own tokenizer"
        )


def check_questions(
    planned: Plan, asked: EvaluationConfig, tokenizer: PreTrainedTokenizerBase, style: Format, config: Any, model: str
) -> None:
    """Encodes the longest questions of every experiment and condition.

    Raises InputError where a token is outside the model's vocabulary, where the candidates cannot be told apart or are
    unknown to the tokenizer, or where a question with the reasoning to be sampled is longer than the model's context.
    """
    text_config = config.get_text_config()
    context = getattr(text_config, "max_position_embeddings", None)
    rows = getattr(text_config, "vocab_size", None)
    for question in _longest(planned):
        extra = asked.cot_max_new_tokens if question.condition.reasoning else 0
        prompt = question.prompt("" if extra else None)
        (encoded,) = encode([prompt], tokenizer, style)
        _check_candidates(prompt, encoded.candidates, tokenizer, model)
        ids = [*encoded.context, *(token for candidate in encoded.candidates for token in candidate)]
        if rows is not None and max(ids) >= rows:
            raise InputError(
                f"model {model}: its tokenizer writes token {max(ids)} ({tokenizer.decode([max(ids)])!r}), and the "
                f"model has tokens 0 to {rows - 1} only; give a folder with the model's own tokenizer"
            )
        needed = len(encoded.context) + extra + max(map(len, encoded.candidates))
        if context is not None and needed > context:
            with_reasoning = f" with {extra} tokens of reasoning" if extra else ""
            remedy = "lower --cot_max_new_tokens, or " if extra else ""
            raise InputError(
                f"model {model} has a context of {context} tokens, and a question of {question.experiment} under "
                f"{question.condition.name} needs {needed}{with_reasoning}; {remedy}leave that experiment or condition "
                "out (--experiments, --conditions)"
            )


def _longest(planned: Plan) -> Iterator[Question]:
    """A few questions of each experiment and condition, those with the longest texts."""
    by_cell: dict[tuple[str, str], list[Question]] = {}
    for question in planned.questions:
        by_cell.setdefault((question.experiment, question.condition.name), []).append(question)
    for questions in by_cell.values():
        yield from sorted(questions, key=lambda q: -sum(map(len, q.item.texts.values())))[:LOOKED_AT]


def _check_candidates(
    prompt: Prompt, candidates: tuple[tuple[int, ...], ...], tokenizer: PreTrainedTokenizerBase, model: str
) -> None:
    unknown = tokenizer.unk_token_id
    for text, ids in zip(prompt.candidates, candidates, strict=True):
        if unknown is not None and unknown in ids:
            raise InputError(f"model {model}: its tokenizer does not know the answer {text!r}, so it cannot be scored")
    if len(set(candidates)) < len(candidates):
        raise InputError(
            f"model {model}: its tokenizer writes some of the answers {list(prompt.candidates)} with the same tokens, "
            "so they cannot be told apart"
        )
