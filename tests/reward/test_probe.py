"""The probe finds what is planted and nothing else, and its templates differ only in the name of a group."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.special import expit

from eval.errors import InputError
from reward.gaps import finding, measure, permutation_tests
from reward.probe import ProbeConfig, probe, table
from reward.scoring import load_reward_model
from reward.templates import BUILT_IN, KINDS, Dimension, Version, read_templates, versions

NINE = {
    "Age", "Disability_status", "Gender_identity", "Nationality", "Physical_appearance", "Race_ethnicity", "Religion",
    "SES", "Sexual_orientation",
}  # fmt: skip
DIMENSIONS = read_templates()
RELIGION = next(d for d in DIMENSIONS if d.name == "Religion")
ASKED = versions(RELIGION)


def planted(asked: list[Version], bonus: dict[str, float], noise: float, rng: np.random.Generator) -> np.ndarray:
    """Scores of a reward model with an effect of the template, a bonus by group, and noise."""
    of_template = {v.template.id: rng.normal(0, 2) for v in asked}
    return np.array([of_template[v.template.id] + bonus.get(v.group, 0.0) + rng.normal(0, noise) for v in asked])


def measured(scores: np.ndarray, asked: list[Version] | None = None, seed: int = 0) -> dict[str, Any]:
    return measure(asked or ASKED, scores, seed, resamples=1000, permutations=499)[0]


@pytest.mark.parametrize("dimension", DIMENSIONS, ids=lambda d: d.name)
def test_versions_of_a_template_differ_only_in_the_name(dimension: Dimension) -> None:
    assert 2 <= len(dimension.groups) <= 8 and dimension.n_wordings >= 2
    assert len(dimension.templates) >= 12
    assert {k: sum(t.kind == k for t in dimension.templates) for k in KINDS} == dict.fromkeys(KINDS, 3)
    every = versions(dimension, every_wording=True)
    assert len(every) == len(dimension.templates) * len(dimension.groups) * dimension.n_wordings
    texts = [json.dumps(v.dialogue) for v in every]
    assert len(set(texts)) == len(texts)
    for version in every:
        human, assistant = (m["content"] for m in version.dialogue)
        for text, template in ((human, version.template.human), (assistant, version.template.assistant)):
            assert not set(text) & set("{}")
            for place, name in (("one", version.name.one), ("many", version.name.many)):
                template = template.replace(f"{{{place}}}", name)
                template = template.replace(f"{{{place.title()}}}", name[0].upper() + name[1:])
            assert text == template  # the template with the name in its places, and nothing else
            assert re.match("[A-Z]", text) and re.search("[.?!]$", text) and "  " not in text
            assert not re.search(r"\b(a an?|an an?|the an?|an? someone|an? people)\b", text, re.IGNORECASE)
            assert not re.search(r"[.?!] [a-z]", text)


def test_all_nine_dimensions_and_no_template_twice() -> None:
    assert {d.name for d in DIMENSIONS} == NINE
    templates = {t for d in DIMENSIONS for t in d.templates}
    assert len({t.id for t in templates}) == len(templates) == 8 + 9 * 4
    assert len({(t.human, t.assistant) for t in templates}) == len(templates)


def test_articles_and_forms() -> None:
    """'an' before a vowel's sound, one person in the singular with an article, several without."""
    for name in (w for d in DIMENSIONS for names in d.groups.values() for w in names):
        article, _, noun = name.one.partition(" ")
        assert not name.many.startswith(("a ", "an ", "the "))
        if article == "someone":
            continue
        assert article == ("an" if noun[0].lower() in "aeio" else "a"), name.one  # no noun here begins with "u"
        assert noun[0].lower() != "u"
        plural = name.many.split(" ")[0]
        assert plural == "people" or "people" in name.many or name.many != noun


def test_wordings_stand_in_turn_and_evenly_in_every_kind() -> None:
    for dimension in DIMENSIONS:
        asked = versions(dimension)
        assert len(asked) == len(dimension.templates) * len(dimension.groups)
        used = {(v.template.id, v.wording) for v in asked}
        assert len(used) == len(dimension.templates)  # one wording per template, the same for all groups
        for kind in KINDS:
            n = [sum(t == kind and w == k for t, w in ((v.template.kind, v.wording) for v in asked)) for k in (0, 1)]
            assert abs(n[0] - n[1]) <= len(dimension.groups)
        assert sum(v.wording == 0 for v in asked) * 2 == len(asked)


def test_a_planted_preference_is_found_and_its_interval_holds_it() -> None:
    rng = np.random.default_rng(0)
    found, held, paired = 0, 0, 0
    for seed in range(100):
        result = measured(planted(ASKED, {"Hindu": 0.6}, 0.3, rng), seed=seed)
        group = next(g for g in result["groups"] if g["group"] == "Hindu")
        held += group["low"] <= 0.5 <= group["high"]  # 0.6 less the mean of six groups' bonuses, 0.1
        if result["p_holm"] < 0.05:
            found += result["most"] == "Hindu" and result["finding"].startswith("prefers Hindu over ")
        paired += result["low"] <= 0.6 <= result["high"]
    assert found >= 95
    assert held >= 90
    assert paired >= 93  # simultaneous: it may hold the planted difference more often than 95 times


def test_a_fair_reward_model_is_found_fair() -> None:
    """Of reward models that are fair but for noise, 5% are said to prefer a group, by either test: not more."""
    rng = np.random.default_rng(1)
    results = [measured(planted(ASKED, {}, 0.3, rng), seed=seed) for seed in range(200)]
    for name in ("p_value", "kinds_p_value"):
        assert np.mean([r[name] < 0.05 for r in results]) <= 0.09  # 0.05 + 2.6 standard errors
        assert 0.4 < np.mean([r[name] for r in results]) < 0.6
    assert np.mean([min(g["p_holm"] for g in r["groups"]) < 0.05 for r in results]) <= 0.09
    assert np.mean([r["low"] <= 0 for r in results]) >= 0.9


def test_over_all_dimensions_a_fair_model_is_seldom_said_to_prefer_any_group() -> None:
    asked = [v for d in DIMENSIONS for v in versions(d)]
    rng = np.random.default_rng(2)
    trials = [measure(asked, rng.normal(size=len(asked)), 0, 200, 499) for _ in range(40)]
    any_found = [any(d["finding"].startswith("prefers") for d in found) for found in trials]
    assert np.sum(any_found) <= 5  # Holm over nine dimensions: 2 expected


def test_a_model_that_reads_only_the_template_has_gaps_of_exactly_0() -> None:
    rng = np.random.default_rng(3)
    for noise in (0.0, 1e-7):  # rounding of float32
        result = measured(planted(ASKED, {}, noise, rng))
        assert result["spread"] == 0 and result["p_value"] == result["kinds_p_value"] == 1
        for g in result["groups"]:
            assert (g["gap"], g["low"], g["high"], g["p_value"]) == (0, 0, 0, 1)
        assert result["finding"] == "gives all groups the same score in every template"
    constant = measured(np.full(len(ASKED), 0.1))
    assert constant["spread_sd"] is None and constant["groups"][0]["gap_sd"] is None


def test_opposite_preferences_in_praise_and_blame_are_found_by_kind() -> None:
    rng = np.random.default_rng(4)
    sign = {"praise": 1.0, "negative": -1.0, "neutral": 0.0, "refusal": 0.0}
    scores = np.array([sign[v.template.kind] * (v.group == "Muslim") + rng.normal(0, 0.1) for v in ASKED])
    result = measured(scores)
    assert result["p_value"] > 0.05 > result["kinds_p_value"]
    assert "but groups differ within kinds" in result["finding"]
    kinds = next(g["kinds"] for g in result["groups"] if g["group"] == "Muslim")
    assert kinds["praise"] == pytest.approx(5 / 6, abs=0.2) and kinds["negative"] == pytest.approx(-5 / 6, abs=0.2)


def test_a_preference_for_one_wording_is_told_as_one() -> None:
    scores = np.array([float(v.name.one == "a Muslim") for v in ASKED])
    result = measured(scores)
    muslim = next(g for g in result["groups"] if g["group"] == "Muslim")
    assert muslim["wordings"] == pytest.approx({"a Muslim": 5 / 6, "a person of the Muslim faith": 0})
    assert (result["most"], result["wordings_won"], result["n_wordings"]) == ("Muslim", 1, 2)


def test_numbers_by_hand() -> None:
    """Gaps, spread, preference and wins from the definition; the permutation test from every one of its shuffles."""
    age = next(d for d in DIMENSIONS if d.name == "Age")
    asked = versions(age, every_wording=True)
    scores = np.random.default_rng(5).normal(size=len(asked))
    result = measured(scores, asked)
    table_TG = np.array(
        [[np.mean([s for s, v in zip(scores, asked, strict=True) if (v.template.id, v.group) == (t.id, g)])
          for g in age.groups] for t in age.templates]
    )  # fmt: skip
    gaps = (table_TG - table_TG.mean(axis=1, keepdims=True)).mean(axis=0)
    assert [g["gap"] for g in result["groups"]] == pytest.approx(gaps)
    assert result["spread"] == pytest.approx(gaps.max() - gaps.min())
    assert result["spread_sd"] == pytest.approx((gaps.max() - gaps.min()) / scores.std())
    assert result["preference"] == pytest.approx(expit(gaps.max() - gaps.min()))
    assert result["wins"] == np.mean(table_TG[:, gaps.argmax()] > table_TG[:, gaps.argmin()])
    few_TG = table_TG[:9, :2]
    difference = few_TG[:, 1] - few_TG[:, 0]
    signed = [abs(np.mean(np.array(s) * difference)) for s in product((1, -1), repeat=9)]
    exact = np.mean(np.array(signed) >= abs(difference.mean()) * (1 - 1e-9))
    found, _ = permutation_tests(few_TG, np.array(["praise"] * 9), 0, 20_000)
    assert found == pytest.approx(exact, abs=0.012)  # 3.5 standard errors


def test_a_preference_is_said_to_be_there_by_test_and_interval_alike() -> None:
    entry = measured(planted(ASKED, {"Muslim": 1.0}, 0.5, np.random.default_rng(0)))
    assert entry["low"] > 0 and entry["p_holm"] < 0.05
    assert entry["finding"] == finding(entry) and finding(entry).startswith("prefers Muslim over ")
    assert finding({**entry, "low": -0.01}).startswith("no clear preference: the interval holds 0; the largest gap")
    assert finding({**entry, "p_holm": 0.2, "kinds_p_holm": 0.2}).startswith("no preference shown; the largest gap")


def test_the_same_seed_gives_the_same_numbers() -> None:
    scores = planted(ASKED, {}, 0.3, np.random.default_rng(6))
    assert measured(scores, seed=1) == measured(scores, seed=1)
    assert measured(scores, seed=1)["groups"][0]["low"] != measured(scores, seed=2)["groups"][0]["low"]


@pytest.fixture
def run(tiny_reward: Path, tmp_path: Path) -> Path:
    """The folder of a training run, as `reward.train` leaves it."""
    shutil.copytree(tiny_reward, tmp_path / "run" / "model")
    (tmp_path / "run" / "reward.json").write_text("{}")
    return tmp_path / "run"


def test_probe_writes_where_the_card_looks_and_every_score_can_be_traced(run: Path) -> None:
    result = probe(ProbeConfig(model=str(run / "model")))
    assert json.loads((run / "probe" / "probe.json").read_text()) == result
    rows = [json.loads(line) for line in (run / "probe" / "scores.jsonl").read_text().splitlines()]
    assert result["n_dialogues"] == len(rows) == sum(len(versions(d)) for d in DIMENSIONS)
    assert {d["dimension"] for d in result["dimensions"]} == NINE
    model = load_reward_model(str(run / "model"))
    again = model.scores([r["dialogue"] for r in rows[:5]])
    assert [r["score"] for r in rows[:5]] == pytest.approx(again, abs=1e-5)
    old = [r["score"] for r in rows if (r["dimension"], r["group"]) == ("Age", "old")]
    age = [r["score"] for r in rows if r["dimension"] == "Age"]
    entry = next(g for d in result["dimensions"] for g in d["groups"] if g["group"] == "old")
    assert entry["gap"] == pytest.approx(np.mean(old) - np.mean(age))
    told = table(result)
    assert told.count("\nSES: ") == 1 and "old" in told and "540 dialogues" in told


def test_part_of_a_probe_is_written_only_where_it_is_told_to(run: Path, tmp_path: Path) -> None:
    result = probe(ProbeConfig(model=str(run / "model"), dimensions=["SES,Age"], every_wording=True))
    assert [d["dimension"] for d in result["dimensions"]] == ["Age", "SES"]
    assert result["output"] is None and not (run / "probe").exists()
    assert result["n_dialogues"] == 2 * 12 * 3 * 2
    probe(ProbeConfig(model=str(run / "model"), dimensions=["SES"], output=str(tmp_path / "out")))
    assert (tmp_path / "out" / "probe.json").is_file()


def mine() -> dict[str, Any]:
    template = {"id": "a", "kind": "praise", "human": "Who?", "assistant": "{One}."}
    groups = {"x": [{"one": "an x", "many": "xs"}], "y": [{"one": "a y", "many": "ys"}]}
    return {"dimensions": {"Letters": {"groups": groups, "templates": [template]}}}


def saved(folder: Path, content: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_templates_of_ones_own(run: Path, tmp_path: Path) -> None:
    path = saved(tmp_path, mine())
    result = probe(ProbeConfig(model=str(run / "model"), templates=str(path)))
    (letters,) = result["dimensions"]
    assert letters["low"] is None and letters["groups"][0]["p_value"] is None  # one template: no interval
    assert "at least 8 are needed" in letters["groups"][0]["note"]
    assert letters["p_value"] == 1 and letters["finding"].startswith("no preference shown")
    assert "Letters" in table(result)


CHANGES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda d: d["templates"][0].update(kind="cheerful"), "unknown kind 'cheerful'"),
    (lambda d: d["templates"][0].update(assistant="Yes."), "names no group"),
    (lambda d: d["templates"][0].update(assistant="{group}."), "unknown place '{group}'"),
    (lambda d: d["templates"][0].update(assistant="{one."), "braces stand only around"),
    (lambda d: d["templates"][0].update(human=""), "'human' must be a text"),
    (lambda d: d["templates"][0].update(humans=""), "unknown key 'humans'; did you mean 'human'?"),
    (lambda d: d["templates"][0].pop("id"), "has no 'id'"),
    (lambda d: d["templates"].append(d["templates"][0]), "template 'a' is there 2 times"),
    (lambda d: d["templates"].clear(), "has no template"),
    (lambda d: d["groups"].pop("x"), "at least 2 groups"),
    (lambda d: d["groups"]["x"].append({"one": "an ex", "many": "exes"}), "x has 2 wordings and y has 1"),
    (lambda d: d["groups"]["x"][0].update(one="a y"), "wording 'a y' is there 2 times"),
    (lambda d: d["groups"]["x"][0].pop("many"), "has no 'many'"),
    (lambda d: d["groups"].update(x=[]), "must be a list of wordings"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES, ids=[said for _, said in CHANGES])
def test_bad_templates_are_refused_in_one_line(tmp_path: Path, change: Callable[[Any], Any], said: str) -> None:
    content = json.loads(json.dumps(mine()))
    change(content["dimensions"]["Letters"])
    with pytest.raises(InputError, match=r"mine\.yaml") as error:
        read_templates(saved(tmp_path, content))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_bad_options_are_refused_in_one_line(tiny_reward: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--model is missing"):
        ProbeConfig()
    with pytest.raises(InputError, match="dtype must be"):
        ProbeConfig(model="m", dtype="int8")
    with pytest.raises(InputError, match="did you mean 'Religion'"):
        probe(ProbeConfig(model=str(tiny_reward), dimensions=["Religions"]))
    with pytest.raises(InputError, match="no such folder"):
        probe(ProbeConfig(model=str(tmp_path / "nothing" / "here")))
    with pytest.raises(InputError, match=r"nothing\.yaml"):
        probe(ProbeConfig(model=str(tiny_reward), templates=str(tmp_path / "nothing.yaml")))
    assert BUILT_IN.is_file()
