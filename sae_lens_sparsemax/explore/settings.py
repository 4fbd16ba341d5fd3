"""What to explore an SAE on, how much of it to keep, and what the app tries it with."""

import dataclasses

from sae_lens_sparsemax.data.image_loader import MAX_BAD_IMAGE_FRACTION
from sae_lens_sparsemax.settings.sentences import must_be


@dataclasses.dataclass(frozen=True)
class ExploreSettings:
    """None takes what the SAE's metadata say, or a default that fits images or text."""

    model_name: str | None = None
    """Model name or local folder."""
    model_class_name: str | None = None
    """HookedTransformer, HookedMamba, AutoModelForCausalLM or TransformerBridge; for images, HookedViT."""
    dataset_path: str | None = None
    """Hub id, local file or folder."""
    dataset_split: str | None = None
    """Split of the data set."""
    dataset_config: str | None = None
    """Configuration of the data set."""
    text_column: str | None = None
    """Column with the text."""
    image_column: str | None = None
    """Column with the images."""
    label_column: str = "label"
    """Column with the classes of the images; left out where there is none."""
    streaming: bool = False
    """Read only the first images of a data set, as they come, not download it all; text is always streamed."""
    max_bad_image_fraction: float = MAX_BAD_IMAGE_FRACTION
    """Share of the images that may be broken, beyond the first ten."""
    context_size: int | None = None
    """Tokens of a context of text."""
    max_norm: float | None = None
    """Leave out tokens of text whose activation has a larger norm; by default those that the training left out."""
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
    showcase: int = 24
    """Images or contexts that get a page of their own."""
    device: str = "cpu"
    """Where model and SAE run."""
    megabytes: int = 200
    """Largest size of the folder of pages, for each SAE in it; examples are left out where it would be more."""

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("batch_size", 1), ("examples", 1), ("showcase", 0), ("megabytes", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise must_be(name, f"at least {least}", value)


@dataclasses.dataclass(frozen=True)
class AppSettings:
    """What the app tries an SAE with; None takes what the SAE's metadata say."""

    model_name: str | None = None
    """Model name or local folder."""
    model_class_name: str | None = None
    """HookedTransformer, HookedMamba, AutoModelForCausalLM or TransformerBridge; for images, HookedViT."""
    words: str | None = None
    """Text file with the classes for CLIP to choose from, one a line; None for the names that the package carries."""
    port: int = 7860
    """Port on this machine; 0 for any."""
    device: str = "cpu"
    """Where model and SAE run: cpu, cuda or mps."""
