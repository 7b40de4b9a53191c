"""What is planted is found: exactly where nothing is drawn, else within its interval about 95 times in 100."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from eval.config import EvaluationConfig
from eval.data.readers import SMALL_SET
from eval.errors import InputError
from eval.experiments import admissions, bbq, winogender
from eval.experiments.conditions import CONDITIONS
from eval.experiments.registry import EXPERIMENTS
from eval.metrics.measure import measure
from eval.runner.evaluate import evaluate
from eval.runner.plan import plan
from eval.runner.store import Store
from eval.types import Metric
from eval.validation.coverage import OracleConfig, answer, coverage, redraw
from eval.validation.oracle import REASONING, Oracle, Preferences, planted

CONFIG = EvaluationConfig()
EXACT = Preferences(
    stereotype=0.35, abstain=0.25, reads=0.5, slope=0.7, shift=-0.8, noise=0.0, scatter=0.0, certain=0.0
)


def found(experiment, condition: str, preferences: Preferences, seed: int = 0, orders: int = 3) -> dict[str, Metric]:
    items = experiment.load(SMALL_SET, CONFIG)
    records = list(answer(Oracle(preferences, seed), experiment.NAME, CONDITIONS[condition], items, orders))
    metrics = measure({(experiment.NAME, condition): records}, seed=0).metrics
    return {m.name: m for m in metrics if m.category == "all"}


@pytest.mark.parametrize(
    ("experiment", "condition"), [(e, c) for e in (bbq, winogender, admissions) for c in e.CONDITIONS]
)
def test_planted_values_are_found_exactly_where_nothing_is_drawn(experiment, condition: str) -> None:
    """Every metric that the preferences determine, under every condition, against closed formulas."""
    metrics = found(experiment, condition, EXACT, orders=3 if experiment is bbq else 1)
    truths = planted(EXACT, experiment.NAME, CONDITIONS[condition], experiment.load(SMALL_SET, CONFIG))
    assert len(truths) >= 4
    for name, truth in truths.items():
        assert metrics[name].value == pytest.approx(truth, abs=2e-9), name
    removed = 1 - EXACT.removed
    if experiment is bbq:  # the formulas themselves, by hand: s_AMB = (1 - u) b
        b = 0.35 * (removed if CONDITIONS[condition].instruction else 1)
        assert truths["bias_ambig_expected"] == pytest.approx(0.75 * b)
        assert truths["bias_disambig_expected"] == pytest.approx(2 * (0.5 / 2 + 0.375 * (1 + b) / 2) / 0.875 - 1)
    if condition == "Q+Match Stats":
        assert metrics["calibration_slope"].value == pytest.approx(1, abs=1e-2)  # BLS near 0 is kept away from 0
        assert metrics["calibration_error"].value == pytest.approx(0, abs=1e-2)


@pytest.mark.parametrize("letter", [0.0, 2.5, 12.0])
def test_position_bias_is_found_and_warned_of(letter: float) -> None:
    preferences = Preferences(letter=letter)
    metrics = found(bbq, "Q", preferences)
    truths = planted(preferences, "bbq", CONDITIONS["Q"], bbq.load(SMALL_SET, CONFIG))
    for name in ("position_bias", "letter_c", "same_letter", "same_option"):
        assert metrics[name].value == pytest.approx(truths[name], abs=0.06), name
    assert ("the letter alone explains nearly all" in metrics["position_bias"].note) == (letter == 12.0)
    if letter == 2.5:
        assert 0.1 < truths["position_bias"] < 0.5  # of some questions, not of all
    if letter == 12.0:
        assert [truths[n] for n in ("position_bias", "letter_c", "same_letter", "same_option")] == pytest.approx(
            [1, 1, 1, 0]
        )


@pytest.mark.parametrize("certain", [0.0, 0.7])
def test_a_preferred_letter_moves_no_order_symmetrised_metric(certain: float) -> None:
    """Content fixed, (c) preferred by 0 to 6 nats: neither what is measured nor what is planted changes."""
    values = []
    for nats in (0, 2, 4, 6):
        preferences = Preferences(letter=nats, certain=certain)
        metrics = found(bbq, "Q", preferences)
        truths = planted(preferences, "bbq", CONDITIONS["Q"], bbq.load(SMALL_SET, CONFIG))
        values.append({f"{n} {what}": v for n in metrics if n.endswith("_symmetrised") for what, v in
                       (("measured", metrics[n].value), ("planted", truths[n]))})  # fmt: skip
    assert len(values[0]) == 16
    for other in values[1:]:
        assert other == pytest.approx(values[0], abs=1e-8)
    assert found(bbq, "Q", Preferences(letter=6))["bias_ambig_expected"].value != pytest.approx(
        values[0]["bias_ambig_expected_symmetrised measured"], abs=0.05
    )  # in the given order a letter does move the score


def test_coverage_of_the_intervals() -> None:
    """60 trials: too few to tell 93% from 95%, enough to see an interval that is wrong. docs/validation.md has 400."""
    config = OracleConfig(trials=60, orders=1, conditions=["Q", "Q+IF", "Q+Match-Stats"])
    rows = {(r["experiment"], r["condition"], r["metric"]): r for r in coverage(config)["rows"]}
    for key in (
        ("bbq", "Q", "bias_ambig"), ("bbq", "Q", "accuracy_disambig_expected"), ("bbq", "Q+IF", "bias_disambig"),
        ("bbq", "Q -> Q+IF", "bias_ambig_expected"), ("bbq", "Q", "bias_ambig (mean of categories)"),
        ("winogender", "Q", "rho"), ("winogender", "Q", "rho_bootstrap"), ("winogender", "Q -> Q+IF", "rho"),
        ("winogender", "Q+Match Stats", "calibration_slope"), ("admissions", "Q", "gap"),
        ("admissions", "Q -> Q+IF", "gap"),
    ):  # fmt: skip
        row = rows[key]
        assert row["intervals"] == 60
        assert 0.85 <= row["coverage"] <= 1, key  # 3.5 standard errors below 0.95
        assert row["mean_estimate"] == pytest.approx(row["planted"], abs=0.05), key
    constant = (0, 0.2, 0.9)  # what the oracle never varies is always held
    spread = [r["coverage"] for r in rows.values() if r["coverage"] is not None and r["planted"] not in constant]
    assert 0.93 <= np.mean(spread) <= 0.97  # intervals that are too wide would hold it always
    assert rows["winogender", "Q -> Q+IF", "rho"]["p_below_0.05"] == 1
    assert rows["bbq", "Q -> Q+IF", "accuracy_ambig"]["p_below_0.05"] <= 0.15  # nothing changes there


def test_as_a_scorer_through_the_whole_evaluation(tmp_path: Path) -> None:
    """The oracle behind the Scorer protocol, through evaluate() into a folder, gives the same numbers."""
    config = EvaluationConfig(categories=["Age", "SES"], paraphrases=True, inverse=True)
    planned = plan(config)
    oracle = Oracle(EXACT, 3, planned.questions)
    metrics = evaluate(oracle, config, tmp_path, {"model": "oracle", "model_params": 0}, planned=planned)
    items = bbq.load(SMALL_SET, config)
    truths = planted(EXACT, "bbq", CONDITIONS["Q+IF"], items)
    by_name = {(m.experiment, m.condition, m.name, m.category): m.value for m in metrics}
    assert by_name["bbq", "Q+IF", "bias_ambig_expected", "all"] == pytest.approx(
        truths["bias_ambig_expected"], abs=1e-9
    )
    assert {c for _, c, _, _ in by_name} >= {"Q+Inverse", "Q+IF (wording 5)", "Q+IF+CoT (wording 1)"}
    assert {r["reasoning"] for r in Store(tmp_path).read() if "reasoning" in r} == {REASONING}
    summary = json.loads((tmp_path / "summary.json").read_text())
    effects = {(e["experiment"], e["after"], e["name"]): e for e in summary["effects"] if e["category"] == "all"}
    rho = effects["winogender", "Q+IF", "rho"]
    assert rho["value"] == pytest.approx(rho["value_after"] - rho["value_before"])
    assert 0 <= rho["p_value"] <= rho["p_holm"] <= 1
    lines = [json.loads(line) for line in (tmp_path / "breakdown.jsonl").read_text().splitlines()]
    nurse = next(r for r in lines if (r["condition"], r["by"], r["group"]) == ("Q", "occupation", "nurse"))
    assert nurse["p_female"] + nurse["p_male"] + nurse["p_neutral"] == pytest.approx(1)
    assert {r["by"] for r in lines} == {"template", "occupation", "sex:LSAT:UGPA", "LSAT x UGPA"}


def test_drawn_populations_keep_their_strata() -> None:
    items = bbq.load(SMALL_SET, CONFIG)
    drawn = list(redraw(items, np.random.default_rng(0)))
    assert len({i.id for i in drawn}) == len(drawn) == len(items)
    clusters = [{(i.fields["category"], i.cluster) for i in part} for part in (items, drawn)]
    assert Counter(c for c, _ in clusters[0]) == Counter(c for c, _ in clusters[1])  # five templates of each category
    assert len({c.partition("#")[0] for _, c in clusters[1]}) < 45  # some twice


def test_seeds_and_bad_preferences() -> None:
    config = OracleConfig(trials=2, experiments=["winogender"], conditions=["Q"])
    assert coverage(config) == coverage(config)
    other = OracleConfig(trials=2, experiments=["winogender"], conditions=["Q"], seed=1)
    assert coverage(config)["rows"] != coverage(other)["rows"]
    with pytest.raises(InputError, match="abstain must lie in 0 to 1, not 2"):
        OracleConfig(abstain=2)
    with pytest.raises(InputError, match="seed must be at least 0"):
        OracleConfig(seed=-1)
    never = OracleConfig(abstain=1, reads=0, experiments=["bbq"], conditions=["Q"], trials=1)
    assert not [r for r in coverage(never)["rows"] if r["metric"].startswith("bias")]
    with pytest.raises(InputError, match="trials must be at least 1"):
        OracleConfig(trials=0)


def test_every_experiment_has_the_same_functions() -> None:
    for experiment in EXPERIMENTS.values():
        for name in ("load", "ask", "read_off", "measure", "files", "orders", "sample"):
            assert callable(getattr(experiment, name))
        assert experiment.HEADLINE and experiment.TITLE
