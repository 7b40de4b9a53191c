"""The report's page in a browser: it draws without errors or requests, at any width, in any theme, for any reader."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from eval.views.page.report import ReportConfig, report
from tests.support.page_browser import DRAWN, WIDE, Opened, browser, needs_chromium
from tests.support.page_runs import training

__all__ = ["browser"]

pytestmark = needs_chromium
CONTRAST = """() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = numbers(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const tags = "p li h1 h2 h3 h4 td th dt dd a summary label legend caption select blockquote figcaption".split(" ");
  const texts = [...document.querySelectorAll(`main :is(${tags.join(",")}), svg.marks text`)];
  const worst = {};
  for (const e of texts) {
    if (!e.textContent.trim() || !e.getClientRects().length || e.closest(".vega-embed details")) continue;
    const style = getComputedStyle(e), ink = numbers(e.tagName === "text" ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(e))], ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (!(e.tagName in worst) || ratio < worst[e.tagName]) worst[e.tagName] = ratio;
  }
  return worst;
}"""
"""The least contrast of text with what is behind it, by the kind of element."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shown")
    for params, seed in ((2_000_000, 0), (50_000_000, 0), (50_000_000, 1)):
        training(folder / "runs", params, seed)
    _, told = report(ReportConfig(runs=[str(folder / "runs")], output=str(folder / "page")))
    return Path(told["files"][0])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of one checkpoint, of one experiment."""
    folder = tmp_path_factory.mktemp("alone")
    training(folder / "run", 2_000_000, 0, (50,), experiments=["winogender"])
    _, told = report(ReportConfig(runs=[str(folder / "run")], output=str(folder / "page")))
    return Path(told["files"][0])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 768, 1440])
def test_draws_quietly_and_overflows_nowhere(browser: Any, path: Path, width: int, scheme: str) -> None:
    with Opened(browser, path, width, color_scheme=scheme) as o:
        assert o.page.evaluate(WIDE) <= 0
        assert o.page.locator("svg.marks").count() == 15
        for svg in o.page.locator("svg.marks").all():
            box = svg.bounding_box()
            assert box["width"] > 150 and box["height"] > 90 and box["x"] + box["width"] <= width
        o.page.eval_on_selector_all("details:not(.vega-embed details)", "all => all.forEach((d) => { d.open = true; })")
        o.page.wait_for_selector("#number-table tbody tr")
        assert o.page.evaluate(WIDE) <= 0
        columns = len({round(b.bounding_box()["x"]) for b in o.page.locator("#by-step figure").all()})
        assert columns == {375: 1, 768: 2, 1440: 3}[width]
        worst = o.page.evaluate(CONTRAST)
        assert {"text", "TD", "P", "A", "SUMMARY", "SELECT"} <= set(worst)
        assert {tag: ratio for tag, ratio in worst.items() if ratio < 4.5} == {}
        background = o.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")
        assert o.trouble == []


def test_selectors_change_what_is_drawn(browser: Any, path: Path) -> None:
    with Opened(browser, path) as o:
        assert len({row[1] for row in o.values("bbq-by-step")}) == 2  # two seeds, a line each
        before, after = o.choose("size", "2000000", "bbq-by-step")
        assert before != after and {row[1] for row in o.values("bbq-by-step")} == {"tiny-2m-seed0"}
        assert "2 runs" not in o.page.inner_text("#state")
        o.choose("size", "50000000", "winogender-by-step")
        expected = {row[0]: row[4] for row in o.values("bbq-by-size")}
        before, after = o.choose("variant", "", "bbq-by-size")
        assert before != after and {row[0]: row[4] for row in o.values("bbq-by-size")} != expected
        assert "the paper's protocol" in after
        o.choose("step", "0", "admissions-by-size")
        assert {row[3] for row in o.values("admissions-by-size")} == {"0"}
        assert "RLHF step 0" in o.page.inner_text("#effect-table tbody")
        assert "RLHF step 100" not in o.page.inner_text("#effect-table tbody")
        o.choose("seed", "rloo, seed 1, tiny", "winogender-by-step")
        assert {row[1] for row in o.values("winogender-by-step")} == {"tiny-50m-seed1"}
        was = o.svg("winogender-by-step")
        o.page.uncheck("#conditions input[value='Q+IF']")
        o.page.wait_for_function(DRAWN)
        assert o.svg("winogender-by-step") != was and "Q+IF" not in {row[0] for row in o.values("winogender-by-step")}
        before, after = o.choose("pronoun-condition", "Q+IF", "stacks")
        assert before != after and "Q+IF" in o.page.inner_text("#pronoun-state")
        o.choose("profile-condition", "Q+IF", "profiles-gap")
        for name in ("Q", "Q+IF+CoT", "Q+Match Stats"):
            o.page.uncheck(f"#conditions input[value='{name}']")
        o.page.wait_for_function(DRAWN)
        assert o.page.inner_text("#state").endswith("no condition.") and o.values("bbq-by-step") == []
        assert "nothing to draw" in o.page.inner_text("#bbq-by-step")
        assert o.page.evaluate(WIDE) <= 0
        assert o.trouble == []


TOLD_INSIDE = """() => {
    const tip = document.querySelector("#vg-tooltip-element.visible"), box = tip?.getBoundingClientRect();
    return box && box.left >= 0 && box.right <= innerWidth && box.top >= 0 && box.bottom <= innerHeight;
}"""


def test_pointing_at_a_mark_tells_all_of_it(browser: Any, path: Path) -> None:
    with Opened(browser, path) as o:
        mark = o.page.locator("#winogender-by-step svg .mark-symbol path").last
        mark.hover()
        o.page.wait_for_selector("#vg-tooltip-element.visible")
        for width, height in ((1440, 560), (420, 900)):  # tall beside the window, and as wide
            o.resize(width, height)
            mark.hover()
            o.page.wait_for_function(TOLD_INSIDE)
        told = o.page.inner_text("#vg-tooltip-element")
        for name in (
            "value",
            "95% interval",
            "items",
            "clusters",
            "method",
            "run",
            "size",
            "step",
            "results",
            "weights",
        ):
            assert name in told
        assert re.search(r"-?0\.\d{4}", told) and "tiny-50m-seed" in told and "Fisher z" in told
        assert o.trouble == []


def test_works_without_sight_and_without_a_mouse(browser: Any, path: Path) -> None:
    with Opened(browser, path, 768) as o:
        page = o.page
        for svg in page.locator("svg.marks").all():
            assert svg.get_attribute("role") == "img" and len(svg.get_attribute("aria-label")) > 60
        assert all(o.values(c) for c in page.eval_on_selector_all("figure.chart", "all => all.map((f) => f.id)"))
        levels = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map((h) => Number(h.tagName[1]))")
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
        nameless = (
            "all => all.filter((e) => !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim()))"
        )
        assert page.eval_on_selector_all("select, input, summary, a, [tabindex='0']", f"({nameless})").__len__() == 0
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        reached = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.add(
                page.evaluate(
                    "document.activeElement.id || document.activeElement.value || document.activeElement.tagName"
                )
            )
        assert {"size", "step", "seed", "variant", "Q", "Q+IF", "SUMMARY"} <= reached
        page.focus("#step")
        page.keyboard.press("Home")
        page.wait_for_function("document.querySelector('#by-size-title').textContent.includes('last')")
        page.wait_for_function(DRAWN)
        page.focus("#conditions input[value='Q']")
        page.keyboard.press("Space")
        assert not page.is_checked("#conditions input[value='Q']")
        assert o.trouble == []


def test_prints(browser: Any, path: Path, tmp_path: Path) -> None:
    """A PDF in light colours whatever the theme, with the charts and without the selectors."""
    with Opened(browser, path, color_scheme="dark") as o:
        pdf = o.page.pdf(path=str(tmp_path / "page.pdf"), format="A4")
        assert pdf.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 4
        o.page.emulate_media(media="print")
        assert o.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not o.page.is_visible("#size") and o.page.is_visible("#conditions svg")
        assert o.page.is_visible("#bbq-by-step svg.marks")
        o.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        o.page.wait_for_function(DRAWN)
        fill = o.page.eval_on_selector("#bbq-by-step svg.marks .role-title-text text", "e => e.getAttribute('fill')")
        assert fill == "#1b1d21"
        assert o.trouble == []


def test_a_page_of_one_checkpoint_and_one_experiment(browser: Any, alone: Path) -> None:
    with Opened(browser, alone, 375) as o:
        shown = o.page.eval_on_selector_all("figure.chart", "all => all.map((f) => f.id)")
        assert shown == ["winogender-by-step", "stacks", "calibration"]
        assert "at RLHF step 50" in o.svg("winogender-by-step")
        assert not o.page.is_visible("#categories") and not o.page.is_visible("#profiles")
        assert not o.page.is_visible("#variant") and "one known size only" in o.page.inner_text("#by-size-note")
        assert o.page.evaluate(WIDE) <= 0 and o.trouble == []


def test_without_scripts_it_says_so_and_keeps_its_text(browser: Any, path: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    text = page.inner_text("main")
    assert "they are switched off here" in text and "Where the numbers come from" in text
    context.close()
