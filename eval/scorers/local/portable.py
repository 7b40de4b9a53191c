"""Log-probabilities from an unmodified transformers model: the tiers 'tree' and 'plain'. Also its sampling.

'tree' runs many prompts that share beginnings as packed rows under a mask of ancestors
(eval.scorers.local.prefix_tree.pack). 'plain' runs each distinct sequence by itself, in batches of equal length without
padding, and is right for every causal model. Shapes: B rows, T tokens, S sequences, V vocabulary, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor

from eval.scorers.local.prefix_tree import Pack, pack

ROW_TOKENS = 512
"""Nodes of one packed row. A longer row saves few tokens and costs attention, which grows with its square."""

RequestedTokens = dict[tuple[int, ...], set[int]]
"""{sequence: the next tokens whose log-probabilities are requested}"""
TokenLogprobs = dict[tuple[int, ...], dict[int, float]]
"""{sequence: {next token: log-probability in nats}}"""


class Portable:
    """The forward passes of one model."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model: Any = model
        self.linear_head = isinstance(self.model.get_output_embeddings(), torch.nn.Linear)
        self.leaves = torch.empty(0, dtype=torch.long)  # flat positions whose logits the current forward pass returns

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @contextmanager
    def leaf_head(self) -> Iterator[None]:
        """Makes the output layer compute only the requested positions (self.leaves), in fp32.

        These positions are few, so fp32 costs little. A bf16 logit near 20 is rounded to eighths, which alone would
        move a log-probability by up to 0.06 and hide small gaps. What a model does to its logits afterwards (a soft
        cap, say) still applies.
        """
        head = self.model.get_output_embeddings()
        if not isinstance(head, torch.nn.Linear):
            yield
            return
        weight = head.weight.detach().float()
        bias = None if head.bias is None else head.bias.detach().float()

        def forward(hidden_BTH: torch.Tensor) -> torch.Tensor:
            chosen_1SH = hidden_BTH.flatten(0, 1)[self.leaves][None]
            return torch.nn.functional.linear(chosen_1SH.float(), weight, bias)

        head.forward = forward  # pyright: ignore[reportAttributeAccessIssue]
        try:
            yield
        finally:
            del head.forward  # restores the class's method

    def tree(self, requested: RequestedTokens, batch_tokens: int) -> Iterator[TokenLogprobs]:
        """Yields log-probabilities from packed rows of at most ROW_TOKENS nodes. A longer sequence has a row to itself.

        A batch has several rows, of at most batch_tokens in all.
        """
        with self.leaf_head():
            sequences = list(requested)
            packs = pack(sequences, min(ROW_TOKENS, batch_tokens))
            start = 0
            while start < len(packs):
                width = len(packs[start].tokens_N)
                rows = packs[start : start + max(1, batch_tokens // max(width, ROW_TOKENS))]
                start += len(rows)
                logprobs_SV = self._forward_trees(rows)
                ended = [sequences[i] for p in rows for i in p.sequences]
                yield {s: _pick(row, requested[s]) for s, row in zip(ended, logprobs_SV, strict=True)}

    def stock(self, requested: RequestedTokens, batch_tokens: int) -> Iterator[TokenLogprobs]:
        """Like `plain`, with the model's output layer in its own dtype: what any other program would compute."""
        return self.plain(requested, batch_tokens, stock_head=True)

    def plain(self, requested: RequestedTokens, batch_tokens: int, stock_head: bool = False) -> Iterator[TokenLogprobs]:
        """Yields log-probabilities, with each sequence in a row of its own and sequences of one length in a batch.

        Args:
            requested: The next tokens of each sequence.
            batch_tokens: The most tokens of a batch.
            stock_head: Use the model's output layer in its own dtype instead of leaf_head.
        """
        with nullcontext() if stock_head else self.leaf_head():
            sequences = sorted(requested, key=len)
            start = 0
            while start < len(sequences):
                length = len(sequences[start])
                rows = [s for s in sequences[start : start + max(1, batch_tokens // length)] if len(s) == length]
                start += len(rows)
                self.leaves = torch.arange(1, len(rows) + 1, device=self.device) * length - 1
                logits = self.model(input_ids=torch.tensor(rows, device=self.device), use_cache=False).logits
                logits_BV = logits[0] if self.linear_head and not stock_head else logits[:, -1]
                logprobs_BV = torch.log_softmax(logits_BV.float(), dim=-1)
                yield {s: _pick(row, requested[s]) for s, row in zip(rows, logprobs_BV, strict=True)}

    def _forward_trees(self, packs: list[Pack]) -> torch.Tensor:
        """Log-probabilities (S, V) after each of the packs' sequences, in order. One pack is one row of the batch."""
        width = max(len(p.tokens_N) for p in packs)
        ids_BT = torch.zeros(len(packs), width, dtype=torch.long)
        depth_BT = torch.zeros_like(ids_BT)
        allowed_BTT = torch.eye(width, dtype=torch.bool).repeat(len(packs), 1, 1)  # padding attends to itself
        for b, p in enumerate(packs):
            n = len(p.tokens_N)
            ids_BT[b, :n] = torch.from_numpy(p.tokens_N)
            depth_BT[b, :n] = torch.from_numpy(p.depth_N)
            allowed_BTT[b, :n, :n] = torch.from_numpy(p.ancestors_NN())
        leaves = torch.cat([torch.from_numpy(p.last_S) + b * width for b, p in enumerate(packs)])
        self.leaves = leaves.to(self.device)
        out = self.model(
            input_ids=ids_BT.to(self.device),
            position_ids=depth_BT.to(self.device),
            attention_mask=self._masks(allowed_BTT, depth_BT),
            use_cache=False,
        )
        return torch.log_softmax(out.logits[0].float(), dim=-1)

    def _masks(self, allowed_BTT: torch.Tensor, depth_BT: torch.Tensor) -> Any:
        """The additive mask (B, 1, T, T), narrowed to the window if all layers have one.

        If a model mixes full and windowed layers, a dictionary of both masks.
        """
        weight = self.model.get_input_embeddings().weight
        dtype = torch.float32 if self.widened else weight.dtype

        def additive(allowed_BTT: torch.Tensor) -> torch.Tensor:
            mask_BTT = torch.zeros(allowed_BTT.shape, dtype=dtype, device=self.device)
            return mask_BTT.masked_fill_(~allowed_BTT.to(self.device), torch.finfo(dtype).min)[:, None]

        window, kinds = sliding_window(self.model)
        if window is None:
            return additive(allowed_BTT)
        near_BTT = allowed_BTT & (depth_BT[:, :, None] - depth_BT[:, None] < window)
        if len(kinds) < 2:
            return additive(near_BTT)
        return {"full_attention": additive(allowed_BTT), "sliding_attention": additive(near_BTT)}

    widened = False
    """Whether the weights are fp32 while they are used (eval.scorers.local.widen)."""


class SeededDraw(LogitsProcessor):
    """Turns greedy decoding into sampling: keeps only the token that the row's uniform number selects.

    Row b at step t takes the token at which the cumulative distribution passes u[b, t]. Only seed b determines u[b], so
    a row's sample does not depend on its neighbours, and the global random states do not change.
    """

    def __init__(self, seeds: Sequence[int], max_new_tokens: int, prompt_width: int) -> None:
        self.uniform_BT = np.stack([np.random.default_rng(s).random(max_new_tokens) for s in seeds])
        self.prompt_width = prompt_width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.prompt_width
        cumulative_BV = torch.softmax(scores.float(), dim=-1).cumsum(dim=-1)
        u_B1 = torch.tensor(self.uniform_BT[:, step : step + 1], dtype=torch.float32, device=scores.device)
        threshold_B1 = u_B1 * cumulative_BV[:, -1:]  # the sum is 1 up to rounding
        token_B1 = torch.searchsorted(cumulative_BV, threshold_B1, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, float("-inf")).scatter(1, token_B1, 0.0)


def sliding_window(model: Any) -> tuple[int | None, set[str]]:
    """(how many positions a windowed layer sees, the kinds of layers); (None, empty set) without windowed layers."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if not window or not getattr(config, "use_sliding_window", True):
        return None, set()
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    return (int(window), kinds) if "sliding_attention" in kinds else (None, set())


def layer_windows(model: Any) -> list[int | None]:
    """How many positions each layer sees, the node itself included; None for all."""
    config = model.config.get_text_config()
    window, _ = sliding_window(model)
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in types]


def _pick(logprobs_V: torch.Tensor, tokens: set[int]) -> dict[int, float]:
    chosen = sorted(tokens)
    return dict(zip(chosen, logprobs_V[chosen].tolist(), strict=True))
