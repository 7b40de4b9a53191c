"""Models for training: LoRA configuration, and checks of a model and its tokenizer before training."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from eval.errors import InputError
from eval.models.checkpoints import UNREADABLE, check_model, load_error
from eval.models.checks import check_all_loaded
from eval.models.hub import first_lines
from reward.padding import loading_options
from reward.scoring import head_in_fp32

HEADS = ("score.weight", "score.bias", "classifier.weight", "classifier.bias")
"""The parameter names of transformers' sequence classification heads."""


def lora_config(model_args: Any, model: str, top_layers: int | None) -> Any:
    """TRL's LoRA configuration; None for full fine-tuning.

    Args:
        top_layers: put LoRA on this many top layers only, which saves the backward pass of the lower ones; None: all.

    Raises:
        InputError: peft refuses the options, or the model has fewer layers.
    """
    from trl import get_peft_config

    try:
        peft_config: Any = get_peft_config(model_args)
    except ValueError as error:
        raise InputError(f"LoRA cannot be made with these options: {first_lines(error)}") from error
    if peft_config is None:
        return None
    target = peft_config.target_modules
    if (
        isinstance(target, str) and target.isidentifier()
    ):  # TRL passes one name as a string, which peft reads as a pattern
        peft_config.target_modules = {target}
    if top_layers is None:
        return peft_config
    layers = AutoConfig.from_pretrained(model, revision=model_args.model_revision).get_text_config().num_hidden_layers
    if not 1 <= top_layers <= layers:
        raise InputError(f"lora_top_layers must be 1 to {layers} for {model}, not {top_layers}")
    peft_config.layers_to_transform = list(range(layers - top_layers, layers))
    return peft_config


def check_model_arguments(model_args: Any) -> str:
    """The model's path or hub id. Raises InputError if it is missing, does not exist, or would execute remote code."""
    if not model_args.model_name_or_path:
        raise InputError("model_name_or_path is missing; give a hub id or a local folder")
    check_model(model_args.model_name_or_path, model_args.model_revision)
    return model_args.model_name_or_path


def check_chat_template(tokenizer: Any, model: str) -> None:
    """Raises InputError if the tokenizer has no chat template, with which TRL writes the training conversations.

    A reward model needs no further check, since it reads whole dialogues. train.chat_template checks those of policies.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"the tokenizer of {model} has no chat template, which training on dialogues needs; start from an instruct "
            "model, or save a template with the tokenizer"
        )


def load_base(model_args: Any, config: Any, tokenizer: Any) -> Any:
    """Loads the model to be trained, with an fp32 reward head of one output that is random (`config.seed`).

    Raises:
        InputError: the weights lack more than the head.
    """
    from transformers import AutoModelForSequenceClassification, set_seed
    from transformers.utils import logging

    name = model_args.model_name_or_path
    options = {
        "dtype": model_args.dtype or "float32",
        "revision": model_args.model_revision,
        **({} if model_args.attn_implementation is None else {"attn_implementation": model_args.attn_implementation}),
        "trust_remote_code": config.trust_remote_code,
        **loading_options(check_model(name, model_args.model_revision, config.trust_remote_code)),
        **(config.model_init_kwargs or {}),
    }
    config.model_init_kwargs = None  # used above; TRL warns if it gets them with a loaded model
    set_seed(config.seed)
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # transformers reports the missing head, which is expected
    try:
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            name, num_labels=1, output_loading_info=True, **options
        )
    except UNREADABLE as error:
        raise InputError(f"model {name} cannot be loaded with a reward head: {load_error(error, name)}") from error
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise InputError(f"model {name} cannot be loaded with model_init_kwargs: {first_lines(error)}") from error
    finally:
        logging.set_verbosity(level)
    model, loading_info = loaded
    check_all_loaded(loading_info, name, "model to be given a reward head", HEADS)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    head_in_fp32(model)
    return model
