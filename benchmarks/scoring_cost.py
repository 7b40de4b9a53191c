"""Modes of benchmarks.scoring for our side only: seconds by number of questions, and a profile."""

from __future__ import annotations

import argparse
from typing import Any

from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from benchmarks.scoring_numbers import say, timed
from benchmarks.scoring_sides import Ours
from benchmarks.scoring_workloads import KINDS, count_tokens, encoded, final_prompt, load_items, questions
from eval.types import Prompt

SIZES = (100, 300, 1000, 3000, 11956)
SMALL = 1000  # fewer questions than this are run twice
TOP = 12  # operations listed in the profile
KIND = KINDS["bf16"]


def _prompts(options: argparse.Namespace, wanted: int) -> list[Prompt]:
    items = load_items(KIND.experiment, options.data_dir, wanted)
    return [final_prompt(q, options.whole_candidates) for q in questions(items, KIND.experiment, KIND.conditions)]


def _ready(options: argparse.Namespace) -> Ours:
    ours = Ours(options.model, KIND.dtype, KIND.style)
    ours.prepare(_prompts(options, 16))()
    return ours


def cost(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row per number of BBQ questions (Q and Q+IF, bf16, paper format): distinct tokens and our seconds."""
    ours = _ready(options)
    rows = []
    for size in options.cost_sizes:
        prompts = _prompts(options, size)
        tokens = count_tokens(encoded(prompts, ours.checkpoint.tokenizer, KIND.style))
        runs = [timed(ours.prepare(prompts))[0] for _ in range(2 if size < SMALL else 1)]
        best = min(runs, key=lambda r: r["cpu_s"])
        per_token = {f"us_{k[:-2]}_per_unique_token": round(1e6 * v / tokens.unique, 2) for k, v in best.items()}
        rows.append({"questions": len(prompts) // 2, "prompts": len(prompts), **vars(tokens), **best, **per_token,
                     "runs": runs})  # fmt: skip
        say(f"  cost, {size} questions: {best['cpu_s']:.2f} cpu s, {tokens.unique} unique tokens")
    return rows


def profile(options: argparse.Namespace) -> dict[str, Any]:
    """Returns shares of the calling thread's time by operation, the largest first, of the bf16 BBQ workload."""
    ours = _ready(options)
    prompts = _prompts(options, options.questions.get(KIND.name, KIND.questions))
    encoding, _ = timed(lambda: encoded(prompts, ours.checkpoint.tokenizer, KIND.style))
    job = ours.prepare(prompts)
    plain, _ = timed(job)
    with torch_profile(activities=[ProfilerActivity.CPU]) as profiler:
        profiled, _ = timed(job)
    rows = sorted(profiler.key_averages(), key=lambda e: -e.self_cpu_time_total)
    inside = sum(e.self_cpu_time_total for e in rows) / 1e6
    return {
        "prompts": len(prompts), "unprofiled": plain, "profiled": profiled, "encoding": encoding,
        "outside_of_operations_share": round(max(0.0, 1 - inside / profiled["wall_s"]), 3),
        "operations": [
            {"name": e.key, "calls": e.count, "self_s": round(e.self_cpu_time_total / 1e6, 4),
             "share": round(e.self_cpu_time_total / 1e6 / profiled["wall_s"], 4)}
            for e in rows[:TOP]
        ],
    }  # fmt: skip
