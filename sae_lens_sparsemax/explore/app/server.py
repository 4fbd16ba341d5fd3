"""The page and its answers over HTTP, to browsers on this machine alone.

Python's own server is enough: one person asks one question at a time. Requests that another site makes a browser send
are refused by their host name and content type.
"""

import json
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

from sae_lens_sparsemax.explore import app
from sae_lens_sparsemax.explore.app.session import Session
from sae_lens_sparsemax.models.splice import Change

HOST = "127.0.0.1"
_LARGEST_REQUEST = 32 * 1024 * 1024
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/app.css": ("app.css", "text/css; charset=utf-8"),
}
_POLICY = "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class AppServer(ThreadingHTTPServer):
    """A server for one session.

    Args:
        session: what to show.
        title: what to call it on the page.
        port: 0 picks a free one, see `url`.

    Raises:
        ValueError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, session: Session, title: str, port: int = 0):
        self.session, self.title = session, title
        self.lock = threading.Lock()  # hooks are attached to the one model while it runs
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ValueError(f"Port {port} cannot be used: {error}. Choose another with --port.") from error

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: Any  # the AppServer

    def do_GET(self) -> None:
        if not self._is_local():
            return
        if self.path == "/api/session":
            self._send_json(HTTPStatus.OK, {"kind": self.server.session.kind, "title": self.server.title})
        elif self.path in _FILES:
            name, content_type = _FILES[self.path]
            self._send(HTTPStatus.OK, (files(app) / "static" / name).read_bytes(), content_type)
        else:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": "There is no such page."})

    def do_POST(self) -> None:
        if not self._is_local():
            return
        if self.path != "/api/inspect" or self.headers.get_content_type() != "application/json":
            self._send_json(HTTPStatus.NOT_FOUND, {"error": "There is no such question."})
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > _LARGEST_REQUEST:
            self.close_connection = True
            self._send_json(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": "At most 24 MB are taken."})
            return
        try:
            given, position, changes = _parse(self.rfile.read(int(length)))
            with self.server.lock:
                answer = self.server.session.inspect(given, position, changes)
        except ValueError as error:
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": " ".join(str(error).split())})
            return
        self._send_json(HTTPStatus.OK, answer)

    def _is_local(self) -> bool:
        port = self.server.server_address[1]
        if self.headers.get("Host") in (f"{HOST}:{port}", f"localhost:{port}"):
            return True
        self._send_json(HTTPStatus.FORBIDDEN, {"error": "This page is for browsers on the same machine."})
        return False

    def _send_json(self, status: HTTPStatus, answer: dict[str, Any]) -> None:
        self._send(status, json.dumps(answer).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: they are one person's clicks."""


def _parse(body: bytes) -> tuple[str, int | None, dict[int, Change]]:
    """The question in a request.

    Raises:
        ValueError: it is not one.
    """
    try:
        question = json.loads(body)
        given, position = question["given"], question.get("position")
        changes = {int(c): Change(float(factor), float(add)) for c, factor, add in question.get("changes", [])}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError("The question could not be understood.") from error
    if not isinstance(given, str) or not (position is None or type(position) is int):
        raise ValueError("The question could not be understood.")
    return given, position, changes
