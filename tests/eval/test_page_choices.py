"""What the report's page opens with, what its lines join, and where it doubts, in a browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.files import write_json
from eval.views.page.report import ReportConfig, report
from tests.support.page_browser import WIDE, Opened, browser, needs_chromium
from tests.support.page_runs import training

__all__ = ["browser"]
pytestmark = needs_chromium
FILLS = "marks => marks.map((m) => m.getAttribute('fill'))"
JOINED = "paths => paths.filter((p) => p.getTotalLength() > 1).length"


def edited(run: Path, **fields: Any) -> None:
    for path in run.rglob("summary.json"):
        write_json(path, {**json.loads(path.read_text()), **fields})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two trainings, a larger one of which only step 0 was evaluated, and a larger model without RLHF."""
    folder = tmp_path_factory.mktemp("choices")
    more: dict[str, Any] = {"experiments": ["bbq"], "conditions": ["Q", "Q+IF"], "limit": 40}
    found = {
        "small": training(folder, 2_000_000, 0, **more),
        "large": training(folder, 50_000_000, 0, **more),
        "begun": training(folder, 90_000_000, 0, (0,), **more),
        "base": training(folder, 70_000_000, 0, (0,), **more),
    }
    (found["base"] / "run.json").unlink()
    edited(found["base"], step_name="training step", adapter=None)
    return found


def page_of(folder: Path, *runs: Path) -> Path:
    _, told = report(ReportConfig(runs=[str(r) for r in runs], output=str(folder)))
    return Path(told["files"][0])


def shown(o: Opened, chart: str, column: int) -> set[str]:
    return {row[column] for row in o.values(chart)}


def test_opens_at_the_step_that_trainings_share(browser: Any, runs: dict[str, Path], tmp_path: Path) -> None:
    with Opened(browser, page_of(tmp_path, runs["small"], runs["large"], runs["base"])) as o:
        assert (o.page.input_value("#step"), o.page.input_value("#size")) == ("100", "50000000")
        title = "Against size, at RLHF step 100, runs without RLHF at their last step"
        assert o.page.inner_text("#by-size-title") == title
        assert shown(o, "bbq-by-size", 2) == {"2M", "50M", "70M"}
        o.choose("step", "0", "bbq-by-size")
        assert shown(o, "bbq-by-size", 3) == {"0"} and shown(o, "bbq-by-size", 2) == {"2M", "50M", "70M"}
        assert o.trouble == []


def test_opens_at_the_last_step_of_each_where_they_share_only_the_one_before_rlhf(
    browser: Any, runs: dict[str, Path], tmp_path: Path
) -> None:
    with Opened(browser, page_of(tmp_path, runs["small"], runs["begun"])) as o:
        assert (o.page.input_value("#step"), o.page.input_value("#size")) == ("last", "2000000")
        assert {(row[2], row[3]) for row in o.values("bbq-by-size")} == {("2M", "100"), ("90M", "0")}
        assert "tiny-2m-seed0 (2M), RLHF step 100" in o.page.inner_text("#effect-table")
        numbers = o.page.input_value("#numbers-checkpoint")
        assert (
            o.page.inner_text(f"#numbers-checkpoint option[value='{numbers}']") == "tiny-2m-seed0 (2M), RLHF step 100"
        )
        assert "From tiny-2m-seed0, RLHF step 0 and RLHF step 100" in o.page.inner_text("#examples")
        assert o.trouble == []


def test_no_line_joins_what_was_asked_differently(browser: Any, runs: dict[str, Path], tmp_path: Path) -> None:
    def looked_at(page: Path) -> tuple[int, int, str, str]:
        with Opened(browser, page) as o:
            lines = o.page.eval_on_selector_all("#bbq-by-size svg .mark-line path", JOINED)
            areas = o.page.locator("#bbq-by-size svg .mark-area path").count()
            label = o.page.get_attribute("#bbq-by-size svg.marks", "aria-label")
            assert o.trouble == []
            return lines, areas, o.page.inner_text("#by-size-note"), label

    lines, areas, note, label = looked_at(page_of(tmp_path / "same", runs["small"], runs["large"]))
    assert (lines, areas, note) == (2, 2, "") and "at the greatest" in label
    edited(runs["large"], data="BBQ of the lab")
    lines, areas, note, label = looked_at(page_of(tmp_path / "apart", runs["small"], runs["large"]))
    told = "tiny-2m-seed0 | tiny-50m-seed0 (BBQ: asked differently in data)"
    assert (lines, areas, note) == (0, 0, f"Not joined by lines: {told}.")
    assert "at the greatest" not in label and "Q, 2 apart: from" in label
    edited(runs["large"], data="small set")


def test_effects_carry_cautions_and_accuracy_does_not(browser: Any, runs: dict[str, Path], tmp_path: Path) -> None:
    page = page_of(tmp_path, runs["small"])
    with Opened(browser, page, 375) as o:
        assert "means little" in o.page.inner_text("#effect-table thead")
        assert "note 1" in o.page.inner_text("#effect-table tbody tr:first-child")
        assert "hardly reads them" in o.page.inner_text("#effect-table li:first-child")
        charts = ("bbq-accuracy_ambig", "bbq-accuracy_disambig", "bbq-bias_disambig")
        fills = {c: set(o.page.eval_on_selector_all(f"#{c} svg .mark-symbol path[stroke]", FILLS)) for c in charts}
        assert "#ffffff" in fills["bbq-bias_disambig"]
        assert "#ffffff" not in fills["bbq-accuracy_ambig"] | fills["bbq-accuracy_disambig"]
        assert o.page.evaluate(WIDE) <= 0 and o.trouble == []
    with Opened(browser, page, 718) as o:  # the width of A4
        o.page.emulate_media(media="print")
        assert o.page.evaluate(WIDE) <= 0
