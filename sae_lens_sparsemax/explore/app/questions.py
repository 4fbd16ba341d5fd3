"""What a browser asks, read as far as it is taken and checked before it costs anything."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeVar

from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from sae_lens_sparsemax.models.splice import Change
from sae_lens_sparsemax.settings.checking import build
from sae_lens_sparsemax.settings.sentences import must_be

_SECONDS_FOR_BODY = 30
_MOST_CHANGES = 1_000
_RANGES = {"max_new_tokens": (1, 100), "temperature": (0, 2), "seed": (0, 2**63 - 1)}
T = TypeVar("T")


@dataclass
class Start:
    """That examples are gathered; there is nothing to choose."""


@dataclass
class Asked:
    """An input, and what is changed: concept, factor and what is added."""

    given: str
    changes: list[tuple[int, float, float]] = field(default_factory=list)

    def as_changes(self) -> dict[int, Change]:
        """From concept to change."""
        return {concept: Change(factor, add) for concept, factor, add in self.changes}


@dataclass
class Question(Asked):
    """What is active at a place; see `Session.inspect`."""

    position: int | None = None
    classes: list[str] | None = None


@dataclass
class Wish(Asked):
    """How a text goes on; see `Session.steer`."""

    max_new_tokens: int = 40
    temperature: float = 0.0
    seed: int = 0


def parse(body: bytes, kind: type[T]) -> T:
    """The question in a request.

    Raises:
        ValueError: it is not one.
    """
    try:
        values = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"The question must be JSON: {error}") from error
    if not isinstance(values, dict):
        raise must_be("The question", "an object", values)
    _check_ranges(values)  # a number that no field can hold is out of range, too
    question = build(kind, values)
    if isinstance(question, Asked) and len(question.changes) > _MOST_CHANGES:
        raise must_be("changes", f"at most {_MOST_CHANGES}", len(question.changes))
    _check_ranges(vars(question))
    return question


def _check_ranges(values: Mapping[str, Any]) -> None:
    """Raise a ValueError for the first number that is out of its range; what is no number is told elsewhere."""
    for name, (low, high) in _RANGES.items():
        value = values.get(name)
        if isinstance(value, int | float) and not low <= value <= high:
            raise must_be(name, f"from {low} to {high}", value)


async def read_body(request: Request, most_bytes: int) -> bytes:
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
