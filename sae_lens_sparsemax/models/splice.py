"""What a model goes on with at an SAE's hook: a reconstruction, zeros, or the same with some concepts changed.

An `Edit` is a function of what the SAE reads; `edit_hook` makes it a hook for `run_with_hooks` of a language or a
vision model. The splice follows SAELens's `run_evals`: the reconstruction replaces the activations at every position
that the SAE reads; zero ablation, the other end of the scale, is `edit_hook(torch.zeros_like)`, at every position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from sae_lens import SAE

from sae_lens_sparsemax.models.encoding import CHUNK_SIZE, SparseActs, encode_to_decode, evaluation_mode, sparse_acts
from sae_lens_sparsemax.settings.sentences import must_be

Edit = Callable[[torch.Tensor], torch.Tensor]
"""Takes activations of shape (batch, positions, d_in), heads side by side, and returns what the model goes on with."""

Hook = Callable[..., torch.Tensor]
"""A hook function of TransformerLens: activations and their hook point to activations."""


class Change(NamedTuple):
    """What becomes of one concept's activation f: `factor` · f + `add`, at every token that the SAE reads."""

    factor: float = 1.0
    """0 switches the concept off, 2 doubles it where it is active."""
    add: float = 0.0
    """Also where it is not active, in the units of activations."""


def edit_hook(
    edit: Edit,
    positions: slice | torch.Tensor = slice(None),
    max_norm: float = math.inf,
    head: int | None = None,
) -> Hook:
    """The hook function that applies an edit.

    Args:
        edit: what to do; it is given the activations at `positions`, or all of them with a mask.
        positions: which the edit replaces: a slice, or a bool mask of shape (positions,) or (batch, positions).
        max_norm: activations of a larger norm stay as they are.
        head: the one head that is edited, of a hook with heads after the position; None edits all, side by side.
    """

    def hook_function(activations: torch.Tensor, hook: Any = None) -> torch.Tensor:  # noqa: ARG001 (TransformerLens's name)
        part = positions if isinstance(positions, slice) else slice(None)
        where = (slice(None), part) if head is None else (slice(None), part, head)
        read = activations[where].flatten(2)
        edited = edit(read).to(read)
        if not isinstance(positions, slice) or max_norm < math.inf:
            # In half precision norms would be rounded, and others left out than `TextAtHook.left_out` says.
            replace = read.float().norm(dim=-1) <= max_norm
            replace = replace if isinstance(positions, slice) else replace & positions.to(read.device)
            edited = torch.where(replace[..., None], edited, read)
        changed = activations.clone()
        changed[where] = edited.reshape(activations[where].shape)
        return changed

    return hook_function


def reconstruct(sae: SAE[Any]) -> Edit:
    """The edit that replaces activations by their reconstruction."""

    def edit(activations: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), evaluation_mode(sae):
            sae_in = activations.flatten(0, 1).to(sae.device, sae.dtype)
            return sae.decode(sae.encode(sae_in)).reshape(activations.shape)

    return edit


def change_concepts(sae: SAE[Any], changes: Mapping[int, Change]) -> Edit:
    """The edit that switches concepts off, weakens, strengthens or adds them; what the SAE misses stays as it is.

    The model goes on with x + decode(f') - decode(f), so a change of nothing changes nothing, however good the SAE.
    But: an activation changes at its own layer alone. Later layers may compute the concept again.

    Args:
        sae: any SAELens SAE.
        changes: from concept to change.

    Raises:
        ValueError: a concept that the SAE has not, or a number that is not finite.
    """
    for concept, change in changes.items():
        if not 0 <= concept < sae.cfg.d_sae:
            raise must_be("concept", f"between 0 and {sae.cfg.d_sae - 1}", concept)
        if not all(map(math.isfinite, change)):
            raise must_be(f"the change of concept {concept}", "finite", tuple(change))

    def edit(activations: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), evaluation_mode(sae):
            before, decode = encode_to_decode(sae, activations.flatten(0, 1).to(sae.device, sae.dtype))
            before = before.to_dense() if before.is_sparse else before
            after = before.clone()
            for concept, change in changes.items():
                after[:, concept] = change.factor * before[:, concept] + change.add
            difference = decode(after) - decode(before)
        return activations + difference.reshape(activations.shape).to(activations)

    return edit


class _Encoded(NamedTuple):
    """What a `MaskedReconstruction` keeps of some images."""

    acts: SparseActs
    is_sparse: bool
    """Whether the SAE gave them as a sparse tensor."""
    decode: Callable[[torch.Tensor], torch.Tensor]
    """Of these images' tokens."""


class MaskedReconstruction:
    """The edits that replace all tokens of an image by their reconstruction from some of the concepts.

    Activations are encoded once for all edits of the same tensor in a row, since only the masks differ.

    Args:
        sae: Any SAELens SAE.
        chunk_size: Tokens encoded or decoded at once; always whole images.
    """

    def __init__(self, sae: SAE[Any], chunk_size: int = CHUNK_SIZE) -> None:
        self.sae, self.chunk_size = sae, chunk_size
        self._seen: tuple[torch.Tensor, int] | None = None
        self._chunks: list[_Encoded] = []

    def edit(self, keep: torch.Tensor | None) -> Edit:
        """The edit for one choice of concepts.

        Args:
            keep: Which concepts each image keeps, bool, shape (images, d_sae), in the order of the images that the
                edit will be applied to; the others are set to zero. None keeps all.
        """

        def apply(activations: torch.Tensor) -> torch.Tensor:
            n_images, n_tokens, _ = activations.shape
            if keep is not None and len(keep) != n_images:
                raise must_be("keep", f"a mask for each of the {n_images} images", len(keep))
            step = max(1, self.chunk_size // n_tokens)
            masks = [None] * -(-n_images // step) if keep is None else keep.split(step)
            parts = []
            with torch.no_grad(), evaluation_mode(self.sae):
                for (acts, is_sparse, decode), mask in zip(self._encoded(activations, step), masks, strict=True):
                    value = acts.value
                    if mask is not None:
                        value = value * mask.to(value.device)[acts.row // n_tokens, acts.col]
                    parts.append(decode(_tensor(acts, value, is_sparse)).to(activations))
            return torch.cat(parts).reshape(activations.shape)

        return apply

    def _encoded(self, activations: torch.Tensor, step: int) -> list[_Encoded]:
        """The activations of every `step` images."""
        if self._seen is None or self._seen[0] is not activations or self._seen[1] != activations._version:
            self._chunks = []
            for images in activations.split(step):
                acts, decode = encode_to_decode(self.sae, images.flatten(0, 1).to(self.sae.device, self.sae.dtype))
                self._chunks.append(_Encoded(sparse_acts(acts), acts.is_sparse, decode))
            self._seen = (activations, activations._version)
        return self._chunks


def _tensor(acts: SparseActs, value: torch.Tensor, is_sparse: bool) -> torch.Tensor:
    """Activations of shape (n, d_sae) with these values, in the form that the SAE itself gives."""
    shape = (acts.n_rows, acts.d_sae)
    if is_sparse:
        return torch.sparse_coo_tensor(torch.stack([acts.row, acts.col]), value, shape, check_invariants=False)
    dense = torch.zeros(shape, dtype=value.dtype, device=value.device)
    dense[acts.row, acts.col] = value
    return dense
