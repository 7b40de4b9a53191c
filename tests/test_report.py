"""The report: table, figures and a page that stands alone."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from eval.checkpoints import load_checkpoint
from eval.config import EvaluationConfig
from eval.curves import find_summaries
from eval.evaluate import evaluate
from eval.figures import headline
from eval.report import build_report
from eval.results import write_json
from eval.scorers.transformers import TransformersScorer


@pytest.fixture(scope="module")
def run_folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    checkpoint = load_checkpoint(str(tiny))
    config = EvaluationConfig(limit=8, categories=["Age", "SES"], cot_limit=4, cot_max_new_tokens=2)
    for step in (0, 20):
        scorer = TransformersScorer(checkpoint.model, checkpoint.tokenizer)
        evaluate(scorer, config, folder / "eval" / f"step-{step:06d}", checkpoint.provenance, step)
    return folder


class Page(HTMLParser):
    """Checks that tags are closed and collects what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [v for k, v in attrs if v and k in ("src", "href", "xlink:href") and not v.startswith("#")]
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_figures_and_table(run_folder: Path, tmp_path: Path) -> None:
    table, paths = build_report(run_folder, tmp_path)
    assert [p.name for p in paths] == [
        "bias_against_step.png", "bbq.png", "winogender.png", "admissions.png", "report.html"
    ]  # fmt: skip
    assert all(p.stat().st_size > 5000 for p in paths)
    text = paths[-1].read_text()
    page = Page()
    page.feed(text)
    assert page.open == [] and page.loads == []
    assert page.tags.count("svg") == 1 and page.tags.count("table") == 4
    assert not re.search(r"url\(\s*['\"]?http", text)
    for said in ("for demonstration only, not comparable with published numbers", "Q+Match Stats", "data_sha256"):
        assert said in text
    assert "for demonstration only" in table


def test_every_headline_number_is_in_the_table(run_folder: Path, tmp_path: Path) -> None:
    table, _ = build_report(run_folder, tmp_path)
    for summary in find_summaries(run_folder):
        for experiment, condition in (("bbq", "Q+IF+CoT"), ("winogender", "Q"), ("admissions", "Q+IF")):
            metric = headline(summary, experiment, condition)
            assert metric is not None and metric["value"] is not None
            row = next(
                line for line in table.splitlines()
                if line.split()[:3] == [str(summary["step"]), experiment, condition]
            )  # fmt: skip
            assert f"{metric['value']:.4f}" in row
            assert row.split()[-2] == str(metric["n_items"])


def test_report_twice_gives_the_same_page(run_folder: Path, tmp_path: Path) -> None:
    pages = [build_report(run_folder, tmp_path / name)[1][-1].read_bytes() for name in ("a", "b")]
    assert pages[0] == pages[1]


def test_a_size_that_is_not_known_is_said(run_folder: Path, tmp_path: Path) -> None:
    for path in sorted(run_folder.rglob("summary.json")):
        summary = json.loads(path.read_text()) | {"model_params": None}
        write_json(tmp_path / path.relative_to(run_folder), summary)
    assert "number of parameters not known" in build_report(tmp_path)[1][-1].read_text()
