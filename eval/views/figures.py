"""`python -m eval figures RUNS... [-o DIR]`: the paper's Figures 1 to 8 of these runs.

DIR/figN.svg, .pdf, .png   the figure, the same bytes on every run
DIR/figN.csv               the numbers in it, to draw it again
DIR/captions.md            what each shows, of how many items, from where, and what is missing or means little
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.commands import Told
from eval.config import InputError, nearest, prepare_output
from eval.results import write_text
from eval.views.explained import cautions
from eval.views.gathered import Curve, gather
from eval.views.options import OutputConfig
from eval.views.scoring import EXPECTED, SCORINGS

if TYPE_CHECKING:
    from eval.views.frame import Drawn


@dataclass
class FiguresConfig(OutputConfig):
    """`eval figures`."""

    output: str | None = field(
        default=None, metadata={"aliases": ["-o"], "help": "folder of the figures; default: figures in the first RUN"}
    )
    scoring: str = field(
        default=EXPECTED,
        metadata={"help": "BBQ: expected (order-symmetrised), or most-probable (the paper's protocol)"},
    )
    step: int | None = field(
        default=None,
        metadata={"help": "compare sizes at this step; default: each model's nearest to the paper's 800 and 50"},
    )
    model: str | None = field(
        default=None,
        metadata={"help": "figures of one model: a run's name, a model or a size such as 135M; default: the largest"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scoring not in SCORINGS:
            raise InputError(f"scoring must be {' or '.join(SCORINGS)}, not '{self.scoring}'")
        if self.step is not None and self.step < 0:
            raise InputError(f"step must be at least 0, not {self.step}")


def figures(config: FiguresConfig) -> Told:
    """Draws all figures into the output folder; returns the text for the terminal and
    {"folder", "scoring", "figures": [{"figure", "title", "files", "missing", "remarks", "caption"}]}.

    Raises InputError where the runs hold no finished evaluation, the model or step is not among them, or the folder
    cannot be written.
    """
    from eval.views import captions
    from eval.views.cells import as_csv, missing
    from eval.views.style import save_all

    curves = gather(config.folders)
    folder = config.folder("figures")
    prepare_output(folder)
    told: list[dict[str, Any]] = []
    texts = ["# Figures", f"BBQ scored: {config.scoring}."]
    for drawn in draw(curves, config):
        caption = captions.paragraphs(drawn)
        paths = save_all(drawn.figure, folder, drawn.stem, drawn.title, " ".join(caption))
        numbers = folder / f"{drawn.stem}.csv"
        write_text(numbers, as_csv(drawn.rows or drawn.cells))
        texts += [f"## Figure {drawn.number}: {drawn.title}", *caption]
        told.append(
            {
                "figure": drawn.number,
                "title": drawn.title,
                "files": [str(p) for p in (*paths, numbers)],
                "missing": missing(drawn.cells),
                "remarks": drawn.remarks,
                "caption": caption,
            }
        )
    write_text(folder / "captions.md", "\n\n".join(texts) + "\n")
    return text(told, folder), {"folder": str(folder), "scoring": config.scoring, "figures": told}


def draw(curves: Sequence[Curve], config: FiguresConfig) -> list[Drawn]:
    """The eight figures, not yet written. Raises InputError where the model or step asked for is not there."""
    from eval.views import frame, occupations, paper_figures
    from eval.views.cells import largest

    if config.step is not None and not any(config.step in c.steps for c in curves):
        steps = sorted({s for c in curves for s in c.steps})
        raise InputError(f"step {config.step} was not evaluated; evaluated: {', '.join(map(str, steps))}")
    chosen = named(curves, config.model) if config.model else largest(curves)
    asked = frame.Asked(
        tuple(curves), tuple(chosen), config.scoring, config.step, tuple(cautions(curves)), config.model is not None
    )
    with frame.settings():
        return [
            paper_figures.figure1(asked),
            paper_figures.figure2(asked),
            paper_figures.figure3(asked),
            occupations.figure4(asked),
            paper_figures.figure5(asked),
            *paper_figures.figures6to8(asked),
        ]


def named(curves: Sequence[Curve], name: str) -> list[Curve]:
    """The curves that a name means: of that name; else of that model; else of that size. InputError where none is."""
    from eval.views.style import size_name

    meanings = (
        lambda c: {c.name},
        lambda c: {c.model, Path(c.model).name},
        lambda c: {size_name(c.model_params), str(c.model_params)},
    )
    for meaning in meanings:
        if found := [c for c in curves if name in meaning(c)]:
            size = found[0].model_params
            return [c for c in found if c.model_params == size]
    known = sorted({n for meaning in meanings for c in curves for n in meaning(c)})
    raise InputError(f"model '{name}' is not among the runs{nearest(name, known)}")


def text(told: Sequence[dict[str, Any]], folder: Path) -> str:
    """What was drawn and what is missing, for the terminal."""
    lines = [f"figures of {folder}: fig1 to fig{len(told)}, each as .svg, .pdf, .png, its numbers as .csv; captions.md"]
    for entry in told:
        lines.append(f"Figure {entry['figure']}: {entry['title']}")
        lines += [f"  missing: {line}" for line in entry["missing"]]
        lines += [f"  {line}" for line in entry["remarks"]]
    return "\n".join(lines)
