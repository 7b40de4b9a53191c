"""Loads a policy with its provenance from a hub id, model folder or GGUF file, with or without a LoRA adapter.

Code in a repository is never executed without --trust_remote_code. What cannot be loaded with certainty is refused in
one line, since a wrong score is worse than none: every weight must be in the checkpoint (eval.models.checks), and an
adapter must fit its base by recorded weights or name, and by every tensor.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from threading import Lock
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerBase

from eval.data.readers import sha256
from eval.errors import InputError
from eval.files import read_json
from eval.models.checks import check_all_loaded, check_language_model, check_vocabulary
from eval.models.hub import commit_of, explain_hub_error, first_lines

log = logging.getLogger(__name__)

POLICY_FILE = "policy.json"
"""The trainers write it into a checkpoint: model (its base), base_weights (hash), algorithm, seed, rlhf_step ..."""
DTYPES = ("auto", "float32", "bfloat16", "float16")
WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")
UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError, UnpicklingError)
"""Errors of transformers and peft for files that are missing, damaged, of another kind, or need another package."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_SETS = ("target_modules", "exclude_modules", "modules_to_save", "target_parameters", "layers_to_transform")
"""Lists in the adapter's configuration whose order has no meaning."""
ADAPTER_PLACE = ("base_model_name_or_path", "revision", "peft_version", "auto_mapping")
"""Its entries on where the base was stored and which program wrote it."""
ONE_AT_A_TIME = Lock()
"""Held while a model is loaded. transformers then replaces its own functions and later restores the old ones. Of two
loads at once, one restores the other's; models loaded later have random memory in place of a tied head."""


@dataclass
class Checkpoint:
    """A loaded policy: the model in eval mode, its tokenizer, and the provenance that every result records."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass
class DescribedCheckpoint:
    """A checkpoint before its weights are read. provenance: all of the loaded one's but model_params."""

    config: Any
    tokenizer: PreTrainedTokenizerBase
    provenance: dict[str, Any]


def load_checkpoint(
    model: str,
    adapter: str | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    adapter_base_differs: bool = False,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Loads a causal language model for evaluation: describe_checkpoint followed by load."""
    return load(describe_checkpoint(model, adapter, revision, dtype, adapter_base_differs, trust_remote_code), device)


def describe_checkpoint(
    model: str,
    adapter: str | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    adapter_base_differs: bool = False,
    trust_remote_code: bool = False,
) -> DescribedCheckpoint:
    """Describes a checkpoint without reading its weights into memory.

    dtype auto is the one that the trainers recorded, else the one that the weights are stored in. Raises InputError for
    a path or hub id that does not exist, no causal language model, or an adapter that does not belong to it.
    """
    commit = commit_of(model, revision) if is_hub_id(model) else None
    config = check_model(model, commit or revision, trust_remote_code)
    check_language_model(config, model)
    weights = weights_id(model, commit)
    if adapter:
        check_adapter(adapter, model, weights, adapter_base_differs)
    tokenizer = load_tokenizer(model, commit, trust_remote_code)
    check_vocabulary(tokenizer, config, model)
    provenance = {
        "model": model,
        "revision": revision,
        "commit": commit,
        "weights": weights,
        "config_sha256": config_sha256(config),
        "adapter": adapter,
        "adapter_weights": adapter_id(adapter) if adapter else None,
        "dtype_asked": _trained_dtype(Path(adapter or model)) if dtype == "auto" else dtype,
        "trust_remote_code": trust_remote_code,
    }
    return DescribedCheckpoint(config, tokenizer, provenance)


def load(described: DescribedCheckpoint, device: str = "auto") -> Checkpoint:
    """Reads the weights and puts the model on the device. Raises InputError unless all of it loads."""
    provenance, chosen = described.provenance, choose_device(device)
    model, adapter = provenance["model"], provenance["adapter"]
    name, options = _source(model, provenance["commit"], provenance["trust_remote_code"])
    if "gguf_file" in options:  # dequantised, it runs anywhere; packed weights need kernels from the hub
        options["quantization_config"] = GgufConfig(dequantize=True)
    try:
        with ONE_AT_A_TIME:
            pair: Any = AutoModelForCausalLM.from_pretrained(
                name, dtype=provenance["dtype_asked"], output_loading_info=True, **options
            )
    except UNREADABLE as error:
        raise InputError(
            f"model {model} cannot be loaded: {load_error(error, model, provenance['revision'])}"
        ) from error
    loaded, loading_info = pair
    check_all_loaded(loading_info, model)
    parameters = base_parameters(loaded)
    if parameters is None:
        log.warning("model %s: its size is not known (quantised weights); model_params is recorded as null", model)
    if adapter:
        loaded = _with_adapter(loaded, adapter)
    try:
        loaded.to(chosen).eval()
    except (RuntimeError, ValueError) as error:
        raise InputError(f"model {model} cannot be put on device {chosen}: {first_lines(error)}") from error
    return Checkpoint(loaded, described.tokenizer, {**provenance, "model_params": parameters})


def is_hub_id(model: str) -> bool:
    """Whether `model` has the form of a hub id and no folder or file has that name."""
    path = Path(model)
    if path.exists() or model.startswith((".", "/", "~")) or "\\" in model or path.suffix == ".gguf":
        return False
    return "/" not in model or (model.count("/") == 1 and not path.parent.is_dir())


def _source(model: str, revision: str | None, trust_remote_code: bool) -> tuple[str, dict[str, Any]]:
    """Arguments for transformers' from_pretrained."""
    if Path(model).is_file():
        return str(Path(model).parent), {"gguf_file": Path(model).name}
    return model, {"revision": revision, "trust_remote_code": trust_remote_code}


def choose_device(device: str) -> torch.device:
    """The device; 'auto' is the first GPU, else the CPU. Raises InputError if it is not available."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{device}' is not there ({first_lines(error)}); use auto or cpu") from error
    return chosen


def check_model(model: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Reads the model's configuration. Raises InputError if it is missing or no model."""
    path = Path(model)
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(f"folder {model} is {_no_model(path)}")
    if path.is_file() and path.suffix != ".gguf":
        raise InputError(f"model {model} is a file, and no GGUF file; give a model folder, a hub id or a .gguf file")
    if not path.exists() and not is_hub_id(model):
        what = "file" if path.suffix == ".gguf" else "folder"
        made = path.name == "smollm2-135m-instruct"
        raise InputError(
            f"model {model}: there is no such {what}; "
            f"{'`make model` builds it' if made else 'give a model folder, a GGUF file or a hub id'}"
        )
    at = revision if path.exists() else commit_of(model, revision)
    name, options = _source(model, at, trust_remote_code)
    try:
        return AutoConfig.from_pretrained(name, **options)
    except UNREADABLE as error:
        raise InputError(f"model {model} cannot be read: {load_error(error, model, revision)}") from error


def _no_model(folder: Path) -> str:
    if (folder / ADAPTER_CONFIG).is_file():
        return "a LoRA adapter: give its base as --model and the folder as --adapter"
    if gguf_files := sorted(folder.glob("*.gguf")):
        return f"no model folder; give a GGUF file in it: {', '.join(map(str, gguf_files))}"
    return "no model: it has no config.json"


def load_tokenizer(model: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Loads the model's tokenizer. It pads on the left, as generation needs."""
    name, options = _source(model, revision, trust_remote_code)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left", **options)
    except UNREADABLE as error:
        raise InputError(f"model {model} has no tokenizer that can be loaded: {load_error(error, model)}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def weights_id(model: str, revision: str | None = None) -> str:
    """Identifies weights: 'hub:<commit>', or 'sha256:...' of a GGUF file (as sha256sum prints it) or of a folder's
    files.
    """
    path = Path(model)
    if path.is_file():
        with path.open("rb") as handle:
            return "sha256:" + hashlib.file_digest(handle, "sha256").hexdigest()
    if path.is_dir():
        weight_files = sorted(p for pattern in WEIGHT_PATTERNS for p in path.glob(pattern))
        if not weight_files:
            raise InputError(f"folder {model} has no weights (*.safetensors); it is not a saved model")
        return "sha256:" + sha256(weight_files)
    return f"hub:{commit_of(model, revision)}"


def config_sha256(config: Any) -> str:
    """Checksum of a configuration, without where it was stored and which program wrote it."""
    content = {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=_as_json).encode()).hexdigest()


def _as_json(value: Any) -> Any:
    """A set as its members' sorted texts, which are the same in every process; any other value as its text."""
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


def weights_mib(model: str, revision: str | None, dtype: str, kind: Any = AutoModelForCausalLM) -> float:
    """Size in MiB of the model's weights when saved in `dtype` (auto: the stored one).

    Reads only the configuration, so a hub model need not be downloaded. kind: transformers' class for the model. Raises
    InputError if the model does not exist or is not of this kind.
    """
    config = check_model(model, revision)
    stored = config.dtype or torch.float32
    try:
        with torch.device("meta"):
            empty = kind.from_config(config, dtype=stored if dtype == "auto" else getattr(torch, dtype))
    except ValueError as error:
        raise InputError(f"model {model} cannot be made as {kind.__name__}: {first_lines(error)}") from error
    return sum(p.numel() * p.element_size() for p in empty.parameters()) / 2**20


def base_parameters(model: Any) -> int | None:
    """Number of parameters without adapters: the model's place on the axis of model sizes.

    None if it cannot be counted: quantised weights may be packed, several to a number.
    """
    if getattr(model.config, "quantization_config", None) is not None:
        return None
    return sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)


def adapter_id(adapter: str) -> str:
    """Identifies an adapter: a hash of its weights and of its configuration, or the commit of its hub repository.

    An adapter that is saved again or moved keeps its hash. peft writes sets of names in an order that differs between
    processes, so they are sorted; paths and peft's version are left out. Raises InputError for a damaged configuration.
    """
    folder = Path(adapter)
    if not folder.is_dir():
        return f"hub:{commit_of(adapter)}"
    config = read_json(folder / ADAPTER_CONFIG, "save the adapter again") or {}
    content = {k: sorted(v, key=str) if k in ADAPTER_SETS and isinstance(v, list) else v for k, v in config.items()}
    content = {k: v for k, v in content.items() if k not in ADAPTER_PLACE and v not in (None, False, "", [], {})}
    digest = hashlib.sha256(sha256(sorted(folder.glob("adapter_model.*"))).encode())
    digest.update(json.dumps(content, sort_keys=True).encode())
    return "sha256:" + digest.hexdigest()


def check_adapter(adapter: str, model: str, weights: str, differs_accepted: bool) -> None:
    """Raises InputError for an adapter trained on another base, by recorded weights if any, else by name."""
    from peft import PeftConfig

    if Path(adapter).is_dir() and not (Path(adapter) / ADAPTER_CONFIG).is_file():
        raise InputError(f"adapter folder {adapter} is no adapter: it has no adapter_config.json")
    try:
        config = PeftConfig.from_pretrained(adapter, **adapter_options(adapter))
    except (*UNREADABLE, TypeError) as error:
        raise InputError(f"adapter {adapter} cannot be read: {load_error(error, adapter)}") from error
    if getattr(config, "is_prompt_learning", False):
        raise InputError(f"adapter {adapter} is {config.peft_type}, which adds tokens to every prompt; give a LoRA")
    base = config.base_model_name_or_path or ""
    recorded = read_policy(Path(adapter)).get("base_weights")
    if recorded and recorded not in ("hub:None", "hub:main"):  # earlier versions did not record a hub model's commit
        if recorded != weights:
            raise InputError(f"adapter {adapter} was trained on other weights than {model} (its base was '{base}')")
    elif not differs_accepted and Path(base).name.lower() != Path(model).name.lower():
        raise InputError(
            f"adapter {adapter} was trained on '{base}', not on '{model}'; give that base as --model, or add "
            "--adapter_base_differs if they are the same weights under two names"
        )


def read_policy(folder: Path) -> dict[str, Any]:
    """policy.json of a checkpoint; empty if there is none. Raises InputError if it is damaged."""
    return read_json(folder / POLICY_FILE) or {}


def _trained_dtype(checkpoint: Path) -> str:
    """The policy's dtype in training by policy.json, else 'auto'. A LoRA's base may be stored in another."""
    recorded = read_policy(checkpoint).get("dtype") or "auto"
    if recorded not in DTYPES:
        raise InputError(
            f"{checkpoint / POLICY_FILE}: dtype must be {', '.join(DTYPES)}, not '{recorded}'; say in which the policy "
            "was trained by --dtype"
        )
    return recorded


def _with_adapter(model: Any, adapter: str) -> Any:
    """Adds the adapter to the model and checks that every one of its tensors was used."""
    from peft import PeftModel, get_peft_model_state_dict, load_peft_weights

    try:
        wrapped = PeftModel.from_pretrained(model, adapter, **adapter_options(adapter))
        given = set(load_peft_weights(adapter, device="cpu", **adapter_options(adapter)))
    except UNREADABLE as error:
        raise InputError(f"adapter {adapter} does not fit the model: {load_error(error, adapter)}") from error
    expected = set(get_peft_model_state_dict(wrapped))
    if given != expected:
        odd = sorted(given ^ expected)
        raise InputError(f"adapter {adapter} does not fit the model: {len(odd)} tensors differ, such as {odd[0]}")
    return wrapped


def adapter_options(adapter: str) -> dict[str, Any]:
    """Arguments for peft's from_pretrained: the adapter's commit, if it is on the hub."""
    return {} if Path(adapter).is_dir() else {"revision": commit_of(adapter)}


def load_error(error: BaseException, name: str, revision: str | None = None) -> str:
    """Describes an error of from_pretrained in one line."""
    if "trust_remote_code" in str(error):
        return (
            "it comes with code of its own that would have to be executed; read that code, and if you trust it add "
            "--trust_remote_code"
        )
    return first_lines(error) if Path(name).exists() else explain_hub_error(error, name, revision)
