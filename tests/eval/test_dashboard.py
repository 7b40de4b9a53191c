"""`eval dashboard`: names, axes and colours of what is drawn, names against what is logged, saving."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from eval import __main__ as command_line
from eval.config import EvaluationConfig
from eval.curves.gather import Curve, gather
from eval.runner.evaluate import evaluate
from eval.runner.plan import plan
from eval.tracking import client as tracking
from eval.tracking import dashboard_report, dashboard_workspace
from eval.tracking.dashboard import DashboardConfig, dashboard, dashboard_content, spec
from eval.tracking.dashboard_panels import COLOURS, MEDIA, TRAINING_AXIS, of_conditions, only_logged, sections
from eval.tracking.names import evaluated_setup, trained_setup
from eval.tracking.publish import PublishConfig, publish
from eval.validation.oracle import Oracle, Preferences
from tests.support.published_runs import drawn
from tests.support.rl_runs import rloo
from tests.support.tracked_runs import alone, described, read_back, summary
from tests.support.wandb_server import ENTITY, serving

SETUPS = ["small rloo 0000, asked 1111", "large rloo 0000, asked 1111"]


def test_the_report_draws_every_experiment_against_steps() -> None:
    built = dashboard_report.report(sections(), SETUPS, ["a caution"], "selfcorrect", "")
    text = spec(built)
    assert "a caution" in text and '"rlhf_step"' in text
    for name in ("eval/bbq/bias_ambig", "eval/winogender/rho", "eval/admissions/gap", "eval/bbq/accuracy_ambig"):
        assert f'"{name}"' in text
    assert all(colour in text for colour in COLOURS.values())


def test_the_workspace_groups_and_colours_by_condition() -> None:
    built = json.loads(spec(dashboard_workspace.workspace(sections(), SETUPS, "selfcorrect", "")))["section"]
    assert [g["name"] for g in built["runSets"][0]["grouping"]] == ["condition.value", "setup.value"]
    colours = list(built["customRunColors"].values())
    assert len(colours) == len(COLOURS) * 3 and colours[0] == colours[2] == "#0072B2" and colours[1] != colours[0]
    panels = [p for s in built["panelBankConfig"]["sections"] for p in s["panels"]]
    lines = [p["config"] for p in panels if p["viewType"] == "Run History Line Plot"]
    assert {c["smoothingType"] for c in lines} == {"none"}
    assert {c["xAxis"] for c in lines} == {"rlhf_step", TRAINING_AXIS} and all(c["xAxisTitle"] for c in lines)
    sizes = [p["config"] for p in panels if p["viewType"] == "Scatter Plot"]
    assert all(c["xAxis"] == "config:model_params.value" and c["xAxisLogScale"] for c in sizes) and len(sizes) == 5


def test_every_panel_is_of_a_name_that_is_logged(tiny: Path, tiny_reward: Path, tmp_path: Path) -> None:
    """Two steps of a tiny training, an evaluation of everything, both read back from wandb's files."""
    run = tmp_path / "run"
    rloo(tiny, tiny_reward, run, "--report_to", "wandb", "--max_steps", "2", "--checkpoint_steps", "2")
    asked = EvaluationConfig()
    planned = plan(asked)
    oracle = Oracle(Preferences(), 0, planned.questions)
    evaluate(oracle, asked, run / "eval" / "step-000002", {"model": "oracle", "model_params": 9}, 2, planned)
    text, told = publish(PublishConfig(runs=[str(run)]), drawn)
    assert told["error"] is None, text
    logged = read_back(run)
    config = next(e["run"]["config"]["update"] for r, e in logged.items() if r.startswith("eval"))
    training = next(e["run"]["config"]["update"] for r, e in logged.items() if r.startswith("train"))
    assert (
        trained_setup(config["setup"]) == training["setup"] != config["setup"] and training["condition"] == "training"
    )
    assert isinstance(config["model_params"], int)
    names = {name.removesuffix("._type") for e in logged.values() for row in e["rows"] for name in row}
    names |= {name for e in logged.values() for name in e["summary"]}
    there = {p.names for s in only_logged(sections(), names) for p in s.panels}
    categories = {m["category"] for m in gather([run])[0].summaries[0]["metrics"]}
    missing = {p.names for s in sections() for p in s.panels} - there
    unasked = {
        n for n in missing if n[0].startswith("eval/bbq/bias_ambig/") and n[0].rpartition("/")[2] not in categories
    }
    assert missing - unasked == {("report/fig1",)}  # the test draws Figure 2 only
    assert len(there) > 25


def test_with_runs_only_what_they_fill_is_shown(tmp_path: Path) -> None:
    run = described(tmp_path / "run")
    path = summary(run, 20, 0.5, ("Q", "Q+IF"), model_params=7) / "summary.json"
    read = json.loads(path.read_text())
    read["metrics"] += [read["metrics"][1] | {"name": f"p_{kind}"} for kind in ("female", "male", "neutral")]
    path.write_text(json.dumps(read))
    what = dashboard_content(gather([run]))
    assert [s.only for s in what.sections if s.only] == ["Q+IF"]
    names = {n for s in what.sections for p in s.panels for n in p.names}
    assert "eval/winogender/rho" in names and "final/winogender/rho" in names and not [n for n in names if "bbq" in n]
    assert set(MEDIA) <= names and what.setups[0].startswith("model rloo ")
    assert [s.name for s in what.sections][-1] == "Training"


def test_sections_of_one_condition_are_of_the_set_ups_that_have_it() -> None:
    def curve(name: str, *conditions: str) -> tuple[str, Curve]:
        of = {"experiment": "winogender", "category": "all", "value": 0.3, "low": None, "high": None}
        metrics = [of | {"condition": c, "name": f"p_{k}"} for c in conditions for k in ("female", "male", "neutral")]
        return name, Curve(name, Path(name), {}, ({"step": 0, "metrics": metrics},))

    kept = of_conditions(sections(), [curve("a", "Q", "Q+IF"), curve("b", "Q"), curve("a", "Q")])
    assert {s.only: s.setups for s in kept if s.only} == {"Q": ("a", "b"), "Q+IF": ("a",)}
    assert [s for s in kept if s.only is None] == [s for s in sections() if s.only is None]
    blocks: list[Any] = dashboard_report.report(kept, ["a", "b"], [], "selfcorrect", "").blocks
    names = [block.runsets[0].name for block in blocks if hasattr(block, "runsets")]
    assert [name for name in names if ", " in name] == ["Q, a", "Q, b", "Q+IF, a"]


def test_models_trained_elsewhere_are_shown_against_their_own_steps(tmp_path: Path) -> None:
    for step in (0, 512):
        more = {"model": "org/m", "model_params": 7, "weights": "w", "step_name": "training step"}
        summary(tmp_path / "ext", step, 0.5, ("Q",), **more)
    what = dashboard_content(gather([tmp_path / "ext"]))
    built = json.loads(spec(dashboard_workspace.workspace(what.sections, what.setups, "selfcorrect", "")))["section"]
    panels = [p["config"] for s in built["panelBankConfig"]["sections"] for p in s["panels"]]
    lines = [(c["metrics"][0], c["xAxis"], c["xAxisTitle"]) for c in panels if "xAxisTitle" in c]
    assert ("eval/winogender/rho", "training_step", "training step") in lines
    assert {axis for _, axis, _ in lines} == {"training_step"} and built["settings"]["xAxis"] == "training_step"
    assert what.sections[0].name == "Bias against training step" and "Training" not in [s.name for s in what.sections]
    run = described(tmp_path / "run")
    summary(run, 20, 0.5, ("Q",))
    both = dashboard_content(gather([run, tmp_path / "ext"])).sections[0]
    assert {(p.x, p.title.partition(", by ")[2]) for p in both.panels} == {
        ("rlhf_step", "RLHF step"), ("training_step", "training step")
    }  # fmt: skip


def test_a_line_is_of_one_evaluation(tmp_path: Path) -> None:
    """Seeds asked the same are one set-up, those of another limit or other data another; what is asked beside, none."""
    asked = [
        ({"limit": 60}, "a"),
        ({"limit": 60, "conditions": ["Q"]}, "a"),
        ({"limit": 600}, "a"),
        ({"limit": 60}, "b"),
    ]
    setups = []
    for seed, (evaluation, data) in enumerate(asked):
        run = described(tmp_path / str(seed))
        summary(run, 20, 0.5, ("Q",), evaluation=evaluation, data=data)
        setups.append(evaluated_setup(gather([run])[0], "p"))
    assert setups[0] == setups[1] and len(set(setups)) == 3
    assert len({trained_setup(s) for s in setups}) == 1


def test_stacks_are_of_one_condition_and_one_setup_each() -> None:
    """A stack of several models, or a mean of them, would sum to nothing."""
    built = json.loads(spec(dashboard_report.report(sections(), SETUPS, [], "selfcorrect", "")))
    stacked = [
        block["metadata"]
        for block in built["blocks"]
        if block["type"] == "panel-grid" and "stacked-area" in json.dumps(block)
    ]
    names = [[r["name"] for r in grid["runSets"]] for grid in stacked]
    assert names == [[f"{c}, {s}"] for c in ("Q", "Q+IF", "Q+IF+CoT", "Q+Match Stats") for s in SETUPS]
    for grid in stacked:
        filters = json.dumps(grid["runSets"][0]["filters"])
        assert "setup" in filters and "condition" in filters
        assert [g["name"] for g in grid["runSets"][0]["grouping"]] == ["condition.value", "setup.value"]


def test_offline_writes_what_is_to_be_saved(tmp_path: Path) -> None:
    text, told = dashboard(DashboardConfig(output=str(tmp_path / "out")))
    assert "not saved on W&B" in text and "wandb login" in text and told["urls"] == {}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.json", "report.md", "workspace.json"]
    words = (tmp_path / "out" / "report.md").read_text()
    assert "discrimination against Black applicants" in words and "hardly reads them" in words


def test_saving_and_saving_again(tmp_path: Path) -> None:
    """What the client sends when it is logged in; the second time the same two views are brought up to date.

    In a process of its own: wandb's helper keeps the server that it was started for.
    """
    command = [sys.executable, "-m", "eval", "dashboard", "--output", str(tmp_path), "--json"]
    with serving() as server:
        environment = alone() | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40, "WANDB_MODE": "online"}
        told = []
        for _ in range(2):
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
            assert done.returncode == 0, done.stderr[-2000:]
            told.append(json.loads(done.stdout))
        assert len(server.views) == 2 and told[0]["urls"] == told[1]["urls"]
        sent = {v["type"]: v for v in server.views.values()}
        assert {v["entityName"] for v in sent.values()} == {ENTITY} and set(sent) == {"project-view", "runs"}
        assert sent["project-view"]["displayName"] == dashboard_workspace.NAME
        assert json.loads(sent["runs"]["spec"])["blocks"]
        assert f"/{ENTITY}/selfcorrect?nw=" in told[0]["urls"]["workspace"] and "/reports/" in told[0]["urls"]["report"]
        assert server.asked.count("upsertView") == 2 and server.asked.count("UpsertView2") == 2


def test_what_w_and_b_refuses_is_a_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "eval", "dashboard", "--output", str(tmp_path)]
    with serving() as server:
        server.refused = {"upsertView": 403, "UpsertView2": 403}
        environment = alone() | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40, "WANDB_MODE": "online"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "W&B did not take the dashboards: " in done.stderr and "permission denied" in done.stderr


def test_bad_input(tmp_path: Path, ended: Any) -> None:
    assert "1 to 128 characters" in ended(command_line.main, "dashboard", "--project", "a/b")
    assert "is not there" in ended(command_line.main, "dashboard", "--runs", tmp_path / "none")
    assert tracking.mode() == "offline"
