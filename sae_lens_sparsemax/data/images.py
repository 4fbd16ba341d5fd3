"""Images to train and evaluate on: a hub data set, local files or a folder, with the images left encoded."""

from collections.abc import Sequence
from typing import Any

import datasets
from datasets import Dataset, Image, IterableDataset

from sae_lens_sparsemax.data.drawings import quickstart_images
from sae_lens_sparsemax.data.loading import load_rows, require_column, split_names
from sae_lens_sparsemax.settings.sentences import Mistake

ImageDataset = Dataset | IterableDataset

_BYTES = ("binary", "large_binary")

_TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    ".parquet": ("parquet", {}), ".arrow": ("arrow", {}), ".csv": ("csv", {}), ".tsv": ("csv", {"sep": "\t"}),
}  # fmt: skip


def load_image_dataset(
    path: str,
    *,
    split: str = "train",
    config: str | None = None,
    image_column: str | None = "image",
    streaming: bool = False,
) -> ImageDataset:
    """Load a data set whose column `image_column` holds images, encoded as they were stored.

    Args:
        path: a hub id; a local `.parquet` or `.arrow` file, or a `.csv` or `.tsv` file with the paths of images
            (globs allowed); a folder of image files (one subfolder per class, if any), of parquet files, or written by
            `save_to_disk`. `quickstart` stands for drawings that the package makes, with the splits `train` and
            `validation`.
        split: the split to use; local files form the split `train`.
        config: the configuration, for hub data sets that have several.
        image_column: the column with the images; None for the one that `image_column_of` finds.
        streaming: read while training, rather than convert everything first.

    Raises:
        ValueError: missing file, no such split, missing column (the message names the columns there are), a
            column of another kind, no rows, or whatever `datasets` reports, in one sentence.
    """
    data = load_rows(path, split, config, streaming, _TABLES, quickstart_images)  # type: ignore[arg-type]
    return encoded_images(data, image_column, path)


def encoded_images(data: ImageDataset, image_column: str | None, name: str = "given") -> ImageDataset:
    """The same data with `image_column` left encoded, so that one broken image cannot stop the reading.

    Args:
        data: images as an `Image` feature, as bytes (alone, or as pandas keeps `bytes` and `path`), or as paths.
        image_column: the column with the images; None for the one that `image_column_of` finds.
        name: what to call the data set in messages.

    Raises:
        ValueError: the column is missing, or holds no images; or there are no rows.
    """
    if isinstance(data, Dataset) and len(data) == 0:
        raise ValueError(f"The data set {name!r} must have rows, got none.")
    if isinstance(data, IterableDataset) and data.features is None:
        if next(iter(data), None) is None:
            raise ValueError(f"The data set {name!r} must have rows, got none.")
        data = data._resolve_features()
    features = data.features or {}
    if image_column is None:
        image_column = image_column_of(data, name)
    require_column("image_column", image_column, features, name)
    feature = features[image_column]
    is_kept = isinstance(feature, Image) or _is_bytes(feature)
    if not is_kept and getattr(feature, "dtype", None) not in ("string", "large_string"):
        condition = f"a column with images of the data set {name!r}"
        raise Mistake("image_column", f"must be {condition}, got {image_column!r}, which holds {feature}")
    return data.cast_column(image_column, Image(decode=False))


def image_column_of(data: ImageDataset, name: str = "given") -> str:
    """The column with the images, where none is named: `image`, or else the only one of images or of bytes.

    Raises:
        ValueError: there is none, or several; the message names the columns there are.
    """
    features = data.features or {}
    images = [column for column, feature in features.items() if isinstance(feature, Image)]
    images = images or [column for column, feature in features.items() if _is_bytes(feature)]
    if "image" in features:
        return "image"
    if len(images) != 1:
        columns = ", ".join(map(repr, images or features))
        which = f"one of {columns}, which all hold images" if images else f"given, as none of {columns} holds images"
        raise Mistake("image_column", f"must be {which} in the data set {name!r}")
    return images[0]


def _is_bytes(feature: Any) -> bool:
    """Whether a column holds bytes, alone or as those of images are stored: `bytes` and `path`."""
    if isinstance(feature, dict) and {"bytes"} <= feature.keys() <= {"bytes", "path"}:
        feature = feature["bytes"]
    return getattr(feature, "dtype", None) in _BYTES


def label_column_of(data: ImageDataset, name: str = "given") -> str | None:
    """The column with the named classes, where none is named: `label`, or else the only one; None if there is none.

    Raises:
        ValueError: there are several; the message names them.
    """
    classes = [column for column in data.features or {} if class_labels_of(data, column)]
    if len(classes) > 1 and "label" not in classes:
        raise Mistake("label_column", f"must be one of {', '.join(map(repr, classes))} in the data set {name!r}")
    return "label" if "label" in classes else next(iter(classes), None)


def split_of(path: str, config: str | None, wanted: Sequence[str], besides: str | None = None) -> str | None:
    """The split of a data set, where none is named: the first of those `wanted` that it has, or else the only one.

    Args:
        path, config: of the data set.
        wanted: names of splits.
        besides: a split that is used already.

    Returns:
        The name; None if all of the data set is used already.

    Raises:
        ValueError: there are several others; the message names them.
    """
    names = [name for name in split_names(path, config) if name != (besides or "").partition("[")[0]]
    found = next((name for name in wanted if name in names), None)
    if found is None and len(names) > 1:
        raise Mistake("dataset_split", f"must be one of {', '.join(map(repr, names))} of the data set {path!r}")
    return found or next(iter(names), None)


def class_labels_of(data: ImageDataset, label_column: str | None) -> list[str] | None:
    """The data set's own names of its classes, as they are written there; None if it has none."""
    feature = (data.features or {}).get(label_column)
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) and feature.names else None


def class_names_of(data: ImageDataset, label_column: str) -> list[str]:
    """The names of the classes in a `ClassLabel` column, underscores read as spaces.

    Raises:
        ValueError: there is no such column, or its classes have no names.
    """
    labels = class_labels_of(data, label_column)
    if labels is None:
        features = data.features or {}
        raise ValueError(
            f"label_column must be one with the names of classes, got {label_column!r} ({features.get(label_column)}); "
            f"the columns are {', '.join(map(repr, features))}. Name the classes in the configuration."
        )
    return [label.replace("_", " ") for label in labels]
