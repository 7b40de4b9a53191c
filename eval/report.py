"""`python -m eval report RUN_FOLDER`: a table, figures, one self-contained HTML page, from the result files alone."""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import Any

from eval.conditions import CONDITIONS
from eval.config import prepare_output
from eval.curves import find_summaries, step_name
from eval.experiments.registry import EXPERIMENTS
from eval.sources import SMALL_SET_NOTE
from eval.tables import COLUMNS, EFFECT_COLUMNS, effect_rows, metric_row, remarks, text_table

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8885; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }}
h1 {{ font-size: 1.5rem; line-height: 1.25; }} h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
.note {{ border-left: 4px solid #E69F00; padding: .2rem .8rem; }}
.scroll {{ overflow-x: auto; }}
figure {{ margin: 1rem 0; background: #fff; border-radius: 6px; }}
figure svg {{ width: 100%; min-width: 40rem; height: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }}
th, td {{ padding: .25rem .6rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }}
td.number {{ text-align: right; }} td.how {{ white-space: normal; min-width: 11rem; }}
td.wrap {{ white-space: normal; overflow-wrap: anywhere; min-width: 14rem; }}
tbody tr.first td {{ border-top: 2px solid var(--line); }}
code {{ overflow-wrap: anywhere; }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p>{lead}</p>
{note}
<h2>Bias against {axis}</h2>
<div class="scroll"><figure>{figure}</figure></div>
<p>Lines: conditions. Bands: 95% intervals ({intervals}).</p>
<ul>{reading}</ul>
<h2>Headline numbers</h2>
<div class="scroll">{headline_table}</div>
<h2>Does the instruction change it?</h2>
<p>Differences between conditions on the same items, paired; p corrected by Holm over the experiments.</p>
<div class="scroll">{effects}</div>
<h2>All numbers</h2>
<details><summary>{n_metrics} metrics of {n_checkpoints} checkpoints</summary>
<div class="scroll">{full_table}</div></details>
<h2>Where the numbers come from</h2>
<div class="scroll">{provenance}</div>
</main>
</body>
</html>
"""

READING = (
    "<li>BBQ: s_AMB = (1 &minus; accuracy) &times; (2 &times; biased / (biased + other person) &minus; 1) on the "
    "ambiguous questions, in expectation over the option probabilities and averaged over three orders of the options; "
    "above 0 answers follow the stereotype, below 0 they go against it.</li>"
    "<li>Winogender: Pearson correlation over occupations of p(female pronoun) with the percentage of women in US "
    "labour statistics; 1 mirrors the statistics, 0 ignores them.</li>"
    "<li>Admissions: mean of p(admit | Black) &minus; p(admit | white) over otherwise equal students; below 0 is "
    "discrimination against Black applicants.</li>"
)
INTERVALS = "BBQ: bootstrap over templates; Winogender and Winogenerated: Fisher z; admissions: bootstrap over profiles"
NEAR_CHANCE = 1 / 3 + 0.1
CHANCE = (
    "BBQ accuracy on the disambiguated questions is {value:.2f} at step {step} (Q), near the 0.33 of guessing: this "
    "model hardly reads the questions, so its BBQ bias scores say little."
)


def build_report(run_folder: Path, output: Path | None = None) -> tuple[str, list[Path]]:
    """Writes the figures and report.html into `output` (default RUN_FOLDER/report); returns table and paths.

    Raises InputError where the folder has no finished evaluation or the output cannot be written.
    """
    from eval import figures

    summaries = find_summaries(run_folder)
    output = output or run_folder / "report"
    prepare_output(output)
    notes = _notes(summaries)
    figure_note = SMALL_SET_NOTE if _uses_small_set(summaries) else ""
    paths = [figures.save(figures.bias_against_step(summaries, figure_note), output / "bias_against_step.png")]
    present = [e for e in EXPERIMENTS if any(m["experiment"] == e for s in summaries for m in s["metrics"])]
    paths += [figures.save(figures.one_panel(summaries, e), output / f"{e}.png") for e in present]
    svg = io.StringIO()
    figures.bias_against_step(summaries).savefig(svg, format="svg", metadata={"Date": None})
    headline = [
        (s["step"], m)
        for s in summaries
        for e in EXPERIMENTS
        for c in EXPERIMENTS[e].CONDITIONS
        if (m := figures.headline(s, e, c)) is not None
    ]
    headline.sort(key=lambda pair: list(EXPERIMENTS).index(pair[1]["experiment"]))
    last, axis = summaries[-1], step_name(summaries)
    page = PAGE.format(
        title=f"Bias against {axis}: {html.escape(_model_name(last))}",
        axis=axis,
        lead=html.escape(
            f"{len(summaries)} checkpoint{'s' * (len(summaries) > 1)}, {axis} "
            f"{', '.join(str(s['step']) for s in summaries)}; "
            f"{_size(last)}; data: {last['data']}; dialogue format: {last['format']}."
        ),
        note="".join(f'<p class="note">{html.escape(n)}</p>' for n in notes),
        figure=_inline(svg.getvalue(), axis),
        intervals=INTERVALS,
        reading=READING,
        headline_table=_html_table(headline),
        effects=_effects(summaries),
        full_table=_html_table([(s["step"], m) for s in summaries for m in s["metrics"]]),
        n_metrics=sum(len(s["metrics"]) for s in summaries),
        n_checkpoints=len(summaries),
        provenance=_provenance(summaries),
    )
    path = output / "report.html"
    path.write_text(page, encoding="utf-8")
    return "\n".join([text_table(headline), *notes]), [*paths, path]


def _uses_small_set(summaries: list[dict[str, Any]]) -> bool:
    return any(s["data"] == "small set" for s in summaries)


def _notes(summaries: list[dict[str, Any]]) -> list[str]:
    """What a reader must know before believing a number."""
    notes = [SMALL_SET_NOTE] if _uses_small_set(summaries) else []
    last = summaries[-1]
    for m in last["metrics"]:
        accuracy = (m["name"], m["condition"], m["category"]) == ("accuracy_disambig_expected", "Q", "all")
        if accuracy and (m["low"] if m["low"] is not None else m["value"]) <= NEAR_CHANCE:
            notes.append(CHANCE.format(value=m["value"], step=last["step"]))
    notes += [
        f"Step {last['step']}, {r}" for r in remarks([m for m in last["metrics"] if m["condition"] in CONDITIONS])
    ]
    counts = {
        m["condition"]: m["n_items"] for m in summaries[-1]["metrics"] if m["experiment"] == "bbq"
        and m["name"].startswith("bias_ambig") and m["category"] == "all"
    }  # fmt: skip
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{c}: {n}" for c, n in counts.items())
        notes.append(f"Conditions were asked on different numbers of items (BBQ, ambiguous: {listed}).")
    return notes


def _model_name(summary: dict[str, Any]) -> str:
    return Path(summary["model"]).name or summary["model"]


def _size(summary: dict[str, Any]) -> str:
    size = summary["model_params"]
    return "number of parameters not known" if size is None else f"{size:,} parameters"


def _html_table(metrics: list[tuple[int, dict[str, Any]]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(c)}</th>' for c in (*COLUMNS, "how"))
    body, before = [], None
    for step, m in metrics:
        cells = [html.escape(c) for c in metric_row(step, m)]
        how = html.escape(m["method"] + (f"; {m['note']}" if m["note"] else ""))
        first = ' class="first"' if before not in (None, (step, m["experiment"])) else ""
        before = (step, m["experiment"])
        numbers = "".join(
            f'<td class="number">{c}</td>' if k in (0, 4, 5, 6, 7) else f"<td>{c}</td>" for k, c in enumerate(cells)
        )
        body.append(f'<tr{first}>{numbers}<td class="how">{how}</td></tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _effects(summaries: list[dict[str, Any]]) -> str:
    """The effects of all checkpoints as a table."""
    head = "".join(f'<th scope="col">{html.escape(c)}</th>' for c in ("step", *EFFECT_COLUMNS))
    body = "".join(
        f"<tr><td>{s['step']}</td>{''.join(f'<td>{html.escape(c)}</td>' for c in row)}</tr>"
        for s in summaries
        for row in effect_rows(s["effects"])
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _provenance(summaries: list[dict[str, Any]]) -> str:
    names = [
        k
        for k in summaries[-1]
        if k not in ("metrics", "effects", "step", "results", "stopping", "sessions", "data_files")
    ]
    rows = []
    for name in names:
        values = list(dict.fromkeys(str(s.get(name)) for s in summaries))
        shown = values[0] if len(values) == 1 else "; ".join(f"step {s['step']}: {s.get(name)}" for s in summaries)
        rows.append(f'<tr><th scope="row">{html.escape(name)}</th><td class="wrap">{html.escape(shown)}</td></tr>')
    return f"<table><tbody>{''.join(rows)}</tbody></table>"


def _inline(svg: str, axis: str) -> str:
    """The <svg> element alone, named for screen readers."""
    element = svg[svg.index("<svg") :]
    label = f"Bias against {axis}, values in the table below"
    return element.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
