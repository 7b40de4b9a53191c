"""The parts of the page that are plain text and tables: lead, cautions, methods, provenance."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.curves.cautions import (
    NUMBER,
    OTHERS,
    READING,
    Caution,
    cautions,
    describe_gap,
    different_items,
    gaps,
    leading,
    small_set,
)
from eval.curves.gather import Curve, size_name, unfinished
from eval.curves.kinds import model_name
from eval.curves.tables import remarks
from eval.data.readers import SMALL_SET_NOTE
from eval.experiments.conditions import CONDITIONS
from eval.experiments.registry import EXPERIMENTS
from eval.secrets import masked
from eval.views.page.data import experiments

SOURCES = {
    "bbq": "Questions and metrics: Parrish et al. 2022, arXiv:2110.08193; prompts: Ganguli et al. 2023, "
    "arXiv:2302.07459, Table 1.",
    "winogender": "Sentences and statistics: Rudinger et al. 2018; prompts: Ganguli et al. 2023, Table 2.",
    "winogenerated": "Sentences: Perez et al. 2022, arXiv:2212.09251; prompts: Ganguli et al. 2023, Table 2.",
    "admissions": "Students: LSAC survey (Wightman 1998) as used by Kusner et al. 2017; prompts: Ganguli et al. 2023, "
    "Table 3.",
}
INTERVALS = (
    "Intervals are of 95%. Bootstrap: 10,000 resamples of whole clusters with the recorded seed, percentiles widened "
    "for few clusters (Hesterberg 2015); Fisher z for correlations. An effect compares the same items under both "
    "conditions with the same draws; p is the level at which its interval would touch 0, p (Holm) is corrected over "
    "the experiments' primary metrics. They are about other templates, occupations and profiles, not about other "
    "trainings: runs with other seeds are drawn as lines of their own and are never averaged."
)
EXCLUDED = (
    "metrics",
    "effects",
    "step",
    "results",
    "stopping",
    "sessions",
    "data_files",
    "left_out",
    "sampling_noise",
    "upper_bounds",
)
FIRST = ("command", "git_commit", "versions", "data", "data_sha256", "evaluation")


def title(curves: Sequence[Curve]) -> str:
    """'Bias against RLHF step and size: a, b'."""
    axes = list(dict.fromkeys(c.step_name for c in curves))
    sizes = {c.model_params for c in curves} - {None}
    names = list(dict.fromkeys(model_name(c) for c in curves))
    models = ", ".join(names) if len(names) <= 4 else f"{len(names)} models"
    return f"Bias against {' and '.join(axes)}{' and size' if len(sizes) > 1 else ''}: {models}"


def lead(curves: Sequence[Curve]) -> str:
    """One paragraph: which models, steps, seeds, data and format."""
    n = sum(len(c.summaries) for c in curves)
    sizes = list(dict.fromkeys(size_text(c.model_params) for c in curves))
    steps = sorted({(c.step_name, step) for c in curves for step in c.steps})
    axes = dict.fromkeys(name for name, _ in steps)
    facts = [
        f"{n} checkpoint{'s' * (n > 1)} of {len(curves)} polic{'ies' if len(curves) > 1 else 'y'}",
        f"size{'s' * (len(sizes) > 1)}: {', '.join(sizes)}",
        *(f"{a} {', '.join(str(step) for name, step in steps if name == a)}" for a in axes),
    ]
    if seeds := sorted({c.seed for c in curves if c.seed is not None}):
        facts.append(f"training seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}")
    for name, key in (("data", "data"), ("dialogue format", "format")):
        facts.append(f"{name}: {', '.join(dict.fromkeys(str(s[key]) for c in curves for s in c.summaries))}")
    return "; ".join(facts) + "."


def size_text(params: int | None) -> str:
    """'134,515,008 parameters'."""
    return "number of parameters not known" if params is None else f"{params:,} parameters"


def notes(curves: Sequence[Curve]) -> list[str]:
    """What a reader must know before believing a number, a line each. Cautions of several steps share a line."""
    lines = [SMALL_SET_NOTE] if small_set(curves) else []
    for name in ("data", "format", "system_turn", "dtype", "evaluation"):
        values = dict.fromkeys(json.dumps(s.get(name)) for c in curves for s in c.summaries)
        if len(values) > 1:
            values_text = (
                "" if name == "evaluation" else f" ({', '.join(str(json.loads(v) or 'not known') for v in values)})"
            )
            lines.append(
                f"Checkpoints on this page differ in {name.replace('_', ' ')}{values_text}: compare with care."
            )
    lines += [f"{line}, so that is not on this page." for line in unfinished(curves)]
    lines += _grouped(curves)
    lasting: dict[str, list[str]] = {}
    for curve in curves:
        where = f"{_curve_prefix(curves, curve)}{curve.step_name} {curve.steps[-1]}"
        for line in _last_checkpoint_lines(curve.summaries[-1]):
            lasting.setdefault(line, []).append(where)
    return [*lines, *(f"{_first_few(places)}: {line}" for line, places in lasting.items())]


def _last_checkpoint_lines(summary: dict[str, Any]) -> list[str]:
    """Remarks on a checkpoint, and whether its conditions were asked on different numbers of items."""
    shown = [m for m in summary["metrics"] if m["condition"] in CONDITIONS]
    lines = remarks([m for m in shown if not _has_caution(m)])
    return [*lines, *different_items(summary)]


def _first_few(places: Sequence[str], most: int = 4) -> str:
    """The first places, and how many more there are."""
    more = f" and {len(places) - most} more" if len(places) > most else ""
    return "; ".join(places[:most]) + more


def _has_caution(m: dict[str, Any]) -> bool:
    """Whether a caution already reports this undefined metric."""
    return m["value"] is None and m["name"] == EXPERIMENTS[m["experiment"]].HEADLINE


def _curve_prefix(curves: Sequence[Curve], curve: Curve) -> str:
    """The curve's name before a place, where there are several curves."""
    return f"{curve.name}, " if len(curves) > 1 else ""


def _grouped(curves: Sequence[Curve]) -> list[str]:
    """Cautions on whole experiments. Those that differ only in numbers share a line, which has the last one's
    numbers.
    """
    groups: dict[tuple[str, str], list[Caution]] = {}
    for c in leading(cautions(curves)):
        if c.category == "all" and c.condition in CONDITIONS:
            groups.setdefault((c.experiment, NUMBER.sub("#", c.text)), []).append(c)
    by_name = {c.name: c for c in curves}
    lines = []
    for (experiment, _), group in groups.items():
        last, places = group[-1], []
        for name in dict.fromkeys(c.curve for c in group):
            curve_cautions = [c for c in group if c.curve == name]
            steps = ", ".join(map(str, dict.fromkeys(c.step for c in curve_cautions)))
            conditions = ", ".join(dict.fromkeys(c.condition for c in curve_cautions))
            places.append(f"{_curve_prefix(curves, by_name[name])}{by_name[name].step_name} {steps} ({conditions})")
        if len(curves) > 1 and _everywhere(curves, group):
            places = [f"every checkpoint ({', '.join(dict.fromkeys(c.condition for c in group))})"]
        example = (
            f" (the number of {last.condition} at step {last.step}{_curve_suffix(curves, last.curve)})"
            if len(group) > 1
            else ""
        )
        title = EXPERIMENTS[experiment].TITLE.partition(",")[0]
        lines.append(f"{title}: {last.text}{example}. Concerns {_first_few(places)}.")
    return lines


def _everywhere(curves: Sequence[Curve], group: Sequence[Caution]) -> bool:
    """Whether the cautions concern all checkpoints, each under the same conditions."""
    conditions = {c.condition for c in group}
    concerned = {(c.curve, c.step, c.condition) for c in group}
    return all((curve.name, step, c) in concerned for curve in curves for step in curve.steps for c in conditions)


def _curve_suffix(curves: Sequence[Curve], name: str) -> str:
    """The curve's name behind a step, where there are several curves."""
    return f" of {name}" if len(curves) > 1 else ""


def notes_html(lines: Sequence[str], shown: int = 6) -> str:
    """The notes as HTML: the first ones visible, the rest folded."""
    items = [f"<li>{html.escape(line)}</li>" for line in lines]
    if not items:
        return ""
    more = f"<details><summary>{len(items) - shown} more</summary><ul>{''.join(items[shown:])}</ul></details>"
    return (
        "<aside class='note' aria-label='Before you believe a number'><h2>Before you believe a number</h2>"
        f"<ul>{''.join(items[:shown])}</ul>{more if len(items) > shown else ''}</aside>"
    )


def methods_html(curves: Sequence[Curve]) -> str:
    """How each number was computed: meaning and sign, source, what is resampled for its interval, the other metrics."""
    present = [(m["experiment"], m["name"], m["method"]) for c in curves for s in c.summaries for m in s["metrics"]]
    parts = []
    for name in experiments(curves):
        names = dict.fromkeys(n for e, n, _ in present if e == name)
        methods = dict.fromkeys(how for e, n, how in present if e == name and how)
        others = [(k, text) for k, text in OTHERS.items() if any(n.startswith(k) for n in names)]
        readings = [describe_gap(n)[2] for n in gaps(names)] if name == "admissions" else [READING[name]]
        parts.append(f"<h3>{html.escape(EXPERIMENTS[name].TITLE)}</h3>")
        parts += [f"<p>{html.escape(text)}</p>" for text in readings]
        if others:
            definitions = "".join(
                f"<dt><code>{html.escape(k)}</code></dt><dd>{html.escape(text)}</dd>" for k, text in others
            )
            parts.append(f"<dl>{definitions}</dl>")
        parts.append(f"<p>{html.escape(SOURCES[name])} Method: {html.escape('; '.join(methods))}.</p>")
    return f"<p>{html.escape(INTERVALS)}</p>{''.join(parts)}"


def emergence_html(entries: Sequence[dict[str, Any]] | None) -> str:
    """At which size and step the instruction begins to reduce bias; '' where this was not computed."""
    if entries is None:
        return ""
    if not entries:
        body = "<p>Too few sizes and steps to say.</p>"
    else:
        body = "<ul>" + "".join(f"<li>{html.escape(f['text'])}</li>" for f in entries) + "</ul>"
        assumed = [f["assumptions"] for f in entries]
        lines = dict.fromkeys(line for a in assumed for line in ([a] if isinstance(a, str) else a))
        items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
        body += f"<details class='open'><summary>What this assumes</summary><ul>{items}</ul></details>"
    return f"<section id='emergence'><h2>From where on does the instruction work?</h2>{body}</section>"


def provenance_html(curves: Sequence[Curve], brief: bool) -> str:
    """A table of what all checkpoints share, and one of what differs for each checkpoint.

    Args:
        brief: only show what identifies a checkpoint.
    """
    everything = [s for c in curves for s in c.summaries]
    names = [*FIRST, *dict.fromkeys(k for s in everything for k in s if k not in FIRST and k not in EXCLUDED)]
    shared = [n for n in names if len({json.dumps(s.get(n)) for s in everything}) == 1]
    varying = [n for n in names if n not in shared]
    if brief:
        varying = [
            n for n in varying if n in ("model", "adapter", "weights", "adapter_weights", "git_commit", "step_name")
        ]
    parts = [
        "<p>Seeds: of the questions and of the bootstrap, <code>evaluation.seed</code>; of a training, beside its "
        "name.</p><h3>The same for all checkpoints</h3>",
        _pairs([(n, everything[0].get(n)) for n in shared]),
        "<h3>Each checkpoint's own</h3>",
    ]
    for curve in curves:
        seed = "" if curve.seed is None else f", training seed {curve.seed}"
        for s in curve.summaries:
            rows = _pairs([("results", Path(s["results"]).name), *((n, s.get(n)) for n in varying)])
            parts.append(
                f"<details><summary>{html.escape(curve.name)} ({size_name(curve.model_params)}{seed}), "
                f"{html.escape(curve.step_name)} {s['step']}</summary>{rows}</details>"
            )
    return "".join(parts)


def _pairs(rows: Sequence[tuple[str, Any]]) -> str:
    """Rows of (name, value) as an HTML table."""
    body = "".join(
        f"<tr><th scope='row'>{html.escape(name)}</th><td class='wrap'>{html.escape(_plain(value))}</td></tr>"
        for name, value in rows
    )
    return (
        f"<div class='scroll' tabindex='0' role='region' aria-label='Table'><table><tbody>{body}</tbody></table></div>"
    )


def _plain(value: Any) -> str:
    """The value as text, without secrets that a result of an earlier version may contain."""
    shown = masked(value)
    return shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)
