"""A served model: the numbers of the transformers scorer by every exact method, within its error by sampling."""

from __future__ import annotations

import json
import shlex
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.__main__ import main
from eval.commands.run import run
from eval.commands.run_config import RunConfig
from eval.errors import InputError
from eval.runner.keys import record_key
from eval.runner.store import Store
from eval.scorers.endpoint.routes import SampledText
from eval.scorers.endpoint.sampled import CUT_OFF, EMPTY, OTHER, REFUSED, read_answer
from tests.support.endpoint_runs import FEW, Q, asked, command, quick, summary
from tests.support.model_server import Handler, ModelServer
from tests.support.readme import COMMANDS


def reference(tiny: Path, output: Path, **settings: Any) -> list[dict[str, Any]]:
    run(RunConfig(**{**FEW, "model": [str(tiny)], "output": str(output), **settings}))
    return sorted(Store(output).read(), key=record_key)


def apart(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> float:
    assert [record_key(r) for r in a] == [record_key(r) for r in b] and a
    return max(float(np.abs(np.subtract(x["logprobs"], y["logprobs"])).max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("method", "form", "with_tokenizer", "found"),
    [
        ("auto", "auto", True, "echo/ids"),
        ("auto", "paper", True, "echo/ids"),
        ("auto", "auto", False, "echo/text"),
        ("top", "auto", True, "top/ids"),
        ("top", "chat", False, "top/chat"),
        ("top", "paper", False, "top/text"),
    ],
)
def test_exact_methods_give_the_transformers_scorers_numbers(
    tiny: Path, server: ModelServer, tmp_path: Path, method: str, form: str, with_tokenizer: bool, found: str
) -> None:  # fmt: skip
    """The tiny vocabulary is listed as a whole, so that no candidate is below the list."""
    server.listed = 1000
    given = {"tokenizer": str(tiny)} if with_tokenizer else {}
    records = asked(server, tmp_path / "served", answer_method=method, format=form, **given, **Q)
    told = summary(tmp_path / "served")
    assert told["method"] == found
    wanted = reference(tiny, tmp_path / "here", format="chat" if told["format"] == "chat" else "paper", **Q)
    assert apart(records, wanted) < 1e-4
    assert [r["boundary_moved"] for r in records] == [r["boundary_moved"] for r in wanted]
    assert [r["prompt_tokens"] for r in records] == [r["prompt_tokens"] for r in wanted]


@pytest.mark.parametrize("method", ["echo", "top"])
def test_a_servers_default_settings_are_not_in_exact_numbers(
    tiny: Path, server: ModelServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """A repetition penalty is turned off; where the server refuses that, it is said and recorded."""
    server.listed, server.penalty = 1000, 1.2
    given: dict[str, Any] = {"answer_method": method, "tokenizer": str(tiny), "experiments": ["bbq"], **Q}
    wanted = reference(tiny, tmp_path / "here", experiments=["bbq"], **Q)
    assert apart(asked(server, tmp_path / "off", **given), wanted) < 1e-4
    assert summary(tmp_path / "off")["asked_with"]["repetition_penalty"] == 1.0
    assert "refuses settings" not in caplog.text
    server.refuses_unknown = True
    assert apart(asked(server, tmp_path / "on", **given), wanted) > 0.1
    assert summary(tmp_path / "on")["asked_with"] == {} and "the server refuses settings" in caplog.text


def test_a_merge_across_the_boundary_is_told_from_the_echoed_text() -> None:
    from eval.scorers.endpoint.exact import split
    from eval.types import Prompt, Turn

    prompt = Prompt((Turn("human", "x"), Turn("assistant", 'is "')), ("yes", "no"))
    rows: list[Any] = [
        [("is", None), (' "', -1.0)],
        [("is", None), (' "y', -2.0), ("es", -3.0)],
        [("is", None), (' "', -1.0), ("no", -4.0)],
    ]
    answer = split(prompt, rows)
    assert answer.logprobs.tolist() == [-5.0, -5.0]
    assert (answer.prompt_tokens, answer.boundary_moved) == (1, 1)
    rows[1] = [("is", None), (' "', -1.0), ("Yes", -4.0)]
    with pytest.raises(InputError, match="do not tell where the answer 'yes' begins"):
        split(prompt, rows)


def test_what_is_below_the_list_is_bounded_and_counted(
    tiny: Path, server: ModelServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.listed = 20
    records = asked(server, tmp_path / "top", answer_method="top", tokenizer=str(tiny), **Q)
    wanted = reference(tiny, tmp_path / "here", **Q)
    told = summary(tmp_path / "top")
    assert 18 <= told["listed"] <= 20 and any("bounded" in r for r in records)
    for found in told["upper_bounds"]:
        here = [r for r in records if r["experiment"] == found["experiment"]]
        assert (found["questions"], found["of"]) == (sum("bounded" in r for r in here), len(here))
    said = [r for r in caplog.records if r.name == "eval.scorers.endpoint.scorer" and "upper bound" in r.message]
    assert len(said) == any(found["largest_share"] > 0.01 for found in told["upper_bounds"]) == 1
    for got, right in zip(records, wanted, strict=True):
        for k, (a, b) in enumerate(zip(got["logprobs"], right["logprobs"], strict=True)):
            assert a >= b - 1e-4
            if k not in got.get("bounded", []):
                assert a == pytest.approx(b, abs=1e-4)
    server.echo = False
    asked(server, tmp_path / "auto", tokenizer=str(tiny), answer_samples=4, **Q)
    told = summary(tmp_path / "auto")
    assert told["method"] == "sampling/ids" and "not among the 20 most probable" in " ".join(told["method_reasons"])


def test_bounds_are_counted_from_the_records_that_are_used(server: ModelServer, tmp_path: Path) -> None:
    """Also from those that an earlier process asked, and of fewer questions; every metric and effect says how many."""
    server.listed, server.echo = 20, False
    given: dict[str, Any] = {"answer_method": "top", "conditions": ["Q", "Q+IF"], "orders": 1}
    quick(server, tmp_path, limit=3, **given)
    quick(server, tmp_path, limit=5, **given)
    for limit in (5, 4):
        records = quick(server, tmp_path, limit=limit, **given)
        told = summary(tmp_path)
        used = {r["item"] for r in quick(server, tmp_path / "new" / str(limit), limit=limit, **given)}
        for found in told["upper_bounds"]:
            here = [r for r in records if r["condition"] == found["condition"] and r["item"] in used]
            n = sum("bounded" in r for r in here)
            assert (found["questions"], found["of"]) == (n, limit) and n > 0
            line = f"{n} of {limit} questions: upper bounds"
            assert all(line in m["note"] for m in told["metrics"] if m["condition"] == found["condition"])
            assert all(f"{found['condition']}: {line}" in e["note"] for e in told["effects"])
        assert len(told["upper_bounds"]) == 2


ANSWERING = {"": [" "], " ": ["("], "(": ["a", "b", "c"], "a": [")"], "b": [")"], "c": [")"], ")": ["<|end|>"]}


"""Steers the tiny model to give one of BBQ's answers, mostly."""


@pytest.mark.parametrize(
    ("abilities", "form", "found"),
    [
        ({}, "paper", "sampling/text"),
        ({"continues": "always"}, "auto", "sampling/chat"),
        ({"several": False, "refuses_unknown": True}, "chat", "sampling/chat"),
        ({"seeds": False, "strips": True}, "chat", "sampling/chat"),
    ],
)
def test_sampled_answers_are_within_their_error(
    server: ModelServer, tmp_path: Path, abilities: dict[str, Any], form: str, found: str
) -> None:
    """Of the exact probabilities of the same server, by 5 standard errors."""
    server.model.steered, server.listed = ANSWERING, 1000
    for name, value in abilities.items():
        setattr(server, name, value)
    only = {"experiments": ["bbq"], **Q}
    records = asked(server, tmp_path / "s", answer_method="sampling", format=form, answer_samples=120, **only)
    told = summary(tmp_path / "s")
    assert told["method"] == found and told["answer_samples"] == 120 and told["standard_error"] == 0.0456
    right = asked(server, tmp_path / "x", answer_method="top", format=told["format"], **only)
    for got, exact in zip(records, right, strict=True):
        p, counts = np.exp(exact["logprobs"]), np.array(got["counts"])
        assert p.sum() > 0.5 and got["samples"] == 120 == sum(counts) + sum(got["unread"].values())
        assert (abs(counts / 120 - p) < 5 * np.sqrt(p * (1 - p) / 120) + 1e-9).all(), (counts, p)
        assert got["logprobs"] == np.log(np.maximum(counts / 120, 1e-12)).tolist()
    (noise,) = told["sampling_noise"]
    assert noise["metric"] == "bias_ambig_expected" and noise["sd"] > 0
    (metric,) = [m for m in told["metrics"] if m["name"] == noise["metric"] and m["category"] == "all"]
    assert f"{noise['sd']:.4f}" in metric["note"]
    assert told["sampled_with"]["white_space_stripped"] == ("strips" in abilities)
    settings = [b for _, b in server.seen if b.get("max_tokens", 0) > 1]
    assert all(b["temperature"] == 1 and b["top_p"] == 1 for _, b in server.seen if "top_p" in b)
    if "seeds" not in abilities:
        seeds = Counter(b["seed"] for b in settings[-3:])
        assert max(seeds.values()) == 1


@pytest.mark.parametrize(
    ("text", "cut_off", "read"),
    [
        (" he said", False, 1),
        (" her", False, 2),
        (" here", False, OTHER),
        ("he said", False, OTHER),
        (" he", True, CUT_OFF),
        (" he", False, 1),
        (" h", True, CUT_OFF),
        (" h", False, OTHER),
        ("", False, EMPTY),
        (" \n", False, EMPTY),
        ("", True, CUT_OFF),
        (" He", False, OTHER),
        (" he's", False, 1),
    ],
)
def test_reading_a_sampled_answer(text: str, cut_off: bool, read: int | str) -> None:
    assert read_answer(SampledText(text, cut_off, False), (" she", " he", " her")) == read


def test_reading_a_reply_that_was_asked_to_begin() -> None:
    begin, candidates = "The answer is", (" (a)", " (b)", " (c)")
    for text, read in (
        ("The answer is (b).", 1),
        ("(c) since", 2),
        (" The answer is: (b)", OTHER),
        ("It is (b)", OTHER),
        ("The ans", OTHER),
    ):
        assert read_answer(SampledText(text, False, False), candidates, begin, lstrip=True) == read, text
    assert read_answer(SampledText("The ans", True, False), candidates, begin, lstrip=True) == CUT_OFF
    assert read_answer(SampledText("The answer is", True, False), candidates, begin, lstrip=True) == CUT_OFF
    assert read_answer(SampledText("(a)", False, True), candidates, begin, lstrip=True) == REFUSED


def test_a_finished_folder_costs_no_request_and_another_is_refused(
    server: ModelServer, tmp_path: Path, ended: Callable[..., str]
) -> None:
    quick(server, tmp_path / "echo")
    seen = len(server.seen)
    quick(server, tmp_path / "echo")
    assert len(server.seen) == seen
    more = ("--answer-method", "sampling", "--answer-samples", "4")
    assert 'another method ("echo/ids" there, "sampling/ids" now)' in ended(
        main, *command(server, tmp_path / "echo", "--limit", 3, *more)
    )
    other = [a if a != "tiny" else "tiny-lora" for a in command(server, tmp_path / "echo", "--limit", 3)]
    assert "another weights" in ended(main, *other)
    server.echo, server.listed = False, 0
    quick(server, tmp_path / "s", answer_samples=4)
    seen = len(server.seen)
    quick(server, tmp_path / "s", answer_samples=4)
    assert len(server.seen) == seen
    line = ended(main, *command(server, tmp_path / "s", "--limit", 3, "--answer-samples", "8"))
    assert "another answer_samples (4 there, 8 now)" in line
    server.echo = True  # goes on as it began, although the server can do more now
    quick(server, tmp_path / "s", answer_samples=4, limit=5)
    assert summary(tmp_path / "s")["method"] == "sampling/ids"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--base-url", "http://me:secret@host/v1"], "must not hold user:password@"),
        (["--base-url", "http://host/v1?api_key=secret"], "must not have a ?query"),
        (["--base-url", "host:8000"], "must begin with http:// or https://"),
        (["--base-url", "http://xn--/v1"], "--base-url is no address"),
        (["--base-url", "http://my..host/v1"], "--base-url is no address"),
        (["--dtype", "bfloat16"], "--dtype does not go with --scorer endpoint"),
        (["--device", "cpu"], "--device does not go with"),
        (["--adapter", "x"], "--adapter does not go with"),
        (["--revision", "main"], "--revision does not go with"),
        (["--answer-method", "guess"], "answer_method must be auto or one of echo, top, sampling"),
        (["--answer-method", "echo", "--format", "chat"], "needs --tokenizer"),
        (["--precision", "0.1", "--answer-method", "sampling"], "--precision does not go with sampled answers"),
        (["--concurrency", "0"], "concurrency must be at least 1"),
        (["--scorer", "transformers"], "--base_url belongs to --scorer endpoint"),
        (["--system-turn", "drop"], "--system_turn does not go with"),
        (["--tokenizer", "/no/such"], "tokenizer /no/such: there is no such folder"),
    ],
)
def test_bad_options(ended: Callable[..., str], tmp_path: Path, more: list[str], said: str) -> None:
    arguments = ["run", "--scorer", "endpoint", "--base-url", "http://127.0.0.1:9/v1", "--model", "m"]
    for name, value in zip(more[::2], more[1::2], strict=True):
        if name in arguments:
            arguments[arguments.index(name) + 1] = value
        else:
            arguments += [name, value]
    line = ended(main, *arguments, "--output", tmp_path)
    assert said in line and "secret" not in line


def test_questions_without_an_answer_are_left_out_and_counted(server: ModelServer, tmp_path: Path) -> None:
    """Of two option orders that could be read, and one that could not, none is measured."""
    from eval.scorers.endpoint import sampled
    from eval.types import Prompt

    server.model.steered = ANSWERING
    given: dict[str, Any] = {"experiments": ["bbq"], "orders": 3, "answer_method": "sampling", "format": "paper"}
    right = sampled.counted

    def unreadable(prompt: Prompt, route: Any, said: Any, tokens: Any, loose: bool) -> Any:
        lost = zlib.crc32(prompt.turns[0].text.encode()) % 5 == 0  # of the words alone, in whatever order they come
        return right(prompt, route, [SampledText("", False, False)] * 4 if lost else said, tokens, False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampled, "counted", unreadable)
        records = asked(server, tmp_path / "s", answer_samples=4, conditions=["Q", "Q+IF"], **given)
    told = summary(tmp_path / "s")
    for lost in told["left_out"]:
        here = [r for r in records if r["condition"] == lost["condition"]]
        without = {r["item"] for r in here if r["logprobs"] is None}
        assert lost["questions"] == len(without) and lost["of"] == 3
        metrics = [m for m in told["metrics"] if m["condition"] == lost["condition"] and m["category"] == "all"]
        by_context = [m for m in metrics if m["name"] in ("accuracy_ambig", "accuracy_disambig")]
        assert sum(m["n_items"] for m in by_context) == 3 - len(without)
        assert not without or all(f"{len(without)} of 3 questions have no answer" in m["note"] for m in metrics)
    assert any(lost["questions"] for lost in told["left_out"])


def test_reasoning_that_was_not_given_is_not_scored(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, filtered, null or cut off while empty: left out by its reason; said to be nothing: scored."""
    given = {  # by a word of the question; the answers of the first can be the words that the model is steered to
        "technician": ({"content": ""}, "stop"),
        "accountant": ({"content": None, "refusal": "I cannot help with that."}, "stop"),
        "supervisor": ({"content": "Let us"}, "content_filter"),
        "engineer": ({"content": None, "reasoning_content": "Okay, the user"}, "length"),
        "worker": ({"content": None, "reasoning_content": "Okay, the user"}, "stop"),
    }
    right = Handler.chat

    def chat(handler: Handler, body: dict[str, Any]) -> None:
        if body["max_tokens"] != 77:
            right(handler, body)
            return
        (word,) = [w for w in given if w in json.dumps(body["messages"])]
        message, finish = given.pop(word)
        handler.reply({"choices": [{"index": 0, "message": message, "finish_reason": finish}]})

    monkeypatch.setattr(Handler, "chat", chat)
    server.model.steered = {"": [" he", " she", " they"], " he": ["."], " she": ["."], " they": ["."]}
    few: dict[str, Any] = {"experiments": ["winogender"], "conditions": ["Q", "Q+IF+CoT"], "limit": 5, "cot_limit": 5}
    more: dict[str, Any] = {
        "answer_method": "sampling",
        "format": "chat",
        "answer_samples": 4,
        "cot_max_new_tokens": 77,
    }
    records = [r for r in asked(server, tmp_path, **few, **more) if "reasoning" in r]
    reasons = {"refused": 2, "cut off": 1, "empty": 1}
    assert Counter(r["no_reasoning"] for r in records if "no_reasoning" in r) == reasons and not given
    assert all((r["logprobs"] is None) == ("no_reasoning" in r) and r["reasoning"] == "" for r in records)
    told = summary(tmp_path)
    (lost,) = [x for x in told["left_out"] if x["condition"] == "Q+IF+CoT"]
    assert (lost["questions"], lost["of"], lost["unreasoned"]) == (4, 5, reasons)
    (metric,) = [m for m in told["metrics"] if m["condition"] == "Q+IF+CoT" and m["name"] == "p_female"]
    assert metric["n_items"] == 1 and "4 of 5 questions have no answer" in metric["note"]
    assert "2 refused" in metric["note"] and "1 cut off" in metric["note"]


def test_the_readmes_commands(
    server: ModelServer, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = [shlex.split(c) for c in COMMANDS if c.startswith("python -m eval run --scorer endpoint")]
    assert len(commands) == 2
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "smollm2-135m-instruct").symlink_to(tiny)
    monkeypatch.chdir(tmp_path)
    here = {"http://localhost:8000/v1": server.url, "smollm2-135m-instruct": "tiny"}
    server.model.steered = {"": [" he", " she", " they"], " he": ["."], " she": ["."], " they": ["."]}
    few = ["--limit", "4", "--experiments", "winogender", "--conditions", "Q", "--answer-samples", "40"]
    for words in commands:
        monkeypatch.setattr(sys, "argv", [here.get(w, w) for w in words[2:]] + few)
        main()
        assert "p_female" in capsys.readouterr().out
    assert summary(Path("runs/eval/served"))["method"] == "echo/ids"
    assert summary(Path("runs/eval/sampled"))["method"] == "sampling/chat"
    monkeypatch.setattr(sys, "argv", ["eval", "list"])
    main()
    assert capsys.readouterr().out.count("complete") == 2
    monkeypatch.setattr(sys, "argv", ["eval", "compare", "runs/eval/served", "runs/eval/sampled"])
    main()
    told = capsys.readouterr().out
    assert "sampling/chat" in told and "questions have no answer that could be read and are left out" in told
