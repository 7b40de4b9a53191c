"""Killed and run again, every trainer ends as if it had not been: weights and every logged number, bit by bit."""

from __future__ import annotations

import importlib
import json
import platform
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from safetensors.torch import load_file

import train.callbacks
import train.run
from eval.config import parse
from eval.results import write_json
from reward.stage import last_checkpoint
from tests.test_tracking import read_back
from tests.test_train import rloo_arguments

NOT_LEARNED = {"step_time", "epoch"}
"""Logged numbers that are no function of what was learned."""


def run(algorithm: str, tiny: Path, reward: Path, output: Path, *more: object) -> dict[str, Any]:
    from trl import ModelConfig

    from train.arguments import PolicyArguments

    module = importlib.import_module(f"train.{algorithm}")
    argv = rloo_arguments(tiny, reward, output, *more)
    if algorithm == "online_dpo":
        argv = [*without(argv, "--num_generations", "--max_completion_length"), "--max_new_tokens", "6"]
    return module.train(*parse([PolicyArguments, module.ALGORITHM.config, ModelConfig], argv, f"train.{algorithm}"))


def without(argv: list[str], *names: str) -> list[str]:
    """argv less options of one value."""
    return [a for i, a in enumerate(argv) if a not in names and (i == 0 or argv[i - 1] not in names)]


def learned(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k not in NOT_LEARNED} for entry in result["log"]]


def same_weights(a: Path, b: Path, name: str = "adapter_model.safetensors") -> None:
    one, other = load_file(a / name), load_file(b / name)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one)


class Killed(BaseException):
    """No handler of errors catches it, like a kill."""


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
    from eval.results import Store

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
    from eval.watch import evaluate_output, recorded_evaluation

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
    for node, at in (("one", "evaluate_afterwards"), ("two", "publish_all"), ("three", None)):
        with monkeypatch.context() as patch:
            patch.setattr(platform, "node", lambda node=node: node)
            if at:
                patch.setattr(train.run, at, killed)
            with pytest.raises(Killed) if at else nullcontext():
                run("rloo", tiny, tiny_reward, output, *more)
        if wandb.run is not None:
            wandb.run.finish()
        policies.append(json.loads((output / "run.json").read_text())["policy"])
    assert policies[0].startswith("exp-") and len(set(policies)) == 1
    found = read_back(output)
    assert {r["rlhf_step"] for r in found[f"eval-{policies[0]}-q"]["rows"]} == {0, 2}
    assert f"report-{policies[0]}" in found and f"train-{policies[0]}" in found
    assert len({e["run"]["run_group"] for e in found.values()}) == 1
