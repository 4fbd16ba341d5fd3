"""Running any SAELens SAE over a stream of activations, one chunk of tokens at a time.

Only `encode` and `decode` of the SAE are used, so every architecture works that reads each token by itself. The
(N, d_sae) activations of a data set are never held: each chunk is reduced to its non-zero entries as soon as it is
encoded.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from sae_lens import SAE
from sae_lens.saes.temporal_sae import TemporalSAE
from sae_lens.saes.transcoder import Transcoder
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lens_sparsemax.settings.sentences import must_be

# Tokens encoded at once. At d_sae = 49,152 a dense chunk of float32 activations takes 200 MB.
CHUNK_SIZE = 1024

# What SAELens's `encode` leaves on an SAE that normalises every token by itself, for one `decode`, which deletes it.
_NORMALISATION = ("x_norm_coeff", "ln_mu", "ln_std")


class SparseActs(NamedTuple):
    """The non-zero activations of some tokens, ordered by token and then by concept."""

    row: torch.Tensor
    """Token of each entry, shape (nnz,), int64, counted from 0."""
    col: torch.Tensor
    """Concept of each entry, shape (nnz,), int64."""
    value: torch.Tensor
    """Activation of each entry, shape (nnz,), never zero."""
    n_rows: int
    """Number of tokens, including those without any active concept."""
    d_sae: int
    """Number of concepts."""

    def l0(self) -> torch.Tensor:
        """Number of active concepts of each token, shape (n_rows,), int64."""
        return torch.bincount(self.row, minlength=self.n_rows)

    def concept_counts(self) -> torch.Tensor:
        """Number of tokens on which each concept is active, shape (d_sae,), int64."""
        return torch.bincount(self.col, minlength=self.d_sae)


class EncodedChunk(NamedTuple):
    """What an SAE makes of one chunk of tokens."""

    sae_in: torch.Tensor
    """The tokens as they were given, in their own precision, on the SAE's device, shape (n, d_in)."""
    sae_out: torch.Tensor
    """Their reconstruction, in the SAE's precision, shape (n, d_in)."""
    acts: SparseActs
    """Their activations, n rows."""


def sparse_acts(feature_acts: torch.Tensor) -> SparseActs:
    """The non-zero entries of activations of shape (n, d_sae), dense or sparse of any layout.

    Entries stored as explicit zeros (a sparse TopK keeps those that its ReLU cut off) are dropped: a concept
    is active where its activation differs from zero, as in SAELens.
    """
    if feature_acts.ndim != 2:
        raise must_be("feature_acts", "of shape (n, d_sae)", tuple(feature_acts.shape))
    n_rows, d_sae = feature_acts.shape
    if feature_acts.layout != torch.strided:
        feature_acts = feature_acts.to_sparse_coo().coalesce()
        (row, col), value = feature_acts.indices(), feature_acts.values()
        active = value != 0
        return SparseActs(row[active], col[active], value[active], n_rows, d_sae)
    row, col = feature_acts.nonzero(as_tuple=True)
    return SparseActs(row, col, feature_acts[row, col], n_rows, d_sae)


def tokens_2d(activations: torch.Tensor) -> torch.Tensor:
    """Activations of shape (..., d_in) as tokens of shape (n, d_in)."""
    return activations.reshape(-1, activations.shape[-1])


def encode_chunks(
    sae: SAE[Any], batches: Iterable[torch.Tensor], chunk_size: int = CHUNK_SIZE
) -> Iterator[EncodedChunk]:
    """Encode and decode batches of shape (..., d_in) in chunks of at most `chunk_size` tokens.

    Chunks never span two batches. Raises `ValueError` if a batch does not have the width of the SAE.
    """
    with evaluation_mode(sae):
        for batch in batches:
            if batch.shape[-1] != sae.cfg.d_in:
                raise must_be("activations", f"of the SAE's width {sae.cfg.d_in}", batch.shape[-1])
            for chunk in tokens_2d(batch).split(chunk_size):
                sae_in = chunk.to(sae.device)
                with torch.no_grad():
                    feature_acts = sae.encode(sae_in.to(sae.dtype))
                    sae_out = sae.decode(feature_acts)
                yield EncodedChunk(sae_in, sae_out, sparse_acts(feature_acts))


def encode_whole_images(
    sae: SAE[Any], batches: Iterable[torch.Tensor], chunk_size: int = CHUNK_SIZE
) -> Iterator[tuple[EncodedChunk, int]]:
    """Encode and decode the tokens of images, in chunks of whole ones.

    Args:
        sae: Any SAELens SAE.
        batches: Activations of shape (images, tokens, d_in).
        chunk_size: Tokens encoded at once; always whole images, so at least one.

    Yields:
        Chunks whose rows are tokens, and how many tokens each image has.

    Raises:
        ValueError: If a batch does not have the three dimensions.
    """
    for batch in batches:
        if batch.ndim != 3:
            raise must_be("activations", "of shape (images, tokens, d_in)", tuple(batch.shape))
        n_tokens = batch.shape[1]
        for images in batch.split(max(1, chunk_size // n_tokens)):
            (chunk,) = encode_chunks(sae, [images], chunk_size=images.shape[0] * n_tokens)
            yield chunk, n_tokens


def encode_images(
    sae: SAE[Any], batches: Iterable[torch.Tensor], chunk_size: int = CHUNK_SIZE
) -> Iterator[EncodedChunk]:
    """As `encode_whole_images`, with input, reconstruction and activations averaged: rows are images."""
    for chunk, n_tokens in encode_whole_images(sae, batches, chunk_size):
        yield EncodedChunk(
            _precise(chunk.sae_in).unflatten(0, (-1, n_tokens)).mean(1),
            _precise(chunk.sae_out).unflatten(0, (-1, n_tokens)).mean(1),
            mean_over_tokens(chunk.acts, n_tokens),
        )


def mean_over_tokens(acts: SparseActs, n_tokens: int) -> SparseActs:
    """Activations averaged over groups of `n_tokens` consecutive rows, which stay sparse."""
    n_images = acts.n_rows // n_tokens
    key = (acts.row // n_tokens) * acts.d_sae + acts.col
    unique, position = key.unique(return_inverse=True)
    values = _precise(acts.value)
    value = values.new_zeros(len(unique)).index_add_(0, position, values)
    return SparseActs(unique // acts.d_sae, unique % acts.d_sae, value / n_tokens, n_images, acts.d_sae)


def _precise(x: torch.Tensor) -> torch.Tensor:
    """In float32 at least: the sum over an image's tokens overflows float16, and bfloat16 adds nothing to it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def encode_to_decode(
    sae: SAE[Any], sae_in: torch.Tensor
) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """Activations of tokens, and a `decode` for activations of these tokens that may be called again, and later.

    Args:
        sae: any SAELens SAE.
        sae_in: `(n, d_in)`, on its device.
    """
    feature_acts = sae.encode(sae_in)
    normalisation = {name: vars(sae)[name] for name in _NORMALISATION if name in vars(sae)}

    def decode(feature_acts: torch.Tensor) -> torch.Tensor:
        vars(sae).update(normalisation)
        return sae.decode(feature_acts)

    return feature_acts, decode


def encode_tokens(sae: SAE[Any], tokens: torch.Tensor) -> torch.Tensor:
    """Activations of a few tokens, dense, in eval mode.

    Args:
        sae: any SAELens SAE.
        tokens: `(n_tokens, ...)`, heads (if any) are laid side by side.

    Returns:
        `(n_tokens, d_sae)` float32 on the CPU.

    Raises:
        ValueError: the tokens do not have the SAE's width.
    """
    flat = tokens.flatten(1)
    if flat.shape[1] != sae.cfg.d_in:
        raise must_be("activations", f"of the SAE's width {sae.cfg.d_in}", flat.shape[1])
    with torch.no_grad(), evaluation_mode(sae):
        acts = sae.encode(flat.to(sae.device, sae.dtype))
    return (acts.to_dense() if acts.is_sparse else acts).float().cpu()


def has_passes(sae: SAE[Any]) -> bool:
    """Whether an SAE selects concepts in several passes, and says in which."""
    return hasattr(sae, "first_passes") and sae.cfg.passes > 1


def first_passes(sae: SAE[Any], tokens: torch.Tensor) -> torch.Tensor:
    """In which pass, counted from 1, an SAE that `has_passes` first selected each active concept.

    Args:
        sae: an SAE that `has_passes`.
        tokens: `(n_tokens, ...)`, heads (if any) are laid side by side.

    Returns:
        `(n_tokens, d_sae)` sparse COO on the CPU.
    """
    several: Any = sae
    with evaluation_mode(sae):
        return several.first_passes(tokens.flatten(1).to(sae.device, sae.dtype)).cpu()


@contextmanager
def evaluation_mode(sae: SAE[Any]) -> Iterator[None]:
    """Put an SAE into eval mode, working on flat tokens, and restore its state afterwards."""
    was_training, was_reshaping = sae.training, sae.hook_z_reshaping_mode
    sae.eval()
    if was_reshaping:
        sae.turn_off_forward_pass_hook_z_reshaping()
    try:
        yield
    finally:
        sae.train(was_training)
        if was_reshaping:
            sae.turn_on_forward_pass_hook_z_reshaping()


def unscaled(sae: SAE[Any], scaler: ActivationScaler) -> SAE[Any]:
    """A view of an SAE in training that takes activations as the model gives them, as the SAE that is saved does."""
    view = copy.copy(sae)
    view.encode = lambda x: sae.encode(scaler.scale(x))
    view.decode = lambda feature_acts: scaler.unscale(sae.decode(feature_acts))
    return view


def paused(data_provider: Any) -> AbstractContextManager[None]:
    """A context in which the second thread of a store, if it has one, leaves the model alone."""
    return data_provider.paused() if hasattr(data_provider, "paused") else nullcontext()


def hook_name_of(sae: SAE[Any], given: str | None = None) -> str:
    """Where an SAE reads and writes.

    Args:
        sae: any SAELens SAE that reconstructs what it reads, each token by itself.
        given: replaces the hook in its metadata.

    Raises:
        ValueError: its metadata do not say, it writes elsewhere (a transcoder), or it encodes whole contexts.
    """
    metadata = sae.cfg.metadata
    if isinstance(sae, Transcoder) or (metadata.hook_name_out or metadata.hook_name) != metadata.hook_name:
        target = repr(metadata.hook_name_out) if metadata.hook_name_out else "elsewhere"
        raise ValueError(
            f"This is a transcoder, from {metadata.hook_name!r} to {target}; only SAEs that reconstruct what they read "
            "are inspected."
        )
    if isinstance(sae, TemporalSAE):
        raise ValueError(
            f"This SAE is {sae.cfg.architecture()}: it encodes whole contexts; only SAEs that encode every token by "
            "itself are inspected."
        )
    if not (hook_name := given or metadata.hook_name):
        raise ValueError("The SAE does not say where it belongs: its metadata have no 'hook_name'.")
    return hook_name


def top_concepts(acts: torch.Tensor, n: int) -> list[int]:
    """The concepts with the largest activations, largest first, at most `n`; those that are zero are left out.

    Args:
        acts: `(d_sae,)`. Negative activations, which some architectures have, count by their size.
    """
    order = acts.abs().topk(min(n, len(acts))).indices.tolist()
    return [concept for concept in order if acts[concept] != 0]
