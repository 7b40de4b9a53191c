"""The prompts that RL samples answers to: shares, those that a reward model has seen, those kept out of training."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from eval.errors import InputError
from reward.dialogues import Pair, prefix_ids
from reward.preferences import in_share
from tests.support.rl_runs import run
from train.prompts import rl_prompts, seen_prompts


def pair(*turns: str) -> Pair:
    roles = ("user", "assistant")
    prompt = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    yes, no = ([{"role": "assistant", "content": text}] for text in ("Yes.", "No."))
    return Pair(prompt, yes, no, "ours", turns[0])


PAIRS = [pair(f"Where is cup {i}?") for i in range(200)]


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny)


def test_shares_apart_have_no_beginning_in_common_and_make_up_the_whole() -> None:
    longer = [pair(p.prompt[0]["content"], "On the shelf.", "And the plate?") for p in PAIRS]
    every = [*PAIRS, *longer]
    bounds = (0.0, 0.3, 0.5, 1.0)
    parts = [in_share(every, (low, high)) for low, high in itertools.pairwise(bounds)]
    origins = [{p.prompt[0]["content"] for p in part} for part in parts]
    assert sum(map(len, parts)) == len(every)
    assert not origins[0] & origins[1] and not origins[1] & origins[2] and not origins[0] & origins[2]
    assert [len(o) for o in origins] == pytest.approx([60, 40, 100], abs=25)
    assert in_share(every[::-1], (0.0, 0.3)) == parts[0][::-1], "the same in any order"
    assert in_share(every, (0, 1)) == every


def test_a_cut_prompt_stays_in_its_share() -> None:
    whole = pair("Where is cup 1?", "On the shelf.", "And the plate?")
    cut = Pair(whole.prompt[2:], whole.chosen, whole.rejected, "ours", "1", prefix_ids(whole.prompt))
    assert cut.origin == whole.origin != pair("And the plate?").origin


@pytest.mark.parametrize("share", [(0.5,), (0.5, 0.5), (-0.1, 1), (0, 1.1), (0, 0.1, 0.2)])
def test_shares_that_are_none(share: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="prompt_share must be two numbers, 0 <= low < high <= 1"):
        in_share(PAIRS, share)


def test_an_empty_share() -> None:
    with pytest.raises(InputError, match="has none of the 1 pairs"):
        in_share(PAIRS[:1], (0.999999, 1))


def test_seen_and_long_prompts_are_left_out_and_counted(tokenizer: Any) -> None:
    seen = {p.origin for p in PAIRS[:50]}
    long = pair("word " * 300)
    prompts = rl_prompts([*PAIRS, *PAIRS, long], tokenizer, 100, seen)
    assert prompts.training == [p.prompt for p in PAIRS[50:]]
    assert prompts.samples == []
    assert prompts.left_out == {"a reward model was trained on them": 50, "longer than 100 tokens": 1}
    with pytest.raises(InputError, match="a reward model was trained on all 200 RL prompts; give other --preferences"):
        rl_prompts(PAIRS, tokenizer, 100, {p.origin for p in PAIRS})
    with pytest.raises(InputError, match="no RL prompt has at most 2 tokens"):
        rl_prompts(PAIRS, tokenizer, 2, set())


def test_prompts_kept_out_of_training_share_no_beginning_with_it(tokenizer: Any) -> None:
    longer = [pair(p.prompt[0]["content"], "On the shelf.", f"And plate {i}?") for i, p in enumerate(PAIRS)]
    prompts = rl_prompts([*PAIRS, *longer], tokenizer, 200, set(), n_samples=40, seed=1)
    kept, trained = ({p[0]["content"] for p in part} for part in (prompts.samples, prompts.training))
    assert len(prompts.samples) == len(kept) == 40
    assert not kept & trained
    assert rl_prompts(PAIRS, tokenizer, 200, set(), 40, seed=2).samples != prompts.samples
    assert len(rl_prompts(PAIRS[:10], tokenizer, 200, set(), 40).samples) == 5, "no more than half"


def test_a_reward_model_of_ours_says_what_it_has_seen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, origins in (("a", ["1", "2"]), ("b", ["2", "3"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "training_prompts.json").write_text(json.dumps({"origins": origins}))
    (tmp_path / "c").mkdir()
    members = [{"reward_model": str(tmp_path / name)} for name in "abc"]
    parts = [{"name": "cut_off", "penalty": 1.0}, {"name": "x", "members": members}]
    assert seen_prompts(parts) == {"1", "2", "3"}
    assert f"reward model {tmp_path / 'c'} does not say which prompts it was trained on" in caplog.text


def test_rl_leaves_out_what_its_reward_model_and_its_judge_have_seen(
    tiny: Path, tiny_reward: Path, tiny_judge: Path, tmp_path: Path
) -> None:
    from reward.preferences import read_preferences

    pairs = read_preferences(None, None).pairs
    origins = list(dict.fromkeys(p.origin for p in pairs))
    for folder, seen in ((tiny_reward, origins[:30]), (tiny_judge, origins[20:60])):
        (folder / "training_prompts.json").write_text(json.dumps({"origins": seen}))
    try:
        more = ("--judges", tiny_judge, "--max_steps", 1, "--checkpoint_steps", 0, 1, "--sample_prompts", 8)
        result = run("rloo", tiny, tiny_reward, tmp_path, *more)
    finally:
        (tiny_reward / "training_prompts.json").unlink()
        (tiny_judge / "training_prompts.json").unlink()
    left = [p for p in {repr(p.prompt): p for p in pairs}.values() if p.origin not in origins[:60]]
    counted = result["prompts"]
    assert counted["training"] + counted["samples"] == len(left)
    assert counted["left_out"]["a reward model was trained on them"] > 0
