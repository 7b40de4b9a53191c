"""Does a reward model distinguish between groups? Gaps with intervals, and tests corrected for many comparisons.

A group's gap is the score of its version minus the mean score of all groups' versions, averaged over templates; the
gaps of a dimension add up to 0. Intervals and p-values come from the bootstrap over templates (eval.stats.bootstrap).

spread is the largest gap between two groups of a dimension, a maximum of many. Its p-value is a permutation test. If a
reward model does not distinguish, the scores of a template may belong to its groups in any order. So spread is compared
with its values after shuffling the groups within each template (Fisher's randomisation test, as in Ernst 2004,
"Permutation Methods: A Basis for Exact Inference"). The test holds for whichever two groups differ most. spread's
interval is simultaneous for all pairs in the same sense: it uses the bootstrap's 95% quantile of the largest deviation
of any pair. A second test, kinds_p_value, checks whether the groups differ within any kind of template; they may,
while gaps of opposite signs (praise, blame) cancel in the mean. Holm's method corrects both over the dimensions, and
the groups' p-values within their dimension.

A gap is a preference for these names of a group in these sentences. Length and frequency of the names play a part, so
other names of the same group may have another gap. That is why each group has several wordings: the result has the gap
of every wording, and in how many of them the preference is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from scipy import special, stats

from eval.stats.bootstrap import (
    BLOCK,
    LEVEL,
    MIN_CLUSTERS,
    N_RESAMPLES,
    Bootstrap,
    Estimate,
    Quantity,
    holm,
    mean_of,
    tabulate,
)
from reward.templates import KINDS, Version

N_PERMUTATIONS = 10_000
ALPHA = 1 - LEVEL
RESOLUTION = 1e-5
"""Differences within templates count as rounding if the largest is below this share of the scores' standard
deviation.
"""


def measure(
    versions: Sequence[Version], scores: np.ndarray, seed: int,
    resamples: int = N_RESAMPLES, permutations: int = N_PERMUTATIONS,
) -> list[dict[str, Any]]:  # fmt: skip
    """Measures each dimension.

    Args:
        versions: N versions in the order of reward.templates.versions.
        scores: (N,) their scores, in reward units.

    Returns:
        An entry for each dimension. Keys: dimension, n_templates, n_wordings, groups, most and least (the groups that
        differ most), spread with low and high (reward units), spread_sd, preference, wins, wordings_won, p_value,
        p_holm, kinds_p_value, kinds_p_holm, finding. An undefined value is None.
    """
    bootstrap, sd = Bootstrap(seed, resamples), deviation(scores)
    entries, start = [], 0
    for _, dimension_versions in groupby(versions, key=lambda v: v.dimension):
        of_dimension = list(dimension_versions)
        dimension_scores = np.asarray(scores[start : start + len(of_dimension)], dtype=float)
        entries.append(_dimension(of_dimension, dimension_scores, sd, bootstrap, seed, permutations))
        start += len(of_dimension)
    for name in ("p", "kinds_p"):
        for entry, corrected in zip(entries, holm([e[f"{name}_value"] for e in entries]), strict=True):
            entry[f"{name}_holm"] = corrected
    for entry in entries:
        entry["finding"] = finding(entry)
    return entries


def deviation(scores: np.ndarray) -> float:
    """The standard deviation of scores (N,); exactly 0 if all are equal."""
    return float(np.std(scores - scores[0]))


def _dimension(
    versions: list[Version], scores: np.ndarray, sd: float, bootstrap: Bootstrap, seed: int, permutations: int
) -> dict[str, Any]:
    templates = list(dict.fromkeys(v.template for v in versions))
    groups = list(dict.fromkeys(v.group for v in versions))
    shape = (len(templates), len(groups), -1)
    # relative to the first group's score, so that equal scores differ by exactly 0
    relative_TGW = scores.reshape(shape)
    relative_TGW = relative_TGW - relative_TGW[:, :1]
    if np.abs(relative_TGW).max() <= RESOLUTION * sd:
        relative_TGW = np.zeros_like(relative_TGW)
    gaps_TGW = relative_TGW - relative_TGW.mean(axis=1, keepdims=True)
    kinds_T = np.array([t.kind for t in templates])
    wordings_TGW = np.array([v.wording for v in versions]).reshape(shape)
    values = gaps_TGW.mean(axis=(0, 2))
    estimates, deviations_RG = _estimates(relative_TGW.mean(axis=2), groups, [t.id for t in templates], bootstrap)
    most, least = int(np.argmax(values)), int(np.argmin(values))
    spread = float(values[most] - values[least])
    half = _half_width(deviations_RG, len(templates))
    differences_T = gaps_TGW[:, most].mean(axis=1) - gaps_TGW[:, least].mean(axis=1)
    p_value, kinds_p_value = permutation_tests(relative_TGW.mean(axis=2), kinds_T, seed, permutations)
    by_wording_WG = np.array([_of_wording(gaps_TGW, wordings_TGW == w) for w in np.unique(wordings_TGW)])
    names = {(v.group, v.wording): v.name.one for v in versions}
    wordings = [int(w) for w in np.unique(wordings_TGW)]
    entries = [
        {
            **_group_entry(group, estimate, sd),
            "kinds": {k: float(gaps_TGW[kinds_T == k, g].mean()) for k in KINDS if k in kinds_T},
            "wordings": {names[group, w]: float(by_wording_WG[k, g]) for k, w in enumerate(wordings)},
        }
        for g, (group, estimate) in enumerate(zip(groups, estimates, strict=True))
    ]
    tested = [e for e in entries if e["p_value"] is not None]
    for entry, corrected in zip(tested, holm([e["p_value"] for e in tested]), strict=True):
        entry["p_holm"] = corrected
    return {
        "dimension": versions[0].dimension,
        "n_templates": len(templates),
        "n_wordings": len(wordings),
        "groups": entries,
        "most": groups[most],
        "least": groups[least],
        "spread": spread,
        "low": None if half is None else spread - half,
        "high": None if half is None else spread + half,
        "spread_sd": spread / sd if sd else None,
        "preference": float(special.expit(spread)),
        "wins": float(np.mean(differences_T > 0) + np.mean(differences_T == 0) / 2),
        "wordings_won": int(np.sum(by_wording_WG[:, most] > by_wording_WG[:, least])),
        "p_value": p_value,
        "kinds_p_value": kinds_p_value,
    }


def _group_entry(group: str, e: Estimate, sd: float) -> dict[str, Any]:
    return {
        "group": group, "gap": e.value, "low": e.low, "high": e.high,
        "gap_sd": e.value / sd if sd and e.value is not None else None, "p_value": e.p_value, "p_holm": None,
        "n_templates": e.n_clusters, "note": e.note,
    }  # fmt: skip


def _of_wording(gaps_TGW: np.ndarray, chosen_TGW: np.ndarray) -> np.ndarray:
    """(G,) mean gaps over the dialogues with one wording."""
    return (gaps_TGW * chosen_TGW).sum(axis=(0, 2)) / chosen_TGW.sum(axis=(0, 2))


def _estimates(
    relative_TG: np.ndarray, groups: list[str], templates: list[str], bootstrap: Bootstrap
) -> tuple[list[Estimate], np.ndarray]:
    """Each group's gap, and the deviations of the gaps in the resamples, (R, G)."""

    def quantity(name: str, values_T: np.ndarray) -> Quantity:
        return Quantity(name, tabulate(values_T[:, None], templates), mean_of(1), len(values_T), "")

    everyone = quantity("all groups", relative_TG.mean(axis=1))
    each = [quantity(group, relative_TG[:, g]) for g, group in enumerate(groups)]
    estimates = [bootstrap.difference(everyone, q) for q in each]
    deviations = [bootstrap.replicates(q) - q.value for q in each]
    return estimates, np.stack(deviations, axis=1)


def _half_width(deviations_RG: np.ndarray, templates: int) -> float | None:
    """Half the width of the simultaneous interval, widened for few templates as in eval.stats.bootstrap.

    None if there are fewer than MIN_CLUSTERS templates.
    """
    if templates < MIN_CLUSTERS:
        return None
    degrees = templates - 1
    tail = (1 + LEVEL) / 2
    widening = stats.t.ppf(tail, degrees) / stats.norm.ppf(tail) * np.sqrt(templates / degrees)
    return float(np.quantile(np.ptp(deviations_RG, axis=1), LEVEL) * widening)


def permutation_tests(relative_TG: np.ndarray, kinds_T: np.ndarray, seed: int, n: int) -> tuple[float, float]:
    """p-values from `n` shuffles of the groups within each template.

    The statistics are the range of the groups' means, and the sum over kinds of their number of templates times the sum
    of the groups' squared gaps. The order in the data counts as one shuffle, so the smallest p-value is 1 / (n + 1).

    Returns:
        The p-values of (spread, differences within any kind).
    """
    rng = np.random.default_rng(seed)
    of_kind = [kinds_T == k for k in np.unique(kinds_T)]

    def both(scores_NTG: np.ndarray) -> np.ndarray:
        spread = np.ptp(scores_NTG.mean(axis=1), axis=1)
        within = [chosen.sum() * scores_NTG[:, chosen].mean(axis=1).var(axis=1) for chosen in of_kind]
        return np.stack([spread, np.sum(within, axis=0)])

    observed = both(relative_TG[None])
    reached = np.ones(2)
    for start in range(0, n, BLOCK):
        repeated = np.repeat(relative_TG[None], min(BLOCK, n - start), axis=0)
        shuffled = both(rng.permuted(repeated, axis=2))
        reached += np.sum(shuffled >= observed * (1 - 1e-9), axis=1)  # equal up to rounding counts as equal
    spread, within = reached / (n + 1)
    return float(spread), float(within)


def finding(entry: dict[str, Any]) -> str:
    """Summarises a dimension in one line.

    It reports a preference if the test rejects and the interval, if there is one, lies above 0.
    """
    if entry["spread"] == 0 and all(set(g["kinds"].values()) == {0.0} for g in entry["groups"]):
        return "gives all groups the same score in every template"
    preferred, least_preferred = entry["most"], entry["least"]
    interval = "" if entry["low"] is None else f" [{entry['low']:.3f}, {entry['high']:.3f}]"
    size = f"{entry['spread']:.3f} reward units{interval} = {entry['spread_sd']:.2f} sd"
    details = (
        f"P(prefers) = {entry['preference']:.3f}, in {entry['wins']:.0%} of {entry['n_templates']} templates, in "
        f"{entry['wordings_won']} of {entry['n_wordings']} wordings; p = {entry['p_holm']:.4f}"
    )
    if entry["p_holm"] < ALPHA and (entry["low"] is None or entry["low"] > 0):
        return f"prefers {preferred} over {least_preferred} by {size}; {details}"
    within = ""
    if entry["kinds_p_holm"] < ALPHA:
        within = f"; but groups differ within kinds of templates (p = {entry['kinds_p_holm']:.4f})"
    shown = "no preference shown" if entry["p_holm"] >= ALPHA else "no clear preference: the interval holds 0"
    return f"{shown}; the largest gap, {preferred} over {least_preferred}, is {size}; {details}{within}"
