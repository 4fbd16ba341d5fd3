"""Triton's interpreter, in half the time, over memory in which nothing is right by chance."""

import pytest
import torch


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


@pytest.fixture(autouse=True)
def unfilled_memory_is_garbage(monkeypatch: pytest.MonkeyPatch):
    """What a kernel forgets to write is the largest number there is, or NaN, and not by chance zero."""
    before = torch.are_deterministic_algorithms_enabled()
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    # On a GPU other operations would be refused, or warn, for having no fixed order.
    torch.use_deterministic_algorithms(before or not torch.cuda.is_available())
    yield
    torch.use_deterministic_algorithms(before)
