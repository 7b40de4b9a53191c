"""The options of the scorers, which `eval run` inherits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import yaml

from eval.config import EvaluationConfig
from eval.errors import InputError, nearest

METHODS = ("echo", "top", "sampling")


@dataclass
class EndpointOptions:
    """The options of --scorer endpoint."""

    base_url: str | None = field(
        default=None, metadata={"help": "endpoint: address of the server's API, such as http://host:8000/v1"}
    )
    api_key_env: str = field(
        default="OPENAI_API_KEY", metadata={"help": "endpoint: environment variable that holds the key, if one is set"}
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "endpoint: folder or hub id of the model's tokenizer; prompts then go as its token ids"},
    )
    answer_method: str = field(
        default="auto",
        metadata={"help": f"endpoint: auto (the first that the server can do), or {', '.join(METHODS)}"},
    )
    answer_samples: int = field(
        default=100, metadata={"help": "endpoint: answers sampled for each question, where that is the method"}
    )
    concurrency: int = field(default=8, metadata={"help": "endpoint: requests at a time"})
    timeout: float = field(default=300.0, metadata={"help": "endpoint: seconds that a request may take"})
    retries: int = field(default=6, metadata={"help": "endpoint: how often a request is tried again"})


def check_endpoint(config: ScorerConfig, adapter: str | None, revision: list[str]) -> None:
    """Raises InputError for options that do not go with --scorer endpoint, or only with it, or not with each other."""
    defaults = EndpointOptions()
    given = [name for name in vars(defaults) if getattr(config, name) != getattr(defaults, name)]
    if config.scorer != "endpoint":
        if given:
            raise InputError(f"--{given[0]} belongs to --scorer endpoint, and the scorer is {config.scorer}")
        return
    if config.base_url is None:
        raise InputError("scorer endpoint needs --base-url, the address of the server's API: http://host:8000/v1")
    check_url(config.base_url)
    meaningless = {
        "adapter": (adapter is not None, "an adapter that the server has loaded is a --model of its own there"),
        "revision": (bool(revision), "which weights are served is the server's to say"),
        "dtype": (config.dtype != "auto", "the server has the weights in a dtype of its own"),
        "device": (config.device != "auto", "the model is on the server"),
        "batch_tokens": (
            config.batch_tokens != "auto",
            "the server makes its batches; --concurrency bounds the requests at a time",
        ),
    }
    for name, (given, why) in meaningless.items():
        if given:
            raise InputError(f"--{name} does not go with --scorer endpoint: {why}; leave it out")
    if config.system_turn != "keep" and not config.tokenizer:
        raise InputError("--system_turn does not go with --scorer endpoint without --tokenizer: the server's template")
    if config.answer_method not in ("auto", *METHODS):
        raise InputError(f"answer_method must be auto or one of {', '.join(METHODS)}, not '{config.answer_method}'")
    for name in ("answer_samples", "concurrency"):
        if getattr(config, name) < 1:
            raise InputError(f"{name} must be at least 1, not {getattr(config, name)}")
    if config.retries < 0 or not 0 < config.timeout < math.inf:
        raise InputError(f"retries must be at least 0 and timeout above 0, not {config.retries} and {config.timeout}")
    if config.precision is not None and config.answer_method == "sampling":
        raise InputError(NO_PRECISION)


NO_PRECISION = (
    "--precision does not go with sampled answers: its rule takes probabilities as known; leave it out, or serve the "
    "model where log-probabilities can be had"
)


def check_url(url: str) -> None:
    """InputError, which does not repeat it, for an address that is none or has credentials in it."""
    import httpx

    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        httpx.URL(url).host.encode("idna")
    except (ValueError, httpx.InvalidURL):
        raise InputError("--base-url is no address; it is written http://host:8000/v1") from None
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise InputError(
            "--base-url must not hold user:password@; put the key into the variable that --api_key_env names"
        )
    if parts.query or parts.fragment:
        raise InputError(
            "--base-url must not have a ?query or #fragment; a key goes into the variable of --api_key_env"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise InputError("--base-url must begin with http:// or https:// and a host, such as http://host:8000/v1")


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


SCORERS = {
    "transformers": "eval.scorers.local.transformers",
    "vllm": "eval.scorers.vllm.vllm",
    "endpoint": "eval.scorers.endpoint.endpoint",
}
"""The values of --scorer, each with its module."""


@dataclass
class ScorerConfig(EvaluationConfig, VllmOptions, EndpointOptions):
    """What a scorer reads: the evaluation, how the model is loaded, and the options of the scorer itself."""

    adapter_base_differs: bool = field(
        default=False, metadata={"help": "accept an adapter whose recorded base has another name than --model"}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "execute code that the model's repository brings along; read it first"}
    )
    dtype: str = field(default="auto", metadata={"help": "auto (as stored), float32, bfloat16 or float16"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:0 ..."})
    scorer: str = field(default="transformers", metadata={"help": f"what asks the model: {', '.join(SCORERS)}"})

    def __post_init__(self) -> None:
        super().__post_init__()
        VllmOptions.__post_init__(self)
        given = [name for name, default in vars(VllmOptions()).items() if getattr(self, name) != default]
        if given and self.scorer != "vllm":
            raise InputError(f"--{given[0]} belongs to --scorer vllm, and the scorer is {self.scorer}")
        if self.scorer not in SCORERS:
            raise InputError(
                f"scorer must be one of {', '.join(SCORERS)}, not '{self.scorer}'{nearest(self.scorer, SCORERS)}"
            )
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise InputError(f"dtype must be auto, float32, bfloat16 or float16, not '{self.dtype}'")
