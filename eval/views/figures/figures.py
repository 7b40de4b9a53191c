"""`python -m eval figures RUNS... [-o DIR]`: draws the paper's Figures 1 to 8 for these runs.

DIR/figN.svg, .pdf, .png   the figure; every run writes the same bytes
DIR/figN.csv               the numbers in the figure, to draw it again
DIR/captions.md            what each figure shows, of how many items, from where, and what is missing or means little
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.cli.dispatch import CommandOutput
from eval.cli.parser import split_commas
from eval.curves.cautions import cautions
from eval.curves.gather import Curve, gather, merge_curves, size_name
from eval.curves.headline import EXPECTED, SCORINGS
from eval.errors import InputError, nearest
from eval.files import prepare_output, write_text
from eval.views.options import OutputConfig

if TYPE_CHECKING:
    from eval.views.figures.frame import Drawn

NUMBERS = tuple("12345678")


@dataclass
class FiguresConfig(OutputConfig):
    """Options of `eval figures`."""

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
    only: list[str] = field(
        default_factory=list, metadata={"help": "numbers of the figures to draw, such as 1,2; default: all eight"}
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
        self.only = split_commas(self.only)
        for number in self.only:
            if number not in NUMBERS:
                raise InputError(f"only: there is no figure '{number}'; figures: {', '.join(NUMBERS)}")


def figures(config: FiguresConfig) -> CommandOutput:
    """Draws all figures into the output folder.

    Returns:
        The text for the terminal, and {"folder", "scoring", "figures": [{"figure", "title", "files", "missing",
        "remarks", "caption"}]}.

    Raises:
        InputError: the runs have no finished evaluation, the model or step is not among them, or the folder cannot be
            written.
    """
    from eval.views.figures import captions

    curves = gather(config.folders)
    folder = config.folder("figures")
    prepare_output(folder)
    entries = [write(drawn, folder) for drawn in draw(curves, config)]
    write_text(folder / "captions.md", captions.document(entries, config.scoring))
    return text(entries, folder), {"folder": str(folder), "scoring": config.scoring, "figures": entries}


def write(drawn: Drawn, folder: Path) -> dict[str, Any]:
    """Writes the files of a figure. Returns its entry for the terminal, --json and captions.md."""
    from eval.views.figures.captions import paragraphs
    from eval.views.figures.cells import as_csv, missing
    from eval.views.figures.style import save_all

    caption = paragraphs(drawn)
    paths = save_all(drawn.figure, folder, drawn.stem, drawn.title, " ".join(caption))
    numbers = folder / f"{drawn.stem}.csv"
    write_text(numbers, as_csv(drawn.rows or drawn.cells))
    return {
        "figure": drawn.number,
        "title": drawn.title,
        "files": [str(p) for p in (*paths, numbers)],
        "missing": missing(drawn.cells),
        "remarks": drawn.remarks,
        "caption": caption,
    }


def draw(curves: Sequence[Curve], config: FiguresConfig) -> Iterator[Drawn]:
    """Yields the requested figures, drawn but not yet written.

    Raises:
        InputError: the requested model or step is not among the curves.
    """
    from eval.views.figures import frame, occupations, paper_figures
    from eval.views.figures.cells import largest, one_axis

    curves = merge_curves(curves)
    if config.step is not None and not any(config.step in c.steps for c in curves):
        steps = sorted({s for c in curves for s in c.steps})
        raise InputError(f"step {config.step} was not evaluated; evaluated: {', '.join(map(str, steps))}")
    selected = (
        select_curves(curves, config.model) if config.model else at_least(curves, largest(curves)[0].model_params)
    )
    chosen = one_axis(selected) if config.model else largest(curves)
    request = frame.FigureRequest(
        tuple(curves), tuple(chosen), config.scoring, config.step, tuple(cautions(curves)), config.model is not None,
        tuple(c for c in selected if c not in chosen),
    )  # fmt: skip
    functions = (
        paper_figures.figure1, paper_figures.figure2, paper_figures.figure3, occupations.figure4,
        paper_figures.figure5, paper_figures.figure6, paper_figures.figure7, paper_figures.figure8,
    )  # fmt: skip
    for number, function in zip(NUMBERS, functions, strict=True):
        if number in config.only or not config.only:
            with frame.settings():
                drawn = function(request)
            yield drawn


def select_curves(curves: Sequence[Curve], name: str) -> list[Curve]:
    """The curves with that name, else of that model, else of that size. Raises InputError where there is none.

    Where the matches are of several sizes, only those of the first match's size are returned.
    """
    meanings = (
        lambda c: {c.name},
        lambda c: {c.model, Path(c.model).name},
        lambda c: {size_name(c.model_params), str(c.model_params)},
    )
    for meaning in meanings:
        if matches := [c for c in curves if name in meaning(c)]:
            size = matches[0].model_params
            return [c for c in matches if c.model_params == size]
    valid_names = sorted({n for meaning in meanings for c in curves for n in meaning(c)})
    raise InputError(f"model '{name}' is not among the runs{nearest(name, valid_names)}")


def at_least(curves: Sequence[Curve], params: int | None) -> list[Curve]:
    """The curves of this size or larger; where the size is unknown (None), the curves of unknown size."""
    return [c for c in curves if (c.model_params is None if params is None else (c.model_params or 0) >= params)]


def text(entries: Sequence[dict[str, Any]], folder: Path) -> str:
    """What was drawn and what is missing, for the terminal."""
    names = ", ".join(f"fig{entry['figure']}" for entry in entries)
    lines = [f"{folder}: {names}, each as .svg, .pdf and .png, its numbers as .csv; captions.md"]
    for entry in entries:
        lines.append(f"Figure {entry['figure']}: {entry['title']}")
        lines += [f"  missing: {line}" for line in entry["missing"]]
        lines += [f"  {line}" for line in entry["remarks"]]
    return "\n".join(lines)
