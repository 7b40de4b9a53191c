"""Accuracy, calibration and length bias of a reward model against values known by construction."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binomtest

from reward.quality import ScoredPair, accuracy, calibration, design_effect, length_bias, quality, wilson


def pair(i: int, margin: float, subset: str = "a", prompt: int | None = None, lengths: tuple[int, int] = (5, 5)):
    return ScoredPair(f"f:{i}", subset, str(i if prompt is None else prompt), margin, 0.0, *lengths)


def simulated(n: int, seed: int = 0, temperature: float = 1.0) -> list[ScoredPair]:
    """Pairs whose chosen answer was drawn by the Bradley-Terry model of margins that the model states times T."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.5, n)
    chosen_first = rng.random(n) < expit(true)
    return [pair(i, temperature * (m if c else -m)) for i, (m, c) in enumerate(zip(true, chosen_first, strict=True))]


@pytest.mark.parametrize(("right", "n"), [(0, 7), (7, 7), (186, 300), (1, 2)])
def test_wilson_is_scipys(right: int, n: int) -> None:
    expected = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_accuracy_counts_ties_as_half() -> None:
    found = accuracy([pair(0, 1.0), pair(1, -1.0), pair(2, 0.0), pair(3, 0.5)])
    assert found["value"] == 2.5 / 4
    assert (found["ties"], found["n_pairs"], found["n_prompts"]) == (1, 4, 4)
    assert accuracy([])["value"] is None
    assert accuracy([])["note"] == "no pairs"


def test_pairs_of_one_prompt_widen_the_interval() -> None:
    """Every prompt ten times over with the same outcome: as wide as with one pair of each prompt."""
    single = [pair(i, 1.0 if i % 3 else -1.0) for i in range(60)]
    copied = [pair(10 * i + k, p.margin, prompt=i) for i, p in enumerate(single) for k in range(10)]
    one, ten = accuracy(single), accuracy(copied)
    assert ten["value"] == one["value"]
    assert ten["high"] - ten["low"] == pytest.approx(one["high"] - one["low"], rel=0.03)
    mixed = [pair(i, 1.0 if i % 2 else -1.0, prompt=i // 2) for i in range(60)]
    assert design_effect(np.array([i % 2 for i in range(60)], float), [p.prompt_id for p in mixed]) == 1.0


def test_interval_covers() -> None:
    """Prompts of 1 to 6 pairs that are right together: at least 93% of 400 intervals hold the truth (.6)."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        pairs = []
        for prompt in range(80):
            share = rng.beta(0.9, 0.6)
            pairs += [pair(len(pairs) + k, 1.0 if rng.random() < share else -1.0, prompt=prompt) for k in range(6)]
        found = accuracy(pairs)
        held += found["low"] <= 0.6 <= found["high"]
    assert held >= 0.93 * 400


def test_calibration_of_a_calibrated_and_of_an_overconfident_model() -> None:
    good, bold = calibration(simulated(4000)), calibration(simulated(4000, temperature=4.0))
    assert good["expected_calibration_error"] < 0.03
    assert bold["expected_calibration_error"] > 0.1
    assert good["log_loss"] < bold["log_loss"]
    assert sum(b["n"] for b in good["bins"]) == 4000
    assert all(b["accuracy_low"] <= b["accuracy"] <= b["accuracy_high"] for b in good["bins"])
    inside = [b for b in good["bins"] if b["accuracy_low"] <= b["confidence"] <= b["accuracy_high"]]
    assert len(inside) >= 4
    coin = calibration([pair(i, 0.0) for i in range(10)])
    assert coin["log_loss"] == pytest.approx(np.log(2))
    assert coin["brier"] == 0.25
    assert coin["expected_calibration_error"] == 0


def test_length_bias_of_a_model_that_only_sees_length() -> None:
    """Reward = tokens: always right where the longer answer is better, never where it is worse."""
    rng = np.random.default_rng(2)
    pairs = []
    for i, (a, b) in enumerate(rng.integers(1, 40, (200, 2))):
        pairs.append(ScoredPair(f"f:{i}", "a", str(i), float(a), float(b), int(a), int(b)))
    found = length_bias(pairs)
    assert found["longer_is_worse"]["value"] == 0
    assert found["longer_is_better"]["value"] == 1
    assert found["same_length"]["value"] == 0.5
    assert found["correlation"]["value"] == pytest.approx(1)
    worse, same = found["longer_is_worse"]["n_pairs"], found["same_length"]["n_pairs"]
    assert found["always_shorter"]["value"] == pytest.approx((worse + same / 2) / 200)


def test_quality_by_subset() -> None:
    pairs = [pair(i, 1.0, "kind") for i in range(10)] + [pair(10 + i, -2.0, "harmless") for i in range(10)]
    found = quality(pairs)
    assert found["accuracy"]["all"]["value"] == 0.5
    assert {s: a["value"] for s, a in found["accuracy"]["by_subset"].items()} == {"kind": 1.0, "harmless": 0.0}
    assert found["margin"] == -0.5
    assert found["score_mean"] == -0.25
