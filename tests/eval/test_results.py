"""The store: extended without asking again, never continued with something else, whole after any interruption."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import main
from eval.config import EvaluationConfig
from eval.data.readers import SMALL_SET
from eval.errors import InputError
from eval.experiments import words
from eval.runner.evaluate import evaluate
from eval.runner.keys import RECORDS_VERSION, record_key
from eval.runner.plan import plan
from eval.runner.provenance import file_checksums, tokenizer_sha256
from eval.runner.store import Store
from eval.types import Prompt, Turn, prompt_sha256
from eval.validation.oracle import Oracle, Preferences
from tests.support.tiny_models import build_tokenizer

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {"categories": ["Age"], "cot_limit": 4, "limit": 8, "orders": 1}
POLICY = {"model": "oracle", "model_params": 0, "weights": "w"}


class Counting(Oracle):
    """An oracle that counts what it is asked, and is interrupted after `patience` prompts."""

    asked = 0
    patience = 10**9

    def score(self, prompts: Any) -> Iterator[Any]:
        for answer in super().score(prompts):
            if self.asked == self.patience:
                raise KeyboardInterrupt
            self.asked += 1
            yield answer


def ask(folder: Path, patience: int = 10**9, policy: dict[str, Any] = POLICY, **settings: Any) -> int:
    """Evaluates an oracle into the folder; how many prompts were asked."""
    config = EvaluationConfig(**{**SMALL, **settings})
    planned = plan(config)
    oracle = Counting(Preferences(), 3, planned.questions)
    oracle.patience = patience
    evaluate(oracle, config, folder, policy, planned=planned)
    return oracle.asked


def summary(folder: Path) -> dict[str, Any]:
    found = Store(folder).summary()
    assert found is not None
    return found


def test_what_is_asked_later_is_asked_beside_what_is_there(tmp_path: Path) -> None:
    selections: list[dict[str, Any]] = [
        {"experiments": ["bbq"], "conditions": ["Q"]},
        {"experiments": ["bbq", "winogender"], "conditions": ["Q"]},
        {"experiments": ["bbq", "winogender"]},
        {"limit": 16},
        {"limit": 16, "orders": 3},
        {"limit": 16, "orders": 3, "cot_limit": 8, "categories": ["Age", "SES"]},
        {"limit": 16, "orders": 3, "cot_limit": 8, "categories": ["Age", "SES"], "paraphrases": True},
        {"limit": 8},
    ]
    known: set[Any] = set()
    for selection in selections:
        asked = ask(tmp_path / "one", **selection)
        wanted = {q.key for q in plan(EvaluationConfig(**{**SMALL, **selection})).questions}
        assert asked == len(wanted - known), selection
        known |= wanted
        keys = [record_key(r) for r in Store(tmp_path / "one").read()]
        assert len(keys) == len(set(keys)) and set(keys) == known
        fresh = tmp_path / str(selections.index(selection))
        ask(fresh, **selection)
        for part in ("metrics", "effects", "records", "evaluation", "data_sha256"):
            assert summary(tmp_path / "one")[part] == summary(fresh)[part], (part, selection)
        assert (tmp_path / "one" / "breakdown.jsonl").read_text() == (fresh / "breakdown.jsonl").read_text()
    assert ask(tmp_path / "one", **selections[-1]) == 0
    assert ask(tmp_path / "one", **selections[2]) == 0  # a selection that it had before
    assert len(summary(tmp_path / "one")["sessions"]) == 8  # those that wrote records


def test_an_interrupted_extension_keeps_the_old_summary_apart(tmp_path: Path) -> None:
    ask(tmp_path, experiments=["bbq"])
    old = (tmp_path / "summary.json").read_bytes()
    more: dict[str, Any] = {"experiments": ["bbq"], "limit": 16, "orders": 3, "sample_batch": 2}
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path, patience=80, **more)
    assert (tmp_path / "summary.json").read_bytes() == old
    begun = json.loads(Store(tmp_path).provenance_path.read_text())
    assert begun["evaluation"] != json.loads(old)["evaluation"] and begun["planned"]["bbq"]["Q"] == 48
    here = {record_key(r) for r in Store(tmp_path).read()}
    missing = {q.key for q in plan(EvaluationConfig(**{**SMALL, **more})).questions} - here
    assert ask(tmp_path, **more) == len(missing) > 0
    assert summary(tmp_path)["evaluation"]["limit"] == 16
    assert summary(tmp_path)["records"] == {"bbq": {"Q": 48, "Q+IF": 48, "Q+IF+CoT": 12}}


def test_weights_of_profiles_follow_the_limit(tmp_path: Path) -> None:
    """Students of a profile are counted among the rows that --limit takes."""
    only: dict[str, Any] = {"experiments": ["admissions"], "conditions": ["Q"]}
    data = tmp_path / "data" / "admissions"
    data.mkdir(parents=True)
    (data / "law_data.csv").write_text("sex,LSAT,UGPA\n1,40,3.0\n2,41,3.1\n" + "1,40,3.0\n" * 5)
    for limit, weight in ((2, 1.0), (7, 6.0), (2, 1.0)):
        asked = ask(tmp_path / "out", data_dir=str(tmp_path / "data"), limit=limit, **only)
        found = {r["item"]: r["weight"] for r in Store(tmp_path / "out").read()}
        assert found["female:40:3.0:Black"] == weight and found["male:41:3.1:white"] == 1
        assert asked == (4 if (limit, weight) == (2, 1.0) and asked else 0)


def test_a_file_never_holds_the_weights_of_two_limits(tmp_path: Path) -> None:
    """Not for conditions not asked this time, nor profiles beyond a lower limit: they weigh 0 until it is raised."""
    data = tmp_path / "data" / "admissions"
    data.mkdir(parents=True)
    (data / "law_data.csv").write_text("sex,LSAT,UGPA\n1,40,3.0\n2,41,3.1\n" + "1,40,3.0\n" * 5 + "2,30,2.0\n")
    common: dict[str, Any] = {"experiments": ["admissions"], "data_dir": str(tmp_path / "data")}

    def weights(limit: int, *conditions: str) -> tuple[int, dict[tuple[str, str], float]]:
        asked = ask(tmp_path / "out", limit=limit, conditions=list(conditions), **common)
        records = Store(tmp_path / "out").read()
        return asked, {(r["condition"], r["cluster"]): r["weight"] for r in records}

    one, other, late = "female:40:3.0", "male:41:3.1", "male:30:2.0"
    assert weights(2, "Q", "Q+IF")[1] == {(c, k): 1.0 for c in ("Q", "Q+IF") for k in (one, other)}
    _, found = weights(8, "Q")
    assert found == {("Q", one): 6, ("Q+IF", one): 6, ("Q", other): 1, ("Q+IF", other): 1, ("Q", late): 1}
    asked, found = weights(2, "Q+IF")
    assert asked == 0
    assert found == {("Q", one): 1, ("Q+IF", one): 1, ("Q", other): 1, ("Q+IF", other): 1, ("Q", late): 0}
    asked, found = weights(8, "Q")
    assert asked == 0 and found["Q", late] == 1 and found["Q+IF", one] == 6


def test_a_changed_prompt_is_never_taken_for_the_one_that_was_asked(tmp_path: Path, monkeypatch) -> None:
    ask(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    instruction = "Please be fair."
    monkeypatch.setattr(words, "ADMISSIONS_QUESTION", instruction)
    with pytest.raises(InputError) as error:
        ask(tmp_path)
    for said in ("admissions, Q, item ", "another prompt_sha256", "choose another --output or remove the folder"):
        assert said in str(error.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert ask(tmp_path, experiments=["bbq", "winogender"]) == 0  # whose words are what they were
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"bbq, Q.IF.CoT, item Age:0, order 0 was asked with another max_new_tokens"):
        ask(tmp_path, cot_max_new_tokens=7)


def test_a_changed_data_file_or_row_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(SMALL_SET / "bbq", data / "bbq")
    shutil.copytree(SMALL_SET / "winogender", data / "winogender")
    settings: Any = {"data_dir": str(data), "experiments": ["bbq"], "conditions": ["Q"]}
    ask(tmp_path / "out", **settings)
    path = data / "bbq" / "Age.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["label"] = (rows[0]["label"] + 1) % 3
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"another bbq/Age.jsonl"):
        ask(tmp_path / "out", **settings)
    store = Store(tmp_path / "out")
    found = json.loads(store.provenance_path.read_text())
    found["data_files"] = {}  # as if the file had not been known: the row's own column still tells
    store.provenance_path.write_text(json.dumps(found))
    with pytest.raises(InputError, match="bbq, Q, item Age:0, order 0 was asked with another label"):
        ask(tmp_path / "out", **settings)
    assert ask(tmp_path / "out", data_dir=str(data), experiments=["winogender"], conditions=["Q"]) > 0


def test_another_model_an_old_folder_and_lost_provenance_are_refused(tmp_path: Path) -> None:
    ask(tmp_path)
    with pytest.raises(InputError, match=r'another weights .*"w" there, "v" now'):
        ask(tmp_path, policy=POLICY | {"weights": "v"})
    path = Store(tmp_path).provenance_path
    found = json.loads(path.read_text())
    del found["records_version"]
    path.write_text(json.dumps({**found, "evaluation": {"records_version": 2}}))
    with pytest.raises(InputError, match=f"records version 2, now {RECORDS_VERSION}.; choose another --output"):
        ask(tmp_path)
    path.write_text("{")
    with pytest.raises(InputError, match=r"provenance\.json is damaged"):
        ask(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"records but no provenance\.json"):
        ask(tmp_path)


def test_one_process_at_a_time(
    tiny: Path, tmp_path: Path, ended: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.models.checkpoints.load", lambda *_: pytest.fail("a model was loaded"))
    with Store(tmp_path).locked():
        with pytest.raises(InputError, match="is being written by another process"):
            ask(tmp_path)
        said = ended(main, "run", "--model", tiny, "--output", tmp_path)
        assert "is being written by another process; wait for its end or choose another --output" in said
    assert ask(tmp_path) > 0
    Store(tmp_path).provenance_path.write_text('{"evaluation": {"records_version": 2}}')
    assert "written by an earlier selfcorrect" in ended(main, "run", "--model", tiny, "--output", tmp_path)


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    """The system's own refusal to let a file grow stands for a full disk: both end a write in its middle."""
    ask(tmp_path / "whole")
    whole = (tmp_path / "whole" / "records.jsonl").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = int(len(whole) * 0.7)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(InputError, match=r"records\.jsonl cannot be written .* make room and run the same command"):
            ask(tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    written = (tmp_path / "full" / "records.jsonl").read_bytes()
    assert len(written) <= size and whole.startswith(written) and written.count(b"\n") > 0
    ask(tmp_path / "full")
    assert (tmp_path / "full" / "records.jsonl").read_bytes() == whole


def test_damaged_records_are_named(tmp_path: Path) -> None:
    ask(tmp_path)
    path = tmp_path / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"\xff\x00\n", *lines[4:]]))
    with pytest.raises(InputError, match=r"records\.jsonl:4 is damaged"):
        ask(tmp_path)
    cut = "é".encode()[:1]  # a line torn inside a character
    path.write_bytes(b"".join(lines[:3]) + b'{"item": "' + cut)
    ask(tmp_path)
    assert path.read_bytes().splitlines(keepends=True) == lines


WAITING = """
import itertools, time
from eval.__main__ import main
from eval.runner.store import Store
right, calls = Store.{name}, itertools.count(1)
Store.{name} = lambda *given, **more: right(*given, **more) if next(calls) < {calls} else time.sleep(10**6)
main()
"""
"""`python -m eval`, which goes no further than to a call of one of Store's methods."""


def wait_for(process: subprocess.Popen[bytes], path: Path, lines: int) -> None:
    """Kills the process as soon as the file has so many lines."""
    end = time.monotonic() + 300
    while not (path.is_file() and path.read_bytes().count(b"\n") >= lines):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_killed_anywhere_the_records_end_the_same(tiny: Path, tmp_path: Path) -> None:
    """SIGKILL while records are written, a line torn, and SIGKILL between the last record and the summary: before the
    third chunk and before the end the process waits for it.
    """
    options = [
        "run", "--model", str(tiny), "--categories", "Age,SES", "--cot_limit", "16", "--cot_max_new_tokens", "4",
        "--sample_batch", "4", "--limit", "60", "--data-dir", str(SMALL_SET),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(folder: Path, *started: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, *(started or ("-m", "eval")), *options, "--output", str(folder)], cwd=ROOT,
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    assert start(tmp_path / "whole").wait() == 0
    whole = (tmp_path / "whole" / "records.jsonl").read_bytes()
    killed = tmp_path / "killed"
    records = killed / "records.jsonl"
    wait_for(start(killed, "-c", WAITING.format(name="append", calls=3)), records, 10)
    early = records.read_bytes()
    assert 0 < len(early) < len(whole) and whole.startswith(early)
    records.write_bytes(early[:-25])
    wait_for(start(killed, "-c", WAITING.format(name="finish", calls=1)), records, whole.count(b"\n"))
    assert records.read_bytes() == whole and not (killed / "summary.json").exists()
    assert start(killed).wait() == 0
    assert records.read_bytes() == whole
    a, b = (summary(folder) for folder in (tmp_path / "whole", killed))
    for part in ("metrics", "effects", "records", "weights", "tokenizer_sha256", "data_files"):
        assert a[part] == b[part], part
    assert [len(s["sessions"]) for s in (a, b)] == [1, 2]  # the last one wrote no record
    assert a["command"].startswith("python -m eval run --model ") and "seconds" in b["sessions"][0]
    assert set(b["seconds"]) == {"bbq", "winogender", "admissions"}


def test_provenance_names_files_tokenizer_and_prompts(tiny: Path, tmp_path: Path) -> None:
    ask(tmp_path)
    found = summary(tmp_path)
    assert list(found["data_sha256"]) == ["bbq", "winogender", "admissions"]
    path = "admissions/law_data.csv"
    blob = subprocess.run(["git", "hash-object", str(SMALL_SET / path)], capture_output=True, text=True, check=True)
    assert found["data_files"][path]["git_blob"] == blob.stdout.strip()
    assert file_checksums([SMALL_SET / path], SMALL_SET) == {path: found["data_files"][path]}
    assert found["started"] <= found["ended"] and found["ended"].endswith("+00:00")
    assert found["seconds"]["bbq"].keys() == {"without_reasoning", "with_reasoning"}
    assert found["versions"].keys() >= {"python", "torch", "transformers", "tokenizers", "safetensors", "accelerate"}
    assert found["machine"]["torch_threads"] >= 1
    tokenizer = build_tokenizer(tmp_path / "tokenizer")
    before = tokenizer_sha256(tokenizer)
    tokenizer(["a", "b c d e"], padding=True, truncation=True, max_length=3)
    tokenizer_sha256.cache_clear()
    assert tokenizer_sha256(tokenizer) == before
    assert tokenizer_sha256(build_tokenizer(tmp_path / "again")) == before
    assert tokenizer_sha256(build_tokenizer(tmp_path / "plain", chat=False)) != before
    turns = (Turn("human", "a"), Turn("assistant", "b"))
    asked = {
        prompt_sha256(p)
        for p in ([Prompt(turns)], [Prompt(turns, ("a",))], [Prompt(turns[:1], ("a",))], [Prompt(turns)] * 2)
    }
    assert len(asked) == 4


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "results.md").read_text(), re.S))
def test_the_documented_lines_read_the_records(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(tmp_path, conditions=["Q", "Q+IF+CoT"])
    records = list(Store(tmp_path).read())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    found: dict[str, Any] = {}
    exec(block, found)
    assert len(found["records"]) == len(records)
    wanted = [r for r in records if r["experiment"] == "bbq"]
    assert [list(x) for x in found["bbq"]["logprobs"]] == [r["logprobs"] for r in wanted]
    assert list(found["bbq"]["label"]) == [r["label"] for r in wanted]
    pairs = zip(found["bbq"]["seed"], found["bbq"]["reasoning"], strict=True)
    assert [(s, t) for s, t in pairs if isinstance(t, str)] == [
        (r["seed"], r["reasoning"]) for r in wanted if "seed" in r
    ]


def test_every_part_of_a_prompt_is_in_its_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under chain of thought the words before and after the reasoning; never the reasoning itself."""
    config = EvaluationConfig(**SMALL)

    def checksums() -> dict[Any, str]:
        return {q.key[:2]: q.columns("chat", config)["prompt_sha256"] for q in plan(config).questions}

    before = checksums()
    for name, changed in (
        ("BBQ_AFTER_REASONING", {("bbq", "Q+IF+CoT")}),
        ("WINOGENDER_REASONING", {("winogender", "Q+IF+CoT")}),
        ("ADMISSIONS_PREFILL", {("admissions", c) for c in ("Q", "Q+IF", "Q+IF+CoT")}),
    ):
        monkeypatch.setattr(words, name, "Say so.")
        assert {key for key, value in checksums().items() if value != before[key]} == changed
        monkeypatch.undo()
