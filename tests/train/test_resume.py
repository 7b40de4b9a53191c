"""Killed and run again, every trainer ends as if it had not been: weights and every logged number, bit by bit."""

from __future__ import annotations

import json
import math
import platform
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import trl

import train.callbacks
import train.online
import train.rloo
import train.run
from eval.errors import InputError
from eval.files import write_json
from reward.stage import Stage, last_checkpoint
from tests.support.rl_runs import Killed, run, same_weights
from tests.support.tracked_runs import read_back
from train.callbacks import drop_optimizer_states, resume_from

NOT_LEARNED = {"step_time", "epoch"}
"""Logged numbers that are no function of what was learned."""


def learned(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k not in NOT_LEARNED} for entry in result["log"]]


@pytest.fixture
def killed_at_4(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Ends the process, as it were, in the save of checkpoint 4: everything is there but the marker. What it gives ends
    that.
    """

    def write(path: Path, value: Any) -> None:
        if path.name == "policy.json" and path.parent.name == "checkpoint-4":
            raise Killed
        write_json(path, value)

    monkeypatch.setattr(train.callbacks, "write_json", write)
    return monkeypatch.undo


@pytest.mark.parametrize(
    ("algorithm", "more"),
    [
        ("rloo", ()),
        ("rloo", ("--gradient_accumulation_steps", 2, "--per_device_train_batch_size", 2)),
        ("grpo", ()),
        ("grpo", ("--steps_per_generation", 2)),
        ("online_dpo", ("--judges", "JUDGE", "--per_device_train_batch_size", 2)),
    ],
)
def test_killed_in_a_save_it_ends_the_same(
    algorithm: str, more: tuple[object, ...], tiny: Path, tiny_reward: Path, tiny_judge: Path, tmp_path: Path, request
) -> None:
    """With the KL budget acting: its beta is one of the numbers."""
    more = (*(tiny_judge if m == "JUDGE" else m for m in more), "--kl_target", 1e-3, "--lora_dropout", 0.1)
    more = (*more, "--max_steps", 6, "--checkpoint_steps", 0, 2, 4, 6)
    whole = run(algorithm, tiny, tiny_reward, tmp_path / "whole", *more)
    alive = request.getfixturevalue("killed_at_4")
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        run(algorithm, tiny, tiny_reward, folder, *more)
    last = last_checkpoint(folder, "trainer_state.json", "optimizer.pt", "policy.json")
    assert last == folder / "checkpoint-2"
    alive()
    resumed = run(algorithm, tiny, tiny_reward, folder, *more)
    assert learned(resumed) == learned(whole)
    assert resumed["samples"] == whole["samples"]
    for step in (4, 6):
        same_weights(folder / f"checkpoint-{step}", tmp_path / "whole" / f"checkpoint-{step}")
    if algorithm != "online_dpo":
        assert len({entry["beta"] for entry in learned(whole)}) > 1


def test_only_the_last_checkpoint_keeps_its_optimizer(
    tiny: Path, tiny_reward: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        run("rloo", tiny, tiny_reward, tmp_path / "last")
    assert f"3 checkpoints need about 96 MiB: {tmp_path / 'last'}" in caplog.text
    run("rloo", tiny, tiny_reward, tmp_path / "all", "--keep_optimizer_states", "all")
    for name, has in (("last", [4]), ("all", [2, 4])):
        folder = tmp_path / name
        assert [s for s in (2, 4) if (folder / f"checkpoint-{s}" / "optimizer.pt").is_file()] == has
        assert all((folder / f"checkpoint-{s}" / "adapter_model.safetensors").is_file() for s in (0, 2, 4))
        assert all((folder / f"checkpoint-{s}" / "chat_template.jinja").is_file() for s in (0, 2, 4))


@pytest.mark.parametrize("more", [(), ("--use_peft", "false")])
def test_killed_after_the_last_save_it_trains_no_further(
    more: tuple[object, ...], tiny: Path, tiny_reward: Path, tmp_path: Path
) -> None:
    """The last checkpoint is complete; its answers, its evaluation and the result are not there."""
    (tmp_path / "eval.yaml").write_text("limit: 4\nexperiments: [winogender]\nconditions: [Q]\n")
    output = tmp_path / "run"
    more = (*more, "--evaluation", tmp_path / "eval.yaml", "--sample_prompts", 4)
    whole = run("rloo", tiny, tiny_reward, output, *more)
    answers = (output / "samples" / "step-000004.jsonl").read_text()
    records = (output / "eval" / "step-000004" / "records.jsonl").read_text()
    (output / "rloo.json").unlink()
    (output / "samples" / "step-000004.jsonl").unlink()
    shutil.rmtree(output / "eval" / "step-000004")
    again = run("rloo", tiny, tiny_reward, output, *more)
    assert again["steps"] == 4
    assert learned(again) == learned(whole)
    assert (output / "samples" / "step-000004.jsonl").read_text() == answers
    assert (output / "eval" / "step-000004" / "records.jsonl").read_text() == records


def test_a_step_that_a_watcher_is_on_is_left_to_it(
    tiny: Path, tiny_reward: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from eval.runner.store import Store

    (tmp_path / "eval.yaml").write_text("limit: 4\nexperiments: [winogender]\nconditions: [Q]\n")
    with Store(tmp_path / "run" / "eval" / "step-000002").locked():
        run("rloo", tiny, tiny_reward, tmp_path / "run", "--evaluation", tmp_path / "eval.yaml")
    assert "step 2 is being evaluated by another process: left to it" in caplog.text
    assert [(tmp_path / "run" / "eval" / f"step-00000{s}" / "summary.json").is_file() for s in (0, 2, 4)] == [
        True, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize("way", ["watch", "afterwards"])
def test_evaluated_later_training_asks_nothing(way: str, tiny: Path, tiny_reward: Path, tmp_path: Path) -> None:
    """Afterwards: all checkpoints when training has ended; watch: none, but what to ask is left for the watcher."""
    from eval.commands.watch import evaluate_output, recorded_evaluation

    (tmp_path / "eval.yaml").write_text("limit: 4\nexperiments: [winogender]\nconditions: [Q]\n")
    more = ("--evaluation", tmp_path / "eval.yaml", "--sample_prompts", 4)
    here = run("rloo", tiny, tiny_reward, tmp_path / "here", *more)
    later = run("rloo", tiny, tiny_reward, tmp_path / "later", *more, "--evaluate", way)
    assert learned(later) == learned(here)
    if way == "watch":
        assert not (tmp_path / "later" / "eval").exists()
        evaluation = recorded_evaluation(tmp_path / "later")
        assert evaluation is not None
        evaluate_output(tmp_path / "later", evaluation)
    for step in (0, 2, 4):
        one, other = (tmp_path / name / "eval" / f"step-00000{step}" for name in ("here", "later"))
        assert (one / "records.jsonl").read_text() == (other / "records.jsonl").read_text()


def test_what_a_kill_left_unsent_is_sent_by_the_same_command_on_another_machine_too(
    tiny: Path, tiny_reward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before its end, and again between its result and the publishing: the policy keeps its name, and all of its
    evaluations are sent.
    """
    config, output = tmp_path / "eval.yaml", tmp_path / "out"
    config.write_text("limit: 4\nexperiments: [winogender]\nconditions: [Q]\n")
    more = ("--evaluation", config, "--evaluate", "afterwards", "--report_to", "wandb", "--run_name", "exp",
            "--max_steps", 2, "--checkpoint_steps", 0, 2)  # fmt: skip

    def killed(*_: object) -> None:
        raise Killed

    policies = []
    finish = train.run.Run._finish

    def killed_after(run: train.run.Run, result: dict[str, Any]) -> None:
        finish(run, result)
        raise Killed

    places = (train.run, "evaluate_afterwards", killed), (train.run.Run, "_finish", killed_after), None
    for node, at in zip(("one", "two", "three"), places, strict=True):
        with monkeypatch.context() as patch:
            patch.setattr(platform, "node", lambda node=node: node)
            if at:
                patch.setattr(*at)
            with pytest.raises(Killed) if at else nullcontext():
                run("rloo", tiny, tiny_reward, output, *more)
        policies.append(json.loads((output / "run.json").read_text())["policy"])
    assert policies[0].startswith("exp-") and len(set(policies)) == 1
    found = read_back(output)
    assert {r["rlhf_step"] for r in found[f"eval-{policies[0]}-q"]["rows"]} == {0, 2}
    assert f"report-{policies[0]}" in found and f"train-{policies[0]}" in found
    assert len({e["run"]["run_group"] for e in found.values()}) == 1


STATES = {
    "one process": "optimizer.pt",
    "FSDP2": "optimizer.bin",
    "FSDP2 in shards": "optimizer_0/",
    "ZeRO-3": "global_step50/",
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_any_optimizer_state_is_gone_on_from_and_dropped(state: str, tmp_path: Path) -> None:
    """With a folder beside them that somebody made, and a save that was killed."""
    for name in ("checkpoint-0", "checkpoint-50", "checkpoint-100", "checkpoint-150", "checkpoint-50-keep"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "policy.json").write_text("{}")
        if name != "checkpoint-0":
            (folder / "trainer_state.json").write_text('{"global' if name == "checkpoint-150" else "{}")
            (folder / state).mkdir() if state.endswith("/") else (folder / state).write_text("")
            (folder / "scheduler.pt").write_text("")
    assert resume_from(tmp_path) == tmp_path / "checkpoint-100"
    drop_optimizer_states(tmp_path / "checkpoint-100")
    has = {p.name: (p / state).exists() and (p / "scheduler.pt").exists() for p in tmp_path.glob("checkpoint-*")}
    assert has == {
        "checkpoint-0": False, "checkpoint-50": False, "checkpoint-100": True, "checkpoint-150": True,
        "checkpoint-50-keep": True,
    }  # fmt: skip


def test_checkpoints_that_cannot_be_gone_on_from_are_not_trained_over(
    tiny: Path, tiny_reward: Path, tmp_path: Path
) -> None:
    more = ("--sample_prompts", 0)
    run("rloo", tiny, tiny_reward, tmp_path, *more)
    (tmp_path / "rloo.json").unlink()
    for path in tmp_path.glob("checkpoint-*/optimizer.pt"):
        path.unlink()
    before = (tmp_path / "checkpoint-2" / "policy.json").stat().st_mtime_ns
    with pytest.raises(InputError, match=r"has complete checkpoints \(steps 2, 4\) and none that can be gone on from"):
        run("rloo", tiny, tiny_reward, tmp_path, *more)
    assert (tmp_path / "checkpoint-2" / "policy.json").stat().st_mtime_ns == before
    for step in (2, 4):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    assert run("rloo", tiny, tiny_reward, tmp_path, *more)["steps"] == 4, "step 0 alone is no training to lose"


def test_another_number_of_processes_is_another_run(tmp_path: Path) -> None:
    """Except for a folder that does not say with how many it was started."""
    one = Stage(tmp_path, "r.json", {"seed": 0, "processes": 1})
    assert one.begin() is None
    one.record()
    with pytest.raises(InputError, match="was started with processes = 1, now it is 2"):
        Stage(tmp_path, "r.json", {"seed": 0, "processes": 2}).begin()
    write_json(tmp_path / "settings.json", {"seed": 0})
    old = Stage(tmp_path, "r.json", {"seed": 0, "processes": 2})
    assert old.begin() is None
    assert old.settings == {"seed": 0}, "what is recorded stays as it was"
    with pytest.raises(InputError, match="was started with seed = 0, now it is 1"):
        Stage(tmp_path, "r.json", {"seed": 1, "processes": 2}).begin()


def test_settings_say_how_many_processes(tiny: Path, tiny_reward: Path, tmp_path: Path) -> None:
    run("rloo", tiny, tiny_reward, tmp_path, "--sample_prompts", 0, "--max_steps", 2, "--checkpoint_steps", 2)
    assert json.loads((tmp_path / "settings.json").read_text())["processes"] == 1


def test_a_number_that_is_not_finite_is_null_and_told(
    tiny: Path, tiny_reward: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It kept the stage from ever finishing."""
    from train.summary import summary

    real = train.online.log_step_counts

    def with_inf(base: type) -> type:
        class Odd(real(base)):
            def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
                if self.state.global_step == 3:
                    logs |= {"grad_norm": math.inf}
                    self._metrics["train"] |= {"reward": [math.nan], "kl": [math.nan]}
                super().log(logs, start_time)

        return Odd

    odd = train.rloo.ALGORITHM._replace(trainer=with_inf(trl.RLOOTrainer))
    monkeypatch.setattr(train.rloo, "ALGORITHM", odd)
    result = run("rloo", tiny, tiny_reward, tmp_path, "--sample_prompts", 0)
    assert result == json.loads((tmp_path / "rloo.json").read_text())
    assert [entry["grad_norm"] is None for entry in result["log"]] == [False, False, True, False]
    assert "rloo: log at step 3: grad_norm is inf: written as null" in caplog.text
    assert all(entry["beta"] > 0 for entry in result["log"]), "the KL budget passes over a KL that is no number"
    means = [entry["reward"] for entry in result["log"] if entry["reward"] is not None]
    assert f"learned reward {sum(means) / 3:.3f} (first 4 steps)" in summary(result)
