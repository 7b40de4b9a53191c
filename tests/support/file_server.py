"""A file server on 127.0.0.1 that breaks off, stalls, ignores ranges and refuses, one scripted answer after another."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler

from tests.support.threaded import Stallable, running

Answer = Callable[["Handler", bytes], None]


class FileServer(Stallable):
    """Serves `files` by path. `script` holds answers that come first, each once; `seen` what was asked for."""

    def __init__(self) -> None:
        super().__init__(Handler)
        self.files: dict[str, bytes] = {}
        self.script: dict[str, list[Answer]] = {}
        self.seen: list[tuple[str, str | None]] = []  # (path as on the request line, Range header)
        self.sent: dict[str, int] = {}  # bytes of bodies, by path
        self.scheme = "http"

    @property
    def address(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: FileServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: object) -> None:
        pass

    @property
    def name(self) -> str:
        """The path alone, also of the absolute form that a proxy is asked in."""
        return "/" + self.path.partition("://")[2].partition("/")[2] if "://" in self.path else self.path

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers["Range"]))
        script = self.server.script.get(self.name, [])
        body = self.server.files.get(self.name)
        if script:
            script.pop(0)(self, body or b"")
        elif body is None:
            self.answer(404)
        else:
            whole(self, body)

    def answer(self, code: int, body: bytes = b"", length: int | None = None, **headers: str) -> None:
        """A status, headers and a body; Content-Length is the body's unless told otherwise (-1: none)."""
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if length != -1:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.server.sent[self.name] = self.server.sent.get(self.name, 0) + len(body)
        self.wfile.write(body)

    def part(self, body: bytes, most: int | None = None) -> None:
        """What the Range header asks for, at most `most` bytes of it although more are announced."""
        asked = self.headers["Range"]
        first = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if first and first >= len(body):
            self.answer(416, Content_Range=f"bytes */{len(body)}")
            return
        rest = body[first:]
        span = {"Content_Range": f"bytes {first}-{len(body) - 1}/{len(body)}"} if asked else {}
        self.answer(206 if asked else 200, rest[:most], len(rest), **span)


def whole(handler: Handler, body: bytes) -> None:
    handler.part(body)


def breaks_off(after: int) -> Answer:
    return lambda handler, body: handler.part(body, after)


def stalls(after: int) -> Answer:
    def answer(handler: Handler, body: bytes) -> None:
        handler.part(body, after)
        handler.wfile.flush()
        handler.server.released.wait(120)

    return answer


def ignores_range(handler: Handler, body: bytes) -> None:
    handler.answer(200, body)


def sends_from_the_start(handler: Handler, body: bytes) -> None:
    """206, but of another range than was asked for."""
    handler.answer(206, body, Content_Range=f"bytes 0-{len(body) - 1}/{len(body)}")


def ends_unannounced(after: int) -> Answer:
    """No Content-Length: the end of the connection is the end of the file."""
    return lambda handler, body: handler.answer(200, body[:after], -1)


def status(code: int, **headers: str) -> Answer:
    return lambda handler, body: handler.answer(code, b"busy", None, **headers)


def serving() -> AbstractContextManager[FileServer]:
    return running(FileServer())
