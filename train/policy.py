"""The policy that training starts from: a base, a merged model, or an adapter of this project to be merged first."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from eval.errors import InputError
from eval.files import prepare_output, read_json, write_json
from eval.models.checkpoints import (
    POLICY_FILE,
    UNREADABLE,
    adapter_id,
    check_adapter,
    check_model,
    load_error,
    read_policy,
    weights_id,
    weights_mib,
)  # fmt: skip
from reward.model import check_model_arguments
from train.arguments import CheckpointOptions
from train.chat_template import EndTokens, policy_tokenizer

log = logging.getLogger(__name__)


def starting_model(
    model_args: Any, output: Path, supervised: bool = False, template_options: dict[str, Any] | None = None
) -> tuple[str, dict[str, Any] | None]:
    """The model to start from. An adapter is merged into OUTPUT/start, once.

    So the KL penalty is relative to the adapted policy, and checkpoints are adapters on it.

    Args:
        supervised: see policy_tokenizer, which checks the chat template before the merge.
        template_options: see policy_tokenizer.

    Returns:
        (the model, what it was merged from or None).

    Raises:
        InputError: the model does not exist, an adapter does not record its base, or OUTPUT/start was merged from
            something else: checkpoints may be adapters on it.
    """
    name = model_args.model_name_or_path
    if not name or not (Path(name) / "adapter_config.json").is_file():
        return check_model_arguments(model_args), None
    policy = read_policy(Path(name))
    if not policy.get("model"):
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
    recorded = read_json(folder / "merged.json")
    for key, value in merged.items():
        if recorded is not None and recorded.get(key) != value:
            raise InputError(
                f"{folder} was merged with {key} = {recorded.get(key)!r}, now it is {value!r}; choose another "
                "--output_dir or remove the folder"
            )
    tokenizer, ends = policy_tokenizer(base, revision, supervised, template_options)
    merged |= ends.settings_fields()
    if PartialState().is_main_process and recorded is None:
        log.info("merging %s into its base, %s: %s", name, base, folder)
        unfinished = output / ".start-unfinished"
        for leftover in (unfinished, folder):  # of a killed merge
            if leftover.exists():
                shutil.rmtree(leftover)
        _merge(base, revision, name, merged["dtype"], unfinished, tokenizer, ends)
        write_json(unfinished / "merged.json", merged)
        unfinished.rename(folder)
    PartialState().wait_for_everyone()
    model_args.model_revision = None
    return str(folder), merged


def _merge(
    base: str, revision: str | None, adapter: str, dtype: str, folder: Path, tokenizer: Any, ends: EndTokens
) -> None:
    """Merges in fp32 and saves in `dtype` (auto: the stored dtype of the base), with the base's tokenizer."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, revision=revision, dtype="auto")
    save_dtype = model.dtype if dtype == "auto" else getattr(torch, dtype)
    model.float()
    try:
        merged: Any = PeftModel.from_pretrained(model, adapter).merge_and_unload()  # pyright: ignore[reportCallIssue]
    except UNREADABLE as error:
        raise InputError(f"adapter {adapter} cannot be merged into its base: {load_error(error, adapter)}") from error
    ends.save_to(merged)
    merged.to(save_dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_room(
    output: Path, steps: list[int], arguments: CheckpointOptions, model_args: Any, model: str, merged: bool = False
) -> None:
    """Logs the disk space for the checkpoints and, if there will be one, the merged model.

    An adapter counts as a tenth of its model; an optimizer's state as twice what is trained.

    Raises:
        InputError: there is not enough space.
    """
    whole = weights_mib(model, model_args.model_revision, model_args.dtype or "float32")
    trained = 0.1 * whole if model_args.use_peft else whole
    states = len(steps) if arguments.keep_optimizer_states == "all" else 1
    needed = round(len(steps) * (32 + trained) + states * 2 * trained + (whole if merged else 0))
    prepare_output(output, needed_mib=needed)
    log.info("%d checkpoints need about %d MiB: %s", len(steps), needed, output)


def init_kwargs(model_args: Any, overrides: dict[str, Any] | None) -> dict[str, Any]:
    """Arguments for from_pretrained; `overrides` (model_init_kwargs) take precedence."""
    from trl import get_quantization_config

    quantization = get_quantization_config(model_args)
    return {
        "dtype": model_args.dtype or "float32",
        "revision": model_args.model_revision,
        **({} if quantization is None else {"quantization_config": quantization}),
        **({} if model_args.attn_implementation is None else {"attn_implementation": model_args.attn_implementation}),
        **(overrides or {}),
    }
