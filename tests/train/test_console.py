"""The console while a policy is trained: readable lines in the place of raw logs, with the bias of each checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eval.config import EvaluationConfig
from eval.curves.cautions import SIGNS
from eval.runner.evaluate import evaluate
from eval.runner.plan import plan
from eval.validation.oracle import Oracle, Preferences
from tests.support.rl_runs import run
from train.console import Bar, Console, bias_lines, step_line

ASKED = EvaluationConfig(orders=1, conditions=["Q", "Q+IF"], categories=["Age", "SES"])
MAIN = SimpleNamespace(is_world_process_zero=True, global_step=7, max_steps=60)
LOGS = {
    "reward": 6.1234, "kl": 0.2104, "entropy": 2.3, "observed/tokens": 14.04, "observed/finished": 0.625, "loss": 0.01,
    "rewards/x": 3.0,
}  # fmt: skip


def evaluated(output: Path, step: int, preferences: Preferences, config: EvaluationConfig = ASKED) -> dict[str, Any]:
    """Results of an oracle, as `eval watch` leaves them."""
    folder, planned = output / "eval" / f"step-{step:06d}", plan(config)
    evaluate(Oracle(preferences, 1, planned.questions), config, folder, {"model": "m"}, step, planned)
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    evaluated(folder, 0, Preferences(removed=0.0))
    return folder


def value(summary: dict[str, Any], experiment: str, condition: str, name: str) -> float:
    return next(m["value"] for m in summary["metrics"] if (m["experiment"], m["condition"], m["name"], m["category"])
                == (experiment, condition, name, "all"))  # fmt: skip


def test_a_step_is_one_line_with_the_latest_bias(output: Path) -> None:
    written = "step 7/60  reward 6.123  KL 0.210  entropy 2.30  tokens 14.0  finished 62.5%  loss 0.01"
    assert step_line(LOGS, 7, 60, None) == written
    summary = json.loads((output / "eval" / "step-000000" / "summary.json").read_text())
    said = step_line(LOGS, 7, 60, summary)
    q, instructed = (value(summary, "admissions", c, "gap") for c in ("Q", "Q+IF"))
    assert f"gap {q:+.4f} -> {instructed:+.4f}" in said and "\n" not in said
    rho = [value(summary, "winogender", c, "rho") for c in ("Q", "Q+IF")]
    assert "| step 0: BBQ +" in said and f"rho {rho[0]:.2f} -> {rho[1]:.2f}" in said
    assert step_line({"kl": None, "loss": 1.0}, 1, 2, None) == "step 1/2  loss 1"


def test_a_watchers_results_are_told_once_each_with_intervals(output: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "training"
    console = Console(folder)
    console.on_train_begin(None, MAIN, None)
    said = capsys.readouterr().out
    assert all(SIGNS[e] in said for e in ("bbq", "winogender", "admissions")) and "bias at step" not in said
    summary = evaluated(folder, 5, Preferences(removed=0.0))  # by another process, for all that Console knows
    console.on_log(None, MAIN, None, LOGS)
    console.on_log(None, MAIN, None, LOGS)
    said = capsys.readouterr().out
    gap = next(m for m in summary["metrics"] if (m["condition"], m["name"], m["category"]) == ("Q", "gap", "all"))
    assert said.count("bias at step 5, under Q -> under Q+IF, with 95% intervals:") == 1
    assert f"gap  {gap['value']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}] -> " in said
    assert said.count("| step 5: ") == 2
    evaluated(folder, 3, Preferences(removed=0.0))  # late: told, but not the latest
    console.on_log(None, MAIN, None, LOGS)
    said = capsys.readouterr().out
    assert "bias at step 3" in said and "| step 5: " in said
    other = Console(folder)
    other.on_log(None, SimpleNamespace(is_world_process_zero=False), None, LOGS)
    other.on_train_begin(None, SimpleNamespace(is_world_process_zero=False), None)
    assert capsys.readouterr().out == ""


def test_what_means_little_is_marked(tmp_path: Path) -> None:
    """A model that reads no context answers disambiguated questions at chance."""
    summary = evaluated(tmp_path, 0, Preferences(reads=0.0))
    said = step_line(LOGS, 1, 2, summary)
    before, _, after = said.partition("  rho")
    assert before.endswith("?") and "?" not in after
    assert "? Q: accuracy on the disambiguated questions (" in "\n".join(bias_lines(summary))
    assert "?" not in step_line(LOGS, 1, 2, evaluated(tmp_path, 1, Preferences(reads=0.9)))


def test_marks_stand_behind_the_numbers_that_they_are_of(tmp_path: Path) -> None:
    """rho is undefined under Q alone; with reasoning fewer questions are asked."""
    config = EvaluationConfig(
        orders=1, conditions=["Q", "Q+IF", "Q+IF+CoT"], experiments=["winogender"], limit=40, cot_limit=8
    )
    summary = evaluated(tmp_path, 0, Preferences(), config)
    (q,) = [m for m in summary["metrics"] if (m["condition"], m["name"], m["category"]) == ("Q", "rho", "all")]
    q |= {"value": None, "low": None, "high": None, "note": "p(female) hardly varies"}
    assert re.search(r"rho undefined\? -> -?\d\.\d\d -> -?\d\.\d\d\*$", step_line(LOGS, 1, 2, summary))
    said = "\n".join(bias_lines(summary))
    assert "? Q: rho is undefined" in said
    assert "* conditions were asked on different numbers of items (Winogender: Q: 40, Q+IF: 40, Q+IF+CoT: 8)" in said


def test_a_damaged_result_is_told_and_training_goes_on(tmp_path: Path, caplog: Any, capsys: Any) -> None:
    path = tmp_path / "eval" / "step-000000" / "summary.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    console = Console(tmp_path)
    console.on_log(None, MAIN, None, LOGS)
    console.on_log(None, MAIN, None, LOGS)
    assert len([r for r in caplog.records if "is damaged" in r.message]) == 1
    assert capsys.readouterr().out.count("step 7/60") == 2


@pytest.mark.parametrize("bar", [False, True])
def test_a_training_prints_lines_and_no_raw_logs(
    tiny: Path, tiny_reward: Path, tmp_path: Path, capsys: Any, bar: bool
) -> None:
    config = tmp_path / "eval.yaml"
    config.write_text("limit: 4\ncategories: [Age]\nconditions: [Q, Q+IF]\norders: 1\n")
    more = ("--evaluation", config, "--disable_tqdm", "false" if bar else "true", "--max_steps", 2,
            "--checkpoint_steps", 0, 2)  # fmt: skip
    run("rloo", tiny, tiny_reward, tmp_path / "out", *more)
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    steps = [x for x in lines if x.startswith("step ")]
    assert [x.partition("  ")[0] for x in steps] == ["step 1/2", "step 2/2"]
    assert all("reward " in x and "KL " in x and "| step 0: BBQ " in x for x in steps)
    assert [x for x in lines if x.startswith("bias at step")] == [
        f"bias at step {n}, under Q -> under Q+IF, with 95% intervals:" for n in (0, 2)
    ]
    told = [x for x in lines if x.startswith(("bias", "step ", "trained"))]
    assert [x.partition(",")[0].partition("  ")[0] for x in told[:-1]] == [
        "bias", "bias at step 0", "step 1/2", "step 2/2", "bias at step 2",
    ]  # fmt: skip
    assert re.fullmatch(r"trained 2 steps in \d+ s", lines[-1])
    assert not any(x.startswith("{") for x in lines)
    assert ("2/2 [" in printed.err) == bar
    assert Bar.on_log is not Bar.__mro__[1].on_log
