"""Effects on the same items, spread over wordings, breakdowns; the exact expectation over students."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from eval.config import EvaluationConfig
from eval.data.readers import SMALL_SET, read_table
from eval.errors import InputError
from eval.experiments import admissions, winogender, winogenerated
from eval.experiments.conditions import CONDITIONS
from eval.experiments.words import N_WORDINGS, WORDINGS, instruction
from eval.metrics.measure import measure
from eval.runner.plan import plan
from eval.stats.bootstrap import Bootstrap, Quantity, holm
from eval.types import Item, Record
from tests.support.hand_made import record


def p_admit(item: Item) -> float:
    """An advice with no simple form: every profile and race has a value of its own."""
    f = item.fields
    return 0.5 + 0.4 * np.sin(f["LSAT"] * 1.3 + f["UGPA"] * 7 + (f["race"] == "Black") * 0.9 + (f["sex"] == "male"))


def gap_of(items: list[Item]) -> Quantity:
    records = [record(i, [p_admit(i), 1 - p_admit(i)]) for i in items]
    (gap,) = [q for q in admissions.measure(records) if (q.name, q.category) == ("gap", "all")]
    return gap


@pytest.mark.real_data
def test_weighted_profiles_equal_asking_every_student_twice(real_data: Path) -> None:
    """1,944 profiles with weights against 2 x 21,791 questions of weight 1, each student with an id of their own."""
    profiles = admissions.load(real_data, EvaluationConfig())
    assert len(profiles) == 2 * 1_944
    everyone = []
    by_profile: dict[str, list[Item]] = {}
    for item in profiles:
        by_profile.setdefault(item.cluster, []).append(item)
    path = real_data / "admissions" / "law_data.csv"
    for n, (where, row) in enumerate(read_table(path, ("sex", "LSAT", "UGPA"), ",")):
        sex, lsat, ugpa = admissions.student(where, row, "race")
        for item in by_profile[f"{sex}:{lsat}:{ugpa}"]:
            everyone.append(Item(f"{n}:{item.id}", str(n), 1.0, item.fields))
    assert len(everyone) == 2 * 21_791
    weighted = gap_of(profiles)
    assert weighted.value == pytest.approx(gap_of(everyone).value, abs=1e-12)
    estimate = Bootstrap(0, 1000).estimate(weighted)
    assert estimate.low is not None and estimate.high is not None
    assert estimate.low < weighted.value < estimate.high


def test_admissions_by_sex_and_grid() -> None:
    items = admissions.load(SMALL_SET, EvaluationConfig())
    measured = measure({("admissions", "Q"): [record(i, [p_admit(i), 1 - p_admit(i)]) for i in items]}, 0)
    value = {(m.name, m.category): m.value for m in measured.metrics}
    for sex in ("female", "male"):
        p = {r: np.mean([p_admit(i) for i in items if (i.fields["race"], i.fields["sex"]) == (r, sex)]) for r in
             admissions.RACES}  # fmt: skip
        assert value["gap", sex] == pytest.approx(p["Black"] - p["white"])
        assert value["p_admit_Black", sex] == pytest.approx(p["Black"])
    by_sex = [value["gap", sex] or 0 for sex in ("female", "male")]
    assert value["gap", "all"] == pytest.approx(np.mean(by_sex))
    cells = [r for r in measured.breakdown if r["by"] == "LSAT x UGPA"]
    profiles = [r for r in measured.breakdown if r["by"] == "sex:LSAT:UGPA"]
    assert len(cells) == 15 and len(profiles) == 30
    cell = next(r for r in cells if r["group"] == "29.0 x 2.9")
    two = [r for r in profiles if r["group"].endswith(":29.0:2.9")]
    assert cell["gap"] == pytest.approx(np.mean([r["gap"] for r in two])) and cell["weight"] == 2


def test_more_races_and_sex_as_the_varied_attribute() -> None:
    config = EvaluationConfig(admissions_races=["Black", "Asian", "white"])
    items = admissions.load(SMALL_SET, config)
    assert Counter(i.fields["race"] for i in items) == {"Black": 30, "Asian": 30, "white": 30}
    yes = {"Black": 0.3, "Asian": 0.45, "white": 0.5}
    records = [record(i, [yes[i.fields["race"]], 1 - yes[i.fields["race"]]]) for i in items]
    value = {m.name: m.value for m in measure({("admissions", "Q"): records}, 0).metrics if m.category == "all"}
    assert (value["gap"], value["gap_Asian_white"]) == (pytest.approx(-0.2), pytest.approx(-0.05))
    items = admissions.load(SMALL_SET, EvaluationConfig(admissions_vary="sex"))
    assert len(items) == 15 * 2 * 2 and {i.weight for i in items} == {2.0}
    assert "Black male" in admissions.ask(items[1], CONDITIONS["Q"]).turns[0].text
    yes = {"female": 0.6, "male": 0.5}
    records = [record(i, [yes[i.fields["sex"]], 1 - yes[i.fields["sex"]]]) for i in items]
    value = {m.name: m.value for m in measure({("admissions", "Q"): records}, 0).metrics}
    assert value["gap_sex"] == pytest.approx(0.1) and value["gap"] == pytest.approx(0)


def winogender_records(condition: str, slope: float, items: list[Item]) -> list[Record]:
    shares = [i.fields["bls_percent_female"] / 100 for i in items]
    wobble = [0.03 * np.sin(7 * k) for k in range(len(items))]
    p = [0.4 + slope * (s - 0.5) + w for s, w in zip(shares, wobble, strict=True)]
    return [record(i, [x, 0.9 - x, 0.1], condition) for i, x in zip(items, p, strict=True)]


def test_effects_are_on_the_same_items() -> None:
    """The reasoning was sampled for a part only: Q is compared on that part, and both values are of it."""
    items = winogender.load(SMALL_SET, EvaluationConfig())
    cells = {
        ("winogender", "Q"): winogender_records("Q", 0.6, items),
        ("winogender", "Q+IF"): winogender_records("Q+IF", 0.1, items),
        ("winogender", "Q+IF+CoT"): winogender_records("Q+IF+CoT", 0.0, items[::3]),
    }
    measured = measure(cells, 0)
    effects = {(e.after, e.name): e for e in measured.effects}
    rho = {m.condition: m.value for m in measured.metrics if m.name == "rho"}
    assert effects["Q+IF", "rho"].value_before == pytest.approx(rho["Q"])
    part = {("winogender", "Q"): cells["winogender", "Q"][::3]}
    (of_part,) = [m.value for m in measure(part, 0).metrics if m.name == "rho"]
    cot = effects["Q+IF+CoT", "rho"]
    assert (cot.n_items, cot.n_clusters) == (20, 20)
    assert cot.value_before == pytest.approx(of_part) and cot.value_before != pytest.approx(rho["Q"])
    assert cot.value is not None and cot.value < 0 and cot.p_value is not None and cot.p_value < 0.05


def test_holm_over_the_experiments() -> None:
    students = admissions.load(SMALL_SET, EvaluationConfig())
    sentences = winogender.load(SMALL_SET, EvaluationConfig())
    cells = {(e, c): [] for e in ("winogender", "admissions") for c in ("Q", "Q+IF")}
    for condition, slope in (("Q", 0.5), ("Q+IF", 0.44)):
        cells["winogender", condition] = winogender_records(condition, slope, sentences)
        for k, item in enumerate(students):
            p = 0.5 + 0.1 * np.sin(3 * k) + (0.02 * np.sin(k) if condition == "Q+IF" else 0)
            cells["admissions", condition].append(record(item, [p, 1 - p], condition))
    effects = {(e.experiment, e.name): e for e in measure(cells, 0).effects if e.category == "all"}
    rho, gap = effects["winogender", "rho"], effects["admissions", "gap"]
    assert rho.p_value is not None and gap.p_value is not None
    assert [rho.p_holm, gap.p_holm] == pytest.approx(holm([rho.p_value, gap.p_value]))
    other = effects["winogender", "p_female"]
    assert other.p_value is not None
    assert other.p_holm == pytest.approx(holm([other.p_value, gap.p_value])[0])


def test_wordings_are_asked_and_their_spread_is_told() -> None:
    items = winogender.load(SMALL_SET, EvaluationConfig())
    slopes = [0.5, 0.4, 0.3, 0.35, 0.2, 0.1]
    cells = {("winogender", "Q"): winogender_records("Q", 0.6, items)}
    for k, slope in enumerate(slopes):
        name = CONDITIONS["Q+IF"].worded(k).name if k else "Q+IF"
        cells["winogender", name] = winogender_records(name, slope, items)
    metrics = {(m.condition, m.name): m for m in measure(cells, 0).metrics}
    each = [metrics[c, "rho"].value or 0 for _, c in cells if c != "Q"]
    mean, spread = metrics["Q+IF", "rho_wordings_mean"], metrics["Q+IF", "rho_wordings_sd"]
    assert mean.value == pytest.approx(np.mean(each)) and mean.low is not None
    assert spread.value == pytest.approx(np.std(each, ddof=1)) and "6 wordings" in spread.note
    assert ("Q", "rho_wordings_mean") not in metrics


def test_wordings_are_measured_on_the_questions_that_all_have() -> None:
    """Each lost another question: drawn as if those left were the same, the interval was too narrow by half."""
    items = winogender.load(SMALL_SET, EvaluationConfig())
    worded = [CONDITIONS["Q+IF"].worded(k).name if k else "Q+IF" for k in range(6)]

    def cells(lost: bool) -> dict[tuple[str, str], list[Record]]:
        kept = [[i for n, i in enumerate(items) if not lost or n != 5 + 9 * k] for k in range(6)]
        found = {("winogender", c): winogender_records(c, 0.3, part) for c, part in zip(worded, kept, strict=True)}
        return {**found, ("winogender", "Q"): winogender_records("Q", 0.3, items)}

    whole, part = (
        {(m.condition, m.name): m for m in measure(cells(lost), 0).metrics}["Q+IF", "p_female_wordings_mean"]
        for lost in (False, True)
    )
    assert (whole.n_items, part.n_items, part.n_clusters) == (60, 54, 54)
    for m in (whole, part):
        assert m.low is not None and m.high is not None
    assert (part.high or 0) - (part.low or 0) == pytest.approx((whole.high or 0) - (whole.low or 0), rel=0.25)
    apart = {("winogender", c): winogender_records(c, 0.3, [i]) for c, i in zip(worded, items, strict=False)}
    assert not any(m.name.endswith("_mean") for m in measure(apart, 0).metrics), "they share none"


def test_a_mean_is_of_the_same_clusters() -> None:
    items = winogender.load(SMALL_SET, EvaluationConfig())
    one, other = (winogender.measure(winogender_records("Q", 0.3, part))[0] for part in (items[1:], items[:-1]))
    with pytest.raises(ValueError, match="not asked on the same clusters"):
        Bootstrap(0, 200).mean([one, other])


def test_wordings_are_ours_and_differ() -> None:
    assert N_WORDINGS >= 5
    for which, texts in WORDINGS.items():
        assert len(set(texts)) == len(texts) == N_WORDINGS
        condition = CONDITIONS["Q+Match Stats" if which == "statistics" else "Q+IF"]
        said = [instruction(which, condition.worded(k)) for k in range(1, N_WORDINGS + 1)]
        assert said == list(texts) and instruction(which, condition) not in said
    questions = plan(EvaluationConfig(paraphrases=True, limit=4, categories=["Age"], orders=1)).questions
    per_condition = Counter(q.condition.name for q in questions if q.experiment == "bbq")
    assert set(per_condition.values()) == {4} and len(per_condition) == 3 + 2 * N_WORDINGS


def test_the_inverse_instruction_needs_its_flag() -> None:
    with pytest.raises(InputError, match="say so with --inverse"):
        EvaluationConfig(conditions=["Q", "Q+Inverse"])
    config = EvaluationConfig(inverse=True, limit=4, categories=["Age"])
    assert "Q+Inverse" in {q.condition.name for q in plan(config).questions}
    asked = {q.condition.name for q in plan(EvaluationConfig(limit=4, categories=["Age"])).questions}
    assert "Q+Inverse" not in asked


@pytest.mark.parametrize(
    ("races", "others"),
    [
        (["white", "Black"], {}),
        (["Black", "white", "Asian"], {"gap_Black_Asian": -0.15, "gap_white_Asian": 0.05}),
        (["Asian", "Black", "white"], {"gap_Asian_white": -0.05}),
    ],
)
def test_the_papers_gap_does_not_depend_on_the_order_of_races(races: list[str], others: dict[str, float]) -> None:
    items = admissions.load(SMALL_SET, EvaluationConfig(admissions_races=races))
    yes = {"Black": 0.3, "Asian": 0.45, "white": 0.5}
    records = [record(i, [yes[i.fields["race"]], 1 - yes[i.fields["race"]]]) for i in items]
    quantities = admissions.measure(records)
    value = {q.name: q.value for q in quantities if q.category == "all"}
    assert quantities[0].name == "gap" and value["gap"] == pytest.approx(-0.2)
    assert {n: v for n, v in value.items() if n.startswith("gap_")} == pytest.approx(others)


def test_students_are_printed_as_the_file_has_them(tmp_path: Path) -> None:
    """LSAT 39.0 stays 39.0, and students are one profile only where both numbers print the same."""
    (tmp_path / "admissions").mkdir()
    path = tmp_path / "admissions" / "law_data.csv"
    path.write_text("sex,LSAT,UGPA\n" + "1,39.0,3.1\n" * 9 + "1, 39.0 ,3.1\n1,40,3.04\n")
    items = admissions.load(tmp_path, EvaluationConfig(admissions_races=["Black", "white"]))
    assert [(i.id, i.weight) for i in items] == [
        ("female:39.0:3.1:Black", 10), ("female:39.0:3.1:white", 10),
        ("female:40:3.04:Black", 1), ("female:40:3.04:white", 1),
    ]  # fmt: skip
    for item, printed in ((items[0], ("39.0", "3.1")), (items[2], ("40", "3.04"))):
        text = admissions.ask(item, CONDITIONS["Q"]).turns[0].text
        assert f"with a raw LSAT score of {printed[0]} and an undergraduate GPA of {printed[1]}." in text
    path.write_text("sex,LSAT,UGPA\n")
    with pytest.raises(InputError, match=r"admissions: .*law_data.csv has no row"):
        plan(EvaluationConfig(data_dir=str(tmp_path), experiments=["admissions"]))


def test_a_condition_named_twice_is_asked_once() -> None:
    config = EvaluationConfig(conditions=["Q", "q", "Q+IF", "q_if"], experiments=["winogender"])
    assert config.conditions == ["Q", "Q+IF"]
    assert len(plan(config).questions) == len({q.key for q in plan(config).questions}) == 120


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"seed": -1}, "seed must be at least 0"),
        ({"admissions_races": ["Black"]}, "at least two races"),
        ({"admissions_vary": "age"}, "must be race or sex"),
        ({"system_turn": "no"}, "must be keep or drop"),
    ],
)
def test_bad_options(settings: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        EvaluationConfig(**settings)


def test_winogenerated_from_a_file(tmp_path: Path) -> None:
    import json

    (tmp_path / "winogenerated").mkdir()
    path = tmp_path / "winogenerated" / "winogenerated_examples.jsonl"
    rows = [
        {
            "occupation": f"worker {k}", "pronoun_options": [["he", "she", "they"], ["her", "his", "their"]][n],
            "sentence_with_blank": f"The worker {k} said that _ was done, sentence {n}.",
            "BLS_percent_women_2019": 10.0 * k,
        }
        for k in range(9) for n in range(2)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    items = winogenerated.load(tmp_path, EvaluationConfig())
    assert len(items) == len({i.id for i in items}) == 18 and len({i.cluster for i in items}) == 9
    assert winogenerated.ask(items[1], CONDITIONS["Q"]).candidates == (" her", " his", " their")
    records = [record(i, [x := 0.05 + 0.1 * (n // 2) + 0.05 * (n % 2), 0.95 - x, 0.05]) for n, i in enumerate(items)]
    metrics = {m.name: m for m in measure({("winogenerated", "Q"): records}, 0).metrics}
    assert metrics["rho"].value == pytest.approx(1)  # the occupations' means lie on a line, the sentences do not
    assert (metrics["rho"].n_items, metrics["rho"].n_clusters) == (18, 9)
    assert metrics["calibration_slope"].value == pytest.approx(1)
    path.write_text(json.dumps({**rows[0], "pronoun_options": ["it"]}) + "\n")
    with pytest.raises(InputError, match=r"examples.jsonl:1: pronoun_options \['it'\]"):
        winogenerated.load(tmp_path, EvaluationConfig())
    with pytest.raises(InputError, match="is missing"):
        winogenerated.files(SMALL_SET, EvaluationConfig())


@pytest.mark.real_data
def test_winogenerated_is_read_whole(real_data: Path) -> None:
    items = winogenerated.load(real_data, EvaluationConfig())
    assert len(items) == 2_990
    assert set(Counter(i.cluster for i in items).values()) == {10}
    assert {i.fields["pronoun"] for i in items} == set(winogender.PRONOUNS)
