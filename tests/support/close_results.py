"""Results of measurements beside each other, whatever lists and dictionaries they come in."""

import math
from typing import Any

import pytest


def assert_close(found: Any, expected: Any, rel: float = 1e-5, where: str = "") -> None:
    """The same keys and lengths, numbers within `rel` or 1e-6, everything else equal."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_close(found[key], expected[key], rel, f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, each in enumerate(expected):
            assert_close(found[i], each, rel, f"{where}/{i}")
    elif isinstance(expected, float) and math.isfinite(expected):
        assert found == pytest.approx(expected, rel=rel, abs=1e-6), where
    else:
        assert str(found) == str(expected), where
