"""What a policy may start from: a base, an adapter of ours, a merged model; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import train.checks
import train.policy
from eval.errors import InputError
from eval.models.checkpoints import load_checkpoint
from tests.support.adapters import adapter_for
from tests.support.rl_runs import Killed, run, same_weights

TWO_STEPS = ("--max_steps", 2, "--checkpoint_steps", 0, 2, "--sample_prompts", 4)
IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def adapted(tiny: Path, tiny_reward: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of ours that differs from its base."""
    output = tmp_path_factory.mktemp("runs") / "first"
    run("rloo", tiny, tiny_reward, output, *TWO_STEPS, "--learning_rate", 0.05)
    return output / "checkpoint-2"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize("adapter", [True, False])
def test_from_an_adapter_of_ours(adapter: bool, adapted: Path, tiny: Path, tiny_reward: Path, tmp_path: Path) -> None:
    """The starting policy, and so the reference of the KL, is base and adapter together; with a new adapter, or in
    full.
    """
    more = (*TWO_STEPS, "--use_peft", str(adapter).lower())
    result = run("rloo", adapted, tiny_reward, tmp_path, *more)
    start = load_checkpoint(str(tiny), str(adapted))
    merged = load_checkpoint(str(tmp_path / "start"))
    assert torch.allclose(logits(start.model), logits(merged.model), atol=1e-5)
    assert not torch.allclose(logits(load_checkpoint(str(tiny)).model), logits(merged.model), atol=1e-3)
    assert abs(result["log"][0]["kl"]) < 1e-6, "before the first update the policy is the reference"
    assert result["merged_from"]["adapter"] == str(adapted)
    assert result["merged_from"]["base"] == str(tiny)
    assert result["model"] == str(tmp_path / "start")
    checkpoint = tmp_path / "checkpoint-0"
    zero = load_checkpoint(str(tmp_path / "start"), str(checkpoint)) if adapter else load_checkpoint(str(checkpoint))
    assert torch.allclose(logits(zero.model), logits(merged.model), atol=1e-6)
    policy = json.loads((tmp_path / "checkpoint-2" / "policy.json").read_text())
    assert policy["settings"]["learning_rate"] == 0.01 and policy["versions"]["torch"] and policy["rewards"]


def test_a_merged_start_resumes_and_is_merged_once(
    adapted: Path, tiny: Path, tiny_reward: Path, tmp_path: Path
) -> None:
    run("grpo", adapted, tiny_reward, tmp_path / "a", *TWO_STEPS)
    merged = (tmp_path / "a" / "start" / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "a" / "grpo.json").unlink()
    (tmp_path / "a" / "checkpoint-2" / "policy.json").unlink()
    run("grpo", adapted, tiny_reward, tmp_path / "a", *TWO_STEPS)
    assert (tmp_path / "a" / "start" / "model.safetensors").stat().st_mtime_ns == merged
    run("grpo", adapted, tiny_reward, tmp_path / "b", *TWO_STEPS)
    same_weights(tmp_path / "a" / "checkpoint-2", tmp_path / "b" / "checkpoint-2")


def test_a_refused_command_leaves_the_start_of_another_run(
    adapted: Path, tiny: Path, tiny_reward: Path, tmp_path: Path
) -> None:
    output, other = tmp_path / "run", tmp_path / "other"
    finished = run("rloo", adapted, tiny_reward, output, *TWO_STEPS)
    before = (output / "start" / "model.safetensors").read_bytes()
    shutil.copytree(adapted, other)
    for refused, more in ((other, ()), (adapted, ("--dtype", "bfloat16"))):
        with pytest.raises(
            InputError, match=r"start was merged with (adapter|dtype) = .*; choose another --output_dir"
        ):
            run("rloo", refused, tiny_reward, output, *TWO_STEPS, *more)
    assert (output / "start" / "model.safetensors").read_bytes() == before
    assert run("rloo", adapted, tiny_reward, output, *TWO_STEPS) == finished


def test_a_merge_that_was_killed_is_done_again(
    adapted: Path, tiny: Path, tiny_reward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, value: Any) -> None:
        raise Killed

    monkeypatch.setattr(train.policy, "write_json", killed)
    with pytest.raises(Killed):
        run("rloo", adapted, tiny_reward, tmp_path, *TWO_STEPS)
    assert not (tmp_path / "start").exists()
    monkeypatch.undo()
    (tmp_path / "start").mkdir()  # as an earlier version left it
    assert run("rloo", adapted, tiny_reward, tmp_path, *TWO_STEPS)["steps"] == 2
    assert (tmp_path / "start" / "merged.json").is_file()
    assert not list(tmp_path.glob(".start*"))


def test_dtype_auto_keeps_that_of_the_base(adapted: Path, tiny: Path, tiny_reward: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(tiny, half)
    AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16).save_pretrained(half)
    first = run("rloo", half, tiny_reward, tmp_path / "first", *TWO_STEPS, "--dtype", "auto")
    assert first["dtype"] == "auto"
    run("rloo", tmp_path / "first" / "checkpoint-2", tiny_reward, tmp_path / "second", *TWO_STEPS, "--dtype", "auto")
    start = load_file(tmp_path / "second" / "start" / "model.safetensors")
    assert {tensor.dtype for tensor in start.values()} == {torch.bfloat16}


def test_an_adapter_that_does_not_say_its_base(tiny: Path, tiny_reward: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no policy\.json, which says on what it was trained; give a checkpoint"):
        run("rloo", adapter_for(tiny, tmp_path / "adapter"), tiny_reward, tmp_path / "out")


def test_quantised_weights_need_bitsandbytes_and_an_adapter(
    tiny: Path, tiny_reward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.checks, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(InputError, match="load_in_4bit needs the package bitsandbytes, which is not there"):
        run("rloo", tiny, tiny_reward, tmp_path, "--load_in_4bit", "true")
    with pytest.raises(InputError, match="load_in_8bit needs use_peft"):
        run("rloo", tiny, tiny_reward, tmp_path, "--load_in_8bit", "true", "--use_peft", "false")


def test_the_papers_schedule(tiny: Path, tiny_reward: Path, tmp_path: Path) -> None:
    from types import SimpleNamespace

    from train.schedule import check_schedule, per_step

    config = SimpleNamespace(max_steps=1000, save_strategy="no", gradient_accumulation_steps=2, num_iterations=1)
    config.steps_per_generation, config.per_device_train_batch_size, config.num_generations = 2, 8, 4
    assert check_schedule(["paper"], config) == [0, 50, *range(100, 1001, 100)]
    config.max_steps = 150
    assert check_schedule(["paper"], config) == [0, 50, 100]
    assert check_schedule(["10", "0", "10"], config) == [0, 10]
    with pytest.raises(InputError, match="checkpoint_steps must be numbers, or the one word paper, not 'papr'"):
        check_schedule(["papr"], config)
    assert per_step(config, 3) == {"samples_per_step": 48, "prompts_per_step": 12}
    del config.num_generations
    assert per_step(config, 1) == {"samples_per_step": 32, "prompts_per_step": 16}
