"""Saving what has been gathered so far, so that a killed run goes on where it was."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

_VERSION = "1"


def state_of(value: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """All tensors and numbers in an object's attributes, and in those of objects in them, by dotted name."""
    state: dict[str, torch.Tensor] = {}
    for name, attribute in vars(value).items():
        if isinstance(attribute, torch.Tensor):
            state[prefix + name] = attribute
        elif isinstance(attribute, int | float):
            dtype = torch.float64 if isinstance(attribute, float) else torch.int64
            state[prefix + name] = torch.tensor(attribute, dtype=dtype)
        elif hasattr(attribute, "__dict__"):
            state |= state_of(attribute, f"{prefix}{name}.")
    return state


def set_state(value: Any, state: dict[str, torch.Tensor]) -> None:
    """Give an object back what `state_of` took from one made in the same way."""
    for dotted, tensor in state.items():
        *path, name = dotted.split(".")
        owner = value
        for part in path:
            owner = getattr(owner, part)
        is_number = isinstance(getattr(owner, name), int | float)
        setattr(owner, name, tensor.item() if is_number else tensor)


def save_state(value: Any, path: Path, fingerprint: str) -> None:
    """Save an object's state in one step: a kill leaves the earlier file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    tensors = {name: tensor.contiguous() for name, tensor in state_of(value).items()}
    save_file(tensors, new, {"fingerprint": fingerprint, "version": _VERSION})
    new.replace(path)


def load_state(value: Any, path: Path, fingerprint: str) -> bool:
    """Restore an object's state; False, and nothing changed, if there is none or it is of another run."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata() != {"fingerprint": fingerprint, "version": _VERSION}:
                return False
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError:  # cut short by a full disk
        return False
    set_state(value, state)
    return True
