"""Estimates how many tokens fit into one forward pass. A pass that runs out of memory is halved and repeated.

Counted per token: the activations of one layer (those of other layers are freed, since there are no gradients), its
attention scores against a row, its row of the mask, and its share of the logits, which only requested positions have.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Any

import torch

from eval.scorers.local.portable import ROW_TOKENS

CPU_TOKENS = 2048
"""More gains nothing on a CPU (docs/speed.md), and the activations stay small compared with the weights."""
MIN_TOKENS, MAX_TOKENS = 256, 65536
MEMORY_SHARE = 0.5  # of the free memory; the rest is for what the count leaves out
LOGIT_SHARE = 0.25  # at most so many of the positions have logits


def default_batch_tokens(model: Any, device: torch.device) -> int:
    """The batch_tokens of a loaded model: by the free memory on CUDA, fixed on a CPU."""
    if device.type != "cuda":
        return CPU_TOKENS
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # reserved by PyTorch and unused
    return affordable_tokens(free, model.config.get_text_config(), model.get_input_embeddings().weight.element_size())


def affordable_tokens(free: int, config: Any, element: int) -> int:
    """How many tokens' forward pass needs about half of the free memory.

    Args:
        free: Free bytes.
        config: The text model's configuration.
        element: Bytes of one weight.

    Returns:
        A power of two in MIN_TOKENS to MAX_TOKENS; CPU_TOKENS if the configuration does not give the model's shape.
    """
    hidden, vocabulary = getattr(config, "hidden_size", None), getattr(config, "vocab_size", None)
    heads = getattr(config, "num_attention_heads", None)
    if not hidden or not vocabulary or not heads:
        return CPU_TOKENS
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    layer = element * (8 * hidden + 3 * inner)
    attention = ROW_TOKENS * (heads * (4 + element) + element)
    logits = LOGIT_SHARE * vocabulary * 4 * 3  # fp32, once more in log-softmax, and its result
    head = 4 * vocabulary * hidden  # the output layer in fp32
    tokens = int((free * MEMORY_SHARE - head) / (layer + attention + logits))
    return min(max(1 << max(tokens, 1).bit_length() - 1, MIN_TOKENS), MAX_TOKENS)


def out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python raised this error because memory ran out."""
    message = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        words in message for words in ("not enough memory", "can't allocate memory", "out of memory")
    )


def keep_freed_memory() -> None:
    """Makes glibc's malloc keep freed memory, for this process; does nothing with another C library.

    Large activations come and go with every layer. Returning each to the system and faulting its pages in again takes
    longer than many a layer.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for option, value in ((-1, 2**31 - 1), (-2, 1 << 26), (-3, 1 << 30)):  # trim threshold, top pad, mmap threshold
        libc.mallopt(option, value)
