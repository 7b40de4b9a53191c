"""Log-probabilities from a transformers model as it is: the tiers 'tree' and 'plain'; and how its own generate draws.

'tree' runs many prompts that share beginnings as packed rows under a mask of ancestors
(eval.scorers.local.prefix_tree.pack); 'plain' runs each distinct sequence by itself, in batches of equal length without
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
"""Nodes of one packed row: a longer row saves few tokens and costs attention, which grows with its square."""

RequestedTokens = dict[tuple[int, ...], set[int]]
"""Sequences, and the tokens whose log-probability after each is asked."""
TokenLogprobs = dict[tuple[int, ...], dict[int, float]]


class Portable:
    """The forward passes of one model."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model: Any = model
        self.linear_head = isinstance(self.model.get_output_embeddings(), torch.nn.Linear)
        self.leaves = torch.empty(0, dtype=torch.long)  # flat positions whose logits the forward pass at hand gives

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @contextmanager
    def leaf_head(self) -> Iterator[None]:
        """Runs the output layer on the wanted positions (self.leaves) only, and in fp32.

        The wanted rows are few, so fp32 costs little there, while a bf16 logit near 20 is rounded to eighths, which
        alone would move a log-probability by up to 0.06 and hide small gaps. Whatever a model does to its logits
        afterwards (a soft cap, say) it still does.
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
            del head.forward  # the class's own again

    def tree(self, requested: RequestedTokens, batch_tokens: int) -> Iterator[TokenLogprobs]:
        """Packed rows of at most ROW_TOKENS nodes (a longer sequence alone), several in a batch."""
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
        """As `plain`, with the model's own output layer in its own dtype: what any other program would get from it."""
        return self.plain(requested, batch_tokens, stock_head=True)

    def plain(self, requested: RequestedTokens, batch_tokens: int, stock_head: bool = False) -> Iterator[TokenLogprobs]:
        """Every sequence a row of its own, those of one length in a batch."""
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
        """Log-probabilities after each of the packs' sequences, in their order; one pack is one row of the batch."""
        width = max(len(p.tokens_N) for p in packs)
        ids_BT = torch.zeros(len(packs), width, dtype=torch.long)
        depth_BT = torch.zeros_like(ids_BT)
        allowed_BTT = torch.eye(width, dtype=torch.bool).repeat(len(packs), 1, 1)  # a row of padding sees itself
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
        """The additive mask (B, 1, T, T), narrowed to the window where all layers have one; a dictionary of both kinds
        where a model mixes them.
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
    """Turns greedy decoding into sampling: leaves only the token that the row's own uniform number selects.

    Row b at step t takes the token at which the cumulative distribution passes u[b, t], u drawn from seed b alone, so a
    row's sample does not depend on its neighbours, and the global random states stay as they are.
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
    """(how many positions a windowed layer sees, the kinds of its layers); None without such layers."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if not window or not getattr(config, "use_sliding_window", True):
        return None, set()
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    return (int(window), kinds) if "sliding_attention" in kinds else (None, set())


def layer_windows(model: Any) -> list[int | None]:
    """How many positions each layer sees, a node itself included; None for all."""
    config = model.config.get_text_config()
    window, _ = sliding_window(model)
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in types]


def _pick(logprobs_V: torch.Tensor, tokens: set[int]) -> dict[int, float]:
    chosen = sorted(tokens)
    return dict(zip(chosen, logprobs_V[chosen].tolist(), strict=True))
