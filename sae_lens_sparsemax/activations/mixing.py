"""A shuffle buffer whose state can be saved: the missing piece of a bit-identical resume.

SAELens's `mixing_buffer` is a generator, so what it holds is out of reach and a resumed run begins with an
empty buffer: the tokens in it are lost and every later batch differs. `ResumableMixer` runs that same
generator, reads its local variables between two batches, and continues from them later.

But: the source of activations, and the optimiser, are the caller's to save and to put back.
"""

import inspect
from collections.abc import Iterator
from itertools import chain

import torch
from sae_lens.training.mixing_buffer import mixing_buffer

_LOCALS_READ = (
    "storage_buffer",
    "serving_buffer",
    "batch_idx",
    "num_serving_batches",
    "remaining_batches",
    "i",
)

# `torch.no_grad()` wraps `mixing_buffer` and hides its frame; this is the generator function itself.
_raw_mixing_buffer = inspect.unwrap(mixing_buffer)


class ResumableMixer:
    """Shuffled batches of activations from a stream of them, with a state that can be saved and loaded.

    Yields exactly what `sae_lens.training.mixing_buffer.mixing_buffer` yields on the same source from the
    same state of torch's CPU random generator.

    Args:
        source: activations, each `(n_tokens, d_in)` (or `(n_tokens, ...)`), any `n_tokens`.
        buffer_size: tokens the buffer gathers before it serves any.
        batch_size: tokens in each batch yielded.
        mix_fraction: share of the buffer kept back at each refill, in [0, 1]; 0 leaves tokens in order.

    Raises:
        ValueError: `buffer_size` is below `batch_size`, or `mix_fraction` is outside [0, 1].
        RuntimeError: the installed SAELens has a `mixing_buffer` whose local variables have other names.
    """

    def __init__(self, source: Iterator[torch.Tensor], buffer_size: int, batch_size: int, mix_fraction: float = 0.5):
        _check_host()
        if buffer_size < batch_size:
            raise ValueError(f"buffer_size must be at least batch_size, {batch_size}, got {buffer_size}")
        if not 0 <= mix_fraction <= 1:
            raise ValueError(f"mix_fraction must be between 0 and 1, got {mix_fraction}")
        self._source = source
        self._settings = (buffer_size, batch_size, mix_fraction)
        # Whole batches that were drawn before a save and are served before anything is taken from the source.
        self._pending: torch.Tensor | None = None
        # Tokens kept back at the save; they meet the first new activations.
        self._carried: torch.Tensor | None = None
        self._mixing = _raw_mixing_buffer(buffer_size, batch_size, self._activations(), mix_fraction)

    def __iter__(self) -> "ResumableMixer":
        return self

    @torch.no_grad()
    def __next__(self) -> torch.Tensor:
        """The next batch, `(batch_size, d_in)`; StopIteration when the source and the buffer are used up."""
        batch_size, pending = self._settings[1], self._pending
        if pending is None or len(pending) < batch_size:
            try:
                return next(self._mixing)
            except StopIteration:
                # Only a source with nothing left after a load gets here with tokens still carried.
                if self._carried is None or len(self._carried) < batch_size:
                    raise
                pending, self._carried = self._carried, None
        self._pending = pending[batch_size:]
        return pending[:batch_size]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything needed to continue after the last batch yielded, as tensors (safetensors can hold them).

        Returns:
            `settings` (buffer_size, batch_size, mix_fraction), `rng_state` of torch's CPU generator, and
            if not empty `pending` (whole batches, shuffled but not served) and `storage` (tokens kept).
        """
        batch_size = self._settings[1]
        state = {
            "settings": torch.tensor(self._settings, dtype=torch.float64),
            "rng_state": torch.get_rng_state(),
        }
        names = inspect.getgeneratorlocals(self._mixing)
        if self._pending is not None and len(self._pending) >= batch_size:
            pending, storage = self._pending, self._carried
        elif "i" in names:  # the source is used up and the buffer is being emptied in order
            buffer = names["storage_buffer"]
            pending = buffer[(names["i"] + 1) * batch_size : names["remaining_batches"] * batch_size]
            storage = None
        elif "batch_idx" in names:
            pending = names["serving_buffer"][(names["batch_idx"] + 1) * batch_size :]
            storage = names["storage_buffer"]
        else:
            pending, storage = None, self._carried
        # Both are views of one permuted buffer, which a safetensors file must not share.
        if pending is not None and len(pending):
            state["pending"] = pending.detach().clone()
        if storage is not None and len(storage):
            state["storage"] = storage.detach().clone()
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from `state`, and put torch's CPU random generator back to where it was.

        Call it before the first batch, with the source already moved to its own saved position.

        Raises:
            ValueError: the state has other settings, or a batch was drawn or a state loaded before.
        """
        if inspect.getgeneratorstate(self._mixing) != inspect.GEN_CREATED or self._pending is not None:
            raise ValueError(
                "A state can be loaded only once, before the first batch; make a new ResumableMixer for it."
            )
        saved = tuple(state["settings"].tolist())
        if saved != tuple(map(float, self._settings)):
            raise ValueError(
                "The saved shuffle buffer has (buffer_size, batch_size, mix_fraction) = "
                f"({saved[0]:.0f}, {saved[1]:.0f}, {saved[2]}); this run has {self._settings}. "
                "An exact resume needs the same values."
            )
        self._pending = state.get("pending")
        self._carried = state.get("storage")
        torch.set_rng_state(state["rng_state"].cpu())

    def _activations(self) -> Iterator[torch.Tensor]:
        """The source, its first element joined to the tokens carried over from a save."""
        first = next(self._source, None)
        if first is None:
            return
        if self._carried is not None:
            carried = self._carried.to(first.device)
            if carried.dtype != first.dtype or carried.shape[1:] != first.shape[1:]:
                raise ValueError(
                    f"The saved shuffle buffer holds {carried.dtype} tokens of shape "
                    f"{tuple(carried.shape[1:])}; the source now gives {first.dtype} tokens of shape "
                    f"{tuple(first.shape[1:])}."
                )
            first, self._carried = torch.cat([carried, first], dim=0), None
        yield from chain([first], self._source)


def _check_host() -> None:
    code = getattr(_raw_mixing_buffer, "__code__", None)
    missing = [name for name in _LOCALS_READ if code is None or name not in code.co_varnames]
    if missing or not inspect.isgeneratorfunction(_raw_mixing_buffer):
        from sae_lens import __version__

        raise RuntimeError(
            f"SAELens {__version__} has changed its mixing_buffer (no local variable {', '.join(missing)}), "
            "so the shuffle buffer cannot be saved; install a version of sae-lens that this package names."
        )
