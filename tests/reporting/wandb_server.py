"""A stand-in for W&B's server, over HTTP on 127.0.0.1: what syncing and reports need of GraphQL and file streams."""

from __future__ import annotations

import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ENTITY = "team"


class Server:
    """What arrived.

    Attributes:
        url: for WANDB_BASE_URL.
        history: lines by run id, as the server keeps them: written at the offsets that the client gave.
        groups: group by run id.
        views: the variables of every upsertView, ``spec`` as an object.
        unknown: operations that it has no answer to.
    """

    def __init__(self) -> None:
        self.url = ""
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.groups: dict[str, str] = {}
        self.views: list[dict[str, Any]] = []
        self.unknown: list[str] = []
        self.refuse: str | None = None

    def stream(self, run: str, files: dict[str, Any]) -> None:
        """A post to a run's file stream."""
        lines = self.history.setdefault(run, [])
        for file in [files["wandb-history.jsonl"]] if "wandb-history.jsonl" in files else []:
            lines[file["offset"] : file["offset"] + len(file["content"])] = map(json.loads, file["content"])

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """To a GraphQL request."""
        project = {"id": "p1", "internalId": "UHJvamVjdA==", "name": "recdepth", "entityName": ENTITY}
        project |= {"entity": {"id": "e1", "name": ENTITY}, "createdAt": "2026-01-01T00:00:00", "isBenchmark": False}
        project["user"] = {"id": "u1", "name": "Someone", "username": "someone", "email": "", "admin": False}
        project["user"] |= {"flags": "{}", "entity": ENTITY, "deletedAt": None, "apiKeys": None, "teams": None}
        name = variables.get("name") or ""
        if "upsertView" in query:
            self.views.append({**variables, "spec": json.loads(variables["spec"])})
            view = {"id": "VmlldzoxMjM=", "type": "runs", "name": name, "displayName": variables["displayName"]}
            view |= {
                "description": "",
                "project": project,
                "spec": variables["spec"],
                "updatedAt": "2026-01-01T00:00:00",
            }
            return {"upsertView": {"view": view, "inserted": True}}
        if "upsertBucket" in query:
            self.groups[name] = variables.get("groupName") or self.groups.get(name, "")
            bucket = {"id": f"id-{name}", "name": name, "displayName": name, "description": "", "config": "{}"}
            bucket |= {"sweepName": None, "project": project, "historyLineCount": len(self.history.get(name, []))}
            return {"upsertBucket": {"bucket": bucket, "inserted": name not in self.history, "updated": True}}
        if "createRunFiles" in query:
            files = [{"name": f, "uploadUrl": f"{self.url}/upload/{f}"} for f in variables["files"]]
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        if "createArtifact" in query:  # as if it had all the files already
            artifact = {"id": "a1", "state": "COMMITTED", "artifactSequence": {"latestArtifact": {"id": "a1"}}}
            return {"createArtifact": {"artifact": artifact}}
        if "features" in query:
            return {"serverInfo": {"features": []}}
        if "RunResumeStatus" in query:
            return {"model": None}
        if "viewer" in query:
            viewer = {
                "id": "u1",
                "entity": ENTITY,
                "username": "someone",
                "name": "Someone",
                "email": "",
                "admin": False,
            }
            return {"viewer": {**viewer, "flags": "{}", "teams": {"edges": []}, "apiKeys": {"edges": []}}}
        if "ProjectInternalId" in query:
            return {"project": project}
        if "models" in query:
            page = {"hasNextPage": False, "endCursor": None}
            return {"models": {"edges": [{"node": project, "cursor": "1"}], "pageInfo": page}}
        self.unknown.append(query)
        return {}


@contextmanager
def serve() -> Iterator[Server]:
    """Runs the server in a thread."""
    server = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply({})

        def do_PUT(self) -> None:
            self._body()
            self._reply({})

        def do_POST(self) -> None:
            body = self._body()
            if server.refuse and self.path == "/graphql":
                self._reply({"errors": [{"message": server.refuse}]}, 403)
            elif self.path == "/graphql":
                request = json.loads(body)
                self._reply({"data": server.answer(request["query"], request.get("variables") or {})})
            else:
                parts = self.path.strip("/").split("/")  # files/ENTITY/PROJECT/RUN/file_stream
                if parts[-1] == "file_stream":
                    server.stream(parts[3], json.loads(body).get("files") or {})
                self._reply({})

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

        def _reply(self, answer: Any, code: int = 200) -> None:
            body = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Quiet(http.server.ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # clients drop connections when they end

    http_server = Quiet(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http_server.server_address[1]}"
    thread = threading.Thread(target=http_server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http_server.shutdown()
        http_server.server_close()
        thread.join()
