"""--scorer vllm: a checkpoint asked through vLLM's offline engine (eval.scorers.vllm_engine), where vLLM is installed.

Identity, format and the check of the questions are those of the transformers scorer; what vLLM would compute otherwise
than from these weights in this dtype is refused in one line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from eval.config import InputError

if TYPE_CHECKING:
    from eval.checkpoints import Described
    from eval.plan import Plan
    from eval.records import Scorer
    from eval.run_config import RunConfig
    from eval.scorers.opening import Opened
    from eval.targets import Target

GIVEN = {
    "model": "--model", "tokenizer": "--model", "revision": "--revision", "tokenizer_revision": "--revision",
    "code_revision": "--revision", "dtype": "--dtype", "trust_remote_code": "--trust_remote_code",
    "tensor_parallel_size": "--tensor_parallel_size", "max_num_batched_tokens": "--batch_tokens",
    "enable_lora": "--adapter", "max_lora_rank": "--adapter", "max_loras": "--adapter",
}  # fmt: skip
"""Arguments of vLLM's that an option of `eval run` gives."""
OTHER_NUMBERS = (
    "model_weights", "load_format", "config_format", "hf_config_path", "hf_overrides", "model_class_overrides",
    "model_loader_extra_config", "ignore_patterns", "quantization", "quantization_config", "kv_cache_dtype",
    "kv_cache_dtype_skip_layers", "lora_dtype", "lora_target_modules", "default_mm_loras", "disable_sliding_window",
    "runner", "convert", "pooler_config", "tokenizer_mode", "skip_tokenizer_init", "generation_config",
    "override_generation_config", "logprobs_mode", "max_logprobs", "logits_processors", "watermark_config",
    "diffusion_config", "speculative_config", "spec_method", "spec_model", "spec_tokens", "return_sampling_mask",
    "enable_trace_replay", "worker_cls", "worker_extension_cls", "scheduler_cls", "additional_config",
)  # fmt: skip
"""Arguments by which other numbers than this checkpoint's would come out, or numbers that are not read as they are."""


@dataclass
class VllmOptions:
    """What `eval run --scorer vllm` takes beside the options of every scorer."""

    tensor_parallel_size: int = field(
        default=1, metadata={"help": "scorer vllm: number of GPUs that the model is spread over"}
    )
    vllm_options: str = field(
        default="{}",
        metadata={"help": """scorer vllm: further arguments of vllm.LLM, JSON or YAML: '{"max_model_len": 4096}'"""},
    )

    def __post_init__(self) -> None:
        if self.tensor_parallel_size < 1:
            raise InputError(f"tensor_parallel_size must be at least 1, not {self.tensor_parallel_size}")
        for name in self.vllm_arguments():
            if name in GIVEN:
                raise InputError(f"vllm_options: {name} is given by {GIVEN[name]}; leave it out")
            if name in OTHER_NUMBERS:
                raise InputError(f"vllm_options: {name} is not taken, since it could change the numbers; leave it out")

    def vllm_arguments(self) -> dict[str, Any]:
        """--vllm_options as a mapping. Raises InputError where it is none."""
        try:
            found = yaml.safe_load(self.vllm_options)
        except yaml.YAMLError:
            found = None
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
            raise InputError(
                f"vllm_options must be a mapping of vllm.LLM's arguments, such as '{{\"max_model_len\": 4096}}', "
                f"not '{self.vllm_options[:80]}'"
            )
        return found


def open_target(target: Target, config: RunConfig, planned: Plan) -> Opened:
    """eval.scorers.opening.open_target. Raises InputError for what vLLM is not there for, or cannot take."""
    if find_spec("vllm") is None:
        raise InputError(
            "scorer vllm: vLLM is not installed in this environment; `make vllm` makes .venv-vllm (for a CPU; "
            "`make vllm VLLM=vllm` for a GPU): run .venv-vllm/bin/python -m eval run ..., or use --scorer transformers"
        )
    if Path(target.model).is_file():
        raise InputError(
            f"model {target.model}: a GGUF file is not read by --scorer vllm; give a model folder or a hub id, or use "
            "--scorer transformers"
        )
    from eval.scorers import local
    from eval.scorers.opening import Opened

    described, style, known = local.describe(target, config)
    dtype = stored_dtype(described, target.model)
    if target.adapter:
        check_adapter(target.adapter)

    def load_scorer() -> tuple[Scorer, dict[str, Any]]:
        from eval.scorers import vllm_engine

        context = config.vllm_arguments().get("max_model_len")
        local.check(vllm_engine.shortened(described, context), style, target, config, planned)
        size = vllm_engine.parameters(described)
        scorer = vllm_engine.start(described, style, dtype, config)
        if scorer.context != context:  # vLLM's own limit may be lower than the one in the model's configuration
            local.check(vllm_engine.shortened(described, scorer.context), style, target, config, planned)
        return scorer, {**described.provenance, "model_params": size}

    return Opened(known, load_scorer)


def stored_dtype(described: Described, model: str) -> str:
    """The dtype in which the transformers scorer would have the model: the one asked for, for auto the one in its
    configuration (vLLM's own auto makes float16 of float32). Raises InputError where that names none.
    """
    asked = described.provenance["dtype_asked"]
    if asked != "auto":
        return asked
    stored = getattr(described.config, "dtype", None)
    if stored is None:
        raise InputError(
            f"model {model}: its configuration does not say in which dtype it is stored; say in which it is to be "
            "computed: --dtype float32, bfloat16 or float16"
        )
    return str(stored).removeprefix("torch.")


def check_adapter(adapter: str) -> None:
    """InputError for an adapter of which vLLM would leave out a part; the rest it refuses itself when it is loaded."""
    from peft import PeftConfig

    from eval.checkpoints import adapter_options

    config: Any = PeftConfig.from_pretrained(adapter, **adapter_options(adapter))
    parts = {
        f"type {getattr(config.peft_type, 'value', config.peft_type)}": config.peft_type != "LORA",
        "modules_to_save": getattr(config, "modules_to_save", None),
        "biases": getattr(config, "bias", "none") != "none",
        "trainable_token_indices": getattr(config, "trainable_token_indices", None),
        "target_parameters": getattr(config, "target_parameters", None),
    }
    for part, there in parts.items():
        if there:
            raise InputError(not_served(adapter, part))


def not_served(adapter: str, why: str) -> str:
    """The line for an adapter that vLLM cannot serve."""
    return (
        f"adapter {adapter} cannot be served by vLLM ({why}); merge it into its base (peft's merge_and_unload, then "
        "save_pretrained) and give the merged folder as --model, or use --scorer transformers"
    )
