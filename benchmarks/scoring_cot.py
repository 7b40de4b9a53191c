"""The benchmark's workload with chain of thought: reasoning of one length is sampled, then all conditions are scored.

Compares Hugging Face's generate in batches and lm-eval's scoring with scorer.sample and scorer.score. It also writes
the same prompts to a file for benchmarks/vllm_cot.py, which runs in an environment of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.scoring_numbers import Run, say, timed
from benchmarks.scoring_sides import LmEval, Ours, Scores
from benchmarks.scoring_workloads import final_prompt
from eval.models.prompt_format import choose_format, render
from eval.runner.plan import Question
from eval.types import Prompt

SAMPLE_BATCHES = (16, 32, 64)
TUNED_LENGTH = 16  # tokens sampled while the batch size is tuned
MARK = "@@reasoning@@"  # stands for the reasoning in the prompts for vLLM
PROMPTS_FILE, VLLM_FILE = "cot_prompts.json", "vllm_cot.json"


def sampled_prompts(questions: Sequence[Question]) -> list[Prompt]:
    """Returns the prompts that reasoning is sampled from."""
    return [q.prompt() for q in questions if q.condition.reasoning]


def all_prompts(questions: Sequence[Question], whole_candidates: bool, texts: Sequence[str]) -> list[Prompt]:
    """Returns the prompts to score of all conditions, with the sampled texts inserted."""
    remaining = iter(texts)
    return [final_prompt(q, whole_candidates, next(remaining) if q.condition.reasoning else None) for q in questions]


def run_once(
    side: Ours | LmEval,
    questions: Sequence[Question],
    whole_candidates: bool,
    length: int,
    seed: int,
    sample_batch: int,
) -> tuple[Run, Scores]:
    """Samples and scores once. Inserting the texts into the prompts is not timed.

    Returns:
        The seconds of both parts and their sum with numbers of tokens, and the scores.
    """
    prompts = sampled_prompts(questions)
    if isinstance(side, LmEval):
        sampling = side.sampling(prompts, length, seed, sample_batch)
    else:
        sampling = side.sampling(prompts, length, seed)
    sampled, texts = timed(sampling)
    final = all_prompts(questions, whole_candidates, texts)
    scored, scores = timed(side.prepare(final))
    tokenizer: Any = side.lm.tokenizer if isinstance(side, LmEval) else side.checkpoint.tokenizer
    n_tokens = sum(len(tokenizer(t, add_special_tokens=False).input_ids) for t in texts)
    run: Run = {k: round(sampled[k] + scored[k], 4) for k in sampled}
    run |= {f"sample_{k}": v for k, v in sampled.items()} | {f"score_{k}": v for k, v in scored.items()}
    run |= {
        "sampled_tokens": length * len(prompts), "tokens_in_texts": n_tokens,
        "sampled_tokens_per_s": round(length * len(prompts) / sampled["wall_s"], 1),
    }  # fmt: skip
    return run, scores


def tune_sampling(lm: LmEval, questions: Sequence[Question]) -> tuple[int, list[Run]]:
    """Returns generate's fastest batch size, and the runs that showed it."""
    prompts = sampled_prompts(questions)
    runs = []
    for size in [b for b in SAMPLE_BATCHES if b <= len(prompts)] or [len(prompts)]:
        cost, _ = timed(lm.sampling(prompts, TUNED_LENGTH, 0, size))
        runs.append({"sample_batch": size, "prompts": len(prompts), "length": TUNED_LENGTH, **cost})
        say(f"  generate, batches of {size}: {cost['cpu_s']:.1f} cpu s")
    return min(runs, key=lambda r: r["cpu_s"])["sample_batch"], runs


def write_prompts(
    path: Path, questions: Sequence[Question], whole_candidates: bool, length: int, style: str, tokenizer: Any
) -> None:
    """Writes the workload as text for benchmarks/vllm_cot.py."""
    form = choose_format(style, tokenizer)
    final = [(q, final_prompt(q, whole_candidates, MARK if q.condition.reasoning else None)) for q in questions]
    work = {
        "length": length,
        "mark": MARK,
        "sample": [render(p, tokenizer, form) for p in sampled_prompts(questions)],
        "score": [render(p, tokenizer, form) for q, p in final if not q.condition.reasoning],
        "score_after_sampling": [render(p, tokenizer, form) for q, p in final if q.condition.reasoning],
        "candidates": list(final[0][1].candidates),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(work, indent=1), encoding="utf-8")


def vllm_ratio(folder: Path, ours: dict[str, float], prompts: int, length: int) -> dict[str, Any]:
    """Returns vLLM's seconds over ours, if benchmarks/vllm_cot.py ran on the same number of prompts and length."""
    path = folder / VLLM_FILE
    vllm = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if (vllm.get("sampled"), vllm.get("length")) != (prompts, length):
        return {"vllm_ratio": None, "vllm": "not run on this workload; see benchmarks/vllm_cot.py"}
    return {
        "vllm_ratio": round(vllm["cpu_s"] / ours["cpu_s"], 3),
        "vllm_ratio_wall": round(vllm["wall_s"] / ours["wall_s"], 3),
        "vllm": vllm,
    }
