"""The page and its answers over HTTP, to browsers on this machine alone, by starlette on uvicorn.

A question is read up to a limit of size and time, one is computed at a time while others wait, and whatever is refused
is told as JSON with one sentence; `guard` refuses what need not reach the app.
"""

import asyncio
import contextlib
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from typing import Any

import uvicorn
from pydantic_core import from_json
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from sae_lens_sparsemax.explore.app.guard import ENDED, HOST, PAGES, Guarded, Protocol, refusal
from sae_lens_sparsemax.explore.app.session import Session
from sae_lens_sparsemax.explore.pages.site import SHARED
from sae_lens_sparsemax.models.splice import Change
from sae_lens_sparsemax.settings.checking import build
from sae_lens_sparsemax.settings.sentences import must_be

logger = logging.getLogger(__name__)

_SECONDS_FOR_BODY = 30
_MOST_QUESTIONS = 64
_MOST_CHANGES = 1_000
_MOST_NEW_TOKENS = 100
_HIGHEST_TEMPERATURE = 2
_SECONDS_FOR_TEXTS = 60
_SECONDS_BETWEEN_LOOKS = 0.1
_FILES = {
    "/": ("app/static/index.html", "text/html"),
    "/app.js": ("app/static/app.js", "text/javascript"),
    "/steering.js": ("app/static/steering.js", "text/javascript"),
    "/app.css": ("app/static/app.css", "text/css"),
    "/style.css": ("pages/assets/style.css", "text/css"),
    "/base.css": ("pages/assets/base.css", "text/css"),
    # Cards of concepts are drawn as the pages draw them.
    **{f"/{name}.js": (f"pages/assets/{name}.js", "text/javascript") for name in ("base", "core", *SHARED)},
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


@dataclass
class _Asked:
    given: str
    changes: list[tuple[int, float, float]] = field(default_factory=list)

    def as_changes(self) -> dict[int, Change]:
        return {concept: Change(factor, add) for concept, factor, add in self.changes}


@dataclass
class _Question(_Asked):
    position: int | None = None
    classes: list[str] | None = None


@dataclass
class _Wish(_Asked):
    max_new_tokens: int = 40
    temperature: float = 0.0
    seed: int = 0


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
        routes: list[BaseRoute] = [Route(path, self._file, methods=["GET"]) for path in _FILES]
        routes.append(Route("/api/session", self._session, methods=["GET"]))
        routes.append(Route("/api/inspect", self._inspect, methods=["POST"]))
        routes.append(Route("/api/steer", self._steer, methods=["POST"]))
        if session.pages is not None:
            # It follows no link out of the folder.
            routes.append(Mount(PAGES.rstrip("/"), StaticFiles(directory=session.pages.folder, html=True)))
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
        pages = self.session.pages
        told = {"kind": self.session.kind, "title": self.title, "pages": None if pages is None else pages.number}
        told["local"] = Path(self.title).expanduser().is_dir()
        return JSONResponse(told | self.session.opening)

    async def _inspect(self, request: Request) -> Response:
        def answer(question: _Question) -> dict[str, Any]:
            return self.session.inspect(question.given, question.position, question.as_changes(), question.classes)

        return await self._answered(request, _Question, answer)

    async def _steer(self, request: Request) -> Response:
        withdrawn, ends = threading.Event(), math.inf

        async def watch() -> None:
            while not (request.scope.get(ENDED) or await request.is_disconnected()):
                await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)
            withdrawn.set()

        def check() -> None:
            if withdrawn.is_set():
                raise ValueError("The question was withdrawn.")
            if time.monotonic() > ends:
                raise ValueError(f"The texts took more than {_SECONDS_FOR_TEXTS} seconds; ask for fewer tokens.")

        def answer(question: _Wish) -> dict[str, Any]:
            nonlocal ends
            ends = time.monotonic() + _SECONDS_FOR_TEXTS
            sampling = {key: getattr(question, key) for key in ("max_new_tokens", "temperature", "seed")}
            return self.session.steer(question.given, question.as_changes(), before_each=check, **sampling)

        return await self._answered(request, _Wish, answer, watch)

    async def _answered(
        self,
        request: Request,
        kind: type[_Asked],
        answer: Callable[[Any], dict[str, Any]],
        watch: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> Response:
        """The answer to a question of a kind, computed in its turn."""
        body = await _body(request, self.session.most_bytes)
        with self._counted():
            watching = None if watch is None else asyncio.create_task(watch())
            try:
                async with self._turn:
                    return await run_in_threadpool(self._answer, body, kind, answer)
            finally:
                if watching is not None:
                    watching.cancel()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        if self._n_questions >= _MOST_QUESTIONS:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "Too many questions wait already; ask again later.")
        self._n_questions += 1
        try:
            yield
        finally:
            self._n_questions -= 1

    def _answer(self, body: bytes, kind: type[_Asked], answer: Callable[[Any], dict[str, Any]]) -> Response:
        try:
            return JSONResponse(answer(_parse(body, kind)))
        except ValueError as error:
            return refusal(HTTPStatus.BAD_REQUEST, str(error))
        except Exception as error:
            logger.error("A question could not be answered: %s: %s", type(error).__name__, error)
            return refusal(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                f"The question could not be answered: {type(error).__name__}: {str(error)[:500]}",
            )


def _parse(body: bytes, kind: type[_Asked]) -> _Asked:
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
    question = build(kind, values)
    if len(question.changes) > _MOST_CHANGES:
        raise must_be("changes", f"at most {_MOST_CHANGES}", len(question.changes))
    if isinstance(question, _Wish):
        if not 1 <= question.max_new_tokens <= _MOST_NEW_TOKENS:
            raise must_be("max_new_tokens", f"from 1 to {_MOST_NEW_TOKENS}", question.max_new_tokens)
        if not 0 <= question.temperature <= _HIGHEST_TEMPERATURE:
            raise must_be("temperature", f"from 0 to {_HIGHEST_TEMPERATURE}", question.temperature)
        if not 0 <= question.seed < 2**63:
            raise must_be("seed", "from 0 to 2**63 - 1", question.seed)
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
