"""Answers to prompts kept out of training: what is said of them, against values computed apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import t
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.errors import InputError
from reward.functions import RewardOptions, build_rewards, check_rewards
from tests.support.rl_runs import run
from train.samples import Samples, Sampling, paired_change, read_rows, summarise

PROMPTS = [[{"role": "user", "content": text}] for text in ("Which bread keeps longest?", "Hi", "How far is it?")]


class Free:
    reward_weights = None
    max_completion_length = 8
    mask_truncated_completions = False


@pytest.fixture
def samples(tiny: Path, tiny_reward: Path, tiny_judge: Path, tmp_path: Path) -> Samples:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    sampling = Sampling(8, 1.0, (tokenizer.eos_token_id,), seed=4, options={"top_k": 0})
    built = [
        build_rewards(check_rewards(RewardOptions([str(folder)]), Free()), "cpu", [1])
        for folder in (tiny_reward, tiny_judge)
    ]
    reference = AutoModelForCausalLM.from_pretrained(tiny)
    return Samples(tmp_path / "samples", PROMPTS, tokenizer, sampling, built[0], built[1], reference)


def moved(tiny: Path) -> Any:
    """The tiny policy with other weights in its head."""
    model = AutoModelForCausalLM.from_pretrained(tiny)
    torch.manual_seed(3)
    with torch.no_grad():
        model.lm_head.weight += 0.3 * torch.randn_like(model.lm_head.weight)
    return model.eval()


def test_kl_and_entropy_are_those_of_plain_passes(samples: Samples, tiny: Path) -> None:
    model = moved(tiny)
    rows = samples(model, 0)
    summary = samples.folder / "summary.json"
    told = summary.read_text()
    samples.path(0).unlink()
    assert samples(model, 0) == rows, "one seed, one set of answers"
    summary.unlink()  # a kill after the answers
    assert samples(model, 0) == rows
    assert summary.read_text() == told
    for row, prompt in zip(rows, PROMPTS, strict=True):
        ids = samples.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert samples.tokenizer.decode(row["answer_ids"], skip_special_tokens=True) == row["answer"]
        whole = torch.tensor([[*ids, *row["answer_ids"]]])
        kl, entropy = 0.0, []
        for i in range(len(ids), whole.shape[1]):
            p, q = (torch.log_softmax(m(whole[:, :i]).logits[0, -1], -1) for m in (model, samples.reference))
            kl += float(p[whole[0, i]] - q[whole[0, i]])
            entropy.append(float(-(p.exp() * p).sum()))
        assert row["kl"] == pytest.approx(kl, abs=1e-4)
        assert row["entropy"] == pytest.approx(np.mean(entropy), abs=1e-4)


def test_the_start_has_no_kl_and_the_scores_are_the_models(samples: Samples, tiny: Path) -> None:
    rows = samples(AutoModelForCausalLM.from_pretrained(tiny).eval(), 0)
    assert [row["kl"] for row in rows] == pytest.approx([0, 0, 0], abs=1e-5)
    for kind, scored in (("rewards", samples.rewards), ("judges", samples.judges)):
        part: Any = scored.functions[0]
        dialogues = [[*row["prompt"], {"role": "assistant", "content": row["answer"]}] for row in rows]
        expected = part.function.models[0].scores(dialogues)
        assert [row[kind][scored.names[0]] for row in rows] == pytest.approx(list(expected))
    assert read_rows(samples.path(0)) == rows


def test_the_change_is_paired_by_prompt(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=40)
    after = before + 0.2 + 0.1 * rng.normal(size=40)
    for step, values in ((0, before), (50, after)):
        rows = [
            {"rewards": {"a": v}, "judges": {}, "observed": {"tokens": 4.0}, "entropy": 2.0, "kl": 0.4, "tokens": 4}
            for v in values
        ]
        tmp_path.joinpath(f"step-{step:06d}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    start, later = summarise(tmp_path)["steps"]
    assert "change" not in start
    value, low, high = later["change"]["rewards/a"]
    d = after - before
    half = t.ppf(0.975, 39) * d.std(ddof=1) / np.sqrt(40)
    assert (value, low, high) == pytest.approx((d.mean(), d.mean() - half, d.mean() + half))
    assert later["mean"]["kl_per_token"] == pytest.approx(0.1)
    assert paired_change([1.0], [2.0]) == [1.0, None, None]
    assert paired_change([1.0, 2.0], [2.0, 3.0]) == [1.0, 1.0, 1.0]


def test_a_run_samples_each_checkpoint_and_training_stays_as_it_is(
    tiny: Path, tiny_reward: Path, tiny_judge: Path, tmp_path: Path
) -> None:
    """The number of prompts kept out changes what is trained on: it is the judge that is left out here."""
    more = ("--sample_prompts", 6, "--lora_dropout", 0.1)
    with_judge = run("rloo", tiny, tiny_reward, tmp_path / "a", *more, "--judges", tiny_judge)
    without = run("rloo", tiny, tiny_reward, tmp_path / "b", *more)
    assert [e["grad_norm"] for e in with_judge["log"]] == [e["grad_norm"] for e in without["log"]]
    assert [s["step"] for s in with_judge["samples"]] == [0, 2, 4]
    names = [n for n in with_judge["samples"][-1]["change"] if n.startswith("judges/")]
    assert names == ["judges/judge"]
    assert len(read_rows(tmp_path / "a" / "samples" / "step-000004.jsonl")) == 6
    assert (tmp_path / "a" / "training.png").stat().st_size > 20_000


def test_a_judge_must_not_be_what_is_optimised(tiny: Path, tiny_reward: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"judge .* has the weights of .*, which is optimised"):
        run("rloo", tiny, tiny_reward, tmp_path, "--judges", tiny_reward)
