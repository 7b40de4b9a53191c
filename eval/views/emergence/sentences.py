"""The words of emergence: what was found, and what it rests on, for the command, the page and --json."""

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

NONE, FIRST, FOUND, NOT_LOCATED = "not identified", "from the first place on", "identified", "not located"
OTHERWISE = "of another shape"
"""status: no effect beyond noise; already at the first place; a threshold; an effect that may begin anywhere; one that
does not follow the shape assumed, so that no threshold is told."""
CLUSTERS = {"bbq": "templates", "admissions": "profiles"}  # elsewhere occupations


def entry(axis: Axis, experiment: str, condition: str, measured: Quantity, threshold: Threshold) -> dict[str, Any]:
    """What was estimated, in parameters or steps; None where there is no such end. `conclude` adds the rest."""

    def at(x: float) -> float | None:
        if not np.isfinite(x):
            return None
        return float(10**x) if axis.kind == "size" else float(x)

    return {
        "experiment": experiment, "title": EXPERIMENTS[experiment].TITLE, "condition": condition, "axis": axis.kind,
        "metric": measured.name, "algorithm": axis.algorithm, "policies": list(axis.policies),
        "step": axis.held if axis.kind == "size" else None,
        "model_params": axis.held if axis.kind == "step" else None,
        "step_name": axis.step_name, "not_used": axis.not_used, "kinds": axis.kinds, "estimate": at(threshold.estimate),
        "low": at(threshold.low), "high": at(threshold.high), "between": [at(x) for x in threshold.between],
        "from_first": threshold.estimate == -np.inf, "located": threshold.located, "p_value": threshold.p_value,
        "misfit_p": threshold.misfit_p, "n_items": measured.n_items, "n_clusters": len(measured.table.clusters),
    }  # fmt: skip


def conclude(found: dict[str, Any], p_holm: float) -> None:
    """Adds p_holm, status, text and assumptions. Where there is no effect beyond noise, no threshold is left in it."""
    found["p_holm"] = p_holm
    if p_holm > ALPHA or found["misfit_p"] < ALPHA:
        found["status"] = NONE if p_holm > ALPHA else OTHERWISE
        found |= {"estimate": None, "low": None, "high": None, "between": None}
    elif not found["located"]:
        found["status"] = NOT_LOCATED
    else:
        found["status"] = FIRST if found["from_first"] else FOUND
    del found["from_first"], found["located"]
    found["text"] = " ".join(_sentences(found))
    found["assumptions"] = list(_assumptions(found))


def text(found: list[dict[str, Any]], left_out: list[str]) -> str:
    """For the terminal: each finding with its points, then what they all rest on."""
    lines = []
    for f in found:
        lines += [f["text"], *(f"    {line}" for line in _points(f)), ""]
    for heading, entries in (("along size", "size"), ("along step", "step")):
        of_axis = next((f for f in found if f["axis"] == entries), None)
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


def _at(found: dict[str, Any], value: float) -> str:
    return size(value) if found["axis"] == "size" else f"{value:.0f}"


def where(found: dict[str, Any]) -> str:
    """'BBQ, ambiguous contexts, Q+IF, along size at RLHF step 60'."""
    along = f"along size at {found['step_name']} {found['step']}"
    if found["axis"] == "step":
        of = size(found["model_params"]) if found["model_params"] else found["policies"][0]
        along = f"along {found['step_name']} at {of}"
    return f"{found['title']}, {found['condition']}, {along}"


def _sentences(found: dict[str, Any]) -> list[str]:
    points, place = found["points"], found["axis"]
    first, last = (_at(found, points[k]["at"]) for k in (0, -1))
    p = "p < 0.001" if found["p_holm"] < 0.001 else f"p = {found['p_holm']:.2g}"
    largest = max(points, key=lambda x: x["reduction"])
    most = f"at most by {largest['reduction']:.2g}, at {_place(found, largest['at'])}"
    reduces = "the instruction reduces bias"
    if all(x["low"] <= 0 for x in points):
        reduces = (
            f"at no single {place} does the interval leave out 0, but over all of them the instruction reduces bias"
        )
    if found["status"] == NONE:
        said = (
            f"not identified: at no {place} tested is the reduction of bias beyond noise ({p}). If there is a "
            f"threshold it lies above {last}, or the effect is too small to be seen here."
        )
    elif found["status"] == OTHERWISE:
        said = (
            f"{reduces} somewhere ({p}; {most}), but not as assumed, none up to a threshold, then "
            f"rising, then level (p = {found['misfit_p']:.2g}): no threshold is told; look at each {place}."
        )
    elif found["status"] == NOT_LOCATED:
        said = (
            f"{reduces} ({p}; {most}), but from which {place} on cannot be said: the interval "
            f"leaves out no {place} from {first} to {last}."
        )
    else:
        on = (
            f"from {_estimate(found)} on"
            if found["status"] == FOUND
            else f"at {_place(found, points[0]['at'])}, the first tested, already"
        )
        said = f"{reduces} {on} (95% interval {_interval(found)}; {p}; {most})."
    lines = [f"{where(found)}: {said}"]
    if len(found["kinds"]) > 1:
        lines.append(
            f"The models are of several kinds ({', '.join(found['kinds'])}): what else differs counts as size."
        )
    if found["not_used"]:
        lines.append(f"{found['not_used']}.")
    worse = [_at(found, x["at"]) for x in points if x["high"] < 0]
    if worse:
        lines.append(f"At {', '.join(worse)} bias is larger with the instruction than without.")
    if found["cautions"]:
        doubtful = len({c["at"] for c in found["cautions"]})
        lines.append(f"Means little at {doubtful} of {len(points)} {place}s: {_caution(found)}.")
    return lines


def _caution(found: dict[str, Any]) -> str:
    if found["experiment"] == "bbq":
        return (
            f"accuracy on the disambiguated questions is not clearly above guessing (interval from below "
            f"{NEAR_CHANCE:.2f}), so the model hardly reads them"
        )
    return found["cautions"][0]["text"]


def _estimate(found: dict[str, Any]) -> str:
    """'about 1.2B'; where all between two tested places fit alike, 'a size between 1B and 3B'."""
    low, high = found["between"]
    tested = [p["at"] for p in found["points"]]
    if low is not None and any(a >= low * 0.999 and b <= high * 1.001 for a, b in pairwise(tested)):
        return f"a {found['axis']} between {_at(found, low)} and {_at(found, high)}"
    return f"about {_place(found, found['estimate'])}"


def _place(found: dict[str, Any], value: float) -> str:
    """'1.2B', 'step 60'."""
    return _at(found, value) if found["axis"] == "size" else f"step {_at(found, value)}"


def _interval(found: dict[str, Any]) -> str:
    smallest, largest = (_at(found, found["points"][k]["at"]) for k in (0, -1))
    low = f"at or below {smallest}" if found["low"] is None else _at(found, found["low"])
    high = f"above {largest}" if found["high"] is None else _at(found, found["high"])
    return low if low == f"at or below {high}" else f"{low} to {high}"


def _points(found: dict[str, Any]) -> list[str]:
    rows = []
    for p in found["points"]:
        trainings = f"  ({p['trainings']} trainings)" if p["trainings"] > 1 else ""
        mark = "  means little" if any(c["at"] == p["at"] for c in found["cautions"]) else ""
        q, instructed = "Q", found["condition"]
        if p["trainings"] > 1:
            q, instructed = "mean |Q|", f"mean |{instructed}|"
        rows.append(
            f"{_at(found, p['at']):>8}  {q} {p['before']:+.4f}  {instructed} {p['after']:+.4f}  reduction "
            f"{p['reduction']:+.4f} [{p['low']:+.4f}, {p['high']:+.4f}]{trainings}{mark}"
        )
    return rows


def _assumptions(found: dict[str, Any]) -> list[str]:
    tested, place = [p["at"] for p in found["points"]], found["axis"]
    clusters = CLUSTERS.get(found["experiment"], "occupations")
    trainings = sorted({p["trainings"] for p in found["points"]})
    scale = "the logarithm of size" if place == "size" else found["step_name"]
    alike = (
        f"The {len(tested)} sizes were taken at {found['step_name']} {found['step']}"
        if place == "size"
        else f"The {len(tested)} steps are those of {', '.join(found['policies'])}"
    )
    differ = " What else differs between them (training data, architecture, prompts' format) is taken for size."
    seeds = "Each has one training: by how much another seed would move the threshold is not in the interval."
    if trainings != [1]:
        same = "the same ones at every step, " if place == "step" else ""
        seeds = (
            f"Each has {' to '.join(map(str, trainings))} trainings, which are drawn too, {same}and their spread is "
            "widened for being so few: in simulations 95% intervals of 2, 3 and 5 trainings held their mean in 100, 98 "
            "and 95% of trials (docs/validation.md, Emergence). Where there are several, the bias told is the mean of "
            "its absolute values, since reduction is of those."
        )
        if 1 in trainings:
            seeds += " Of a place with one training it is not known by how much another would differ."
    slow = (
        " A correlation hardly falls when pronouns begin to part from the statistics: its threshold lies later than "
        "that beginning (docs/validation.md, Emergence)."
        if found["metric"] == "rho"
        else ""
    )
    return [
        "Reduction means |bias under Q| - |bias under the instruction|: a bias turned around and as large as before is "
        "not reduced, and where there is no bias there is none to reduce." + slow,
        f"Shape: no reduction up to the threshold; then one that rises in a straight line over {scale}, or at once; "
        "then level, or rising to the end. A reduction that comes and goes has no threshold of this kind.",
        f"Tested: {', '.join(_at(found, t) for t in tested)}. Between two of them nothing was seen, and a threshold "
        "there is known no better than the shape says; beyond them nothing is known.",
        f"{alike} and asked the same {found['n_items']:,} questions under both conditions."
        + (differ if place == "size" else ""),
        f"The {found['n_clusters']} {clusters} are taken for a random draw of those that could have been asked; they "
        f"were drawn anew {found['resamples']:,} times, each time the same for every {place} (seed {found['seed']}).",
        seeds,
        "A threshold is told only where there is some reduction at all (p, corrected over the experiments by Holm, at "
        "most 0.05) and the reductions agree with the shape (p of that at least 0.05).",
    ]
