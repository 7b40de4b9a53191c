"""A Llama-shaped decoder on a CPU: a whole tree of prompts in one flat row.

It computes what transformers computes layer by layer, in few passes over memory (eval.scorers.local.llama_shape) and
each distinct beginning once (eval.scorers.local.prefix_tree.slices). Attention runs on blocks of nodes against only
their ancestors; the last layer is computed only at the ends of sequences. Nothing is taken on trust: the scorer uses
this decoder only where it agrees with plain forward passes (eval.scorers.local.selfcheck). Shapes: N nodes, P nodes of
the pool, B blocks of C nodes, K keys, R rows of S tokens, T slots, H hidden, D head, W any other width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eval.scorers.local import llama_shape, native
from eval.scorers.local.kernels import SLOTS, TorchKernels, additive
from eval.scorers.local.llama_shape import Layer, Product, UnsupportedModelError
from eval.scorers.local.portable import RequestedTokens, TokenLogprobs, layer_windows
from eval.scorers.local.prefix_tree import Slice, shared_length, slices
from eval.scorers.local.widen import in_fp32

ROWS = 64
"""Matrix products run on a multiple of so many rows; on exactly so many where samples depend on them."""
SLICE = 1024
"""The most nodes of a slice (half as many in fp32): more would take more memory and save nothing."""
MIN_TRUNK = 8  # tokens: a shorter beginning of all sequences is not worth a separate pass
MAX_TRUNKS = 4
ENDS = 256  # ends of sequences whose logits are computed together
VOCABULARY_PART = 4096


class FusedDecoder:
    """The decoder of a causal language model on a CPU, with the weights as they are now.

    Args:
        model: A transformers model.
        dtype: The dtype to compute in.
        lazy: Pack each layer when it is used and do not keep it (for a check in another dtype).
        kernels: The kernels; by default those of eval.scorers.local.native.

    Raises:
        UnsupportedModelError: The model is not Llama-shaped or not on a CPU.
    """

    def __init__(self, model: Any, dtype: torch.dtype, lazy: bool = False, kernels: TorchKernels | None = None) -> None:
        self.model, self.dtype = model, dtype
        self.kernels = kernels or native.kernels(dtype)
        self.slice = SLICE // 2 if dtype == torch.float32 else SLICE
        self.embed, self.head = model.get_input_embeddings(), model.get_output_embeddings()
        body: Any = model.get_decoder() if hasattr(model, "get_decoder") else None
        if not all(hasattr(body, name) for name in ("layers", "norm", "rotary_emb")):
            raise UnsupportedModelError("the decoder is not layers, norm and rotary_emb")
        if not isinstance(self.head, torch.nn.Linear) or next(model.parameters()).device.type != "cpu":
            raise UnsupportedModelError("the output layer is not linear, or not on a CPU")
        self.rotary, self.modules = body.rotary_emb, list(body.layers)
        self.final_scale, self.final_eps = llama_shape.norm(body.norm)
        head_shapes = {llama_shape.heads(m.self_attn) for m in self.modules if hasattr(m, "self_attn")}
        if len(head_shapes) != 1:
            raise UnsupportedModelError("the layers are not alike")
        (self.heads,) = head_shapes
        self.windows = layer_windows(model)
        self.layers: list[Layer] | None = None if lazy else list(self._layers())
        self.trunks: dict[tuple[int, ...], list[Tensor]] = {}
        self.computed_tokens = 0
        self._slots: tuple[list[Tensor], list[Tensor]] = [], []

    def _layers(self) -> Iterator[Layer]:
        if getattr(self, "layers", None) is not None:
            yield from self.layers or ()
            return
        with in_fp32(self.model):
            for module in self.modules:
                yield llama_shape.layer(module, self.dtype)

    def logprobs(self, requested: RequestedTokens, batch_tokens: int) -> Iterator[TokenLogprobs]:
        """Yields the log-probabilities (nats) of the requested next tokens of each sequence, as they are done."""
        sequences = list(requested)
        root, path = self._trunk(sequences, batch_tokens)
        ended: list[tuple[int, ...]] = []
        hidden: list[Tensor] = []
        for piece in slices(sequences, min(self.slice, batch_tokens), self.kernels.block, root):
            hidden_SH, path = self.run(piece, path)
            ended += [sequences[i] for i in piece.sequences]
            hidden.append(hidden_SH)
            if len(ended) >= ENDS:
                yield self.token_logprobs(torch.cat(hidden), ended, requested)
                ended, hidden = [], []
        if ended:
            yield self.token_logprobs(torch.cat(hidden), ended, requested)

    def _trunk(self, sequences: list[tuple[int, ...]], batch_tokens: int) -> tuple[int, list[Tensor]]:
        """The beginning that all sequences share.

        Returns:
            Its length, and its keys and values, which are kept between calls.
        """
        low, high = min(sequences), max(sequences)
        root = min(shared_length(low, high), min(map(len, sequences)) - 1)
        if root < MIN_TRUNK:
            return 0, []
        tokens = low[:root]
        if tokens not in self.trunks:
            path: list[Tensor] = []
            for piece in slices([tokens], min(self.slice, batch_tokens), self.kernels.block, keep_last=True):
                _, path = self.run(piece, path)
            while len(self.trunks) >= MAX_TRUNKS:
                del self.trunks[next(iter(self.trunks))]
            self.trunks[tokens] = path
        return root, self.trunks[tokens]

    def token_logprobs(
        self, hidden_SH: Tensor, ended: list[tuple[int, ...]], requested: RequestedTokens
    ) -> TokenLogprobs:
        """The requested log-probabilities over the full vocabulary, computed in fp32.

        Args:
            hidden_SH: Normed hidden states at the ends of the sequences.
            ended: The sequences, in the order of hidden_SH.
            requested: The next tokens of each sequence.
        """
        weight_VH, bias = self.head.weight.detach(), self.head.bias
        requests = [(row, token) for row, s in enumerate(ended) for token in sorted(requested[s])]
        rows_A, tokens_A = torch.tensor(requests).unbind(1)
        logits_A = torch.empty(len(requests))
        totals = []
        for start in range(0, len(weight_VH), VOCABULARY_PART):  # all logits at once would take too much memory
            part = slice(start, start + VOCABULARY_PART)
            bias_part = None if bias is None else bias[part].detach().float()
            logits_SV = F.linear(hidden_SH, weight_VH[part].float(), bias_part)
            in_part_A = (tokens_A >= start) & (tokens_A < start + VOCABULARY_PART)
            logits_A[in_part_A] = logits_SV[rows_A[in_part_A], tokens_A[in_part_A] - start]
            totals.append(torch.logsumexp(logits_SV, dim=-1))
        total_S = torch.logsumexp(torch.stack(totals), dim=0)
        logprobs: TokenLogprobs = {s: {} for s in ended}
        for (row, token), value in zip(requests, (logits_A - total_S[rows_A]).tolist(), strict=True):
            logprobs[ended[row]][token] = value
        return logprobs

    def run(
        self, piece: Slice, path: list[Tensor], on_layer_kv: Callable[[int, Tensor], None] | None = None,
        chunk_rows: int | None = None,
    ) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
        """Computes one slice.

        Args:
            piece: The slice.
            path: For each layer the keys and values (P, 2 * key heads * D) of the pool's path.
            on_layer_kv: Called with (layer number, keys and values of the whole pool).
            chunk_rows: Rows of each matrix product; by default all.

        Returns:
            The normed hidden states (S, H), in fp32, at which the slice's sequences end; and the path of the next
            slice.
        """
        n, n_path = len(piece.tokens_N), piece.path
        width = -(-n // ROWS) * ROWS
        tokens, depth = (torch.from_numpy(np.pad(a, (0, width - n))) for a in (piece.tokens_N, piece.depth_N))
        layout = self.kernels.layout(piece, width, set(self.windows), self.dtype)
        keep_path, keep_nodes = (
            torch.from_numpy(k) for k in np.split(piece.keep, [np.searchsorted(piece.keep, n_path)])
        )
        ends = np.array([nodes[-1] - n_path for nodes in piece.node_paths], dtype=np.int64)
        ends_S = torch.from_numpy(np.pad(ends, (0, -len(ends) % ROWS)))
        x_NH = self.embed(tokens).to(self.dtype)
        rotation, next_path = self._turn(x_NH, depth), []
        for number, layer in enumerate(self._layers()):
            qkv_NW = self._qkv(layer, x_NH, rotation, chunk_rows)
            kv_NW = qkv_NW[:, self.heads.queries * self.heads.size :]
            before_PW = path[number] if n_path else None
            kept_kv_NW = kv_NW[keep_nodes - n_path]
            next_path.append(kept_kv_NW if before_PW is None else torch.cat([before_PW[keep_path], kept_kv_NW]))
            if on_layer_kv is not None:
                on_layer_kv(number, kv_NW if before_PW is None else torch.cat([before_PW, kv_NW]))
            attended_NW = self.kernels.attend(
                layout, self.windows[number], layer.scaling, self.heads, qkv_NW, before_PW
            )
            if number == len(self.modules) - 1:
                attended_NW, x_NH = attended_NW[ends_S], x_NH[ends_S]
            x_NH = self._after_attention(layer, x_NH, attended_NW, chunk_rows)
        self.computed_tokens += n
        return self._final_norm(x_NH)[: len(ends)], next_path

    def step(
        self, tokens_RS: Tensor, starts_R: Tensor, keys: list[Tensor], values: list[Tensor],
        rows: Tensor | None = None, tree: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """Computes S more tokens for each of R dialogues, those of row r in its slots from starts_R[r] on.

        Args:
            tokens_RS: The tokens of each row: a chain, or a tree if `tree` is given.
            starts_R: The first slot of each row.
            keys: For each layer (rows, key heads, slots, D), slots a multiple of SLOTS; written to.
            values: Like keys.
            rows: (R,) rows of keys and values to use, which are copied and not written to; by default the first R.
            tree: (position (R, S), which of the row's S tokens each one sees (R, S, S)).

        Returns:
            The normed hidden states (R, S, H), in fp32.
        """
        (r, s), kv, d = tokens_RS.shape, self.heads.keys, self.heads.size
        slot_RS = starts_R[:, None] + torch.arange(s)
        position_RS, visible_RSS = tree or (slot_RS, torch.ones(s, s, dtype=torch.bool).tril().repeat(r, 1, 1))
        slots = -(-(int(starts_R.max()) + s) // SLOTS) * SLOTS
        pad = -(r * s) % ROWS
        x_NH = F.pad(self.embed(tokens_RS.flatten()).to(self.dtype), (0, 0, 0, pad))
        rotation = self._turn(x_NH, F.pad(position_RS.flatten(), (0, pad)))
        single_token = s == 1 and rows is None and tree is None
        masks = {} if single_token else self._row_masks(slot_RS, position_RS, visible_RSS, slots)
        row_index = torch.arange(r)[:, None]
        for number, layer in enumerate(self._layers()):
            qkv_NW = self._qkv(layer, x_NH, rotation)
            new = qkv_NW[: r * s].view(r, s, -1, d)
            key, value = keys[number][:r, :, :slots], values[number][:r, :, :slots]
            if rows is not None:
                key, value = (_copy_rows(c[number], rows, slots) for c in (keys, values))
            key[row_index, :, slot_RS] = new[:, :, -2 * kv : -kv]
            value[row_index, :, slot_RS] = new[:, :, -kv:]
            window, scale = self.windows[number], layer.scaling
            if single_token:
                attended_NW = self.kernels.decode(
                    qkv_NW, keys[number], values[number], starts_R + 1, window, scale, self.heads
                )
            else:
                q = new[:, :, : -2 * kv].transpose(1, 2)
                a = F.scaled_dot_product_attention(q, key, value, masks[window], scale=scale, enable_gqa=True)
                attended_NW = a.transpose(1, 2).reshape(r * s, -1)
            x_NH = self._after_attention(layer, x_NH, F.pad(attended_NW, (0, 0, 0, pad)))
        self.computed_tokens += r * s
        return self._final_norm(x_NH)[: r * s].view(r, s, -1)

    def slots(self, rows: int, length: int) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values for `step`, with at least so many rows and slots: finite numbers, from the last use."""
        length = -(-length // SLOTS) * SLOTS
        if not self._slots[0] or self._slots[0][0].shape[0] < rows or self._slots[0][0].shape[2] < length:
            shape = (rows, self.heads.keys, length, self.heads.size)
            self._slots = [], []  # frees the old ones first
            for kind in self._slots:
                kind += [torch.zeros(shape, dtype=self.dtype) for _ in self.modules]
        return self._slots

    def output(self) -> Product:
        """The output layer packed in the decoder's dtype, for sampling."""
        return Product(self.head.weight.detach(), self.head.bias, self.dtype)

    def _after_attention(
        self, layer: Layer, x_NH: Tensor, attended_NW: Tensor, chunk_rows: int | None = None
    ) -> Tensor:
        """The rest of a layer after attention."""
        x_NH = layer.out.with_other(attended_NW, x_NH, "add", chunk_rows)
        normed_NH = self.kernels.normed(x_NH, layer.eps[1])
        inner_NW = layer.up.with_other(normed_NH, layer.gate(normed_NH, "swish", chunk_rows), "mul", chunk_rows)
        return layer.down.with_other(inner_NW, x_NH, "add", chunk_rows)

    def _final_norm(self, x_NH: Tensor) -> Tensor:
        return F.rms_norm(x_NH.float(), x_NH.shape[-1:], self.final_scale, self.final_eps)

    def _turn(self, x_NH: Tensor, position_N: Tensor) -> Tensor:
        """The rotary embedding cos + i sin of every node's position, (N, 1, D / 2)."""
        cos, sin = self.rotary(x_NH[None, :1].float(), position_N[None])
        if cos.shape[-1] != self.heads.size:
            raise UnsupportedModelError("only a part of each head is turned")
        half = self.heads.size // 2
        return torch.complex(cos[0, :, None, :half].float(), sin[0, :, None, :half].float())

    def _qkv(self, layer: Layer, x_NH: Tensor, rotation: Tensor, chunk_rows: int | None = None) -> Tensor:
        """Queries, keys (both rotated) and values, (N, (query heads + 2 * key heads) * D)."""
        qkv_NW = layer.qkv(self.kernels.normed(x_NH, layer.eps[0]), chunk_rows=chunk_rows)
        self.kernels.turn(qkv_NW, rotation, self.heads, layer)
        return qkv_NW

    def _row_masks(
        self, slot_RS: Tensor, position_RS: Tensor, visible_RSS: Tensor, slots: int
    ) -> dict[int | None, Tensor]:
        """For each window the additive mask (R, 1, S, slots) of tokens on their row's slots."""
        r, s = slot_RS.shape
        seen_RST = (torch.arange(slots) < slot_RS[:, :1, None]).repeat(1, s, 1)
        seen_RST.scatter_(2, slot_RS[:, None].expand(r, s, s), visible_RSS)
        key_position_RT = torch.arange(slots).repeat(r, 1).scatter_(1, slot_RS, position_RS)
        distance_RST = position_RS[..., None] - key_position_RT[:, None]
        return {
            w: additive(seen_RST if w is None else seen_RST & (distance_RST < w), self.dtype) for w in set(self.windows)
        }


def _copy_rows(slots_RT: Tensor, rows_R: Tensor, slots: int) -> Tensor:
    """The first slots of the rows, padded with empty ones up to `slots`."""
    copied = slots_RT[rows_R, :, :slots]
    return F.pad(copied, (0, 0, 0, slots - copied.shape[2]))
