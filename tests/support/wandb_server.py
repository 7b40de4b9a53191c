"""As much of W&B's server as its client asks when a workspace and a report are saved, and runs are written and read:
GraphQL, and the stream of a run's files, over HTTP.

It keeps what it was sent. That the real server takes it is not shown by it: only that the client, as installed, sends
what it is meant to.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "team"


class WandbServer(ThreadingHTTPServer):
    """asked: names of the operations, in their order; views: by id, as they were sent last; runs: by id.

    refused: the status by which operations of such a name are refused; files: that of a run's rows, where they are.
    disturb: called before an answer, with the operation's name ('' for a file stream); status: of every answer, where
    it is one; silent: no answer is given until it is set.
    """

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.disturb: Callable[[str], None] = lambda name: None
        self.status: int | None = None
        self.silent: threading.Event | None = None
        self.asked: list[str] = []
        self.views: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.refused: dict[str, int] = {}
        self.files: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, name: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of an operation."""
        self.asked.append(name)
        if name.lower().startswith("upsertview"):
            return self.upsert(variables)
        if name == "UpsertBucket":
            return self.upsert_run(variables)
        if name == "RunResumeStatus":
            return {"model": self.project | {"bucket": self.bucket(variables["name"])}}
        if name in ("Run", "RunHistoryKeys"):
            return {"project": {"internalId": "1", "run": self.run(variables["name"])}}
        if name == "HistoryPage":
            rows, wanted = self.rows(variables["run"]), range(variables["minStep"], variables["maxStep"])
            return {"project": {"run": {"history": [json.dumps(r) for r in rows if r["_step"] in wanted]}}}
        if name == "RunParquetHistory":
            return {"project": {"run": {"parquetHistory": {"liveData": [], "parquetUrls": []}}}}
        if name == "CreateRunFiles":
            files = [{"name": n, "uploadUrl": f"{self.url}/uploads/{n}"} for n in variables["files"]]
            return {"createRunFiles": {"runID": "id", "uploadHeaders": [], "files": files}}
        if name == "ArtifactType":
            return {"project": None}
        if name == "CreateArtifact":  # as one that the server has already, whose files are not asked for
            kept = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s", "latestArtifact": None}}
            return {"createArtifact": {"artifact": kept}}
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

    @property
    def project(self) -> dict[str, Any]:
        return {"id": "p", "name": "selfcorrect", "entity": {"id": "e", "name": ENTITY}}

    def rows(self, run: str) -> list[dict[str, Any]]:
        """A run's history, as it arrived."""
        history = self.runs.get(run, {}).get("history", {})
        return [json.loads(history[n]) for n in sorted(history)]

    def upsert_run(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"]
        new = name not in self.runs
        run = self.runs.setdefault(name, {"history": {}, "summary": "{}", "config": "{}"})
        run["config"] = variables.get("config") or run["config"]
        run["entity"] = variables.get("entity")
        bucket = (self.bucket(name) or {}) | {"description": "", "sweepName": None, "project": self.project}
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def bucket(self, name: str) -> dict[str, Any] | None:
        """What the client must know to go on with a run."""
        if name not in self.runs:
            return None
        run = self.runs[name]
        history = [run["history"][n] for n in sorted(run["history"])]
        return {
            "id": f"id-{name}", "name": name, "displayName": name, "summaryMetrics": run["summary"], "tags": [],
            "historyLineCount": len(history), "historyTail": json.dumps(history[-1:]), "eventsTail": "[]",
            "logLineCount": 0, "eventsLineCount": 0, "config": run["config"], "wandbConfig": '{"t": 1}',
        }  # fmt: skip

    def run(self, name: str) -> dict[str, Any] | None:
        """A run as wandb.Api reads it."""
        if name not in self.runs:
            return None
        last = max((row["_step"] for row in self.rows(name)), default=-1)
        return {
            "id": f"id-{name}", "tags": [], "name": name, "displayName": name, "sweepName": None, "state": "finished",
            "config": self.runs[name]["config"], "group": None, "jobType": "eval", "commit": None, "readOnly": False,
            "createdAt": "2026-01-01T00:00:00", "heartbeatAt": "2026-01-01T00:00:00", "description": "", "notes": "",
            "systemMetrics": "{}", "summaryMetrics": self.runs[name]["summary"],
            "user": {"name": ENTITY, "username": ENTITY}, "projectId": 1,
            "historyLineCount": len(self.rows(name)), "historyKeys": {"lastStep": last, "keys": {}},
        }  # fmt: skip

    def stream(self, run: str, asked: dict[str, Any]) -> None:
        """Rows and last values of a run."""
        kept, files = self.runs[run], asked.get("files") or {}
        if history := files.get("wandb-history.jsonl"):
            kept["history"] |= {history["offset"] + k: line for k, line in enumerate(history["content"])}
        if summary := files.get("wandb-summary.json"):
            kept["summary"] = summary["content"][-1]

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
    """POST /graphql and /files/ENTITY/PROJECT/RUN/file_stream; PUT of uploads, which are not kept."""

    protocol_version = "HTTP/1.1"
    server: WandbServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        body = self.body()
        if self.server.silent is not None:
            self.server.silent.wait()
            return
        if self.server.status is not None:
            return self.reply({"errors": [{"message": "refused"}]}, self.server.status)
        if not self.path.endswith(("/graphql", "/file_stream")):
            return self.reply({})
        asked = json.loads(body)
        if self.path.endswith("/file_stream"):
            self.server.disturb("")
            if self.server.files and "wandb-history.jsonl" in (asked.get("files") or {}):
                return self.reply({"error": "refused"}, self.server.files)
            self.server.stream(self.path.split("/")[-2], asked)
            return self.reply({"limits": {}})
        found = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
        name = found[1] if found else ""
        self.server.disturb(name)
        if name in self.server.refused:
            return self.reply({"errors": [{"message": "permission denied"}]}, self.server.refused[name])
        self.reply({"data": self.server.answer(name, asked.get("variables") or {})})

    def do_PUT(self) -> None:
        self.body()
        self.reply({})

    def body(self) -> bytes:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(sent) if self.headers.get("Content-Encoding") == "gzip" else sent

    def reply(self, told: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(told).encode()
        self.send_response(status)
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
