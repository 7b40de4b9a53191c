"""As much of the hub as a push of a training asks: a repository made, and files committed, over HTTP.

It keeps what it was sent. That the real hub takes it is not shown by it: only that the client, as installed, sends what
it is meant to.
"""

from __future__ import annotations

import base64
import json
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.support.threaded import Stallable


class HubServer(Stallable):
    """seen: (path, Authorization header) of each request; files: the content of what was committed, by path."""

    def __init__(self) -> None:
        super().__init__(Handler)
        self.seen: list[tuple[str, str | None]] = []
        self.files: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: HubServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        answer: dict[str, Any] = {}
        if self.path == "/api/repos/create":
            body = json.loads(sent)
            answer = {"url": f"{self.server.url}/{body['organization']}/{body['name']}"}
        elif "/preupload/" in self.path:
            paths = [entry["path"] for entry in json.loads(sent)["files"]]
            answer = {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]}
        elif "/commit/" in self.path:
            for entry in map(json.loads, sent.splitlines()):
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            answer = {"commitUrl": f"{self.server.url}/me/tiny/commit/{'a' * 40}", "commitOid": "a" * 40}
        self._send(json.dumps(answer).encode())

    def do_GET(self) -> None:
        self._send(b"{}")

    def do_HEAD(self) -> None:
        self._send(b"")

    def _send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the console."""
