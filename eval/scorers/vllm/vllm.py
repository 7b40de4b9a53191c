"""--scorer vllm: a checkpoint in vLLM's offline engine (eval.scorers.vllm.engine), where vLLM is installed.

Identity, format and the check of the questions are those of the transformers scorer. What vLLM would compute from other
weights or in another dtype is refused with a one-line error.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.errors import InputError
from eval.scorers.vllm.engine import adapter_error

if TYPE_CHECKING:
    from eval.models.checkpoints import DescribedCheckpoint
    from eval.models.target import Target
    from eval.runner.plan import Plan
    from eval.scorers.options import ScorerConfig
    from eval.scorers.registry import OpenedTarget
    from eval.types import Scorer


def open_target(target: Target, config: ScorerConfig, plan: Plan) -> OpenedTarget:
    """Implements eval.scorers.registry.open_target.

    Raises:
        InputError: vLLM is not installed, or does not support the checkpoint.
    """
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
    from eval.scorers.local import describe as local
    from eval.scorers.registry import OpenedTarget

    described, style, provenance = local.describe(target, config)
    dtype = stored_dtype(described, target.model)
    if target.adapter:
        check_adapter(target.adapter)

    def load_scorer() -> tuple[Scorer, dict[str, Any]]:
        from eval.scorers.vllm import engine as vllm_engine

        context = config.vllm_arguments().get("max_model_len")
        local.check(vllm_engine.with_context(described, context), style, target, config, plan)
        n_parameters = vllm_engine.count_parameters(described)
        scorer = vllm_engine.start_engine(described, style, dtype, config)
        if scorer.context != context:  # vLLM's limit may be lower than the configuration's
            local.check(vllm_engine.with_context(described, scorer.context), style, target, config, plan)
        return scorer, {**described.provenance, "model_params": n_parameters}

    return OpenedTarget(provenance, load_scorer)


def stored_dtype(described: DescribedCheckpoint, model: str) -> str:
    """The dtype in which the transformers scorer would load the model.

    Returns:
        The value of --dtype, or for auto the dtype in the model's configuration (vLLM's own auto turns float32 into
        float16).

    Raises:
        InputError: --dtype is auto and the configuration names no dtype.
    """
    requested = described.provenance["dtype_asked"]
    if requested != "auto":
        return requested
    stored = getattr(described.config, "dtype", None)
    if stored is None:
        raise InputError(
            f"model {model}: its configuration does not say in which dtype it is stored; say in which it is to be "
            "computed: --dtype float32, bfloat16 or float16"
        )
    return str(stored).removeprefix("torch.")


def check_adapter(adapter: str) -> None:
    """Refuses an adapter of which vLLM would silently ignore a part. vLLM itself refuses the rest on loading.

    Raises:
        InputError: The adapter is not a plain LoRA.
    """
    from peft import PeftConfig

    from eval.models.checkpoints import adapter_options

    config: Any = PeftConfig.from_pretrained(adapter, **adapter_options(adapter))
    parts = {
        f"type {getattr(config.peft_type, 'value', config.peft_type)}": config.peft_type != "LORA",
        "modules_to_save": getattr(config, "modules_to_save", None),
        "biases": getattr(config, "bias", "none") != "none",
        "trainable_token_indices": getattr(config, "trainable_token_indices", None),
        "target_parameters": getattr(config, "target_parameters", None),
    }
    for part, present in parts.items():
        if present:
            raise InputError(adapter_error(adapter, part))
