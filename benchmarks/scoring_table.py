"""Formats the results of benchmarks.scoring as a table."""

from __future__ import annotations

from typing import Any

from benchmarks.scoring_workloads import KINDS

COLUMNS = (
    "workload", "prompts", "x lm-eval", "goal", "wall", "lm-eval s", "ours s", "batch", "peak share", "memory",
    "max diff", "mean diff",
)  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """Formats the workloads in the results, a line each in process-CPU seconds, then cost and profile if present."""
    rows = [COLUMNS] + [_row(name, results[name]) for name in KINDS if name in results]
    lines = _aligned(rows)
    if entry := results.get("cot_bf16"):
        lines += [
            "",
            f"cot_bf16: sampling {_number(entry['ratio_sampling'])}, scoring {_number(entry['ratio_scoring'])}, vLLM's "
            f"seconds / ours {_number(entry['vllm_ratio'])}; tokens sampled a second: ours "
            f"{entry['ours']['sampled_tokens_per_s']}, generate {entry['lm_eval']['sampled_tokens_per_s']}",
        ]
    if entry := results.get("admissions_bf16", {}).get("all"):
        lines += [f"admissions_bf16, all {entry['prompts']} prompts, once: {_number(entry['ratio_to_lm_eval'])}"]
    if entry := results.get("cost"):
        head = ("questions", "prompts", "unique tokens", "cpu s", "wall s", "us cpu/token")
        keys = ("questions", "prompts", "unique", "cpu_s", "wall_s", "us_cpu_per_unique_token")
        lines += ["", *_aligned([head, *(tuple(_number(r[k]) for k in keys) for r in entry)])]
    if entry := results.get("profile"):
        shares = [(f"{o['share']:.1%}", str(o["calls"]), o["name"]) for o in entry["operations"]]
        shares.append((f"{entry['outside_of_operations_share']:.1%}", "", "outside of operations"))
        lines += ["", *_aligned([("share", "calls", "operation"), *shares])]
    return "\n".join(lines)


def _row(name: str, r: dict[str, Any]) -> tuple[str, ...]:
    values = (
        r["prompts"], r["ratio_to_lm_eval"], r["goal"], r["ratio_wall"], r["lm_eval"]["cpu_s"], r["ours"]["cpu_s"],
        r["lm_eval_batch_size"], r.get("share_of_matmul_peak"), r["peak_memory_ratio"],
        r["max_abs_logprob_difference"], r["mean_abs_logprob_difference"],
    )  # fmt: skip
    return (name, *map(_number, values))


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
