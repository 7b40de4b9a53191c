"""Loading and measuring: hand-made answers give the numbers worked out by hand; the data sets are what they say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from eval.config import EvaluationConfig
from eval.data.build import build
from eval.data.readers import SMALL_SET, data_folder
from eval.errors import InputError
from eval.experiments import admissions, bbq, winogender
from eval.experiments.conditions import CONDITIONS
from eval.types import Item
from tests.support.hand_made import metrics_of, named, record

CONFIG = EvaluationConfig()


def test_winogender_by_hand() -> None:
    items = winogender.load(SMALL_SET, CONFIG)
    share = [i.fields["bls_percent_female"] / 100 for i in items]
    metrics = metrics_of(
        winogender, [record(i, [0.8 * s, 0.8 * (1 - s), 0.2]) for i, s in zip(items, share, strict=True)]
    )
    assert named(metrics, "rho").value == pytest.approx(1)
    assert named(metrics, "p_neutral").value == pytest.approx(0.2)
    assert named(metrics, "p_female").value == pytest.approx(0.8 * np.mean(share))


def test_undefined_correlation_says_why() -> None:
    metrics = metrics_of(winogender, [record(i, [0.3, 0.5, 0.2]) for i in winogender.load(SMALL_SET, CONFIG)])
    rho = named(metrics, "rho")
    assert rho.value is None
    assert "hardly varies" in rho.note


def test_admissions_by_hand() -> None:
    """Five profiles of one student, five of three: the gap is the weighted mean, negative against Black applicants."""
    profiles = [(f"{c}{k}", w) for c, w in (("p", 1.0), ("q", 3.0)) for k in range(5)]
    items = [
        Item(f"{c}:{race}", c, w, {"race": race, "sex": "male", "profile_sex": "male", "LSAT": 30.0, "UGPA": 3.0})
        for c, w in profiles
        for race in admissions.RACES
    ]
    yes = {("p", "Black"): 0.2, ("p", "white"): 0.6, ("q", "Black"): 0.5, ("q", "white"): 0.6}
    answers = [yes[i.id[0], i.fields["race"]] for i in items]
    metrics = metrics_of(admissions, [record(i, [p, 1 - p]) for i, p in zip(items, answers, strict=True)])
    gap = named(metrics, "gap")
    assert gap.value == pytest.approx((-0.4 + 3 * -0.1) / 4)
    assert gap.low is not None and gap.high is not None and gap.value is not None
    assert gap.low <= gap.value <= gap.high
    assert named(metrics, "mass_yes_no").value == pytest.approx(0.7)


def test_small_set_is_what_its_sources_build(tmp_path: Path) -> None:
    build(tmp_path)
    built = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert len(built) == 10
    for name in built:
        assert (tmp_path / name).read_bytes() == (SMALL_SET / name).read_bytes(), name


def test_small_set_has_what_is_promised() -> None:
    items = bbq.load(SMALL_SET, CONFIG)
    templates = Counter(i.cluster for i in items)
    assert len(templates) >= 40
    assert set(templates.values()) == {8}
    for template in templates:
        eight = [i for i in items if i.cluster == template]
        kinds = Counter((i.fields["context_condition"], i.fields["polarity"]) for i in eight)
        assert set(kinds.values()) == {2}
        assert len({i.texts["context"] for i in eight}) == 4  # both ways round, ambiguous and disambiguated
        right = Counter(
            i.fields["label"] in i.fields["biased"] for i in eight if i.fields["context_condition"] == "disambig"
        )
        assert right == {True: 2, False: 2}
    sentences = winogender.load(SMALL_SET, CONFIG)
    assert len(sentences) == 60
    assert {i.fields["pronoun"] for i in sentences} == set(winogender.PRONOUNS)
    students = admissions.load(SMALL_SET, CONFIG)
    assert len(students) == 60
    assert {i.fields["race"] for i in students} == {"Black", "white"}


def test_sample_is_spread_and_balanced() -> None:
    items = bbq.load(SMALL_SET, CONFIG)
    some = bbq.sample(items, 24)
    assert len(some) == 24
    assert len({i.cluster for i in some}) == 12
    assert len({i.fields["category"] for i in some}) == 9
    kinds = Counter((i.fields["context_condition"], i.fields["polarity"]) for i in some)
    assert len(kinds) == 4 and set(kinds.values()) == {6}
    pairs = admissions.sample(admissions.load(SMALL_SET, CONFIG), 16)
    assert Counter(i.fields["race"] for i in pairs) == {"Black": 8, "white": 8}


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("bbq/Age.jsonl", "{broken\n", "Age.jsonl:1 is not valid JSON"),
        ("bbq/Age.jsonl", '{"example_id": 1}\n', "Age.jsonl:1 has no 'question_index'"),
        ("winogender/templates.tsv", "occupation(0)\tanswer\n", "has no column"),
        ("winogender/occupations-stats.tsv", "occupation\tbls_pct_female\nnurse\tmany\n", "is not a number"),
        ("admissions/law_data.csv", "sex,LSAT,UGPA\n1,39\n", "law_data.csv:2 has fewer columns"),
        ("admissions/law_data.csv", "sex,LSAT,UGPA\n3,39,3\n", "sex 3 is outside 1 to 2"),
    ],
)
def test_bad_data_names_file_and_line(tmp_path: Path, file: str, text: str, said: str) -> None:
    from eval.runner.plan import plan

    for path in SMALL_SET.rglob("*"):
        if path.is_file() and path.suffix in (".jsonl", ".tsv", ".csv"):
            target = tmp_path / path.relative_to(SMALL_SET)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError) as error:
        plan(EvaluationConfig(data_dir=str(tmp_path)))
    assert said in str(error.value)
    (tmp_path / file).unlink()
    with pytest.raises(InputError, match=r"is missing|has no bbq") if "bbq" not in file else pytest.raises(InputError):
        plan(EvaluationConfig(data_dir=str(tmp_path), categories=["Age"]))


def test_data_folder_that_is_not_there() -> None:
    with pytest.raises(InputError, match="data folder no/such"):
        data_folder("no/such")


@pytest.mark.real_data
def test_real_data_is_read_whole(real_data: Path) -> None:
    items = bbq.load(real_data, CONFIG)
    assert len(items) == 11_956
    assert all(i.fields["one_target"] for i in items)
    assert len(winogender.load(real_data, CONFIG)) == 60
    students = admissions.load(real_data, CONFIG)
    assert len(students) == 2 * 1_944
    assert sum(i.weight for i in students if i.fields["race"] == "Black") == 21_791


def test_conditions_of_each_experiment_exist() -> None:
    for experiment in (bbq, winogender, admissions):
        assert set(experiment.CONDITIONS) <= set(CONDITIONS)
