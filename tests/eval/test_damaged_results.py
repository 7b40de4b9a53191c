"""Results that are damaged, or were written by another version: one line that names the file, in every view."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.curves.gather import gather
from eval.curves.read import find_summaries
from eval.errors import InputError
from eval.views.page.report import ReportConfig, report
from tests.support.page_runs import training

SUMMARY, BREAKDOWN = "eval/step-000020/summary.json", "eval/step-000020/breakdown.jsonl"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    return training(folder, 3_000_000, 0, (20,), experiments=["winogender"], conditions=["Q"])


def cut(text: str) -> str:
    return text[: len(text) // 2]


def first_value(written: str) -> Callable[[str], str]:
    """The summary with the first metric's value written so."""

    def edit(text: str) -> str:
        summary = json.loads(text)
        summary["metrics"][0]["value"] = "here"
        return json.dumps(summary).replace('"here"', written)

    return edit


def of_version(version: int | None) -> Callable[[str], str]:
    def edit(text: str) -> str:
        summary = {**json.loads(text), "records_version": version}
        summary["metrics"] = [{k: v for k, v in m.items() if k != "category"} for m in summary["metrics"]]
        return json.dumps(summary)

    return edit


@pytest.mark.parametrize(
    ("name", "edit", "said"),
    [
        (SUMMARY, cut, r"summary\.json is damaged .* remove it and evaluate again: records are kept"),
        (SUMMARY, lambda _: "3", r"summary\.json is damaged \(no JSON object\)"),
        (SUMMARY, first_value("NaN"), r"summary\.json is damaged \(a number in it is not finite\)"),
        (SUMMARY, first_value("-1e999"), r"summary\.json is damaged \(a number in it is not finite\)"),
        (SUMMARY, of_version(2), r"summary\.json was written by another selfcorrect \(records version 2, not 3\)"),
        (
            SUMMARY,
            of_version(None),
            r"summary\.json was written by another selfcorrect \(records version None, not 3\)",
        ),
        ("run.json", cut, r"run\.json is damaged .* remove it, and the results are shown without"),
        ("run.json", lambda _: '["x"]', r"run\.json is damaged \(no JSON object\)"),
    ],
)
def test_what_cannot_be_read_is_named(
    whole: Path, tmp_path: Path, name: str, edit: Callable[[str], str], said: str
) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    (run / name).write_text(edit((run / name).read_text()))
    with pytest.raises(InputError, match=said):
        gather([run])
    if name == SUMMARY:
        with pytest.raises(InputError, match=said):
            find_summaries(run)


def test_the_page_names_a_damaged_breakdown(whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    (run / BREAKDOWN).write_text((run / BREAKDOWN).read_text()[:-30])
    with pytest.raises(InputError, match=r"breakdown\.jsonl is damaged .* and evaluate again: records are kept"):
        report(ReportConfig(runs=[str(run)]))


def test_without_run_json_the_results_are_shown(whole: Path, tmp_path: Path) -> None:
    """What the remedy promises."""
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "run.json").unlink()
    (curve,) = gather([run])
    assert curve.described == {} and curve.steps == [20]
