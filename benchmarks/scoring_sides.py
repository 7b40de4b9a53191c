"""The two sides of the scoring benchmark, ours and lm-eval with Hugging Face's generate, and the plain reference.

Each side prepares a job that is then timed. Ours starts from prompts and includes their encoding. lm-eval's starts from
rendered texts and covers its request phase: encoding, forward passes, log-softmax, gathering.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from benchmarks.scoring_workloads import encoded
from eval.models.checkpoints import load_checkpoint
from eval.models.prompt_format import Encoded, choose_format, render
from eval.scorers.local import transformers as scorer_module
from eval.scorers.local.transformers import TransformersScorer
from eval.types import Prompt

Scores = list[np.ndarray]
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
NEVER = "\x00never"  # a text that no model writes


class Ours:
    """eval.scorers.local.transformers, over a model of its own."""

    name = "ours"

    def __init__(self, model: str, dtype: str, style: str) -> None:
        self.checkpoint = load_checkpoint(model, dtype=dtype, device="cpu")
        self.scorer = TransformersScorer(self.checkpoint.model, self.checkpoint.tokenizer, style=style)

    def prepare(self, prompts: Sequence[Prompt]) -> Callable[[], Scores]:
        """Returns a job that scores the prompts and returns each one's log-probabilities, in their order."""

        def job() -> Scores:
            answers = dict(self.scorer.score(prompts))
            return [np.asarray(answers[i].logprobs) for i in range(len(prompts))]

        return job

    def sampling(self, prompts: Sequence[Prompt], length: int, seed: int) -> Callable[[], list[str]]:
        """Returns a job that samples exactly `length` tokens after each prompt."""
        seeds = [seed * len(prompts) + k for k in range(len(prompts))]

        def job() -> list[str]:
            with endless(self.scorer):
                texts = dict(self.scorer.sample(prompts, seeds, length))
            return [texts[i] for i in range(len(prompts))]

        return job


@contextmanager
def endless(scorer: Any) -> Iterator[None]:
    """Removes all that ends a sample early from the scorer: stop tokens and the marks of a next turn."""
    config = scorer.model.generation_config
    saved = config.eos_token_id, scorer_module.TURN_MARKS, getattr(scorer, "stop_ids", None)
    config.eos_token_id, scorer_module.TURN_MARKS = None, (NEVER,)
    if hasattr(scorer, "stop_ids"):
        scorer.stop_ids = frozenset()
    try:
        yield
    finally:
        config.eos_token_id, scorer_module.TURN_MARKS = saved[:2]
        if hasattr(scorer, "stop_ids"):
            scorer.stop_ids = saved[2]


class LmEval:
    """lm-evaluation-harness' HFLM, and generate of the model in it."""

    name = "lm_eval"

    def __init__(self, model: str, dtype: str, style: str, batch_size: int = 8) -> None:
        from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
        from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

        make: Any = HFLM
        self.instance: Any = Instance
        self.lm: Any = make(pretrained=model, device="cpu", dtype=dtype, batch_size=batch_size)
        self.style = choose_format(style, self.lm.tokenizer)
        self.rows = self.padded_tokens = 0
        call = self.lm._model_call

        def counted(inputs: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
            self.rows += inputs.shape[0]
            self.padded_tokens += inputs.numel()
            return call(inputs, *rest, **more)

        self.lm._model_call = counted

    def set_batch_size(self, size: int) -> None:
        """Sets the rows of one forward pass."""
        self.lm.batch_size_per_gpu = size

    def requests(self, prompts: Sequence[Prompt]) -> list[Any]:
        """Returns one request per candidate; those of a prompt are side by side."""
        texts = [(render(p, self.lm.tokenizer, self.style), c) for p in prompts for c in p.candidates]
        return [
            self.instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i) for i, pair in enumerate(texts)
        ]

    def prepare(self, prompts: Sequence[Prompt]) -> Callable[[], Scores]:
        """Returns a job that scores the prompts and returns each one's log-probabilities, in their order."""
        requests = self.requests(prompts)

        def job() -> Scores:
            self.rows = self.padded_tokens = 0
            results = iter(self.lm.loglikelihood(requests, disable_tqdm=True))
            return [np.array([next(results)[0] for _ in p.candidates]) for p in prompts]

        return job

    def check_same_tokens(self, prompts: Sequence[Prompt], ours: Sequence[Encoded]) -> None:
        """Raises ValueError if a request's tokens, prompt and candidate, are not those that our side scores."""
        requests = iter(self.requests(prompts))
        for e in ours:
            for candidate in e.candidates:
                context, continuation = self.lm._encode_pair(*next(requests).args)
                if (*context, *continuation) != e.context + candidate:
                    raise ValueError(f"lm-eval's tokens {context} + {continuation} are not ours, {e}")

    def sampling(self, prompts: Sequence[Prompt], length: int, seed: int, batch_size: int) -> Callable[[], list[str]]:
        """Returns a job that samples exactly `length` tokens with generate.

        Its batches hold prompts of similar length, padded on the left.
        """
        ids = [e.context for e in encoded([Prompt(p.turns) for p in prompts], self.lm.tokenizer, self.style.name)]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))

        def job() -> list[str]:
            torch.manual_seed(seed)
            texts = {}
            for at in range(0, len(order), batch_size):
                batch = order[at : at + batch_size]
                texts |= zip(batch, self._generate([ids[i] for i in batch], length), strict=True)
            return [texts[i] for i in range(len(ids))]

        return job

    def _generate(self, rows: list[tuple[int, ...]], length: int) -> list[str]:
        tokenizer = self.lm.tokenizer
        width = max(map(len, rows))
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        ids_BT = torch.tensor([[pad] * (width - len(r)) + list(r) for r in rows])
        mask_BT = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
        with torch.no_grad():
            out_BT = self.lm.model.generate(
                input_ids=ids_BT, attention_mask=mask_BT, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                min_new_tokens=length, max_new_tokens=length, pad_token_id=pad, use_cache=True,
            )  # fmt: skip
        assert out_BT.shape[1] == width + length
        return [t.strip() for t in tokenizer.batch_decode(out_BT[:, width:], skip_special_tokens=True)]


@torch.no_grad()
def plain_scores(model: Any, prompts: Sequence[Encoded]) -> Scores:
    """Returns log-probabilities of a stock model's forward pass over one sequence at a time, log-softmax in fp32."""
    scores = []
    for e in prompts:
        logprobs_of: dict[tuple[int, ...], torch.Tensor] = {}
        sums = []
        for candidate in e.candidates:
            sequence = e.context + candidate[:-1]
            if sequence not in logprobs_of:
                logprobs_of[sequence] = torch.log_softmax(model(torch.tensor([sequence])).logits[0].float(), dim=-1)
            rows = logprobs_of[sequence][len(e.context) - 1 :]
            sums.append(float(sum(rows[k, token] for k, token in enumerate(candidate))))
        scores.append(np.array(sums))
    return scores


def reference_scores(model: str, dtype: str, prompts: Sequence[Encoded]) -> Scores:
    """Returns plain_scores of a stock model that is loaded for this call only."""
    from transformers import AutoModelForCausalLM

    stock: Any = AutoModelForCausalLM.from_pretrained(model, dtype=DTYPES[dtype])
    scores = plain_scores(stock.eval(), prompts)
    del stock
    gc.collect()
    return scores
