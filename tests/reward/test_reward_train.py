"""Training a reward model on a tiny model: measured as saved, on the same held-out pairs, resumed after a kill."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eval.errors import InputError
from reward.quality import ScoredPair, quality
from reward.scoring import DESCRIPTION, load_reward_model
from tests.support.reward_training import LORA, options, trained

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lora(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("runs") / "reward"
    return output, trained(tiny, output, *LORA, "--max_pairs", 60)


def test_what_is_reported_is_what_the_saved_model_does(lora: tuple[Path, dict[str, Any]]) -> None:
    from reward.preferences import fit_pairs, read_preferences, split_by_prompt
    from reward.scoring import score_pairs

    output, result = lora
    assert json.loads((output / "reward.json").read_text()) == json.loads(json.dumps(result))
    assert not (output / "model" / "adapter_config.json").exists()
    reward = load_reward_model(str(output / "model"))
    assert reward.max_length == result["max_length"] == 1024
    pairs, _ = fit_pairs(read_preferences(None, None).pairs, reward.tokenizer, 1024)
    training, held_out = split_by_prompt(pairs, 0.25, 0, 60)
    assert (result["pairs"], result["held_out_pairs"]) == (60, len(held_out)) == (len(training), 36)
    rows = [ScoredPair(**json.loads(line)) for line in (output / "held_out.jsonl").read_text().splitlines()]
    again = score_pairs(reward, held_out)
    assert [p.where for p in rows] == [p.where for p in again] == [p.where for p in held_out]
    assert [p.margin for p in rows] == pytest.approx([p.margin for p in again], abs=1e-6)
    measured = quality(rows)
    assert {name: result[name] for name in measured} == measured
    description = json.loads((output / "model" / DESCRIPTION).read_text())
    assert description["score_std"] == measured["score_std"] > 0
    assert description["accuracy"] == measured["accuracy"]
    assert result["settings"]["processes"] == 1
    assert {"reading", "head", "training", "saving", "scoring"} == set(result["seconds"])


def test_finished_is_not_done_again_and_other_settings_are_refused(
    tiny: Path, lora: tuple[Path, dict[str, Any]]
) -> None:
    output, result = lora
    before = (output / "model" / "model.safetensors").stat().st_mtime_ns
    assert trained(tiny, output, *LORA, "--max_pairs", 60) == json.loads(json.dumps(result))
    assert (output / "model" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="was started with max_pairs = 60, now it is 50"):
        trained(tiny, output, *LORA, "--max_pairs", 50)


@pytest.mark.parametrize("last", ["checkpoint-3", "checkpoint-6"])
def test_resumed_after_a_kill_it_ends_the_same(
    tiny: Path, lora: tuple[Path, dict[str, Any]], tmp_path: Path, last: str
) -> None:
    """Bit by bit, from the middle and from the last step, from which nothing is trained."""
    output, result = lora
    killed = tmp_path / "killed"
    shutil.copytree(output, killed)
    (killed / "reward.json").unlink()
    shutil.rmtree(killed / "model")
    if last == "checkpoint-3":
        shutil.rmtree(killed / "checkpoint-6")
    again = trained(tiny, killed, *LORA, "--max_pairs", 60)
    assert again["head"] == result["head"]
    assert again["steps"] == 6
    assert (result["resumed_from"], again["resumed_from"]) == (None, last)
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (output, killed))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert again["margin"] == result["margin"]
    assert again["accuracy"] == result["accuracy"]


def test_a_save_that_was_killed_is_passed_over(tiny: Path, lora: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Whatever the kill left of it; and a folder of another name that somebody made."""
    killed = tmp_path / "killed"
    shutil.copytree(lora[0], killed)
    (killed / "reward.json").unlink()
    (killed / "checkpoint-6" / "trainer_state.json").write_text("")
    shutil.copytree(killed / "checkpoint-3", killed / "checkpoint-4-keep")
    again = trained(tiny, killed, *LORA, "--max_pairs", 60)
    assert again["resumed_from"] == "checkpoint-3"
    assert again["margin"] == lora[1]["margin"]


def test_two_processes_end_with_the_same_reward_model(
    tiny: Path, lora: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Half the batch in each of two processes on the CPU (DDP over gloo), the head fitted in one and given to both."""
    launched = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "reward.train"]
    command = [*launched, *options(tiny, tmp_path, *LORA, "--max_pairs", 60, batch=4)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("reward model: ") == 1
    result, one = json.loads((tmp_path / "reward.json").read_text()), lora[1]
    assert result["head"] == one["head"]
    assert result["margin"] == pytest.approx(one["margin"], abs=1e-4)
    assert result["calibration"]["log_loss"] == pytest.approx(one["calibration"]["log_loss"], abs=1e-4)


def test_a_learning_curve_is_measured_on_the_same_pairs(
    tiny: Path, lora: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    fewer = trained(tiny, tmp_path, *LORA, "--max_pairs", 20, "--train_sampling_strategy", "group_by_length")
    assert fewer["pairs"] == 20
    assert fewer["held_out_sha256"] == lora[1]["held_out_sha256"]
    assert fewer["margin"] != lora[1]["margin"]


def test_in_full_with_a_random_head(tiny: Path, tmp_path: Path) -> None:
    result = trained(tiny, tmp_path, "--head", "random")
    assert "head" not in result
    assert result["pairs"] + result["held_out_pairs"] == 144
    assert load_reward_model(str(tmp_path / "model")).model.config.num_labels == 1


def test_over_long_pairs_are_cut_or_refused_and_counted(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    rows = []
    for i in range(40):
        old = f"Tell me of place {i}. " * (20 if i < 10 else 1)
        prompt = [
            {"role": "user", "content": old},
            {"role": "assistant", "content": "Gladly."},
            {"role": "user", "content": f"And number {i}? " * (20 if i == 39 else 1)},
        ]
        rows.append({"prompt": prompt, "chosen": "It lies by the sea.", "rejected": "No."})
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    options = (*LORA, "--preferences", file, "--max_length", 100)
    cut = trained(tiny, tmp_path / "cut", *options)
    assert cut["cut_pairs"] == 10
    assert sum(cut["left_out"].values()) == 1
    assert cut["pairs"] + cut["held_out_pairs"] == 39
    assert cut["accuracy"]["by_subset"].keys() == {"long"}
    refused = trained(tiny, tmp_path / "refused", *options, "--over_long", "refuse")
    assert refused["cut_pairs"] == 0
    assert refused["pairs"] + refused["held_out_pairs"] == 29


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--head", "small"), "head must be fitted or random, not small"),
        (("--held_out", "1.5"), "held_out must be between 0 and 1"),
        (("--over_long", "squeeze"), "over_long must be cut or refuse"),
        (("--preferences", "no/such.jsonl"), "no/such.jsonl is not there"),
        (("--max_length", "4"), "no pair has at most 4 tokens"),
        (("--preference_label", "kinder"), "must be better or safer, not 'kinder'"),
        (("--seed", "-1"), "seed must be at least 0, not -1"),
        (("--eval_strategy", "steps"), "eval_strategy must be 'no', not 'steps'"),
        (("--load_in_4bit", "true"), "load_in_4bit must be left out: a reward model is"),
        ((*LORA[:-2], "nosuch"), "cannot be made with these options: No modules were targeted"),
    ],
)
def test_bad_input_is_found_before_training(tiny: Path, tmp_path: Path, more: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        trained(tiny, tmp_path / "run", *more)
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "settings.json").exists(), "the corrected command is not refused"
