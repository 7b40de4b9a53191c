"""eval data fetch against a local server that also breaks off, stalls and serves wrong files."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import main
from eval.data.catalog import PINNED, Pinned
from eval.data.fetch import FetchConfig, fetch
from eval.errors import InputError
from tests.support.file_server import (
    Answer,
    FileServer,
    breaks_off,
    ends_unannounced,
    ignores_range,
    sends_from_the_start,
    serving,
    stalls,
    status,
)  # fmt: skip

BODY = bytes(range(256)) * 800
OTHER = b"<html>please log in</html>"
HALF = 100_000
FEW = 1000  # fewer than a buffered file holds back
ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys
from eval.errors import run_main
from eval.data.fetch import FetchConfig, fetch
from eval.data.catalog import Pinned
def main():
    fetch(FetchConfig(data_dir=sys.argv[1], timeout=120), [Pinned(**p) for p in json.loads(sys.argv[2])], pause=0.01)
{before}
run_main(main)
"""


@pytest.fixture(autouse=True)
def no_proxy_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "SELFCORRECT_DATA"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as running:
        yield running


def git_id(body: bytes) -> str:
    return "git:" + hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def pin(
    server: FileServer,
    path: str,
    body: bytes = BODY,
    *script: Answer,
    served: bytes | None = None,
    size: int | None = None,
) -> Pinned:
    """A file of the server, pinned by its content; `served` is what the server has instead of it."""
    server.files["/" + path] = body if served is None else served
    server.script["/" + path] = list(script)
    return Pinned(path, f"{server.address}/{path}", "local@1", "ours", git_id(body), size)


def run(folder: Path, *pins: Pinned, timeout: float = 5.0, mirror: str = "") -> dict[str, Any]:
    return fetch(FetchConfig(data_dir=str(folder), timeout=timeout, mirror=mirror), pins, pause=0.01)


def lying(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {".fetch.lock"}


def test_whole_fetch_and_what_is_right_is_not_asked_for(server: FileServer, tmp_path: Path) -> None:
    pins = [
        pin(server, "bbq/One.jsonl"),
        pin(server, "admissions/law_data.csv", b"two"),
        pin(server, "bbq/Empty.jsonl", b""),
    ]
    pins.append(Pinned("bbq/Sha.jsonl", pins[0].url, "local@1", "ours", "sha256:" + hashlib.sha256(BODY).hexdigest()))
    found = run(tmp_path / "data", *pins)
    assert [f["outcome"] for f in found["files"]] == ["fetched"] * 4
    assert found["error"] is None
    assert (tmp_path / "data" / "bbq" / "One.jsonl").read_bytes() == BODY
    assert lying(tmp_path / "data") == {p.path for p in pins}
    asked = len(server.seen)
    assert asked == 4
    assert [f["outcome"] for f in run(tmp_path / "data", *pins)["files"]] == ["right"] * 4
    assert len(server.seen) == asked


def test_optional_files_only_when_named(server: FileServer, tmp_path: Path) -> None:
    extra = Pinned("preferences/a.jsonl.gz", f"{server.address}/x", "local@1", "ours", git_id(b"x"), optional=True)
    server.files["/x"] = b"x"
    pins = (pin(server, "bbq/One.jsonl"), extra)
    run(tmp_path, *pins)
    assert lying(tmp_path) == {"bbq/One.jsonl"}
    fetch(FetchConfig(data_dir=str(tmp_path), only=["preferences"]), pins)
    assert lying(tmp_path) == {"bbq/One.jsonl", "preferences/a.jsonl.gz"}


def test_broken_off_goes_on_with_the_rest(server: FileServer, tmp_path: Path) -> None:
    pinned = pin(server, "bbq/One.jsonl", BODY, breaks_off(HALF), breaks_off(HALF // 2))
    assert run(tmp_path, pinned)["error"] is None
    ranges = [asked for _, asked in server.seen]
    assert ranges == [None, f"bytes={HALF}-", f"bytes={HALF * 3 // 2}-"]
    assert server.sent["/bbq/One.jsonl"] == len(BODY)  # nothing twice
    assert (tmp_path / "bbq" / "One.jsonl").read_bytes() == BODY


def test_many_breaks_do_not_end_it_while_more_comes(server: FileServer, tmp_path: Path) -> None:
    pinned = pin(server, "bbq/One.jsonl", BODY, *[breaks_off(10_000)] * 15)
    assert run(tmp_path, pinned)["error"] is None
    assert len(server.seen) == 16


def test_always_broken_off_at_the_same_place_ends(server: FileServer, tmp_path: Path) -> None:
    def again(handler: Any, body: bytes) -> None:
        handler.answer(200, body[:HALF], len(body))

    found = run(tmp_path, pin(server, "bbq/One.jsonl", BODY, *[again] * 30))
    assert "attempts in a row brought nothing new" in found["files"][0]["problem"]
    assert len(server.seen) == 7  # the first, which brought something, and 6 that did not
    assert lying(tmp_path) == {"bbq/One.jsonl.part"}


def test_server_that_ignores_range(server: FileServer, tmp_path: Path) -> None:
    assert run(tmp_path, pin(server, "bbq/One.jsonl", BODY, breaks_off(HALF), ignores_range))["error"] is None
    assert [asked for _, asked in server.seen] == [None, f"bytes={HALF}-"]
    assert (tmp_path / "bbq" / "One.jsonl").read_bytes() == BODY


def test_server_that_sends_another_range(server: FileServer, tmp_path: Path, caplog) -> None:
    """Seen from the answer's head: its body is not added to what is there."""
    caplog.set_level("INFO")
    assert run(tmp_path, pin(server, "bbq/One.jsonl", BODY, breaks_off(HALF), sends_from_the_start))["error"] is None
    assert [asked for _, asked in server.seen] == [None, f"bytes={HALF}-", None]
    assert f"asked for byte {HALF} and the server sends from 0" in caplog.text


def test_partial_file_longer_than_the_file(server: FileServer, tmp_path: Path) -> None:
    """416: begun anew."""
    pinned = pin(server, "bbq/One.jsonl")
    (tmp_path / "bbq").mkdir()
    (tmp_path / "bbq" / "One.jsonl.part").write_bytes(BODY + b"more")
    assert run(tmp_path, pinned)["error"] is None
    assert [asked for _, asked in server.seen] == [f"bytes={len(BODY) + 4}-", None]


def test_whole_partial_file_takes_its_place_unasked(server: FileServer, tmp_path: Path) -> None:
    pinned = pin(server, "bbq/One.jsonl")
    (tmp_path / "bbq").mkdir()
    (tmp_path / "bbq" / "One.jsonl.part").write_bytes(BODY)
    assert run(tmp_path, pinned)["error"] is None
    assert server.seen == [] and lying(tmp_path) == {"bbq/One.jsonl"}


def test_partial_file_of_something_else_is_not_kept(server: FileServer, tmp_path: Path, caplog) -> None:
    """Resumed, found not to fit, fetched whole: one wrong beginning does not make a good file wrong."""
    caplog.set_level("INFO")
    pinned = pin(server, "bbq/One.jsonl")
    (tmp_path / "bbq").mkdir()
    (tmp_path / "bbq" / "One.jsonl.part").write_bytes(OTHER)
    assert run(tmp_path, pinned)["error"] is None
    assert [asked for _, asked in server.seen] == [f"bytes={len(OTHER)}-", None]
    assert "beginning anew" in caplog.text and lying(tmp_path) == {"bbq/One.jsonl"}


def test_stall_is_retried(server: FileServer, tmp_path: Path) -> None:
    began = time.monotonic()
    assert run(tmp_path, pin(server, "bbq/One.jsonl", BODY, stalls(HALF)), timeout=3.0)["error"] is None
    assert [asked for _, asked in server.seen] == [None, f"bytes={HALF}-"]
    assert time.monotonic() - began < 60


def test_end_without_announced_length(server: FileServer, tmp_path: Path) -> None:
    """Only the pinned size tells that something is lacking."""
    pinned = pin(server, "bbq/One.jsonl", BODY, ends_unannounced(HALF), size=len(BODY))
    assert run(tmp_path, pinned)["error"] is None
    assert [asked for _, asked in server.seen] == [None, f"bytes={HALF}-"]


def test_wrong_file_is_kept_aside_and_the_others_go_on(server: FileServer, tmp_path: Path) -> None:
    pins = (pin(server, "bbq/One.jsonl", served=OTHER), pin(server, "bbq/Two.jsonl", b"two"))
    found = run(tmp_path, *pins)
    short = git_id(OTHER).removeprefix("git:")[:8]
    aside = tmp_path / "bbq" / f"One.jsonl.wrong-{short}"
    problem = found["files"][0]["problem"]
    assert git_id(BODY) in problem and git_id(OTHER) in problem and str(aside) in problem
    assert aside.read_bytes() == OTHER
    assert lying(tmp_path) == {"bbq/Two.jsonl", f"bbq/{aside.name}"}
    assert "1 of 2 files were not fetched: bbq/One.jsonl" in found["error"]
    assert len(server.seen) == 2  # a wrong file is not asked for again
    assert list((tmp_path / "bbq").glob("*.jsonl")) == [tmp_path / "bbq" / "Two.jsonl"]  # no reader takes it for data


def test_wrong_file_in_place_is_replaced_and_kept(server: FileServer, tmp_path: Path) -> None:
    pinned = pin(server, "bbq/One.jsonl")
    target = tmp_path / "bbq" / "One.jsonl"
    target.parent.mkdir()
    target.write_bytes(b"mine")
    server.script["/bbq/One.jsonl"] = [status(404)]
    assert run(tmp_path, pinned)["error"] and target.read_bytes() == b"mine"  # not taken away for nothing
    assert run(tmp_path, pinned)["error"] is None
    assert target.read_bytes() == BODY
    (aside,) = target.parent.glob("*.wrong-*")
    assert aside.read_bytes() == b"mine"


@pytest.mark.parametrize("code", [404, 403])
def test_refused_is_one_line_and_not_retried(server: FileServer, tmp_path: Path, code: int) -> None:
    found = run(tmp_path, pin(server, "bbq/One.jsonl", BODY, status(code)), pin(server, "bbq/Two.jsonl", b"two"))
    assert f"HTTP status {code}" in found["files"][0]["problem"] and "\n" not in found["files"][0]["problem"]
    assert [f["outcome"] for f in found["files"]] == ["failed", "fetched"]
    assert len(server.seen) == 2


@pytest.mark.parametrize("code", [429, 500, 503])
def test_busy_server_is_asked_again(server: FileServer, tmp_path: Path, code: int) -> None:
    assert run(tmp_path, pin(server, "bbq/One.jsonl", BODY, status(code), status(code)))["error"] is None
    assert len(server.seen) == 3


def test_retry_after_is_waited_for(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    answers = (status(429, Retry_After="7"), status(503, Retry_After="100000"), status(503))
    assert run(tmp_path, pin(server, "bbq/One.jsonl", BODY, *answers))["error"] is None
    assert waits == [7.0, 60.0, 0.04]


def test_no_network_is_told_once(tmp_path: Path) -> None:
    with socket.socket() as taken:  # whose port no server of another test can get
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        paths = ("bbq/One.jsonl", "bbq/Two.jsonl")
        found = run(tmp_path, *(Pinned(p, f"{address}/{p}", "local@1", "ours", git_id(BODY)) for p in paths))
    assert (
        "127.0.0.1 cannot be reached" in found["files"][0]["problem"] and "HTTPS_PROXY" in found["files"][0]["problem"]
    )
    assert found["files"][1]["problem"].startswith("not tried: 127.0.0.1 cannot be reached")


def test_redirect_is_followed_with_the_range(server: FileServer, tmp_path: Path) -> None:
    pinned = pin(server, "bbq/One.jsonl", BODY, status(302, Location="/moved"), status(302, Location="/moved"))
    server.files["/moved"] = BODY
    server.script["/moved"] = [breaks_off(HALF)]
    assert run(tmp_path, pinned)["error"] is None
    assert server.seen[-1] == ("/moved", f"bytes={HALF}-")


def test_through_a_proxy(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host exists for the proxy alone."""
    monkeypatch.setenv("HTTP_PROXY", server.address)
    server.files["/bbq/One.jsonl"] = BODY
    pinned = Pinned("bbq/One.jsonl", "http://upstream.invalid/bbq/One.jsonl", "local@1", "ours", git_id(BODY))
    assert run(tmp_path, pinned)["error"] is None
    assert server.seen == [("http://upstream.invalid/bbq/One.jsonl", None)]
    with serving() as direct:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert run(tmp_path, pin(direct, "bbq/Two.jsonl", b"two"))["error"] is None
        assert [path for path, _ in direct.seen] == ["/bbq/Two.jsonl"]
    assert len(server.seen) == 1


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl, which is not there")
def test_certificates_of_the_environment(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate]
    names = ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*map(str, command), *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.scheme = "https"
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        pinned = pin(server, f"bbq/{name}.jsonl")
        assert "CERTIFICATE_VERIFY_FAILED" in run(tmp_path / "data", pinned)["files"][0]["problem"]
        with monkeypatch.context() as patch:
            patch.setenv(name, str(certificate))
            assert run(tmp_path / "data", pinned)["error"] is None
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "no.pem"))
    with pytest.raises(InputError, match="certificates named by SSL_CERT_FILE or REQUESTS_CA_BUNDLE"):
        run(tmp_path / "data", pin(server, "bbq/Three.jsonl"))


def test_proxy_that_cannot_be_used(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "gopher://127.0.0.1:1")
    with pytest.raises(InputError, match="the proxy of HTTPS_PROXY, HTTP_PROXY or ALL_PROXY"):
        run(tmp_path, pin(server, "bbq/One.jsonl"))


def started(folder: Path, *pins: Pinned, before: str = "") -> subprocess.Popen[str]:
    words = [sys.executable, "-c", SCRIPT.replace("{before}", before), str(folder), json.dumps([vars(p) for p in pins])]
    return subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def test_killed_and_run_again(server: FileServer, tmp_path: Path) -> None:
    """Every byte that came is on the disk, however few they are."""
    pinned = pin(server, "bbq/One.jsonl", BODY, stalls(FEW))
    part, target = tmp_path / "bbq" / "One.jsonl.part", tmp_path / "bbq" / "One.jsonl"
    process = started(tmp_path, pinned)
    try:
        deadline = time.monotonic() + 100  # well before the stall ends or is noticed
        while not (part.is_file() and part.stat().st_size == FEW):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        assert not target.exists()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert run(tmp_path, pinned)["error"] is None  # the killed one's lock does not hold it up
    assert [asked for _, asked in server.seen] == [None, f"bytes={FEW}-"]
    assert target.read_bytes() == BODY and lying(tmp_path) == {"bbq/One.jsonl"}


def test_disk_that_is_full(server: FileServer, tmp_path: Path) -> None:
    """A limit on the size of files stands for it: the write fails in the same call."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))"
    process = started(tmp_path, pin(server, "bbq/One.jsonl"), before=limit)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 2
    (line,) = [x for x in said.splitlines() if x.startswith("error: ")]
    assert str(tmp_path) in line and "free some space" in line and "Traceback" not in said
    assert lying(tmp_path) == {"bbq/One.jsonl.part"}
    assert run(tmp_path, pin(server, "bbq/One.jsonl"))["error"] is None


def test_two_at_once(server: FileServer, tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    pins = [pin(server, f"bbq/{k}.jsonl", b"%d" % k * 50_000, *[stalls(1000)] * (k == 0)) for k in range(3)]
    outcomes: list[list[str]] = []

    def work() -> None:
        outcomes.append([f["outcome"] for f in run(tmp_path, *pins, timeout=3.0)["files"]])

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert sorted(outcomes) == [["fetched"] * 3, ["right"] * 3]
    assert len(server.seen) == 4 and "another fetch is at work" in caplog.text
    assert lying(tmp_path) == {p.path for p in pins}


def test_the_command(server: FileServer, tmp_path: Path, ended, monkeypatch, capsys) -> None:
    """The real pins from a mirror that has other files: refused, told, status 2; and verify, list and --json."""
    pins = [p for p in PINNED if p.dataset == "winogender"]
    for p in pins:
        server.files["/mirror/" + p.url.split("/", 3)[3]] = OTHER
    folder = ("--data-dir", str(tmp_path), "--only", "winogender,admissions")
    line = ended(main, "data", "fetch", *folder, "--mirror", f"{server.address}/mirror/")
    assert "3 of 3 files were not fetched" in line
    assert len(list(tmp_path.glob("winogender/*.wrong-*"))) == 2
    assert any(path.endswith("/HEAD/datasets/law_data.csv") for path, _ in server.seen)  # answered 404
    (tmp_path / "winogender" / "templates.tsv").write_bytes(OTHER)
    line = ended(main, "data", "verify", *folder)
    assert "1 wrong: winogender/templates.tsv; 2 missing: winogender/occupations-stats.tsv, admissions/" in line
    assert "python -m eval data fetch --data-dir" in line
    monkeypatch.setattr(sys, "argv", ["eval", "data", "list", *folder, "--json"])
    capsys.readouterr()
    main()
    told = json.loads(capsys.readouterr().out)
    assert [f["state"] for f in told["files"]] == ["wrong", "missing", "missing"]
    assert len(told["others"]) == 2
    monkeypatch.setattr(sys, "argv", ["eval", "data", "list", *folder])
    main()
    out = capsys.readouterr().out
    assert "(refused)" in out and "none known" in out and "git:e3424d7ea7af" in out
