"""The policy that training starts from: a base, a merged model, or an adapter of ours, which is merged first."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers.utils import is_bitsandbytes_available

from eval.checkpoints import (
    POLICY_FILE,
    adapter_id,
    check_adapter,
    check_model,
    load_tokenizer,
    read_policy,
    weights_id,
)  # fmt: skip
from eval.config import InputError
from eval.results import read_json, write_json
from reward.model import check_model_arguments

log = logging.getLogger(__name__)


def starting_model(model_args: Any, output: Path) -> tuple[str, dict[str, Any] | None]:
    """(the model to start from, what it was merged from or None). An adapter is merged into OUTPUT/start, once, so that
    the KL penalty is to the adapted policy and checkpoints are adapters on it.

    Raises InputError where the model is not there, or an adapter does not say on what it was trained.
    """
    check_quantization(model_args)
    name = model_args.model_name_or_path
    if not name or not (Path(name) / "adapter_config.json").is_file():
        return check_model_arguments(model_args), None
    policy = read_policy(Path(name))
    if not policy:
        raise InputError(
            f"adapter {name} has no {POLICY_FILE}, which says on what it was trained; give a checkpoint of these "
            "trainers, or merge the adapter into its base (peft's merge_and_unload) and give that model"
        )
    base, revision = policy["model"], policy.get("revision")
    check_model(base, revision)
    check_adapter(name, base, weights_id(base, revision), differs_accepted=False)
    folder = output / "start"
    merged = {"adapter": name, "base": base, "revision": revision, "dtype": model_args.dtype or "float32"}
    merged["adapter_weights"] = adapter_id(name)
    if PartialState().is_main_process and read_json(folder / "merged.json") != merged:
        log.info("merging %s into its base, %s: %s", name, base, folder)
        _merge(base, revision, name, merged["dtype"], folder)
        write_json(folder / "merged.json", merged)
    PartialState().wait_for_everyone()
    model_args.model_revision = None
    return str(folder), merged


def _merge(base: str, revision: str | None, adapter: str, dtype: str, folder: Path) -> None:
    """Adds in fp32 and saves in `dtype`, with the base's tokenizer."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, revision=revision, dtype=torch.float32)
    merged: Any = PeftModel.from_pretrained(model, adapter).merge_and_unload()  # pyright: ignore[reportCallIssue]
    merged.to(getattr(torch, dtype)).save_pretrained(folder)
    load_tokenizer(base, revision).save_pretrained(folder)


def check_quantization(model_args: Any) -> None:
    """InputError where 4 or 8 bits are asked for and cannot be had: QLoRA needs bitsandbytes, and an adapter."""
    if not (model_args.load_in_4bit or model_args.load_in_8bit):
        return
    asked = "load_in_4bit" if model_args.load_in_4bit else "load_in_8bit"
    if not model_args.use_peft:
        raise InputError(f"{asked} needs use_peft: quantised weights cannot be trained themselves, LoRA on them can")
    if not is_bitsandbytes_available():
        raise InputError(f"{asked} needs the package bitsandbytes, which is not there; pip install bitsandbytes")


def init_kwargs(model_args: Any, given: dict[str, Any] | None) -> dict[str, Any]:
    """What from_pretrained is called with; `given` (model_init_kwargs) wins."""
    from trl import get_quantization_config

    quantization = get_quantization_config(model_args)
    return {
        "dtype": model_args.dtype or "float32",
        "revision": model_args.model_revision,
        **({} if quantization is None else {"quantization_config": quantization}),
        **({} if model_args.attn_implementation is None else {"attn_implementation": model_args.attn_implementation}),
        **(given or {}),
    }
