"""One workload of benchmarks.scoring: prepares both sides, tunes lm-eval, runs the rounds, measures exactness and
memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import scoring_cot
from benchmarks.scoring_numbers import (
    Run,
    differences,
    linear_parameters,
    matmul_peak,
    peak_rss_mib,
    round_ratio,
    say,
    side_medians,
    timed,
)
from benchmarks.scoring_sides import DTYPES, LmEval, Ours, Scores, plain_scores, reference_scores
from benchmarks.scoring_workloads import Kind, Tokens, count_tokens, encoded, final_prompt, load_items, questions
from eval.runner.plan import Question
from eval.types import Prompt

SECONDS = ("cpu_s", "wall_s", "sample_cpu_s", "sample_wall_s", "score_cpu_s", "score_wall_s", "sampled_tokens_per_s")


class Workload:
    """A kind with its questions, and one run of it by a side."""

    def __init__(self, kind: Kind, options: argparse.Namespace, wanted: int | None = None) -> None:
        self.kind, self.options = kind, options
        self.style = options.admissions_format if kind.experiment == "admissions" else kind.style
        n = options.questions.get(kind.name, kind.questions) if wanted is None else wanted
        items = load_items(kind.experiment, options.data_dir, n)
        self.questions: list[Question] = questions(items, kind.experiment, kind.conditions)
        self.items = len(items)
        self.cot = any(q.condition.reasoning for q in self.questions)

    def prompts(self) -> list[Prompt]:
        """Returns the prompts to score, without those that need sampled reasoning."""
        whole_candidates = self.options.whole_candidates
        return [final_prompt(q, whole_candidates) for q in self.questions if not q.condition.reasoning]

    def run(self, side: Ours | LmEval, seed: int, sample_batch: int) -> tuple[Run, Scores]:
        """Times one run of a side."""
        if self.cot:
            whole_candidates, length = self.options.whole_candidates, self.options.length
            run, scores = scoring_cot.run_once(side, self.questions, whole_candidates, length, seed, sample_batch)
        else:
            run, scores = timed(side.prepare(self.prompts()))
        run |= {"prompts": len(scores)}
        if isinstance(side, LmEval):
            run |= {"rows": side.rows, "padded_tokens": side.padded_tokens}
        return run, scores


def make_side(name: str, workload: Workload, batch_size: int = 8) -> Ours | LmEval:
    model, dtype = workload.options.model, workload.kind.dtype
    if name == "ours":
        return Ours(model, dtype, workload.style)
    return LmEval(model, dtype, workload.style, batch_size)


def part(prompts: Sequence[Prompt], wanted: int, block: int) -> list[Prompt]:
    """Returns about `wanted` prompts in whole blocks spread evenly.

    Whole blocks keep neighbours, whose beginnings are shared, together.
    """
    blocks = [list(prompts[i : i + block]) for i in range(0, len(prompts), block)]
    step = max(1, len(blocks) * block // max(wanted, 1))
    return [p for b in blocks[::step] for p in b]


def tune(lm: LmEval, prompts: Sequence[Prompt], sizes: Sequence[int]) -> tuple[int, list[Run]]:
    """Returns lm-eval's fastest batch size, and the runs that showed it: each size once, the two fastest once more."""
    job = lm.prepare(prompts)
    runs: list[Run] = []

    def measure(size: int) -> None:
        lm.set_batch_size(size)
        cost, _ = timed(job)
        runs.append({"batch_size": size, "prompts": len(prompts), **cost})
        say(f"  lm-eval, batches of {size}: {cost['cpu_s']:.1f} cpu s, {cost['wall_s']:.1f} s")

    for size in sizes:
        measure(size)
    for run in sorted(runs, key=lambda r: r["cpu_s"])[:2]:
        measure(run["batch_size"])
    best = min(runs, key=lambda r: r["cpu_s"])["batch_size"]
    lm.set_batch_size(best)
    return best, runs


def rounds(workload: Workload, sides: Sequence[Ours | LmEval], sample_batch: int) -> list[Run]:
    """Runs all rounds. The sides take turns, and the first one alternates from round to round."""
    runs: list[Run] = []
    for k in range(workload.options.rounds):
        for side in sides if k % 2 == 0 else sides[::-1]:
            gc.collect()
            run, _ = workload.run(side, k, sample_batch)
            runs.append({"side": side.name, "round": k, **run})
            say(f"  round {k}, {side.name}: {run['cpu_s']:.2f} cpu s, {run['wall_s']:.2f} s")
    return runs


def first_pass(ours: Ours, lm: LmEval, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Checks token identity, and measures the cost of the scorer's first prompts with its self-check."""
    tokens = encoded(prompts, ours.checkpoint.tokenizer, lm.style.name)
    lm.check_same_tokens(prompts, tokens)
    first = prompts[: min(64, len(prompts))]
    check, _ = timed(ours.prepare(first))
    again, _ = timed(ours.prepare(first))
    timed(lm.prepare(prompts[:8]))
    return {
        "self_check_s": round(max(0.0, check["wall_s"] - again["wall_s"]), 3),
        "self_check_cpu_s": round(max(0.0, check["cpu_s"] - again["cpu_s"]), 3),
        "first_call": {"prompts": len(first), "first": check, "again": again},
    }


def exactness(workload: Workload, ours: Ours, lm: LmEval) -> dict[str, Any]:
    """Compares log-probabilities of some prompts with plain fp32 passes: ours, lm-eval's, plain ones in this dtype."""
    prompts = part(workload.prompts(), workload.options.checked, 8)
    tokens = encoded(prompts, ours.checkpoint.tokenizer, workload.style)
    reference = reference_scores(workload.options.model, "float32", tokens)
    gaps = {
        "ours": differences(ours.prepare(prompts)(), reference),
        "lm_eval": differences(lm.prepare(prompts)(), reference),
        "plain_same_dtype": differences(plain_scores(lm.lm.model, tokens), reference),
    }
    return {
        "max_abs_logprob_difference": gaps["ours"]["max"],
        "mean_abs_logprob_difference": gaps["ours"]["mean"],
        "logprob_differences": {"prompts": len(prompts), "from": "plain fp32 passes", **gaps},
    }


def memory(workload: Workload, batch_size: int, sample_batch: int) -> dict[str, Any]:
    """Measures the peak resident memory of a fresh process per side, and their ratio."""
    by_side = {}
    for name in ("ours", "lm_eval"):
        internal = ["--side", name, "--batch_size", str(batch_size), "--sample_batch", str(sample_batch)]
        command = [sys.executable, "-m", "benchmarks.scoring", *workload.options.argv, "--only", workload.kind.name]
        process = subprocess.run([*command, *internal], capture_output=True, text=True, check=False)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command + internal)}: {process.stderr[-2000:]}")
        by_side[name] = json.loads(process.stdout.splitlines()[-1])
        say(f"  memory, {name}: {by_side[name]['peak_mib']:.0f} MiB")
    return {
        "peak_memory_ratio": round(by_side["ours"]["peak_mib"] / by_side["lm_eval"]["peak_mib"], 3),
        "memory": by_side,
    }


def memory_of_side(workload: Workload) -> None:
    """Runs the workload once in the process that `memory` starts, and prints what it took."""
    options = workload.options
    side = make_side(options.side, workload, options.batch_size)
    loaded = peak_rss_mib()
    run, _ = workload.run(side, 0, options.sample_batch)
    print(json.dumps({"peak_mib": round(peak_rss_mib(), 1), "loaded_mib": round(loaded, 1), **run}))


def on_all(workload: Workload, ours: Ours, lm: LmEval) -> dict[str, Any]:
    """Runs each side once on all admissions prompts."""
    options = workload.options
    everything = Workload(workload.kind, options, 0)
    if options.skip_all or everything.items == workload.items:
        return {"runs": []}
    runs = []
    for side in (ours, lm):
        run, _ = everything.run(side, 0, 0)
        runs.append({"side": side.name, "round": "all", **run})
        say(f"  all {everything.items} prompts x conditions, {side.name}: {run['cpu_s']:.1f} cpu s")
    tokens = count_tokens(encoded(everything.prompts(), ours.checkpoint.tokenizer, workload.style))
    cost = {r["side"]: r["cpu_s"] for r in runs}
    return {
        "runs": runs,
        "all": {
            "items": everything.items, "prompts": len(everything.prompts()), "tokens": vars(tokens),
            "ratio_to_lm_eval": round(cost["lm_eval"] / cost["ours"], 3),
        },
    }  # fmt: skip


def peak_shares(
    model: Any, tokens: Tokens, peak: dict[str, Any], medians: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Returns both sides' speed as a share of the measured matmul peak.

    Speed is the FLOPs that the workload needs, over the median process-CPU seconds.
    """
    body, head = linear_parameters(model)
    gflop = 2e-9 * (body * tokens.unique + head * tokens.leaves)
    share = {name: round(gflop / m["cpu_s"] / peak["gflop_per_cpu_s"], 3) for name, m in medians.items()}
    return {"share_of_matmul_peak": share["ours"], "share_of_matmul_peak_lm_eval": share["lm_eval"], "gflop": gflop}


def measure(kind: Kind, options: argparse.Namespace) -> dict[str, Any]:
    """Measures everything about one workload."""
    workload = Workload(kind, options)
    prompts = workload.prompts()
    say(f"{kind.name}: {workload.items} items, {len(workload.questions)} prompts, {workload.style} format")
    peaks = [matmul_peak(DTYPES[kind.dtype])]
    ours, lm = Ours(options.model, kind.dtype, workload.style), LmEval(options.model, kind.dtype, workload.style)
    result: dict[str, Any] = first_pass(ours, lm, prompts)
    batch_size, tuning = tune(lm, part(prompts, options.tuned_on, 8), options.batch_sizes)
    sample_batch, sampling = scoring_cot.tune_sampling(lm, workload.questions) if workload.cot else (0, [])
    runs = rounds(workload, (lm, ours), sample_batch)
    peaks.append(matmul_peak(DTYPES[kind.dtype]))
    peak = max(peaks, key=lambda p: p["gflop_per_cpu_s"])
    tokens = count_tokens(encoded(prompts, ours.checkpoint.tokenizer, workload.style))
    medians = {name: side_medians(runs, name, SECONDS) for name in ("ours", "lm_eval")}
    result = {
        "ratio_to_lm_eval": round_ratio(runs, "cpu_s"), "ratio_wall": round_ratio(runs, "wall_s"), "goal": kind.goal,
        **exactness(workload, ours, lm), **result,
        "items": workload.items, "conditions": kind.conditions, "format": workload.style, "dtype": kind.dtype,
        "candidates": "whole" if options.whole_candidates else "one token", "prompts": len(workload.questions),
        "tokens": vars(tokens), "lm_eval_batch_size": batch_size, "tuning": tuning, "scorer": ours.scorer.describe(),
        "matmul_peak": peak, **medians,
    }  # fmt: skip
    if workload.cot:
        result |= {"generate_batch": sample_batch, "tuning_generate": sampling}
        result |= cot_parts(workload, runs, medians)
    else:
        result |= peak_shares(lm.lm.model, tokens, peak, medians)
    if kind.experiment == "admissions":
        everything = on_all(workload, ours, lm)
        runs += everything.pop("runs")
        result |= everything
    del ours, lm
    gc.collect()
    return result | memory(workload, batch_size, sample_batch) | {"runs": runs}


def cot_parts(workload: Workload, runs: list[Run], medians: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Returns the ratios of sampling and of scoring, and of vLLM's seconds if they were measured."""
    options = workload.options
    sampled = len(scoring_cot.sampled_prompts(workload.questions))
    return {
        "length": options.length, "ratio_sampling": round_ratio(runs, "sample_cpu_s"),
        "ratio_scoring": round_ratio(runs, "score_cpu_s"),
        **scoring_cot.vllm_ratio(options.scratch, medians["ours"], sampled, options.length),
    }  # fmt: skip


def write_vllm_prompts(workload: Workload) -> None:
    from eval.models.checkpoints import load_tokenizer

    options = workload.options
    path = options.scratch / scoring_cot.PROMPTS_FILE
    tokenizer = load_tokenizer(options.model)
    scoring_cot.write_prompts(
        path, workload.questions, options.whole_candidates, options.length, workload.style, tokenizer
    )
    say(f"prompts for benchmarks/vllm_cot.py in {path}")
