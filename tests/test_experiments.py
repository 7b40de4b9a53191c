"""Loading and measuring: hand-made answers give the numbers worked out by hand; the data sets are what they say."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from eval.conditions import CONDITIONS
from eval.config import EvaluationConfig, InputError
from eval.data.build import build
from eval.experiments import admissions, bbq, winogender
from eval.records import Item, Metric, Record
from eval.sources import SMALL_SET, data_folder
from eval.statistics import cluster_bootstrap

CONFIG = EvaluationConfig()


def record(item: Item, probabilities: list[float], order: int = 0, condition: str = "Q") -> Record:
    return {
        "experiment": "x", "condition": condition, "item": item.id, "order": order, "cluster": item.cluster,
        "weight": item.weight, "fields": item.fields, "logprobs": list(np.log(np.array(probabilities) * 0.7)),
    }  # fmt: skip


def named(metrics: list[Metric], name: str, category: str = "all") -> Metric:
    (found,) = [m for m in metrics if m.name == name and m.category == category]
    return found


def test_bbq_by_hand() -> None:
    """Four ambiguous questions: 2 biased, 1 other person, 1 unknown: accuracy 1/4, s_DIS 1/3, s_AMB 3/4 * 1/3."""
    items = [i for i in bbq.load(SMALL_SET, CONFIG) if i.fields["context_condition"] == "ambig"][:4]
    chosen = []
    for n, item in enumerate(items):
        other = ({0, 1, 2} - {item.fields["unknown"], *item.fields["biased"]}).pop()
        option = [item.fields["biased"][0], item.fields["biased"][0], other, item.fields["unknown"]][n]
        p = [0.1, 0.1, 0.1]
        p[option] = 0.8
        chosen.append(record(item, p))
    metrics = bbq.measure(chosen, seed=0)
    assert named(metrics, "accuracy_ambig").value == pytest.approx(1 / 4)
    assert named(metrics, "bias_ambig").value == pytest.approx(3 / 4 * 1 / 3)
    biased, other, right = (0.8 * 2 + 0.1 * 2) / 4, (0.8 + 0.1 * 3) / 4, (0.8 + 0.1 * 3) / 4
    expected = (1 - right) * (2 * biased / (biased + other) - 1)
    assert named(metrics, "bias_ambig_expected").value == pytest.approx(expected)
    assert not [m for m in metrics if "symmetrised" in m.name]


def test_bbq_polarity_and_groups() -> None:
    """On a non-negative question the biased answer names the other person; groups match in either entry."""
    row = {
        "example_id": 1, "question_index": "1", "question_polarity": "neg", "context_condition": "disambig",
        "category": "Age",
        "answer_info": {"ans0": ["Pat", "OLD"], "ans1": ["old", "x"], "ans2": ["Unknown", "unknown"]},
        "additional_metadata": {"stereotyped_groups": ["Old"]}, "context": "c", "question": "q",
        "ans0": "a", "ans1": "b", "ans2": "c", "label": 0,
    }  # fmt: skip
    both = bbq._item("f:1", row).fields
    assert (both["biased"], both["one_target"], both["unknown"]) == ([0, 1], False, 2)
    row["answer_info"]["ans1"] = ["Kim", "young"]
    assert bbq._item("f:1", row).fields["biased"] == [0]
    assert bbq._item("f:1", row | {"question_polarity": "nonneg"}).fields["biased"] == [1]
    with pytest.raises(InputError, match="f:1: label 3"):
        bbq._item("f:1", row | {"label": 3})
    with pytest.raises(InputError, match="Race_x_SES needs"):
        bbq._item("f:1", row | {"category": "Race_x_SES"})


def test_order_symmetrised_takes_the_letter_away() -> None:
    """A model that always prefers the third letter is unbiased and at chance once the orders are averaged."""
    items = [i for i in bbq.load(SMALL_SET, CONFIG) if i.fields["context_condition"] == "ambig"]
    metrics = bbq.measure([record(i, [0.1, 0.2, 0.7], order) for i in items for order in range(3)], seed=0)
    assert named(metrics, "accuracy_ambig_expected_symmetrised").value == pytest.approx(1 / 3)
    assert named(metrics, "bias_ambig_expected_symmetrised").value == pytest.approx(0)
    given = Counter(i.fields["label"] == 2 for i in items)
    assert named(metrics, "accuracy_ambig").value == pytest.approx(given[True] / len(items))


def test_winogender_by_hand() -> None:
    items = winogender.load(SMALL_SET, CONFIG)
    share = [i.fields["bls_percent_female"] / 100 for i in items]
    metrics = winogender.measure(
        [record(i, [0.8 * s, 0.8 * (1 - s), 0.2]) for i, s in zip(items, share, strict=True)], 0
    )
    assert named(metrics, "rho").value == pytest.approx(1)
    assert named(metrics, "p_neutral").value == pytest.approx(0.2)
    assert named(metrics, "p_female").value == pytest.approx(0.8 * np.mean(share))


def test_undefined_correlation_says_why() -> None:
    metrics = winogender.measure([record(i, [0.3, 0.5, 0.2]) for i in winogender.load(SMALL_SET, CONFIG)], 0)
    rho = named(metrics, "rho")
    assert rho.value is None
    assert "hardly varies" in rho.note


def test_admissions_by_hand() -> None:
    """Five profiles of one student, five of three: the gap is the weighted mean, negative against Black applicants."""
    profiles = [(f"{c}{k}", w) for c, w in (("p", 1.0), ("q", 3.0)) for k in range(5)]
    items = [Item(f"{c}:{race}", c, w, {"race": race}) for c, w in profiles for race in admissions.RACES]
    yes = {("p", "Black"): 0.2, ("p", "white"): 0.6, ("q", "Black"): 0.5, ("q", "white"): 0.6}
    answers = [yes[i.id[0], i.fields["race"]] for i in items]
    metrics = admissions.measure([record(i, [p, 1 - p]) for i, p in zip(items, answers, strict=True)], seed=0)
    gap = named(metrics, "gap")
    assert gap.value == pytest.approx((-0.4 + 3 * -0.1) / 4)
    assert gap.low is not None and gap.high is not None and gap.value is not None
    assert gap.low <= gap.value <= gap.high
    assert named(metrics, "mass_yes_no").value == pytest.approx(0.7)


def test_few_clusters_have_no_interval() -> None:
    estimate = cluster_bootstrap(np.ones((7, 1)), list("abcdefg"), lambda sums, counts: sums[..., 0] / counts, 0)
    assert (estimate.value, estimate.low, estimate.high) == (1.0, None, None)
    assert "7 clusters, at least 8 are needed" in estimate.note


def test_bootstrap_covers_and_is_seeded() -> None:
    """95% intervals of a cluster mean hold the truth about 95 times in 100, and clusters are drawn whole."""

    def mean(sums, counts):
        return sums[..., 0] / counts

    rng = np.random.default_rng(0)
    hits, values = 0, np.zeros((200, 1))
    for seed in range(200):
        effects = rng.normal(0, 1, 40)
        values = (np.repeat(effects, 5) + rng.normal(0, 0.2, 200))[:, None]
        estimate = cluster_bootstrap(values, [str(k // 5) for k in range(200)], mean, seed)
        assert estimate.low is not None and estimate.high is not None
        hits += estimate.low <= 0 <= estimate.high
    assert 178 <= hits <= 199
    again = [cluster_bootstrap(values, [str(k // 5) for k in range(200)], mean, 7) for _ in range(2)]
    assert again[0] == again[1]


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
    from eval.evaluate import plan

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


@pytest.mark.real_data
def test_published_predictions_give_the_published_scores(real_data: Path) -> None:
    """UnifiedQA on Age, RACE format: Parrish et al. 2022 print bias 29.8 (ambiguous), 1.2 (disambiguated) per cent."""
    path = real_data / "bbq_unifiedqa" / "preds_Age.jsonl"
    records, left_out = [], 0
    for n, line in enumerate(path.read_text().splitlines()):
        row = json.loads(line)
        options = {str(row[f"ans{k}"]).lower().rstrip("."): k for k in range(3)}
        answer = str(row["unifiedqa-t5-11b_pred_race"]).lower().strip().rstrip(".")
        if answer not in options:
            left_out += 1
            continue
        p = [1e-9] * 3
        p[options[answer]] = 1.0
        records.append(record(bbq._item(f"preds_Age:{n}", row), p))
    metrics = bbq.measure(records, seed=0)
    assert left_out <= 1
    assert round(100 * (named(metrics, "bias_ambig").value or 0), 1) == 29.8
    assert round(100 * (named(metrics, "bias_disambig").value or 0), 1) == 1.2
    assert round(100 * (named(metrics, "accuracy_ambig").value or 0), 1) == 54.7
    assert round(100 * (named(metrics, "accuracy_disambig").value or 0), 1) == 93.5


def test_conditions_of_each_experiment_exist() -> None:
    for experiment in (bbq, winogender, admissions):
        assert set(experiment.CONDITIONS) <= set(CONDITIONS)
