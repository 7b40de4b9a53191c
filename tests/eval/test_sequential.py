"""--precision: the order, the interval, the rule that stops; and that a stopped evaluation is whole and continued."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from eval.cli.parser import parse
from eval.config import EvaluationConfig
from eval.curves.tables import remarks
from eval.data.readers import SMALL_SET
from eval.errors import InputError
from eval.experiments import bbq, winogender, winogenerated
from eval.experiments.conditions import CONDITIONS
from eval.metrics import sequential
from eval.metrics.sequential import (
    ETA,
    MIN_GROUPS,
    TIGHTEST,
    Population,
    Watch,
    boundary,
    deviation,
    group_of,
    half_width,
    in_packs,
    in_random_order,
    influences,
    width_of,
)
from eval.runner.evaluate import evaluate
from eval.runner.plan import plan
from eval.runner.store import Store
from eval.stats.bootstrap import Quantity, mean_of, tabulate
from eval.types import Item
from eval.validation.coverage import OracleConfig, answer
from eval.validation.early_stops import early_stops, table
from eval.validation.oracle import Oracle, Preferences

CONFIG = EvaluationConfig(precision=0.1, conditions=["Q", "Q+IF"], experiments=["bbq"])


def made(sizes: dict[str, int], rows: int = 2) -> list[Item]:
    """Items of groups of `rows` in categories of the sizes given, the rows of a group apart from each other."""
    return [
        Item(f"{c}{g}.{r}", f"{c}{g}", 1.0, {"category": c})
        for r in range(rows)
        for c, n in sizes.items()
        for g in range(n)
    ]


def run(folder: Path, config: EvaluationConfig = CONFIG, **preferences: float) -> dict:
    planned = plan(config)
    oracle = Oracle(Preferences(**preferences), 3, planned.questions)
    evaluate(oracle, config, folder, {"model": "oracle", "model_params": 0}, planned=planned)
    return json.loads((folder / "summary.json").read_text())


def test_every_beginning_of_the_order_has_its_share_of_each_category() -> None:
    for sizes in ({"a": 10, "b": 10, "c": 10}, {"a": 70, "b": 3, "c": 20, "d": 1}):
        items = made(sizes)
        for seed in range(20):
            ordered = in_random_order("bbq", items, seed)
            assert Counter(i.id for i in ordered) == Counter(i.id for i in items)
            groups = [group_of(i) for i in ordered]
            assert groups[::2] == groups[1::2]  # the rows of a group stand together
            for n in range(1, len(groups[::2])):
                count = Counter(g[0] for g in groups[: 2 * n : 2])
                for c, size in sizes.items():
                    expected = n * size / sum(sizes.values())
                    assert abs(count[c] - expected) <= 1 + len(sizes) * size / sum(sizes.values())
                    if len(set(sizes.values())) == 1:
                        assert abs(count[c] - expected) < 1
        assert in_random_order("bbq", items, 0) == in_random_order("bbq", items, 0)
        assert in_random_order("bbq", items, 0) != in_random_order("bbq", items, 1)
    firsts = Counter(in_random_order("x", made({"a": 5}), seed)[0].cluster for seed in range(200))
    assert len(firsts) == 5 and min(firsts.values()) > 20  # 40 expected


def test_packs_hold_whole_groups() -> None:
    items = in_random_order("bbq", made({"a": 7, "b": 6}, rows=3), 0)
    packs = list(in_packs(items, 4))
    assert [i for pack in packs for i in pack] == items
    assert [len(pack) for pack in packs] == [6, 6, 6, 6, 6, 6, 3]


def test_what_is_asked_together() -> None:
    rows = [group_of(i) for i in bbq.load(SMALL_SET, CONFIG)]
    assert set(Counter(rows).values()) == {4} and len(set(rows)) == 90
    assert all(len(set(rows[k : k + 4])) == 1 for k in range(0, len(rows), 4))
    row = {"occupation": "nurse", "pronoun_options": ["she", "he", "they"], "sentence_with_blank": "A _ b"}
    item = winogenerated._item("f:1", {**row, "BLS_percent_women_2019": 90}, "nurse:4")
    assert group_of(item) == "nurse"  # a point of the correlation is the mean of all of its sentences


def test_the_boundary_is_tightest_where_it_says() -> None:
    at_best = boundary(TIGHTEST)
    for eta in (ETA / 1.5, ETA * 1.5):
        assert np.sqrt((TIGHTEST + eta) * np.log((TIGHTEST + eta) / (eta * 0.05**2))) > at_best
    assert at_best / np.sqrt(TIGHTEST) == pytest.approx(3.03, abs=0.01)


def test_influences_are_those_of_leaving_one_out() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((12, 3))
    quantity = Quantity("x", tabulate(values, [f"g{k:02}" for k in range(12)]), bbq.bbq_metrics.bias_ambig, 12, "")
    whole = quantity.value
    for k, found in enumerate(influences(quantity)):
        left = Quantity("x", tabulate(np.delete(values, k, 0), list("abcdefghijk")), quantity.statistic, 11, "")
        assert found == pytest.approx(11 * (whole - left.value))


def test_half_width_against_simulation() -> None:
    """Means of two categories far apart, 600 random orders: the spread of the error, and the interval at all looks."""
    rng, counts, looks = np.random.default_rng(1), {"a": 150, "b": 50}, (40, 60, 80, 100, 120, 140, 160, 180, 200)
    items = made(counts, rows=1)
    x = {i.id: (5 if i.fields["category"] == "b" else 0) + rng.standard_normal() ** 3 for i in items}
    truth, within = np.mean(list(x.values())), 0.0
    for c, n in counts.items():
        within += n * np.var([x[i.id] for i in items if i.fields["category"] == c], ddof=1) / 200
    errors, held = [], []
    for seed in range(600):
        ordered = in_random_order("x", items, seed)
        values = np.array([x[i.id] for i in ordered])
        category = np.array([int(i.fields["category"] == "b") for i in ordered])
        error = np.array([values[:n].mean() - truth for n in looks])
        widths = np.array([half_width(deviation(values[:n], category[:n]), n, 200) for n in looks])
        errors.append(error)
        held.append(bool((abs(error) <= widths + 1e-9).all()))
    for n, spread in zip(looks[:-1], np.std(errors, axis=0)[:-1], strict=True):
        one_sd = half_width(np.sqrt(within), n, 200) / boundary(n / (200 - n)) * np.sqrt(n / (200 - n))
        assert spread == pytest.approx(one_sd, rel=0.1), n
    assert np.mean(held) >= 0.94
    assert half_width(1.0, 200, 200) == 0


def test_groups_without_an_answer_count_as_asked() -> None:
    names = [f"g{k}" for k in range(50)]
    values = np.random.default_rng(0).random((40, 1))
    quantity = Quantity("x", tabulate(values, names[:40]), mean_of(1), 40, "")
    category = np.zeros(50, dtype=int)
    assert width_of(quantity, names, category, 100) < width_of(quantity, names[:40], category[:40], 100)
    assert width_of(quantity, names, category, 50) == 0


def test_no_look_before_there_are_enough() -> None:
    population = Population(made({"a": 60, "b": 3, "c": 1}))

    def asked(a: int, b: int, c: int) -> np.ndarray:
        return np.repeat([0, 1, 2], [a, b, c])

    assert not population.may_look(asked(MIN_GROUPS - 4, 2, 1))
    assert not population.may_look(asked(MIN_GROUPS, 1, 1))
    assert population.may_look(asked(MIN_GROUPS, 2, 1))
    assert Population(made({"a": 5})).may_look(np.zeros(5, dtype=int))


def test_stops_early_and_says_so(tmp_path: Path) -> None:
    summary = run(tmp_path)
    (stop,) = summary["stopping"]
    assert stop["reached"] and MIN_GROUPS <= stop["groups_asked"] < stop["groups"] == 90
    assert stop["questions_asked"] == 24 * stop["groups_asked"] == len(list(Store(tmp_path).read()))
    assert all(w["half_width"] < 0.1 for w in stop["half_widths"].values())
    assert list(stop["half_widths"]) == ["Q", "Q+IF"] and stop["looks"] >= 1
    assert summary["evaluation"]["precision"] == 0.1
    assert summary["evaluation"]["stopping_rule"]["alpha"] == 0.05
    whole = [m for m in summary["metrics"] if m["category"] == "all"]
    noted = [m for m in whole if m["note"].startswith("stopped early:")]
    assert [(m["condition"], m["name"]) for m in noted] == [(c, bbq.HEADLINE) for c in ("Q", "Q+IF")]
    for m in noted:
        width = stop["half_widths"][m["condition"]]["half_width"]
        assert f"{stop['groups_asked']} of 90 groups" in m["note"] and f"within {width:.4f}" in m["note"]
    assert sum("stopped early" in line for line in remarks(whole)) == 2
    assert all(m["n_items"] == 2 * stop["groups_asked"] for m in noted)  # ambiguous rows of what was asked, no more


def test_killed_and_run_again_stops_at_the_same_place(tmp_path: Path) -> None:
    config = EvaluationConfig(
        precision=0.1, conditions=["Q", "Q+IF-CoT"], experiments=["bbq", "winogender"], cot_limit=50
    )
    whole = run(tmp_path / "whole", config)
    assert [s["groups_asked"] < s["groups"] for s in whole["stopping"]] == [True, False, False, False]
    lines = (tmp_path / "whole" / "records.jsonl").read_text()
    for cut in (0.2, 0.7, 0.98):
        folder = tmp_path / str(cut)
        shutil.copytree(tmp_path / "whole", folder)
        (folder / "summary.json").unlink()
        (folder / "records.jsonl").write_text(lines[: int(len(lines) * cut)])  # in the middle of a line
        again = run(folder, config)
        assert (folder / "records.jsonl").read_text().splitlines() == lines.splitlines()
        for part in ("stopping", "metrics", "effects"):
            assert again[part] == whole[part], part
    wider = EvaluationConfig(**{**vars(config), "precision": 0.2})
    fresh = run(tmp_path / "wider", wider)
    again = run(tmp_path / "whole", wider)  # stops where a fresh one does, on what the folder holds
    assert (tmp_path / "whole" / "records.jsonl").read_text() == lines
    for part in ("stopping", "metrics", "effects", "records"):
        assert again[part] == fresh[part], part


def test_reasoning_is_sampled_for_what_q_is_asked_too(tmp_path: Path) -> None:
    config = EvaluationConfig(precision=0.1, conditions=["Q", "Q+IF-CoT"], experiments=["bbq"], cot_limit=16)
    summary = run(tmp_path, config)
    records = list(Store(tmp_path).read())
    asked = {c: {r["item"] for r in records if r["condition"] == c} for c in ("Q", "Q+IF+CoT")}
    assert len(asked["Q+IF+CoT"]) == 16 and asked["Q+IF+CoT"] < asked["Q"]
    assert any(e["after"] == "Q+IF+CoT" and e["n_items"] == 8 for e in summary["effects"])


def test_without_variation_it_stops_at_the_first_look_allowed(tmp_path: Path) -> None:
    """There the half width is what may be unseen: 5.7% of 90 groups are missed by 40 in 5 of 100 orders."""
    summary = run(tmp_path, CONFIG, noise=0, certain=0)
    (stop,) = summary["stopping"]
    assert (stop["groups_asked"], stop["looks"]) == (MIN_GROUPS, 1)
    assert [w["half_width"] for w in stop["half_widths"].values()] == [half_width(0.0, 40, 90)] * 2


def test_what_may_be_unseen() -> None:
    """A kind of group of that share is missed in at most 5% of the orders, and hardly less."""
    width = half_width(0.0, 100, 1000)
    assert width == pytest.approx(3 / 100, rel=0.06)
    k = int(np.ceil(width * 1000))
    missed = np.prod([(900 - i) / (1000 - i) for i in range(k)])
    assert 0.04 < missed <= 0.05


def test_what_is_undefined_never_stops() -> None:
    items = in_random_order("winogender", winogender.load(SMALL_SET, CONFIG), 0)
    for slope, scatter, stops in ((0.8, 1.0, True), (0.0, 0.0, False)):
        oracle = Oracle(Preferences(slope=slope, scatter=scatter))
        watch = Watch("winogender", False, items, 60, precision=10)
        records = list(answer(oracle, "winogender", CONDITIONS["Q"], items, 1))
        assert watch.look(records[:45]) == stops
        assert (watch.stop.half_widths["Q"]["half_width"] is not None) == stops
    assert not watch.look(records[45:])  # all asked, and still not known
    assert (watch.stop.groups_asked, watch.stop.looks) == (60, 2)


def test_reasoning_that_was_not_given_ends_it() -> None:
    items = in_random_order("winogender", winogender.load(SMALL_SET, CONFIG), 0)
    records = list(answer(Oracle(Preferences()), "winogender", CONDITIONS["Q"], items, 1))
    watch = Watch("winogender", True, items, 60, precision=10)
    with pytest.raises(InputError, match=r"no reasoning \(refused\), and --precision takes all questions as answered"):
        watch.look([records[0], {**records[1], "logprobs": None, "no_reasoning": "refused"}])


def test_without_a_precision_nothing_is_different(tmp_path: Path) -> None:
    config = EvaluationConfig(experiments=["bbq"], conditions=["Q"], categories=["Age"], orders=1)
    assert [q.item.id for q in plan(config).questions] == [i.id for i in bbq.load(SMALL_SET, config)]
    summary = run(tmp_path, config)
    assert not {"precision", "stopping_rule"} & set(summary["evaluation"])
    assert "stopping" not in summary


def test_the_oracle_is_held_where_asking_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 trials: enough to see a wrong interval; docs/validation.md has 400."""
    config = OracleConfig(trials=20, experiments=["bbq"], conditions=["Q", "Q+IF"], precision=0.15)
    result = early_stops(config)
    assert [r["condition"] for r in result["rows"]] == ["Q", "Q+IF"]
    for row in result["rows"]:
        assert row["stopped_early"] >= 0.5 and row["questions_asked"] < 1
        assert row["coverage_early"] >= 0.8 and row["coverage"] >= 0.8 and row["coverage_every_look"] >= 0.8
        assert 0 < row["half_width"] < 0.15
    assert "coverage, every look" in table(result)
    monkeypatch.setattr(sequential, "boundary", lambda tau: 0.5 * np.sqrt(tau))  # half a standard error
    assert min(r["coverage_every_look"] for r in early_stops(config)["rows"]) < 0.6


@pytest.mark.parametrize("value", ["0", "-0.1", "nan", "inf"])
def test_bad_precision(value: str) -> None:
    with pytest.raises(InputError, match=r"precision must be a number above 0, not .*; it is half the width") as error:
        parse([EvaluationConfig], [f"--precision={value}"], "x")
    assert "leave it out" in str(error.value)
