"""Scores and samples with a transformers model in this process.

There are three tiers; a numeric check takes the fastest that is right (eval.scorers.local.selfcheck). 'fused' is this
project's forward pass for a Llama-shaped model on a CPU (eval.scorers.local.fused). 'tree' and 'plain' run the model
itself (eval.scorers.local.portable). All compute log-probabilities over the full vocabulary in fp32.
Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from eval.errors import InputError
from eval.models import checkpoints
from eval.models.prompt_format import TURN_MARKS, Encoded, answer_of, choose_format, clean, encode, parts
from eval.models.target import Target
from eval.runner.plan import Plan
from eval.runner.provenance import device_name, tokenizer_sha256
from eval.scorers.local import describe as local
from eval.scorers.local import selfcheck
from eval.scorers.local.fused import ROWS, FusedDecoder
from eval.scorers.local.generation import Sampler
from eval.scorers.local.memory import default_batch_tokens, keep_freed_memory, out_of_memory
from eval.scorers.local.portable import Portable, RequestedTokens, SeededDraw, TokenLogprobs, sliding_window
from eval.scorers.local.selfcheck import Run, Tier, Verdict
from eval.scorers.local.widen import HALF
from eval.scorers.options import ScorerConfig
from eval.scorers.registry import OpenedTarget
from eval.types import Answer, Prompt

log = logging.getLogger(__name__)

TIERS = ("fused", "tree", "plain")  # fastest first
LONGER = 1.25  # prompts that exceed the checked length by this factor are checked again
LEAST_BATCH_TOKENS = 16
MARK_TOKENS = 12  # last tokens of a sample in which to look for the mark of a new turn


class TransformersScorer:
    """Implements eval.types.Scorer with a loaded causal language model, which may be a PEFT model.

    Args:
        batch_tokens: The most tokens of a forward pass, halved when memory runs out; by default chosen by free memory
            (eval.scorers.local.memory).
        tier: One of TIERS, to use without a check.

    Attributes:
        tier, tier_reason: The chosen tier and why.
        computed_tokens: Tokens computed by the fused tier so far.
        stop_ids: The tokens that end a sample: the ends of sequence of model and tokenizer.
    """

    def __init__(
        self,
        model: PreTrainedModel | torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        style: str = "auto",
        batch_tokens: int | None = None,
        sample_batch: int = 64,
        tier: str | None = None,
        system_turn: str = "keep",
    ) -> None:
        self.model: Any = model
        self.tokenizer = tokenizer
        self.style = choose_format(style, tokenizer, system_turn)
        self.sample_batch = sample_batch
        self.forced = tier is not None
        self.verdict = Verdict(tier, "given", 0) if tier else None
        self.portable = Portable(model)
        self.batch_tokens = batch_tokens or default_batch_tokens(model, self.device)
        self.stop_ids = _stop_ids(model, tokenizer)
        self._fused: tuple[int, FusedDecoder] | None = None
        self._sampler: Sampler | None = None  # of the last samples: the next question may reuse its keys and values
        if self.device.type == "cpu":
            keep_freed_memory()

    @property
    def device(self) -> torch.device:
        return self.portable.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.get_input_embeddings().weight.dtype

    @property
    def tier(self) -> str | None:
        return self.verdict.tier if self.verdict else None

    @property
    def tier_reason(self) -> str:
        return self.verdict.reason if self.verdict else ""

    @property
    def computed_tokens(self) -> int:
        return self._fused[1].computed_tokens if self._fused else 0

    def describe(self) -> dict[str, Any]:
        """Tokenizer, format, default system turn, tier, the fused tier's kernels, dtype, device, batch_tokens now."""
        return {
            "scorer": "transformers",
            "tokenizer_sha256": tokenizer_sha256(self.tokenizer),
            "format": self.style.name,
            "system_turn": self.style.system_turn,
            "tier": self.tier,
            "tier_reason": self.tier_reason,
            "kernels": self._fused[1].kernels.name if self._fused else None,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "device_name": device_name(self.device),
            "batch_tokens": self.batch_tokens,
        }

    @torch.no_grad()
    def score(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer]]:
        """Yields (index, Answer) batch by batch. Raises InputError if even a small batch needs too much memory."""
        encoded = encode(prompts, self.tokenizer, self.style)
        self._choose_tier(encoded)
        # requested[sequence] = next tokens whose log-probabilities are needed
        requested: RequestedTokens = {}
        waiting: dict[tuple[int, ...], list[int]] = {}
        open_parts = [0] * len(encoded)
        for i, e in enumerate(encoded):
            for sequence, token in parts(e):
                requested.setdefault(sequence, set()).add(token)
                users = waiting.setdefault(sequence, [])
                if i not in users[-1:]:
                    users.append(i)
                    open_parts[i] += 1
        logprobs: TokenLogprobs = {}
        for batch in self._logprobs(requested):
            logprobs |= batch
            for sequence in batch:
                for i in waiting[sequence]:
                    open_parts[i] -= 1
                    if open_parts[i] == 0:
                        yield i, answer_of(encoded[i], logprobs)

    def _logprobs(self, requested: RequestedTokens) -> Iterator[TokenLogprobs]:
        """Yields all requested log-probabilities. After running out of memory, the rest is done in smaller batches."""
        pending = dict(requested)
        while pending:
            try:
                for batch in self._run_tier(pending):
                    for sequence in batch:
                        del pending[sequence]
                    yield batch
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self._halve_batch(error)

    def _run_tier(self, requested: RequestedTokens) -> Iterator[TokenLogprobs]:
        """Yields log-probabilities by the chosen tier, reusing the last samples' keys and values where it can."""
        if self.tier == "fused" and self._sampler is not None:
            sampler, self._sampler = self._sampler, None
            if sampler.decoder is self._decoder():
                answered: set[tuple[int, ...]] = set()
                for batch in sampler.logprobs(requested, self.batch_tokens):
                    answered |= batch.keys()
                    yield batch
                requested = {s: tokens for s, tokens in requested.items() if s not in answered}
        if requested:
            yield from self._tier_run(self.tier or "plain")(False)(requested, self.batch_tokens)

    def _halve_batch(self, error: BaseException) -> None:
        if self.batch_tokens // 2 < LEAST_BATCH_TOKENS:
            raise InputError(
                f"out of memory with batches of {self.batch_tokens} tokens: the model needs more memory than there is, "
                "or a smaller dtype (--dtype bfloat16)"
            ) from error
        self.batch_tokens //= 2
        log.warning("out of memory: going on with batches of %d tokens", self.batch_tokens)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _tier_run(self, tier: str) -> Any:
        """eval.scorers.local.selfcheck.Tier.make of a tier."""

        def make(fp32: bool) -> Run:
            self.portable.widened = fp32
            if tier != "fused":
                return self.portable.tree if tier == "tree" else self.portable.plain
            return FusedDecoder(self.model, torch.float32, lazy=True).logprobs if fp32 else self._decoder().logprobs

        return make

    def _decoder(self) -> FusedDecoder:
        """The fused decoder of the current weights."""
        weights = hash(tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in self.model.parameters()))
        if self._fused is None or self._fused[0] != weights:
            self._fused = weights, FusedDecoder(self.model, self.dtype)
        return self._fused[1]

    @torch.no_grad()
    def check(self, prompts: Sequence[Prompt]) -> None:
        """Chooses the tier for these prompts, as scoring or sampling them would."""
        encoded = encode(prompts, self.tokenizer, self.style)
        self._choose_tier([e if e.candidates else _as_scored(e) for e in encoded])

    def _choose_tier(self, encoded: list[Encoded]) -> None:
        """Chooses the tier. For prompts longer than those checked, chooses again among the same and slower tiers."""
        if self.forced or not encoded:
            return
        longest = max(len(e.context) + max(map(len, e.candidates), default=1) - 1 for e in encoded)
        tiers = TIERS[:-1]
        if self.verdict is not None:
            checked, window = self.verdict.longest, sliding_window(self.model)[0] or 0
            if self.verdict.tier == "plain" or longest <= checked or (
                longest <= LONGER * checked and not checked <= window < longest
            ):  # fmt: skip
                return
            tiers = TIERS[TIERS.index(self.verdict.tier) : -1]
        requested: RequestedTokens = {}
        for i in selfcheck.representative([e.context for e in encoded]):
            # the first token of every candidate is enough for the comparison
            requested[encoded[i].context] = {candidate[0] for candidate in encoded[i].candidates}
        if not self.portable.linear_head:
            self.verdict = Verdict("plain", "the model's output layer is not linear", longest)
            return
        if self.device.type != "cpu":
            tiers = tuple(t for t in tiers if t != "fused")
        others = [Tier(t, self._tier_run(t)) for t in tiers]
        plain = Tier("plain", lambda fp32: self._tier_run("plain")(True) if fp32 else self.portable.stock)
        try:
            self.verdict = selfcheck.choose(self.model, self.dtype in HALF, plain, others, requested)
        finally:
            self.portable.widened = False
            if self.tier != "fused":
                self._fused = None

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], seeds: Sequence[int], max_new_tokens: int) -> Iterator[tuple[int, str]]:
        """Samples at temperature 1, each prompt with the uniform numbers of its own seed.

        The fused tier's samples do not depend on the other samples. The other tiers use transformers' generate.
        """
        encoded = encode([Prompt(p.turns) for p in prompts], self.tokenizer, self.style)
        ids = [e.context for e in encoded]
        self._choose_tier([_as_scored(e) for e in encoded])
        order = sorted(range(len(prompts)), key=lambda i: len(ids[i]))  # similar lengths need little padding
        rows_at_once = min(self.sample_batch, ROWS) if self.tier == "fused" else self.sample_batch
        waiting = [order[start : start + rows_at_once] for start in range(0, len(order), rows_at_once)]
        while waiting:
            batch, done = waiting.pop(0), set()
            rows, row_seeds = [ids[i] for i in batch], [seeds[i] for i in batch]
            generate = self._sample_fused if self.tier == "fused" else self._generate
            try:
                for row, text in generate(rows, row_seeds, max_new_tokens):
                    done.add(batch[row])
                    yield batch[row], text
            except (RuntimeError, MemoryError) as error:
                remaining = [i for i in batch if i not in done]
                if not out_of_memory(error):
                    raise
                if len(remaining) < 2:
                    raise InputError("out of memory while sampling one answer: lower --cot_max_new_tokens") from error
                log.warning("out of memory: sampling %d at a time", len(remaining) // 2)
                waiting = [remaining[: len(remaining) // 2], remaining[len(remaining) // 2 :], *waiting]

    def _sample_fused(
        self, rows: list[tuple[int, ...]], seeds: list[int], new_tokens: int
    ) -> Iterator[tuple[int, str]]:
        def is_finished(new: list[int]) -> bool:
            if new[-1] in self.stop_ids:
                return True
            if self.style.name != "paper":
                return False
            text = self.tokenizer.decode(new[-MARK_TOKENS:])
            return any(mark in text for mark in TURN_MARKS)  # the model started another turn

        self._sampler = Sampler(self._decoder(), rows, new_tokens)
        for row, new in self._sampler.sample(seeds, new_tokens, is_finished):
            yield row, clean(str(self.tokenizer.decode(new, skip_special_tokens=True)))

    def _generate(
        self, rows: list[tuple[int, ...]], seeds: list[int], max_new_tokens: int
    ) -> Iterator[tuple[int, str]]:
        pad: Any = self.tokenizer.pad_token_id
        pad = pad if pad is not None else (self.tokenizer.eos_token_id or 0)
        width = max(len(r) for r in rows)
        ids_BT = torch.full((len(rows), width), pad, device=self.device)
        mask_BT = torch.zeros_like(ids_BT)
        for b, row in enumerate(rows):
            ids_BT[b, width - len(row) :] = torch.tensor(row, device=self.device)
            mask_BT[b, width - len(row) :] = 1
        out_BT = self.model.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            max_new_tokens=max_new_tokens,
            do_sample=False,  # SeededDraw samples without changing the global random state
            num_beams=1,
            use_cache=True,
            pad_token_id=pad,
            eos_token_id=sorted(self.stop_ids) or None,
            tokenizer=self.tokenizer,
            repetition_penalty=1.0,  # some models' generation_config sets one
            stop_strings=list(TURN_MARKS) if self.style.name == "paper" else None,
            logits_processor=LogitsProcessorList([SeededDraw(seeds, max_new_tokens, width)]),
        )
        texts = self.tokenizer.batch_decode(out_BT[:, width:], skip_special_tokens=True)
        yield from enumerate(clean(t) for t in texts)


def open_target(target: Target, config: ScorerConfig, plan: Plan) -> OpenedTarget:
    """Implements eval.scorers.registry.open_target."""
    described, style, provenance = local.describe(target, config)

    def load_scorer() -> tuple[TransformersScorer, dict[str, Any]]:
        local.check(described, style, target, config, plan)
        loaded = checkpoints.load(described, config.device)
        scorer = TransformersScorer(
            loaded.model, loaded.tokenizer, config.format, config.most_batch_tokens, config.sample_batch,
            system_turn=config.system_turn,
        )  # fmt: skip
        return scorer, loaded.provenance

    return OpenedTarget(provenance, load_scorer)


def _as_scored(prompt: Encoded) -> Encoded:
    """Turns a prompt to sample from into one to score: its last token becomes the candidate after the others."""
    return Encoded(prompt.context[:-1], (prompt.context[-1:],), 0)


def _stop_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids: Any = configured if isinstance(configured, list) else [configured]
    return frozenset(int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None)
