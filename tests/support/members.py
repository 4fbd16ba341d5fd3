"""Which members of a family are tried by default, and which in the slow tests alone."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(often: Collection[Any], members: Iterable[Any]) -> list[Any]:
    """Members for `parametrize`, tuples where there are several names; those not tried `often` are slow."""
    return [
        member
        if member in often
        else pytest.param(*(member if isinstance(member, tuple) else (member,)), marks=pytest.mark.slow)
        for member in members
    ]
