"""Which version of the metrics a summary has; records are kept, and give the present metrics at any time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.errors import InputError

METRICS_VERSION = 2
"""Raised whenever a metric is computed otherwise from the same records; `python -m eval measure` recomputes older ones.

Version 2 order-symmetrises BBQ's scores by averaging log-probabilities. Version 1, which summaries did not write down,
averaged probabilities, so that a preference for a letter shrank every score.
"""


def version_of(summary: dict[str, Any]) -> int:
    """The version that computed a summary's metrics."""
    return summary.get("metrics_version", 1)


def check_metrics(path: Path, summary: dict[str, Any]) -> None:
    """Raises InputError for a summary whose metrics another version computed: they are other numbers."""
    if (version := version_of(summary)) != METRICS_VERSION:
        raise InputError(
            f"{path} was measured by another selfcorrect (metrics version {version}, not {METRICS_VERSION}); "
            f"`python -m eval measure {path.parent}` recomputes it from its records, without a model"
        )
