"""How figures look and how they are written: the palette, sizes for print, and files with the same bytes on every run.

Readers with deuteranopia, protanopia or tritanopia can tell the colours apart. Marker and line style carry the same
information.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES: dict[str, dict[str, Any]] = {
    "Q": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "Q+IF": {"color": "#E69F00", "marker": "s", "linestyle": "-"},
    "Q+IF+CoT": {"color": "#009E73", "marker": "^", "linestyle": "-"},
    "Q+Match Stats": {"color": "#A50026", "marker": "D", "linestyle": "--"},
    "Q+Inverse": {"color": "#555555", "marker": "v", "linestyle": ":"},
}
PRONOUNS = {"p_female": "#882255", "p_male": "#88CCEE", "p_neutral": "#DDDDDD"}
"""Colours of the stacked pronoun probabilities, chosen to differ in lightness."""
BAND = 0.18
"""Opacity of interval bands."""
GREY = "#666666"
WIDTH = 7.2
"""Inches: the text width of a two-column page."""
SMALL = 6.5
"""Points: the smallest text."""
SETTINGS: Any = {
    "font.family": "DejaVu Sans",  # shipped with matplotlib, so every machine draws the same
    "font.size": 7,
    "axes.titlesize": 8,
    "axes.labelsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "lines.markeredgewidth": 0.9,
    "hatch.linewidth": 0.5,
    "figure.constrained_layout.h_pad": 0.05,
    "figure.constrained_layout.w_pad": 0.05,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "selfcorrect",
    "path.simplify": False,
}
OF_FILES: Any = {name: SETTINGS[name] for name in ("svg.hashsalt", "svg.fonttype", "pdf.fonttype", "path.simplify")}
"""The settings that make any figure's files identical on every run and keep their text as text."""
FORMATS = ("svg", "pdf", "png")


def lighter(colour: str, keep: float = 0.5) -> str:
    """The colour blended with white: `keep` is the share of the colour that stays. For marks in the background."""
    channels = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return "#" + "".join(f"{round(255 - keep * (255 - channel)):02X}" for channel in channels)


def save(figure: Figure, path: Path, described: dict[str, str] | None = None) -> Path:
    """Writes a figure, and closes it if pyplot made it.

    The bytes are the same on every run: no dates, no random ids.

    Args:
        path: its ending chooses SVG, PDF or PNG.
        described: Title and Description (PDF: Subject) of the file.
    """
    write(figure, path, described or {})
    import matplotlib.pyplot as plt

    plt.close(figure)
    return path


def save_all(figure: Figure, folder: Path, stem: str, title: str, caption: str) -> list[Path]:
    """Writes the figure as SVG, PDF and PNG, each with its caption, under SETTINGS, since ticks are chosen on
    writing.
    """
    import matplotlib

    paths = [folder / f"{stem}.{ending}" for ending in FORMATS]
    with matplotlib.rc_context(SETTINGS):
        for path in paths:
            write(figure, path, {"Title": title, "Subject" if path.suffix == ".pdf" else "Description": caption})
    return paths


def write(figure: Figure, path: Path, described: dict[str, str]) -> None:
    """Writes one file. A PNG can only hold Latin-1 text, so other characters become question marks there."""
    import matplotlib

    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it would log a line for each table of each font
    metadata: dict[str, Any] = dict(described)
    if path.suffix == ".png":
        metadata = {k: v.encode("latin-1", "replace").decode("latin-1") for k, v in described.items()}
        metadata["Software"] = None
    elif path.suffix == ".svg":
        metadata["Date"] = None
    else:
        metadata["CreationDate"] = None
    with matplotlib.rc_context(OF_FILES):
        figure.savefig(path, dpi=200, metadata=metadata)
