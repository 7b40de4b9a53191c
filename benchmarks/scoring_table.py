"""The results of benchmarks.scoring as a table to read."""

from __future__ import annotations

from typing import Any

from benchmarks.scoring_workloads import KINDS

COLUMNS = (
    "workload", "prompts", "x lm-eval", "goal", "wall", "lm-eval s", "ours s", "batch", "peak share", "memory",
    "max diff", "mean diff",
)  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """All workloads in the results, a line each (seconds are process-CPU), then cost and profile where they are."""
    rows = [COLUMNS] + [_row(name, results[name]) for name in KINDS if name in results]
    lines = _aligned(rows)
    if found := results.get("cot_bf16"):
        lines += [
            "",
            f"cot_bf16: sampling {_number(found['ratio_sampling'])}, scoring {_number(found['ratio_scoring'])}, vLLM's "
            f"seconds / ours {_number(found['vllm_ratio'])}; tokens sampled a second: ours "
            f"{found['ours']['sampled_tokens_per_s']}, generate {found['lm_eval']['sampled_tokens_per_s']}",
        ]
    if found := results.get("admissions_bf16", {}).get("all"):
        lines += [f"admissions_bf16, all {found['prompts']} prompts, once: {_number(found['ratio_to_lm_eval'])}"]
    if found := results.get("cost"):
        head = ("questions", "prompts", "unique tokens", "cpu s", "wall s", "us cpu/token")
        keys = ("questions", "prompts", "unique", "cpu_s", "wall_s", "us_cpu_per_unique_token")
        lines += ["", *_aligned([head, *(tuple(_number(r[k]) for k in keys) for r in found)])]
    if found := results.get("profile"):
        shares = [(f"{o['share']:.1%}", str(o["calls"]), o["name"]) for o in found["operations"]]
        shares.append((f"{found['outside_of_operations_share']:.1%}", "", "outside of operations"))
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
