"""The KL budget's coefficient, and the alerts by which a collapse is seen."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eval.errors import InputError
from tests.support.rl_runs import run
from train.arguments import PolicyArguments
from train.budget import MAX_BETA_FACTOR, AdaptiveKL, Alerts, alerted_steps, limit_violations

HEALTHY = {
    "samples": 1, "kl": 0.05, "entropy": 2.8, "observed/repetition": 0.05, "observed/tokens": 20.0,
    "observed/finished": 0.2,
}  # fmt: skip


def options(**changes: Any) -> PolicyArguments:
    return PolicyArguments(reward_model=["somewhere"], **changes)


def entries(*later: dict[str, float], n: int = 10) -> list[dict[str, Any]]:
    """Ten healthy steps, then as many that differ by each of `later`."""
    return [HEALTHY] * n + [HEALTHY | change for change in later for _ in range(n)]


def followed(controller: AdaptiveKL, *kls: float) -> float:
    """beta after steps of these KL."""
    controller.on_log(None, SimpleNamespace(log_history=[{"kl": kl} for kl in kls]), None)
    return controller.trainer.beta


def test_beta_follows_the_kl_within_its_bounds() -> None:
    controller = AdaptiveKL(SimpleNamespace(beta=0.02), target=0.1)
    assert followed(controller, 0.05, 0.1) == 0.02, "the least, up to the target"
    assert followed(controller, -0.3) == 0.02
    assert followed(controller, *[0.2] * 5) == pytest.approx(0.02 * 64)
    assert followed(controller, 9.0, *[0.11] * 5) == pytest.approx(0.02 * 1.1**6), "the last five steps"
    assert followed(controller, *[9.0] * 5) == pytest.approx(0.02 * MAX_BETA_FACTOR)
    assert followed(controller, *[9.0] * 5, *[0.01] * 5) == 0.02, "nothing is summed up"
    controller.on_log(None, SimpleNamespace(log_history=[{"train_runtime": 3.0}]), None)
    assert controller.trainer.beta == 0.02
    assert followed(controller, 9.0, math.nan) == pytest.approx(0.02 * MAX_BETA_FACTOR), (
        "NaN is no KL, and makes no beta"
    )


def test_a_simulated_policy_is_held_at_the_budget() -> None:
    """A policy that moves at one speed in the direction of what weighs more, reward or penalty, as Adam's steps do."""
    controller = AdaptiveKL(SimpleNamespace(beta=0.03), target=0.1)
    kl, free = [0.0], 0.0
    for _ in range(300):
        free += 0.005
        away = 0.15 - controller.trainer.beta
        kl.append(max(kl[-1] + 0.005 * away / (abs(away) + 0.05), 0.0))
        followed(controller, *kl)
    assert free > 1
    assert min(kl[60:]) > 0.08 and max(kl) < 0.2


def test_a_healthy_run_raises_no_alert() -> None:
    assert limit_violations(entries({}), options()) == {}
    assert limit_violations(entries({"kl": 0.29, "entropy": 1.5, "observed/repetition": 0.2}), options()) == {}


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        ({"kl": 0.41}, "kl", "KL to the starting policy is 0.41 per token, above kl_alert 0.3"),
        ({"entropy": 1.3}, "entropy", "entropy is 1.30, below 0.5 (entropy_alert) of the first steps' 2.80"),
        (
            {"observed/repetition": 0.4},
            "repetition",
            "40% of the answers' trigrams are repeated, in the first steps 5%",
        ),
        ({"observed/tokens": 9.0}, "length", "answers have 9.0 tokens, in the first steps 20.0"),
        ({"observed/tokens": 44.0}, "length", "answers have 44.0 tokens"),
        ({"observed/finished": 0.0}, "finished", "not one answer of the last 5 steps ended by itself"),
    ],
)
def test_each_departure_is_found_and_can_be_switched_off(change: dict[str, float], name: str, said: str) -> None:
    found = limit_violations(entries(change), options())
    assert list(found) == [name]
    assert said in found[name]
    assert limit_violations(entries(change), options(**{f"{name}_alert": 0})) == {}


def test_one_bad_step_is_no_departure() -> None:
    assert limit_violations([*entries(), HEALTHY | {"kl": 1.0}], options()) == {}
    assert limit_violations([HEALTHY | {"kl": 9.0}] * 4, options()) == {}, "too few steps to tell"


def test_an_alert_is_told_once_for_each_crossing_with_answers(tmp_path: Path) -> None:
    alerts = Alerts(
        options(stop_on_alert=True), tmp_path / "alerts.jsonl", lambda: (["Why?"] * 9, ["I am sorry."] * 9)
    )  # fmt: skip
    log: list[dict[str, Any]] = []
    stops = []
    for step, entry in enumerate(entries({"kl": 0.5}, {}, {"kl": 0.5}), 1):
        log.append(entry)
        control = SimpleNamespace(should_training_stop=False, should_save=False)
        state = SimpleNamespace(log_history=log, global_step=step, is_world_process_zero=True)
        alerts.on_log(None, state, control, entry)
        stops += [step] if control.should_training_stop else []
    written = [json.loads(line) for line in (tmp_path / "alerts.jsonl").read_text().splitlines()]
    assert [w["step"] for w in written] == stops == [13, 33]
    assert written[0]["samples"] == [{"prompt": "Why?", "answer": "I am sorry."}] * 3
    resumed = SimpleNamespace(global_step=20, is_world_process_zero=True)
    with alerts.path.open("a") as out:
        out.write('{"step": 14, "al')  # a kill in the middle of a line
    assert alerted_steps(alerts.path) == {13, 33}
    alerts.on_train_begin(None, resumed, None)
    assert [json.loads(line)["step"] for line in alerts.path.read_text().splitlines()] == [13]


def test_a_run_stops_at_an_alert_and_keeps_its_last_policy(tiny: Path, tiny_reward: Path, tmp_path: Path) -> None:
    more = ("--max_steps", 12, "--checkpoint_steps", 0, 12, "--kl_target", 0, "--learning_rate", 0.05)
    result = run("rloo", tiny, tiny_reward, tmp_path, *more, "--kl_alert", 1e-3, "--stop_on_alert", "true")
    assert result["stopped"] == "at an alert"
    assert 5 <= result["steps"] < 12
    assert (tmp_path / f"checkpoint-{result['steps']}" / "policy.json").is_file()
    (alert, *_) = [json.loads(line) for line in (tmp_path / "alerts.jsonl").read_text().splitlines()]
    assert alert["alert"] == "kl" and alert["samples"][0]["prompt"]
    again = ("--kl_alert", 1e-3, "--stop_on_alert", "true")
    assert run("rloo", tiny, tiny_reward, tmp_path, *more, *again) == result
    (tmp_path / "rloo.json").unlink()  # as if killed after the last save
    assert run("rloo", tiny, tiny_reward, tmp_path, *more, *again) == result


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kl_target": -1}, "kl_target must be a number of at least 0"),
        ({"entropy_alert": 1.5}, "entropy_alert must be below 1"),
        ({"length_alert": 0.5}, "length_alert above 1"),
        ({"evaluate": "later"}, "evaluate must be in_process, watch, afterwards, not 'later'"),
        ({"keep_optimizer_states": "lst"}, "did you mean 'last'"),
        ({"seen_prompts": "no"}, "seen_prompts must be leave_out or keep"),
        ({"judges": ["x"], "sample_prompts": 0}, "judges score the answers to sample_prompts, which is 0"),
        ({"prompt_share": [0.5, 0.2]}, "prompt_share must be two numbers"),
    ],
)
def test_bad_options(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        options(**changes)
    assert said in str(error.value)


def test_no_kl_to_keep(tiny: Path, tiny_reward: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"beta is 0, so that there is no KL to keep near kl_target 0\.15"):
        run("rloo", tiny, tiny_reward, tmp_path, "--beta", 0)
    result = run("grpo", tiny, tiny_reward, tmp_path, "--beta", 0, "--kl_target", 0, "--sample_prompts", 4)
    assert "kl" not in result["log"][0]
    assert result["samples"][-1]["mean"]["kl_per_token"] > 0, "of the answers it is known all the same"
