"""`python -m eval report RUNS... [-o DIR]`: writes DIR/report.html, one page that works anywhere without a network.

The page holds its data once, as JSON, and draws it with Vega-Lite, whose scripts are embedded (vl-convert's bundle). It
stays below 2 MB: with too many checkpoints for that, details are left out, and the page says which.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from eval.cli.dispatch import CommandOutput
from eval.curves.gather import Curve, gather, size_name
from eval.curves.tables import text_table
from eval.errors import InputError
from eval.experiments.registry import EXPERIMENTS
from eval.files import prepare_output
from eval.views.options import OutputConfig
from eval.views.page import examples as page_examples
from eval.views.page import text as page_text
from eval.views.page.data import Detail, experiments, headline, page_data

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent
SCRIPTS = ("data.js", "charts.js", "panels.js", "page.js")
BUNDLE = "window.vegaEmbed = vegaEmbed;"
MOST_BYTES = 1_950_000
LEVELS = (
    (Detail(), ""),
    (Detail(items=1, text=1000), "a part of the example items, and the end of long sampled texts"),
    (Detail(items=1, text=1000, breakdowns=12), "occupations and profiles of more than 12 checkpoints"),
    (Detail("charts", 12, 1, 1000), "metrics that no chart shows"),
    (Detail("charts", 4, 0), "the example items, and occupations and profiles of more than 4 checkpoints"),
    (Detail("whole", 2, 0), "BBQ's categories, and occupations and profiles of more than 2 checkpoints"),
)
"""What is embedded, and in words what that leaves out. Each level leaves out more than the one before."""
Examples = tuple[list[page_examples.Shown], list[page_examples.Example], page_examples.Words]
Emergence = Callable[[Sequence[Curve]], list[dict[str, Any]]]


@dataclass
class ReportConfig(OutputConfig):
    """Options of `eval report`."""

    data_dir: str | None = field(
        default=None,
        metadata={"help": "data folder, for the words of example items; default $SELFCORRECT_DATA or the small set"},
    )


def report(config: ReportConfig, emergence: Emergence | None = None) -> CommandOutput:
    """Writes the page.

    Args:
        emergence: computes where the instruction begins to work (eval.views.emergence.emergence.default_thresholds);
            None leaves this out of the page.

    Returns:
        The text for the terminal (table of headline numbers, notes, path), and the object for --json.

    Raises:
        InputError: there is nothing to show, or the folder cannot be written.
    """
    curves = gather(config.folders)
    folder = config.folder("report")
    prepare_output(folder)
    notes = page_text.notes(curves)
    page, left_out = build(curves, notes, config.data_dir, emergence(curves) if emergence else None)
    path = folder / "report.html"
    path.write_bytes(page)
    left_out_lines = [f"Left out, to keep the page below 2 MB: {what}." for what in left_out]
    summaries = [s for c in curves for s in c.summaries]
    result = {"files": [str(path)], "left_out": left_out, "notes": notes, "checkpoints": summaries}
    return "\n".join([table(curves), *notes, *left_out_lines, f"page: {path}"]), result


def table(curves: Sequence[Curve]) -> str:
    """The headline numbers as text; with several curves, a table for each, under its name."""
    tables = []
    for curve in curves:
        rows = [
            (s["step"], m)
            for e in experiments([curve])
            for s in curve.summaries
            for c in EXPERIMENTS[e].CONDITIONS
            if (m := headline(s, e, c)) is not None
        ]
        seed = "" if curve.seed is None else f", seed {curve.seed}"
        head = f"{curve.name} ({size_name(curve.model_params)}{seed}), {curve.step_name}\n" if len(curves) > 1 else ""
        tables.append(head + text_table(rows))
    return "\n\n".join(tables)


def build(
    curves: Sequence[Curve],
    notes: Sequence[str],
    data_dir: str | None = None,
    emergence: Sequence[dict[str, Any]] | None = None,
    most_bytes: int = MOST_BYTES,
) -> tuple[bytes, list[str]]:
    """Builds the page.

    Args:
        notes: lines about what to know before believing a number.
        data_dir: data folder for the words of example items.
        emergence: thresholds to show; None = no such section.
        most_bytes: size limit.

    Returns:
        (the page as UTF-8, what was left out to stay within most_bytes).

    Raises:
        InputError: the page is too large even with everything left out that may be.
    """
    shown = page_examples.checkpoints(curves)
    chosen = page_examples.examples(shown, LEVELS[0][0].items)
    words = page_examples.Words(shown[-1][1], (e.experiment for e in chosen), data_dir)
    examples = shown, chosen, words
    left_out: list[str] = []
    size = 0
    for detail, without in LEVELS:
        left_out += [without] if without else []
        page = _page(curves, notes, left_out, emergence, examples, detail)
        size = len(page)
        if size <= most_bytes:
            for what in left_out:
                log.info("left out of the page, to keep it below 2 MB: %s", what)
            return page, left_out
    n = sum(len(c.summaries) for c in curves)
    raise InputError(
        f"a page of these {n} checkpoints has {size / 1e6:.1f} MB and may have {most_bytes / 1e6:.2f}; give fewer RUNS"
    )


def _page(
    curves: Sequence[Curve],
    notes: Sequence[str],
    left_out: Sequence[str],
    emergence: Sequence[dict[str, Any]] | None,
    examples: Examples,
    detail: Detail,
) -> bytes:
    """The page at one level of detail."""
    shown, chosen, words = examples
    texts = {
        "title": escape(page_text.title(curves)),
        "lead": escape(page_text.lead(curves)),
        "notes": page_text.notes_html(notes),
        "left_out": "".join(
            f"<p class='quiet'>Left out, to keep this page below 2 MB: {escape(what)}; the results folders have it.</p>"
            for what in left_out
        ),
        "emergence": page_text.emergence_html(emergence),
        "examples": page_examples.examples_html(
            shown, [e for e in chosen if e.rank < detail.items], words, detail.text, left_out=detail.items == 0
        ),
        "methods": page_text.methods_html(curves),
        "provenance": page_text.provenance_html(curves, brief=detail.items == 0),
        "style": (PAGE / "style.css").read_text("utf-8"),
        "data": embedded(page_data(curves, detail)),
        "vega": bundle(),
        "scripts": "\n".join((PAGE / name).read_text("utf-8") for name in SCRIPTS),
    }
    return fill((PAGE / "page.html").read_text("utf-8"), texts).encode()


@cache
def bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script, which sets window.vegaEmbed."""
    import vl_convert

    return vl_convert.javascript_bundle(BUNDLE).replace("</script", "<\\/script")


def embedded(value: Any) -> str:
    """JSON that is safe inside a script element: it contains no '<' that could end the element."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def fill(template: str, texts: dict[str, str]) -> str:
    """Replaces each {{name}} of the template, in a single pass, so that braces within a text are never filled."""
    parts = template.split("{{")
    filled = [parts[0]]
    for part in parts[1:]:
        name, _, rest = part.partition("}}")
        filled += [texts[name], rest]
    return "".join(filled)
