"""As much of W&B's server as its client asks when a workspace and a report are saved: GraphQL over HTTP.

It keeps what it was sent. That the real server takes it is not shown by it: only that the client, as installed, sends
what it is meant to.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "team"


class WandbServer(ThreadingHTTPServer):
    """asked: names of the operations, in their order; views: by id, as they were sent last."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.views: dict[str, dict[str, Any]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, name: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of an operation."""
        self.asked.append(name)
        if name.lower().startswith("upsertview"):
            return self.upsert(variables)
        if name == "ProjectInternalId":
            return {"project": {"id": "p", "internalId": "UHJvamVjdEludGVybmFsSWQ6MQ=="}}
        if "Projects" in name:
            page = {"hasNextPage": False, "endCursor": None, "__typename": "PageInfo"}
            node = {
                "id": "p",
                "name": "selfcorrect",
                "entityName": ENTITY,
                "createdAt": "2026-01-01T00:00:00",
                "isBenchmark": False,
                "user": None,
            }
            return {"models": {"edges": [{"node": node, "cursor": "c"}], "pageInfo": page}}
        viewer = {"id": "v", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer, "serverInfo": None}

    def upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        given = variables.get("id")
        view = given or f"view{len(self.views)}"
        self.views[view] = variables
        project = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
        stored = {
            "id": view, "type": variables["type"], "name": variables["name"], "displayName": variables["displayName"],
            "description": variables["description"], "project": project, "spec": variables["spec"],
            "updatedAt": "2026-01-01T00:00:00",
        }  # fmt: skip
        return {"upsertView": {"view": stored, "inserted": not given}}


class Handler(BaseHTTPRequestHandler):
    """POST /graphql."""

    server: WandbServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
        data = self.server.answer(found[1] if found else "", asked.get("variables") or {})
        body = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the console."""


@contextmanager
def serving() -> Iterator[WandbServer]:
    server = WandbServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
