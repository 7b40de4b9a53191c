"""Formats rows of texts as aligned columns for the terminal."""

from __future__ import annotations


def columns(rows: list[tuple[str, ...]]) -> str:
    """Formats rows as aligned text. The first row is the header; a line of dashes follows it."""
    widths = [max(len(r[k]) for r in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])
