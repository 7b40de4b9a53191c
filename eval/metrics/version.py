"""The version of the metrics in a summary. Records are kept, so the current metrics can always be recomputed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.errors import InputError

METRICS_VERSION = 2
"""Raised whenever a metric is computed differently from the same records. `python -m eval measure` recomputes older
ones.

Version 2 order-symmetrises BBQ's scores by averaging log-probabilities. Version 1, which summaries did not record,
averaged probabilities, so that a preference for a letter shrank every score.
"""


def version_of(summary: dict[str, Any]) -> int:
    """The version that computed a summary's metrics."""
    return summary.get("metrics_version", 1)


def check_metrics(path: Path, summary: dict[str, Any]) -> None:
    """Raises InputError for a summary whose metrics come from another version, since they are other numbers."""
    if (version := version_of(summary)) != METRICS_VERSION:
        raise InputError(
            f"{path} was measured by another selfcorrect (metrics version {version}, not {METRICS_VERSION}); "
            f"`python -m eval measure {path.parent}` recomputes it from its records, without a model"
        )
