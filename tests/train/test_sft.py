"""Supervised fine-tuning of a tiny model: checkpoints, restart, held-out examples, the tokens that evaluation asks."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eval.cli.parser import parse
from eval.errors import InputError
from eval.experiments import words
from eval.experiments.bbq import CANDIDATES
from eval.models.checkpoints import load_checkpoint, load_tokenizer
from eval.models.prompt_format import choose_format, encode
from eval.runner.store import Store
from eval.types import Prompt, Turn
from tests.support.sft_runs import ROWS, sft
from train.data.answer_format import answer_format_rows
from train.examples import fit_examples, parse_example, read_examples, split_examples
from train.held_out import completion_tokens, measure


@pytest.fixture(scope="module")
def whole(tiny: Path, examples: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("runs") / "sft"
    return output, sft(tiny, examples, output)


def same_weights(a: Path, b: Path) -> bool:
    x, y = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def losses(result: dict[str, Any]) -> list[tuple[float, float]]:
    return [(entry["loss"], entry["grad_norm"]) for entry in result["log"]]


def test_a_whole_run(whole: Any, tiny: Path) -> None:
    output, result = whole
    assert sorted(p.name for p in output.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    policy = json.loads((output / "checkpoint-2" / "policy.json").read_text())
    assert (policy["algorithm"], policy["step_name"]) == ("sft", "training step")
    assert result["steps"] == len(result["log"]) == 4
    assert result["settings"]["processes"] == 1
    assert result["examples"] + result["held_out_examples"] == len(ROWS)
    held_out = result["held_out"]
    assert held_out["after"]["loss"] < held_out["before"]["loss"]
    assert held_out["after"]["n"] == held_out["before"]["n"] == 12
    assert same_weights(output / "model", output / "checkpoint-4")
    assert not same_weights(output / "model", tiny)


def test_resumed_after_a_kill_it_ends_the_same(whole: Any, tiny: Path, examples: Path, tmp_path: Path) -> None:
    """Killed while checkpoint 4 was being saved."""
    output, result = whole
    folder = tmp_path / "killed"
    shutil.copytree(output, folder)
    (folder / "sft.json").unlink()
    shutil.rmtree(folder / "model")
    (folder / "checkpoint-4" / "policy.json").unlink()
    resumed = sft(tiny, examples, folder)
    assert resumed["resumed_from"] == "checkpoint-2"
    assert losses(resumed) == losses(result)
    assert same_weights(folder / "model", output / "model")
    assert resumed["held_out"] == result["held_out"]


def test_finished_is_not_done_again(whole: Any, tiny: Path, examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import train.sft

    output, result = whole
    monkeypatch.setattr(train.sft, "_trainer", lambda *_: pytest.fail("trained again"))
    assert sft(tiny, examples, output) == result
    with pytest.raises(InputError, match=r"was started with held_out = 0\.25, now it is 0\.5"):
        sft(tiny, examples, output, "--held_out", 0.5)


def test_its_checkpoints_are_evaluated(whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from eval.__main__ import main

    argv = ["eval", "run", "--model", str(whole[0]), "--output", str(tmp_path), "--experiments", "bbq", "--conditions",
            "Q", "--categories", "Age", "--limit", "4"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", argv)
    main()
    summaries = [Store(tmp_path / f"step-{step:06d}").summary() for step in (2, 4)]
    assert [s and s["step"] for s in summaries] == [2, 4]


def test_the_end_alone_is_kept_by_default_and_lora_is_merged(tiny: Path, examples: Path, tmp_path: Path) -> None:
    lora = ("--use_peft", "true", "--lora_r", 4, "--lora_target_modules", "q_proj", "v_proj")
    epochs = ("--max_steps", -1, "--num_train_epochs", 0.5, "--gradient_accumulation_steps", 2)
    result = sft(tiny, examples, tmp_path, *lora, *epochs)
    assert result["checkpoint_steps"] == [result["steps"]] == [3]  # half of 5 updates of 8, for 36 examples
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        merged = load_checkpoint(str(tmp_path / "model")).model(ids).logits
        adapted = load_checkpoint(str(tiny), str(checkpoint)).model(ids).logits
        base = load_checkpoint(str(tiny)).model(ids).logits
    assert torch.allclose(merged, adapted, atol=1e-4)
    assert not torch.allclose(merged, base, atol=1e-4)


def test_from_an_adapter(tiny: Path, examples: Path, tmp_path: Path) -> None:
    """Held-out examples are asked of base and adapter together before, and of the merged model after."""
    few = ("--use_peft", "true", "--lora_r", 4, "--max_steps", 2, "--checkpoint_steps", 2)
    first = sft(tiny, examples, tmp_path / "first", *few)
    adapter = tmp_path / "first" / "checkpoint-2"
    for name, more in (("lora", ()), ("auto", ("--dtype", "auto"))):
        again = sft(adapter, examples, tmp_path / name, *few, *more)
        assert again["merged_from"]["adapter"] == str(adapter)
        assert again["model"] == str(tmp_path / name / "start")
        assert again["held_out"]["before"]["loss"] == pytest.approx(first["held_out"]["after"]["loss"], abs=1e-5)
        assert again["held_out"]["after"]["loss"] < again["held_out"]["before"]["loss"]


def test_rl_starts_from_the_model(whole: Any, tiny_reward: Path, tmp_path: Path) -> None:
    from trl import ModelConfig, RLOOConfig

    from tests.support.rl_runs import rloo_arguments
    from train.arguments import PolicyArguments
    from train.rloo import train

    argv = rloo_arguments(whole[0] / "model", tiny_reward, tmp_path, "--max_steps", 2, "--checkpoint_steps", 0, 2)
    result = train(*parse([PolicyArguments, RLOOConfig, ModelConfig], argv, "train.rloo"))
    assert result["steps"] == 2
    assert result["base_weights"] == whole[1]["model_weights"]


@pytest.mark.parametrize("model", ["tiny", "real_model"])
def test_the_tokens_are_those_of_the_evaluation(model: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Any = load_tokenizer(str(request.getfixturevalue(model)))
    style = choose_format("auto", tokenizer)
    for row in ROWS[::5]:
        turns = (Turn("human", row["prompt"]), Turn("assistant", words.BBQ_PREFILL))
        (asked,) = encode([Prompt(turns, CANDIDATES)], tokenizer, style)
        trained, start = completion_tokens(tokenizer, parse_example(row, "here"))
        wanted = asked.context + asked.candidates[row["label"]]
        assert tuple(trained[: len(wanted)]) == wanted
        assert tokenizer.decode(trained[start:]).startswith(row["completion"])
        assert trained[len(wanted)] == tokenizer.eos_token_id


def test_texts_and_messages_give_the_same_tokens(tiny: Path) -> None:
    tokenizer = load_tokenizer(str(tiny))
    as_messages = {
        "prompt": [{"role": "user", "content": ROWS[0]["prompt"]}],
        "completion": [{"role": "assistant", "content": ROWS[0]["completion"]}],
    }
    texts, messages = (completion_tokens(tokenizer, parse_example(row, "here")) for row in (ROWS[0], as_messages))
    assert texts == messages


def test_trl_learns_those_tokens(tiny: Path, examples: Path, tmp_path: Path) -> None:
    from trl import ModelConfig, SFTConfig

    from train.sft import SFTArguments, _trainer

    tokenizer = load_tokenizer(str(tiny))
    argv = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false", "--report_to", "none"]
    _, config, model_args = parse([SFTArguments, SFTConfig, ModelConfig], argv, "train.sft")
    read = read_examples([str(examples)], None).examples[:4]
    trainer = _trainer(str(tiny), config, model_args, tokenizer, read, None)
    for row, example in zip(trainer.train_dataset, read, strict=True):
        ids, start = completion_tokens(tokenizer, example)
        assert row["input_ids"] == ids
        assert row["labels"] == [-100] * start + ids[start:]


def test_the_greedy_completion_is_found_without_generating(tiny: Path) -> None:
    """What the model generates is an exact match; another text is none."""
    loaded = load_checkpoint(str(tiny))
    tokenizer: Any = loaded.tokenizer
    for n in range(200):  # until the tiny random model says something that is text
        prompt = [{"role": "user", "content": f"What is {n}?"}]
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = loaded.model.generate(**ids, do_sample=False, max_new_tokens=2)[0, ids["input_ids"].shape[1] :].tolist()
        text = tokenizer.decode(made)
        if text.strip() and tokenizer(text, add_special_tokens=False).input_ids == made:
            break
    else:
        pytest.fail("no prompt has a readable answer")
    example = parse_example({"prompt": prompt, "completion": text}, "here")
    trained, start = completion_tokens(tokenizer, example)
    assert trained[start : start + 2] == made
    other = parse_example({"prompt": prompt, "completion": "no" + text}, "here")
    found = measure(loaded.model, tokenizer, [example, other], [made[1]])
    assert (found["exact_match"], found["n"]) == (0.5, 2)


def test_no_prompt_stands_on_both_sides() -> None:
    rows = [{"prompt": f"{case} {i // 3}", "completion": str(i)} for i in range(30) for case in ("A", "a  ")]
    read = [parse_example(row, str(i)) for i, row in enumerate(rows)]
    training, held_out = split_examples(read, 0.3, seed=1)
    sides = [{" ".join(e.prompt[0]["content"].split()).lower() for e in side} for side in (training, held_out)]
    assert not sides[0] & sides[1]
    assert len(training) + len(held_out) == len(rows)
    assert len(held_out) == 18
    assert split_examples(read, 0.3, seed=1) == (training, held_out)
    assert split_examples(read, 0.3, seed=2) != (training, held_out)
    with pytest.raises(InputError, match="both sides need at least one"):
        split_examples(read, 0.01, seed=1)


def test_rows_that_are_no_examples_are_counted_with_their_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    user, assistant = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    rows: list[Any] = [
        {"prompt": "q", "completion": "a"}, {"prompt": "q"}, [1], {"prompt": " ", "completion": "a"},
        {"prompt": 3, "completion": "a"}, {"prompt": [user, assistant], "completion": "a"},
        {"prompt": "q", "completion": [user]}, {"prompt": [{"role": "tool", "content": "q"}], "completion": "a"},
        {"prompt": [{"role": "user"}], "completion": "a"}, {"prompt": [], "completion": "a"},
    ]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_examples([str(path)], None)
    assert len(read.examples) == 1
    assert read.unreadable == {
        "no prompt or no completion": 2, "an empty prompt or completion": 1,
        "prompt or completion is neither a text nor messages": 1,
        "a prompt that does not alternate from user to assistant and end with the user": 2,
        "a completion that is not one assistant message": 1, "a message whose role is not system, user or assistant": 1,
        "a message without a text as its content": 1,
    }  # fmt: skip
    assert f"2 rows of the examples left out: no prompt or no completion (the first: {path}:2)" in caplog.text


def test_over_long_examples_are_counted_and_left_out(tiny: Path) -> None:
    tokenizer = load_tokenizer(str(tiny))
    read = [parse_example({"prompt": "word " * n, "completion": "a"}, "here") for n in (1, 2, 300)]
    kept, left_out = fit_examples(read, tokenizer, 200)
    assert kept == read[:2]
    assert left_out == {"longer than 200 tokens": 1}
    with pytest.raises(InputError, match="no example has at most 2 tokens"):
        fit_examples(read, tokenizer, 2)


def test_data_dir_sft_goes_before_the_shipped_set(tmp_path: Path) -> None:
    assert read_examples(None, str(tmp_path)).identity[0].startswith("answer-format (shipped, seed 0) sha256:")
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "mine.json").write_text('[{"prompt": "q", "completion": "a"}]')
    read = read_examples(None, str(tmp_path))
    assert [name.partition(" ")[0] for name in read.identity] == ["mine.json"]
    assert len(read.examples) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--checkpoint_steps", 5), "checkpoint step 5 is not one of this run's, 0 to 4"),
        (("--save_strategy", "steps"), "save_strategy must be 'no'"),
        (("--held_out", 1), "held_out must be between 0 and 1"),
        (("--examples", "no/such.jsonl"), "examples: no/such.jsonl is not there"),
        (("--examples", "pyproject.toml"), "pyproject.toml is none of *.jsonl"),
        (("--load_in_4bit", "true"), "load_in_4bit needs use_peft"),
        (("--chat_template_path", "x"), "chat_template_path must be left out"),
        (("--packing", "true", "--max_steps", -1), "packing needs max_steps"),
        (("--model_name_or_path", "./no/such"), "model ./no/such: there is no such folder"),
    ],
)
def test_bad_input_is_found_before_training(tiny: Path, examples: Path, tmp_path: Path, more, said: str) -> None:
    with pytest.raises(InputError) as error:
        sft(tiny, examples, tmp_path, *more)
    assert said in str(error.value)
    assert {path.name for path in tmp_path.glob("*")} <= {".training.lock"}


def test_the_shipped_set_is_balanced() -> None:
    rows = answer_format_rows()
    counts = Counter((r["template"], r["context_condition"], r["label"]) for r in rows)
    assert set(counts.values()) == {4}
    assert len(counts) == 6 * 66
    assert len({r["prompt"] for r in rows}) == len(rows)
    assert answer_format_rows() == rows != answer_format_rows(seed=1)
