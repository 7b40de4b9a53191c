"""How many tokens fit into one forward pass: a first guess, since one that runs out of memory is halved and repeated.

Counted per token: the activations of one layer (no gradients, so those of other layers are freed), its attention
scores against a row, its row of the mask, and its share of logits, of which only the wanted positions have some.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Any

import torch

from eval.scorers.local.portable import ROW_TOKENS

ON_CPU = 2048
"""Beyond it a CPU gains nothing (docs/speed.md), and the activations stay small beside the weights."""
LEAST, MOST = 256, 65536
USED = 0.5  # of the free memory: the rest for what the count leaves out
WANTED = 0.25  # of the positions have logits, at most


def default_batch_tokens(model: Any, device: torch.device) -> int:
    """The batch_tokens of a loaded model: by the free memory on CUDA, fixed on a CPU."""
    if device.type != "cuda":
        return ON_CPU
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # PyTorch's own, and unused
    return affordable_tokens(free, model.config.get_text_config(), model.get_input_embeddings().weight.element_size())


def affordable_tokens(free: int, config: Any, element: int) -> int:
    """Tokens whose forward pass needs about half of `free` bytes, rounded down to a power of two in LEAST to MOST.

    config: the text model's; element: bytes of one weight. ON_CPU where the configuration does not tell the shape.
    """
    hidden, vocabulary = getattr(config, "hidden_size", None), getattr(config, "vocab_size", None)
    heads = getattr(config, "num_attention_heads", None)
    if not hidden or not vocabulary or not heads:
        return ON_CPU
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    layer = element * (8 * hidden + 3 * inner)
    attention = ROW_TOKENS * (heads * (4 + element) + element)
    logits = WANTED * vocabulary * 4 * 3  # fp32, once more in log-softmax, and its result
    head = 4 * vocabulary * hidden  # the output layer in fp32
    tokens = int((free * USED - head) / (layer + attention + logits))
    return min(max(1 << max(tokens, 1).bit_length() - 1, LEAST), MOST)


def out_of_memory(error: BaseException) -> bool:
    """Whether this is what torch or Python raise where memory runs out."""
    said = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        words in said for words in ("not enough memory", "can't allocate memory", "out of memory")
    )


def keep_freed_memory() -> None:
    """Tells glibc's malloc, for this process, to keep freed memory: large activations come and go with every layer, and
    giving each back and faulting its pages in again takes longer than many a layer. Elsewhere it does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for option, value in ((-1, 2**31 - 1), (-2, 1 << 26), (-3, 1 << 30)):  # trim threshold, top pad, mmap threshold
        libc.mallopt(option, value)
