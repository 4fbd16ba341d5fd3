"""The page and its answers over HTTP, to browsers on this machine alone, by starlette on uvicorn.

A question is read up to a limit of size and time, one is computed at a time while others wait, and whatever is refused
is told as JSON with one sentence; `guard` refuses what need not reach the app.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib.resources import files

import uvicorn
from pydantic_core import from_json
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sae_lens_sparsemax.explore.app.guard import HOST, Guarded, Protocol, refusal
from sae_lens_sparsemax.explore.app.session import Session
from sae_lens_sparsemax.models.splice import Change
from sae_lens_sparsemax.settings.checking import build
from sae_lens_sparsemax.settings.sentences import must_be

logger = logging.getLogger(__name__)

_SECONDS_FOR_BODY = 30
_MOST_QUESTIONS = 64
_MOST_CHANGES = 1_000
_FILES = {
    "/": ("app/static/index.html", "text/html"),
    "/app.js": ("app/static/app.js", "text/javascript"),
    "/app.css": ("app/static/app.css", "text/css"),
    "/base.js": ("pages/assets/base.js", "text/javascript"),
    "/base.css": ("pages/assets/base.css", "text/css"),
}


def listen(port: int) -> socket.socket:
    """A socket of this machine alone; port 0 picks a free one.

    Raises:
        ValueError: the port is taken, not ours, or no port.
    """
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or "ports end at 65535"
        raise ValueError(
            f"port must be one to listen on, got {port}: {why}. Choose another with --port; 0 takes any."
        ) from error


class AppServer:
    """Serves one session.

    Args:
        session: what to show.
        title: what to call it on the page.
        listener: as `listen` gives it; its connections wait until the server runs.
    """

    def __init__(self, session: Session, title: str, listener: socket.socket) -> None:
        self.session, self.title, self.listener = session, title, listener
        self.port = listener.getsockname()[1]
        self.url = f"http://{HOST}:{self.port}/"
        """Where the page is."""
        self._turn = asyncio.Lock()  # hooks are attached to the one model while it runs
        self._n_questions = 0
        routes = [Route(path, self._file, methods=["GET"]) for path in _FILES]
        routes.append(Route("/api/session", self._session, methods=["GET"]))
        routes.append(Route("/api/inspect", self._inspect, methods=["POST"]))
        app = Starlette(routes=routes, exception_handlers={HTTPException: _told})
        app.router.redirect_slashes = False
        self._server = uvicorn.Server(
            uvicorn.Config(
                Guarded(app, self.port),
                http=Protocol,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,  # requests are one person's clicks
                log_level="critical",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )

    def serve(self) -> None:
        """Answer until Ctrl-C or `stop`."""
        self._server.run(sockets=[self.listener])

    def stop(self) -> None:
        """End `serve`, from another thread."""
        self._server.should_exit = True

    async def _file(self, request: Request) -> Response:
        name, media_type = _FILES[request.url.path]
        return Response((files("sae_lens_sparsemax.explore") / name).read_bytes(), media_type=media_type)

    async def _session(self, _: Request) -> Response:
        return JSONResponse({"kind": self.session.kind, "title": self.title})

    async def _inspect(self, request: Request) -> Response:
        body = await _body(request, self.session.most_bytes)
        with self._counted():
            async with self._turn:
                return await run_in_threadpool(self._answer, body)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        if self._n_questions >= _MOST_QUESTIONS:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "Too many questions wait already; ask again later.")
        self._n_questions += 1
        try:
            yield
        finally:
            self._n_questions -= 1

    def _answer(self, body: bytes) -> Response:
        try:
            question = _parse(body)
            changes = {concept: Change(factor, add) for concept, factor, add in question.changes}
            return JSONResponse(self.session.inspect(question.given, question.position, changes))
        except ValueError as error:
            return refusal(HTTPStatus.BAD_REQUEST, str(error))
        except Exception as error:
            logger.error("A question could not be answered: %s: %s", type(error).__name__, error)
            return refusal(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                f"The question could not be answered: {type(error).__name__}: {str(error)[:500]}",
            )


@dataclass
class _Question:
    given: str
    position: int | None = None
    changes: list[tuple[int, float, float]] = field(default_factory=list)


def _parse(body: bytes) -> _Question:
    """The question in a request.

    Raises:
        ValueError: it is not one.
    """
    try:
        values = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"The question must be JSON: {error}") from error
    if not isinstance(values, dict):
        raise must_be("The question", "an object with the key given", values)
    question = build(_Question, values)
    if len(question.changes) > _MOST_CHANGES:
        raise must_be("changes", f"at most {_MOST_CHANGES}", len(question.changes))
    return question


async def _body(request: Request, most_bytes: int) -> bytes:
    """What a question holds, as far as it is taken.

    Raises:
        HTTPException: it is not JSON by its type, too large, or too slow.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "A question must be of the type application/json.")
    too_large = HTTPException(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"A question must have at most {most_bytes // 2**20} MB, and an image file three quarters of that.",
    )
    if int(request.headers.get("content-length", 0)) > most_bytes:
        raise too_large
    body = bytearray()

    async def read() -> None:
        async for part in request.stream():
            body.extend(part)
            if len(body) > most_bytes:
                raise too_large

    try:
        await asyncio.wait_for(read(), _SECONDS_FOR_BODY)
    except asyncio.TimeoutError as error:
        raise HTTPException(
            HTTPStatus.REQUEST_TIMEOUT, f"A question must arrive within {_SECONDS_FOR_BODY} seconds."
        ) from error
    except ClientDisconnect as error:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "The question ended too early.") from error
    return bytes(body)


async def _told(_: Request, error: Exception) -> Response:
    """starlette's own refusals and ours, as JSON."""
    assert isinstance(error, HTTPException)
    sentence = {404: "There is no such page.", 405: "There is no such question."}.get(error.status_code, error.detail)
    return refusal(error.status_code, sentence)
