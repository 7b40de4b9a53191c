"""Records with answers made by hand, and finding a metric by its name."""

from __future__ import annotations

from typing import Any

import numpy as np

from eval.metrics.measure import measure
from eval.types import Item, Metric, Record


def record(item: Item, probabilities: list[float], condition: str = "Q", order: int = 0) -> Record:
    """What a model would leave that gives the candidates these probabilities, 0.7 in all."""
    return {
        "experiment": "x", "condition": condition, "item": item.id, "order": order, "cluster": item.cluster,
        "weight": item.weight, "logprobs": list(np.log(np.array(probabilities) * 0.7)), **item.fields,
    }  # fmt: skip


def metrics_of(experiment: Any, records: list[Record]) -> list[Metric]:
    """The metrics of one experiment under Q."""
    return measure({(experiment.NAME, "Q"): records}, seed=0).metrics


def named(metrics: list[Metric], name: str, category: str = "all") -> Metric:
    """The one metric of that name and category."""
    (found,) = [m for m in metrics if m.name == name and m.category == category]
    return found
