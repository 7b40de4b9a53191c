"""A page in a browser: what it draws, what it complains of and what it asks for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e .[dev]")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
DRAWN = "document.documentElement.dataset.drawn === 'yes'"
WIDE = "document.scrollingElement.scrollWidth - innerWidth"
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium: install chromium, or set CHROMIUM to its path")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Opened:
    """A page in the browser, and all that it complained of or asked for."""

    def __init__(self, browser: Any, path: Path, width: int = 1440, **context: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **context)
        self.context.set_default_timeout(150_000)
        self.page = self.context.new_page()
        self.trouble: list[str] = []
        self.page.on("console", lambda m: self.trouble.append(f"{m.type}: {m.text}"))
        self.page.on("pageerror", lambda e: self.trouble.append(f"error: {e}"))
        self.page.on("request", lambda r: self.trouble.append(f"request: {r.url}") if r.url != path.as_uri() else None)
        self.page.goto(path.as_uri())
        self.page.wait_for_function(DRAWN)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: Any) -> None:
        self.context.close()

    def svg(self, chart: str) -> str:
        return self.page.inner_html(f"#{chart} svg.marks")

    def resize(self, width: int, height: int) -> None:
        """The window made as wide and high; returns when all is drawn for it, which begins a while after the change."""
        anew = width != self.page.viewport_size["width"]
        self.page.evaluate("window.before = document.querySelector('svg.marks')")
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.wait_for_function(f"{DRAWN} && window.before.isConnected === {str(not anew).lower()}")

    def choose(self, select: str, value: str, chart: str) -> tuple[str, str]:
        """A chart before and after a choice."""
        before = self.svg(chart)
        self.page.select_option(f"#{select}", value)
        self.page.wait_for_function(DRAWN)
        return before, self.svg(chart)

    def values(self, chart: str) -> list[list[str]]:
        """The table of a chart's values."""
        return self.page.eval_on_selector_all(
            f"#{chart} details.values tbody tr", "rows => rows.map(r => [...r.cells].map(c => c.textContent))"
        )
