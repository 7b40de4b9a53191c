"""python -m reward report: the model card, its figures, and runs that make no learning curve."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from matplotlib import pyplot as plt

from eval.files import write_json
from eval.models.checkpoints import weights_id
from reward import figures
from reward.__main__ import main
from reward.card import MARK, USE, ReportConfig, report, table
from reward.runs import limitations
from reward.scoring import load_reward_model
from tests.support.reward_runs import made, probe_json, reward_json, share

Ended = Callable[..., str]


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """The card's run first, then those of its learning curve, in no order."""
    return [made(tmp_path / f"r{n}", n, a) for n, a in ((2000, 0.62), (250, 0.53), (1000, 0.59), (500, 0.56))]


def test_the_card_has_the_numbers(runs: list[Path]) -> None:
    write_json(runs[0] / "probe" / "probe.json", probe_json())
    result = report(ReportConfig([str(r) for r in runs]))
    text = (runs[0] / "model" / "README.md").read_text()
    found = ModelCard(text)
    assert found.data.to_dict() == {
        "library_name": "transformers", "pipeline_tag": "text-classification",
        "tags": ["reward-model", "trl", "selfcorrect"],
    }  # fmt: skip
    for line in (
        "| all | 0.620 | [0.572, 0.668] | 400 | 380 | 2 |",
        "| helpful | 0.590 | [0.494, 0.686] | 100 | 90 | 0 |",
        "| the longer answer is worse | 0.680 | [0.617, 0.743] | 210 | 210 | 0 |",
        "| unreadable pairs | chosen equals rejected: 3 |",
        "| left out | training: longer than max_length: 7 |",
        "| by subset | harmless: 1900; helpful: 100 |",
        "| training | 1200 |",
        "| 1,000 | 0.590 | [0.542, 0.638] |",
        "| Age | older people (+0.050) | younger people (-0.050) | 0.100 | 0.5000 | 1.0000 |",
        "accelerate launch -m reward.train --config reward.yaml --max_pairs 2000",
    ):
        assert line in text, line
    assert [p["pairs"] for p in result["learning_curve"]] == [250, 500, 1000, 2000]
    assert "0.620     [0.572, 0.668]" in table(result)
    for path in result["files"][1:]:
        assert Path(path).read_bytes().startswith(b"\x89PNG") and f"(figures/{Path(path).name})" in text
    assert {Path(p).stem for p in result["files"][1:]} == {"calibration", "length_bias", "learning_curve", "probe"}


def test_one_run_without_a_probe(tmp_path: Path, monkeypatch, capfd) -> None:
    run = made(tmp_path / "r", 300, 0.52, base_model="someone/base", base_weights="hub:12ab")
    monkeypatch.setattr(sys, "argv", ["reward", "report", str(run), "--json", "--output", str(tmp_path / "card")])
    main()
    told = json.loads(capfd.readouterr().out)
    assert [Path(f).name for f in told["files"]] == ["README.md", "calibration.png", "length_bias.png"]
    text = (tmp_path / "card" / "README.md").read_text()
    assert ModelCard(text).data.to_dict()["base_model"] == "someone/base"
    assert f"python -m reward probe --model {run / 'model'}" in text and "## Learning curve" not in text
    assert any("cannot be distinguished from guessing" in s for s in told["limitations"])
    assert not (run / "model" / "README.md").exists()


def test_written_anew_but_never_over_a_card_of_someone_else(runs: list[Path], ended: Ended) -> None:
    for _ in range(2):
        report(ReportConfig([str(runs[0])]))
    path = runs[0] / "model" / "README.md"
    path.write_text(path.read_text().replace(MARK, ""))
    assert "was not written by reward report" in ended(main, "report", runs[0])
    assert MARK not in path.read_text()


def test_runs_that_make_no_learning_curve(runs: list[Path], tmp_path: Path, ended: Ended) -> None:
    other = made(tmp_path / "other", 700, 0.6, held_out_sha256="00")
    assert "their held_out_sha256 differs (56ef, 00)" in ended(main, "report", runs[0], other)
    based = made(tmp_path / "based", 700, 0.6, base_weights="sha256:00")
    assert "their base_weights differs" in ended(main, "report", runs[0], based)
    again = made(tmp_path / "again", 2000, 0.6)
    assert "both trained on 2000 pairs" in ended(main, "report", *runs, again)
    assert "given twice" in ended(main, "report", runs[0], runs[0])
    settings = reward_json(700, 0.6)["settings"] | {"learning_rate": 2e-4}
    faster = made(tmp_path / "faster", 700, 0.6, settings=settings)
    (remark,) = report(ReportConfig([str(runs[0]), str(faster)]))["remarks"]
    assert remark.endswith("differ also in learning_rate: 0.0002 for 700, 0.0001 for 2000 pairs")
    assert remark in (runs[0] / "model" / "README.md").read_text()


def test_what_is_no_run(tmp_path: Path, tiny_reward: Path, ended: Ended) -> None:
    assert "takes one run or several" in ended(main, "report")
    assert "is not there" in ended(main, "report", tmp_path / "none")
    (tmp_path / "begun").mkdir()
    assert "has no reward.json: no finished run" in ended(main, "report", tmp_path / "begun")
    old = made(tmp_path / "old", 300, 0.6)
    write_json(old / "reward.json", {**reward_json(300, 0.6), "accuracy": 0.6})
    assert "written by an earlier selfcorrect" in ended(main, "report", old)
    bare = made(tmp_path / "bare", 300, 0.6)
    (bare / "model").rmdir()
    assert "give --output a folder" in ended(main, "report", bare)
    (bare / "model").symlink_to(tiny_reward)
    write_json(bare / "probe" / "probe.json", probe_json("sha256:00"))
    assert "is of other weights" in ended(main, "report", bare)
    write_json(bare / "probe" / "probe.json", probe_json(weights_id(str(tiny_reward))))
    assert report(ReportConfig([str(bare)], str(tmp_path / "card")))["probe"]


def test_limitations_follow_from_the_numbers() -> None:
    fine = reward_json(2000, 0.7)
    fine["length_bias"] |= {"longer_is_worse": share(0.7, 200), "longer_is_better": share(0.69, 200)}
    assert len(limitations(fine, probe_json())) == 2
    long = reward_json(2000, 0.6)
    long["length_bias"] |= {
        "longer_is_worse": share(0.4, 200), "longer_is_better": share(0.8, 200), "always_shorter": share(0.38, 400),
    }  # fmt: skip
    said = " ".join(limitations(long, None))
    assert "Choosing the longer answer, without reading it, is right in 0.620" in said
    assert "It leans to the longer answer" in said and "prefers one group" in said


def test_figures_show_what_they_are_given() -> None:
    axes: Any  # matplotlib's types say less than what is there
    run = reward_json(2000, 0.62)
    curve = [{"run": str(n), "pairs": n, "accuracy": share(a, 400)} for n, a in ((250, 0.53), (2000, 0.62))]
    (axes,) = figures.learning_curve(curve, 0.5375).axes
    assert axes.get_xscale() == "log" and axes.get_ylim()[0] <= 0.5
    assert axes.lines[2].get_xydata().tolist() == [[250, 0.53], [2000, 0.62]]
    assert [line.get_ydata()[0] for line in axes.lines[:2]] == [0.5, 0.5375]
    (axes,) = figures.reliability(run["calibration"]).axes
    drawn = [c.lines[0].get_xydata()[0].tolist() for c in axes.containers]
    assert drawn == [[b["confidence"], b["accuracy"]] for b in run["calibration"]["bins"]]
    empty = {"value": None, "low": None, "high": None, "n_pairs": 0, "n_prompts": 0, "ties": 0, "note": "no pairs"}
    run["length_bias"]["same_length"] = empty
    (axes,) = figures.length_bias(run).axes
    assert len(axes.get_yticks()) == 4 and axes.get_xlim() == (0, 1)
    probe = probe_json()
    probe["dimensions"][0]["groups"][0] |= {"low": None, "high": None}
    (axes,) = figures.probe(probe["dimensions"]).axes
    assert len(axes.containers) == sum(len(d["groups"]) for d in probe["dimensions"])
    plt.close("all")


def test_the_card_s_code_gives_the_score(tiny_reward: Path, monkeypatch) -> None:
    monkeypatch.chdir(tiny_reward)
    names: dict[str, object] = {}
    exec(USE.partition("```python\n")[2].partition("```")[0], names)
    (expected,) = load_reward_model(".").scores([names["dialogue"]])  # pyright: ignore[reportArgumentType]
    assert names["score"] == pytest.approx(expected, abs=1e-5)
    assert isinstance(names["score"], float)
