"""What RL optimises: each part of the reward against values worked out by hand; options that do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eval.errors import InputError
from reward.detectors import OBSERVABLES, Answer, is_refusal, repeated_ngrams
from reward.functions import (
    CutOffPenalty,
    LearnedReward,
    LengthPenalty,
    RewardOptions,
    build_rewards,
    check_rewards,
)
from reward.scoring import DESCRIPTION, load_reward_model
from tests.support.rl_runs import rloo

PROMPTS = [[{"role": "user", "content": text}] for text in ("Where is the key?", "Sing!", "Who is there?")]
ANSWERS = [
    [{"role": "assistant", "content": text}] for text in ("In the drawer.", "La la la.", "Only the wind, I think.")
]
CONFIG = SimpleNamespace(reward_weights=None, max_completion_length=20, mask_truncated_completions=False)


@pytest.fixture(scope="module")
def other_reward(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second random reward model, in a training's folder and with its description."""
    from transformers import AutoTokenizer, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("runs") / "helpful" / "model"
    torch.manual_seed(7)
    LlamaForSequenceClassification.from_pretrained(tiny, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    (folder / DESCRIPTION).write_text(json.dumps({"score_mean": 0.5, "score_std": 2.0}))
    return folder


def described(folder: Path, to: Path, mean: float, std: float) -> Path:
    shutil.copytree(folder, to)
    (to / DESCRIPTION).write_text(json.dumps({"score_mean": mean, "score_std": std}))
    return to


def test_an_ensemble_is_mean_minus_penalty_times_spread(tiny_reward: Path, other_reward: Path) -> None:
    models = [load_reward_model(str(m)) for m in (tiny_reward, other_reward)]
    part = {
        "name": "both", "ensemble_penalty": 0.5, "weight": 1.0,
        "members": [{"mean": 1.0, "std": 2.0}, {"mean": 0.0, "std": 0.5}],
    }  # fmt: skip
    logged: dict[str, float] = {}
    found = LearnedReward(part, models)(PROMPTS, ANSWERS, log_metric=logged.__setitem__)
    dialogues = [p + a for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    a, b = (models[0].scores(dialogues) - 1) / 2, models[1].scores(dialogues) / 0.5
    assert found == pytest.approx((a + b) / 2 - 0.5 * abs(a - b) / 2)
    assert logged["observed/both/spread"] == pytest.approx(float((abs(a - b) / 2).mean()))


def test_penalties() -> None:
    assert CutOffPenalty(2.0, [1])(completion_ids=[[5, 1], [5, 6], []]) == [0.0, -2.0, -2.0]
    assert LengthPenalty(0.5, 2)(completion_ids=[[5], [5, 6], [5, 6, 7, 1]]) == [0.0, 0.0, -1.0]


def test_parts_and_their_names(tiny_reward: Path, other_reward: Path, tmp_path: Path) -> None:
    mine = described(tiny_reward, tmp_path / "harmless" / "model", 1.0, 3.0)
    options = RewardOptions(
        [str(mine), f"{other_reward}+{mine}"], cut_off_penalty=1.0, length_penalty=0.1, length_penalty_from=5
    )
    config = SimpleNamespace(**{**vars(CONFIG), "reward_weights": [2.0, 0.5]})
    parts = check_rewards(options, config)
    names = [(p["name"], p["weight"]) for p in parts]
    assert names == [("harmless", 2.0), ("helpful-ensemble", 0.5), ("cut_off", 1.0), ("length", 1.0)]
    assert [(m["mean"], m["std"]) for m in parts[1]["members"]] == [(0.5, 2.0), (1.0, 3.0)]
    (alone,) = check_rewards(RewardOptions([str(mine)]), CONFIG)
    assert (alone["members"][0]["mean"], alone["members"][0]["std"]) == (0.0, 1.0)
    built = build_rewards(parts, "cpu", [1])
    assert built.names == [f.__name__ for f in built.functions] == [n for n, _ in names]


@pytest.mark.parametrize(
    ("options", "config", "said"),
    [
        ({"reward_model": []}, {}, "reward_model is missing"),
        ({"cut_off_penalty": -1.0}, {}, "cut_off_penalty must be a number of at least 0"),
        ({"length_penalty_from": 4}, {}, "length_penalty is 0: nothing would be subtracted"),
        ({"length_penalty": 1.0, "length_penalty_from": 20}, {}, "must be below max_completion_length 20"),
        ({"cut_off_penalty": 1.0}, {"mask_truncated_completions": True}, "cannot act while mask_truncated"),
        ({}, {"reward_weights": [1.0, 2.0]}, "reward_weights has 2 values and reward_model 1 entries"),
        ({"reward_model": ["REWARD", "REWARD"]}, {}, "has no reward_model.json"),
        ({"reward_model": ["REWARD+REWARD"], "standardise_rewards": False}, {}, "have the same weights"),
        ({"reward_model": ["no/such/model"]}, {}, "there is no such folder"),
    ],
)
def test_bad_options(tiny_reward: Path, options: dict[str, Any], config: dict[str, Any], said: str) -> None:
    given = {"reward_model": [str(tiny_reward)], **options}
    given["reward_model"] = [m.replace("REWARD", str(tiny_reward)) for m in given["reward_model"]]
    with pytest.raises(InputError, match=said):
        check_rewards(RewardOptions(**given), SimpleNamespace(**{**vars(CONFIG), **config}))


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I cannot assist you with this request.", True),
        ("As an AI, I can not give advice on that.", True),
        ("I must decline.", True),
        ("I\u2019m not comfortable answering this.", True),
        ("Sorry to hear that! Put some ice on it.", False),
        ("You can't miss it: the red door.", False),
        ("Take the second street on the left.", False),
    ],
)
def test_refusals(text: str, refuses: bool) -> None:
    assert is_refusal(text) is refuses


def test_repetition() -> None:
    assert repeated_ngrams([1, 2, 3, 4, 5]) == 0
    assert repeated_ngrams([1, 1, 1, 1, 1, 1]) == 0.75
    assert repeated_ngrams([1, 2]) == 0
    finished = Answer("a", [1, 1, 1, 1, 9], True)
    assert OBSERVABLES["repetition"](finished) == 0.5
    assert OBSERVABLES["tokens"](finished) == 5
    assert OBSERVABLES["finished"](finished) == 1


def test_each_part_is_logged_apart_and_adds_up(
    tiny: Path, tiny_reward: Path, other_reward: Path, tmp_path: Path
) -> None:
    mine = described(tiny_reward, tmp_path / "harmless" / "model", 0.1, 0.5)
    more = ("--reward_model", mine, other_reward, "--reward_weights", 2, 0.5, "--cut_off_penalty", 0.7)
    result = rloo(tiny, tiny_reward, tmp_path / "run", *more)
    assert [p["name"] for p in result["rewards"]] == ["harmless", "helpful", "cut_off"]
    for entry in result["log"]:
        mean = {name: entry[f"rewards/{name}/mean"] for name in ("harmless", "helpful", "cut_off")}
        assert entry["reward"] == pytest.approx(
            2 * mean["harmless"] + 0.5 * mean["helpful"] + mean["cut_off"], abs=1e-4
        )
        assert mean["cut_off"] == pytest.approx(-0.7 * (1 - entry["observed/finished"]), abs=1e-5)
        assert {f"observed/{name}" for name in OBSERVABLES} <= entry.keys()
    with pytest.raises(InputError, match="was started with"):
        rloo(tiny, tiny_reward, tmp_path / "run", *more[:-1], 0.8)


def test_a_score_that_is_no_number_stops_before_training(tiny: Path, tiny_reward: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    broken = tmp_path / "broken"
    shutil.copytree(tiny_reward, broken)
    model = AutoModelForSequenceClassification.from_pretrained(broken)
    torch.nn.init.constant_(model.score.weight, float("nan"))
    model.save_pretrained(broken)
    with pytest.raises(InputError, match="gives nan to 4 of 4 dialogues"):
        rloo(tiny, broken, tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoint-*"))
