"""`eval list` and `eval compare`: what is told of folders, and that a difference is the paired effect."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import main
from eval.commands import compare as comparing
from eval.commands import list as listing
from eval.commands.compare import CompareConfig, compare
from eval.config import EvaluationConfig
from eval.errors import InputError
from eval.runner.evaluate import evaluate
from eval.runner.plan import plan
from eval.runner.store import Store
from eval.validation.oracle import Oracle, Preferences

SMALL: dict[str, Any] = {"limit": 60, "orders": 3, "conditions": ["Q", "Q+IF"]}


def ask(folder: Path, preferences: Preferences | None = None, **settings: Any) -> Path:
    config = EvaluationConfig(**{**SMALL, **settings})
    planned = plan(config)
    oracle = Oracle(preferences or Preferences(), 3, planned.questions)
    evaluate(oracle, config, folder, {"model": "some/oracle", "model_params": 0}, planned=planned)
    return folder


def compared(a: Path, b: Path, **settings: Any) -> dict[str, Any]:
    return compare(CompareConfig(a=str(a), b=str(b), **settings))


def change(folder: Path, changed: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Path:
    """Puts every record of a folder through a function; None leaves it out."""
    path = folder / "records.jsonl"
    records = [new for r in Store(folder).read() if (new := changed(r))]
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ask(tmp_path_factory.mktemp("asked") / "a")


@pytest.fixture
def copy(asked: Path, tmp_path: Path) -> Path:
    return shutil.copytree(asked, tmp_path / "b")


def test_the_difference_is_the_paired_effect(asked: Path, copy: Path) -> None:
    """Where B's answers to Q are A's to Q+IF, B - A under Q is the effect of Q+IF in A's summary, to the last digit."""
    instructed = {
        (r["experiment"], r["item"], r["order"]): r["logprobs"] for r in Store(asked).read() if r["condition"] == "Q+IF"
    }
    change(copy, lambda r: r | {"logprobs": instructed[r["experiment"], r["item"], r["order"]]})
    summary = Store(asked).summary()
    assert summary is not None
    effects = {(e["experiment"], e["name"], e["category"]): e for e in summary["effects"]}
    found = compared(asked, copy, metric="all")
    under_q = [m for m in found["metrics"] if m["condition"] == "Q"]
    assert {(m["experiment"], m["name"], m["category"]) for m in under_q} == set(effects)
    for m in under_q:
        e = effects[m["experiment"], m["name"], m["category"]]
        for name in ("value", "low", "high", "p_value", "p_holm", "n_items", "n_clusters", "note"):
            assert m[name] == e[name], (name, m)
        assert (m["value_a"], m["value_b"]) == (e["value_before"], e["value_after"])
    assert all(m["value"] in (0, None) for m in found["metrics"] if m["condition"] == "Q+IF")
    assert found["provenance"] == {} and not found["identical"]
    assert [p["largest"] == 0 for p in found["pairs"]] == [p["condition"] == "Q+IF" for p in found["pairs"]]
    headline = compared(asked, copy)["metrics"]
    assert [m["name"] for m in headline if m["condition"] == "Q"] == [
        "bias_ambig", "bias_ambig_expected_symmetrised", "rho", "gap"
    ]  # fmt: skip
    for m in [*headline, *compared(asked, copy, metric="p_admit")["metrics"]]:
        assert m in found["metrics"]  # Holm's family is the same, whatever is shown


def test_log_probabilities_and_answers(asked: Path, copy: Path) -> None:
    def shifted(r: dict[str, Any]) -> dict[str, Any]:
        if r["experiment"] == "winogender":
            return r | {"logprobs": [r["logprobs"][0] - 50, *r["logprobs"][1:]]}
        return r

    before = [r["logprobs"] for r in Store(asked).read() if (r["experiment"], r["condition"]) == ("winogender", "Q")]
    found = compared(asked, change(copy, shifted))
    (pair,) = [p for p in found["pairs"] if (p["experiment"], p["condition"]) == ("winogender", "Q")]
    assert pair["largest"] == pytest.approx(50) and pair["mean"] == pytest.approx(50 / 3)
    assert pair["changed"] == pytest.approx(sum(x[0] == max(x) for x in before) / len(before)) and pair["changed"] > 0
    assert pair["shared"] == len(before) and pair["only_a"] == pair["only_b"] == 0
    assert all(p["largest"] == 0 for p in found["pairs"] if p["experiment"] != "winogender")


def test_what_is_undefined_in_one_of_both_is_told_of_its_category(asked: Path, copy: Path) -> None:
    """B always says UNKNOWN in Age: nobody is named there, and A's score still has its value."""

    def unknown(r: dict[str, Any]) -> dict[str, Any]:
        if r["experiment"] != "bbq" or r["category"] != "Age":
            return r
        return r | {"logprobs": [0.0 if (j + r["order"]) % 3 == r["unknown"] else -9.0 for j in range(3)]}

    told = compared(asked, change(copy, unknown), metric="all")
    found = {(m["condition"], m["name"], m["category"]): m for m in told["metrics"]}
    age, whole = (found["Q", "bias_ambig", category] for category in ("Age", "all"))
    assert age["value_a"] is not None and (age["value_b"], age["value"]) == (None, None)
    assert whole["value"] == pytest.approx(whole["value_b"] - whole["value_a"])
    text = comparing.text(told)
    assert "bbq, Q, bias_ambig (Age): undefined: no answer" in text and "bbq, Q, bias_ambig: undefined" not in text


def test_numbers_that_mean_little_are_said_of_each(asked: Path, tmp_path: Path) -> None:
    """B reads no context, and only Q is shared."""
    b = ask(tmp_path / "b", Preferences(reads=0.0), conditions=["Q"])
    more = ask(tmp_path / "more", Preferences(reads=0.0))
    told = compared(asked, b)
    assert told["cautions"]["a"] == []
    (line,) = told["cautions"]["b"]
    assert line.startswith("bbq, bias_ambig_expected_symmetrised (Q): accuracy on the disambiguated questions")
    assert f"B: {line}" in comparing.text(told)
    assert compared(more, b)["cautions"] == {"a": [line], "b": [line]}


def test_identical_folders_say_so(asked: Path, copy: Path) -> None:
    found = compared(asked, copy)
    assert found["identical"] and found["remarks"] == []
    assert {(m["value"], m["low"], m["high"], m["p_value"]) for m in found["metrics"]} == {(0, 0, 0, 1)}
    told = comparing.text(found)
    assert "identical: all log-probabilities" in told and "nothing in their provenance differs" in told


def test_what_differs_is_said_first(asked: Path, tmp_path: Path) -> None:
    b = ask(tmp_path / "b", Preferences(stereotype=0.9), experiments=["bbq"], limit=20)
    found = compared(asked, b)
    assert found["provenance"]["evaluation.limit"] == [60, 20]
    assert found["provenance"]["oracle.stereotype"] == [0.4, 0.9]
    assert any("only A has winogender Q, winogender Q+IF, admissions Q" in r for r in found["remarks"])
    assert {m["experiment"] for m in found["metrics"]} == {"bbq"}
    assert all(p["only_a"] > 0 and p["only_b"] == 0 for p in found["pairs"])
    lines = comparing.text(found).splitlines()
    assert lines[0].startswith("A = ") and lines[3].split() == ["differs", "A", "B"]


def test_other_data_words_formats_and_weights(asked: Path, copy: Path) -> None:
    def other(r: dict[str, Any]) -> dict[str, Any]:
        if r["experiment"] == "bbq" and r["item"] == "Age:0":
            return r | {"label": 9}
        if r["experiment"] == "winogender":
            return r | {"prompt_sha256": "x", "format": "paper"}
        return r | {"weight": 7.0} if r["experiment"] == "admissions" else r

    found = compared(asked, change(copy, other))
    remarks = "\n".join(found["remarks"])
    assert "bbq, Q: 3 records are of other data in A than in B and left out (first: item Age:0, label)" in remarks
    assert "winogender, Q: 60 of 60 prompts have other words" in remarks
    assert "winogender, Q: asked in other dialogue formats (oracle and paper)" in remarks
    assert "weights differ (another --limit); A's are taken for both" in remarks
    assert {(m["value"], m["p_value"]) for m in found["metrics"]} == {(0, 1)}
    assert [p["only_b"] for p in found["pairs"] if p["experiment"] == "bbq"] == [3, 3]


def test_what_cannot_be_compared(asked: Path, copy: Path, tmp_path: Path, ended: Callable[..., str]) -> None:
    with pytest.raises(InputError, match="have no record of the same experiment, condition and item"):
        compared(asked, ask(tmp_path / "c", experiments=["bbq"], conditions=["Q+IF-CoT"], cot_limit=2))
    with pytest.raises(InputError, match="seed must be at least 0"):
        CompareConfig(a=str(asked), b=str(asked), seed=-1)
    with pytest.raises(InputError, match="'roh' is none of those that A and B share; did you mean 'rho'"):
        compared(asked, copy, metric="roh")
    assert "holds no results (no provenance.json)" in ended(main, "compare", asked, tmp_path)
    assert "takes two results folders" in ended(main, "compare", asked)
    assert "cannot read" in ended(main, "compare", asked, copy, asked)


def test_a_folder_that_is_being_written_is_compared_as_far_as_it_is(asked: Path, copy: Path) -> None:
    (copy / "summary.json").unlink()
    lines = (copy / "records.jsonl").read_bytes()
    (copy / "records.jsonl").write_bytes(lines[: len(lines) // 3])  # in the middle of a line
    found = compared(asked, copy)
    assert f"{copy} is not complete" in found["remarks"][0]
    assert found["pairs"][0]["shared"] > 0 and not found["identical"]


def test_the_listing(asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "runs"
    shutil.copytree(asked, root / "a")
    shutil.copytree(asked, root / "extended")
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(Oracle, "sample", interrupt)
        ask(root / "extended", conditions=["Q", "Q+IF", "Q+IF+CoT"], cot_limit=4)
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(Oracle, "sample", interrupt)
        ask(root / "begun", conditions=["Q", "Q+IF+CoT"], experiments=["bbq"], cot_limit=4, orders=1)
    for name, text in (("bad", "{"), ("odd", '{"records_version": 3, "planned": {}}'), ("old", '{"evaluation": {}}')):
        (root / name).mkdir()
        (root / name / "provenance.json").write_text(text)
    listed = listing.list_results(root)
    assert [Path(f["folder"]).name for f in listed["results"]] == ["a", "begun", "extended"]
    assert len(listed["warnings"]) == 3 and all("\n" not in line for line in listed["warnings"])
    a, begun, extended = listed["results"]
    assert (a["state"], begun["state"], extended["state"]) == ("complete", "in progress", "being extended")
    assert a["done"] == a["planned"] == len(list(Store(asked).read()))
    assert begun["cells"]["bbq"]["Q"]["done"] == begun["cells"]["bbq"]["Q"]["planned"] > 0
    assert begun["cells"]["bbq"]["Q+IF+CoT"] == {"done": 0, "planned": 4} and begun["metrics"] == []
    summary = Store(asked).summary()
    assert summary is not None
    assert {(m["experiment"], m["condition"], m["name"]) for m in a["metrics"]} == {
        (e, c, n) for e, n in (("bbq", "bias_ambig"), ("winogender", "rho"), ("admissions", "gap"))
        for c in ("Q", "Q+IF")
    }  # fmt: skip
    assert all(m in summary["metrics"] for m in a["metrics"]) and extended["metrics"] == a["metrics"]
    told = listing.text(listed, root)
    first = next(m for m in a["metrics"] if (m["experiment"], m["condition"]) == ("admissions", "Q"))
    assert f"{first['value']:.4f} [{first['low']:.4f}, {first['high']:.4f}]" in told
    assert "in progress" in told and "Q+IF+CoT 0/4" in told


def interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_listing_nothing(tmp_path: Path, ended: Callable[..., str]) -> None:
    assert listing.text(listing.list_results(tmp_path), tmp_path) == f"no results below {tmp_path}"
    assert "is not there" in ended(main, "list", tmp_path / "no")
