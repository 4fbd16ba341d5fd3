"""What stands before the app: other sites are refused, slow clients are not waited for, and JSON tells them so."""

import asyncio
import contextlib
from http import HTTPStatus
from typing import Any

import h11
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

HOST = "127.0.0.1"
ENDED = "sparsemax_sae.ended"
"""In the scope of a request, once its client sends no more: a browser that has given up, most often."""
_SECONDS_FOR_HEAD = 10
_SECONDS_AFTER_ANSWER = 5
_MOST_CONNECTIONS = 500
PAGES = "/pages/"
"""Where the app has the pages that `explore` wrote."""
_POLICY = "default-src 'self'; img-src 'self' blob: data:; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
_HEADERS = {
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def refusal(status: int, sentence: str) -> JSONResponse:
    """An answer that says what is wrong."""
    return JSONResponse({"error": " ".join(sentence.split())}, status)


class Guarded:
    """An app that answers this machine's own page alone, and that hears a client out.

    A connection closed while a client still sends would take the answer with it, so what comes after a refusal is read
    and dropped for a while.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        hosts = [f"{name}:{port}" for name in (HOST, "localhost")] + ([HOST, "localhost"] if port == 80 else [])
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        all_read = False

        async def hear() -> Message:
            nonlocal all_read
            message = await receive()
            all_read = message["type"] == "http.disconnect" or not message.get("more_body", False)
            return message

        async def hear_out() -> None:
            while not all_read:
                await hear()

        async def say(message: Message) -> None:
            if message["type"] == "http.response.start":
                # plotly, in the pages alone, brings styles of its own.
                styles = "; style-src 'self' 'unsafe-inline'" if scope["path"].startswith(PAGES) else ""
                headers = {"Content-Security-Policy": _POLICY + styles, **_HEADERS}
                own = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            elif not message.get("more_body", False) and not all_read:
                await send({**message, "more_body": True})
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(hear_out(), _SECONDS_AFTER_ANSWER)
                message = {"type": "http.response.body"}
            await send(message)

        await (self.app if self._is_local(scope) else _stranger)(scope, hear, say)

    def _is_local(self, scope: Scope) -> bool:
        found = dict(scope["headers"])
        host, origin = (found.get(name, b"").decode("latin-1").lower() for name in (b"host", b"origin"))
        return host in self.hosts and origin in ("", *(f"http://{host}" for host in self.hosts))


_stranger = refusal(HTTPStatus.FORBIDDEN, "This page is for browsers on the same machine.")


class Protocol(H11Protocol):
    """uvicorn's HTTP, that waits for a request only so long and says what is wrong with it as JSON."""

    _clock: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > _MOST_CONNECTIONS:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "There are too many connections.")
        self._start_clock()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    @override
    def eof_received(self) -> bool:  # type: ignore[override]  asyncio takes True for "keep it open"
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and not self.cycle.more_body:
            self.cycle.keep_alive = False  # whoever has asked may still read
            self.cycle.scope[ENDED] = True  # type: ignore[typeddict-unknown-key]  one of ours
            return True
        if answering or self.conn.trailing_data[0]:
            self._refuse(HTTPStatus.BAD_REQUEST, "The request ended too early.")
        return False

    @override
    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._stop_clock()

    @override
    def on_response_complete(self) -> None:
        self._start_clock()
        super().on_response_complete()

    @override
    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST, "This is no request in HTTP/1.1 that can be understood.")

    def _start_clock(self) -> None:
        self._stop_clock()
        sentence = f"A request must arrive within {_SECONDS_FOR_HEAD} seconds."
        self._clock = self.loop.call_later(_SECONDS_FOR_HEAD, self._refuse, HTTPStatus.REQUEST_TIMEOUT, sentence)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer is on its way
            told = refusal(status, sentence)
            headers = [*told.raw_headers, (b"connection", b"close")]
            for event in (
                h11.Response(status_code=status, headers=headers, reason=status.phrase),
                h11.Data(data=bytes(told.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:
            self.cycle.disconnected = True  # the app is not to answer as well
        self.transport.close()
