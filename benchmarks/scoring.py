"""How fast prompts are scored, compared with lm-evaluation-harness 0.4.13 at its best; run by `make bench`.

python -m benchmarks.scoring --data-dir FOLDER [--only NAMES] [--questions N] [--rounds 5] [--cost] [--profile]

Workloads: bf16, fp32 (BBQ, Q and Q+IF, paper format), chat_bf16 (the same in the chat format, whose system turn all
prompts share), admissions_bf16, winogender_bf16 (with Match Stats too), cot_bf16 (all three conditions of BBQ,
reasoning of one length sampled first). --only also takes `cost` (seconds by number of questions) and `profile`.

Both sides run in one process, in turn, in alternating order, with the same threads and malloc settings. A ratio is the
median over the rounds of lm-eval's seconds over ours. Seconds are process-CPU seconds of all threads, which a shared
machine disturbs least, and wall. Both sides score token-identical prompts, which is checked.

lm-eval's request phase is timed (encoding, forward passes, log-softmax, gathering), at the fastest of several batch
sizes, tried on a part of the same prompts. Its candidates have one token, so that its logits cache needs one row per
prompt. --whole_candidates scores BBQ's ' (a)' as the evaluation does, which costs lm-eval a row per candidate. On our
side all of scorer.score is timed; its set-up and self-check on the first prompts are reported separately (self_check).

Tokens: raw = sum over distinct sequences; unique = nodes of the tree of all of them, which any method must compute.
share_of_matmul_peak = FLOPs of the linear layers for the unique tokens (and of the output layer for the distributions
needed), over process-CPU seconds, over the fastest matrix product of this dtype measured in the same run.
Log-probabilities of a part of the prompts are compared with a stock model's fp32 passes over one prompt at a time. Peak
memory is that of a fresh process per side, which runs the workload once. Admissions: rounds use a part of the 3,888
prompts spread evenly (--questions admissions_bf16=N; 0 = all); then each side runs once on all of them.

All results go to benchmarks/results/scoring.json after each workload; other workloads' results in it stay.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks import scoring_cost, scoring_table
from benchmarks.scoring_measure import Workload, measure, memory_of_side, write_vllm_prompts
from benchmarks.scoring_numbers import MALLOC, machine, merge, read, say, versions
from benchmarks.scoring_workloads import KINDS
from eval.errors import InputError, run_main

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
EXTRA = ("cost", "profile")


def question_counts(values: Sequence[str]) -> dict[str, int]:
    """Parses numbers of questions: '200' for all workloads, 'fp32=100' for one; later ones win.

    Raises:
        InputError: Anything else is given.
    """
    counts: dict[str, int] = {}
    for value in values:
        name, _, number = value.rpartition("=")
        if not number.isdigit() or (name and name not in KINDS):
            raise InputError(f"questions: cannot read '{value}'; give N or WORKLOAD=N, of {', '.join(KINDS)}")
        counts |= {k: int(number) for k in ([name] if name else KINDS)}
    return counts


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the command line. `argv` keeps the arguments that the process of one side needs too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data-dir", default=os.environ.get("SELFCORRECT_DATA"), help="folder with bbq/, winogender/, admissions/")
    add("--model", default="models/smollm2-135m-instruct")
    add("--only", nargs="+", default=[], metavar="NAME", help=f"of {', '.join((*KINDS, *EXTRA))}")
    add("--questions", nargs="+", default=[], metavar="N|NAME=N", help="items of each workload, or of one")
    add("--rounds", type=int, default=5)
    add("--threads", type=int, default=os.cpu_count())
    add("--length", type=int, default=64, help="tokens of sampled reasoning")
    add("--tuned_on", type=int, default=128, help="prompts on which lm-eval's batch size is tuned")
    add("--batch_sizes", type=int, nargs="+", default=BATCH_SIZES, help="batch sizes of lm-eval that are tried")
    add("--checked", type=int, default=64, help="prompts compared with plain fp32 passes")
    add("--admissions_format", choices=("paper", "chat"), default="paper")
    add("--whole_candidates", action="store_true", help="BBQ's candidates as the evaluation has them, three tokens")
    add("--skip_all", action="store_true", help="no pass over all admissions prompts")
    add("--cost_sizes", type=int, nargs="+", default=scoring_cost.SIZES, help="numbers of questions of the cost table")
    add("--cost", action="store_true", help="the cost table only, as --only cost")
    add("--profile", action="store_true", help="where the time goes only, as --only profile")
    add("--prompts_only", "--prompts-only", action="store_true", help="write the prompts for benchmarks/vllm_cot.py")
    add("--output", type=Path, default=Path("benchmarks/results/scoring.json"))
    add("--scratch", type=Path, default=Path("runs/bench"), help="folder of the files shared with vllm_cot.py")
    for name, kind in (("--side", str), ("--batch_size", int), ("--sample_batch", int)):
        add(name, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    chosen = options.only + ["cost"] * options.cost + ["profile"] * options.profile
    if unknown := [c for c in chosen if c not in (*KINDS, *EXTRA)]:
        raise InputError(f"only: unknown '{unknown[0]}'; known: {', '.join((*KINDS, *EXTRA))}")
    options.only = chosen or [*KINDS, *EXTRA]
    options.questions = question_counts(options.questions)
    options.argv = list(argv)
    if not options.data_dir:
        raise InputError("data_dir: none given; say --data-dir FOLDER or set SELFCORRECT_DATA")
    return options


def same_settings(threads: int) -> None:
    """Restarts this process with the thread count and malloc settings, which are read when a process starts."""
    wanted = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"} | MALLOC
    if any(name not in os.environ for name in wanted) or os.environ["OMP_NUM_THREADS"] != str(threads):
        environment = wanted | os.environ | {"OMP_NUM_THREADS": str(threads)}
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.scoring", *sys.argv[1:]], environment)


def main() -> None:
    options = parse(sys.argv[1:])
    same_settings(options.threads)
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    disable_progress_bar()
    if options.side:
        memory_of_side(Workload(KINDS[options.only[-1]], options))
        return
    if options.prompts_only:
        write_vllm_prompts(Workload(KINDS["cot_bf16"], options))
        return
    for name in options.only:
        if name in KINDS:
            result = measure(KINDS[name], options)
        else:
            result = {"cost": scoring_cost.cost, "profile": scoring_cost.profile}[name](options)
        merge(options.output, {name: result, "versions": versions(), "machine": machine(options.threads)})
        say(f"{name} is in {options.output}")
    print(scoring_table.table(read(options.output)))


if __name__ == "__main__":
    run_main(main)
