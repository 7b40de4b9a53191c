"""Preference pairs: read in every form, counted by reason where they are none, made to fit, split by prompt."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.errors import InputError
from reward.dialogues import Pair, prefix_ids, token_ids
from reward.formats import InvalidPairError, parse_pair
from reward.preferences import fit_pairs, preference_files, read_preferences, split_by_prompt
from reward.sources import hub_rows
from train.prompts import rl_prompts

HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: And?\n\nAssistant:"


def line(chosen: str, rejected: str) -> str:
    return json.dumps({"chosen": chosen, "rejected": rejected}) + "\n"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


PROMPT = [user("Hi"), assistant("Hello"), user("And?")]
PAIR = Pair(PROMPT, [assistant("Yes")], [assistant("No")], "s", "w")
ONE = Pair([user("Why?")], [assistant("Yes")], [assistant("No")], "s", "w")
PKU = {
    "prompt": "Why?", "response_0": "No", "response_1": "Yes", "is_response_0_safe": True, "is_response_1_safe": False,
    "better_response_id": 1, "safer_response_id": 0,
}  # fmt: skip
ULTRA = {
    "prompt": "Why?", "prompt_id": "0a", "chosen": [user("Why?"), assistant("Yes")],
    "rejected": [user("Why?"), assistant("No")], "messages": [user("Why?"), assistant("Yes")],
    "score_chosen": 8.0, "score_rejected": 6.5,
}  # fmt: skip


def test_small_set(tiny: Path) -> None:
    from transformers import AutoTokenizer

    read = read_preferences(None, None)
    assert len(read.pairs) >= 120
    assert read.unreadable == {}
    assert read.by_subset == {"pairs": len(read.pairs)}
    assert read.identity[0].startswith("pairs.jsonl sha256:")
    assert read.pairs[0].where.endswith("pairs.jsonl:1")
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert len(rl_prompts(read.pairs, tokenizer, 1000, set()).training) == len({repr(p.prompt) for p in read.pairs})


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        ({"chosen": HH + " Yes", "rejected": HH + " No"}, PAIR),
        ({"prompt": HH, "chosen": "Yes", "rejected": "No"}, PAIR),
        ({"prompt": HH, "chosen": HH + "Yes", "rejected": HH + "No"}, PAIR),
        ({"prompt": "Why?", "chosen": "Yes", "rejected": "No"}, ONE),
        ({"prompt": "Why?", "chosen": [assistant("Yes")], "rejected": [assistant("No")]}, ONE),
        ({"prompt": PROMPT, "chosen": "Yes", "rejected": "No"}, PAIR),
        ({"prompt": PROMPT, "chosen": [assistant("Yes")], "rejected": [*PROMPT, assistant("No")]}, PAIR),
        ({"chosen": [*PROMPT, assistant("Yes")], "rejected": [*PROMPT, assistant("No")], "prompt": None}, PAIR),
        (ULTRA, ONE),
        (PKU, ONE),
    ],
)
def test_every_form_gives_the_same_pair(row: dict[str, Any], pair: Pair) -> None:
    assert parse_pair(row, "s", "w") == pair


def test_the_label_that_decides_the_subset_column_and_a_system_message() -> None:
    safer = parse_pair(PKU, "s", "w", "safer")
    assert (safer.chosen, safer.rejected) == (ONE.rejected, ONE.chosen)
    assert parse_pair({**PKU, "subset": "own"}, "s", "w").subset == "own"
    system = {"role": "system", "content": "Be brief."}
    assert parse_pair({**ULTRA, "system": "Be brief."}, "s", "w").prompt == [system, user("Why?")]
    whole = {name: [system, *ULTRA[name]] for name in ("chosen", "rejected")}
    assert parse_pair(whole, "s", "w").prompt == [system, user("Why?")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([1], "not an object with columns"),
        ({"chosen": "x"}, "columns of no known form"),
        ({"chosen": None, "rejected": HH + "No"}, "chosen is neither a text nor messages"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "prompt is neither a text nor messages"),
        ({"chosen": "Yes", "rejected": HH + "No"}, "a text that does not begin with 'Human:'"),
        ({"chosen": HH + "Yes", "rejected": HH + " Yes "}, "chosen equals rejected"),
        ({"chosen": HH + "Yes", "rejected": HH}, "an empty answer"),
        ({"chosen": HH + "Yes", "rejected": "\n\nHuman: Ho\n\nAssistant: No"}, "differ before the last answer"),
        ({"chosen": HH + "Yes\n\nAssistant: Yes", "rejected": HH + "No"}, "does not alternate"),
        ({"chosen": "\n\nHuman: Ho", "rejected": HH}, "does not end with the assistant"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "an empty prompt"),
        ({"prompt": [assistant("Hi"), user("Ho")], "chosen": "a", "rejected": "b"}, "does not alternate"),
        ({"prompt": [user(""), *PROMPT[1:]], "chosen": "a", "rejected": "b"}, "an empty message in the prompt"),
        ({"prompt": "Who?", "chosen": ULTRA["chosen"], "rejected": ULTRA["rejected"]}, "prompt is not in the dialogue"),
        ({"prompt": [user("Who?")], "chosen": ULTRA["chosen"], "rejected": "b"}, "does not begin with the prompt"),
        ({"chosen": [{"role": "bot", "content": "a"}], "rejected": []}, "a message whose role is not"),
        ({"chosen": [{"role": "user", "content": None}], "rejected": []}, "a message without a text"),
        ({**ULTRA, "score_rejected": 8.0}, "score_chosen equals score_rejected: no preference"),
        ({**ULTRA, "score_rejected": 9}, "score_chosen is below score_rejected"),
        ({**ULTRA, "score_rejected": "high"}, "score_rejected is not a number"),
        ({**PKU, "better_response_id": -1}, "better_response_id is neither 0 nor 1: no preference"),
        ({**PKU, "better_response_id": None}, "no better_response_id"),
        ({**PKU, "response_0": "Yes"}, "chosen equals rejected"),
    ],
)
def test_rows_that_are_no_pairs_say_why(row: object, reason: str) -> None:
    with pytest.raises(InvalidPairError, match=reason):
        parse_pair(row, "s", "w")


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)


def test_local_files_of_every_kind_and_their_counts(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as handle:
        handle.write(line(HH + " Yes", HH + " No") + "\n" + line(HH + " Yes", HH) + line(HH + " No", HH))
    write_parquet(tmp_path / "b.parquet", [ULTRA, {**ULTRA, "score_chosen": 6.5}])
    (tmp_path / "c.json").write_text(json.dumps([PKU]))
    (tmp_path / "README.md").write_text("not data")
    read = read_preferences([str(tmp_path)], None)
    assert [(p.subset, p.where) for p in read.pairs] == [
        ("a", f"{tmp_path}/a.jsonl.gz:1"), ("b", f"{tmp_path}/b.parquet row 0"), ("c", f"{tmp_path}/c.json row 0")
    ]  # fmt: skip
    assert read.unreadable == {"an empty answer": 2, "score_chosen equals score_rejected: no preference": 1}
    assert read.by_subset == {"a": 1, "b": 1, "c": 1}
    assert [i.split(" sha256:")[0] for i in read.identity] == ["a.jsonl.gz", "b.parquet", "c.json", "label better"]
    safer = read_preferences([str(tmp_path / "c.json")], None, "safer")
    assert safer.pairs[0].chosen == ONE.rejected
    assert safer.identity != read.identity[2:]
    with pytest.raises(InputError, match="twice"):
        read_preferences([str(tmp_path), str(tmp_path / "c.json")], None)
    with pytest.raises(InputError, match="must be better or safer, not 'best'"):
        read_preferences([str(tmp_path)], None, "best")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Data sets of the hub as local folders laid out alike: read by the same `datasets` call, at commit c0ffee."""
    import reward.sources

    names = {
        "Anthropic/hh-rlhf": "hh",
        "PKU-Alignment/PKU-SafeRLHF": "pku",
        "HuggingFaceH4/ultrafeedback_binarized": "uf",
    }
    for folder in ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"):
        (tmp_path / "hh" / folder).mkdir(parents=True)
        for split, answer in (("train", " Yes"), ("test", f" Yes, {folder}")):
            with gzip.open(tmp_path / "hh" / folder / f"{split}.jsonl.gz", "wt") as handle:
                handle.write(line(HH + answer, HH + " No"))
    (tmp_path / "uf" / "data").mkdir(parents=True)
    write_parquet(tmp_path / "uf" / "data" / "train_prefs-00000-of-00001.parquet", [ULTRA])
    write_parquet(tmp_path / "uf" / "data" / "test_prefs-00000-of-00001.parquet", [ULTRA, ULTRA])
    config = "- config_name: {}\n  data_files:\n  - split: {}\n    path: {}\n"
    uf = "  - split: test_prefs\n    path: data/test_prefs-*\n"
    text = "---\nconfigs:\n" + config.format("default", "train_prefs", "data/train_prefs-*") + uf + "---\n"
    (tmp_path / "uf" / "README.md").write_text(text)
    (tmp_path / "pku" / "data").mkdir(parents=True)
    (tmp_path / "pku" / "data" / "one.jsonl").write_text(json.dumps(PKU) + "\n")
    (tmp_path / "pku" / "data" / "two.jsonl").write_text(json.dumps({**PKU, "prompt": "Who?"}) + "\n")
    both = config.format("default", "train", '"data/*.jsonl"') + config.format("alpaca-7b", "train", "data/two.jsonl")
    (tmp_path / "pku" / "README.md").write_text("---\nconfigs:\n" + both + "---\n")

    def rows(repo: str, subset: str | None, split: str, commit: str) -> Any:
        assert commit == "c0ffee"
        for where, row in hub_rows(str(tmp_path / names[repo]), subset, split, None):
            yield where.replace(str(tmp_path / names[repo]), f"{repo}@{commit}"), row

    monkeypatch.setattr(reward.sources, "commit_of", lambda *_: "c0ffee")
    monkeypatch.setattr(reward.sources, "hub_rows", rows)
    return read_preferences  # pyright: ignore[reportReturnType]


def test_public_data_sets_as_the_hub_lays_them_out(hub: Any) -> None:
    read = hub(["Anthropic/hh-rlhf:harmless-base@test", "HuggingFaceH4/ultrafeedback_binarized"], None)
    assert [(p.subset, p.where, p.chosen[0]["content"]) for p in read.pairs] == [
        ("harmless-base", "Anthropic/hh-rlhf@c0ffee row 0", "Yes, harmless-base"),
        ("ultrafeedback_binarized", "HuggingFaceH4/ultrafeedback_binarized@c0ffee row 0", "Yes"),
    ]
    assert read.identity == [
        "Anthropic/hh-rlhf@c0ffee:harmless-base:test",
        "HuggingFaceH4/ultrafeedback_binarized@c0ffee:default:train_prefs",
        "label better",
    ]
    assert len(hub(["HuggingFaceH4/ultrafeedback_binarized@test_prefs"], None).pairs) == 2
    assert set(hub(["Anthropic/hh-rlhf"], None).by_subset) == {
        "harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"
    }  # fmt: skip
    assert hub(["PKU-Alignment/PKU-SafeRLHF"], None).by_subset == {"PKU-SafeRLHF": 2}
    (pair,) = hub(["PKU-Alignment/PKU-SafeRLHF:alpaca-7b"], None, "safer").pairs
    assert (pair.subset, pair.prompt, pair.chosen) == ("alpaca-7b", [user("Who?")], ONE.rejected)
    with pytest.raises(InputError, match=r"split nowhere of .*train_prefs"):
        hub(["HuggingFaceH4/ultrafeedback_binarized@nowhere"], None)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("Anthropic/hh-rlhf:harmless-base", "hf download Anthropic/hh-rlhf --repo-type dataset"),
        ("some/where#v1", "some/where at revision 'v1' is neither a dataset folder nor"),
        ("no/such.jsonl", "no/such.jsonl is not there"),
        ("./no/such", "./no/such is not there"),
        ("nothing", "of the form OWNER/NAME"),
    ],
)
def test_sources_that_cannot_be_reached(source: str, said: str, tmp_path: Path, monkeypatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as error:
        read_preferences([source], None)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "preferences").mkdir()
    with pytest.raises(InputError, match=r"has no \*\.jsonl"):
        preference_files(str(tmp_path))
    with pytest.raises(InputError, match=r"the folder .* has no \*\.jsonl"):
        read_preferences([str(tmp_path / "preferences")], None)
    path = tmp_path / "preferences" / "p.jsonl"
    for text, said in (
        ("", "is empty"),
        (line("a", "b"), "no usable preference pair in .*1 x a text that does not begin"),
        (line(HH + "a", HH + "b") + "{", r"p\.jsonl:2 is not valid JSON"),
        ('{"question": "x", "answer": "y"}\n', "has the columns question, answer; it needs chosen and rejected"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            read_preferences(None, str(tmp_path))
    for name, said in (("q.jsonl.gz", "cannot be read"), ("q.parquet", "cannot be read"), ("q.json", "as JSON")):
        (tmp_path / name).write_bytes(b"not this")
        with pytest.raises(InputError, match=said):
            read_preferences([str(tmp_path / name)], None)
    (tmp_path / "q.txt").write_text("x")
    with pytest.raises(InputError, match=r"q\.txt is no \*\.jsonl"):
        read_preferences([str(tmp_path / "q.txt")], None)


def test_pairs_are_cut_by_turns_or_refused(tiny: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    turns = [m for i in range(6) for m in (user(f"question {i}?"), assistant(f"answer {i}."))]
    long = Pair([*turns, user("last?")], [assistant("yes " * 9)], [assistant("no")], "s", "long")
    hopeless = Pair([user("word " * 200)], [assistant("yes")], [assistant("no")], "s", "hopeless")
    length = len(token_ids(tokenizer, long.prompt[-3:] + long.chosen))
    kept, left_out = fit_pairs([ONE, long, hopeless], tokenizer, length)
    assert [p.where for p in kept] == ["w", "long"]
    assert [p.was_cut for p in kept] == [False, True]
    assert kept[1].prompt == long.prompt[-3:]
    assert kept[1].prompt_ids == prefix_ids(long.prompt)
    assert left_out == {f"longer than {length} tokens in the last turn and answer alone": 1}
    kept, left_out = fit_pairs([ONE, long, hopeless], tokenizer, length - 1)
    assert kept[1].prompt == long.prompt[-1:]
    kept, left_out = fit_pairs([ONE, long, hopeless], tokenizer, length, "refuse")
    assert (kept, left_out) == ([ONE], {f"longer than {length} tokens": 2})
    assert fit_pairs([ONE, long, hopeless], tokenizer, None)[0] == [ONE, long, hopeless]
    with pytest.raises(InputError, match="no pair has at most 3 tokens; raise max_length"):
        fit_pairs([ONE, long], tokenizer, 3)


def random_pairs(rng: random.Random) -> list[Pair]:
    """Few words, so that prompts repeat, differ in case or white space, go on from one another, and are equal cut."""
    pairs = []
    for i in range(rng.randrange(20, 80)):
        words = [rng.choice(["a", "b", "c", "A ", " b"]) for _ in range(rng.choice([1, 1, 3, 3, 5]))]
        if rng.random() < 0.6:
            words[0] += f" {rng.randrange(40)}"
        prompt = [(user, assistant)[k % 2](word) for k, word in enumerate(words)]
        ids = ()
        if len(prompt) > 1 and rng.random() < 0.3:
            prompt, ids = prompt[2:], prefix_ids(prompt)
        pairs.append(Pair(prompt, [assistant("x")], [assistant("y")], rng.choice("st"), str(i), ids))
    return pairs


def test_no_prompt_stands_on_both_sides_and_learning_curves_are_nested() -> None:
    rng = random.Random(0)
    split = 0
    for seed in range(200):
        pairs = random_pairs(rng)
        try:
            training, held_out = split_by_prompt(pairs, 0.3, seed)
        except InputError:  # one group: nothing can be held out
            continue
        split += 1
        assert sorted(p.where for p in training + held_out) == sorted(p.where for p in pairs)
        assert len(held_out) <= 0.3 * len(pairs) + 1
        for a in training:
            for b in held_out:
                ids = [{prefix_ids(p.prompt)[-1], (p.prompt_ids or prefix_ids(p.prompt))[-1]} for p in (a, b)]
                started = [{*prefix_ids(p.prompt), *p.prompt_ids} for p in (a, b)]
                assert not ids[0] & started[1]
                assert not ids[1] & started[0]
        assert split_by_prompt(pairs, 0.3, seed) == (training, held_out)
        for n in (1, 5, 10, 1000):
            assert split_by_prompt(pairs, 0.3, seed, n) == (training[:n], held_out)
    assert split > 150


def test_the_ids_of_prompts_do_not_depend_on_case_or_white_space() -> None:
    assert prefix_ids([user(" Why\n not?")]) == prefix_ids([user("why not?")])
    assert prefix_ids(PROMPT)[0] == prefix_ids(PROMPT[:1])[0]
    assert len({*prefix_ids(PROMPT), *prefix_ids([user("Hi Hello And?")])}) == 3


def test_split_holds_out_a_share_of_each_subset_and_says_where_it_cannot() -> None:
    pairs = [Pair([user(f"{s} {i}")], [assistant("x")], [assistant("y")], s, "") for s in "ab" for i in range(50)]
    training, held_out = split_by_prompt(pairs, 0.2, 1)
    assert [sum(p.subset == s for p in held_out) for s in "ab"] == [10, 10]
    assert training != split_by_prompt(pairs, 0.2, 2)[0]
    with pytest.raises(InputError, match="both sides need at least one"):
        split_by_prompt([ONE], 0.5, 0)
    with pytest.raises(InputError, match="held_out must be between 0 and 1"):
        split_by_prompt(pairs, 1.0, 0)


@pytest.mark.real_data
def test_real_pairs(real_data: Path) -> None:
    """Four answers are empty, and in nine rows the assistant speaks twice in a row."""
    read = read_preferences(None, str(real_data))
    assert len(read.pairs) == 2299
    assert sorted(read.unreadable.values()) == [4, 9]
    training, held_out = split_by_prompt(read.pairs, 0.2, 0)
    assert len(held_out) == 460
    assert not {p.prompt[0]["content"] for p in training if len(p.prompt) == 1} & {
        p.prompt[0]["content"] for p in held_out
    }
