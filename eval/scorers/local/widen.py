"""Makes a half-precision model compute in fp32, one module at a time, so that it needs little extra memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

HALF = (torch.float16, torch.bfloat16)


@contextmanager
def in_fp32(model: torch.nn.Module) -> Iterator[None]:
    """Within this context every module's half-precision weights are fp32 during its forward call.

    Afterwards the weights are the same tensors, bit for bit. Adapters (modules around a base_layer) are widened as one.

    Raises:
        RuntimeError: From the forward call, for mixed dtypes, if a module reads another's weights without calling it.
    """
    handles = []
    for module in _units(model):
        widened: list[tuple[Any, torch.Tensor]] = []

        def widen(module: torch.nn.Module, _: Any, __: Any, widened: list = widened) -> None:
            with_children = hasattr(module, "base_layer")
            tensors = [*module.parameters(recurse=with_children), *module.buffers(recurse=with_children)]
            for tensor in {id(t): t for t in tensors if t.dtype in HALF}.values():
                widened.append((tensor, tensor.data))
                tensor.data = tensor.data.float()

        def restore(*_: Any, widened: list = widened) -> None:
            while widened:
                tensor, data = widened.pop()
                tensor.data = data

        handles.append(module.register_forward_pre_hook(widen, with_kwargs=True))
        handles.append(module.register_forward_hook(restore, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _units(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The modules to widen one by one: those with weights of their own, and adapters with everything inside them."""
    with_children = hasattr(module, "base_layer")
    if any(p.dtype in HALF for p in module.parameters(recurse=with_children)) or any(
        b.dtype in HALF for b in module.buffers(recurse=with_children)
    ):
        yield module
    if not with_children:
        for child in module.children():
            yield from _units(child)
