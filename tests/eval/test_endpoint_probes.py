"""What a server can do is found out by asking it: beginnings, tokenizers, lists; nothing is taken for granted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.commands.run_config import RunConfig
from eval.errors import InputError
from eval.models.prompt_format import Format
from eval.scorers.endpoint.routes import BEGIN, ServedModel, load_tokenizer, read_top_tokens
from eval.scorers.endpoint.tokenizer_check import check_by_completions
from tests.support.endpoint_runs import Q, asked, quick, summary
from tests.support.model_server import Handler, ModelServer


def test_a_beginning_that_is_not_continued_is_asked_for(server: ModelServer, tmp_path: Path) -> None:
    server.continues, server.completions, server.says = "never", False, "The answer is (b), since it says so."
    with pytest.raises(InputError, match="same answer to 16 requests"):
        asked(server, tmp_path / "same", experiments=["bbq"], **Q)
    answers = iter(range(10**6))
    server.says = None
    server.model.draw = lambda ids, n, rng: [next(answers) % 500 + 5]  # pyright: ignore[reportAttributeAccessIssue]
    records = asked(server, tmp_path / "s", experiments=["bbq"], answer_samples=8, **Q)
    told = summary(tmp_path / "s")
    assert told["method"] == "sampling/instructed" and told["format"] == "chat"
    assert told["system_turn"].startswith("unknown")
    assert all(r["logprobs"] is None and "no_answer" in r for r in records)
    (messages,) = [b["messages"] for _, b in server.seen[-1:]]
    assert messages[-1]["role"] == "user" and messages[-1]["content"].endswith(BEGIN + "The answer is")
    assert told["metrics"] == [] and told["left_out"][0]["questions"] == 3


@pytest.mark.parametrize("how", [{"continues": "drops"}, {"continues": "drops, not the flags"}, {"counted": 7}])
def test_a_beginning_that_never_arrives_is_not_taken_for_continued(
    server: ModelServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: dict[str, Any]
) -> None:
    """A gateway drops the last turn, or counts nothing: the counts of prompt tokens show no continuing."""
    server.completions, server.continues = False, "never"
    for name, value in how.items():
        setattr(server, name, value)
    asked(server, tmp_path, experiments=["winogender"], answer_samples=2, limit=1, **Q)
    told = summary(tmp_path)
    assert told["method"] == "sampling/instructed"
    assert "do not show that it continues" in " ".join(told["method_reasons"])
    assert "the server continues no beginning of an answer" in caplog.text


def test_another_models_tokenizer_is_refused(server: ModelServer, tmp_path: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["the quick brown fox"] * 3, vocab_size=300, special_tokens=["<|end|>"])
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|end|>").save_pretrained(tmp_path / "t")
    with pytest.raises(InputError, match="is not that of 'tiny': the server reads its token ids as"):
        quick(server, tmp_path / "out", tokenizer=str(tmp_path / "t"))


@pytest.mark.parametrize("listed", [1000, 0])
def test_another_tokenizer_is_refused_where_nothing_is_echoed(
    tiny: Path, server: ModelServer, tmp_path: Path, listed: int
) -> None:
    """Top and sampling: of other merges, and of the same ones with the ids moved by one."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    server.echo, server.listed = False, listed
    moved = json.loads((tiny / "tokenizer.json").read_text())
    few = moved | {"model": moved["model"] | {"merges": moved["model"]["merges"][:40]}}
    for token in moved["added_tokens"]:
        token["id"] = (token["id"] + 1) % 600
    moved["model"] = moved["model"] | {"vocab": {t: (i + 1) % 600 for t, i in moved["model"]["vocab"].items()}}
    for name, changed, said in (("few", few, "counts"), ("moved", moved, "goes on otherwise")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(changed))
        special = {"pad_token": "<|pad|>", "eos_token": "<|end|>"}
        other = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / name / "tokenizer.json"), **special)
        other.chat_template = AutoTokenizer.from_pretrained(tiny).chat_template
        other.save_pretrained(tmp_path / name)
        with pytest.raises(InputError, match=f"is not that of 'tiny': the server {said}"):
            quick(server, tmp_path / "out", tokenizer=str(tmp_path / name))
    quick(server, tmp_path / "right", answer_samples=4, limit=1)
    assert summary(tmp_path / "right")["method"] == ("top/ids" if listed else "sampling/ids")


def test_the_right_tokenizer_is_taken_whatever_is_drawn(tiny: Path, server: ModelServer) -> None:
    """The drawn token stands in each list, and 40 times it is another."""
    config = RunConfig(model=["tiny"], scorer="endpoint", base_url=server.url, tokenizer=str(tiny))
    served = ServedModel.connect(config, "tiny", None, load_tokenizer(config), Format("paper"))
    for _ in range(40):
        check_by_completions(served, "tiny", served.client.run)
    assert min(server.times.values()) == 40


def test_parts_of_characters_are_not_told_apart() -> None:
    """Many tokens have the text "\ufffd": the drawn one's probability stands in the place of a listed one's."""
    tops = [{"\ufffd": -5.8, ".": -3.6, "oy": -4.0}, {"\ufffd": -2.2, ".": -3.6, "oy": -4.0, "hing": -7.3}]
    drawn = ["\ufffd", "hing"]
    entries = [{"tokens": [t], "top_logprobs": [top]} for t, top in zip(drawn, tops, strict=True)]
    lists = [read_top_tokens({"choices": [{"index": 0, "logprobs": e}]}, chat=False) for e in entries]
    assert [set(found.logprobs) for found in lists] == [{".", "oy"}, {".", "oy", "hing"}]
    assert [(found.bound, found.ambiguous) for found in lists] == [(-4.0, {"\ufffd"}), (-4.0, {"\ufffd"})]


def test_what_is_listed_is_what_comes(server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that lists five, whatever it is asked for; and the token that it drew."""
    right = Handler.drawn

    def drawn(handler: Handler, ids: list[int], body: dict[str, Any], k: int) -> dict[str, Any]:
        return right(handler, ids, body | {"logprobs": min(body.get("logprobs") or 0, 5)}, k)

    monkeypatch.setattr(Handler, "drawn", drawn)
    server.listed, server.echo = 10**6, False
    quick(server, tmp_path, answer_method="top")
    assert summary(tmp_path)["listed"] in (5, 6)
