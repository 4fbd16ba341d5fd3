"""How far an SAE moves a language model's predictions: KL(original || spliced) of the next-token distributions.

Unlike the cross-entropy, this does not ask which token came next, and no gain at one position hides a loss at
another. Averaged over all positions whose token is not ignored, as in SAELens's `run_evals`.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SAE
from tqdm.auto import tqdm
from transformer_lens.hook_points import HookedRootModule

from sae_lens_sparsemax.evaluation.streaming import RunningMean
from sae_lens_sparsemax.models.language_models import keep_mask
from sae_lens_sparsemax.models.splice import Hook, edit_hook, reconstruct


@dataclass(frozen=True)
class DivergenceMetrics:
    """KL divergence of a language model with an SAE spliced in from the model as it is, in nats per position."""

    n_positions: int
    """Positions averaged over."""
    kl_with_sae: float
    """Mean KL(original || with the SAE's reconstruction)."""
    kl_zero_ablation: float
    """Mean KL(original || with zeros in place of the activations)."""
    kl_score: float
    """1 - `kl_with_sae` / `kl_zero_ablation`; 1 is best."""


@torch.no_grad()
def evaluate_divergence(
    model: HookedRootModule,
    sae: SAE[Any],
    token_batches: Iterable[torch.Tensor],
    *,
    hook_name: str | None = None,
    ignore_tokens: Sequence[int] = (),
    max_norm: float = math.inf,
    progress: bool = True,
) -> DivergenceMetrics:
    """KL divergence of the spliced model's next-token distributions from the original's.

    Args:
        model: Any `HookedRootModule` language model of SAELens or TransformerLens.
        sae: Any SAELens SAE.
        token_batches: Token ids of shape (batch, context), iterated once.
        hook_name: Where to splice; by default the hook in the SAE's metadata.
        ignore_tokens: Token ids whose positions are neither replaced nor averaged over.
        max_norm: Activations of a larger norm are not replaced, for an SAE that was trained without them.
        progress: Whether to show a progress bar over batches.

    Raises:
        ValueError: If no hook is known, or there are no positions.
    """
    hook_name = hook_name or sae.cfg.metadata.hook_name
    if hook_name is None:
        raise ValueError("the SAE's metadata has no hook_name, so hook_name must be given")
    spliced, ablated = RunningMean(), RunningMean()
    for tokens in tqdm(token_batches, desc="KL divergence", disable=not progress, leave=False):
        keep = keep_mask(tokens, ignore_tokens)
        original = model.run_with_hooks(tokens, return_type="logits")
        splice, zero = edit_hook(reconstruct(sae), keep, max_norm), edit_hook(torch.zeros_like)
        for mean, hook in ((spliced, splice), (ablated, zero)):
            for kl, kept in zip(_divergences(model, tokens, original, (hook_name, hook)), keep, strict=True):
                mean.add(kl[kept.to(kl.device)])
    if spliced.count == 0:
        raise ValueError("there were no positions to average the KL divergence over")
    with_sae, with_zeros = spliced.mean(), ablated.mean()
    return DivergenceMetrics(spliced.count, with_sae, with_zeros, 1 - with_sae / with_zeros)


def _divergences(
    model: HookedRootModule, tokens: torch.Tensor, original: torch.Tensor, hook: tuple[str, Hook]
) -> Iterator[torch.Tensor]:
    """The divergence at each position of one context after another, shape (context,), float64."""
    logits = model.run_with_hooks(tokens, return_type="logits", fwd_hooks=[hook])
    # One context at a time: a batch of distributions over 50,000 tokens takes half a gigabyte, four times over.
    for before, after in zip(original, logits, strict=True):
        log_p = before.double().log_softmax(-1)
        yield (log_p.exp() * (log_p - after.double().log_softmax(-1))).sum(-1)
