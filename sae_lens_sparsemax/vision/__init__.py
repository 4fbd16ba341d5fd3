"""Sparse autoencoders on vision transformers: hooked models, activations, training, evaluation."""

from sae_lens_sparsemax.vision.hooked_vit import HookedViT

__all__ = ["HookedViT"]
