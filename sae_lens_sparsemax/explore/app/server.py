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
from http import HTTPStatus
from importlib.resources import files
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from sae_lens_sparsemax.explore.app.gathering import Gathering
from sae_lens_sparsemax.explore.app.guard import ENDED, HOST, PAGES, Guarded, Protocol, refusal
from sae_lens_sparsemax.explore.app.questions import Asked, Question, Start, Wish, parse, read_body
from sae_lens_sparsemax.explore.app.session import Session
from sae_lens_sparsemax.explore.pages.site import SHARED

logger = logging.getLogger(__name__)

_MOST_QUESTIONS = 64
_SECONDS_FOR_TEXTS = 60
_SECONDS_BETWEEN_LOOKS = 0.1
_SCRIPTS = ("app", "inputs", "steering", "gathering")
_FILES = {
    "/": ("app/static/index.html", "text/html"),
    **{f"/{name}.js": (f"app/static/{name}.js", "text/javascript") for name in _SCRIPTS},
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


class _Server(uvicorn.Server):
    """uvicorn's, which at its end calls `at_end`: after that it may raise the signal that ended it."""

    at_end: Callable[[], None] | None = None

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.at_end is not None:
            await run_in_threadpool(self.at_end)
        await super().shutdown(sockets)


class AppServer:
    """Serves one session.

    Args:
        session: what to show.
        title: what to call it on the page.
        listener: as `listen` gives it; its connections wait until the server runs.
        gathering: what makes the pages of a session without any; None offers none.
    """

    def __init__(
        self, session: Session, title: str, listener: socket.socket, gathering: Gathering | None = None
    ) -> None:
        self.session, self.title, self.listener, self.gathering = session, title, listener, gathering
        self.port = listener.getsockname()[1]
        self.url = f"http://{HOST}:{self.port}/"
        """Where the page is."""
        self._turn = asyncio.Lock()  # hooks are attached to the one model while it runs
        self._n_questions = 0
        routes: list[BaseRoute] = [Route(path, self._file, methods=["GET"]) for path in _FILES]
        routes.append(Route("/api/session", self._session, methods=["GET"]))
        routes.append(Route("/api/inspect", self._inspect, methods=["POST"]))
        routes.append(Route("/api/steer", self._steer, methods=["POST"]))
        if gathering is not None:
            routes.append(Route("/api/gather", self._gathered, methods=["GET"]))
            routes.append(Route("/api/gather", self._gather, methods=["POST"]))
        routes.append(Mount(PAGES.rstrip("/"), self._page))
        app = Starlette(routes=routes, exception_handlers={HTTPException: _told})
        app.router.redirect_slashes = False
        self._server = _Server(
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
        self._server.at_end = self.gathering.end if self.gathering is not None else None
        self._server.run(sockets=[self.listener])

    def stop(self) -> None:
        """End `serve`, from another thread."""
        self._server.should_exit = True

    async def _file(self, request: Request) -> Response:
        name, media_type = _FILES[request.url.path]
        return Response((files("sae_lens_sparsemax.explore") / name).read_bytes(), media_type=media_type)

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        pages = self.session.pages  # there may be none until they are gathered
        if pages is None:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        # It follows no link out of the folder.
        await StaticFiles(directory=pages.folder, html=True)(scope, receive, send)

    async def _session(self, _: Request) -> Response:
        gathering = None if self.gathering is None else await run_in_threadpool(self.gathering.told)
        pages = self.session.pages
        told = {"kind": self.session.kind, "title": self.title, "pages": None if pages is None else pages.number}
        return JSONResponse(told | {"gathering": gathering} | self.session.opening)

    async def _gathered(self, _: Request) -> Response:
        assert self.gathering is not None
        return JSONResponse(await run_in_threadpool(self.gathering.told))

    async def _gather(self, request: Request) -> Response:
        body, gathering = await read_body(request, self.session.most_bytes), self.gathering
        assert gathering is not None

        def start(_: Start) -> dict[str, Any]:
            gathering.start()
            return gathering.told()

        return await run_in_threadpool(self._answer, body, Start, start)  # out of turn: the model is not asked

    async def _inspect(self, request: Request) -> Response:
        def answer(question: Question) -> dict[str, Any]:
            return self.session.inspect(question.given, question.position, question.as_changes(), question.classes)

        return await self._answered(request, Question, answer)

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

        def answer(question: Wish) -> dict[str, Any]:
            nonlocal ends
            ends = time.monotonic() + _SECONDS_FOR_TEXTS
            sampling = {key: getattr(question, key) for key in ("max_new_tokens", "temperature", "seed")}
            return self.session.steer(question.given, question.as_changes(), before_each=check, **sampling)

        return await self._answered(request, Wish, answer, watch)

    async def _answered(
        self,
        request: Request,
        kind: type[Asked],
        answer: Callable[[Any], dict[str, Any]],
        watch: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> Response:
        """The answer to a question of a kind, computed in its turn."""
        body = await read_body(request, self.session.most_bytes)
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

    def _answer(self, body: bytes, kind: type[Any], answer: Callable[[Any], dict[str, Any]]) -> Response:
        try:
            return JSONResponse(answer(parse(body, kind)))
        except ValueError as error:
            return refusal(HTTPStatus.BAD_REQUEST, str(error))
        except Exception as error:
            logger.error("A question could not be answered: %s: %s", type(error).__name__, error)
            return refusal(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                f"The question could not be answered: {type(error).__name__}: {str(error)[:500]}",
            )


async def _told(_: Request, error: Exception) -> Response:
    """starlette's own refusals and ours, as JSON."""
    assert isinstance(error, HTTPException)
    sentence = {404: "There is no such page.", 405: "There is no such question."}.get(error.status_code, error.detail)
    return refusal(error.status_code, sentence)
