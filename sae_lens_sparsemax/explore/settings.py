"""What to explore an SAE on, how much of it to keep, and what the app tries it with."""

import dataclasses

from sae_lens_sparsemax.evaluation.settings import ContextSettings, ImageSettings, ModelSettings


@dataclasses.dataclass(frozen=True)
class ExploreSettings(ContextSettings, ImageSettings):
    """None takes what the SAE's metadata say, or a default that fits images or text."""

    model_class_name: str | None = None
    """HookedTransformer, HookedMamba, AutoModelForCausalLM or TransformerBridge; for images, HookedViT."""
    image_column: str | None = None  # type: ignore[assignment]  here the metadata may say
    """Column with the images."""
    max_norm: float | None = None
    """Leave out tokens of text whose activation has a larger norm; by default those that the training left out, or else
    those of a norm above ten times the median, outliers of the model that say nothing of its concepts."""
    samples: int | None = None
    """Images or contexts to read; by default 5,000 images or 2,000 contexts, or what there is."""
    batch_size: int = 32
    """Images or contexts at a time."""
    encoder: str | None = None
    """Vision model, independent of the SAE's, to measure monosemanticity with; None leaves it out."""
    words: str | None = None
    """File of words, one a line, of which the nearest is guessed as a concept's name by a CLIP or SigLIP model's own
    text embeddings; `"shipped"` for all names of classes in the package. None guesses no names."""
    examples: int | None = None
    """Examples kept of each concept; by default 12."""
    drawn_examples: int = 8
    """Examples of each concept that are drawn at random from all images or contexts on which it is active; these are
    shown from strong to weak, in quarters of those drawn. 0 leaves them out."""
    showcase: int = 24
    """Images or contexts that get a page of their own."""
    megabytes: int = 200
    """Largest size of the folder of pages, for each SAE in it; examples are left out where it would be more."""


@dataclasses.dataclass(frozen=True)
class AppSettings(ModelSettings):
    """What the app tries an SAE with; None takes what the SAE's metadata say."""

    model_class_name: str | None = None
    """HookedTransformer, HookedMamba, AutoModelForCausalLM or TransformerBridge; for images, HookedViT."""
    words: str | None = None
    """Text file with the classes for CLIP to choose from, one a line; None for those of the SAE's data, if they are
    known, or else the names that the package carries."""
    pages: str | None = None
    """Folder that `explore` wrote of this SAE; None for `explore` in its own folder, if it is there."""
    port: int = 7860
    """Port on this machine; 0 for any."""
