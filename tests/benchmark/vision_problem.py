"""What the vision benchmark runs: a model, images, and the configuration of a training run on them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import transformers
from datasets import Dataset
from PIL import Image

from sae_lens_sparsemax.data.images import load_image_dataset
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.sae.config import SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.training.vision_config import VisionSAERunnerConfig

RANDOM_VIT = "random-vit-b16"


@dataclass(frozen=True)
class VisionProblem:
    """A model, the images it sees and how they reach it; the defaults are the CLIP ViT-B/16 recipe's."""

    model_name: str = RANDOM_VIT
    """Folder or hub id of a model, or the vision tower of CLIP ViT-B/16 with random weights."""
    dataset_path: str | None = None
    """Parquet file, folder or hub id; None makes photographs of clouds up, 256 by 224 pixels as JPEG."""
    hook_name: str = "blocks.-2.hook_resid_post"
    image_batch: int = 32
    """Images the model sees at a time."""
    train_batch: int = 6304
    """Tokens in a batch that the store gives out."""
    buffer_batches: int = 20
    """Such batches in the shuffle buffer."""
    workers: int = 2
    """Processes that decode images."""
    d_sae: int = 49_152
    target_l0: float = 32.0

    def load_model(self) -> HookedViT:
        """The model with its image processor."""
        if self.model_name != RANDOM_VIT:
            return HookedViT.from_pretrained(self.model_name)
        cfg = transformers.CLIPVisionConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            image_size=224,
            patch_size=16,
        )
        return HookedViT(transformers.CLIPVisionModel(cfg), transformers.CLIPImageProcessor())

    def load_images(self) -> Any:
        """The data set, with a column `image`."""
        return load_image_dataset(self.dataset_path) if self.dataset_path is not None else _clouds(64)

    def training_config(self, training_tokens: int, **kwargs: Any) -> VisionSAERunnerConfig[Any]:
        """A training run that saves nothing."""
        sae = SparsemaxTrainingSAEConfig(d_in=1, d_sae=self.d_sae, target_l0=self.target_l0)
        sae.d_in = 0  # read from the hook by the runner; the config refuses it when it is made
        return VisionSAERunnerConfig(
            sae=sae,
            model_name=self.model_name,
            dataset_path=self.dataset_path or "",
            hook_name=self.hook_name,
            store_batch_size_images=self.image_batch,
            train_batch_size_tokens=self.train_batch,
            n_batches_in_buffer=self.buffer_batches,
            n_decode_workers=self.workers,
            training_tokens=training_tokens,
            lr=4e-4,
            checkpoint_path=None,
            output_path=None,
            **kwargs,
        )


def _clouds(n: int) -> Dataset:
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(n):
        coarse = Image.fromarray(generator.integers(0, 256, size=(32, 28, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((224, 256), Image.Resampling.BICUBIC).save(file, format="JPEG", quality=90)
        rows.append({"bytes": file.getvalue(), "path": None})
    return Dataset.from_dict({"image": rows})
