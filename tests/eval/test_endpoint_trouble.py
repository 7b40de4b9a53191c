"""A served model where the server misbehaves: nothing is lost, asked twice, or told to others."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import main
from eval.errors import InputError
from eval.runner.store import Store
from eval.scorers.endpoint import http_client
from tests.support import model_server
from tests.support.endpoint_runs import KEY, ROOT, command, questions, quick, summary
from tests.support.interrupts import heed_interrupts
from tests.support.model_server import ModelServer


@pytest.mark.parametrize(
    ("trouble", "after"),
    [
        ([model_server.status(429, Retry_After="0"), model_server.status(429), model_server.status(503)], 0),
        ([model_server.status(500), model_server.status(502), model_server.status(504)], 4),
        ([model_server.no_json, model_server.no_choices], 0),
        ([model_server.half, model_server.breaks_off, model_server.hangs_up], 4),
    ],
)
def test_trouble_that_passes_changes_nothing(
    server: ModelServer, tmp_path: Path, trouble: list[model_server.Answer], after: int
) -> None:
    right = quick(server, tmp_path / "right")
    server.do(*trouble, after=after)
    assert quick(server, tmp_path / "out", concurrency=1) == right
    assert server.script == []
    assert summary(tmp_path / "out")["used"]["retries"] == len(trouble)


def test_a_time_out_is_tried_again(server: ModelServer, tmp_path: Path) -> None:
    server.do(model_server.stalls, model_server.stalls, after=3)
    quick(server, tmp_path, timeout=1.5)
    assert summary(tmp_path)["used"]["retries"] >= 2 and not server.script


def test_retry_after_is_honoured_and_a_long_wait_told(
    server: ModelServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "LONG", 0.5)
    monkeypatch.setattr(http_client, "TOLD_EVERY", 10.0**9)  # longer than any machine has been up
    caplog.set_level(logging.WARNING)
    server.do(*[model_server.status(429, Retry_After="1")] * 2, after=3)
    began = time.monotonic()
    quick(server, tmp_path)
    assert time.monotonic() - began > 1
    assert len([r for r in caplog.records if r.message.startswith("waiting for")]) == 1
    server.do(*[model_server.status(429, Retry_After="4000")] * 9)
    with pytest.raises(InputError, match="asks to wait 4000 seconds: run the same command again"):
        quick(server, tmp_path / "later")


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (
            model_server.status(401, f"Incorrect API key provided: {KEY}"),
            r"status 401: Incorrect .*: \*\*\*; put the key",
        ),
        (model_server.status(403, "no access"), "status 403: no access; put a key"),
        (model_server.no_json, "an answer without what was asked .*502 Bad Gateway.*3 tries.*OpenAI-compatible"),
        (model_server.no_choices, "an answer without what was asked .*nothing today"),
        (model_server.status(500), r"status 500: busy \(3 tries\)"),
        (model_server.status(301, Location="http://elsewhere.example/v1"), "redirects to http://elsewhere.example/v1"),
    ],
)
def test_trouble_that_stays_ends_with_one_line(
    server: ModelServer, tmp_path: Path, trouble: model_server.Answer, said: str, ended: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    quick(server, tmp_path / "out", limit=1)
    server.do(*[trouble] * 1000)
    arguments = command(server, tmp_path / "out", "--limit", 3, "--retries", 2)
    line = ended(main, *arguments)
    assert KEY not in line
    assert re.search(said, line), line
    server.do()
    kept = len(list(Store(tmp_path / "out").read()))
    assert kept == 1
    quick(server, tmp_path / "out")


def test_a_server_that_is_not_there(
    server: ModelServer, tmp_path: Path, ended: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = [a if a != server.url else "http://127.0.0.1:9/v1" for a in command(server, tmp_path, "--retries", 2)]
    assert "no connection" in ended(main, *nowhere) and not list(tmp_path.glob("*.json*"))
    wrong = [a if a != "tiny" else "tiney" for a in command(server, tmp_path)]
    assert ended(main, *wrong).endswith(
        "does not serve 'tiney'; did you mean 'tiny'?; it serves tiny, tiny-lora; give one of them as --model"
    )


def test_never_more_requests_at_a_time_than_allowed(server: ModelServer, tmp_path: Path) -> None:
    """Each question waits for as many as are allowed, and then for one that is not and would have come by then."""
    quick(server, tmp_path / "probes", limit=1)
    probes = len(server.seen) - 1
    for n in (1, 3):
        server.most_at_once = 0
        server.do(*[model_server.gathering(n, 0.2)] * 6, after=probes)
        quick(server, tmp_path / str(n), concurrency=n, limit=6)
        assert server.most_at_once == n and not server.script


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SSL_CERT_FILE", "/no/such/file.pem", r"FileNotFoundError.*correct or unset SSL_CERT_FILE"),
        ("ALL_PROXY", "socks5://127.0.0.1:9", r"socksio.*correct or unset .* ALL_PROXY"),
        ("ALL_PROXY", "carrier-pigeon://127.0.0.1", r"ValueError.*correct or unset .* ALL_PROXY"),
    ],
)
def test_an_environment_that_allows_no_connection(
    server: ModelServer, tmp_path: Path, ended: Callable[..., str], monkeypatch: pytest.MonkeyPatch, name: str,
    value: str, said: str,
) -> None:  # fmt: skip
    monkeypatch.setenv(name, value)
    assert re.search(said, ended(main, *command(server, tmp_path)))


@pytest.mark.parametrize("listing", [b'{"data": [{"id": "tiny", "root": {"a": NaN}}]}', b"[" * 200_000])
def test_a_list_of_models_that_is_none(
    server: ModelServer, tmp_path: Path, ended: Callable[..., str], monkeypatch: pytest.MonkeyPatch, listing: bytes
) -> None:
    monkeypatch.setattr(model_server.Handler, "do_GET", lambda handler: handler.raw(listing))
    line = ended(main, *command(server, tmp_path, "--retries", 0))
    assert "/models: an answer without what was asked" in line and len(line) < 500


def test_counts_that_no_longer_come(server: ModelServer, tmp_path: Path) -> None:
    """Without them it cannot be told what a candidate's tokens are: garbage, not a crash."""
    given: dict[str, Any] = {"answer_method": "top", "format": "paper", "tokenizer": None, "limit": 8}
    server.listed = 1000
    quick(server, tmp_path / "right", **given)
    after = len(server.seen) - 4  # the last questions
    server.do(model_server.uncounted, after=after)
    with pytest.raises(InputError, match=r"without what was asked .*the prompt's tokens are not counted") as error:
        quick(server, tmp_path / "out", retries=0, **given)
    assert "cannot be asked" not in str(error.value) and any(Store(tmp_path / "out").read())


def test_stopped_in_the_middle_goes_on_and_asks_nothing_twice(server: ModelServer, tmp_path: Path) -> None:
    """By an error, with chain of thought, at three places."""
    given: dict[str, Any] = {"conditions": ["Q", "Q+IF+CoT"], "cot_limit": 3, "concurrency": 2}
    right = quick(server, tmp_path / "right", **given)
    for after in (5, 8, 11):
        server.do(*[model_server.status(401)] * 50, after=after)
        server.answered.clear()
        with pytest.raises(InputError, match="status 401"):
            quick(server, tmp_path / str(after), **given)
        server.do()
        assert quick(server, tmp_path / str(after), **given) == right
        twice = [k for k, n in questions(server.answered).items() if n > 1]
        probed = {json.dumps(b["prompt"]) for b in server.answered[:2]}
        assert len(set(twice) - probed) <= 1, after  # one that was answered while the other request was refused
        assert summary(tmp_path / str(after))["metrics"] == summary(tmp_path / "right")["metrics"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_killed_and_run_again(server: ModelServer, tmp_path: Path, how: signal.Signals) -> None:
    right = quick(server, tmp_path / "right", limit=8)
    server.slow = 0.6
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": KEY}
    words = [
        sys.executable,
        "-m",
        "eval",
        *map(str, command(server, tmp_path / "out", "--limit", 8, "--concurrency", 1)),
    ]
    process = subprocess.Popen(
        words, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=heed_interrupts
    )
    records = tmp_path / "out" / "records.jsonl"
    while not (records.is_file() and records.read_text().count("\n") >= 2):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(how)
    _, said = process.communicate(timeout=300)  # it would otherwise wait for the server, tries and all
    assert KEY not in said
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    server.slow, kept = 0, list(Store(tmp_path / "out").read())
    assert 2 <= len(kept) < 8
    seen = len(server.seen)
    assert quick(server, tmp_path / "out", limit=8) == right
    assert len(server.seen) - seen <= 8 - len(kept) + 6  # the rest, and what the server can do


@pytest.mark.parametrize("whole", [True, False])
def test_the_key_is_masked_however_json_spells_it(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: Callable[..., str], whole: bool
) -> None:
    """In an answer of another form, in one that breaks off, and where it is cut for the line."""
    key = "abCD/efgh+ijkl=mnop0123"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    spelt = key.replace("/", "\\/").replace("+", "\\u002B")
    for before in ("key ", "k" * 90):
        content = f'{{"error": "{before}{spelt}"{"}" * whole}'.encode()
        monkeypatch.setattr(model_server.Handler, "do_GET", lambda handler, said=content: handler.raw(said))
        line = ended(main, *command(server, tmp_path, "--retries", 0))
        assert f"{before}***" in line and "efgh" not in line and "abCD" not in line


def test_the_key_is_sent_and_stands_nowhere(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str], ended: Callable[..., str],
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", KEY)
    server.says = f" she has {KEY}"
    server.do(*[model_server.status(503, f"key {KEY} is busy")] * 2, after=1)
    given = {"api_key_env": "MY_KEY", "conditions": ["Q+IF+CoT"], "answer_method": "echo"}
    with pytest.raises(InputError, match="same answer to 16 requests") as error:
        quick(server, tmp_path, **given)
    server.says = None
    quick(server, tmp_path, **given)
    assert f"Bearer {KEY}" in server.keys
    texts = [p.read_text() for p in tmp_path.rglob("*") if p.is_file()]
    out = capsys.readouterr()
    assert len(texts) > 3
    assert all(KEY not in t for t in [*texts, caplog.text, out.out, out.err, str(error.value)])
    line = ended(main, *command(server, tmp_path, "--api_key_env", KEY))
    assert KEY not in line and "must name an environment variable" in line
