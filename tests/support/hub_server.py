"""A model hub on the loopback address: as much of its HTTP interface as loading and uploading of models needs."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REPO = r"(?P<repo>[^/]+/[^/]+)"
RESOLVE = re.compile(rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
INFO = re.compile(rf"/api/models/{REPO}(?:/revision/(?P<revision>[^/]+))?")
PREUPLOAD = re.compile(rf"/api/models/{REPO}/preupload/(?P<revision>[^/]+)")
COMMIT = re.compile(rf"/api/models/{REPO}/commit/(?P<revision>[^/]+)")


class Hub:
    """The repositories, each a dictionary from path to content, and the requests so far."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.repos: dict[str, dict[str, bytes]] = {}
        self.requests: list[tuple[str, str]] = []
        self.messages: list[str] = []

    def sha(self, repo: str) -> str:
        digest = hashlib.sha1(repr(sorted(self.repos[repo].items())).encode())
        return digest.hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: "Server"
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def missing(self, code: str) -> None:
        self.answer(404, b"{}", X_Error_Code=code, Content_Type="application/json")

    def match(self, pattern: re.Pattern[str]) -> dict[str, str] | None:
        found = pattern.fullmatch(unquote(urlsplit(self.path).path))
        return found.groupdict() if found else None

    def do_GET(self) -> None:
        self.hub.requests.append((self.command, self.path))
        if found := self.match(RESOLVE):
            files = self.hub.repos.get(found["repo"])
            if files is None:
                return self.missing("RepoNotFound")
            if found["revision"] not in ("main", self.hub.sha(found["repo"])):
                return self.missing("RevisionNotFound")
            if found["path"] not in files:
                return self.missing("EntryNotFound")
            body = files[found["path"]]
            etag = f'"{hashlib.sha1(body).hexdigest()}"'
            return self.answer(200, body, ETag=etag, X_Repo_Commit=self.hub.sha(found["repo"]))
        if found := self.match(INFO):
            if found["repo"] not in self.hub.repos:
                return self.missing("RepoNotFound")
            names = [{"rfilename": name} for name in self.hub.repos[found["repo"]]]
            info = {"id": found["repo"], "sha": self.hub.sha(found["repo"]), "private": False, "siblings": names}
            return self.answer_json(info | {"downloads": 0, "likes": 0, "tags": []})
        return self.missing("EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.hub.requests.append((self.command, self.path))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            repo = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
            self.hub.repos.setdefault(repo, {})
            return self.answer_json({"url": f"{self.hub.url}/{repo}", "name": repo, "id": repo})
        if self.path == "/api/validate-yaml":
            return self.answer_json({"errors": [], "warnings": []})
        if self.match(PREUPLOAD):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer_json({"files": files})
        if found := self.match(COMMIT):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "header":
                    self.hub.messages.append(line["value"]["summary"])
                else:
                    assert line["key"] == "file", line["key"]
                    content = base64.b64decode(line["value"]["content"])
                    self.hub.repos[found["repo"]][line["value"]["path"]] = content
            oid = self.hub.sha(found["repo"])
            return self.answer_json(
                {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{found['repo']}/commit/{oid}"}
            )
        return self.missing("EntryNotFound")

    def log_message(self, *args: object) -> None:
        """Say nothing on stderr."""


class Server(ThreadingHTTPServer):
    hub: Hub
    daemon_threads = True


@contextmanager
def running_hub():
    """A hub that answers at `.url` until the block ends."""
    with Server(("127.0.0.1", 0), Handler) as server:
        server.hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server.hub
        server.shutdown()
        thread.join()
