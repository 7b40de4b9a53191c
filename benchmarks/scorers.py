"""Compares every scorer that runs on this machine on the same questions: the metrics that each gives, and its speed.

python -m benchmarks.scorers --data-dir FOLDER [--rows NAMES] [--rounds 3] [-- options of `eval run`]

Rows: the transformers scorer by each of its tiers, in two processes, vLLM's engine, and an endpoint by log-probs and by
sampled answers. The endpoint is a vLLM server that this script starts. Each row is `python -m eval run` into a folder
of its own; a row of a tier, which `eval run` chooses by itself, runs the same code with the tier given. Rounds are
interleaved: each runs all rows in turn, every second round in reverse. Each row gets all cores: one process with as
many threads, or two with half of them each.

Each row reports the headline metrics with their intervals; the differences of its log-probabilities from those of plain
fp32 forward passes (row fp32-plain); prompts per second of scoring; and the command's other seconds (loading,
compiling, the self-check's imports, the metrics at the end). Speeds are medians over the rounds. A server's start is
reported separately. The plain rows and those of the server are slow and run once.

vLLM is that of an environment of its own (`make vllm`). Without it its rows are left out, with a message. All results
go to benchmarks/results/scorers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.scoring_numbers import MALLOC, machine, merge, read, say, versions
from eval.cli.parser import parse
from eval.errors import InputError, run_main
from eval.runner.keys import record_key

REFERENCE = "fp32-plain"
TIERS = {REFERENCE: "plain", "fused": "fused", "tree": "tree", "plain": "plain"}
SERVED = ("served", "sampled")
ROWS = (*TIERS, "two-processes", "vllm", *SERVED)
ONCE = (REFERENCE, "plain", *SERVED)
HEADLINES = (("bbq", "bias_ambig_expected"), ("winogender", "rho"), ("admissions", "gap"))
CONDITIONS = ("Q", "Q+IF")
DEFAULT = ["--limit", "12", "--orders", "1", "--conditions", *CONDITIONS]
PORT, SERVED_NAME = 8137, "served"


def options(argv: Sequence[str]) -> argparse.Namespace:
    at = list(argv).index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data-dir", default=os.environ.get("SELFCORRECT_DATA"), help="folder with bbq/, winogender/, admissions/")
    add("--model", default="models/smollm2-135m-instruct")
    add("--dtype", default="bfloat16", help="of all rows but the reference")
    add("--rows", nargs="+", default=list(ROWS), metavar="NAME", help=f"of {', '.join(ROWS)}")
    add("--rounds", type=int, default=3)
    add("--answer_samples", type=int, default=50, help="answers of each prompt in the sampled row")
    add("--vllm", type=Path, default=Path(os.environ.get("SELFCORRECT_VLLM", ".venv-vllm")), help="its environment")
    add("--scratch", type=Path, default=Path("runs/bench-scorers"))
    add("--output", type=Path, default=Path("benchmarks/results/scorers.json"))
    chosen = parser.parse_args(argv[:at])
    if unknown := [r for r in chosen.rows if r not in ROWS]:
        raise InputError(f"rows: unknown '{unknown[0]}'; known: {', '.join(ROWS)}")
    if not chosen.data_dir:
        raise InputError("data_dir: none given; say --data-dir FOLDER or set SELFCORRECT_DATA")
    chosen.passed = list(argv[at + 1 :]) or DEFAULT
    return chosen


def command(row: str, chosen: argparse.Namespace, output: Path) -> tuple[list[str], dict[str, str]]:
    """Returns a row's command line, and the environment variables that it adds."""
    cores = os.cpu_count() or 1
    run_options = ["--data-dir", chosen.data_dir, "--output", str(output), *chosen.passed]
    model_options = ["--model", chosen.model, "--dtype", "float32" if row == REFERENCE else chosen.dtype]
    all_cores = {"OMP_NUM_THREADS": str(cores)}
    if row in TIERS:
        return [
            sys.executable,
            "-m",
            "benchmarks.scorers",
            "--tier",
            TIERS[row],
            *model_options,
            *run_options,
        ], all_cores
    if row == "two-processes":
        start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "eval", "run"]
        return [*start, *model_options, *run_options], {"OMP_NUM_THREADS": str(max(1, cores // 2))}
    if row == "vllm":
        return [
            str(chosen.vllm / "bin" / "python"),
            "-m",
            "eval",
            "run",
            "--scorer",
            "vllm",
            *model_options,
            *run_options,
        ], {}
    endpoint_options = ["--scorer", "endpoint", "--base-url", f"http://127.0.0.1:{PORT}/v1", "--model", SERVED_NAME]
    if row == "sampled":
        endpoint_options += ["--answer_method", "sampling", "--answer_samples", str(chosen.answer_samples)]
    return [
        sys.executable,
        "-m",
        "eval",
        "run",
        *endpoint_options,
        "--tokenizer",
        chosen.model,
        *run_options,
    ], all_cores


def run_tier(tier: str, argv: Sequence[str]) -> None:
    """Runs `eval run` of one checkpoint with the tier given instead of chosen."""
    from eval.commands.run_config import RunConfig
    from eval.models.checkpoints import load_checkpoint
    from eval.runner.evaluate import evaluate
    from eval.runner.plan import plan
    from eval.scorers.local.transformers import TransformersScorer

    (config,) = parse([RunConfig], argv, "benchmarks.scorers")
    planned = plan(config)
    loaded = load_checkpoint(config.model[0], dtype=config.dtype)
    scorer = TransformersScorer(loaded.model, loaded.tokenizer, config.format, tier=tier)
    evaluate(scorer, config, Path(config.output), loaded.provenance, 0, planned)


@contextmanager
def server(chosen: argparse.Namespace) -> Iterator[float]:
    """Runs a vLLM server of the model during the block. Yields the seconds that it took to start."""
    call = [str(chosen.vllm / "bin" / "python"), "-m", "vllm.entrypoints.openai.api_server", "--model", chosen.model]
    call += ["--host", "127.0.0.1", "--port", str(PORT), "--dtype", chosen.dtype, "--served-model-name", SERVED_NAME]
    call += ["--max-model-len", "2048", "--generation-config", "vllm", "--enforce-eager", "--no-enable-chunked-prefill"]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    log = chosen.scratch / "server.log"
    started = time.monotonic()
    with log.open("w") as out, subprocess.Popen(call, stdout=out, stderr=out, env=environment) as process:
        try:
            while True:
                if process.poll() is not None:
                    raise InputError(f"the vLLM server ended with status {process.returncode}; its log: {log}")
                try:
                    httpx.get(f"http://127.0.0.1:{PORT}/health", timeout=2).raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.5)
            yield time.monotonic() - started
        finally:
            process.terminate()
            process.wait(60)


def timed(row: str, chosen: argparse.Namespace, round_: int) -> dict[str, float]:
    """Runs a row. Returns the seconds of scoring (slowest process), those of the whole command, and the prompts."""
    output = chosen.scratch / row / f"round-{round_}"
    shutil.rmtree(output, ignore_errors=True)
    words, more = command(row, chosen, output)
    started = time.monotonic()
    done = subprocess.run(words, env=os.environ | MALLOC | more, capture_output=True, text=True)
    seconds = time.monotonic() - started
    if done.returncode:
        raise InputError(f"{row} ended with status {done.returncode}: {done.stderr.strip()[-1500:]}")
    summary = read(output / "summary.json")
    scoring = max(sum(sum(parts.values()) for parts in s["seconds"].values()) for s in summary["sessions"])
    records = sum(n for conditions in summary["records"].values() for n in conditions.values())
    return {"whole_s": seconds, "asking_s": scoring, "prompts": records}


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Runs every row in every round, interleaved. A server runs for one row of one round."""
    rows = [r for r in chosen.rows if chosen.vllm.is_dir() or r not in ("vllm", *SERVED)]
    for missing in set(chosen.rows) - set(rows):
        say(f"{missing}: left out, there is no {chosen.vllm} (make vllm)")
    results: dict[str, Any] = {row: {"runs": []} for row in rows}
    starts: list[float] = []
    for round_ in range(chosen.rounds):
        due = [r for r in rows if round_ == 0 or r not in ONCE]
        for row in due if round_ % 2 == 0 else reversed(due):
            say(f"round {round_ + 1} of {chosen.rounds}: {row}")
            if row not in SERVED:
                results[row]["runs"].append(timed(row, chosen, round_))
                continue
            with server(chosen) as seconds:
                starts.append(seconds)
                results[row]["runs"].append(timed(row, chosen, round_))
    for row in rows:
        results[row] |= results_of(row, chosen)
        if row in SERVED:
            results[row]["server_start_s"] = statistics.median(starts)
    return results


def results_of(row: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Returns the headline metrics of a row's first round, and its differences from the reference."""
    folder = chosen.scratch / row / "round-0"
    summary = read(folder / "summary.json")
    metrics = [
        {k: m[k] for k in ("experiment", "condition", "name", "value", "low", "high", "n_items")}
        for m in summary["metrics"]
        if (m["experiment"], m["name"]) in HEADLINES and m["category"] == "all" and m["condition"] in CONDITIONS
    ]
    setup = {k: summary.get(k) for k in ("scorer", "method", "tier", "dtype", "versions", "sampling")}
    reference = chosen.scratch / REFERENCE / "round-0"
    gaps = differences(reference, folder, row == "sampled") if reference.is_dir() else {}
    return {"metrics": metrics, "asked": setup, **gaps}


def differences(a: Path, b: Path, sampled: bool) -> dict[str, float]:
    """Returns the largest and mean absolute difference of log-probabilities, and of probabilities among the candidates.

    With `sampled` only the latter: the log of a share of sampled answers is not worth comparing.
    """
    first, second = (
        {
            record_key(r): np.array(r["logprobs"] or [], dtype=float)
            for r in map(json.loads, (f / "records.jsonl").open(encoding="utf-8"))
        }
        for f in (a, b)
    )
    if first.keys() != second.keys():
        raise InputError(f"{a} and {b} are not of the same questions; remove {b.parent} and run again")

    comparable = [
        k for k in first if first[k].size and second[k].size
    ]  # some questions have no readable sampled answer

    def largest_and_mean(change: Any) -> tuple[float, float]:
        gaps = [np.abs(change(first[k]) - change(second[k])) for k in comparable]
        return float(max(g.max() for g in gaps)), float(np.mean([g.mean() for g in gaps]))

    def normalised(logprobs: np.ndarray) -> np.ndarray:
        p = np.exp(logprobs - logprobs.max())
        return p / p.sum()

    p_gaps: dict[str, float] = dict(zip(("max_abs_p", "mean_abs_p"), largest_and_mean(normalised), strict=True))
    return (
        p_gaps
        if sampled
        else p_gaps | dict(zip(("max_abs_logprob", "mean_abs_logprob"), largest_and_mean(lambda x: x), strict=True))
    )


def table(results: dict[str, Any]) -> str:
    """Formats the rows as Markdown."""
    cells = [(e, c) for e, _ in HEADLINES for c in CONDITIONS]
    head = ["scorer", *(f"{e} {n}, {c}" for (e, n) in HEADLINES for c in CONDITIONS)]
    head += ["largest (mean) difference of log-prob", "of p", "prompts/s", "beside asking, s"]
    lines = [head, ["---"] * len(head)]
    for row in (r for r in ROWS if r in results):
        result = results[row]
        by_cell = {(m["experiment"], m["condition"]): m for m in result["metrics"]}
        numbers = [interval(by_cell.get(cell)) for cell in cells]
        runs = result["runs"]
        speed = statistics.median(r["prompts"] / r["asking_s"] for r in runs)
        beside = statistics.median(r["whole_s"] - r["asking_s"] for r in runs)
        start = f" + {result['server_start_s']:.0f} (server)" if "server_start_s" in result else ""
        gaps = [pair(result, "logprob"), pair(result, "p")]
        lines.append([row, *numbers, *gaps, f"{speed:.1f}", f"{beside:.0f}{start}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def interval(metric: dict[str, Any] | None) -> str:
    if metric is None or metric["value"] is None:
        return "-"
    if metric["low"] is None:
        return f"{metric['value']:.3f}"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def pair(result: dict[str, Any], name: str) -> str:
    if f"max_abs_{name}" not in result:
        return "-"
    return f"{result[f'max_abs_{name}']:.2g} ({result[f'mean_abs_{name}']:.2g})"


def main() -> None:
    if "--tier" in sys.argv:
        run_tier(sys.argv[2], sys.argv[3:])
        return
    chosen = options(sys.argv[1:])
    chosen.scratch.mkdir(parents=True, exist_ok=True)
    results = measure(chosen)
    merge(
        chosen.output,
        {**results, "asked": chosen.passed, "versions": versions(), "machine": machine(os.cpu_count() or 1)},
    )
    print(table(read(chosen.output)))


if __name__ == "__main__":
    run_main(main)
