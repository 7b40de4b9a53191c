"""How long 10,000 resamples of a full BBQ result take on one core, compared with other ways to the same intervals.

python -m benchmarks.bootstrap [--resamples N] [--orders 1|3]

The result is synthetic and of BBQ's full size: 58,492 questions, their published numbers per category, 25 templates
each, under Q, Q+IF and Q+IF+CoT. One run measures, in process-CPU seconds of one thread:
- reading the records into arrays and tabulating them;
- all metrics with intervals (every variant, category, the union, the mean of categories) and all paired effects;
- one interval (bias_ambig of the union, categories not fixed) in three ways: eval.stats.bootstrap,
  scipy.stats.bootstrap over templates, and a loop that draws rows by template, timed on a few resamples and scaled up.
"""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
from scipy import stats

from eval.experiments import bbq, bbq_metrics
from eval.metrics.measure import measure
from eval.stats.bootstrap import Bootstrap, Quantity, tabulate
from eval.types import Record

QUESTIONS = {  # Parrish et al. 2022, appendix: examples per category
    "Age": 3680, "Disability_status": 1556, "Gender_identity": 5672, "Nationality": 3080, "Physical_appearance": 1576,
    "Race_ethnicity": 6880, "Religion": 1200, "SES": 6864, "Sexual_orientation": 864, "Race_x_gender": 15960,
    "Race_x_SES": 11160,
}  # fmt: skip
TEMPLATES = 25
LOOPED = 20  # resamples of the slow loop


def records(orders: int, seed: int) -> Iterator[Record]:
    """Yields the records of one condition."""
    rng = np.random.default_rng(seed)
    for category, n in QUESTIONS.items():
        logprobs = np.log(rng.dirichlet([1, 1, 1], size=(n, orders)))
        for k in range(n):
            fields = {
                "category": category, "context_condition": ("ambig", "disambig")[k % 2], "label": k % 3,
                "unknown": k % 3 if k % 2 == 0 else (k + 1) % 3, "one_target": True,
            }  # fmt: skip
            persons = [o for o in range(3) if o != fields["unknown"]]
            for order in range(orders):
                yield {
                    "item": f"{category}:{k}", "order": order, "logprobs": logprobs[k, order].tolist(),
                    "cluster": f"{category}:{k // 4 % TEMPLATES}", "biased": [persons[k // 4 % 2]], **fields,
                }  # fmt: skip


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Returns (process-CPU seconds, the result of `run`)."""
    started = time.process_time()
    result = run()
    return time.process_time() - started, result


def row_loop(values: np.ndarray, clusters: np.ndarray, resamples: int) -> list[float]:
    """Resamples bias_ambig by drawing templates and collecting their rows."""
    rng = np.random.default_rng(0)
    names = np.unique(clusters)
    rows = {name: np.flatnonzero(clusters == name) for name in names}
    estimates = []
    for _ in range(resamples):
        chosen = np.concatenate([rows[name] for name in rng.choice(names, len(names))])
        sums = np.concatenate([[len(chosen)], values[chosen].sum(axis=0)])
        estimates.append(float(bbq_metrics.bias_ambig(sums)))
    return estimates


def one_interval(answers: bbq_metrics.Answers, resamples: int) -> dict[str, float]:
    """Returns the seconds for one interval in each of three ways."""
    chosen = answers.context_N == "ambig"
    values, clusters = answers.shares(symmetrised=False, expected=False)[chosen], answers.cluster_N[chosen]
    table = tabulate(values, clusters)
    quantity = Quantity("bias_ambig", table, bbq_metrics.bias_ambig, len(values), "")

    def by_scipy() -> Any:
        def statistic(index: np.ndarray, axis: int) -> np.ndarray:
            return bbq_metrics.bias_ambig(table.sums_CK[index].sum(axis=axis))

        index = (np.arange(len(table.clusters)),)
        return stats.bootstrap(index, statistic, vectorized=True, n_resamples=resamples, method="percentile", batch=500)

    ours, _ = timed(lambda: Bootstrap(0, resamples).estimate(quantity))
    scipy_seconds, _ = timed(by_scipy)
    loop, _ = timed(lambda: row_loop(values, clusters, LOOPED))
    return {"ours": ours, "scipy_bootstrap": scipy_seconds, "row_loop_scaled_up": loop * resamples / LOOPED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--orders", type=int, choices=(1, 3), default=3)
    arguments = parser.parse_args()
    cells = {("bbq", c): list(records(arguments.orders, k)) for k, c in enumerate(("Q", "Q+IF", "Q+IF+CoT"))}
    tabulating, quantities = timed(lambda: {cell: bbq.measure(cell_records) for cell, cell_records in cells.items()})
    everything, measured = timed(lambda: measure(cells, seed=0, resamples=arguments.resamples))
    result = {
        "questions": sum(QUESTIONS.values()), "records": sum(map(len, cells.values())),
        "resamples": arguments.resamples,
        "intervals": sum(m.low is not None for m in [*measured.metrics, *measured.effects]),
        "quantities": sum(map(len, quantities.values())),
        "seconds_reading_and_tabulating": round(tabulating, 2),
        "seconds_resampling_all_metrics_and_effects": round(everything - tabulating, 2),
        "seconds_one_interval": {
            k: round(v, 3)
            for k, v in one_interval(bbq_metrics.as_arrays(cells["bbq", "Q"]), arguments.resamples).items()
        },
        "versions": {p: version(p) for p in ("numpy", "scipy")} | {"python": platform.python_version()},
        "machine": f"{platform.machine()}, one thread",
    }  # fmt: skip
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
