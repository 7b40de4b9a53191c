"""Checks whether a model can answer the questions at all. Each failure is reported in one line, before any scoring.

A model that was not trained to continue text, or whose checkpoint lacks weights, would score without an error, but
wrongly.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from eval.errors import InputError

OTHER_HEADS = (
    "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice", "RewardModel",
)  # fmt: skip


def check_language_model(config: Any, model: str) -> None:
    """Raises InputError for a sequence-to-sequence or encoder-only model, and for one saved with another head.

    It reads the configuration; check_all_loaded checks the weights.
    """
    architectures = getattr(config, "architectures", None) or []
    listed = f" ({', '.join(architectures)})" if architectures else ""
    need = "needed is a causal language model, which continues text"
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"model {model} is a sequence-to-sequence model{listed}; {need}")
    decodes = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decodes:
        raise InputError(f"model {model} is an encoder-only model{listed}; {need}")
    if architectures and all(name.endswith(OTHER_HEADS) for name in architectures):
        raise InputError(f"model {model} was saved without a language model's head{listed}; {need}")


def check_all_loaded(
    loading_info: Mapping[str, Any], model: str, kind: str = "causal language model", made_anew: Collection[str] = ()
) -> None:
    """Raises InputError if transformers initialised weights at random. Tied weights do not count as missing.

    Args:
        loading_info: what transformers reports of loading (output_loading_info).
        model: the model's name.
        kind: what the model is meant to be.
        made_anew: tensors that are meant to be random.
    """
    random = sorted({*map(str, (*loading_info["missing_keys"], *loading_info["mismatched_keys"]))} - {*made_anew})
    if random:
        raise InputError(
            f"model {model} has no weights for {len(random)} tensors of a {kind}, such as {random[0]}: "
            f"they would be random; give a complete checkpoint of a {kind}"
        )


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: Any, model: str) -> None:
    """Raises InputError if the tokenizer's vocabulary, without added tokens, is larger than the model's."""
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if rows is not None and tokenizer.vocab_size > rows:
        raise InputError(
            f"model {model} has {rows} tokens and its tokenizer {tokenizer.vocab_size}: they do not belong together; "
            "give a folder with the model's own tokenizer"
        )
