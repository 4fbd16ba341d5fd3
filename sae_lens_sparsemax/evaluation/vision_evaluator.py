"""What an SAE keeps of a vision model, measured on held-out images with its reconstruction in the model's place."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from sae_lens.saes.sae import SAE
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lens_sparsemax.data.images import class_names_of
from sae_lens_sparsemax.data.labelled_images import LabelledImages
from sae_lens_sparsemax.evaluation.classification import contrastive_loss, one_of_each_class, text_prototypes
from sae_lens_sparsemax.evaluation.concept_counts import check_labels
from sae_lens_sparsemax.evaluation.reconstruction import ReconstructionAccumulator, merged_accumulators
from sae_lens_sparsemax.models.encoding import EncodedChunk, evaluation_mode, paused, sparse_acts, unscaled
from sae_lens_sparsemax.models.splice import Edit
from sae_lens_sparsemax.models.vision_at_hook import VisionAtHook


class VisionEvaluator:
    """Reconstruction and, for models with text, zero-shot classification on the same images each time.

    Args:
        at_hook: the vision model where the SAE reads it and is spliced in; tokens not read pass unchanged.
        pixels: what to evaluate on, batch by batch, each `(images, channel, height, width)`; held in memory.
        prototypes: `(n_classes, d_embed)` text embeddings of the classes; None leaves out classification.
        labels: `(n_images,)` class numbers, needed with prototypes; images of class -1 are not classified.
        part: which of how many parts of the batches to run through the model here, (0, 1) for all.
        gather: gives what the processes with the other parts have beside one's own, in the order of the parts.

    Raises:
        ValueError: prototypes without labels.
    """

    def __init__(
        self,
        at_hook: VisionAtHook,
        pixels: Sequence[torch.Tensor],
        prototypes: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        *,
        part: tuple[int, int] = (0, 1),
        gather: Callable[[Any], list[Any]] = lambda own: [own],
    ):
        if prototypes is not None and labels is None:
            raise ValueError("Zero-shot accuracy needs the labels of the images.")
        self.at_hook, self.prototypes, self.labels = at_hook, prototypes, labels
        self.pixels, self.n_batches, self.gather = pixels[part[0] :: part[1]], len(pixels), gather
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
            `explained_variance` (see `evaluation.reconstruction`),
            `l0` (mean active features per token), and with prototypes `zero_shot_accuracy` and
            `contrastive_loss` with the reconstruction, each beside its value `_without_sae`. The contrastive loss
            is over groups with one image of every class.
        """
        measured = ReconstructionAccumulator(sae.cfg.d_sae)
        view = unscaled(sae, activation_scaler or ActivationScaler())

        def reconstruct_and_measure(acts: torch.Tensor) -> torch.Tensor:
            x = acts.flatten(0, 1).to(sae.device)
            features = view.encode(x.to(sae.dtype))
            out = view.decode(features)
            measured.add(EncodedChunk(x, out, sparse_acts(features)))
            return out.reshape(acts.shape)

        with paused(data_provider):
            with evaluation_mode(sae):
                embeds = self._embeds(reconstruct_and_measure)
            if self.prototypes is not None and self._plain is None:
                self._plain = self._classification(self._embeds(None))
        result = merged_accumulators(self.gather(measured)).result()
        metrics = {"explained_variance": result.explained_variance, "l0": result.l0}
        if self._plain is not None:
            metrics |= self._classification(embeds)
            metrics |= {f"{name}_without_sae": value for name, value in self._plain.items()}
        return metrics

    def _embeds(self, edit: Edit | None) -> torch.Tensor:
        """(n_images, d_embed) of all parts, in the order of the images."""
        own = [self.at_hook.embeddings(pixels, edit).float().cpu() for pixels in self.pixels]
        parts = self.gather(own)
        return torch.cat([parts[number % len(parts)][number // len(parts)] for number in range(self.n_batches)])

    def _classification(self, embeds: torch.Tensor) -> dict[str, float]:
        assert self.prototypes is not None and self.labels is not None
        prototypes, model = self.prototypes.float(), self.at_hook.model
        labels = self.labels[self.labels >= 0]
        embeds = embeds[self.labels >= 0]
        logits = model.zero_shot_logits(embeds.to(prototypes.device), prototypes).double().cpu()
        found = {"zero_shot_accuracy": (logits.argmax(-1) == labels).double().mean().item()}
        groups = one_of_each_class(labels, logits.shape[1])
        if losses := [contrastive_loss(logits[rows]).item() for rows in groups]:
            found["contrastive_loss"] = sum(losses) / len(losses)
        return found


def load_evaluator(
    at_hook: VisionAtHook,
    images: LabelledImages,
    class_names: list[str] | None,
    templates: list[str],
    **shared: Any,
) -> VisionEvaluator:
    """The evaluator on some images, with zero-shot classification of the labelled ones where the model has text.

    Args:
        at_hook: the vision model where SAEs read it and are spliced in.
        images: prepared for the model; with classes, -1 or null for unlabelled ones, if the model classifies.
        class_names: in the order of the classes; None for those of the data set; no names leave classification out.
        templates: prompts with one `{}` for the class name.
        shared: `part` and `gather` of `VisionEvaluator`, where several processes evaluate together.

    Raises:
        ValueError: the classes or their names are missing, or no image can be used.
    """
    model = at_hook.model
    if not model.classifies or class_names == [] or not (labelled := images.labelled()).n_images:
        return VisionEvaluator(at_hook, list(images.pixels()), **shared)
    names = class_names or class_names_of(images.data, images.label_column)
    check_labels(labelled.labels, len(names))
    prototypes, batches = text_prototypes(model.encode_text, names, templates), list(images)
    return VisionEvaluator(
        at_hook, [pixels for pixels, _ in batches], prototypes, torch.cat([labels for _, labels in batches]), **shared
    )
