"""What a language model's predictions lose when an SAE replaces its activations: cross-entropy and KL divergence.

Averages are over the positions in `seqpos_slice` whose own token is not left out (`TextAtHook.is_read` of the tokens),
the latter as in SAELens's `run_evals`; zero ablation replaces all of `seqpos_slice`. The sign of
`ce_degradation` is that of the sparsemax paper, original minus spliced: 0 is best and a loss of quality is
negative. KL(original || spliced) of the next-token distributions, unlike the cross-entropy, does not ask which token
came next, and no gain at one position hides a loss at another.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

from sae_lens_sparsemax.evaluation.streaming import RunningMean
from sae_lens_sparsemax.models.at_hook import TextAtHook
from sae_lens_sparsemax.models.language_models import NO_NEXT_TOKENS, predicts_next_tokens
from sae_lens_sparsemax.models.splice import reconstruct

PREDICTIONS = {
    "ce_original": "cross-entropy, original",
    "ce_with_sae": "cross-entropy, with SAE",
    "ce_zero_ablation": "cross-entropy, zero ablation",
    "ce_degradation": "CE degradation, original − with SAE (0 is best)",
    "ce_loss_score": "CE loss score (1 is best)",
    "kl_with_sae": "KL(original ‖ with SAE)",
    "kl_zero_ablation": "KL(original ‖ zero ablation)",
    "kl_score": "KL score (1 is best)",
}
"""What measures of predictions are called in tables of one SAE."""


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
class CrossEntropyMetrics(CrossEntropyBaseline):
    """Cross-entropy of a language model with an SAE spliced in, in nats per token."""

    ce_with_sae: float
    """Mean cross-entropy with the SAE's reconstruction in place of the activations."""
    ce_degradation: float
    """`ce_original` - `ce_with_sae`."""
    ce_loss_score: float
    """(`ce_zero_ablation` - `ce_with_sae`) / (`ce_zero_ablation` - `ce_original`); 1 is best, NaN where zeros change
    nothing."""


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
    """1 - `kl_with_sae` / `kl_zero_ablation`; 1 is best, NaN where zeros change nothing."""


def evaluate_cross_entropy_baseline(
    at_hook: TextAtHook, token_batches: Iterable[torch.Tensor], *, progress: bool = True
) -> CrossEntropyBaseline:
    """Cross-entropy of the model alone and with the hook's activations set to zero.

    Args:
        at_hook: The model where an SAE will be spliced in; which one makes no difference.
        token_batches: Token ids of shape (batch, context), iterated once.
        progress: Whether to show a progress bar over batches.
    """
    _require_next_tokens(at_hook)
    original, ablated = RunningMean(), RunningMean()
    for tokens in tqdm(token_batches, desc="CE without SAE", disable=not progress, leave=False):
        keep = at_hook.is_read(tokens)[:, :-1]
        original.add(_token_losses(at_hook, tokens)[keep])
        ablated.add(_token_losses(at_hook, tokens, at_hook.hooks(torch.zeros_like))[keep])
    if original.count == 0:
        raise ValueError("there were no predictions to average the cross-entropy over")
    return CrossEntropyBaseline(original.count, original.mean(), ablated.mean())


def evaluate_cross_entropy(
    at_hook: TextAtHook,
    token_batches: Iterable[torch.Tensor],
    baseline: CrossEntropyBaseline,
    *,
    progress: bool = True,
) -> CrossEntropyMetrics:
    """Cross-entropy of the model with the SAE spliced in, against a baseline on the same tokens.

    Args:
        at_hook: The model and the SAE. Neither the special tokens nor the activations of too large a norm, which the
            SAE was trained without, are replaced; the former are not averaged over either.
        token_batches: Token ids of shape (batch, context): those of the baseline.
        baseline: Result of `evaluate_cross_entropy_baseline` for this hook, these tokens and special tokens.
        progress: Whether to show a progress bar over batches.

    Raises:
        ValueError: If the number of predictions is not that of the baseline.
    """
    spliced = RunningMean()
    for tokens in tqdm(token_batches, desc="CE with SAE", disable=not progress, leave=False):
        keep = at_hook.is_read(tokens)
        spliced.add(_token_losses(at_hook, tokens, at_hook.hooks(reconstruct(at_hook.sae), keep))[keep[:, :-1]])
    if spliced.count != baseline.n_predictions:
        raise ValueError(
            f"the baseline averages over {baseline.n_predictions} predictions, but these tokens have "
            f"{spliced.count}: compute both on the same tokens"
        )
    ce = spliced.mean()
    return CrossEntropyMetrics(
        **asdict(baseline),
        ce_with_sae=ce,
        ce_degradation=baseline.ce_original - ce,
        ce_loss_score=_ratio(baseline.ce_zero_ablation - ce, baseline.ce_zero_ablation - baseline.ce_original),
    )


@torch.no_grad()
def evaluate_divergence(
    at_hook: TextAtHook, token_batches: Iterable[torch.Tensor], *, progress: bool = True
) -> DivergenceMetrics:
    """KL divergence of the spliced model's next-token distributions from the original's.

    Args:
        at_hook: The model and the SAE, as for `evaluate_cross_entropy`.
        token_batches: Token ids of shape (batch, context), iterated once.
        progress: Whether to show a progress bar over batches.

    Raises:
        ValueError: If there are no positions.
    """
    _require_next_tokens(at_hook)
    spliced, ablated = RunningMean(), RunningMean()
    ablation = at_hook.hooks(torch.zeros_like)
    for tokens in tqdm(token_batches, desc="KL divergence", disable=not progress, leave=False):
        keep = at_hook.is_read(tokens)
        splice = at_hook.hooks(reconstruct(at_hook.sae), keep)
        original = at_hook.model.run_with_hooks(tokens, return_type="logits")
        for mean, hooks in ((spliced, splice), (ablated, ablation)):
            for kl, kept in zip(_divergences(at_hook, tokens, original, hooks), keep, strict=True):
                mean.add(kl[kept.to(kl.device)])
    if spliced.count == 0:
        raise ValueError("there were no positions to average the KL divergence over")
    with_sae, with_zeros = spliced.mean(), ablated.mean()
    return DivergenceMetrics(spliced.count, with_sae, with_zeros, 1 - _ratio(with_sae, with_zeros))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _require_next_tokens(at_hook: TextAtHook) -> None:
    if not predicts_next_tokens(at_hook.model):
        raise ValueError(f"{NO_NEXT_TOKENS}.")


@torch.no_grad()
def _token_losses(at_hook: TextAtHook, tokens: torch.Tensor, hooks: Sequence[Any] = ()) -> torch.Tensor:
    """Loss of each prediction, shape (batch, context - 1)."""
    output = at_hook.model.run_with_hooks(tokens, return_type="both", loss_per_token=True, fwd_hooks=list(hooks))
    return output[1]


def _divergences(
    at_hook: TextAtHook, tokens: torch.Tensor, original: torch.Tensor, hooks: list[Any]
) -> Iterator[torch.Tensor]:
    """The divergence at each position of one context after another, shape (context,), float64."""
    logits = at_hook.model.run_with_hooks(tokens, return_type="logits", fwd_hooks=hooks)
    # One context at a time: a batch of distributions over 50,000 tokens takes half a gigabyte, four times over.
    for before, after in zip(original, logits, strict=True):
        log_p = before.double().log_softmax(-1)
        yield (log_p.exp() * (log_p - after.double().log_softmax(-1))).sum(-1)
