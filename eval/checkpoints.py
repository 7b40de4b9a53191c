"""A hub id or local folder, with or without a LoRA adapter -> one loaded policy that knows where it came from.

Remote code is never executed. What cannot be loaded for certain is refused in one line: a wrong score is worse than
none, so an adapter must fit the base it is put on, by its recorded weights or name and by every tensor.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from eval.config import InputError
from eval.sources import sha256

log = logging.getLogger(__name__)

POLICY_FILE = "policy.json"
"""Written beside an adapter by our trainers: base_model, base_weights (hash), algorithm, seed, rlhf_step ..."""
WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")


@dataclass
class Checkpoint:
    """A loaded policy: model in eval mode, its tokenizer, and the provenance that goes into every result."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    provenance: dict[str, Any] = field(default_factory=dict)


def load_checkpoint(
    model: str,
    adapter: str | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    adapter_base_differs: bool = False,
) -> Checkpoint:
    """Loads a causal language model for evaluation.

    Raises InputError for a path or hub id that is not there, a folder that is no causal language model, or an adapter
    that does not belong to it.
    """
    check_model(model, revision)
    weights = weights_id(model, revision)
    if adapter:
        check_adapter(adapter, model, weights, adapter_base_differs)
    tokenizer = load_tokenizer(model, revision)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(model, revision=revision, dtype=dtype)
    except (OSError, ValueError) as error:
        raise InputError(f"model {model} cannot be loaded as a causal language model: {_first(error)}") from error
    parameters = base_parameters(loaded)
    if adapter:
        loaded = _with_adapter(loaded, adapter)
    loaded.to(choose_device(device)).eval()
    provenance = {
        "model": model,
        "revision": revision,
        "weights": weights,
        "adapter": adapter,
        "adapter_weights": adapter_id(adapter) if adapter else None,
        "model_params": parameters,
    }
    return Checkpoint(loaded, tokenizer, provenance)


def choose_device(device: str) -> torch.device:
    """'auto' is the first GPU where there is one, else the CPU. InputError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{device}' is not there ({_first(error)}); use auto or cpu") from error
    return chosen


def check_model(model: str, revision: str | None = None) -> Any:
    """The model's configuration, or InputError if it is not there or is no model."""
    path = Path(model)
    if path.is_dir() and not (path / "config.json").is_file():
        what = "a LoRA adapter: give its base as --model and the folder as --adapter"
        if not (path / "adapter_config.json").is_file():
            what = "no model: it has no config.json"
        raise InputError(f"folder {model} is {what}")
    if path.is_file():
        raise InputError(f"model {model} is a file; give the folder of a saved model or a hub id")
    remedy = "`make model` builds it" if path.name == "smollm2-135m-instruct" else "give a model folder or a hub id"
    looks_local = model.startswith((".", "/", "~")) or model.count("/") != 1 or path.parent.is_dir()
    if not path.is_dir() and looks_local and ("/" in model or "\\" in model):
        raise InputError(f"model {model}: there is no such folder; {remedy}")
    try:
        return AutoConfig.from_pretrained(model, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"model {model} is neither a model folder nor a hub id that can be reached: {_first(error)}"
        ) from error


def load_tokenizer(model: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The model's tokenizer, padding on the left as generation needs."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, padding_side="left")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"model {model} has no tokenizer that can be loaded: {_first(error)}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def weights_id(model: str, revision: str | None = None) -> str:
    """What identifies the weights: 'sha256:...' of a local folder's weight files, 'hub:<commit>' of a hub model."""
    folder = Path(model)
    if folder.is_dir():
        found = sorted(p for pattern in WEIGHT_PATTERNS for p in folder.glob(pattern))
        if not found:
            raise InputError(f"folder {model} has no weights (*.safetensors); it is not a saved model")
        return "sha256:" + sha256(found)
    config = AutoConfig.from_pretrained(model, revision=revision)
    return f"hub:{getattr(config, '_commit_hash', None) or revision}"


def weights_mib(model: str) -> float:
    """Size of a local model's weight files in MiB; 0 for a hub id, whose size is not known without fetching it."""
    folder = Path(model)
    return sum(p.stat().st_size for pattern in WEIGHT_PATTERNS for p in folder.glob(pattern)) / 2**20


def base_parameters(model: Any) -> int:
    """Number of parameters of the model without adapters: the size that it has on the axis of model sizes."""
    return sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)


def adapter_id(adapter: str) -> str:
    """What identifies an adapter: the hash of its weights and configuration, or the hub id itself."""
    folder = Path(adapter)
    if not folder.is_dir():
        return f"hub:{adapter}"
    return "sha256:" + sha256(sorted(folder.glob("adapter_model.*")))


def check_adapter(adapter: str, model: str, weights: str, differs_accepted: bool) -> None:
    """Refuses an adapter that was trained on another base, by recorded weights where there are any, else by name."""
    from peft import PeftConfig

    if Path(adapter).is_dir() and not (Path(adapter) / "adapter_config.json").is_file():
        raise InputError(f"adapter folder {adapter} is no adapter: it has no adapter_config.json")
    try:
        base = PeftConfig.from_pretrained(adapter).base_model_name_or_path or ""
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"adapter {adapter} cannot be read: {_first(error)}") from error
    recorded = read_policy(Path(adapter)).get("base_weights")
    if recorded:
        if recorded != weights:
            raise InputError(f"adapter {adapter} was trained on other weights than {model} (its base was '{base}')")
    elif not differs_accepted and Path(base).name.lower() != Path(model).name.lower():
        raise InputError(
            f"adapter {adapter} was trained on '{base}', not on '{model}'; give that base as --model, or add "
            "--adapter_base_differs if they are the same weights under two names"
        )


def read_policy(folder: Path) -> dict[str, Any]:
    """policy.json of a checkpoint of ours; empty where there is none."""
    path = folder / POLICY_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _with_adapter(model: Any, adapter: str) -> Any:
    """Puts the adapter on and makes sure that every one of its tensors found its place."""
    from peft import PeftModel, get_peft_model_state_dict, load_peft_weights

    try:
        wrapped = PeftModel.from_pretrained(model, adapter)
        given = set(load_peft_weights(adapter, device="cpu"))
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise InputError(f"adapter {adapter} does not fit the model: {_first(error)}") from error
    expected = set(get_peft_model_state_dict(wrapped))
    if given != expected:
        odd = sorted(given ^ expected)
        raise InputError(f"adapter {adapter} does not fit the model: {len(odd)} tensors differ, such as {odd[0]}")
    return wrapped


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] if lines else type(error).__name__
