"""python -m eval figures: the paper's figures of planted models, checked against the summaries they are drawn from."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eval.__main__ import main
from eval.config import EvaluationConfig
from eval.curves.gather import find, gather, size_name
from eval.curves.headline import shared_metric_name
from eval.experiments.registry import EXPERIMENTS
from eval.runner.evaluate import evaluate
from eval.runner.plan import plan
from eval.validation.oracle import Oracle, Preferences
from eval.views.figures.figures import FiguresConfig, draw, figures, write
from eval.views.figures.frame import Drawn, settings
from eval.views.figures.panels import CARET
from eval.views.figures.reference import REFERENCES
from eval.views.figures.style import STYLES
from tests.support.oracle_runs import oracle_run

SMALL, MIDDLE, LARGE = 135_000_000, 360_000_000, 1_700_000_000
ASKED: dict[str, Any] = {"categories": ["Age", "SES"], "limit": 24, "cot_limit": 8}
CONDITIONS = ["Q", "Q+IF", "Q+Match-Stats"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sizes; the small one hardly reads, its pronouns do not vary; the middle one was not asked for reasoning;
    of the largest there are two seeds.
    """
    folder = tmp_path_factory.mktemp("runs")
    flat = Preferences(stereotype=0.2, reads=0.0, slope=0.0, scatter=0.0, neutral=0.4)
    oracle_run(folder / "small", SMALL, [(0, flat), (60, flat)], EvaluationConfig(**ASKED))
    middle = EvaluationConfig(**ASKED, conditions=CONDITIONS)
    oracle_run(folder / "middle", MIDDLE, [(0, Preferences()), (60, Preferences(removed=0.8))], middle)
    for seed in (1, 2):
        planted = [(0, Preferences(reads=0.9, removed=0.2)), (60, Preferences(reads=0.9, removed=0.9))]
        oracle_run(folder / f"large-{seed}", LARGE, planted, EvaluationConfig(**ASKED), seed)
    return folder


def drawn_of(runs: Path, **options: Any) -> dict[int, Drawn]:
    """By number; only="1,2": these."""
    options |= {"only": [options["only"]]} if "only" in options else {}
    found = draw(gather([runs]), FiguresConfig(runs=[str(runs)], **options))
    return {d.number: d for d in found}


@pytest.fixture(scope="module")
def drawn(runs: Path) -> dict[int, Drawn]:
    return drawn_of(runs)


def summary_of(runs: Path, name: str, step: int) -> dict[str, Any]:
    return json.loads((runs / name / "eval" / f"step-{step:06d}" / "summary.json").read_text())


def value(summary: dict[str, Any], experiment: str, condition: str, name: str = "", category: str = "all") -> Any:
    found = find(summary, experiment, condition, name or EXPERIMENTS[experiment].HEADLINE, category)
    return None if found is None else found["value"]


def line(axes: Axes, label: str) -> Line2D:
    (found,) = [ln for ln in axes.lines if ln.get_label() == label]
    return found


def xs(found: Line2D) -> list[float]:
    return np.asarray(found.get_xdata(), dtype=float).tolist()


def ys(found: Line2D) -> list[float]:
    return np.asarray(found.get_ydata(), dtype=float).tolist()


def labels(axes: Axes) -> set[str]:
    return {str(ln.get_label()) for ln in axes.lines}


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def public(runs: Path, folder: Path, **changes: Any) -> Path:
    """The runs as if they were of the public data."""
    shutil.copytree(runs, folder)
    for path in folder.rglob("summary.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"data": "data"} | changes))
    return folder


def test_every_figure_in_three_formats_the_same_bytes_in_another_process(
    runs: Path, drawn: dict[int, Drawn], tmp_path: Path
) -> None:
    """With another hash seed, and the folders in another order; the other figures are drawn by what draws these."""
    (tmp_path / "a").mkdir()
    told = [write(d, tmp_path / "a") for d in drawn.values()]
    names = [f"fig{k}.{ending}" for k in range(1, 9) for ending in ("svg", "pdf", "png", "csv")]
    assert [Path(f).name for entry in told for f in entry["files"]] == names
    assert all((tmp_path / "a" / name).stat().st_size > 300 for name in names)
    assert any("bbq, Q+IF+CoT: not evaluated for middle at step 60" in line for line in told[0]["missing"])
    folders = [str(runs / name) for name in ("small", "large-2", "middle", "large-1")]
    command = [
        sys.executable,
        "-m",
        "eval",
        "figures",
        *folders,
        "-o",
        str(tmp_path / "b"),
        "--only",
        "1,4,5",
        "--json",
    ]
    done = subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True)
    again = json.loads(done.stdout)["figures"]
    assert [entry["caption"] for entry in again] == [told[k - 1]["caption"] for k in (1, 4, 5)]
    assert (tmp_path / "b" / "captions.md").is_file()
    for path in (Path(f) for entry in again for f in entry["files"]):
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes(), path.name
    pdf = (tmp_path / "a" / "fig1.pdf").read_bytes()
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf and b"CreationDate" not in pdf
    assert re.search(rb"/MediaBox \[\s*0 0 518\.4 ", pdf)  # 7.2 inches
    svg = (tmp_path / "a" / "fig1.svg").read_text()
    assert "<dc:date>" not in svg and "<dc:description>" in svg


def test_lines_against_size_are_the_summaries(runs: Path, drawn: dict[int, Drawn]) -> None:
    """Of several policies of one size the line has their mean, small marks each of them."""
    for axes, experiment in zip(drawn[1].figure.axes, ("bbq", "winogender", "admissions"), strict=True):
        for condition in ("Q", "Q+IF"):
            seen = line(axes, condition)
            middle = value(summary_of(runs, "middle", 60), experiment, condition)
            seeds = [value(summary_of(runs, f"large-{k}", 60), experiment, condition) for k in (1, 2)]
            small = value(summary_of(runs, "small", 60), experiment, condition)
            y = ys(seen)
            assert y[1:] == pytest.approx([middle, mean(seeds)])
            assert math.isnan(y[0]) if small is None else y[0] == pytest.approx(small)
            for x, size in zip(xs(seen), (SMALL, MIDDLE, LARGE), strict=True):
                assert x == pytest.approx(size, rel=0.1)  # conditions stand side by side
            (policies,) = [
                ln for ln in axes.lines if re.fullmatch(rf"_\w+ policy {re.escape(condition)}", str(ln.get_label()))
            ]
            assert sorted(ys(policies)) == pytest.approx(sorted(seeds))
        assert axes.get_xscale() == "log" and "RLHF step 60" in axes.get_title()


def test_lines_against_step_are_the_summaries(runs: Path, drawn: dict[int, Drawn]) -> None:
    """Each policy faint, the mean thick; a policy alone has its interval as the band."""
    for axes, experiment in zip(drawn[2].figure.axes, ("bbq", "winogender", "admissions"), strict=True):
        seeds = [[value(summary_of(runs, f"large-{k}", s), experiment, "Q+IF") for s in (0, 60)] for k in (1, 2)]
        for k in (1, 2):
            own = line(axes, f"_Q+IF: large-{k}")
            assert ys(own) == pytest.approx(seeds[k - 1])
            assert own.get_alpha() == 0.45
        whole = line(axes, "Q+IF")
        assert xs(whole) == [0, 60]
        assert ys(whole) == pytest.approx([mean(list(pair)) for pair in zip(*seeds, strict=True)])
    assert any(
        "bands over steps go from the least to the greatest policy and are no intervals" in r for r in drawn[2].remarks
    )
    axes = drawn_of(runs, model="middle", only="2")[2].figure.axes[2]
    q = find(summary_of(runs, "middle", 60), "admissions", "Q", "gap")
    assert q is not None
    band = axes.collections[0].get_paths()[0].vertices
    at_60 = sorted({round(float(y), 12) for x, y in np.asarray(band) if x == 60})
    assert at_60 == pytest.approx([q["low"], q["high"]])


def test_csv_holds_what_is_drawn(runs: Path, tmp_path: Path) -> None:
    figures(FiguresConfig(runs=[str(runs / "middle")], output=str(tmp_path), only=["3,4"]))
    rows = list(csv.DictReader((tmp_path / "fig3.csv").open()))
    assert {r["category"] for r in rows} == {"Age", "SES"}
    for r in rows:
        found = value(summary_of(runs, "middle", 60), "bbq", r["condition"], r["metric"], r["category"])
        assert r["value"] == ("" if found is None else str(found))
        assert r["state"] == ("not evaluated" if r["condition"] == "Q+IF+CoT" else "measured")
        assert (r["model_params"], r["step"], r["model"]) == (str(MIDDLE), "60", "oracle")
    occupations = list(csv.DictReader((tmp_path / "fig4.csv").open()))
    breakdown = [json.loads(ln) for ln in (runs / "middle/eval/step-000060/breakdown.jsonl").read_text().splitlines()]
    expected = {(b["condition"], b["group"]): b["p_female"] for b in breakdown if b["by"] == "occupation"}
    assert {(o["condition"], o["occupation"]): float(o["p_female"]) for o in occupations} == expected


def test_what_is_missing_is_marked_and_lines_break(drawn: dict[int, Drawn], runs: Path) -> None:
    bbq, winogender, _ = drawn[1].figure.axes
    absent = line(bbq, "_not evaluated: Q+IF+CoT")
    assert xs(absent) == [MIDDLE] and absent.get_marker() == "x"
    assert math.isnan(ys(line(bbq, "Q+IF+CoT"))[1])
    undefined = line(winogender, "_undefined: Q")
    assert xs(undefined) == [SMALL] and undefined.get_marker() == "$?$"
    assert "_undefined: Q" not in labels(bbq)
    legend = {t.get_text() for t in drawn[1].figure.legends[0].get_texts()}
    assert {"not evaluated", "undefined", "hollow: means little (see caption)"} <= legend
    alone = drawn_of(runs, model="middle", only="2")[2].figure.axes
    assert all("not evaluated: Q+IF+CoT" in axes.get_xlabel() for axes in alone)
    stacks = drawn_of(runs / "middle", only="4")[4].figure.axes
    assert [t.get_text() for t in stacks[2].texts] == ["not evaluated"]


def test_an_experiment_that_was_not_asked(tmp_path: Path) -> None:
    config = EvaluationConfig(experiments=["winogender"], conditions=["Q"])
    oracle_run(tmp_path / "one", SMALL, [(0, Preferences())], config)
    found = drawn_of(tmp_path, only="1,2,3")
    for k in (1, 2):
        bbq, winogender, admissions = found[k].figure.axes
        assert [[t.get_text() for t in a.texts] for a in (bbq, admissions)] == [["not evaluated"]] * 2
        assert value(summary_of(tmp_path, "one", 0), "winogender", "Q") in ys(line(winogender, "Q"))
    assert all([t.get_text() for t in a.texts] == ["not evaluated"] for a in found[3].figure.axes)


def test_hollow_where_a_number_means_little(drawn: dict[int, Drawn]) -> None:
    """The small model does not read: its BBQ bias is hollow in Figures 1, 3, 5 and 8, its accuracy is not."""
    for axes in (drawn[1].figure.axes[0], drawn[3].figure.axes[0], drawn[8].figure.axes[0]):
        hollow = line(axes, "_hollow Q")
        assert xs(hollow) == pytest.approx([SMALL], rel=0.1)
        assert to_hex(hollow.get_markerfacecolor()) == "#ffffff"
    assert "_hollow 60" in labels(drawn[5].figure.axes[0])
    assert not any(label.startswith("_hollow") for label in labels(drawn[7].figure.axes[0]))


def test_palette(drawn: dict[int, Drawn]) -> None:
    expected = {
        "Q": ("#0072b2", "o", "-"), "Q+IF": ("#e69f00", "s", "-"), "Q+IF+CoT": ("#009e73", "^", "-"),
        "Q+Match Stats": ("#a50026", "D", "--"), "Q+Inverse": ("#555555", "v", ":"),
    }  # fmt: skip
    assert {n: (s["color"].lower(), s["marker"], s["linestyle"]) for n, s in STYLES.items()} == expected
    axes = drawn[2].figure.axes[1]
    for name in ("Q", "Q+IF", "Q+IF+CoT", "Q+Match Stats"):
        assert (to_hex(line(axes, name).get_color()), line(axes, name).get_linestyle()) == expected[name][::2]
        assert line(axes, f"_filled {name}").get_marker() == expected[name][1]


def test_values_of_the_paper_are_marked_apart_and_only_where_comparable(runs: Path, tmp_path: Path) -> None:
    folder = public(runs, tmp_path / "public")
    found = drawn_of(folder, scoring="most-probable", only="1")
    bbq, winogender, admissions = found[1].figure.axes
    for r in (r for r in REFERENCES if r.experiment in ("bbq", "winogender")):
        mark = line(bbq if r.experiment == "bbq" else winogender, f"_paper {r.condition}")
        assert (xs(mark), ys(mark)) == ([1.03], [r.value])  # right of the panel
        assert to_hex(mark.get_color()) != STYLES[r.condition]["color"].lower() and mark.get_marker() == CARET
    assert not any(label.startswith("_paper") for label in labels(admissions))
    assert "paper's 175B (approximate)" in {t.get_text() for t in found[1].figure.legends[0].get_texts()}
    assert "most probable answer" in bbq.get_ylabel()
    seen = ys(line(bbq, "Q"))
    assert seen[1] == value(summary_of(folder, "middle", 60), "bbq", "Q", "bias_ambig")
    for d in drawn_of(folder, only="1,2").values():  # expected: BBQ's metric is another
        marked = [any(label.startswith("_paper") for label in labels(a)) for a in d.figure.axes]
        assert marked == [False, True, False]


def test_the_small_set_is_compared_with_nothing(drawn: dict[int, Drawn]) -> None:
    assert not any(label.startswith("_paper") for d in drawn.values() for a in d.figure.axes for label in labels(a))


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts that lie on each other, and texts that reach out of the figure."""
    figure.draw_without_rendering()  # it may have been written at another resolution
    texts = [figure._supxlabel] if getattr(figure, "_supxlabel", None) else []  # pyright: ignore
    for axes in figure.axes:
        if axes.axison:
            (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
            ticks = [t for t in axes.get_xticklabels() if left <= t.get_position()[0] <= right]
            ticks += [t for t in axes.get_yticklabels() if low <= t.get_position()[1] <= high]
            texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts, *ticks]
    texts += [t for legend in figure.legends for t in legend.get_texts()]
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts if t.get_text().strip()]
    bad = [
        (text, "outside") for text, b in boxes if b.x0 < 0 or b.y0 < 0 or b.x1 > figure.bbox.x1 or b.y1 > figure.bbox.y1
    ]
    for i, (one, a) in enumerate(boxes):
        bad += [
            (one, other) for other, b in boxes[i + 1 :]
            if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
        ]  # fmt: skip
    return bad


@pytest.mark.parametrize("which", ["three sizes", "one size", "paper", "close sizes"])
def test_no_text_on_text(runs: Path, drawn: dict[int, Drawn], tmp_path: Path, which: str) -> None:
    if which == "one size":
        drawn = drawn_of(runs / "middle", only="1,2,5")
    elif which == "paper":
        drawn = drawn_of(public(runs, tmp_path / "p"), scoring="most-probable", only="1,2")
    elif which == "close sizes":
        for k in range(5):
            folder = shutil.copytree(runs / "middle", tmp_path / f"m{k}")
            run = json.loads((folder / "run.json").read_text()) | {"policy": f"m{k}"}
            (folder / "run.json").write_text(json.dumps(run | {"model_params": MIDDLE + 10_000_000 * k}))
        drawn = drawn_of(tmp_path, only="1,3")
    with settings():
        assert {d.number: bad for d in drawn.values() if (bad := overlaps(d.figure))} == {}


def test_different_questions_are_not_joined(runs: Path, tmp_path: Path) -> None:
    """Experiment by experiment, among the results that have it."""
    shutil.copytree(runs / "middle", tmp_path / "middle")
    other = EvaluationConfig(**{**ASKED, "limit": None, "experiments": ["bbq", "winogender"], "cot_limit": 4})
    oracle_run(tmp_path / "other", LARGE, [(60, Preferences())], other)
    found = drawn_of(tmp_path, only="1")[1]
    assert line(found.figure.axes[0], "Q").get_linestyle() == "None"
    assert any(r.startswith("BBQ, Winogender: not joined by lines") and "limit" in r for r in found.remarks)
    assert line(found.figure.axes[2], "Q").get_linestyle() == "-"  # one curve was asked about admissions
    assert not any("admissions: not joined" in r for r in found.remarks)
    assert "_not evaluated: Q" in labels(found.figure.axes[2])


def test_one_scoring_for_all_where_some_were_asked_in_one_order(runs: Path) -> None:
    three = summary_of(runs, "middle", 60)
    one = three | {"metrics": [m for m in three["metrics"] if not m["name"].endswith("_symmetrised")]}
    assert shared_metric_name([three], "bbq", "expected") == "bias_ambig_expected_symmetrised"
    assert shared_metric_name([three, one], "bbq", "expected") == "bias_ambig_expected"
    assert shared_metric_name([three, one], "bbq", "most-probable") == "bias_ambig"


def test_a_size_that_is_not_known(tmp_path: Path) -> None:
    """A result of a served model: against the step it is drawn, against size it cannot be."""
    config = EvaluationConfig(experiments=["winogender"], conditions=["Q"])
    planned = plan(config)
    policy = {"model": "owner/served", "model_params": None, "weights": "endpoint:served", "tokenizer_sha256": ""}
    evaluate(Oracle(Preferences(), 0, planned.questions), config, tmp_path / "served", policy)
    found = drawn_of(tmp_path, only="1,2")
    assert all([t.get_text() for t in a.texts] == ["size not known"] for a in found[1].figure.axes)
    assert "size not known, not drawn: served" in found[1].remarks
    assert "Q" in labels(found[2].figure.axes[1])


@pytest.mark.parametrize(("params", "name"), [(134_515_008, "135M"), (1_711_376_384, "1.71B"), (999_900_000, "1B")])
def test_names_of_sizes(params: int, name: str) -> None:
    assert size_name(params) == name


def test_bad_input_is_one_line(runs: Path, ended: Callable[..., str]) -> None:
    assert "step 17 was not evaluated; evaluated: 0, 60" in ended(main, "figures", runs, "--step", 17)
    assert "did you mean 'middle'?" in ended(main, "figures", runs, "--model", "midle")
    assert "only: there is no figure '9'" in ended(main, "figures", runs, "--only", "1,9")
    assert "scoring must be expected or most-probable" in ended(main, "figures", runs, "--scoring", "best")
    assert "the run folder is missing" in ended(main, "figures")
    (runs / "small/eval/step-000060/breakdown.jsonl").rename(runs / "kept")
    try:
        found = drawn_of(runs, model="small", only="4")[4]
        assert any("breakdown.jsonl is not there" in r for r in found.remarks)
    finally:
        (runs / "kept").rename(runs / "small/eval/step-000060/breakdown.jsonl")
