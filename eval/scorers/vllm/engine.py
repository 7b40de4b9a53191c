"""vLLM's offline engine as a scorer.

Every sequence before a candidate's token is one request. It asks for the raw log-probabilities of only the requested
next tokens (vLLM's logprob_token_ids: log-softmax in fp32 over the full vocabulary). Its beginning is read from the
prefix cache, which prompt_logprobs would not do. The engine runs in this process, and with several GPUs its workers end
when this process does. So whatever ends this process leaves no other behind, and batches are the same in every run.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import os
import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, GenerationConfig

from eval.errors import InputError, nearest
from eval.models import checkpoints
from eval.models.checkpoints import DescribedCheckpoint
from eval.models.checks import check_all_loaded
from eval.models.hub import first_lines
from eval.models.prompt_format import TURN_MARKS, Encoded, Format, answer_of, clean, encode, parts
from eval.runner.provenance import device_name, tokenizer_sha256
from eval.scorers.local.memory import keep_freed_memory
from eval.scorers.options import ScorerConfig
from eval.secrets import masked
from eval.types import Answer, Prompt

IN_FLIGHT = 512  # requests in the engine at once: more than fit into a batch, so that no batch is short
CPU_BLOCK = 32  # tokens of a block of the prefix cache: the fewest that vLLM's CPU kernels support
CPU_CACHE = 4 << 30  # the most bytes of keys and values on a CPU, where vLLM would take nearly all memory
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values that vLLM accepts for max_lora_rank
REFUSALS = (*checkpoints.UNREADABLE, TypeError, AssertionError, NotImplementedError, AttributeError)
"""What vLLM raises for a model or an argument that it does not support."""

Request = tuple[int, Sequence[int], Any]
"""(number, prompt tokens, vLLM's SamplingParams)"""


class VllmScorer:
    """Implements eval.types.Scorer with vLLM's engine. context: the most tokens of a dialogue with its answer."""

    def __init__(
        self, llm: Any, tokenizer: Any, style: Format, stop_ids: frozenset[int], options: dict[str, Any],
        adapter: Any = None,
    ) -> None:  # fmt: skip
        self.engine: Any = llm.llm_engine
        self.tokenizer = tokenizer
        self.style = style
        self.stop_ids = stop_ids
        self.options = options
        self.adapter = adapter
        self.config: Any = self.engine.vllm_config
        self.context = int(self.config.model_config.max_model_len)
        self.sampling_params: Any = import_module("vllm").SamplingParams
        self.tokens_input: Any = import_module("vllm.inputs").tokens_input
        # frees the model's memory with the scorer, for the next checkpoint of the same process
        weakref.finalize(self, self.engine.engine_core.shutdown)

    def describe(self) -> dict[str, Any]:
        """The fields of the transformers scorer (tier and kernels are None) and the engine's settings."""
        device = self.config.device_config.device
        return {
            "scorer": "vllm",
            "tokenizer_sha256": tokenizer_sha256(self.tokenizer),
            "format": self.style.name,
            "system_turn": self.style.system_turn,
            "tier": None,
            "tier_reason": "",
            "kernels": None,
            "dtype": str(self.config.model_config.dtype).removeprefix("torch."),
            "device": device.type,
            "device_name": device_name(device),
            "batch_tokens": self.config.scheduler_config.max_num_batched_tokens,
            "tensor_parallel_size": self.config.parallel_config.tensor_parallel_size,
            "max_model_len": self.context,
            "vllm_options": masked(self.options),
        }

    def score(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer]]:
        """Yields (index, Answer) as they are done."""
        encoded = encode(prompts, self.tokenizer, self.style)
        requested: dict[tuple[int, ...], set[int]] = {}
        users: dict[tuple[int, ...], set[int]] = {}
        for i, e in enumerate(encoded):
            for sequence, token in parts(e):
                requested.setdefault(sequence, set()).add(token)
                users.setdefault(sequence, set()).add(i)
        pending = [len({sequence for sequence, _ in parts(e)}) for e in encoded]
        sequences = sorted(requested)  # sorted: sequences with a common beginning share keys
        requests = (
            (n, s, self._scoring(sorted(requested[s]))) for n, s in enumerate(sequences) if self._check_fits(s, 1)
        )
        logprobs: dict[tuple[int, ...], dict[int, float]] = {}
        for number, output in self._run(requests):
            sequence = sequences[number]
            (next_logprobs,) = output.outputs[0].logprobs
            logprobs[sequence] = {token: next_logprobs[token].logprob for token in requested[sequence]}
            for i in sorted(users[sequence]):
                pending[i] -= 1
                if not pending[i]:
                    yield i, answer_of(encoded[i], logprobs)

    def _scoring(self, tokens: list[int]) -> Any:
        return self.sampling_params(temperature=0.0, max_tokens=1, logprob_token_ids=tokens, detokenize=False)

    def sample(self, prompts: Sequence[Prompt], seeds: Sequence[int], max_new_tokens: int) -> Iterator[tuple[int, str]]:
        """Samples at temperature 1 from the whole distribution, each prompt with its own seed."""
        encoded: list[Encoded] = encode([Prompt(p.turns) for p in prompts], self.tokenizer, self.style)
        requests = (
            (i, e.context, self._sampling(seeds[i], max_new_tokens))
            for i, e in enumerate(encoded)
            if self._check_fits(e.context, max_new_tokens)
        )
        for i, output in self._run(requests):
            yield i, clean(str(self.tokenizer.decode(output.outputs[0].token_ids, skip_special_tokens=True)))

    def _sampling(self, seed: int, max_new_tokens: int) -> Any:
        return self.sampling_params(
            temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0, seed=seed,
            max_tokens=max_new_tokens, stop_token_ids=sorted(self.stop_ids), ignore_eos=True,
            stop=list(TURN_MARKS) if self.style.name == "paper" else None,
        )  # fmt: skip

    def _check_fits(self, tokens: Sequence[int], new_tokens: int) -> bool:
        """Returns True or raises InputError: vLLM would silently cut a sample short."""
        if len(tokens) + new_tokens > self.context:
            raise InputError(
                f"a dialogue needs {len(tokens) + new_tokens} tokens, and vLLM was started for {self.context}; raise "
                "max_model_len in --vllm_options, or lower --cot_max_new_tokens"
            )
        return True

    def _run(self, requests: Iterable[Request]) -> Iterator[tuple[int, Any]]:
        """Yields (number, vLLM's output) of each finished request. At most IN_FLIGHT requests are in the engine."""
        queue, in_flight = iter(requests), set()
        try:
            while True:
                for number, tokens, parameters in islice(queue, IN_FLIGHT - len(in_flight)):
                    in_flight.add(str(number))
                    prompt = self.tokens_input(list(tokens))
                    self.engine.add_request(str(number), prompt, parameters, lora_request=self.adapter)
                if not in_flight:
                    return
                for output in self.engine.step():
                    if output.finished:
                        in_flight.remove(output.request_id)
                        yield int(output.request_id), output
        finally:
            self.engine.abort_request(sorted(in_flight))  # if the caller stops early


def start_engine(described: DescribedCheckpoint, style: Format, dtype: str, config: ScorerConfig) -> VllmScorer:
    """Starts the engine on the checkpoint.

    Raises:
        InputError: vLLM cannot be imported, or does not support the checkpoint or an option.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_LOGGING_STREAM"] = "ext://sys.stderr"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # it warns once for each converted tensor
    model, adapter = described.provenance["model"], described.provenance["adapter"]
    with stdout_to_stderr():
        try:
            vllm = import_module("vllm")
        except (ImportError, OSError, RuntimeError) as error:
            raise InputError(
                f"scorer vllm: vLLM cannot be imported here ({first_lines(error)}); `make vllm` makes an environment "
                "in which it can"
            ) from error
        given = config.vllm_arguments()
        _check_arguments(vllm, given)
        _check_device(config.device)
        try:
            llm = vllm.LLM(**_arguments(described, dtype, config), **_on_cpu(given), **given)
            llm.generate(
                {"prompt_token_ids": [0]}, vllm.SamplingParams(max_tokens=1), use_tqdm=False
            )  # errors show at the first step
        except REFUSALS as error:
            raise InputError(
                f"model {model} cannot be started by vLLM: {_cause(error)}; see --vllm_options, or use "
                "--scorer transformers"
            ) from error
        request = _adapter_request(llm, adapter) if adapter else None
    return VllmScorer(llm, described.tokenizer, style, _stop_ids(described), given, request)


def _arguments(described: DescribedCheckpoint, dtype: str, config: ScorerConfig) -> dict[str, Any]:
    provenance = described.provenance
    arguments: dict[str, Any] = {
        "model": provenance["model"], "revision": provenance["commit"], "tokenizer_revision": provenance["commit"],
        "trust_remote_code": provenance["trust_remote_code"], "dtype": dtype, "generation_config": "vllm",
        "logprobs_mode": "raw_logprobs", "tensor_parallel_size": config.tensor_parallel_size,
    }  # fmt: skip
    if dtype != "float32" and getattr(described.config, "quantization_config", None) is None:
        arguments["hf_overrides"] = {"head_dtype": "float32"}  # else logits are rounded to half precision
    if config.most_batch_tokens is not None:
        arguments["max_num_batched_tokens"] = config.most_batch_tokens
    if provenance["adapter"]:
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _lora_rank(provenance["adapter"])}
    return arguments


def _on_cpu(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments that `given` omits: on a CPU, better values than vLLM's defaults; everywhere, prefix caching."""
    arguments: dict[str, Any] = {"enable_prefix_caching": True}
    if _platform().is_cpu():
        import psutil

        keep_freed_memory()
        # vLLM's runner cannot reset a CPU's seeded generator after a chunk of a prompt, so prompts are not chunked
        arguments |= {"block_size": CPU_BLOCK, "enforce_eager": True, "enable_chunked_prefill": False}
        cache_sized = {"gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override"} & given.keys()
        if not cache_sized and not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
            arguments["kv_cache_memory_bytes"] = min(CPU_CACHE, psutil.virtual_memory().available // 4)
    return {name: value for name, value in arguments.items() if name not in given}


def _platform() -> Any:
    return import_module("vllm.platforms").current_platform


def _check_arguments(vllm: Any, given: dict[str, Any]) -> None:
    accepted = {f.name for f in dataclasses.fields(vllm.EngineArgs)} | {
        *inspect.signature(vllm.LLM.__init__).parameters
    }
    for name in given:
        if name not in accepted - {"self", "kwargs"}:
            raise InputError(f"vllm_options: vLLM has no argument '{name}'{nearest(name, sorted(accepted))}")


def _check_device(device: str) -> None:
    device_type = _platform().device_type
    if device not in ("auto", device_type):
        raise InputError(
            f"device '{device}': this vLLM runs on {device_type} and takes the first devices that it sees; use "
            "--device auto, and CUDA_VISIBLE_DEVICES to choose among GPUs"
        )


def _cause(error: BaseException) -> str:
    """The first lines of an error; of a list of validation errors, the message of the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and "validation error" in lines[0]:
        return lines[-2 if lines[-1].startswith("For further information") else -1].partition(" [type=")[0]
    return first_lines(error)


def _lora_rank(adapter: str) -> int:
    from peft import PeftConfig

    config: Any = PeftConfig.from_pretrained(adapter, **checkpoints.adapter_options(adapter))
    rank = max([config.r, *(config.rank_pattern or {}).values()])
    if rank > LORA_RANKS[-1]:
        raise InputError(adapter_error(adapter, f"rank {rank}, and the highest that it takes is {LORA_RANKS[-1]}"))
    return next(r for r in LORA_RANKS if r >= rank)


def _adapter_request(llm: Any, adapter: str) -> Any:
    """Loads the adapter now, so that an adapter that does not fit is reported before anything is scored."""
    from huggingface_hub import snapshot_download

    options = checkpoints.adapter_options(adapter)
    folder = adapter if Path(adapter).is_dir() else snapshot_download(adapter, **options)
    request = import_module("vllm.lora.request").LoRARequest("adapter", 1, str(Path(folder).resolve()))
    try:
        llm.llm_engine.add_lora(request)
    except REFUSALS as error:
        raise InputError(adapter_error(adapter, first_lines(error))) from error
    return request


def with_context(described: DescribedCheckpoint, context: Any) -> DescribedCheckpoint:
    """A copy of the description with at most `context` tokens of context, for the check of the questions."""
    if not isinstance(context, int) or context < 1:
        return described
    config = copy.deepcopy(described.config)
    text = config.get_text_config()
    text.max_position_embeddings = min(context, getattr(text, "max_position_embeddings", None) or context)
    return dataclasses.replace(described, config=config)


def count_parameters(described: DescribedCheckpoint) -> int | None:
    """The base's number of parameters, counted as in eval.models.checkpoints. No weights are read.

    Raises:
        InputError: The checkpoint lacks weights. vLLM silently leaves the missing part of a merged tensor unset.
    """
    provenance = described.provenance
    try:
        pair: Any = AutoModelForCausalLM.from_pretrained(
            provenance["model"], revision=provenance["commit"], trust_remote_code=provenance["trust_remote_code"],
            device_map="meta", output_loading_info=True,
        )  # fmt: skip
    except checkpoints.UNREADABLE as error:
        why = checkpoints.load_error(error, provenance["model"], provenance["revision"])
        raise InputError(f"model {provenance['model']} cannot be loaded: {why}") from error
    empty_model, loading_info = pair
    check_all_loaded(loading_info, provenance["model"])
    return checkpoints.base_parameters(empty_model)


def _stop_ids(described: DescribedCheckpoint) -> frozenset[int]:
    """The ends of sequence of the model's generation settings (else of its configuration) and of the tokenizer."""
    provenance = described.provenance
    try:
        configured: Any = GenerationConfig.from_pretrained(
            provenance["model"], revision=provenance["commit"]
        ).eos_token_id
    except OSError:  # the model has no generation settings
        configured = getattr(described.config.get_text_config(), "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(int(i) for i in [*ids, described.tokenizer.eos_token_id] if i is not None)


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirects standard output to standard error, also for programs that are started meanwhile."""
    sys.stdout.flush()
    saved_stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved_stdout, 1)
        os.close(saved_stdout)


def adapter_error(adapter: str, why: str) -> str:
    """The error line for an adapter that vLLM cannot serve."""
    return (
        f"adapter {adapter} cannot be served by vLLM ({why}); merge it into its base (peft's merge_and_unload, then "
        "save_pretrained) and give the merged folder as --model, or use --scorer transformers"
    )
