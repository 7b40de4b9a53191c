"""Refuses, before any work begins, options of TRL that would fail later or make results other than they claim to be."""

from __future__ import annotations

import math
from typing import Any

from transformers.utils import is_bitsandbytes_available

from eval.errors import InputError
from reward.stage import check_trainer
from train.arguments import CheckpointOptions


def check_options(arguments: CheckpointOptions, config: Any, model_args: Any) -> None:
    """Checks that apply to every trainer of policies. Raises InputError."""
    check_trainer(config)
    for name in ("save_total_limit", "save_only_model"):
        if value := getattr(config, name):
            raise InputError(
                f"{name} must be left out, not {value}: every scheduled checkpoint is kept, and whole, to go "
                "on from; keep_optimizer_states says which keep their optimizer's state"
            )
    check_quantization(model_args)
    if quantisation(model_args) and arguments.evaluation and arguments.evaluate == "in_process":
        raise InputError(
            f"evaluate must not be in_process with {_bits_option(model_args)}: it would measure the adapter on the "
            "quantised weights, and every other evaluation measures it on the weights as they are stored; give "
            "--evaluate watch or --evaluate afterwards"
        )


def check_sampling(config: Any) -> None:
    """Checks what the RL trainers' answers and penalty need. Raises InputError."""
    if not 0 < config.temperature < math.inf:
        raise InputError(f"temperature must be a number above 0, not {config.temperature}; 1 is the policy as it is")
    if config.max_completion_length < 1:
        raise InputError(f"an answer must have at least 1 token, not {config.max_completion_length}; raise the limit")
    for beta in config.beta if isinstance(config.beta, list) else [config.beta]:  # online DPO: one per epoch
        if not 0 <= beta < math.inf:
            raise InputError(f"beta must be a number of at least 0, not {beta}; below 0 it would pay for moving away")
    _check_sampling_options(config)
    if getattr(config, "sync_ref_model", False):
        raise InputError(
            "sync_ref_model must be left out: KL is told as that to the starting policy, and the reference would move"
        )
    clip = getattr(config, "reward_clip_range", None) or ()
    if any(isinstance(end, str) for end in clip):  # the parser's result of "--reward_clip_range -5"
        raise InputError(
            f"reward_clip_range must be left out, not '{''.join(clip)}': no option can give its two numbers"
        )
    if config.use_vllm:
        from trl.import_utils import is_vllm_available

        if not is_vllm_available():
            raise InputError("use_vllm needs the package vllm, which is not there; install it, or leave use_vllm out")


def _check_sampling_options(config: Any) -> None:
    """Raises InputError for values that transformers would refuse when it samples the first answer, or ignore."""
    for name, fits, allowed in (
        ("top_p", lambda p: 0 < p <= 1, "above 0 and at most 1; 1 leaves all tokens in"),
        ("top_k", lambda k: k >= 0, "at least 0; 0 leaves all tokens in"),
        ("min_p", lambda p: 0 <= p <= 1, "0 to 1; leave it out for none"),
        ("repetition_penalty", lambda r: 0 < r < math.inf, "above 0; 1 is none"),
    ):
        if (value := getattr(config, name)) is not None and not fits(value):
            raise InputError(f"{name} must be {allowed}, and not {value}")


def check_end_token(added: str | None, config: Any) -> None:
    """Raises InputError if an end token was added (train.chat_template) under vLLM, which reads the model's files."""
    if added and config.use_vllm:
        raise InputError(
            f"use_vllm must be left out: the template closes an answer with {added!r}, which is no end token in the "
            "model's files, from which vLLM takes its own; or fine-tune the model with train.sft, which saves it as one"
        )


def check_prompts(prompts: int, config: Any) -> None:
    """Raises InputError for fewer prompts than TRL answers at once: training would end before its first step."""
    if not hasattr(config, "num_generations"):  # online DPO works with any number
        return
    at_once = config.generation_batch_size // config.num_generations
    if prompts < at_once:
        raise InputError(
            f"{prompts} prompts are left to train on, and {at_once} are answered at once (generation_batch_size "
            f"{config.generation_batch_size} / num_generations {config.num_generations}); lower "
            "per_device_train_batch_size, or give more prompts"
        )


def check_quantization(model_args: Any) -> None:
    """Raises InputError if 4 or 8 bits are requested but impossible: QLoRA needs bitsandbytes and an adapter."""
    if quantisation(model_args) is None:
        return
    option = _bits_option(model_args)
    if not model_args.use_peft:
        raise InputError(f"{option} needs use_peft: quantised weights cannot be trained themselves, LoRA on them can")
    if not is_bitsandbytes_available():
        raise InputError(f"{option} needs the package bitsandbytes, which is not there; pip install bitsandbytes")


def quantisation(model_args: Any) -> str | None:
    """How the weights below the adapter are quantised in training, as recorded in policy.json; None if they are not."""
    if model_args.load_in_8bit:
        return "8 bits"
    return f"4 bits ({model_args.bnb_4bit_quant_type})" if model_args.load_in_4bit else None


def _bits_option(model_args: Any) -> str:
    return "load_in_4bit" if model_args.load_in_4bit else "load_in_8bit"
