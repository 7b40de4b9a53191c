"""What an emergence finding says and what it rests on, in words, for the command, the page and --json."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.curves.cautions import NEAR_CHANCE
from eval.experiments.registry import EXPERIMENTS
from eval.stats.bootstrap import Quantity
from eval.stats.change_point import ALPHA, Threshold

if TYPE_CHECKING:
    from eval.views.emergence.axes import Axis

NONE, FIRST, IDENTIFIED, NOT_LOCATED = "not identified", "from the first place on", "identified", "not located"
OTHERWISE = "of another shape"
"""The status of a finding: no effect beyond noise (NONE), already at the first place (FIRST), a threshold
(IDENTIFIED), an effect that may begin anywhere (NOT_LOCATED), or one that does not follow the assumed shape, so
that no threshold is reported (OTHERWISE).
"""
CLUSTERS = {"bbq": "templates", "admissions": "profiles"}  # other experiments: occupations


def entry(axis: Axis, experiment: str, condition: str, measured: Quantity, threshold: Threshold) -> dict[str, Any]:
    """The estimates as an entry, in parameters or steps; None where an end does not exist. `conclude` adds the rest."""

    def at(x: float) -> float | None:
        if not np.isfinite(x):
            return None
        return float(10**x) if axis.kind == "size" else float(x)

    return {
        "experiment": experiment, "title": EXPERIMENTS[experiment].TITLE, "condition": condition, "axis": axis.kind,
        "metric": measured.name, "algorithm": axis.algorithm, "policies": list(axis.policies),
        "step": axis.fixed if axis.kind == "size" else None,
        "model_params": axis.fixed if axis.kind == "step" else None,
        "step_name": axis.step_name, "not_used": axis.not_used, "kinds": axis.kinds, "estimate": at(threshold.estimate),
        "low": at(threshold.low), "high": at(threshold.high), "between": [at(x) for x in threshold.between],
        "from_first": threshold.estimate == -np.inf, "located": threshold.located, "p_value": threshold.p_value,
        "misfit_p": threshold.misfit_p, "n_items": measured.n_items, "n_clusters": len(measured.table.clusters),
    }  # fmt: skip


def conclude(finding: dict[str, Any], p_holm: float) -> None:
    """Adds p_holm, status, text and assumptions to the finding.

    Without an effect beyond noise, or with the wrong shape, it removes the threshold.
    """
    finding["p_holm"] = p_holm
    if p_holm > ALPHA or finding["misfit_p"] < ALPHA:
        finding["status"] = NONE if p_holm > ALPHA else OTHERWISE
        finding |= {"estimate": None, "low": None, "high": None, "between": None}
    elif not finding["located"]:
        finding["status"] = NOT_LOCATED
    else:
        finding["status"] = FIRST if finding["from_first"] else IDENTIFIED
    del finding["from_first"], finding["located"]
    finding["text"] = " ".join(_sentences(finding))
    finding["assumptions"] = list(_assumptions(finding))


def text(findings: list[dict[str, Any]], left_out: list[str]) -> str:
    """The text for the terminal: each finding with its points, then the assumptions of all."""
    lines = []
    for finding in findings:
        lines += [finding["text"], *(f"    {line}" for line in _points(finding)), ""]
    for heading, entries in (("along size", "size"), ("along step", "step")):
        of_axis = next((finding for finding in findings if finding["axis"] == entries), None)
        if of_axis is not None:
            lines += [f"What a threshold {heading} rests on ({of_axis['title']}):"]
            lines += [f"  - {a}" for a in of_axis["assumptions"]] + [""]
    lines += [f"Left out: {line}" for line in left_out]
    return "\n".join(lines).rstrip()


def size(parameters: float) -> str:
    """'135M', '1.7B'."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters >= 0.9995 * unit:
            return f"{parameters / unit:.3g}{name}"
    return f"{parameters:.0f}"


def _at(finding: dict[str, Any], value: float) -> str:
    """A size or step in words."""
    return size(value) if finding["axis"] == "size" else f"{value:.0f}"


def where(finding: dict[str, Any]) -> str:
    """'BBQ, ambiguous contexts, Q+IF, along size at RLHF step 60'."""
    along = f"along size at {finding['step_name']} {finding['step']}"
    if finding["axis"] == "step":
        of = size(finding["model_params"]) if finding["model_params"] else finding["policies"][0]
        along = f"along {finding['step_name']} at {of}"
    return f"{finding['title']}, {finding['condition']}, {along}"


def _sentences(finding: dict[str, Any]) -> list[str]:
    """The sentences of a finding: the conclusion, then what limits it."""
    points, place = finding["points"], finding["axis"]
    first, last = (_at(finding, points[k]["at"]) for k in (0, -1))
    p = "p < 0.001" if finding["p_holm"] < 0.001 else f"p = {finding['p_holm']:.2g}"
    largest = max(points, key=lambda x: x["reduction"])
    most = f"at most by {largest['reduction']:.2g}, at {_place(finding, largest['at'])}"
    reduces = "the instruction reduces bias"
    if all(x["low"] <= 0 for x in points):
        reduces = (
            f"at no single {place} does the interval leave out 0, but over all of them the instruction reduces bias"
        )
    if finding["status"] == NONE:
        conclusion = (
            f"not identified: at no {place} tested is the reduction of bias beyond noise ({p}). If there is a "
            f"threshold it lies above {last}, or the effect is too small to be seen here."
        )
    elif finding["status"] == OTHERWISE:
        conclusion = (
            f"{reduces} somewhere ({p}; {most}), but not as assumed, none up to a threshold, then "
            f"rising, then level (p = {finding['misfit_p']:.2g}): no threshold is given; look at each {place}."
        )
    elif finding["status"] == NOT_LOCATED:
        conclusion = (
            f"{reduces} ({p}; {most}), but from which {place} on cannot be said: the interval "
            f"leaves out no {place} from {first} to {last}."
        )
    else:
        on = (
            f"from {_estimate(finding)} on"
            if finding["status"] == IDENTIFIED
            else f"at {_place(finding, points[0]['at'])}, the first tested, already"
        )
        conclusion = f"{reduces} {on} (95% interval {_interval(finding)}; {p}; {most})."
    lines = [f"{where(finding)}: {conclusion}"]
    if len(finding["kinds"]) > 1:
        lines.append(
            f"The models are of several kinds ({', '.join(finding['kinds'])}): what else differs counts as size."
        )
    if finding["not_used"]:
        lines.append(f"{finding['not_used']}.")
    worse = [_at(finding, x["at"]) for x in points if x["high"] < 0]
    if worse:
        lines.append(f"At {', '.join(worse)} bias is larger with the instruction than without.")
    if finding["cautions"]:
        doubtful = len({c["at"] for c in finding["cautions"]})
        lines.append(f"Means little at {doubtful} of {len(points)} {place}s: {_caution(finding)}.")
    return lines


def _caution(finding: dict[str, Any]) -> str:
    """Why numbers of the finding mean little."""
    if finding["experiment"] == "bbq":
        return (
            f"accuracy on the disambiguated questions is not clearly above guessing (interval from below "
            f"{NEAR_CHANCE:.2f}), so the model hardly reads them"
        )
    return finding["cautions"][0]["text"]


def _estimate(finding: dict[str, Any]) -> str:
    """'about 1.2B', or 'a size between 1B and 3B' where everything between two tested places fits equally well."""
    low, high = finding["between"]
    tested = [p["at"] for p in finding["points"]]
    if low is not None and any(a >= low * 0.999 and b <= high * 1.001 for a, b in pairwise(tested)):
        return f"a {finding['axis']} between {_at(finding, low)} and {_at(finding, high)}"
    return f"about {_place(finding, finding['estimate'])}"


def _place(finding: dict[str, Any], value: float) -> str:
    """'1.2B', 'step 60'."""
    return _at(finding, value) if finding["axis"] == "size" else f"step {_at(finding, value)}"


def _interval(finding: dict[str, Any]) -> str:
    """The interval in words, open where it reaches beyond the tested places."""
    smallest, largest = (_at(finding, finding["points"][k]["at"]) for k in (0, -1))
    low = f"at or below {smallest}" if finding["low"] is None else _at(finding, finding["low"])
    high = f"above {largest}" if finding["high"] is None else _at(finding, finding["high"])
    return low if low == f"at or below {high}" else f"{low} to {high}"


def _points(finding: dict[str, Any]) -> list[str]:
    """A line for each place."""
    rows = []
    for p in finding["points"]:
        trainings = f"  ({p['trainings']} trainings)" if p["trainings"] > 1 else ""
        mark = "  means little" if any(c["at"] == p["at"] for c in finding["cautions"]) else ""
        q, instructed = "Q", finding["condition"]
        if p["trainings"] > 1:
            q, instructed = "mean |Q|", f"mean |{instructed}|"
        rows.append(
            f"{_at(finding, p['at']):>8}  {q} {p['before']:+.4f}  {instructed} {p['after']:+.4f}  reduction "
            f"{p['reduction']:+.4f} [{p['low']:+.4f}, {p['high']:+.4f}]{trainings}{mark}"
        )
    return rows


def _assumptions(finding: dict[str, Any]) -> list[str]:
    """What the finding assumes."""
    tested, place = [p["at"] for p in finding["points"]], finding["axis"]
    clusters = CLUSTERS.get(finding["experiment"], "occupations")
    trainings = sorted({p["trainings"] for p in finding["points"]})
    scale = "the logarithm of size" if place == "size" else finding["step_name"]
    setup = (
        f"The {len(tested)} sizes were taken at {finding['step_name']} {finding['step']}"
        if place == "size"
        else f"The {len(tested)} steps are those of {', '.join(finding['policies'])}"
    )
    differ = " What else differs between them (training data, architecture, prompts' format) is taken for size."
    seeds = "Each has one training: by how much another seed would move the threshold is not in the interval."
    if trainings != [1]:
        same = "the same ones at every step, " if place == "step" else ""
        seeds = (
            f"Each has {' to '.join(map(str, trainings))} trainings, which are drawn too, {same}and their spread is "
            "widened for being so few: in simulations 95% intervals of 2, 3 and 5 trainings held their mean in 100, 98 "
            "and 95% of trials (docs/validation.md, Emergence). Where there are several, the bias shown is the mean of "
            "its absolute values, since reduction is of those."
        )
        if 1 in trainings:
            seeds += " Of a place with one training it is not known by how much another would differ."
    slow = (
        " A correlation hardly falls when pronouns begin to part from the statistics: its threshold lies later than "
        "that beginning (docs/validation.md, Emergence)."
        if finding["metric"] == "rho"
        else ""
    )
    return [
        "Reduction means |bias under Q| - |bias under the instruction|: a bias turned around and as large as before is "
        "not reduced, and where there is no bias there is none to reduce." + slow,
        f"Shape: no reduction up to the threshold; then one that rises in a straight line over {scale}, or at once; "
        "then level, or rising to the end. A reduction that comes and goes has no threshold of this kind.",
        f"Tested: {', '.join(_at(finding, t) for t in tested)}. Between two of them nothing was seen, and a threshold "
        "there is known no better than the shape says; beyond them nothing is known.",
        f"{setup} and asked the same {finding['n_items']:,} questions under both conditions."
        + (differ if place == "size" else ""),
        f"The {finding['n_clusters']} {clusters} are taken for a random draw of those that could have been asked; they "
        f"were drawn anew {finding['resamples']:,} times, each time the same for every {place} "
        f"(seed {finding['seed']}).",
        seeds,
        "A threshold is told only where there is some reduction at all (p, corrected over the experiments by Holm, at "
        "most 0.05) and the reductions agree with the shape (p of that at least 0.05).",
    ]
