"""RL's rewards inside TRL's trainer: its own numbers and end tokens; what a run records, refuses and leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.cli.parser import parse
from eval.errors import InputError
from reward.functions import RewardOptions, build_rewards, check_rewards, end_token_ids
from reward.scoring import RewardModel
from tests.support.rl_runs import learned, rloo, rloo_arguments

PROMPTS = [
    [{"role": "user", "content": "Which bread keeps longest?"}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello, what is it?"},
        {"role": "user", "content": "How do I fold a shirt?"},
    ],
    [{"role": "user", "content": "Say nothing."}],
]
ANSWERS = [
    [{"role": "assistant", "content": text}]
    for text in ("Rye, in a cloth, for about a week.", "Sleeves first, then in half.", "")
]


def rescaled(reward: Path, to: Path, factor: float) -> Path:
    """The reward model with every score multiplied by `factor`."""
    if not to.exists():
        shutil.copytree(reward, to)
    tensors = load_file(reward / "model.safetensors")
    tensors["score.weight"] = tensors["score.weight"] * factor
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


def test_trls_trainer_computes_the_same_reward_by_its_own_path(tiny: Path, tiny_reward: Path, tmp_path: Path) -> None:
    """The module given to RLOOTrainer as it stands, beside our function, in one call of its _calculate_rewards."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RLOOConfig, RLOOTrainer

    config: Any = RLOOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", per_device_train_batch_size=2,
        gradient_checkpointing=False,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    end_ids = end_token_ids(str(tiny), None, tokenizer)
    built = build_rewards(check_rewards(RewardOptions([str(tiny_reward)]), config), "cpu", end_ids)
    module = AutoModelForSequenceClassification.from_pretrained(tiny_reward, num_labels=1)
    functions: list[Any] = [module, *built.functions]
    inputs: list[Any] = [{"prompt": p} for p in PROMPTS]
    trainer: Any = RLOOTrainer(
        model=str(tiny), reward_funcs=functions, args=config, train_dataset=Dataset.from_list(inputs),
        processing_class=tokenizer,
    )  # fmt: skip
    theirs, ours = trainer._calculate_rewards(inputs, PROMPTS, ANSWERS, [[7, 8, 1], [7, 8], [1]]).T.tolist()
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert np.ptp(theirs) > 0.01
    assert trainer.reward_func_names[1:] == built.names
    assert sorted(trainer.eos_token_ids) == sorted(end_ids)


def test_end_tokens_come_from_the_generation_config_and_the_tokenizer(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "policy"
    shutil.copytree(tiny, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id == [3, 4]
    assert sorted(end_token_ids(str(folder), None, tokenizer)) == [1, 3, 4]
    (folder / "generation_config.json").unlink()  # then transformers goes by the model's configuration
    assert end_token_ids(str(folder), None, tokenizer) == [1]


def test_the_command_line_takes_one_or_several_reward_models(tmp_path: Path) -> None:
    (one,) = parse([RewardOptions], ["--reward_model", "a"], "train.rloo")
    (several,) = parse([RewardOptions], ["--reward_model", "a", "b+c", "--standardise_rewards", "false"], "train.rloo")
    (tmp_path / "c.yaml").write_text("reward_model: runs/a/model\n")
    (file,) = parse([RewardOptions], ["--config", str(tmp_path / "c.yaml")], "train.rloo")
    assert (one.reward_model, one.standardise_rewards) == (["a"], None)
    assert (several.reward_model, several.standardise_rewards) == (["a", "b+c"], False)
    assert file.reward_model == ["runs/a/model"]


def test_an_ensemble_in_a_run_is_penalised_recorded_and_fixed(tiny: Path, tiny_reward: Path, tmp_path: Path) -> None:
    from train.summary import summary

    twin = rescaled(tiny_reward, tmp_path / "twin" / "model", -2)
    more = [
        "--reward_model", tiny_reward, f"{tiny_reward}+{twin}", "--standardise_rewards", "false", "--reward_weights",
        1, 0.5, "--ensemble_penalty", 0.25, "--cut_off_penalty", 2, "--length_penalty", 0.1, "--length_penalty_from", 3,
    ]  # fmt: skip
    run = tmp_path / "run"
    result = rloo(tiny, tiny_reward, run, *more)
    names = ["reward", "reward-ensemble", "cut_off", "length"]
    assert [p["name"] for p in result["rewards"]] == names
    recorded = json.loads((run / "run.json").read_text())["rewards"]
    assert recorded == json.loads((run / "settings.json").read_text())["rewards"] == result["rewards"]
    for entry in result["log"]:
        single, ensemble, cut_off, length = (entry[f"rewards/{name}/mean"] for name in names)
        spread = entry["observed/reward-ensemble/spread"]
        assert entry["reward"] == pytest.approx(single + 0.5 * ensemble + cut_off + length, abs=1e-5)
        assert cut_off == pytest.approx(-2 * entry["completions/clipped_ratio"], abs=1e-6)
        # members s and -2s: their mean is -s / 2, their standard deviation 3|s| / 2
        assert entry["observed/reward-ensemble/mean"] == pytest.approx(-single / 2, abs=1e-5)
        assert ensemble == pytest.approx(-single / 2 - 0.25 * spread, abs=1e-5)
        assert spread >= 1.5 * abs(single) - 1e-5 > 0
    assert "  reward-ensemble, weight 0.5: " in summary(result)
    with pytest.raises(InputError, match=r"was started with ensemble_penalty = 0\.25, now it is 0\.5"):
        rloo(tiny, tiny_reward, run, *more, "--ensemble_penalty", 0.5)
    rescaled(tiny_reward, twin, -3)
    with pytest.raises(InputError, match="was started with rewards = "):
        rloo(tiny, tiny_reward, run, *more)


def test_observables_leave_the_weights_bit_identical(
    tiny: Path, tiny_reward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = rloo(tiny, tiny_reward, tmp_path / "watched")
    monkeypatch.setattr("reward.functions.OBSERVABLES", {})
    alone = rloo(tiny, tiny_reward, tmp_path / "alone")
    assert learned(watched) == learned(alone)
    a, b, start = (
        load_file(tmp_path / run / "adapter_model.safetensors")
        for run in ("watched/checkpoint-4", "alone/checkpoint-4", "alone/checkpoint-0")
    )
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], start[k]) for k in a)  # something was learned
    for entry in watched["log"]:
        assert entry["observed/tokens"] == pytest.approx(entry["completions/mean_length"])
        assert entry["observed/finished"] == pytest.approx(1 - entry["completions/clipped_ratio"])


def test_a_score_that_is_nan_ends_training_and_leaves_the_checkpoints(
    tiny: Path, tiny_reward: Path, tmp_path: Path, ended: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.rloo import main

    forward, calls = RewardModel._forward, []

    def breaks_in_step_4(self: RewardModel, *arguments: Any) -> Any:
        calls.append(0)  # the first call is the check at the start, then one a step
        return forward(self, *arguments) * (float("nan") if len(calls) == 5 else 1)

    monkeypatch.setattr(RewardModel, "_forward", breaks_in_step_4)
    said = ended(main, *rloo_arguments(tiny, tiny_reward, tmp_path), "--sample_prompts", "0")
    assert f"the reward model {tiny_reward} gives nan to 4 of 4 dialogues" in said
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-0", "checkpoint-2"]
    assert not (tmp_path / "rloo.json").exists()
