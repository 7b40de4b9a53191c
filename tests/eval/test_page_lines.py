"""Which results the page joins by a line against size, and which gap of admissions it shows, with which sign."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.curves.cautions import describe_gap, main_gap
from eval.curves.gather import Curve, gather
from eval.curves.kinds import kind
from eval.views.page.data import Detail, page_data
from eval.views.page.lines import describe_unjoined, family, question_keys
from eval.views.page.report import build, table
from tests.support.page_runs import Page, training


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> list[Curve]:
    folder = tmp_path_factory.mktemp("runs")
    for params, seed in ((2_000_000, 0), (50_000_000, 0), (50_000_000, 1)):
        training(folder, params, seed, (0,), experiments=["winogender"])
    return gather([folder])


def of_model(curve: Curve, model: str) -> Curve:
    return replace(curve, described={**curve.described, "model": model})


def asked_of(curve: Curve, **fields: Any) -> Curve:
    return replace(curve, summaries=tuple({**s, **fields} for s in curve.summaries))


def test_one_line_is_of_one_kind_of_model_one_training_one_seed(curves: list[Curve]) -> None:
    assert [family(c) for c in curves] == ["rloo, seed 0, tiny", "rloo, seed 0, tiny", "rloo, seed 1, tiny"]
    named = [replace(c, name=f"other-{c.name}") for c in curves]
    families = [c["family"] for c in page_data([*curves, *named], Detail("whole"))["curves"]]
    assert len(set(zip(families, [c.model_params for c in [*curves, *named]], strict=True))) == 6
    models = [
        replace(c, described={"model": f"lab/pythia-{size}"}) for c, size in zip(curves, ("70m", "1.4b"), strict=False)
    ]
    assert {family(c) for c in models} == {"pythia"}


@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        (("EleutherAI/pythia-70m", "runs/sft/pythia-1.4b/model"), {"pythia"}),
        (("runs/sft/gpt2-124M/model", "openai-community/gpt2", "gpt2-medium", "gpt2-xl"), {"gpt2"}),
        (("allenai/OLMo-2-0425-1B-SFT", "allenai/OLMo-2-1124-13B-SFT"), {"OLMo-2-SFT"}),
        (("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-72B-Instruct"), {"Qwen2.5-Instruct"}),
        (("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-7B-Instruct"), {"Qwen2.5", "Qwen2.5-Instruct"}),
        (("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.1-8B"), {"Llama-3.2", "Llama-3.1"}),
        (("bigscience/bloom-1b1", "bigscience/bloom-7b1"), {"bloom"}),
        (("7B", "13B"), {"7B", "13B"}),
    ],
)
def test_kinds_of_models_are_told_by_their_names(curves: list[Curve], names: tuple[str, ...], kinds: set[str]) -> None:
    assert {kind(of_model(curves[0], n)) for n in names} == kinds


def test_other_models_and_other_questions_are_apart_and_said(curves: list[Curve]) -> None:
    small, large, seed1 = curves
    assert describe_unjoined(curves, ["winogender"]) == "" and len(set(question_keys(curves, "winogender"))) == 1
    found = describe_unjoined([of_model(small, "pythia-70m"), of_model(large, "SmolLM2-360M"), seed1], ["winogender"])
    assert found == "Not joined by lines: pythia | SmolLM2 (different models)."
    public = asked_of(large, data="public", evaluation={**large.summaries[0]["evaluation"], "limit": 7})
    told = "Not joined by lines: tiny-2m-seed0 | tiny-50m-seed0 (Winogender: asked differently in data, limit)."
    assert describe_unjoined([small, public], ["winogender"]) == told
    data = page_data([small, public], Detail())
    assert data["apart"] == told and sorted(data["experiments"]["winogender"]["asked"]) == [0, 1]
    other_data = asked_of(large, data_sha256={"winogender": "f" * 64, "bbq": "e"})
    assert len(set(question_keys([small, other_data], "winogender"))) == 2
    other_seed = asked_of(large, evaluation={**large.summaries[0]["evaluation"], "seed": 5})
    assert describe_unjoined([small, other_seed], ["winogender"]) == ""
    assert describe_unjoined([public, seed1], ["winogender"]) == ""  # of one size: nothing to join


@pytest.mark.parametrize(
    ("options", "metric", "label", "sign", "against"),
    [
        ({}, "gap", "p(admit | Black) - p(admit | white)", "below 0: against Black applicants", "Black applicants"),
        (
            {"admissions_vary": "sex", "admissions_races": ["white"]}, "gap_sex", "p(admit | female) - p(admit | male)",
            "below 0: against women", "women",
        ),
        (
            {"admissions_races": ["Asian", "white"]}, "gap_Asian_white", "p(admit | Asian) - p(admit | white)",
            "below 0: against Asian applicants", "Asian applicants",
        ),
    ],
)  # fmt: skip
def test_the_gap_that_was_measured_is_shown_with_its_own_sign(
    tmp_path: Path, options: dict[str, Any], metric: str, label: str, sign: str, against: str
) -> None:
    training(tmp_path, 3_000_000, 0, (20,), experiments=["admissions"], conditions=["Q", "Q+IF"], limit=30, **options)
    found = gather([tmp_path])
    page = Page(build(found, [])[0].decode())
    shown = page.data["experiments"]["admissions"]
    assert (shown["metric"], shown["label"], shown["sign"]) == (metric, label, sign)
    assert f"of {label}. 0: parity. Negative: discrimination against {against}." in page.text
    others = {"Black applicants", "women", "Asian applicants"} - {against}
    assert not any(f"discrimination against {who}" in page.text for who in others)
    value = next(m["value"] for m in found[0].summaries[0]["metrics"] if (m["name"], m["condition"]) == (metric, "Q"))
    assert f"{value:.4f}" in next(line for line in table(found).splitlines() if " Q " in line)
    cells = page.data["breakdowns"][0]["profiles"]["Q"]
    assert sum(c[2] * c[3] for c in cells) / sum(c[2] for c in cells) == pytest.approx(value * 10_000, abs=1.5)
    assert any(name == metric for _, _, name, _ in page_data(found, Detail("whole"))["metrics"]["keys"])


def test_profiles_of_another_gap_are_not_shown_under_this_label(tmp_path: Path) -> None:
    for params, races in ((2_000_000, ["Black", "white"]), (3_000_000, ["Asian", "white"])):
        training(
            tmp_path, params, 0, (0,), experiments=["admissions"], conditions=["Q"], limit=30, admissions_races=races
        )
    data = page_data(gather([tmp_path]), Detail())
    assert data["experiments"]["admissions"]["metric"] == "gap" and [b["checkpoint"] for b in data["breakdowns"]] == [0]


def test_the_words_of_a_gap() -> None:
    assert main_gap(["p_admit", "gap_Hispanic_white", "gap_sex"]) == "gap_sex" and main_gap(["p_admit"]) is None
    assert describe_gap("gap_Native American_white")[:2] == (
        "p(admit | Native American) - p(admit | white)", "below 0: against Native American applicants",
    )  # fmt: skip
