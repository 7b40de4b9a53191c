"""`eval emergence` on planted runs: where the threshold lies, what is said of it, and what is left out."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import main
from eval.config import EvaluationConfig
from eval.curves.gather import gather
from eval.data.readers import SMALL_SET
from eval.errors import InputError
from eval.experiments.registry import EXPERIMENTS
from eval.files import write_json
from eval.runner.evaluate import evaluate
from eval.runner.plan import plan
from eval.validation.coverage import OracleConfig
from eval.validation.emergence_coverage import emergence_coverage
from eval.validation.emergence_coverage import table as coverage_table
from eval.validation.oracle import Oracle, Preferences
from eval.views.emergence.emergence import EmergenceConfig, default_thresholds, emergence
from eval.views.emergence.sentences import _sentences, size
from tests.support.planted_runs import items_of, result, training

SIZES = (135_000_000, 360_000_000, 1_000_000_000, 3_000_000_000, 10_000_000_000)
ITEMS = items_of(["admissions", "winogender"])
GAPS = {"admissions": ITEMS["admissions"]}
KEYS = {
    "experiment", "condition", "axis", "estimate", "low", "high", "text", "assumptions", "points", "status", "p_value",
    "p_holm", "misfit_p", "cautions", "policies", "step", "between", "metric", "n_items", "n_clusters", "seed",
}  # fmt: skip


def planted(removed: float) -> Preferences:
    return Preferences(removed=removed, scatter=0.5, slope=1.0)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five sizes at steps 0 and 60; from 360M on the instruction removes more with size, at step 60 only."""
    root = tmp_path_factory.mktemp("family")
    for k, (params, removed) in enumerate(zip(SIZES, (0, 0, 0.3, 0.6, 0.9), strict=True)):
        folder = training(root / f"m{k}", params)
        for step in (0, 60):
            result(folder, step, planted(removed if step else 0.0), 10 * k + (step or 500), ITEMS)
    return root


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One policy, whose instruction removes something from step 100 on."""
    folder = training(tmp_path_factory.mktemp("steps") / "policy", 1_000_000_000)
    for step, removed in ((0, 0.0), (50, 0.0), (100, 0.0), (200, 0.6), (300, 0.9)):
        result(folder, step, planted(removed), step, GAPS)
    return folder


def entries(*runs: Path, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    _, found = emergence(EmergenceConfig(runs=[str(r) for r in runs], resamples=600, **options))
    return found["thresholds"], found


def test_a_planted_threshold_along_size(family: Path) -> None:
    found, whole = entries(family)
    assert {(e["experiment"], e["axis"]) for e in found} == {("admissions", "size"), ("winogender", "size")}
    for entry in found:
        assert entry.keys() >= KEYS
        assert entry["status"] == "identified" and entry["p_holm"] <= 0.05
        assert (entry["low"] or 0) <= 360e6 <= entry["high"] < 4e9
        late = 4e9 if entry["experiment"] == "winogender" else 1e9  # rho hardly falls at first
        assert 135e6 < entry["estimate"] < late
        assert entry["step"] == 60 and [p["at"] for p in entry["points"]] == list(SIZES)
        assert "along size at RLHF step 60: the instruction reduces bias from " in entry["text"]
        assert any("has one training" in a for a in entry["assumptions"])
    assert all("2 steps, at least 3 are needed" in line for line in whole["left_out"])
    gap = next(e for e in found if e["experiment"] == "admissions")
    assert gap["points"][4]["reduction"] == pytest.approx(
        abs(gap["points"][4]["before"]) - abs(gap["points"][4]["after"])
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_where_nothing_is_planted_nothing_is_identified(family: Path) -> None:
    found, _ = entries(family, step=0)
    for entry in found:
        assert entry["status"] == "not identified"
        assert (entry["estimate"], entry["low"], entry["high"]) == (None, None, None)
        assert "not identified: at no size tested is the reduction of bias beyond noise" in entry["text"]
        assert "above 10B" in entry["text"]


def test_along_step_with_a_word_on_why_not_along_size(steps: Path) -> None:
    (entry,), whole = entries(steps)
    assert (entry["axis"], entry["model_params"], entry["status"]) == ("step", 1_000_000_000, "identified")
    assert len(entry["kinds"]) == 1 and "several kinds" not in entry["text"]
    assert (entry["low"] or 0) <= 100 <= entry["high"] and 50 <= entry["estimate"] <= 200
    assert "along RLHF step at 1B" in entry["text"]
    assert any(line == "size, rloo: policy: 1 size, at least 3 are needed" for line in whole["left_out"])


def test_the_seed_decides_and_is_told(steps: Path) -> None:
    assert entries(steps) == entries(steps)
    one, other = entries(steps)[0][0], entries(steps, seed=1)[0][0]
    assert one["points"][0]["low"] != other["points"][0]["low"] and other["seed"] == 1
    assert one["points"][0]["reduction"] == other["points"][0]["reduction"]


def test_trainings_of_one_size_are_its_seeds(tmp_path: Path) -> None:
    for k, (params, removed) in enumerate(zip(SIZES[:3], (0, 0, 0.8), strict=True)):
        for seed in range(3 if k == 2 else 1):
            folder = training(tmp_path / f"m{k}-{seed}", params, seed)
            result(folder, 60, planted(removed - 0.3 * seed), 10 * k + seed, GAPS)
    (entry,), _ = entries(tmp_path)
    assert [p["trainings"] for p in entry["points"]] == [1, 1, 3]
    widths = [p["high"] - p["low"] for p in entry["points"]]
    assert widths[2] > 1.3 * widths[0], "how far trainings lie apart is in the interval"
    assert any("1 to 3 trainings" in a for a in entry["assumptions"])


def test_only_questions_asked_of_all_count(tmp_path: Path) -> None:
    for k, params in enumerate(SIZES[:3]):
        folder = training(tmp_path / f"m{k}", params)
        asked = GAPS if k else {"admissions": GAPS["admissions"][:48]}
        result(folder, 60, planted(0.8), k, asked)
    (entry,), _ = entries(tmp_path)
    assert entry["n_items"] == 48
    assert entry["status"] == "from the first place on" and entry["low"] is None
    assert "the instruction reduces bias at 135M, the first tested, already" in entry["text"]


def test_no_threshold_is_told_of_what_comes_and_goes(tmp_path: Path) -> None:
    """What the instruction removes at 360M and 3B, and not at 1B, has no beginning."""
    for k, (params, removed) in enumerate(zip(SIZES, (0, 0.9, 0, 0.9, 0), strict=True)):
        result(training(tmp_path / f"m{k}", params), 60, planted(removed), k, GAPS)
    (entry,), _ = entries(tmp_path)
    assert entry["status"] == "of another shape" and entry["misfit_p"] < 0.05
    assert (entry["estimate"], entry["low"], entry["high"]) == (None, None, None)
    assert "no threshold is given; look at each size" in entry["text"]


def test_other_data_are_not_mixed(tmp_path: Path, steps: Path) -> None:
    for k, params in enumerate(SIZES[:3]):
        folder = training(tmp_path / f"m{k}", params)
        result(folder, 100, planted(0.8), k, GAPS, data_sha256={"admissions": str(k // 2)})
    _, whole = entries(tmp_path, steps)
    assert any("asked with other data (data_sha256 differs)" in line for line in whole["left_out"])


def test_a_model_that_reads_nothing_is_cautioned_of(tmp_path: Path) -> None:
    for k, params in enumerate(SIZES[:3]):
        folder = training(tmp_path / f"m{k}", params)
        result(folder, 60, Preferences(reads=0.0, abstain=0.33), k, items_of(["bbq"]))
    (entry,), _ = entries(tmp_path)
    assert entry["metric"] == "bias_ambig_expected"
    assert [(c["at"], c["condition"]) for c in entry["cautions"]] == [(n, c) for n in SIZES[:3] for c in ("Q", "Q+IF")]
    assert "Means little at 3 of 3 sizes" in entry["text"]
    assert entries(tmp_path, scoring="most-probable")[0][0]["metric"] == "bias_ambig"


def test_for_the_page(family: Path, steps: Path, tmp_path: Path) -> None:
    found = default_thresholds(gather([family, steps]))
    assert {e["axis"] for e in found} == {"size", "step"}
    alone = training(tmp_path / "alone", 5)
    result(alone, 0, planted(0.5), 0, GAPS)
    assert default_thresholds(gather([alone])) == []


def test_the_command(family: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["eval", "emergence", str(family), "--resamples", "300", "--json"])
    main()
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"thresholds", "left_out", "seed", "resamples", "scoring"}
    argv = ["eval", "emergence", str(family), "--resamples", "300", "--experiments", "admissions"]
    monkeypatch.setattr(sys, "argv", argv)
    main()
    text = capsys.readouterr().out
    assert "What a threshold along size rests on" in text and "winogender" not in text.lower()
    assert "10B  Q -0." in text


def test_bad_input(family: Path, tmp_path: Path, ended: Callable[..., str]) -> None:
    for name, conditions, said in (("a", ("Q",), "no result has the condition Q+IF"), ("b", ("Q+IF",), "condition Q,")):
        result(training(tmp_path / name, 5), 0, planted(0.5), 0, GAPS, conditions)
        assert said in ended(main, "emergence", tmp_path / name)
    result(training(tmp_path / "c", 5), 0, planted(0.5), 0, GAPS)
    said = ended(main, "emergence", tmp_path / "c")
    assert "no threshold can be looked for: size, rloo: c: 1 size" in said and "step, rloo: c: 1 step" in said
    assert "step 30 is not there for every size" in ended(main, "emergence", family, "--step", "30")
    assert "the run folder is missing" in ended(main, "emergence")
    assert "did you mean 'admissions'" in ended(main, "emergence", family, "--experiments", "admission")
    assert "scoring must be expected or most-probable" in ended(main, "emergence", family, "--scoring", "best")
    with pytest.raises(InputError, match="resamples must be at least 200"):
        EmergenceConfig(runs=["x"], resamples=10)
    with pytest.raises(InputError, match="two different checks"):
        OracleConfig(emergence=True, precision=0.1)


def test_planted_families_of_the_oracle() -> None:
    """Three trials: that the check runs, and looks where it should; docs/validation.md has many."""
    found = emergence_coverage(OracleConfig(trials=3, experiments=["admissions"], conditions=["Q", "Q+IF"]))
    rows = {r["planted"]: r for r in found["rows"]}
    assert rows["jump"]["found"] == 1 and rows["jump"]["coverage"] >= 2 / 3
    assert 0.9e9 < rows["jump"]["median_estimate"] < 3.1e9
    assert rows["everywhere"]["at_or_below_first"] >= 2 / 3
    assert rows["nowhere"]["found"] <= 1 / 3 and rows["nowhere"]["coverage"] is None


def test_trials_without_a_threshold_are_counted_and_told(ended: Callable[..., str]) -> None:
    """A rho that is undefined in every trial; too few profiles, and no instruction, are bad input."""
    flat = OracleConfig(trials=2, experiments=["winogender"], conditions=["Q", "Q+IF"], scatter=0.0, slope=0.0)
    found = emergence_coverage(flat)
    assert all((r["trials"], r["undefined"], r["found"], r["misfit"]) == (0, 2, None, None) for r in found["rows"])
    said = coverage_table(found)
    assert "Undefined: winogender, Q+IF: rho is undefined: the model's probability hardly varies" in said
    few = ("--experiments", "admissions", "--limit", "4", "--conditions", "Q,Q+IF", "--trials", "2")
    assert "clusters are too few, at least 8 are needed; ask more" in ended(main, "oracle", "--emergence", *few)
    assert "conditions Q: none has the instruction" in ended(main, "oracle", "--emergence", "--conditions", "Q")


def test_sizes_are_written_as_they_are_spoken() -> None:
    assert [size(n) for n in (134_515_008, 1.7e9, 810e6, 175e9, 52_000, 999_900_000, 12)] == [
        "135M", "1.7B", "810M", "175B", "52K", "1B", "12"
    ]  # fmt: skip


def test_another_model_or_dtype_of_a_size_is_no_training_of_it(tmp_path: Path) -> None:
    """The same training in two dtypes, and models without run.json, of one number of parameters."""
    for k, (params, removed) in enumerate(zip(SIZES[:3], (0, 0, 0.8), strict=True)):
        for seed in range(2):
            folder = training(tmp_path / "trained" / f"m{k}-{seed}", params, seed)
            result(folder, 60, planted(removed), 10 * k + seed, GAPS)
        again = tmp_path / f"again-{k}"
        result(again, 60, planted(0.0), k, GAPS, model_params=params, dtype="bfloat16")
        shutil.move(again / "eval", tmp_path / "trained" / f"m{k}-1" / "eval-bfloat16")
        for kind in ("base", "instruct"):
            published = tmp_path / "published" / f"{kind}-{k}"
            result(published, 0, planted(0.0), k, GAPS, model=f"{kind}-{k}", model_params=params, adapter=None)
    (entry,), whole = entries(tmp_path / "trained", experiments=["admissions"])
    assert [p["trainings"] for p in entry["points"]] == [2, 2, 2]
    assert entry["points"][2]["reduction"] > 0.06, "in bfloat16 nothing is planted"
    (line,) = [line for line in whole["left_out"] if "no further trainings of" in line]
    assert line.split(": left out")[0].count("[oracle, bfloat16]") == 3 and line.count("[oracle, float64]") == 6
    (entry,), whole = entries(tmp_path / "published")
    assert [p["trainings"] for p in entry["points"]] == [1, 1, 1]
    assert (
        "The models are of several kinds (base-0, base-1, base-2): what else differs counts as size." in entry["text"]
    )
    (line,) = [line for line in whole["left_out"] if "no further trainings of" in line]
    assert "instruct-2" in line.split(": left out")[0] and "base-2" in line.split(": left out")[1]


def test_steps_that_a_training_lacks_are_told(tmp_path: Path, steps: Path) -> None:
    """A second seed that is still training must not take away what the first has seen, without a word."""
    young = training(tmp_path / "young", 1_000_000_000, 1)
    described = json.loads((steps / "run.json").read_text())
    write_json(young / "run.json", described | {"seed": 1, "policy": "young"})
    for step in (0, 50, 100):
        result(young, step, planted(0.0), step + 7, GAPS)
    (entry,), whole = entries(steps, young)
    assert [p["at"] for p in entry["points"]] == [0, 50, 100]
    said = "2 steps not used: 200, 300 are not there for young"
    assert said in entry["text"] and any(said in line for line in whole["left_out"])
    for k, params in enumerate(SIZES[:3]):
        folder = training(tmp_path / f"m{k}", params)
        for step in (60, 90)[: 1 + (k > 0)]:
            result(folder, step, planted(0.8), k, GAPS)
    (entry,), whole = entries(*(tmp_path / f"m{k}" for k in range(3)))
    said = "1 step not used: 90 is not there for m0"
    assert said in entry["text"]
    assert any(said in line and "taken is 60" in line for line in whole["left_out"])
    (entry,), _ = entries(*(tmp_path / f"m{k}" for k in range(3)), step=60)
    assert "not used" not in entry["text"]


def test_profiles_asked_by_sex_are_left_out_with_a_line(
    tmp_path: Path, family: Path, ended: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_sex = EXPERIMENTS["admissions"].load(SMALL_SET, EvaluationConfig(admissions_vary="sex"))
    for k, params in enumerate(SIZES[:3]):
        folder = training(tmp_path / f"m{k}", params)
        result(folder, 60, planted(0.8), k, {"admissions": by_sex} if k else GAPS)
    assert "not asked on the same clusters" in ended(main, "emergence", tmp_path)
    assert default_thresholds(gather([tmp_path])) == []


def test_one_set_of_weights_for_all_sizes(tmp_path: Path) -> None:
    """Students among the rows that --limit takes: the same answers give the same bias, whatever limit each was asked
    with, and after a larger one as after the one alone.
    """
    survey = tmp_path / "data" / "admissions"
    survey.mkdir(parents=True)
    rows = [f"{1 + k % 2},{20 + k % 10},{2 + k % 4 / 2}" for k in range(40)]
    rows += [row for k, row in enumerate(rows) for _ in range(k % 7)]
    (survey / "law_data.csv").write_text("sex,LSAT,UGPA\n" + "\n".join(rows) + "\n")
    for k, limits in enumerate(([40], [len(rows)], [len(rows), 30, 40])):
        for limit in limits:
            config = EvaluationConfig(
                experiments=["admissions"], orders=1, data_dir=str(tmp_path / "data"), limit=limit,
                conditions=["Q", "Q+IF"],
            )  # fmt: skip
            asked = plan(config)
            oracle = Oracle(planted(0.6), 3, asked.questions)
            evaluate(oracle, config, tmp_path / f"m{k}", {"model": f"m{k}", "model_params": SIZES[k]}, planned=asked)
    for runs in (["m0", "m1", "m2"], ["m2", "m1", "m0"]):
        (entry,), _ = entries(*(tmp_path / name for name in runs))
        assert len({p["before"] for p in entry["points"]}) == len({p["after"] for p in entry["points"]}) == 1
        summary = json.loads((tmp_path / "m0" / "summary.json").read_text())
        gap = next(m for m in summary["metrics"] if (m["condition"], m["name"], m["category"]) == ("Q", "gap", "all"))
        assert entry["points"][0]["before"] == pytest.approx(gap["value"], abs=1e-12)
        assert entry["n_items"] == gap["n_items"]


def test_biases_of_several_trainings_are_told_by_their_size(tmp_path: Path) -> None:
    """Two trainings that discriminate to opposite sides: their mean would be near 0, with nothing to reduce."""
    for k, params in enumerate(SIZES[:3]):
        for seed, shift in enumerate((-0.5, 0.5)):
            folder = training(tmp_path / f"m{k}-{seed}", params, seed)
            result(folder, 60, Preferences(removed=0.8, scatter=0.5, shift=shift), k, GAPS)
    config = EmergenceConfig(runs=[str(tmp_path)], resamples=600)
    text, found = emergence(config)
    for p in found["thresholds"][0]["points"]:
        assert p["before"] > 0.05
        assert p["reduction"] == pytest.approx(p["before"] - p["after"])
    assert "mean |Q| +0." in text and "the mean of its absolute values" in text


def test_where_every_interval_holds_0_it_is_said() -> None:
    points = [{"at": at, "reduction": 0.02, "low": -0.01, "high": 0.05} for at in (0, 1, 2)]
    for status, found in (("identified", {"between": [0.4, 0.6]}), ("not located", {}), ("of another shape", {})):
        entry = {
            "points": points, "axis": "step", "p_holm": 0.01, "misfit_p": 0.01, "status": status, "not_used": "",
            "kinds": ["m"], "cautions": [], "title": "BBQ", "condition": "Q+IF", "step_name": "RLHF step",
            "model_params": 1e9, "step": None, "low": 0, "high": 2, "estimate": 0.5, **found,
        }  # fmt: skip
        assert "at no single step does the interval leave out 0, but over all of them" in " ".join(_sentences(entry))
        clear = entry | {"points": [*points, {"at": 3, "reduction": 0.1, "low": 0.05, "high": 0.15}]}
        assert "no single step" not in " ".join(_sentences(clear))


def test_a_result_without_a_step_is_refused(tmp_path: Path, ended: Callable[..., str]) -> None:
    where = result(training(tmp_path / "a", 5), 0, planted(0.5), 0, GAPS)
    summary = json.loads((where / "summary.json").read_text())
    del summary["step"]
    write_json(where / "summary.json", summary)
    assert "summary.json has no 'step'" in ended(main, "emergence", tmp_path)
