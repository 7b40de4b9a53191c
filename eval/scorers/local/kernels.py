"""The operations between the fused tier's matrix products: norms, rotary embeddings, attention on a tree.

These use torch's operators. eval.scorers.local.native does the same in compiled code where there is a compiler.
Shapes: N nodes, P nodes of the pool, B blocks of C nodes, K keys, H hidden, D head, W any other width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eval.scorers.local.llama_shape import Heads, Layer
from eval.scorers.local.prefix_tree import Slice

SLOTS = 64  # keys of dialogues are stored in multiples of so many slots
KEYS_STEP = 16  # blocks are grouped by their number of keys, rounded up to this

Group = tuple[Tensor, Tensor, dict[int | None, Tensor]]
"""Blocks with about as many keys.

Their indices (B,), their keys in the pool (B, K), and for each window the additive mask (B, 1, C, K).
"""


class TorchKernels:
    """The kernels by torch's operators. block: nodes whose attention is computed together."""

    name = "torch"
    block = 32

    def normed(self, x_NH: Tensor, eps: float) -> Tensor:
        """x divided by its root mean square: computed in fp32, returned in x's dtype.

        The norm's scale is in the matrix that follows.
        """
        wide_NH = x_NH.float()
        square_N1 = torch.linalg.vector_norm(wide_NH, dim=-1, keepdim=True).square_()
        scale_N1 = torch.rsqrt(square_N1 / x_NH.shape[-1] + eps)
        if wide_NH is x_NH:
            return x_NH * scale_N1
        return wide_NH.mul_(scale_N1).to(x_NH.dtype)

    def turn(self, qkv_NW: Tensor, rotation: Tensor, heads: Heads, layer: Layer) -> None:
        """Applies the norms of queries and keys, where the layer has them, and rotates both, in place.

        rotation: cos + i sin of each pair of neighbours, (N, 1, D / 2).
        """
        rotated_width = (heads.queries + heads.keys) * heads.size
        qk = qkv_NW[:, :rotated_width].unflatten(1, (-1, heads.size)).float()
        if layer.head_scales:
            parts = qk.split([heads.queries, heads.keys], dim=1)
            scaled = zip(parts, layer.head_scales, strict=True)
            qk = torch.cat([F.rms_norm(p, (heads.size,), s, e) for p, (s, e) in scaled], dim=1)
        pairs = torch.view_as_complex(qk.unflatten(2, (-1, 2))).mul_(rotation)
        if not (qkv_NW.dtype == torch.float32 and not layer.head_scales):  # in that case the rotation was in place
            qkv_NW[:, :rotated_width] = torch.view_as_real(pairs).flatten(1)

    def layout(self, piece: Slice, width: int, windows: set[int | None], dtype: torch.dtype) -> Any:
        """Which keys the slice's blocks attend to, as input of `attend`.

        Nothing attends to padding. Padding attends at least to itself, or has no block at all.

        Args:
            piece: The slice.
            width: Number of its nodes with padding.
            windows: The attention windows of the layers; None for full attention.
            dtype: The dtype of the masks.
        """
        n, n_path, block = len(piece.tokens_N), piece.path, piece.block
        last_P = np.concatenate([piece.last_P, np.arange(n_path + n, n_path + width)])
        depth_P = np.concatenate([np.arange(n_path), piece.depth_N, np.zeros(width - n, dtype=np.int64)])
        sizes = np.array([-(-(len(a) + block) // KEYS_STEP) * KEYS_STEP for a in piece.ancestors])
        groups: list[Group] = []
        for size in np.unique(sizes):
            which = np.flatnonzero(sizes == size)
            keys_BK = np.full((len(which), size), -1)
            for row, b in enumerate(which):
                keys = np.concatenate([piece.ancestors[b], np.arange(block) + n_path + b * block])
                keys_BK[row, : len(keys)] = keys
            nodes_BC1 = (n_path + which[:, None] * block + np.arange(block))[..., None]
            valid_B1K, keys_BK = (keys_BK >= 0)[:, None], np.maximum(keys_BK, 0)
            visible = valid_B1K & (keys_BK[:, None] <= nodes_BC1) & (nodes_BC1 <= last_P[keys_BK][:, None])
            distance = depth_P[nodes_BC1] - depth_P[keys_BK][:, None]
            masks = {
                w: additive(torch.from_numpy(visible if w is None else visible & (distance < w)), dtype)
                for w in windows
            }
            groups.append((torch.from_numpy(which), torch.from_numpy(keys_BK), masks))
        return block, groups

    def attend(
        self, layout: Any, window: int | None, scaling: float, heads: Heads, qkv_NW: Tensor, path_PW: Tensor | None
    ) -> Tensor:
        """Attention of every node on its ancestors.

        Args:
            layout: What `layout` returned.
            window: How many positions a node sees; None for all.
            scaling: Factor of the scores.
            heads: Numbers of heads and their size.
            qkv_NW: Queries, keys and values of the slice's nodes.
            path_PW: Keys and values before the slice, or None.

        Returns:
            (N, query heads * D).
        """
        block, groups = layout
        kv, d = heads.keys, heads.size
        kv_NW = qkv_NW[:, heads.queries * d :]
        pool_PW = kv_NW if path_PW is None else torch.cat([path_PW, kv_NW])
        q_BCW = qkv_NW[:, : heads.queries * d].unflatten(0, (-1, block))
        out_BCW = torch.empty(len(q_BCW), block, heads.queries * d, dtype=qkv_NW.dtype)
        out_BCW[sum(len(which_B) for which_B, _, _ in groups) :] = 0  # padding without a block
        for which_B, keys_BK, masks in groups:
            b, k = keys_BK.shape
            q = q_BCW[which_B].view(b, block, heads.queries, d).transpose(1, 2)
            pairs = pool_PW.index_select(0, keys_BK.flatten()).view(b, k, 2, kv, d)
            key, value = pairs[:, :, 0].transpose(1, 2), pairs[:, :, 1].transpose(1, 2)
            a = F.scaled_dot_product_attention(q, key, value, masks[window], scale=scaling, enable_gqa=True)
            out_BCW[which_B] = a.transpose(1, 2).reshape(b, block, -1)
        return out_BCW.flatten(0, 1)

    def decode(
        self, qkv_RW: Tensor, keys: Tensor, values: Tensor, lengths_R: Tensor, window: int | None, scaling: float,
        heads: Heads,
    ) -> Tensor:  # fmt: skip
        """Attention of one token each of R dialogues on the first lengths_R[r] slots of its row.

        Args:
            qkv_RW: Queries, keys and values of the tokens.
            keys: (rows, key heads, slots, D), rows at least R and slots a multiple of SLOTS.
            values: Like keys.
            lengths_R: How many slots each row has filled.
            window: How many positions a token sees; None for all.
            scaling: Factor of the scores.
            heads: Numbers of heads and their size.

        Returns:
            (R, query heads * D).
        """
        slots = -(-int(lengths_R.max()) // SLOTS) * SLOTS  # a row's result depends on the number of slots
        q_RHD = qkv_RW[: len(lengths_R), : heads.queries * heads.size].unflatten(1, (heads.queries, heads.size))
        slot_T = torch.arange(slots)
        visible_RT = slot_T < lengths_R[:, None]
        if window is not None:
            visible_RT &= slot_T >= lengths_R[:, None] - window
        key, value = (cache[: len(lengths_R), :, :slots] for cache in (keys, values))
        mask = additive(visible_RT[:, None], qkv_RW.dtype)
        a = F.scaled_dot_product_attention(q_RHD[:, :, None], key, value, mask, scale=scaling, enable_gqa=True)
        return a.flatten(1)


def additive(allowed_BCK: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive mask (B, 1, C, K): 0 where allowed, else -inf."""
    mask = torch.zeros(allowed_BCK.shape, dtype=dtype)
    return mask.masked_fill_(~allowed_BCK, float("-inf"))[:, None]
