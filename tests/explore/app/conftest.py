"""Servers of the app for tests, stopped when these end."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from sae_lens_sparsemax.explore.app.server import AppServer, listen


@contextmanager
def running_servers() -> Iterator[Callable[..., AppServer]]:
    """A function that starts a server of a session; a traceback of theirs would be raised by the thread."""
    running = []

    def start(session, title="an SAE", gathering=None) -> AppServer:
        server = AppServer(session, title, listen(0), gathering)
        running.append((server, threading.Thread(target=server.serve)))
        running[-1][1].start()
        return server

    yield start
    for server, thread in running:
        server.stop()
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture
def serve():
    with running_servers() as start:
        yield start


@pytest.fixture(scope="module")
def serving():
    with running_servers() as start:
        yield start
