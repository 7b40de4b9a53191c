"""The numbers of the scoring benchmark: seconds, ratios, the matmul peak, memory, and the file that keeps them."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from eval.runner.provenance import git_commit

MALLOC = {
    "MALLOC_TOP_PAD_": "67108864",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
}
"""The Makefile's settings, for both sides: freed memory is kept instead of returned and faulted in again."""
PEAK_SHAPES = ((512, 576, 1536), (512, 1536, 576), (2048, 576, 1536), (2048, 2048, 2048))
PEAK_SECONDS = 0.15  # duration of each try
PACKAGES = ("torch", "transformers", "lm_eval", "tokenizers", "numpy")

Run = dict[str, Any]
"""One timed run: side, round, wall_s, cpu_s, prompts and more."""


def say(text: str) -> None:
    """Prints progress on stderr, with the time."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def timed(job: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Returns ({wall_s, cpu_s} with process-CPU seconds of all threads, the job's result)."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = job()
    cost = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    return {k: round(v, 4) for k, v in cost.items()}, result


def round_ratio(runs: Sequence[Run], key: str, above: str = "lm_eval", below: str = "ours") -> float | None:
    """Returns the median over the rounds of one side's value over the other's. None without a round.

    Only numbered rounds count, so a run kept for another purpose ('all') does not.
    """
    by_round: dict[int, dict[str, float]] = {}
    for run in runs:
        if isinstance(run["round"], int):
            by_round.setdefault(run["round"], {})[run["side"]] = run[key]
    ratios = [r[above] / r[below] for r in by_round.values() if above in r and below in r]
    return round(median(ratios), 3) if ratios else None


def side_medians(runs: Sequence[Run], side: str, keys: Iterable[str]) -> dict[str, float]:
    """Returns a side's median over its numbered rounds, for each of the keys that its runs have."""
    chosen = [r for r in runs if r["side"] == side and isinstance(r["round"], int)]
    return {k: round(median(r[k] for r in chosen), 4) for k in keys if chosen and k in chosen[0]}


def differences(logprobs: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> dict[str, float]:
    """Returns how far log-probabilities are from the true ones, and how often the most probable candidate differs."""
    gaps = np.abs(np.concatenate(list(logprobs)) - np.concatenate(list(true)))
    changed = [int(a.argmax() != b.argmax()) for a, b in zip(logprobs, true, strict=True)]
    return {"max": float(gaps.max()), "mean": float(gaps.mean()), "argmax_changed": float(np.mean(changed))}


def linear_parameters(model: Any) -> tuple[int, int]:
    """Returns the numbers of parameters (of the linear layers without the output layer, of the output layer)."""
    head = model.get_output_embeddings()
    linears = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)}
    return sum(linears.values()) - linears.pop(id(head.weight), 0), head.weight.numel()


def matmul_peak(dtype: torch.dtype) -> dict[str, Any]:
    """Measures this machine's fastest matrix product of a dtype, with the threads now set.

    Tries plain weights and oneDNN's packed weights.

    Returns:
        GFLOP per process-CPU second and per second of wall time, the best of several shapes and tries.
    """
    best: dict[str, Any] = {"gflop_per_cpu_s": 0.0, "gflop_per_wall_s": 0.0}
    for m, k, n in PEAK_SHAPES:
        x, weight = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
        for layout, product in _products(x, weight):
            product()
            for _ in range(3):
                cost, times = timed(lambda product=product: _repeat(product))
                gflop = 2e-9 * m * k * n * times
                best["gflop_per_wall_s"] = max(best["gflop_per_wall_s"], round(gflop / cost["wall_s"], 1))
                if (rate := round(gflop / cost["cpu_s"], 1)) > best["gflop_per_cpu_s"]:
                    best |= {"gflop_per_cpu_s": rate, "shape": [m, k, n], "weights": layout}
    return best


def _products(x: torch.Tensor, weight: torch.Tensor) -> list[tuple[str, Callable[[], torch.Tensor]]]:
    products = [("plain", lambda: torch.nn.functional.linear(x, weight))]
    try:  # oneDNN's packed weights have no public name
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, x.shape[0])
        run = torch.ops.mkldnn._linear_pointwise
        run(x, packed, None, "none", [], "")
        products.append(("packed", lambda: run(x, packed, None, "none", [], "")))
    except (AttributeError, RuntimeError):
        pass
    return products


def _repeat(product: Callable[[], Any]) -> int:
    times, until = 0, time.perf_counter() + PEAK_SECONDS
    while time.perf_counter() < until:
        product()
        times += 1
    return times


def peak_rss_mib() -> float:
    """Returns the largest resident memory of this process so far, in MiB.

    It comes from /proc if there is one: ru_maxrss also counts the memory of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def versions() -> dict[str, str | None]:
    """Returns the versions of what the measurement depends on, and the commit."""
    package_versions: dict[str, str | None] = {"python": platform.python_version(), "commit": git_commit()}
    for package in PACKAGES:
        try:
            package_versions[package] = version(package)
        except PackageNotFoundError:
            package_versions[package] = None
    return package_versions


def machine(threads: int) -> dict[str, Any]:
    """Returns the processor and the settings that both sides ran with."""
    model = ""
    if (info := Path("/proc/cpuinfo")).is_file():
        model = next((x.partition(":")[2].strip() for x in info.read_text().splitlines() if "model name" in x), "")
    settings = (*MALLOC, "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "TOKENIZERS_PARALLELISM", "LD_PRELOAD")
    return {
        "processor": model or platform.processor(), "cpus": os.cpu_count(), "threads": threads,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "environment": {name: os.environ.get(name) for name in settings},
    }  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """Returns the results in the file, {} without one."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def merge(path: Path, parts: dict[str, Any]) -> None:
    """Merges parts into the results file and keeps the others. A kill leaves either the old or the new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".tmp")
    new.write_text(json.dumps(read(path) | parts, indent=1) + "\n", encoding="utf-8")
    new.replace(path)
