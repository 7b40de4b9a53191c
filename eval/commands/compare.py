"""`python -m eval compare A B`: compares two results folders on the items that both have, and says how they were made.

The difference of a metric is B - A on shared items. Both sides use the same draws of clusters, as the effects between
conditions do (eval.metrics.measure). Items are paired by experiment, condition, item and order, and left out if their
data differ. Log-probabilities are compared record by record, which shows what another dtype, tier or engine changes.
"""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eval.cli.columns import columns
from eval.cli.parser import check_seed
from eval.errors import InputError, nearest
from eval.experiments.registry import EXPERIMENTS
from eval.metrics.measure import Cell, correct_p_values, effect, pair_quantities
from eval.metrics.sampled_answers import drop_unanswered, left_out_lines
from eval.metrics.upper_bounds import bound_lines, count_bounds
from eval.runner.keys import record_key, same_selection
from eval.runner.store import Store
from eval.stats.bootstrap import Bootstrap, Quantity
from eval.types import Effect, Record

ANSWER = {
    "logprobs", "prompt_tokens", "boundary_moved", "reasoning", "seed", "max_new_tokens", "counts", "samples", "unread",
    "no_answer", "no_reasoning", "bounded",
}  # fmt: skip
PROMPT_COLUMNS = {"format", "prompt_sha256", "weight"}
"""Columns in which a pair may differ besides its answers. All other columns are its data."""
DESCRIBED = (
    "model", "revision", "commit", "weights", "config_sha256", "adapter", "adapter_weights", "tokenizer_sha256",
    "format", "system_turn", "dtype", "step", "prompt_version", "scorer", "method", "answer_samples", "tier", "kernels",
    "device", "device_name", "machine",
    "data", "data_files", "evaluation", "git_commit", "versions", "oracle",
)  # fmt: skip
METRICS = ("experiment", "condition", "metric", "A", "B", "B - A", "95% interval", "p", "p (Holm)", "items", "clusters")
PAIRS = (
    "experiment", "condition", "shared", "only A", "only B", "largest |d logprob|", "mean |d logprob|",
    "answers changed",
)  # fmt: skip
HEADLINE, EVERY = "headline", "all"


@dataclass
class CompareConfig:
    """Options of `eval compare`."""

    a: str = field(default="", metadata={"help": "results folder A"})
    b: str = field(default="", metadata={"help": "results folder B"})
    metric: str = field(
        default=HEADLINE, metadata={"help": "headline (bias_ambig, rho, gap ...), all, or names: rho,p_female"}
    )
    seed: int = field(default=0, metadata={"help": "seed of the bootstrap"})
    json: bool = field(default=False, metadata={"help": "one JSON object on stdout, everything else on stderr"})

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if not self.a or not self.b:
            raise InputError("eval compare takes two results folders: python -m eval compare A B")


def compare(config: CompareConfig) -> dict[str, Any]:
    """Compares two results folders.

    Returns:
        {"a", "b", "provenance": {name: [A's, B's]} where they differ, "metrics", "pairs": an entry per shared cell,
            "identical", "remarks", "cautions": {"a": lines, "b": lines}, "seed"}. Cautions are about headline numbers
            and need a summary.

    Raises:
        InputError: A folder holds no results, nothing is shared, or a metric is unknown.
    """
    stores = [Store(Path(name)) for name in (config.a, config.b)]
    for store in stores:
        store.provenance()
    remarks = [f"{s.folder} is not complete: what it has is compared" for s in stores if not _complete(s)]
    records = [_by_cell(store, remarks) for store in stores]
    cells = [cell for cell in records[0] if cell in records[1]]
    remarks += [
        f"only {name} has {', '.join(f'{e} {c}' for e, c in unshared)}"
        for name, one, other in (("A", *records), ("B", *reversed(records)))
        if (unshared := [cell for cell in one if cell not in other])
    ]
    shared = {cell: pair(cell, records[0][cell], records[1][cell], remarks) for cell in cells}
    shared = {cell: pairs for cell, pairs in shared.items() if pairs}
    if not shared:
        raise InputError(
            f"{config.a} and {config.b} have no record of the same experiment, condition and item; nothing to compare"
        )
    pairs = [_pair_statistics(cell, matched, *(len(r[cell]) for r in records)) for cell, matched in shared.items()]
    same_logprobs = all(p["largest"] == p["only_a"] == p["only_b"] == 0 for p in pairs)
    return {
        "a": config.a,
        "b": config.b,
        "provenance": _differing(*(_provenance(store) for store in stores)),
        "metrics": [_effect_row(e) for e in differences(shared, config.metric, config.seed)],
        "pairs": pairs,
        "identical": same_logprobs and shared.keys() == records[0].keys() == records[1].keys(),
        "remarks": remarks,
        "cautions": {name: _cautions(store, shared) for name, store in zip("ab", stores, strict=True)},
        "seed": config.seed,
    }


def _cautions(store: Store, cells: Container[Cell]) -> list[str]:
    from eval.curves.cautions import headline_cautions

    summary = store.summary()
    return headline_cautions(summary, cells) if summary else []


def differences(shared: dict[Cell, list[tuple[Record, Record]]], metric: str, seed: int) -> list[Effect]:
    """Returns B - A of the chosen metrics of each cell. p is corrected over the experiments, for each condition.

    Args:
        shared: The pairs of records, A's first, by (experiment, condition).
        metric: 'headline', 'all', or names separated by commas.
        seed: The bootstrap's seed.

    Raises:
        InputError: No shared cell has the metric.
    """
    bootstrap = Bootstrap(seed)
    effects: list[tuple[bool, Effect]] = []
    known: set[str] = set()
    for (experiment, condition), pairs in shared.items():
        before, after = (EXPERIMENTS[experiment].measure([pair[k] for pair in pairs]) for k in (0, 1))
        matched = pair_quantities(before, after)
        primary = next((q.name for _, q in matched if q.category == "all"), "")
        headline = (primary, EXPERIMENTS[experiment].HEADLINE)
        for first, second in matched:
            known.add(second.name)
            wanted = _wanted(second, metric, headline)
            if wanted or (second.name, second.category) == (primary, "all"):  # Holm's correction needs the primary ones
                effects.append((wanted, effect(experiment, condition, condition, first, second, bootstrap)))
    for name in sorted(set(metric.split(",")) - known - {HEADLINE, EVERY}):
        raise InputError(f"metric: '{name}' is none of those that A and B share{nearest(name, sorted(known))}")
    correct_p_values([e for _, e in effects])
    return [e for wanted, e in effects if wanted]


def _wanted(quantity: Quantity, metric: str, headline: tuple[str, str]) -> bool:
    if metric == EVERY:
        return True
    names = headline if metric == HEADLINE else metric.split(",")
    return quantity.category == "all" and quantity.name in names


def pair(cell: Cell, a: dict[Any, Record], b: dict[Any, Record], remarks: list[str]) -> list[tuple[Record, Record]]:
    """Pairs the records of the same items and orders, in A's order.

    Items whose data or candidates differ are left out. Where weights differ (another --limit), A's are used for both.
    Each of these adds a line to `remarks`.
    """
    pairs: list[tuple[Record, Record]] = []
    odd: list[str] = []
    worded, weighted = 0, 0
    for key in (k for k in a if k in b):
        first, second = a[key], b[key]
        names = sorted((first.keys() | second.keys()) - ANSWER - PROMPT_COLUMNS)
        differing = [n for n in names if first.get(n) != second.get(n)]
        if differing:
            odd.append(f"item {first['item']}, {differing[0]}")
            continue
        worded += first["prompt_sha256"] != second["prompt_sha256"]
        weighted += first["weight"] != second["weight"]
        pairs.append((first, {**second, "weight": first["weight"]}))
    where = f"{cell[0]}, {cell[1]}"
    if odd:
        remarks.append(f"{where}: {len(odd)} records are of other data in A than in B and left out (first: {odd[0]})")
    if worded:
        remarks.append(f"{where}: {worded} of {len(pairs)} prompts have other words in A than in B; compared by item")
    if weighted:
        remarks.append(f"{where}: {weighted} of {len(pairs)} weights differ (another --limit); A's are taken for both")
    if pairs and pairs[0][0]["format"] != pairs[0][1]["format"]:
        formats = " and ".join(r["format"] for r in pairs[0])
        remarks.append(f"{where}: asked in other dialogue formats ({formats}); compared by item")
    return pairs


def _pair_statistics(cell: Cell, pairs: list[tuple[Record, Record]], n_a: int, n_b: int) -> dict[str, Any]:
    """Returns how far the log-probabilities of a cell's pairs differ, and the share of changed answers."""
    gaps = [np.abs(np.subtract(first["logprobs"], second["logprobs"])) for first, second in pairs]
    changed = [np.argmax(first["logprobs"]) != np.argmax(second["logprobs"]) for first, second in pairs]
    all_gaps = np.concatenate(gaps)
    return {
        "experiment": cell[0],
        "condition": cell[1],
        "shared": len(pairs),
        "only_a": n_a - len(pairs),
        "only_b": n_b - len(pairs),
        "largest": float(all_gaps.max()),
        "mean": float(all_gaps.mean()),
        "changed": float(np.mean(changed)),
    }


def _by_cell(store: Store, remarks: list[str]) -> dict[Cell, dict[Any, Record]]:
    """Returns the records by cell and key, and adds lines about questions without an answer to `remarks`.

    Leaves out sampled reasoning, which takes most of the memory, records of weight 0, which are kept for a larger
    --limit, and questions without an answer.
    """
    cells: dict[Cell, list[Record]] = {}
    for record in store.read():
        if record["weight"] == 0:
            continue
        record.pop("reasoning", None)
        cells.setdefault((record["experiment"], record["condition"]), []).append(record)
    with_answer, left_out = drop_unanswered(cells)
    bounds = bound_lines(count_bounds(with_answer))
    remarks += [f"{store.folder}: {line}" for line in (*left_out_lines(left_out), *bounds)]
    return {cell: {record_key(r): r for r in records} for cell, records in with_answer.items()}


def _complete(store: Store) -> bool:
    summary = store.summary()
    return summary is not None and same_selection(summary, store.provenance())


def _provenance(store: Store) -> dict[str, Any]:
    """Returns what the results depend on, nested fields as 'versions.torch', and the sha256 of data files."""
    summary = store.summary() if _complete(store) else None
    flat: dict[str, Any] = {}
    for name, value in (summary or store.provenance()).items():
        if name == "data_files":
            flat |= {f"data_files.{path}": checksums["sha256"] for path, checksums in value.items()}
        elif name in DESCRIBED and isinstance(value, dict):
            flat |= {f"{name}.{part}": inner for part, inner in value.items()}
        elif name in DESCRIBED:
            flat[name] = value
    return flat


def _differing(a: dict[str, Any], b: dict[str, Any]) -> dict[str, list[Any]]:
    """Returns {name: [A's, B's]} where they differ, in the order of DESCRIBED."""
    names = sorted(a.keys() | b.keys(), key=lambda n: (DESCRIBED.index(n.partition(".")[0]), n))
    return {n: [a.get(n), b.get(n)] for n in names if a.get(n) != b.get(n)}


def _effect_row(e: Effect) -> dict[str, Any]:
    row = asdict(e)
    renamed = {"condition": row.pop("after"), "value_a": row.pop("value_before"), "value_b": row.pop("value_after")}
    del row["before"]
    return row | renamed


def text(compared: dict[str, Any]) -> str:
    """Formats the comparison for the terminal."""
    rows = [(n, _short(a), _short(b)) for n, (a, b) in compared["provenance"].items()]
    parts = [f"A = {compared['a']}\nB = {compared['b']}"]
    parts.append(columns([("differs", "A", "B"), *rows]) if rows else "nothing in their provenance differs")
    parts.append("\n".join(compared["remarks"]))
    if compared["identical"]:
        n = sum(p["shared"] for p in compared["pairs"])
        parts.append(
            f"identical: all log-probabilities of the {n} records are the same, so every difference is 0 or undefined"
        )
    parts.append(columns([METRICS, *(_metric_row(m) for m in compared["metrics"])]))
    notes = {f"{m['experiment']}, {m['condition']}, {_name(m)}: {m['note']}" for m in compared["metrics"] if m["note"]}
    parts.append("\n".join(sorted(notes)))
    parts.append("\n".join(f"{k.upper()}: {line}" for k, lines in compared["cautions"].items() for line in lines))
    parts.append(columns([PAIRS, *(_pairs_row(p) for p in compared["pairs"])]))
    return "\n\n".join(filter(None, parts))


def _name(m: dict[str, Any]) -> str:
    return m["name"] if m["category"] == "all" else f"{m['name']} ({m['category']})"


def _metric_row(m: dict[str, Any]) -> tuple[str, ...]:
    names = ("value_a", "value_b", "value", "low", "high", "p_value", "p_holm")
    a, b, value, low, high, p, holm = ("" if m[k] is None else f"{m[k]:.4f}" for k in names)
    return (
        m["experiment"], m["condition"], _name(m), a, b, value or "undefined", low and f"[{low}, {high}]", p, holm,
        str(m["n_items"]), str(m["n_clusters"]),
    )  # fmt: skip


def _pairs_row(p: dict[str, Any]) -> tuple[str, ...]:
    return (
        p["experiment"], p["condition"], str(p["shared"]), str(p["only_a"]), str(p["only_b"]), f"{p['largest']:.2g}",
        f"{p['mean']:.2g}", f"{p['changed']:.2%}",
    )  # fmt: skip


def _short(value: Any) -> str:
    shown = value if isinstance(value, str) else json.dumps(value)
    shown = " ".join(shown.split())
    return shown if len(shown) <= 48 else shown[:45] + "..."
