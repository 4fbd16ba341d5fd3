"""Small worlds to explore: images with one bright square each, and text that would like to be markup, with SAEs."""

import io
import json
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from PIL import Image
from sae_lens import StandardSAE, StandardSAEConfig

from sae_lens_sparsemax.data.quickstart import quickstart_model_path
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from tests.support.small_sae import small_sae

HOSTILE = "</script><img src=x onerror=alert(1)>"
HOSTILE_CLASS = "<b onmouseover=alert(1)>odd</b>"
N_IMAGES = 24
BRIGHT, DEAD = 0, 7
"""Concept that fires on bright patches, and concept that never fires, of the SAE on images."""
_SIZE, _PATCH, _GRID = 32, 8, 4


def bright_square(number: int) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """A black image that is not square, and the box of its white square: one patch of what the model sees of it."""
    long, short = 3 * _SIZE, 2 * _SIZE  # resized by a half, then a quarter of the long side is cut off at each end
    width, height = (long, short) if number % 2 else (short, long)
    left, top = ((width - short) // 2, (height - short) // 2)
    row, column = divmod(number * 5 % (_GRID * _GRID), _GRID)
    side = short // _GRID
    box = (left + column * side, top + row * side, left + (column + 1) * side, top + (row + 1) * side)
    image = Image.new("RGB", (width, height))
    image.paste((255, 255, 255), box)
    return image, box


def save_images(folder: Path) -> Path:
    """`N_IMAGES` of them as a parquet file with two classes, one of which is called like markup."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["wide", HOSTILE_CLASS])}
    )
    images = []
    for number in range(N_IMAGES):
        file = io.BytesIO()
        bright_square(number)[0].save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    labels = [1 - number % 2 for number in range(N_IMAGES)]
    data = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    data.to_parquet(folder / "images.parquet")
    return folder / "images.parquet"


def save_clip(folder: Path) -> Path:
    """A random CLIP of 4 x 4 patches with its image processor."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    vision = sizes | {"image_size": _SIZE, "patch_size": _PATCH}
    config = transformers.CLIPConfig(vision_config=vision, text_config=sizes | {"vocab_size": 50}, projection_dim=24)
    transformers.CLIPModel(config).save_pretrained(folder)
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": _SIZE}, crop_size=_SIZE, resample=Image.Resampling.NEAREST
    )
    processor.save_pretrained(folder)
    return folder


def save_image_sae(folder: Path, clip: Path, images: Path, seed: int = 0) -> Path:
    """An SAE whose concept BRIGHT fires on bright patches alone and whose concept DEAD never fires."""
    model = HookedViT.from_pretrained(str(clip))
    pixels = torch.cat([model.preprocess(Image.new("RGB", (_SIZE, _SIZE), (c, c, c))) for c in (0, 255)])
    with torch.no_grad():
        dark, bright = model(pixels, return_type="tokens", stop_at_layer=0)[:, 1:].mean(1)
    sae = StandardSAE(StandardSAEConfig(d_in=32, d_sae=8))
    torch.manual_seed(seed)
    with torch.no_grad():
        sae.W_enc.normal_(0, 0.3)
        sae.b_enc.fill_(-0.1)
        sae.b_dec.zero_()
        sae.W_dec.normal_()
        direction = (bright - dark) / (bright - dark).square().sum()
        sae.W_enc[:, BRIGHT] = direction
        sae.b_enc[BRIGHT] = -0.5 - dark @ direction
        sae.W_enc[:, DEAD], sae.b_enc[DEAD] = 0, -1
    return _save(
        sae, folder, model_name=str(clip), model_class_name="HookedViT", hook_name="hook_embed", tokens="all",
        dataset_path=str(images), image_column="image",
    )  # fmt: skip


def save_text(folder: Path) -> Path:
    """Documents with hostile strings in them, as JSON lines."""
    words = ["the river", "of stone", HOSTILE, "and", "said", "& <i>", "house\n", "日本"]
    generator = torch.Generator().manual_seed(0)
    lines = []
    for _ in range(60):
        chosen = torch.randint(len(words), (60,), generator=generator).tolist()
        lines.append(json.dumps({"text": " ".join(words[i] for i in chosen)}))
    (folder / "text.jsonl").write_text("\n".join(lines))
    return folder / "text.jsonl"


def save_text_sae(folder: Path, text: Path, sae: Any = None, **settings: Any) -> Path:
    """A random SAE on the embedded language model, sparsemax if none is given."""
    sae = small_sae(d_in=128, d_sae=96, **settings) if sae is None else sae
    return _save(
        sae, folder, model_name=str(quickstart_model_path()), model_class_name="TransformerBridge",
        hook_name="blocks.2.hook_out", dataset_path=str(text), context_size=32, prepend_bos=True,
        exclude_special_tokens=True,
    )  # fmt: skip


def _save(sae: Any, folder: Path, **metadata: Any) -> Path:
    for name, value in metadata.items():
        sae.cfg.metadata[name] = value
    sae.save_model(folder)
    return folder
