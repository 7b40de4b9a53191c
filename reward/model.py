"""Models for training: LoRA as configured, and what training needs of a model and its tokenizer."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from eval.checkpoints import check_model
from eval.config import InputError


def lora_config(model_args: Any, model: str, top_layers: int | None) -> Any:
    """TRL's LoRA configuration, on the top layers only where `top_layers` says so; None for full fine-tuning.

    Leaving the lower layers alone saves their backward pass. Raises InputError for more layers than the model has.
    """
    from trl import get_peft_config

    peft_config: Any = get_peft_config(model_args)
    if peft_config is None or top_layers is None:
        return peft_config
    layers = AutoConfig.from_pretrained(model, revision=model_args.model_revision).get_text_config().num_hidden_layers
    if not 1 <= top_layers <= layers:
        raise InputError(f"lora_top_layers must be 1 to {layers} for {model}, not {top_layers}")
    peft_config.layers_to_transform = list(range(layers - top_layers, layers))
    return peft_config


def check_model_arguments(model_args: Any) -> str:
    """The model's path or id. InputError where it is missing, not there, or would execute remote code."""
    if not model_args.model_name_or_path:
        raise InputError("model_name_or_path is missing; give a hub id or a local folder")
    check_model(model_args.model_name_or_path, model_args.model_revision)
    return model_args.model_name_or_path


def check_chat_template(tokenizer: Any, model: str) -> None:
    """InputError where the tokenizer has no chat template: TRL trains on conversations, written by it."""
    if not tokenizer.chat_template:
        raise InputError(
            f"the tokenizer of {model} has no chat template, which training on dialogues needs; start from an instruct "
            "model, or save a template with the tokenizer"
        )
