"""Figures: what does not belong together is neither averaged nor joined, and what is not drawn is said."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from eval.config import EvaluationConfig
from eval.curves.gather import Curve, find, gather
from eval.files import write_json
from eval.validation.oracle import Preferences
from eval.views.figures.captions import paragraphs
from eval.views.figures.cells import missing, model_name
from eval.views.figures.figures import FiguresConfig, draw
from eval.views.figures.frame import Drawn
from eval.views.page import text as page_text
from tests.support.oracle_runs import oracle_run

SMALL, LARGE = 135_000_000, 410_000_000
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of one training."""
    config = EvaluationConfig(experiments=["winogender", "admissions"], conditions=["Q", "Q+IF"], limit=40)
    planted = [(step, Preferences(slope=0.01 * (3 + step / 30), removed=0.5)) for step in (0, 30, 60)]
    return oracle_run(tmp_path_factory.mktemp("base") / "rloo", SMALL, planted, config)


@pytest.fixture
def made(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a run of the results of `base` below tmp_path: with other fields, and other steps (of `base`: own)."""

    def make(
        name: str, steps: dict[int, int] | None = None, edit: Edit = lambda s: None, described: bool = True,
        algorithm: str = "rloo", seed: int = 0, **fields: Any,
    ) -> Path:  # fmt: skip
        for step, own in (steps or {0: 0, 30: 30, 60: 60}).items():
            summary = json.loads((base / f"eval/step-{step:06d}/summary.json").read_text()) | {"step": own} | fields
            edit(summary)
            write_json(tmp_path / name / f"eval/step-{own:06d}/summary.json", summary)
        run = {"policy": name, "algorithm": algorithm, "model_params": SMALL, "seed": seed}
        run |= {k: v for k, v in fields.items() if k in ("model", "model_params")}
        if described:
            write_json(tmp_path / name / "run.json", run)
        return tmp_path / name

    return make


@pytest.mark.parametrize(
    ("model", "told"), [("/a/runs/sft-s/model", "sft-s"), ("/a/one-135m", "one-135m"), ("lab/one-135m", "lab/one-135m")]
)
def test_a_model_in_a_folder_has_the_name_of_its_stage(model: str, told: str) -> None:
    assert model_name(Curve("c", Path("c"), {"model": model}, ())) == told


def asked_otherwise(summary: dict[str, Any]) -> None:
    """As if of other data, with other numbers."""
    summary["data"], summary["data_sha256"] = "public", dict.fromkeys(summary["data_sha256"], "f" * 64)
    for m in summary["metrics"]:
        m.update({k: m[k] + 0.1 for k in ("value", "low", "high") if m[k] is not None})


def without_limit(summary: dict[str, Any]) -> None:
    summary["evaluation"] = {**summary["evaluation"], "limit": None}


def drawn_of(folder: Path, **options: Any) -> dict[int, Drawn]:
    found = draw(gather([folder]), FiguresConfig(runs=[str(folder)], **options))
    return {d.number: d for d in found}


def rho(run: Path, step: int, condition: str = "Q") -> float:
    summary = json.loads((run / f"eval/step-{step:06d}/summary.json").read_text())
    metric = find(summary, "winogender", condition, "rho")
    assert metric is not None
    return metric["value"]


def winogender(drawn: Drawn) -> Axes:
    return drawn.figure.axes[1]


def lines(axes: Axes, label: str) -> list[Line2D]:
    return [ln for ln in axes.lines if str(ln.get_label()) == label]


def ys(axes: Axes, label: str) -> list[float]:
    """Of all lines with that label, NaN left out."""
    found = [np.asarray(ln.get_ydata(), dtype=float) for ln in lines(axes, label)]
    return [y for y in np.concatenate([*found, np.array([])]).tolist() if not math.isnan(y)]


def xs(axes: Axes, label: str) -> list[float]:
    (found,) = lines(axes, label)
    gap = np.isnan(np.asarray(found.get_ydata(), dtype=float))
    return [math.nan if g else x for x, g in zip(np.asarray(found.get_xdata(), dtype=float).tolist(), gap, strict=True)]


def ranges(axes: Axes) -> list[Any]:
    """Bands from the least to the greatest policy that cover anything."""
    return [c for c in axes.collections if str(c.get_label()).startswith("_range") and c.get_paths()]


def said(drawn: Drawn, *words: str) -> bool:
    return any(all(w in r for w in words) for r in drawn.remarks)


def test_seeds_at_other_steps_have_no_mean(made: Callable[..., Path], tmp_path: Path) -> None:
    one, other = made("one"), made("other", {0: 0}, seed=1)
    found = drawn_of(tmp_path, only=["1,2,5"])
    axes = winogender(found[1])
    assert rho(one, 60) != rho(other, 0)
    assert ys(axes, "Q") == [] and ys(axes, "_filled Q") == []
    assert sorted(ys(axes, "_filled policy Q")) == pytest.approx(sorted([rho(one, 60), rho(other, 0)]))
    assert said(found[1], "Winogender", "no mean of one at step 60, other at step 0: not at the same step")
    assert said(found[2], "not drawn against the step: other (one step only)")
    q = next(a for a in found[5].figure.axes if a.get_title() == "Winogender: Q")
    assert xs(q, str(SMALL))[0] == 0 and all(math.isnan(x) for x in xs(q, str(SMALL))[1:])  # of one seed only there
    assert {rho(one, 30), rho(one, 60)} < set(ys(q, f"_filled {SMALL}"))


def test_seeds_at_one_step_have_a_mean(made: Callable[..., Path], tmp_path: Path) -> None:
    one, other = made("one"), made("other", {0: 0, 30: 60, 60: 30}, seed=1)
    found = drawn_of(tmp_path, only=["1,2"])
    assert ys(winogender(found[1]), "Q") == pytest.approx([(rho(one, 60) + rho(other, 60)) / 2])
    assert len(ys(winogender(found[2]), "Q")) == 3 and ranges(winogender(found[2]))
    assert not said(found[1], "no mean") and not said(found[2], "neither")


def test_seeds_that_were_asked_otherwise_have_neither_mean_nor_band(made: Callable[..., Path], tmp_path: Path) -> None:
    one, other = made("one"), made("other", edit=asked_otherwise, seed=1)
    found = drawn_of(tmp_path, only=["1,2,5,6"])
    assert ys(winogender(found[1]), "Q") == []
    assert said(found[1], "no mean of one at step 60, other at step 60: not asked the same (data, data_sha256)")
    axes = winogender(found[2])
    assert ys(axes, "Q") == [] and not ranges(axes)
    for run in (one, other):
        assert ys(axes, f"_Q: {run.name}") == pytest.approx([rho(run, s) for s in (0, 30, 60)])
    assert said(
        found[2],
        "Winogender",
        "neither mean nor band of one, other at steps 0, 30, 60: not asked the same (data, data_sha256)",
    )
    q = next(a for a in found[5].figure.axes if a.get_title() == "Winogender: Q")
    assert ys(q, str(SMALL)) == [] and len(ys(q, f"_filled {SMALL}")) == 6


def test_a_training_of_which_one_checkpoint_was_asked_otherwise_stays_one_policy(
    made: Callable[..., Path], tmp_path: Path
) -> None:
    run = made("run", edit=lambda s: without_limit(s) if s["step"] == 60 else None)
    assert sorted(c.name for c in gather([run])) == ["run (limit 40)", "run (limit all)"]
    found = drawn_of(tmp_path, only=["1,2"])
    axes = winogender(found[2])
    assert ys(axes, "Q") == pytest.approx([rho(run, s) for s in (0, 30, 60)])
    at = xs(axes, "Q")
    assert [at[0], at[1], at[3]] == [0, 30, 60] and math.isnan(at[2])
    for band in axes.collections:
        for path in band.get_paths():
            across = np.asarray(path.vertices)[:, 0]
            assert not across.min() < 45 < across.max()
    assert said(found[2], "Winogender", "the line of run breaks between steps 30 and 60: not asked the same (limit)")
    assert ys(winogender(found[1]), "Q") == [rho(run, 60)] and not said(found[1], "several policies")


def test_two_ways_of_asking_one_checkpoint_stay_apart(made: Callable[..., Path], tmp_path: Path) -> None:
    made("run", edit=without_limit).joinpath("eval").rename(tmp_path / "more")
    (tmp_path / "more").rename(made("run") / "more")
    found = drawn_of(tmp_path, only=["2"])[2]
    assert said(
        found, "neither mean nor band of run (limit 40), run (limit all) at steps 0, 30, 60: not asked the same"
    )
    assert ys(winogender(found), "Q") == []


def test_what_was_not_asked_of_a_checkpoint_is_missing(made: Callable[..., Path], tmp_path: Path) -> None:
    """An extended folder whose last command asked one experiment only."""

    def edit(s: dict[str, Any]) -> None:
        if s["step"] == 60:
            s["evaluation"] = {**s["evaluation"], "experiments": ["winogender"]}
            s["data_sha256"] = {"winogender": s["data_sha256"]["winogender"]}
            s["metrics"] = [m for m in s["metrics"] if m["experiment"] == "winogender"]

    made("run", edit=edit)
    found = drawn_of(tmp_path, only=["2"])[2]
    assert xs(winogender(found), "Q") == [0, 30, 60]
    assert lines(found.figure.axes[2], "_not evaluated: Q")[0].get_xdata() == [60]


def external(name: str, made: Callable[..., Path], model: str, params: int, **more: Any) -> Path:
    fields = {"model": model, "model_params": params, "step_name": "training step", "revision": name}
    return made(name, described=False, **fields, **more)


def test_models_of_other_kinds_are_not_joined(made: Callable[..., Path], tmp_path: Path) -> None:
    for name, model, params in (
        ("a", "EleutherAI/pythia-70m", 70_000_000), ("b", "HuggingFaceTB/SmolLM2-135M", SMALL),
        ("c", "EleutherAI/pythia-410m", LARGE),
    ):  # fmt: skip
        external(name, made, model, params, steps={0: 0})
    found = drawn_of(tmp_path, only=["1"])[1]
    joined = [np.asarray(ln.get_xdata()).round(-6).tolist() for ln in lines(winogender(found), "Q")]
    assert joined == [[70_000_000, LARGE], [SMALL]]
    assert said(found, "lines apart for pythia (no RLHF run of ours): 70M, 410M; SmolLM2 (no RLHF run of ours): 135M")


def test_trainings_of_other_kinds_are_not_joined_and_stages_of_one_ladder_are(
    made: Callable[..., Path], tmp_path: Path
) -> None:
    sizes = (("s", 3_000_000), ("m", 7_000_000), ("l", 17_000_000))
    for name, params in sizes:
        made(name, model=f"runs/sft-{name}/model", model_params=params)
    made("other", model="lab/else-30m", model_params=30_000_000)
    axes = winogender(drawn_of(tmp_path, only=["1"])[1])
    joined = [np.asarray(ln.get_xdata()).round(-5).tolist() for ln in lines(axes, "Q")]
    assert joined == [[params for _, params in sizes], [30_000_000]]


def test_steps_of_another_kind_do_not_stand_on_the_axis_of_rlhf(made: Callable[..., Path], tmp_path: Path) -> None:
    """Neither a training before RLHF of the same size, nor the revisions of a larger model."""
    made("rlhf", model="lab/one-135m")
    made("before", {0: 0, 30: 40}, algorithm="sft", model="lab/one-135m", step_name="training step")
    external("larger", made, "lab/other-410m", LARGE, steps={0: 1000, 30: 64000})
    found = drawn_of(tmp_path, only=["2,6"])
    for number, axes in ((2, found[2].figure.axes[1]), (6, found[6].figure.axes[1])):
        assert number == 6 or xs(axes, "Q") == [0, 30, 60]
        assert said(found[number], "larger, but not drawn against the step: eval (training step)")
        assert said(found[number], "not drawn against the step: before (training step)")
    assert winogender(found[2]).get_xlabel().startswith("RLHF step") and found[2].title == "Bias against RLHF step"
    asked = drawn_of(tmp_path, only=["2"], model="one-135m")[2]
    assert xs(winogender(asked), "Q") == [0, 30, 60] and said(asked, "before (training step)")


def test_steps_of_another_kind_have_their_own_name(made: Callable[..., Path], tmp_path: Path) -> None:
    """Where there is no RLHF run."""
    external("revisions", made, "lab/other-410m", LARGE, steps={0: 1000, 30: 64000})
    found = drawn_of(tmp_path, only=["2"])[2]
    assert found.title == "Bias against training step" and found.description.startswith(
        "Bias against the training step"
    )
    assert winogender(found).get_xlabel().startswith("training step")


def test_an_evaluation_that_was_not_finished_is_marked(base: Path, made: Callable[..., Path], tmp_path: Path) -> None:
    run = made("run", {0: 0, 60: 60})
    killed = json.loads((base / "eval/step-000030/provenance.json").read_text())
    write_json(run / "eval/step-000030/provenance.json", killed)
    write_json(run / "checkpoint-90/policy.json", {"model": "oracle", "rlhf_step": 90})
    write_json(run / "checkpoint-60/policy.json", {"model": "oracle", "rlhf_step": 60})
    (run / "checkpoint-120").mkdir()  # not complete
    found = drawn_of(tmp_path, only=["1,2,4"])
    axes = winogender(found[2])
    at = xs(axes, "Q")
    assert [x for x in at if not math.isnan(x)] == [0, 60] and math.isnan(at[1])
    assert np.asarray(lines(axes, "_not evaluated: Q")[0].get_xdata()).tolist() == [30, 90]
    told = ["run: evaluation begun and not finished at step 30", "run: not evaluated at step 90"]
    assert [line for line in missing(found[2].cells) if line.startswith("run")] == told
    for number in (1, 4):
        assert [r for r in found[number].remarks if r in told] == told
    notes = page_text.notes(gather([tmp_path]))
    assert [n for n in notes if "is not on this page" in n] == [
        f"{line}, so that is not on this page." for line in told
    ]


def test_an_evaluation_begun_of_another_model_is_told(
    base: Path, made: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made("run")
    killed = json.loads((base / "eval/step-000030/provenance.json").read_text())
    write_json(tmp_path / "other/provenance.json", killed | {"model": "lab/other"})
    (curve,) = gather([tmp_path])
    assert curve.unfinished == {} and "other: the evaluation was begun and not finished" in caplog.text


@pytest.mark.parametrize("name", ["gap_sex", "gap_Asian_white"])
def test_admissions_of_another_pair_were_asked(made: Callable[..., Path], tmp_path: Path, name: str) -> None:
    def edit(s: dict[str, Any]) -> None:
        for m in s["metrics"]:
            m["name"] = name if m["name"] == "gap" else m["name"]

    made("run", edit=edit)
    found = drawn_of(tmp_path, only=["1,2,5"])
    why = "asked, but not Black against white"
    for number in (1, 2):
        assert [t.get_text() for t in found[number].figure.axes[2].texts] == [why]
    q = next(a for a in found[5].figure.axes if a.get_title() == "Law school admissions: Q")
    assert [t.get_text() for t in q.texts] == [why]
    assert f"Law school admissions: {why}." in paragraphs(found[2])
    assert f"admissions, Q: {why} for run at steps 0, 30, 60" in " ".join(paragraphs(found[2]))
