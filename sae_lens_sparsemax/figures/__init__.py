"""Figures of concepts for notebooks: they take arrays and images, and return matplotlib figures.

`inputs` has short cuts from a model and an SAE to what they take. The colours can be told apart by people who are
colour-blind, and no figure relies on colour alone.
"""

from sae_lens_sparsemax.explore.concepts import concepts_of_image, concepts_of_text
from sae_lens_sparsemax.figures.cards import image_concept_card, text_concept_card
from sae_lens_sparsemax.figures.inputs import reference_contexts, reference_images, references
from sae_lens_sparsemax.figures.photos import ComparedSAE, comparison_strip, patch_mask
from sae_lens_sparsemax.figures.spikes import activation_spikes

__all__ = [
    "ComparedSAE",
    "activation_spikes",
    "comparison_strip",
    "concepts_of_image",
    "concepts_of_text",
    "image_concept_card",
    "patch_mask",
    "reference_contexts",
    "reference_images",
    "references",
    "text_concept_card",
]
