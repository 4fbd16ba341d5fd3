"""A vision training run small enough for tests: a random CLIP of three layers on plain gray images."""

from pathlib import Path
from typing import Any

import transformers
from sae_lens.registry import get_sae_training_class

from sae_lens_sparsemax.training.vision_config import VisionSAERunnerConfig
from tests.support.tiny_images import gray_levels
from tests.support.tiny_vision_models import tiny_model

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "sparsemax": {"target_l0": 4.0},
    "topk": {"k": 4},
    "batchtopk": {"k": 4},
    "standard": {"l1_coefficient": 1.0},
    "gated": {"l1_coefficient": 1.0},
    "jumprelu": {"l0_coefficient": 1.0},
}


def make_files(folder: Path, n_images: int = 40) -> None:
    """A model folder and a parquet file of images."""
    tiny_model("clip").save_pretrained(folder / "model")
    transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder / "model")
    gray_levels(n_images).to_parquet(folder / "images.parquet")


def config(folder: Path, architecture: str = "topk", **kwargs: Any) -> VisionSAERunnerConfig[Any]:
    """A run of 24 steps on what `make_files` wrote."""
    sae_config = get_sae_training_class(architecture)[1]
    settings: dict[str, Any] = {
        "model_name": str(folder / "model"),
        "dataset_path": str(folder / "images.parquet"),
        "hook_name": "blocks.-2.hook_resid_post",
        "training_tokens": 24 * 16,
        "train_batch_size_tokens": 16,
        "store_batch_size_images": 4,
        "n_batches_in_buffer": 3,
        "n_decode_workers": 0,
        "lr": 1e-2,
        "lr_warm_up_steps": 5,
        "dead_feature_window": 4,
        "feature_sampling_window": 7,
        "checkpoint_path": None,
        "output_path": None,
    }
    sae = sae_config(d_in=32, d_sae=64, **ARCHITECTURES[architecture])
    return VisionSAERunnerConfig(sae=sae, **settings | kwargs)
