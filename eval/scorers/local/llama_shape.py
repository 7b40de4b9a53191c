"""The weights of a Llama-shaped decoder, joined and packed for CPUs.

The weights of queries, keys and values become one matrix. The norms' scales are folded into the matrices that follow.
Each matrix is packed once for oneDNN, whose products also do SwiGLU and the residual sums (the operators that torch's
own compiler uses). A model's modules decide whether it fits, never its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


class UnsupportedModelError(Exception):
    """The model's modules are not those of a Llama-shaped decoder, or this torch lacks an operator."""


class Product:
    """x @ weight.T + bias, followed in the same pass by swish, `other *` or `other +`. packed: pack once for oneDNN."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, packed: bool = True) -> None:
        self.weight = weight.to(dtype).contiguous()
        try:
            if packed:
                self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, 64)
        except (AttributeError, RuntimeError) as error:
            raise UnsupportedModelError(f"this torch does not pack weights: {error}".partition("\n")[0]) from error
        self.bias = None if bias is None else bias.to(dtype)

    def __call__(self, x_NI: Tensor, activation: str = "none", chunk_rows: int | None = None) -> Tensor:
        """Computes the product.

        Args:
            x_NI: The inputs.
            activation: "none" or "swish".
            chunk_rows: Compute so many rows at a time, a divisor of N; a row's result then does not depend on N.
        """
        if chunk_rows and len(x_NI) > chunk_rows:
            return torch.cat([self(part, activation) for part in x_NI.split(chunk_rows)])
        return torch.ops.mkldnn._linear_pointwise(x_NI, self.weight, self.bias, activation, [], "")

    def with_other(self, x_NI: Tensor, other_NO: Tensor, operation: str, chunk_rows: int | None = None) -> Tensor:
        """Computes the product and applies operation "add" or "mul" with other_NO. chunk_rows: see `__call__`."""
        if chunk_rows and len(x_NI) > chunk_rows:
            parts = zip(x_NI.split(chunk_rows), other_NO.split(chunk_rows), strict=True)
            return torch.cat([self.with_other(x, other, operation) for x, other in parts])
        return torch.ops.mkldnn._linear_pointwise.binary(x_NI, other_NO, self.weight, self.bias, operation)


@dataclass
class Layer:
    """A layer's products. Each head's halves of queries and keys are interleaved: neighbours form a pair to rotate.

    Attributes:
        eps: Those of the two norms.
        head_scales: Scale and eps of the norms of queries and keys, where the model has them.
        scaling: Factor of the attention scores.
    """

    qkv: Product
    out: Product
    gate: Product
    up: Product
    down: Product
    eps: tuple[float, float]
    head_scales: tuple[tuple[Tensor, float], ...]
    scaling: float


@dataclass(frozen=True)
class Heads:
    """Number of query heads, number of key heads, and their size."""

    queries: int
    keys: int
    size: int


def layer(module: Any, dtype: torch.dtype) -> Layer:
    """Packs a layer. Its modules must compute in fp32 (eval.scorers.local.widen.in_fp32).

    Raises:
        UnsupportedModelError: The layer is not attention with an MLP of SwiGLU and two RMSNorms.
    """
    if {name for name, _ in module.named_children()} != PARTS:
        raise UnsupportedModelError("a layer is not attention, an MLP and two norms")
    attention, mlp = module.self_attn, module.mlp
    if {name for name, _ in mlp.named_children()} != {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        raise UnsupportedModelError("an MLP is not gate, up and down")
    if type(mlp.act_fn).__name__ not in ("SiLU", "SiLUActivation"):
        raise UnsupportedModelError("an MLP is not SwiGLU")
    scale_in, eps_in = norm(module.input_layernorm)
    scale_mlp, eps_mlp = norm(module.post_attention_layernorm)
    qkv_weight, qkv_bias, head_scales = _qkv(attention)

    def product(linear: Any, scale: Tensor | None = None, packed: bool = True) -> Product:
        weight, bias = matrix(linear)
        return Product(weight if scale is None else weight * scale, bias, dtype, packed)

    fp32 = dtype == torch.float32  # the model's own matrices are used where possible: a third less memory

    return Layer(
        Product(qkv_weight * scale_in, qkv_bias, dtype), product(attention.o_proj, packed=not fp32),
        product(mlp.gate_proj, scale_mlp), product(mlp.up_proj, scale_mlp), product(mlp.down_proj, packed=not fp32),
        (eps_in, eps_mlp), head_scales, float(attention.scaling),
    )  # fmt: skip


def _qkv(attention: Any) -> tuple[Tensor, Tensor | None, tuple[tuple[Tensor, float], ...]]:
    """(weight, bias, scales of the norms of queries and keys), with the halves of heads interleaved."""
    size = heads(attention).size
    interleaved = torch.arange(size).view(2, -1).T.flatten()

    def interleave(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (-1, size))[:, interleaved].flatten(0, 1)

    (q, q_bias), (k, k_bias), (v, v_bias) = (matrix(getattr(attention, f"{x}_proj")) for x in "qkv")
    bias = None
    if any(b is not None for b in (q_bias, k_bias, v_bias)):
        q_bias, k_bias, v_bias = (
            torch.zeros(len(w)) if b is None else b for w, b in ((q, q_bias), (k, k_bias), (v, v_bias))
        )
        bias = torch.cat([interleave(q_bias), interleave(k_bias), v_bias])
    scales = ()
    if hasattr(attention, "q_norm"):
        norms = [norm(attention.q_norm), norm(attention.k_norm)]
        if any(len(scale) != size for scale, _ in norms):
            raise UnsupportedModelError("the norms of queries and keys are not per head")
        scales = tuple((scale[interleaved], eps) for scale, eps in norms)
    return torch.cat([interleave(q), interleave(k), v]), bias, scales


def matrix(linear: Any) -> tuple[Tensor, Tensor | None]:
    """(weight (out, in), bias or None) of a linear module in fp32, including adapters on top of it.

    Of anything but nn.Linear itself (a LoRA layer, say) the matrix is what the module makes of the unit vectors.
    """
    if type(linear) is nn.Linear:
        return linear.weight.detach().float(), None if linear.bias is None else linear.bias.detach().float()
    inputs = getattr(linear, "in_features", None)
    if inputs is None:
        raise UnsupportedModelError("a projection is not linear")
    bias_O = linear(torch.zeros(1, inputs))[0]
    weight_OI = (linear(torch.eye(inputs)) - bias_O).T
    return weight_OI, bias_O if bool(bias_O.any()) else None


def heads(attention: Any) -> Heads:
    """The heads of an attention module.

    Raises:
        UnsupportedModelError: It is not q, k, v and o with one size of head.
    """
    size = int(getattr(attention, "head_dim", 0))
    parts = [getattr(attention, f"{x}_proj", None) for x in "qkvo"]
    extra = {name for name, _ in attention.named_children()} - {f"{x}_proj" for x in "qkvo"} - {"q_norm", "k_norm"}
    if not size or size % 2 or None in parts or extra:
        raise UnsupportedModelError("attention is not q, k, v and o")
    q, k = (int(getattr(p, "out_features", 0)) // size for p in parts[:2])
    if not k or q % k:
        raise UnsupportedModelError("attention is not q, k, v and o")
    return Heads(q, k, size)


def norm(module: Any) -> tuple[Tensor, float]:
    """(scale in fp32, eps) of an RMSNorm. Raises UnsupportedModelError for another norm."""
    eps = getattr(module, "variance_epsilon", None)
    if eps is None or getattr(module, "bias", None) is not None:
        raise UnsupportedModelError("a norm is not RMSNorm")
    return module.weight.detach().float(), float(eps)
