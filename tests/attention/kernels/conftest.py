"""Triton's interpreter, in half the time."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def language_is_patched_once():
    """At each call within a kernel the interpreter patches the language that the function sees, and leaves it so.

    To look through it again each time takes longer than all else; a kernel does so by itself, and puts it back.
    """
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    patched, whole = set(), interpreter.InterpretedFunction.__call__

    def call(self, *args, **named):
        if self.fn in patched:
            return self.rewrite()(*args, **named)
        patched.add(self.fn)
        return whole(self, *args, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield
