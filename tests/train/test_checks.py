"""Options that are refused before work begins, in one line, and leave the folder to the corrected command."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import train.checks
from eval.errors import InputError
from eval.models.checkpoints import weights_mib
from reward.stage import COUNTS
from tests.support.rl_runs import run
from tests.support.sft_runs import sft
from train.checks import check_options, quantisation

TWO_STEPS = ("--max_steps", 2, "--checkpoint_steps", 0, 2, "--sample_prompts", 0)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--save_total_limit", 2), "save_total_limit must be left out, not 2"),
        (("--save_only_model", "true"), "save_only_model must be left out, not True"),
        (("--seed", -1), "seed must be at least 0, not -1"),
        (("--seed", 2**32), "seed must be below 2**32, which numpy takes, not 4294967296"),
        (("--eval_strategy", "steps"), "eval_strategy must be 'no', not 'steps'"),
        (("--temperature", 0), "temperature must be a number above 0, not 0.0"),
        (("--temperature", "nan"), "temperature must be a number above 0, not nan"),
        (("--temperature", "inf"), "temperature must be a number above 0, not inf"),
        (("--beta", -1), "beta must be a number of at least 0, not -1.0"),
        (("--beta", "nan"), "beta must be a number of at least 0, not nan"),
        (("--beta", "inf"), "beta must be a number of at least 0, not inf"),
        (("--learning_rate", "nan"), "learning_rate must be a number of at least 0, not nan"),
        (("--learning_rate", "inf"), "learning_rate must be a number of at least 0, not inf"),
        (("--learning_rate", -0.1), "learning_rate must be a number of at least 0, not -0.1"),
        (("--weight_decay", -1), "weight_decay must be a number of at least 0, not -1.0"),
        (("--neftune_noise_alpha", -1), "neftune_noise_alpha must be a number of at least 0, not -1.0"),
        *((("--" + name, 0), f"{name} must be at least 1, not 0") for name in COUNTS),
        (("--sync_ref_model", "true", "--use_peft", "false"), "sync_ref_model must be left out"),
        (("--top_p", 0), "top_p must be above 0 and at most 1"),
        (("--top_p", 1.1), "top_p must be above 0 and at most 1"),
        (("--top_k", -1), "top_k must be at least 0"),
        (("--min_p", 1.1), "min_p must be 0 to 1"),
        (("--repetition_penalty", 0), "repetition_penalty must be above 0"),
        (("--max_completion_length", 0), "an answer must have at least 1 token, not 0"),
    ],
)
@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_refused_by_the_rl_trainers(
    algorithm: str, more: tuple[object, ...], said: str, tiny: Path, tiny_reward: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        run(algorithm, tiny, tiny_reward, tmp_path / "run", *more)
    assert said in str(error.value)
    assert not (tmp_path / "run").exists()


def test_vllm_must_be_there(tiny: Path, tiny_reward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("trl.import_utils"), "is_vllm_available", lambda *_: False)
    with pytest.raises(InputError, match="use_vllm needs the package vllm, which is not there"):
        run("rloo", tiny, tiny_reward, tmp_path, "--use_vllm", "true")


@pytest.mark.parametrize("name", ["save_total_limit", "save_only_model"])
def test_fine_tuning_keeps_its_schedule_too(name: str, tiny: Path, examples: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{name} must be left out"):
        sft(tiny, examples, tmp_path, f"--{name}", 1)
    assert not list(tmp_path.iterdir())


def test_a_refused_option_can_be_corrected(
    tiny: Path, tiny_reward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # not there, even where it is installed
    for more, said in (
        (("--lora_target_modules", "nosuch"), "Target modules .*nosuch.* not found"),
        (("--optim", "paged_adamw_8bit"), "(bitsandbytes|bnb)"),
        (("--lr_scheduler_type", "cosine_with_min_lr"), "min_lr"),
        (("--lr_scheduler_type", "warmup_stable_decay"), "lr_scheduler_kwargs: .*num_decay_steps"),
    ):
        with pytest.raises(InputError, match=f"cannot be made with these options: .*{said}"):
            run("rloo", tiny, tiny_reward, tmp_path, *TWO_STEPS, *more)
    assert run("rloo", tiny, tiny_reward, tmp_path, *TWO_STEPS)["steps"] == 2


def quantised(**more: Any) -> Any:
    chosen = {"use_peft": True, "load_in_4bit": False, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4"} | more
    return SimpleNamespace(**chosen)


def test_a_quantised_model_is_not_evaluated_in_the_process(
    tiny: Path, tiny_reward: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """It would measure other weights than a watcher, under the same identity."""
    from trl import RLOOConfig

    monkeypatch.setattr(train.checks, "is_bitsandbytes_available", lambda: True)
    (tmp_path / "eval.yaml").write_text("limit: 4\n")
    asked = ("--evaluation", tmp_path / "eval.yaml", "--load_in_4bit", "true")
    said = "evaluate must not be in_process with load_in_4bit: .* give --evaluate watch or --evaluate afterwards"
    with pytest.raises(InputError, match=said):
        run("rloo", tiny, tiny_reward, tmp_path / "run", *asked)
    with pytest.raises(InputError, match=said):
        sft(tiny, examples, tmp_path / "run", *asked, "--use_peft", "true")
    assert not (tmp_path / "run").exists()
    config = RLOOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    for evaluation, way in ((None, "in_process"), ("e.yaml", "watch"), ("e.yaml", "afterwards")):
        given: Any = SimpleNamespace(evaluation=evaluation, evaluate=way)
        check_options(given, config, quantised(load_in_8bit=True))
    assert quantisation(quantised(load_in_4bit=True)) == "4 bits (nf4)"
    assert (quantisation(quantised(load_in_8bit=True)), quantisation(quantised())) == ("8 bits", None)


def test_what_is_recorded_of_prompts_and_quantisation(tiny: Path, tiny_reward: Path, tmp_path: Path) -> None:
    pairs = Path(__file__).parents[2] / "eval" / "data" / "preferences" / "pairs.jsonl"
    run("rloo", tiny, tiny_reward, tmp_path / "named", *TWO_STEPS, "--preferences", pairs)
    run("rloo", tiny, tiny_reward, tmp_path / "small", *TWO_STEPS)
    for name, data in (("named", "named sources"), ("small", "small set")):
        for file in ("run.json", "checkpoint-2/policy.json"):
            written = json.loads((tmp_path / name / file).read_text())
            assert (written["data"], written["quantisation"]) == (data, None)


def test_the_announced_room_is_that_of_what_is_saved(
    tiny: Path, examples: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    saved = (tiny / "model.safetensors").stat().st_size / 2**20
    assert weights_mib(str(tiny), None, "auto") == pytest.approx(saved, rel=0.05)
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16).save_pretrained(half)
    assert weights_mib(str(half), None, "auto") == pytest.approx(saved / 2, rel=0.05)
    assert weights_mib(str(half), None, "float32") == pytest.approx(saved, rel=0.05)
    monkeypatch.setattr("eval.models.checkpoints.check_model", lambda *_: AutoConfig.from_pretrained(tiny))
    assert weights_mib("someone/model", None, "float32") == pytest.approx(saved, rel=0.05), "without its weights"
    monkeypatch.undo()
    monkeypatch.setattr("train.policy.weights_mib", lambda *_: 1000.0)
    monkeypatch.setattr("train.sft._trainer", lambda *_: (_ for _ in ()).throw(ValueError("no further")))
    with caplog.at_level("INFO"), pytest.raises(InputError, match="no further"):
        sft(tiny, examples, tmp_path / "out")
    assert "2 checkpoints need about 7064 MiB" in caplog.text, (
        "two models, each with a state of twice as much, and the merged one"
    )


def test_a_result_is_written_whatever_its_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also what is measured at the end of a fine-tuning that diverged."""
    from reward.stage import Stage
    from train.sft import summary

    known = {"exact_match": 0.5, "n": 4, "finished": 0.25, "answers": 4, "answer_tokens": 8}
    held_out = {"before": {**known, "loss": 2.0}, "after": {**known, "loss": float("nan")}}
    Stage(tmp_path, "sft.json", {}).finish(
        {"steps": 9, "examples": 5, "held_out": held_out, "log": [{"step": 3, "entropy": float("inf")}]}
    )
    result = json.loads((tmp_path / "sft.json").read_text())
    assert (result["held_out"]["after"]["loss"], result["log"][0]["entropy"]) == (None, None)
    assert "sft: held_out: after: loss is nan: written as null" in caplog.text
    assert "sft: log at step 3: entropy is inf: written as null" in caplog.text
    assert "loss per token 2.0000 -> not finite" in summary(result)
