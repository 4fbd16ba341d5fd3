"""What an SAE keeps of a vision model, measured on held-out images with its reconstruction in the model's place."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from sae_lens.saes.sae import SAE
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.models.tokens import Tokens, token_slice
from sae_lens_sparsemax.models.zero_shot import contrastive_loss


class LabelledImages(NamedTuple):
    """Preprocessed images to evaluate on, held in memory."""

    pixel_values: torch.Tensor
    """`(n_images, channel, height, width)`"""
    labels: torch.Tensor | None
    """`(n_images,)` class numbers, if known."""


class VisionEvaluator:
    """Reconstruction and, for models with text, zero-shot classification on the same images each time.

    Args:
        model: the vision model.
        images: what to evaluate on.
        hook_name: where the SAE reads and is spliced in.
        tokens: which tokens it reads; the others pass unchanged.
        prototypes: `(n_classes, d_embed)` text embeddings of the classes; None leaves out classification.
        batch_size: images at a time.
    """

    def __init__(
        self,
        model: HookedViT,
        images: LabelledImages,
        hook_name: str,
        tokens: Tokens = "all",
        prototypes: torch.Tensor | None = None,
        batch_size: int = 32,
    ):
        if prototypes is not None and images.labels is None:
            raise ValueError("Zero-shot accuracy needs the labels of the images.")
        self.model, self.images, self.prototypes, self.batch_size = model, images, prototypes, batch_size
        self.hook_name = model.resolve_hook_name(hook_name)
        self.positions = token_slice(tokens, model)
        self._plain: dict[str, float] | None = None

    @torch.no_grad()
    def __call__(
        self, sae: SAE[Any], data_provider: Any = None, activation_scaler: ActivationScaler | None = None
    ) -> dict[str, float]:
        """Measure an SAE; the signature is that of SAELens's evaluators.

        Args:
            sae: any SAE of the hook's width; it is left in the mode (training or not) it came in.
            data_provider: a store whose second thread must not use the model meanwhile, if it has one.
            activation_scaler: what the activations are scaled by before they reach the SAE.

        Returns:
            `explained_variance` (1 - squared error / squared distance from the mean, both summed over tokens),
            `l0` (mean active features per token), and with prototypes `zero_shot_accuracy` and
            `contrastive_loss` with the reconstruction, each beside its value `_without_sae`. The contrastive loss
            is over groups with one image of every class.
        """
        was_training = sae.training
        sae.eval()
        splice = _Splice(sae, activation_scaler or ActivationScaler(), self.positions)
        with data_provider.paused() if hasattr(data_provider, "paused") else nullcontext():
            embeds = torch.cat([self._embeds(pixels, splice) for pixels in self._batches()])
            metrics = splice.metrics()
            if self.prototypes is not None:
                if self._plain is None:
                    self._plain = self._classification(torch.cat([self._embeds(p, None) for p in self._batches()]))
                metrics |= self._classification(embeds)
                metrics |= {f"{name}_without_sae": value for name, value in self._plain.items()}
        sae.train(was_training)
        return metrics

    def _batches(self) -> Iterator[torch.Tensor]:
        yield from self.images.pixel_values.split(self.batch_size)

    def _embeds(self, pixels: torch.Tensor, splice: Callable[..., torch.Tensor] | None) -> torch.Tensor:
        hooks: list[Any] = [(self.hook_name, splice)] if splice is not None else []
        return self.model.run_with_hooks(pixels, fwd_hooks=hooks).float().cpu()

    def _classification(self, embeds: torch.Tensor) -> dict[str, float]:
        assert self.prototypes is not None and self.images.labels is not None
        labels = self.images.labels
        device = self.prototypes.device
        logits = self.model.zero_shot_logits(embeds.to(device), self.prototypes.float()).double().cpu()
        found = {"zero_shot_accuracy": (logits.argmax(-1) == labels).double().mean().item()}
        if losses := [contrastive_loss(logits[rows]).item() for rows in one_of_each_class(labels, logits.shape[1])]:
            found["contrastive_loss"] = sum(losses) / len(losses)
        return found


class _Splice:
    """A hook that puts the reconstruction in the activation's place and adds up how good it is, in float64."""

    def __init__(self, sae: SAE[Any], scaler: ActivationScaler, positions: slice):
        self.sae, self.scaler, self.positions = sae, scaler, positions
        self.n_tokens, self.n_active = 0, 0
        self.squared_error, self.squared_norm = 0.0, 0.0
        self.sum_x: torch.Tensor | None = None

    def __call__(self, acts: torch.Tensor, hook: Any) -> torch.Tensor:  # noqa: ARG002
        x = acts[:, self.positions]
        tokens = x.flatten(0, 1).to(self.sae.device, self.sae.dtype)
        if not getattr(self.sae, "hook_z_reshaping_mode", False):  # else the SAE itself joins the heads
            tokens = tokens.flatten(1)
        features = self.sae.encode(self.scaler.scale(tokens))
        out = self.scaler.unscale(self.sae.decode(features))
        self._add(tokens.flatten(1).double(), out.flatten(1).double(), features)
        spliced = acts.clone()
        spliced[:, self.positions] = out.reshape(x.shape).to(acts)
        return spliced

    def _add(self, x: torch.Tensor, out: torch.Tensor, features: torch.Tensor) -> None:
        self.n_tokens += len(x)
        self.n_active += int(features.count_nonzero())
        self.squared_error += (out - x).square().sum().item()
        self.squared_norm += x.square().sum().item()
        self.sum_x = x.sum(0) if self.sum_x is None else self.sum_x + x.sum(0)

    def metrics(self) -> dict[str, float]:
        assert self.sum_x is not None
        variance = self.squared_norm - self.sum_x.square().sum().item() / self.n_tokens
        return {"explained_variance": 1 - self.squared_error / variance, "l0": self.n_active / self.n_tokens}


def one_of_each_class(labels: torch.Tensor, n_classes: int) -> list[torch.Tensor]:
    """Groups of rows with one image of class 0, 1, ... in order, as many as the rarest class has images."""
    rows = [torch.nonzero(labels == label).flatten() for label in range(n_classes)]
    return [torch.stack([r[i] for r in rows]) for i in range(min(len(r) for r in rows))]
