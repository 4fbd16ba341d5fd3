"""What a language model loses when an SAE replaces its activations.

Losses are averaged over the positions whose own token is not ignored, as in SAELens's `run_evals`. The sign of
`ce_degradation` is that of the sparsemax paper, original minus spliced: 0 is best and a loss of quality is
negative.
"""

import math
from collections.abc import Callable, Iterable, Sequence
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
class CrossEntropyBaseline:
    """The two ends of the scale, which every SAE at the same hook shares."""

    n_predictions: int
    """Next-token predictions averaged over."""
    ce_original: float
    """Mean cross-entropy of the model as it is, in nats."""
    ce_zero_ablation: float
    """The same with the activations at the hook set to zero."""


@dataclass(frozen=True)
class CrossEntropyMetrics:
    """Cross-entropy of a language model with an SAE spliced in, in nats per token."""

    n_predictions: int
    """Next-token predictions averaged over."""
    ce_original: float
    """Mean cross-entropy of the model as it is."""
    ce_with_sae: float
    """The same with the SAE's reconstruction in place of the activations."""
    ce_zero_ablation: float
    """The same with zeros in their place."""
    ce_degradation: float
    """`ce_original` - `ce_with_sae`."""
    ce_loss_score: float
    """(`ce_zero_ablation` - `ce_with_sae`) / (`ce_zero_ablation` - `ce_original`); 1 is best."""


def evaluate_cross_entropy_baseline(
    model: HookedRootModule,
    hook_name: str,
    token_batches: Iterable[torch.Tensor],
    *,
    ignore_tokens: Sequence[int] = (),
    progress: bool = True,
) -> CrossEntropyBaseline:
    """Cross-entropy of the model alone and with the hook's activations set to zero.

    Args:
        model: Any `HookedRootModule` language model of SAELens or TransformerLens.
        hook_name: Where the SAE will be spliced in.
        token_batches: Token ids of shape (batch, context), iterated once.
        ignore_tokens: Token ids whose positions are neither replaced nor averaged over.
        progress: Whether to show a progress bar over batches.
    """
    original, ablated = RunningMean(), RunningMean()
    for tokens in tqdm(token_batches, desc="CE without SAE", disable=not progress, leave=False):
        keep = keep_mask(tokens, ignore_tokens)
        original.add(_token_losses(model, tokens)[keep[:, :-1]])
        zeroed = _token_losses(model, tokens, (hook_name, edit_hook(torch.zeros_like)))
        ablated.add(zeroed[keep[:, :-1]])
    if original.count == 0:
        raise ValueError("there were no predictions to average the cross-entropy over")
    return CrossEntropyBaseline(original.count, original.mean(), ablated.mean())


def evaluate_cross_entropy(
    model: HookedRootModule,
    sae: SAE[Any],
    token_batches: Iterable[torch.Tensor],
    baseline: CrossEntropyBaseline,
    *,
    hook_name: str | None = None,
    ignore_tokens: Sequence[int] = (),
    max_norm: float = math.inf,
    progress: bool = True,
) -> CrossEntropyMetrics:
    """Cross-entropy of the model with the SAE spliced in, against a baseline on the same tokens.

    Args:
        model: Any `HookedRootModule` language model of SAELens or TransformerLens.
        sae: Any SAELens SAE.
        token_batches: Token ids of shape (batch, context): those of the baseline.
        baseline: Result of `evaluate_cross_entropy_baseline` for this hook, these tokens and `ignore_tokens`.
        hook_name: Where to splice; by default the hook in the SAE's metadata.
        ignore_tokens: Token ids whose positions are neither replaced nor averaged over.
        max_norm: Activations of a larger norm are not replaced, for an SAE that was trained without them.
        progress: Whether to show a progress bar over batches.

    Raises:
        ValueError: If no hook is known, or the number of predictions is not that of the baseline.
    """
    hook_name = hook_name or sae.cfg.metadata.hook_name
    if hook_name is None:
        raise ValueError("the SAE's metadata has no hook_name, so hook_name must be given")
    spliced = RunningMean()
    for tokens in tqdm(token_batches, desc="CE with SAE", disable=not progress, leave=False):
        keep = keep_mask(tokens, ignore_tokens)
        losses = _token_losses(model, tokens, (hook_name, edit_hook(reconstruct(sae), keep, max_norm)))
        spliced.add(losses[keep[:, :-1]])
    if spliced.count != baseline.n_predictions:
        raise ValueError(
            f"the baseline averages over {baseline.n_predictions} predictions, but these tokens have "
            f"{spliced.count}: compute both on the same tokens"
        )
    ce = spliced.mean()
    return CrossEntropyMetrics(
        n_predictions=baseline.n_predictions,
        ce_original=baseline.ce_original,
        ce_with_sae=ce,
        ce_zero_ablation=baseline.ce_zero_ablation,
        ce_degradation=baseline.ce_original - ce,
        ce_loss_score=(baseline.ce_zero_ablation - ce) / (baseline.ce_zero_ablation - baseline.ce_original),
    )


@torch.no_grad()
def _token_losses(model: HookedRootModule, tokens: torch.Tensor, hook: tuple[str, Hook] | None = None) -> torch.Tensor:
    """Loss of each prediction, shape (batch, context - 1)."""
    fwd_hooks: list[tuple[str | Callable[..., Any], Hook]] = [] if hook is None else [hook]
    output = model.run_with_hooks(tokens, return_type="both", loss_per_token=True, fwd_hooks=fwd_hooks)
    return output[1]
