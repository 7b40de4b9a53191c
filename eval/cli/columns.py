"""Rows of texts as aligned columns, for the terminal."""

from __future__ import annotations


def columns(rows: list[tuple[str, ...]]) -> str:
    """Rows as aligned text, the first being the head."""
    widths = [max(len(r[k]) for r in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])
