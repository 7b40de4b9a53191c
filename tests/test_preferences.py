"""Preference pairs: read, counted by reason where they are none, split by prompt."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from eval.config import InputError
from reward.preferences import preference_files, read_pairs, split_by_prompt
from train.prompts import rl_prompts


def line(chosen: str, rejected: str) -> str:
    return json.dumps({"chosen": chosen, "rejected": rejected}) + "\n"


def test_small_set(tiny: Path) -> None:
    from transformers import AutoTokenizer

    pairs, reasons = read_pairs(preference_files(None))
    assert len(pairs) >= 120
    assert reasons == {}
    training, held_out = split_by_prompt(pairs, 0.25, seed=0)
    assert len(training) + len(held_out) == len(pairs)
    assert not {repr(p["prompt"]) for p in training} & {repr(p["prompt"]) for p in held_out}
    prompts = rl_prompts(pairs, AutoTokenizer.from_pretrained(tiny), 1000)
    assert len(prompts) == len({repr(p["prompt"]) for p in pairs})
    with pytest.raises(InputError, match="at most 3 tokens"):
        rl_prompts(pairs, AutoTokenizer.from_pretrained(tiny), 3)


def test_lines_that_are_no_pairs_are_counted(tmp_path: Path) -> None:
    q = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: And?\n\nAssistant:"
    text = (
        line(q + " Yes", q + " No")
        + line(q + " Yes", q + " Yes")
        + line(q + " Yes", "\n\nHuman: Ho\n\nAssistant: No")
        + line(q + " Yes", q)
        + line("Hi", q + " No")
    )
    with gzip.open(tmp_path / "pairs.jsonl.gz", "wt") as handle:
        handle.write(text)
    pairs, reasons = read_pairs([tmp_path / "pairs.jsonl.gz"])
    assert pairs == [
        {
            "prompt": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
                {"role": "user", "content": "And?"},
            ],
            "chosen": [{"role": "assistant", "content": "Yes"}],
            "rejected": [{"role": "assistant", "content": "No"}],
        }
    ]
    assert sorted(reasons.values()) == [1, 1, 1, 1]


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "preferences").mkdir()
    with pytest.raises(InputError, match=r"has no \*\.jsonl"):
        preference_files(str(tmp_path))
    path = tmp_path / "preferences" / "p.jsonl"
    path.write_text("")
    with pytest.raises(InputError, match="is empty"):
        read_pairs(preference_files(str(tmp_path)))
    path.write_text(line("a", "b"))
    with pytest.raises(InputError, match="no usable preference pair"):
        read_pairs([path])
    (tmp_path / "preferences" / "q.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(InputError, match="cannot be read"):
        read_pairs([tmp_path / "preferences" / "q.jsonl.gz"])


def test_split_that_leaves_nothing() -> None:
    pairs = [{"prompt": [{"role": "user", "content": "x"}], "chosen": [], "rejected": []}]
    with pytest.raises(InputError, match="both sides need at least one"):
        split_by_prompt(pairs, 0.5, 0)


@pytest.mark.real_data
def test_real_pairs(real_data: Path) -> None:
    pairs, reasons = read_pairs(preference_files(str(real_data)))
    assert len(pairs) + sum(reasons.values()) == 2312
    assert len(pairs) == 2299
