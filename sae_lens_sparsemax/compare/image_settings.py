"""The settings of a comparison that only concern images."""

from dataclasses import dataclass, field
from typing import Any, get_args

from sae_lens_sparsemax.data.image_loader import MAX_BAD_IMAGE_FRACTION
from sae_lens_sparsemax.models.vision_at_hook import Tokens


@dataclass
class ImageSettings:
    """Images for a comparison on a vision model, and how the model classifies them."""

    tokens: Tokens = "all"
    """Which tokens of an image are reconstructed: `all`, `cls` or `patches`; the others are never replaced."""
    image_column: str = "image"
    """Column that holds the images."""
    label_column: str = "label"
    """Column that holds the classes of the evaluation images, for zero-shot accuracy."""
    class_names: list[str] | None = None
    """Names in the order of the labels; by default those of the data set."""
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}"])
    """Prompts; a class's text embedding is the mean over them."""
    n_zero_shot_images: int = 2000
    """Evaluation images that are classified with the SAE spliced in; 0 leaves it out."""
    batch_size: int = 256
    """Images per forward pass."""
    n_decode_workers: int = 0
    """Processes that decode images; 0 does it in the main one."""
    max_bad_image_fraction: float = MAX_BAD_IMAGE_FRACTION
    """Share of the images that may be broken, beyond the first ten."""
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed to `HookedViT.from_pretrained`, for example a revision."""

    def __post_init__(self) -> None:
        if self.tokens not in get_args(Tokens):
            raise ValueError(f"images.tokens must be one of {', '.join(get_args(Tokens))}, got {self.tokens!r}")
        bad = [template for template in self.templates if template.count("{}") != 1]
        if bad or not self.templates:
            raise ValueError(f"images.templates must each hold one {{}} for the class name, got {bad or 'none'}")
