"""Builds and calls native.cpp: the operations between the fused tier's matrix products, in few passes over memory.

The first C++ compiler of $CXX, else c++, g++ or clang++, compiles the file once for this processor. The library is kept
in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache). Without a compiler torch's operators do the same, slower
(eval.scorers.local.kernels). The scorer checks the fused tier with these kernels in it (eval.scorers.local.selfcheck).
Shapes: N nodes, P nodes of the pool, B blocks, K keys of all blocks together, H hidden, D head, W any other width.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from ctypes import c_float, c_int64
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from eval.scorers.local.kernels import TorchKernels
from eval.scorers.local.llama_shape import Heads, Layer
from eval.scorers.local.prefix_tree import Slice

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("native.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-shared")
COMPILERS = ("c++", "g++", "clang++")
BUILD_SECONDS = 120
CPU_INFO = Path("/proc/cpuinfo")
SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""The compiled dtypes; torch's operators serve the others."""


@dataclass(frozen=True)
class Layout:
    """The keys of a slice's blocks: nodes of the pool by depth, block after block, and where each block's keys begin.

    last_P, depth_P: those of eval.scorers.local.prefix_tree.Slice, including its padding between branches.
    """

    before: int
    block: int
    keys_K: np.ndarray
    starts_B: np.ndarray
    last_P: np.ndarray
    depth_P: np.ndarray


class NativeKernels(TorchKernels):
    """The kernels in compiled code."""

    name = "native"
    block = 16

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def normed(self, x_NH: Tensor, eps: float) -> Tensor:
        x_NH = x_NH.contiguous()
        out_NH = torch.empty_like(x_NH)
        self._call("normed", x_NH, c_int64(len(x_NH)), c_int64(x_NH.shape[1]), c_float(eps), out_NH)
        return out_NH

    def turn(self, qkv_NW: Tensor, rotation: Tensor, heads: Heads, layer: Layer) -> None:
        if layer.head_scales:
            super().turn(qkv_NW, rotation, heads, layer)
            return
        sizes = (qkv_NW.shape[1], len(qkv_NW), heads.queries + heads.keys, heads.size)
        self._call("turn", qkv_NW, *map(c_int64, sizes), torch.view_as_real(rotation))

    def layout(self, piece: Slice, width: int, windows: set[int | None], dtype: torch.dtype) -> Layout:
        n, n_path, block = len(piece.tokens_N), piece.path, piece.block
        firsts = n_path + block * np.arange(len(piece.ancestors))
        keys = [
            np.concatenate([ancestors, np.arange(first, min(first + block, n_path + n))])
            for ancestors, first in zip(piece.ancestors, firsts, strict=True)
        ]
        depth_P = np.concatenate([np.arange(n_path), piece.depth_N])
        starts_B = np.cumsum([0, *map(len, keys)], dtype=np.int64)
        return Layout(n_path, block, _int32(np.concatenate(keys)), starts_B, _int32(piece.last_P), _int32(depth_P))

    def attend(
        self, layout: Layout, window: int | None, scaling: float, heads: Heads, qkv_NW: Tensor, path_PW: Tensor | None
    ) -> Tensor:
        n, width = len(layout.last_P) - layout.before, heads.queries * heads.size
        out_NW = torch.empty(len(qkv_NW), width, dtype=qkv_NW.dtype)
        out_NW[n:] = 0  # padding
        path_PW = qkv_NW if path_PW is None else path_PW.contiguous()
        self._call(
            "attend", qkv_NW, c_int64(qkv_NW.shape[1]), path_PW, *map(c_int64, (path_PW.shape[1], layout.before, n)),
            c_int64(layout.block), layout.keys_K, layout.starts_B, layout.last_P, layout.depth_P,
            *map(c_int64, (window or 0, heads.queries, heads.keys, heads.size)), c_float(scaling), out_NW,
        )  # fmt: skip
        return out_NW

    def decode(
        self, qkv_RW: Tensor, keys: Tensor, values: Tensor, lengths_R: Tensor, window: int | None, scaling: float,
        heads: Heads,
    ) -> Tensor:  # fmt: skip
        r = len(lengths_R)
        out_RW = torch.empty(r, heads.queries * heads.size, dtype=qkv_RW.dtype)
        self._call(
            "decode", qkv_RW, c_int64(qkv_RW.shape[1]), keys, values, c_int64(keys.shape[2]), c_int64(r), lengths_R,
            *map(c_int64, (window or 0, heads.queries, heads.keys, heads.size)), c_float(scaling), out_RW,
        )  # fmt: skip
        return out_RW

    def _call(self, name: str, first: Tensor, *rest: Tensor | np.ndarray | c_int64 | c_float) -> None:
        """Calls the function for the dtype of `first`. Arrays are passed as the address of their first number."""
        function = getattr(self.library, f"{name}_{SUFFIXES[first.dtype]}")
        with record_function(f"native::{name}"):  # so that a profile shows it
            function(*(_argument(a) for a in (first, *rest)))


def _argument(value: Tensor | np.ndarray | c_int64 | c_float) -> ctypes.c_void_p | c_int64 | c_float:
    if isinstance(value, Tensor):
        assert value.is_contiguous()
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_void_p(value.ctypes.data) if isinstance(value, np.ndarray) else value


def _int32(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.int32)


def kernels(dtype: torch.dtype) -> TorchKernels:
    """The compiled kernels, or torch's if they cannot be built or do not support the dtype."""
    library = _library() if dtype in SUFFIXES else None
    return TorchKernels() if library is None else NativeKernels(library)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The compiled library, built at the first call; None, with the reason in the log, if it cannot be built."""
    try:
        return ctypes.CDLL(str(build()))
    except (OSError, subprocess.SubprocessError) as error:
        message = getattr(error, "stderr", None) or error
        log.warning("scoring without compiled kernels, slower: %s", " ".join(str(message).split())[:300])
        return None


def build() -> Path:
    """Returns the shared library for this processor, from the cache or compiled now.

    Raises:
        OSError: There is no compiler, or no place for the file.
        subprocess.SubprocessError: The compiler fails.
    """
    configured = shlex.split(os.environ.get("CXX", ""))
    command = configured or [compiler for compiler in map(shutil.which, COMPILERS) if compiler][:1]
    if not command:
        raise FileNotFoundError(f"there is no C++ compiler ($CXX, {', '.join(COMPILERS)})")
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True, timeout=BUILD_SECONDS)
    lines = CPU_INFO.read_text(encoding="utf-8").splitlines() if CPU_INFO.is_file() else []
    processor = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    identity = (SOURCE.read_text(encoding="utf-8"), *FLAGS, version.stdout, *processor)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selfcorrect"
    path = cache / f"native-{hashlib.sha256(chr(0).join(identity).encode()).hexdigest()[:16]}.so"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:  # another process may build it too
            compiled = Path(folder) / path.name
            subprocess.run(
                [*command, *FLAGS, "-o", str(compiled), str(SOURCE)],
                capture_output=True, text=True, check=True, timeout=BUILD_SECONDS,
            )  # fmt: skip
            compiled.replace(path)
    return path
