"""Turns curves into the one JSON object that the page draws from. Numbers are in columns, texts stand once, nothing is
averaged.

Values have four decimals, as in every table, and are stored as integers of 1e-4. A `Detail` decides how much is
embedded, so that many checkpoints still make a page of bounded size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.curves import headline as scoring
from eval.curves.cautions import SIGNS, VARIANTS, Caution, caution_of, checkpoint_cautions, describe_gap, gaps, main_gap
from eval.curves.gather import Curve, find, size_name
from eval.curves.kinds import model_name
from eval.curves.tables import effect_rows
from eval.errors import InputError
from eval.experiments.conditions import CONDITIONS
from eval.experiments.registry import EXPERIMENTS
from eval.views.page.lines import describe_unjoined, family, question_keys

UNIT = 10_000
CHARTED = (
    "rho", "p_female", "p_male", "p_neutral", "calibration_slope", "gap", "p_admit", "mass_yes_no",
    *(f"{name}_{kind}{v}" for name in ("bias", "accuracy") for kind in ("ambig", "disambig") for v in VARIANTS),
)  # fmt: skip
BY_CATEGORY = tuple(f"{name}{v}" for name in ("bias_ambig", "accuracy_disambig") for v in VARIANTS)
LABELS = {
    "": "most probable option, as given (the paper's protocol)",
    "_expected": "expected, options as given",
    "_symmetrised": "most probable option, log-probabilities averaged over three orders",
    "_expected_symmetrised": "expected, log-probabilities averaged over three orders",
}
"""BBQ's scorings, by the ending of their metrics' names."""
LSAT_BIN, UGPA_BIN = 3, 0.3
POOLED = "mean of categories"


@dataclass(frozen=True)
class Detail:
    """Which results are embedded.

    Attributes:
        metrics: 'all', 'charts' (what charts show) or 'whole' (charts without BBQ's categories).
        breakdowns: for how many checkpoints occupations and profiles are shown, starting with the last of each curve;
            None = all.
        items: examples of each kind in each experiment.
        text: characters of a sampled text.
    """

    metrics: str = "all"
    breakdowns: int | None = None
    items: int = 2
    text: int = 3000


def headline(summary: dict[str, Any], experiment: str, condition: str) -> dict[str, Any] | None:
    """The headline metric of an experiment, or None.

    BBQ asked in one order has no symmetrised score, so the expected one is used. Admissions that do not compare Black
    with white use the gap that they measure.
    """
    if experiment == "admissions":
        gap = main_gap(_names(m for m in summary["metrics"] if m["condition"] == condition))
        return find(summary, experiment, condition, gap) if gap else None
    return scoring.headline(summary, experiment, condition)


def _names(metrics: Iterable[dict[str, Any]]) -> list[str]:
    """The names of the admissions metrics."""
    return [m["name"] for m in metrics if m["experiment"] == "admissions"]


def _gap(curves: Sequence[Curve]) -> str:
    """The admissions gap that the page shows."""
    return main_gap(_names(m for c in curves for s in c.summaries for m in s["metrics"])) or "gap"


def experiments(curves: Sequence[Curve]) -> list[str]:
    """The experiments that have a number, in the registry's order."""
    present = {m["experiment"] for c in curves for s in c.summaries for m in s["metrics"]}
    return [e for e in EXPERIMENTS if e in present]


def page_data(curves: Sequence[Curve], detail: Detail) -> dict[str, Any]:
    """Everything that the page's scripts draw, as JSON-compatible values."""
    checkpoints = [(k, curve, s) for k, curve in enumerate(curves) for s in curve.summaries]
    present, texts = experiments(curves), Texts()
    texts(None)
    cautions = [list(checkpoint_cautions(s)) for _, _, s in checkpoints]
    return {
        "unit": UNIT,
        "curves": _curves(curves),
        "checkpoints": [_checkpoint(k, curve, s) for k, curve, s in checkpoints],
        "experiments": {e: _experiment(curves, e) for e in present},
        "apart": describe_unjoined(curves, present),
        "conditions": list(CONDITIONS),
        "variants": {v: LABELS[v] for v in reversed(VARIANTS) if _has(curves, f"bias_ambig{v}")},
        "metrics": _metrics(checkpoints, detail, texts, cautions),
        "effects": _effects(checkpoints, texts, cautions),
        "cautions": texts.values,
        "breakdowns": _breakdowns(checkpoints, detail.breakdowns, _gap(curves)),
    }


def _has(curves: Sequence[Curve], name: str) -> bool:
    return any(m["name"] == name for c in curves for s in c.summaries for m in s["metrics"])


def _experiment(curves: Sequence[Curve], name: str) -> dict[str, Any]:
    """Title, metric, label and sign of an experiment, and a number per checkpoint ('asked') that is equal where the
    questions were the same.

    BBQ's metric is named without its ending, since the reader chooses the scoring on the page.
    """
    experiment = EXPERIMENTS[name]
    metric, label, sign = experiment.HEADLINE, experiment.HEADLINE_LABEL, SIGNS[name]
    if name == "bbq":
        metric, label = "bias_ambig", "bias score"
    elif name == "admissions":
        metric = _gap(curves)
        label, sign, _ = describe_gap(metric)
    description = {"title": experiment.TITLE, "metric": metric, "label": label, "sign": sign}
    groups = question_keys(curves, name)
    return {**description, "asked": [sorted(set(groups)).index(g) for g in groups]}


def _curves(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """A description of each curve. Curves of one size in one family are distinguished by their names."""
    families = [family(c) for c in curves]
    taken = [(f, c.model_params) for f, c in zip(families, curves, strict=True)]
    return [
        {
            "name": c.name,
            "model": model_name(c),
            "params": c.model_params,
            "size": size_name(c.model_params),
            "seed": c.seed,
            "algorithm": c.algorithm,
            "step_name": c.step_name,
            "rlhf": c.rlhf,
            "family": f if taken.count((f, c.model_params)) == 1 else f"{f} ({c.name})",
        }
        for c, f in zip(curves, families, strict=True)
    ]


def _checkpoint(k: int, curve: Curve, summary: dict[str, Any]) -> dict[str, Any]:
    """A description of a checkpoint."""
    weights = summary.get("adapter_weights") or summary.get("weights") or ""
    results = Path(summary["results"])
    return {
        "curve": k,
        "step": summary["step"],
        "results": results.name,
        "weights": weights.partition(":")[2][:12] or weights[:12],
        "commit": (summary.get("git_commit") or "")[:10],
        "format": summary["format"],
        "data": summary["data"],
    }


class Texts:
    """Stores recurring values once. Calling it with a value returns the value's index."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}
        self.values: list[Any] = []

    def __call__(self, value: Any) -> int:
        key = json.dumps(value)
        if key not in self.places:
            self.places[key] = len(self.values)
            self.values.append(value)
        return self.places[key]


def fixed(value: float | None) -> int | None:
    """The value in units of 1e-4, rounded to four decimals as the tables round."""
    return None if value is None else round(float(f"{value:.4f}") * UNIT)


def _metrics(
    checkpoints: Sequence[tuple[int, Curve, dict[str, Any]]],
    detail: Detail,
    texts: Texts,
    cautions_by_checkpoint: Sequence[list[Caution]],
) -> dict[str, Any]:
    """The metrics as columns.

    Args:
        texts: stores the cautions; the column 'caution' has indices into it.
        cautions_by_checkpoint: the cautions of each checkpoint.

    Returns:
        The columns, with 'keys' (experiment, condition, name, category) and 'hows' (items, clusters, method, note),
        into which the columns 'key' and 'how' are indices.
    """
    keys, hows = Texts(), Texts()
    names = ("checkpoint", "key", "value", "low", "high", "how", "caution")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for place, (_, _, summary) in enumerate(checkpoints):
        for m in summary["metrics"]:
            if not _wanted(m, detail.metrics):
                continue
            caution = caution_of(cautions_by_checkpoint[place], "", summary["step"], m)
            row = (
                place, keys([m[k] for k in ("experiment", "condition", "name", "category")]),
                fixed(m["value"]), fixed(m["low"]), fixed(m["high"]),
                hows([m[k] for k in ("n_items", "n_clusters", "method", "note")]),
                texts(caution.text if caution else None),
            )  # fmt: skip
            for name, value in zip(names, row, strict=True):
                columns[name].append(value)
    return {"keys": keys.values, "hows": hows.values, **columns}


def _wanted(m: dict[str, Any], metrics: str) -> bool:
    """Whether a metric is embedded at this level of detail."""
    if metrics == "all":
        return True
    if m["condition"] not in CONDITIONS:
        return False
    if m["category"] == "all":
        return m["name"] in CHARTED or bool(gaps([m["name"]]))
    by_category = m["experiment"] == "bbq" and m["name"] in BY_CATEGORY and m["category"] != POOLED
    return by_category and metrics == "charts"


def _effects(
    checkpoints: Sequence[tuple[int, Curve, dict[str, Any]]],
    texts: Texts,
    cautions_by_checkpoint: Sequence[list[Caution]],
) -> list[list[Any]]:
    """Rows of effects, as the terminal prints them.

    Returns:
        Rows of [checkpoint, the cells of eval.curves.tables.EFFECT_COLUMNS ..., and for the condition before and that
        after an index into `texts` of its caution].
    """
    rows = []
    for place, (_, _, s) in enumerate(checkpoints):
        for row in effect_rows(s["effects"]):
            cautions = []
            for condition in row[1].split(" -> "):
                of = {"experiment": row[0], "condition": condition, "name": row[2], "category": "all"}
                caution = caution_of(cautions_by_checkpoint[place], "", s["step"], of)
                cautions.append(texts(caution.text if caution else None))
            rows.append([place, *row, *cautions])
    return rows


def shown_first(checkpoints: Sequence[tuple[int, Curve, dict[str, Any]]]) -> list[int]:
    """Indices of the checkpoints by how likely a reader wants them: the last of each curve, its first, the others."""

    def rank(place: int) -> tuple[int, int]:
        _, curve, summary = checkpoints[place]
        return (0 if summary["step"] == curve.steps[-1] else 1 if summary["step"] == curve.steps[0] else 2), place

    return sorted(range(len(checkpoints)), key=rank)


def _breakdowns(
    checkpoints: Sequence[tuple[int, Curve, dict[str, Any]]], most: int | None, gap: str
) -> list[dict[str, Any]]:
    """Occupations and profiles of at most `most` checkpoints, in their order."""
    chosen = sorted(shown_first(checkpoints)[:most])
    breakdowns = ({"checkpoint": k, **breakdown(Path(checkpoints[k][2]["results"]), gap)} for k in chosen)
    return [b for b in breakdowns if b["occupations"] or b["profiles"]]


def breakdown(results: Path, gap: str = "gap") -> dict[str, Any]:
    """Reads breakdown.jsonl of a results folder; without the file the parts are empty.

    Args:
        gap: the name of the admissions metric to show.

    Returns:
        occupations: {experiment: {condition: [[name, BLS share, p_female, p_male, p_neutral]]}}; profiles: {condition:
        [[LSAT from, UGPA from, students, gap, p(admit)]]} in cells of 3 LSAT points x 0.3 UGPA, each the mean of its
        students.

    Raises:
        InputError: the file is damaged.
    """
    occupations: dict[str, dict[str, list[Any]]] = {}
    cells: dict[str, dict[tuple[int, int], list[float]]] = {}
    for row in _rows(results / "breakdown.jsonl"):
        if row["condition"] not in CONDITIONS:
            continue
        if row["by"] == "occupation":
            shares = [fixed(row.get(k)) for k in ("bls_share", "p_female", "p_male", "p_neutral")]
            occupations.setdefault(row["experiment"], {}).setdefault(row["condition"], []).append(
                [row["group"], *shares]
            )
        elif row["by"] == "LSAT x UGPA" and row.get(gap) is not None:
            _add(cells.setdefault(row["condition"], {}), row, row[gap])
    profiles = {
        c: [_cell(place, sums) for place, sums in sorted(sums_by_place.items())] for c, sums_by_place in cells.items()
    }
    return {"occupations": occupations, "profiles": profiles}


def _add(cells: dict[tuple[int, int], list[float]], row: dict[str, Any], gap: float) -> None:
    """Adds a profile's row to the weighted sums of its cell."""
    lsat, _, ugpa = row["group"].partition(" x ")
    place = int(float(lsat) // LSAT_BIN), int(round(float(ugpa) * 10) // round(UGPA_BIN * 10))
    sums = cells.setdefault(place, [0.0, 0.0, 0.0])
    for k, value in enumerate((1.0, gap, row["p_admit"])):
        sums[k] += row["weight"] * value


def _cell(place: tuple[int, int], sums: list[float]) -> list[Any]:
    """A cell of profiles: [LSAT from, UGPA from, students, mean gap, mean p(admit)]."""
    weight, gap, admitted = sums
    lsat, ugpa = place[0] * LSAT_BIN, round(place[1] * UGPA_BIN, 1)
    return [lsat, ugpa, round(weight), fixed(gap / weight), fixed(admitted / weight)]


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of breakdown.jsonl; [] where there is no file. Raises InputError where it is damaged."""
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except ValueError as error:
        raise InputError(
            f"{path} is damaged ({error}); remove it and its summary.json and evaluate again: records are kept"
        ) from error
