"""Which classes of images a concept fires on, and how evenly it is spread over them."""

import torch

from sae_lens_sparsemax.explore.examples import SampleActs


class ClassProfile:
    """Images and activation of every class, for every concept; memory 8 bytes for each of n_classes x d_sae."""

    def __init__(self, n_classes: int, d_sae: int) -> None:
        self.n_images = torch.zeros(n_classes, dtype=torch.int64)
        """Images of each class, shape (n_classes,)."""
        self.active = torch.zeros(n_classes, d_sae, dtype=torch.int32)
        """Images of each class on which each concept is active, shape (n_classes, d_sae)."""
        self.mass = torch.zeros(n_classes, d_sae)
        """Mean activations of these images added up, shape (n_classes, d_sae)."""

    def add(self, acts: SampleActs, labels: torch.Tensor) -> None:
        """Add images with their classes, shape (n_samples,)."""
        d_sae = self.mass.shape[1]
        self.n_images += torch.bincount(labels, minlength=len(self.n_images))
        key = labels[acts.sample] * d_sae + acts.concept
        self.active.view(-1).index_add_(0, key, torch.ones(len(key), dtype=torch.int32))
        self.mass.view(-1).index_add_(0, key, acts.mean.abs())

    def share(self, concept: int) -> torch.Tensor:
        """Share of a concept's activation that falls to each class, shape (n_classes,); zeros if it never fires."""
        mass = self.mass[:, concept].double()
        return mass / mass.sum().clamp(min=torch.finfo(torch.float64).tiny)

    def entropy(self) -> torch.Tensor:
        """
        Entropy in bits of each concept's activation over the classes, shape (d_sae,); NaN if it never fires.

        0 is a concept of one class; log2 of the number of classes is one that is spread over them evenly.
        """
        total = self.mass.sum(0)
        entropy = torch.zeros_like(total)
        for mass in self.mass:  # a row at a time: the table may take hundreds of megabytes
            share = mass / total
            entropy -= torch.where(share > 0, share * share.log2(), 0)
        return torch.where(total > 0, entropy, torch.nan)
