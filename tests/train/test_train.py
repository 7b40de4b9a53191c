"""The trainers on a tiny model: whole chain, schedule, resume, and evaluation that leaves training unchanged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eval.errors import InputError
from eval.runner.store import Store
from tests.support.rl_runs import learned, rloo

EVALUATION = "limit: 4\ncategories: [Age]\ncot_limit: 4\ncot_max_new_tokens: 3\n"


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "eval.yaml"
    path.write_text(EVALUATION)
    return path


@pytest.fixture(scope="module")
def evaluated(tiny: Path, tiny_reward: Path, evaluation: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    output = tmp_path_factory.mktemp("runs") / "with"
    more = ("--evaluation", evaluation, "--keep_optimizer_states", "all")  # to be killed before the last one
    return output, rloo(tiny, tiny_reward, output, *more)


def test_checkpoints_exactly_at_the_scheduled_steps_each_evaluated(evaluated: Any) -> None:
    output, result = evaluated
    assert sorted(p.name for p in output.glob("checkpoint-*")) == ["checkpoint-0", "checkpoint-2", "checkpoint-4"]
    assert result["steps"] == 4
    for step in (0, 2, 4):
        summary = Store(output / "eval" / f"step-{step:06d}").summary()
        assert summary is not None
        assert summary["step"] == step
        assert json.loads((output / f"checkpoint-{step}" / "policy.json").read_text())["rlhf_step"] == step
    records = [{r["item"]: r["logprobs"] for r in Store(output / "eval" / f"step-{s:06d}").read()} for s in (0, 4)]
    assert records[0] != records[1]


def test_evaluation_leaves_training_bit_identical(
    tiny: Path, tiny_reward: Path, evaluated: Any, tmp_path: Path
) -> None:
    output, with_evaluation = evaluated
    without = rloo(tiny, tiny_reward, tmp_path)
    assert learned(without) == learned(with_evaluation)
    for step in (2, 4):
        a, b = (load_file(folder / f"checkpoint-{step}" / "adapter_model.safetensors") for folder in (tmp_path, output))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_step_0_is_the_starting_policy(evaluated: Any, tiny: Path) -> None:
    from eval.models.checkpoints import load_checkpoint

    output, _ = evaluated
    ids = torch.tensor([[5, 6, 7]])
    with_adapter = load_checkpoint(str(tiny), str(output / "checkpoint-0"))
    base = load_checkpoint(str(tiny))
    assert torch.equal(with_adapter.model(ids).logits, base.model(ids).logits)
    assert with_adapter.provenance["model_params"] == base.provenance["model_params"]


def test_evaluating_a_checkpoint_afterwards_gives_the_same_records(
    evaluated: Any, tiny: Path, evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from eval.__main__ import main

    output, _ = evaluated
    monkeypatch.setattr(
        sys, "argv",
        ["eval", "run", "--config", str(evaluation), "--model", str(tiny), "--adapter", str(output / "checkpoint-4"),
         "--step", "4", "--output", str(tmp_path), "--dtype", "float32"],
    )  # fmt: skip
    main()
    assert list(Store(tmp_path).read()) == list(Store(output / "eval" / "step-000004").read())


def test_resumed_after_a_kill_it_ends_the_same(
    tiny: Path, tiny_reward: Path, evaluation: Path, evaluated: Any, tmp_path: Path
) -> None:
    """Killed after step 2 while checkpoint 4 was being saved and checkpoint 2 had not been evaluated."""
    output, whole = evaluated
    folder = tmp_path / "killed"
    shutil.copytree(output, folder)
    (folder / "rloo.json").unlink()
    (folder / "checkpoint-4" / "policy.json").unlink()
    shutil.rmtree(folder / "eval" / "step-000004")
    (folder / "eval" / "step-000002" / "summary.json").unlink()
    resumed = rloo(tiny, tiny_reward, folder, "--evaluation", evaluation)
    assert learned(resumed)[-2:] == learned(whole)[-2:]
    for step in (2, 4):
        a, b = (Store(f / "eval" / f"step-{step:06d}") for f in (folder, output))
        assert [r["logprobs"] for r in a.read()] == [r["logprobs"] for r in b.read()]
        assert a.summary() is not None


def test_finished_is_not_done_again(
    evaluated: Any, tiny: Path, tiny_reward: Path, evaluation: Path, monkeypatch
) -> None:
    import train.online

    output, result = evaluated
    monkeypatch.setattr(train.online, "_trainer", lambda *_: pytest.fail("trained again"))
    assert rloo(tiny, tiny_reward, output, "--evaluation", evaluation) == json.loads(json.dumps(result))
    with pytest.raises(InputError, match=r"was started with learning_rate = 0\.01, now it is 0\.02"):
        rloo(tiny, tiny_reward, output, "--evaluation", evaluation, "--learning_rate", 0.02)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--checkpoint_steps", 0, 5), "checkpoint step 5 is above the last step, max_steps 4"),
        (("--checkpoint_steps", -1), "checkpoint step -1 is negative"),
        (("--steps_per_generation", 2, "--checkpoint_steps", 1), "inside a generation buffer"),
        (("--save_strategy", "steps"), "save_strategy must be 'no'"),
        (("--reward_model", "no/such/reward"), "reward model no/such/reward: there is no such folder"),
        (("--model_name_or_path", "./no/such"), "model ./no/such: there is no such folder"),
        (("--lora_top_layers", 3), "lora_top_layers must be 1 to 2"),
        (("--data_dir", "no/data"), "data folder no/data is not there"),
        (("--output_dir", "/proc/nothing"), "cannot be written"),
        (("--evaluation", "no.yaml"), "config file no.yaml"),
    ],
)
def test_bad_input_is_found_before_training(tiny: Path, tiny_reward: Path, tmp_path: Path, more, said: str) -> None:
    with pytest.raises(InputError) as error:
        rloo(tiny, tiny_reward, tmp_path, *more)
    assert said in str(error.value)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_full_fine_tuning_has_whole_checkpoints(
    tiny: Path, tiny_reward: Path, evaluation: Path, tmp_path: Path
) -> None:
    more = ("--use_peft", "false", "--max_steps", 2, "--checkpoint_steps", 0, 2, "--evaluation", evaluation)
    rloo(tiny, tiny_reward, tmp_path, *more)
    summaries = [Store(tmp_path / "eval" / f"step-{step:06d}").summary() for step in (0, 2)]
    assert summaries[0] is not None and summaries[1] is not None
    assert summaries[0]["adapter"] is None
    assert summaries[0]["weights"] != summaries[1]["weights"]
    assert summaries[0]["model_params"] == summaries[1]["model_params"]


def test_a_model_without_chat_template_is_refused(tiny: Path, tiny_reward: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    (base / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="has no chat template"):
        rloo(base, tiny_reward, tmp_path / "out")


def test_a_policy_is_no_reward_model(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it must be a sequence classification model"):
        rloo(tiny, tiny, tmp_path)


def test_no_room_is_found_before_training(tiny: Path, tiny_reward: Path, tmp_path: Path, monkeypatch) -> None:
    import eval.files

    monkeypatch.setattr(eval.files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**30, 2**30, 2**20))
    with pytest.raises(InputError, match="has 1 MiB free and the run needs about"):
        rloo(tiny, tiny_reward, tmp_path)
