"""Small image data sets made on the spot, and a processor that keeps them readable."""

import io

import datasets
import PIL.Image
import transformers


def encoded(image: PIL.Image.Image) -> dict:
    """An image as `datasets` stores it: PNG bytes without a path."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": None}


def gray_levels(n: int, size: int = 16) -> datasets.Dataset:
    """`n` plain gray images whose brightness is their row number."""
    images = [encoded(PIL.Image.new("L", (size, size), color=i)) for i in range(n)]
    labels = [i % 2 for i in range(n)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd_one"])})
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def plain_processor(size: int = 16):
    """An image processor that leaves the brightness readable: pixels in [0, 1]."""
    return transformers.CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size=size, do_normalize=False, do_convert_rgb=True
    )
