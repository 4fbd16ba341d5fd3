"""What images and texts have in common once they are tokens: activations of all concepts, and the hook they are at."""

from typing import Any

import torch
from sae_lens import SAE

from sae_lens_sparsemax.models.encoding import evaluation_mode


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
        raise ValueError(f"The activations have {flat.shape[1]} coordinates, but the SAE expects {sae.cfg.d_in}.")
    with torch.no_grad(), evaluation_mode(sae):
        acts = sae.encode(flat.to(sae.device, sae.dtype))
    return (acts.to_dense() if acts.is_sparse else acts).float().cpu()


def hook_name_of(sae: SAE[Any]) -> str:
    """Where an SAE reads and writes.

    Raises:
        ValueError: its metadata do not say, or it writes elsewhere (a transcoder).
    """
    metadata = sae.cfg.metadata
    if not metadata.hook_name:
        raise ValueError("The SAE does not say where it belongs: its metadata have no 'hook_name'.")
    if metadata.hook_name_out and metadata.hook_name_out != metadata.hook_name:
        raise ValueError(
            f"This is a transcoder, from {metadata.hook_name!r} to {metadata.hook_name_out!r}; only SAEs that "
            "reconstruct what they read are inspected."
        )
    return metadata.hook_name


def top_concepts(acts: torch.Tensor, n: int) -> list[int]:
    """The concepts with the largest activations, largest first, at most `n`; those that are zero are left out.

    Args:
        acts: `(d_sae,)`. Negative activations, which some architectures have, count by their size.
    """
    order = acts.abs().topk(min(n, len(acts))).indices.tolist()
    return [concept for concept in order if acts[concept] != 0]
