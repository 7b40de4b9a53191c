"""python -m reward score: ranks of a file's answers, resumed after a kill, bad lines named."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval.errors import InputError
from reward import rank
from reward.__main__ import main
from reward.answers import Line, read_lines
from reward.rank import ScoreConfig, rank_lines, score
from reward.scoring import load_reward_model

Ended = Callable[..., str]
PROMPT = "How do I keep bread fresh?"
ANSWERS = ["In a box.", "Wrap it in a cloth.", "In a box.", "Freeze what you do not eat today, in slices."]


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def ranked(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def many(path: Path, n: int) -> Path:
    return written(path, *({"id": k, "prompt": f"{PROMPT} {k}", "answers": ANSWERS[1:]} for k in range(n)))


def test_ranks_are_those_of_the_model(tiny_reward: Path, tmp_path: Path) -> None:
    """Scored here by plain forward passes, one dialogue at a time; equal answers tie exactly and keep their order."""
    model = load_reward_model(str(tiny_reward))
    with torch.inference_mode():
        expected = []
        for answer in ANSWERS:
            dialogue = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": answer}]
            ids = model.tokenizer.apply_chat_template(dialogue, return_tensors="pt", return_dict=True)["input_ids"]
            expected.append(model.model(ids).logits.item())
    answers = written(tmp_path / "a.jsonl", {"id": "bread", "prompt": PROMPT, "answers": ANSWERS})
    result = score(ScoreConfig(model=str(tiny_reward), answers=str(answers), output=str(tmp_path / "out.jsonl")))
    (record,) = ranked(tmp_path / "out.jsonl")
    assert record["line"] == 1 and record["id"] == "bread"
    order = np.argsort(-np.array(expected), kind="stable").tolist()
    assert [a["index"] for a in record["answers"]] == order
    found = {a["index"]: a for a in record["answers"]}
    assert [found[k]["reward"] for k in range(4)] == pytest.approx(expected, abs=1e-5)
    assert found[0]["reward"] == found[2]["reward"] and found[0]["rank"] == found[2]["rank"]
    assert [found[k]["rank"] for k in range(4)] == [1 + sum(e > expected[k] + 1e-6 for e in expected) for k in range(4)]
    assert [found[k]["text"] for k in range(4)] == ANSWERS
    s = result["summary"]
    assert s["mean"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert s["std"] == pytest.approx(np.std(expected, ddof=1), abs=1e-5)
    assert s["best_of_n"]["gap"] == pytest.approx(max(expected) - np.mean(expected), abs=1e-5)
    assert s["ties"] == (np.argmax(expected) in (0, 2))
    assert "Freeze what" in rank.table(result) and "best of 4" in rank.table(result)


def test_every_form_is_the_same_dialogue(tmp_path: Path) -> None:
    prompt, answer = [{"role": "user", "content": PROMPT}], {"role": "assistant", "content": "In a box."}
    path = written(
        tmp_path / "a.jsonl",
        {"prompt": PROMPT, "answer": "In a box."},
        {"prompt": prompt, "answers": ["In a box."]},
        {"messages": [*prompt, answer]},
        {"prompt": prompt, "chosen": [answer], "rejected": "In the sun."},
    )
    lines = list(read_lines(path))
    assert [line.dialogues()[0] for line in lines] == [[*prompt, answer]] * 4
    assert lines[3].labels == ("chosen", "rejected") and lines[3].answers[1] == "In the sun."


def test_pairs_are_counted_by_who_gets_more(tiny_reward: Path, tmp_path: Path) -> None:
    pair = {"prompt": PROMPT, "chosen": ANSWERS[1], "rejected": ANSWERS[3]}
    turned = {"prompt": PROMPT, "chosen": ANSWERS[3], "rejected": ANSWERS[1]}
    equal = {"prompt": PROMPT, "chosen": ANSWERS[1], "rejected": ANSWERS[1]}
    answers = written(tmp_path / "a.jsonl", pair, turned, equal)
    s = score(ScoreConfig(str(tiny_reward), str(answers), str(tmp_path / "out.jsonl")))["summary"]
    assert s["pairs"] == {"n": 3, "chosen_more": 1, "rejected_more": 1, "equal": 1}
    first, second, third = ranked(tmp_path / "out.jsonl")
    assert {first["answers"][0]["label"], second["answers"][0]["label"]} == {"chosen", "rejected"}
    assert [a["rank"] for a in third["answers"]] == [1, 1]


def test_killed_and_run_again_it_is_bit_identical(tiny_reward: Path, tmp_path: Path, monkeypatch) -> None:
    """Killed in the middle of a write, in the second chunk: what the first wrote is not scored again."""
    monkeypatch.setattr(rank, "CHUNK", 4)
    answers = many(tmp_path / "a.jsonl", 10)
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    score(ScoreConfig(str(tiny_reward), str(answers), str(whole)))
    score(ScoreConfig(str(tiny_reward), str(answers), str(cut)))
    lines = cut.read_bytes().splitlines(keepends=True)
    cut.write_bytes(b"".join(lines[:6]) + lines[6][:20])
    scored: list[str] = []
    monkeypatch.setattr(rank, "rank_lines", lambda chunk, model: [scored.append(c.where) for c in chunk] and counted(
        chunk, model))  # fmt: skip
    counted = rank_lines
    score(ScoreConfig(str(tiny_reward), str(answers), str(cut)))
    assert [w.rpartition(":")[2] for w in scored] == ["5", "6", "7", "8", "9", "10"]
    assert cut.read_bytes() == whole.read_bytes()
    scored.clear()
    score(ScoreConfig(str(tiny_reward), str(answers), str(cut)))
    assert scored == []


def test_another_input_or_model_is_refused(tiny_reward: Path, tmp_path: Path, ended: Ended) -> None:
    answers, output = many(tmp_path / "a.jsonl", 2), tmp_path / "out.jsonl"
    options = ("score", "--model", tiny_reward, "--answers", answers, "--output", output)
    score(ScoreConfig(str(tiny_reward), str(answers), str(output)))
    before = output.read_bytes()
    many(answers, 3)
    assert "another answers_sha256" in ended(main, *options)
    many(answers, 2)
    assert "another dtype" in ended(main, *options, "--dtype", "bfloat16")
    (tmp_path / "out.provenance.json").unlink()
    assert "not written by reward score" in ended(main, *options)
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": PROMPT, "answers": []}, "has no answers"),
        ({"prompt": PROMPT, "answers": ["Yes.", " \n"]}, "answer 2 is empty"),
        ({"prompt": PROMPT, "answers": ["Yes.", 3]}, "answer 2 must be a text"),
        ({"prompt": PROMPT}, "neither answers, answer, chosen nor messages"),
        ({"prompt": PROMPT, "answer": "a", "answers": ["b"]}, "answers and answer"),
        ({"answer": "a"}, "has no 'prompt'"),
        ({"prompt": PROMPT, "chosen": "a"}, "has no 'rejected'"),
        ({"prompt": "", "answer": "a"}, "an empty user message"),
        ({"prompt": [], "answer": "a"}, "prompt must be a text or a list of messages"),
        ({"prompt": "\n\nHuman: Hi\n\nAssistant:", "answer": "a"}, "text form of HH-RLHF"),
        ({"prompt": [{"role": "bot", "content": "a"}], "answer": "a"}, "prompt has a message that is not"),
        ({"prompt": [{"role": "user", "content": "a"}] * 2, "answer": "a"}, "must alternate user, assistant"),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages end with the user's turn"),
        (
            {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "answer": "a"},
            "the prompt ends with the assistant's turn; it must end with the user's",
        ),
        ([1], "is no object"),
    ],
)
def test_bad_lines_are_named(row: object, said: str, tiny_reward: Path, tmp_path: Path, ended: Ended) -> None:
    """Before anything is scored or written."""
    path = written(tmp_path / "a.jsonl", {"prompt": PROMPT, "answer": "a"}, row)
    line = ended(main, "score", "--model", tiny_reward, "--answers", path, "--output", tmp_path / "out.jsonl")
    assert said in line and "a.jsonl:2" in line
    assert not (tmp_path / "out.jsonl").exists()


def test_a_dialogue_longer_than_the_context_is_named(tiny_reward: Path, tmp_path: Path, ended: Ended) -> None:
    path = written(
        tmp_path / "a.jsonl", {"prompt": PROMPT, "answer": "a"}, {"prompt": PROMPT, "answer": "word " * 3000}
    )
    line = ended(main, "score", "--model", tiny_reward, "--answers", path, "--output", tmp_path / "out.jsonl")
    assert "a.jsonl:2: a dialogue has" in line and "at most 2048" in line
    assert not (tmp_path / "out.jsonl").exists()


def test_a_score_that_is_no_number_names_its_line(tiny_reward: Path, tmp_path: Path) -> None:
    """A token's embedding is NaN, so that only the dialogue that has it fails, in a batch with one that has not."""
    model = load_reward_model(str(tiny_reward))
    odd = set(model.tokenizer.encode("zebra")) - set(model.tokenizer.encode(f"{PROMPT} In a box."))
    with torch.no_grad():
        model.model.get_input_embeddings().weight[list(odd)] = float("nan")
    prompt = [{"role": "user", "content": PROMPT}]
    lines = [Line("a.jsonl:1", None, prompt, ["In a box."]), Line("a.jsonl:2", None, prompt, ["zebra"])]
    with pytest.raises(InputError, match=r"a\.jsonl:2: the reward model .* gives nan"):
        rank_lines(lines, model)


def test_older_turns_are_cut_as_in_training(tiny_reward: Path) -> None:
    model = load_reward_model(str(tiny_reward))
    model.max_length = 60
    long = [
        m for k in range(6) for m in ({"role": "user", "content": f"Turn {k}"}, {"role": "assistant", "content": "ok"})
    ]
    lines = [Line("a:1", None, [*long, {"role": "user", "content": "End"}], ["a"]),
             Line("a:2", None, [{"role": "user", "content": "End"}], ["a"])]  # fmt: skip
    records = rank_lines(lines, model)
    assert [r["answers"][0]["cut"] for r in records] == [True, False]
    assert records[0]["answers"][0]["tokens"] <= 60


def test_json_and_unknown_commands(tiny_reward: Path, tmp_path: Path, monkeypatch, capsys, ended: Ended) -> None:
    answers, output = many(tmp_path / "a.jsonl", 2), tmp_path / "out.jsonl"
    options = ["score", "--model", str(tiny_reward), "--answers", str(answers), "--output", str(output), "--json"]
    monkeypatch.setattr(sys, "argv", ["reward", *options])
    main()
    told = json.loads(capsys.readouterr().out)
    assert told["summary"]["answers"] == 6 and told["weights"].startswith("sha256:") and told["output"] == str(output)
    assert "unknown command 'scor'; did you mean 'score'?" in ended(main, "scor")
    assert "--model is missing" in ended(main, "score")
    assert "did you mean 'answers'?" in ended(main, "score", "--answer", "x")
