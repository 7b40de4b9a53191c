"""How good a reward model is on pairs that it was not trained on: accuracy, calibration, length bias.

Each held-out pair has two scores. Intervals of shares are Wilson's 95% intervals (Wilson 1927) on the effective number
of pairs. Pairs of the same prompt are not independent, so their number is divided by the design effect (Kish 1965): the
variance of the share with pairs clustered by prompt over that of independent pairs, at least 1. Equal scores count as
half right and are reported as ties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from eval.stats.bootstrap import pearson

N_BINS = 5


@dataclass(frozen=True)
class ScoredPair:
    """A held-out pair with its scores (reward units) and its answers' lengths (tokens without the template)."""

    where: str
    subset: str
    prompt_id: str
    chosen_score: float
    rejected_score: float
    chosen_tokens: int
    rejected_tokens: int

    @property
    def margin(self) -> float:
        """The chosen answer's score minus the rejected one's; the model is right if it is positive."""
        return self.chosen_score - self.rejected_score

    @property
    def longer_by(self) -> int:
        """By how many tokens the rejected answer, which people found worse, is longer."""
        return self.rejected_tokens - self.chosen_tokens


def quality(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """All numbers about the held-out pairs in reward.json."""
    scores = np.array([s for p in pairs for s in (p.chosen_score, p.rejected_score)])
    subsets = sorted({p.subset for p in pairs})
    return {
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std()),
        "margin": float(np.mean([p.margin for p in pairs])),
        "accuracy": {
            "all": accuracy(pairs),
            "by_subset": {s: accuracy([p for p in pairs if p.subset == s]) for s in subsets},
        },
        "calibration": calibration(pairs),
        "length_bias": length_bias(pairs),
    }


def accuracy(pairs: Sequence[ScoredPair], right: Callable[[ScoredPair], float] | None = None) -> dict[str, Any]:
    """The share of pairs whose chosen answer scores higher, with its interval.

    Args:
        right: whether another rule is right about a pair (0, 1/2 or 1); None: the scores decide.
    """
    hits = np.array([(right or _right)(p) for p in pairs])
    prompts = [p.prompt_id for p in pairs]
    counts = {"n_pairs": len(pairs), "n_prompts": len(set(prompts)), "ties": int((hits == 0.5).sum())}
    if not len(pairs):
        return {"value": None, "low": None, "high": None, **counts, "note": "no pairs"}
    value = float(hits.mean())
    low, high = wilson(value, len(hits) / design_effect(hits, prompts))
    return {"value": value, "low": low, "high": high, **counts, "note": ""}


def _right(pair: ScoredPair) -> float:
    return 0.5 * (1 + np.sign(pair.margin))


def design_effect(hits: np.ndarray, clusters: Sequence[str]) -> float:
    """Variance of the mean of `hits` (N,) with clusters, over that of N independent ones; at least 1."""
    index = np.unique(np.asarray(clusters), return_inverse=True)[1]
    residuals = hits - hits.mean()
    independent = float((residuals**2).sum())
    n_clusters = index.max() + 1
    if n_clusters in (1, len(hits)) or independent == 0:
        return 1.0
    clustered = float((np.bincount(index, residuals) ** 2).sum()) * n_clusters / (n_clusters - 1)
    return max(1.0, clustered / (independent * len(hits) / (len(hits) - 1)))


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's 95% interval of a share of `n`, which need not be an integer."""
    z = 1.959963984540054
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def calibration(pairs: Sequence[ScoredPair], n_bins: int = N_BINS) -> dict[str, Any]:
    """Is the model right as often as its Bradley-Terry probability sigma(|margin|) says?

    Bins have equal numbers of pairs by that confidence (0.5 to 1). expected_calibration_error is the mean over pairs of
    |accuracy - confidence| of their bin (Guo et al. 2017); log_loss and brier are those of sigma(margin).
    """
    margins = np.array([p.margin for p in pairs])
    confidence, hits = expit(np.abs(margins)), 0.5 * (1 + np.sign(margins))
    bins, error = [], 0.0
    for chosen in np.array_split(np.argsort(confidence, kind="stable"), min(n_bins, len(pairs))):
        share, mean_confidence, n = float(hits[chosen].mean()), float(confidence[chosen].mean()), len(chosen)
        low, high = wilson(share, n)
        bins.append(
            {
                "low": float(confidence[chosen[0]]), "high": float(confidence[chosen[-1]]),
                "confidence": mean_confidence, "accuracy": share, "accuracy_low": low, "accuracy_high": high, "n": n,
            }
        )  # fmt: skip
        error += n / len(pairs) * abs(share - mean_confidence)
    return {
        "bins": bins,
        "expected_calibration_error": error,
        "log_loss": float(np.logaddexp(0, -margins).mean()),
        "brier": float(((1 - expit(margins)) ** 2).mean()),
    }


def length_bias(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """Accuracy if the longer answer is the worse one, if it is the better one, and of the rule of length alone."""
    differences = np.array([p.longer_by for p in pairs], dtype=float)
    correlation = pearson(np.array([p.margin for p in pairs]), -differences)
    return {
        "longer_is_worse": accuracy([p for p in pairs if p.longer_by > 0]),
        "longer_is_better": accuracy([p for p in pairs if p.longer_by < 0]),
        "same_length": accuracy([p for p in pairs if p.longer_by == 0]),
        "always_shorter": accuracy(pairs, lambda p: 0.5 * (1 + np.sign(p.longer_by))),
        "correlation": {
            "value": correlation.value, "low": correlation.low, "high": correlation.high, "n_pairs": len(pairs),
            "note": correlation.note and "undefined: scores or lengths hardly vary",
        },
    }  # fmt: skip


def as_row(pair: ScoredPair) -> dict[str, Any]:
    """A line of held_out.jsonl."""
    return asdict(pair)
