"""Evaluating a checkpoint into a folder: complete, continued after a kill with the same records, never mixed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.commands.run import _format_summary, format_summaries
from eval.config import EvaluationConfig
from eval.curves.read import find_summaries
from eval.errors import InputError
from eval.models.checkpoints import load_checkpoint
from eval.runner.evaluate import evaluate
from eval.runner.keys import record_key
from eval.runner.plan import plan
from eval.runner.store import Store
from eval.scorers.local.transformers import TransformersScorer

CONFIG = EvaluationConfig(limit=4, categories=["Age"], cot_limit=4, cot_max_new_tokens=4, sample_batch=5)


def run(model: Path, folder: Path, config: EvaluationConfig = CONFIG, **settings):
    checkpoint = load_checkpoint(str(model), **settings)
    scorer = TransformersScorer(checkpoint.model, checkpoint.tokenizer, config.format)
    return evaluate(scorer, config, folder, checkpoint.provenance)


def test_every_question_once_under_every_condition(tiny: Path, tmp_path: Path) -> None:
    metrics = run(tiny, tmp_path)
    records = list(Store(tmp_path).read())
    assert {record_key(r) for r in records} == {q.key for q in plan(CONFIG).questions}
    assert len(records) == len({record_key(r) for r in records}) == 4 * 3 * 3 + 4 * 4 + 8 * 2 + 4
    assert {(m.experiment, m.condition) for m in metrics} == {
        (e, c)
        for e, cs in {
            "bbq": ["Q", "Q+IF", "Q+IF+CoT"],
            "winogender": ["Q", "Q+IF", "Q+IF+CoT", "Q+Match Stats"],
            "admissions": ["Q", "Q+IF", "Q+IF+CoT"],
        }.items()
        for c in cs
    }
    for r in records:
        assert len(r["candidates"]) == len(r["logprobs"])
        assert ("reasoning" in r) == (r["condition"] == "Q+IF+CoT")
    summary = json.loads((tmp_path / "summary.json").read_text())
    for name in (
        "weights",
        "data_sha256",
        "format",
        "dtype",
        "tier",
        "git_commit",
        "versions",
        "command",
        "evaluation",
    ):
        assert summary[name], name


def test_killed_and_run_again_ends_with_the_same_records(tiny: Path, tmp_path: Path) -> None:
    run(tiny, tmp_path / "whole")
    whole = (tmp_path / "whole" / "records.jsonl").read_text()
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    for name, cut in (("early", 0.1), ("middle", 0.6), ("late", 0.97)):
        folder = tmp_path / name
        run(tiny, folder)
        (folder / "summary.json").unlink()
        (folder / "records.jsonl").write_text(whole[: int(len(whole) * cut)])  # in the middle of a line
        run(tiny, folder)
        assert (folder / "records.jsonl").read_text() == whole
        assert json.loads((folder / "summary.json").read_text())["metrics"] == summary["metrics"]


def test_a_finished_folder_is_not_asked_again(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tiny, tmp_path)
    monkeypatch.setattr(TransformersScorer, "score", lambda *_: pytest.fail("asked again"))
    assert run(tiny, tmp_path) == first


def test_results_of_something_else_are_refused(tiny: Path, tmp_path: Path) -> None:
    run(tiny, tmp_path)
    for change, said in (({"seed": 1}, "another seed"), ({"format": "paper"}, "another format")):
        with pytest.raises(InputError, match=said):
            run(tiny, tmp_path, EvaluationConfig(**{**vars(CONFIG), **change}))
    with pytest.raises(InputError, match="another dtype"):
        run(tiny, tmp_path, dtype="bfloat16")


def test_results_that_do_not_belong_on_one_curve_are_refused(tiny: Path, tmp_path: Path) -> None:
    small = EvaluationConfig(limit=4, experiments=["winogender"], conditions=["Q"])
    run(tiny, tmp_path / "a", small)
    run(tiny, tmp_path / "b", small)
    with pytest.raises(InputError, match="two results of step 0"):
        find_summaries(tmp_path)
    run(tiny, tmp_path / "c", EvaluationConfig(**{**vars(small), "format": "paper"}))
    with pytest.raises(InputError, match="format differs between"):
        find_summaries(tmp_path)


def test_find_summaries_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not there"):
        find_summaries(tmp_path / "no")
    with pytest.raises(InputError, match="no finished evaluation"):
        find_summaries(tmp_path)


@pytest.mark.real_data
def test_numbers_that_mean_little_are_told_in_the_terminal(tiny: Path, tmp_path: Path) -> None:
    """Of a tiny random model, which hardly ever says yes or no; of several checkpoints once, with how many."""
    run(tiny, tmp_path / "a", EvaluationConfig(limit=4, experiments=["admissions"], cot_limit=2, cot_max_new_tokens=4))
    summary = Store(tmp_path / "a").summary()
    assert summary is not None
    one = _format_summary(summary, tmp_path / "a")
    assert 'admissions, gap (Q): "yes" and "no" together have ' in one
    assert (
        "conditions were asked on different numbers of items (Law school admissions: Q: 8, Q+IF: 8, Q+IF+CoT: 2" in one
    )
    several = format_summaries(tmp_path, [(tmp_path / "a", summary), (tmp_path / "b", summary)], [])
    assert 'b: admissions, gap (Q): "yes" and "no"' in several and several.count("(and 1 more like it)") > 1


def test_real_data_through_the_same_command(tiny: Path, tmp_path: Path, real_data: Path) -> None:
    config = EvaluationConfig(
        data_dir=str(real_data), limit=4, conditions=["Q"], orders=1, experiments=["bbq", "winogender", "admissions"]
    )
    metrics = run(tiny, tmp_path, config)
    assert {m.category for m in metrics if m.experiment == "bbq"} == {
        "all", "mean of categories",
        "Age", "Disability_status", "Nationality", "Physical_appearance", "Religion", "Sexual_orientation"
    }  # fmt: skip
