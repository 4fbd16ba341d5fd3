import json

import pytest

from sae_lens_sparsemax.data.class_names import DATASETS, class_prompts
from tests.support.places import SHARED_DATA

LABELS = {
    "caltech101": ["Faces_easy", "accordion", "yin_yang", "Faces", "BACKGROUND_Google"],
    "eurosat": ["River", "AnnualCrop", "SeaLake"],
    "food101": ["apple_pie", "beef_carpaccio"],
    "stanford_cars": ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"],
    "fgvc_aircraft": ["707-320", "A300B4"],
    "dtd": ["banded", "polka-dotted"],
    "sun397": ["/a/abbey", "/a/apartment_building/outdoor", "z/zen_garden"],
    "ucf101": ["ApplyEyeMakeup", "YoYo", "Archery"],
}


def label_names(file):
    data = SHARED_DATA / "images" / file
    if not data.exists():
        pytest.skip(f"no shared data at {data}")
    import pyarrow.parquet

    metadata = json.loads(pyarrow.parquet.read_schema(data).metadata[b"huggingface"])
    return metadata["info"]["features"]["label"]["names"]


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_data_set_has_names_in_the_order_of_its_labels_and_templates_with_a_place_for_them(dataset):
    labels = LABELS.get(dataset)
    prompts = class_prompts(dataset, labels)
    expected = {"imagenet": 1000, "imagenet_sketch": 1000, "flowers102": 102, "oxford_pets": 37}
    assert len(prompts.names) == (expected[dataset] if labels is None else len(labels))
    assert all(name.strip() == name and name for name in prompts.names)
    assert prompts.templates and all(template.count("{}") == 1 for template in prompts.templates)
    if labels is not None:
        assert class_prompts(dataset, labels[::-1]).names == prompts.names[::-1]


def test_names_are_made_readable():
    names = {dataset: class_prompts(dataset, labels).names for dataset, labels in LABELS.items()}
    assert names["caltech101"] == (
        "centered face",
        "accordion",
        "yin and yang symbol",
        "off-center face",
        "background",
    )
    assert names["eurosat"] == ("river", "annual crop land", "lake or sea")
    assert names["sun397"] == ("abbey", "apartment building outdoor", "zen garden")
    assert names["ucf101"] == ("Apply Eye Makeup", "Yo Yo", "Archery")
    assert names["food101"] == ("apple pie", "beef carpaccio")


def test_imagenet_and_caltech_fit_the_labels_of_real_data_sets():
    assert class_prompts("imagenet", label_names("imagenet_samples_train.parquet")).names[0] == "tench"
    assert len(class_prompts("caltech101", label_names("caltech101_test.parquet")).names) == 101


def test_two_imagenet_classes_that_changed_places_are_noticed():
    labels = label_names("imagenet_samples_train.parquet")
    for i, j in ((0, 1), (500, 700), (998, 3)):
        moved = list(labels)
        moved[i], moved[j] = moved[j], moved[i]
        with pytest.raises(ValueError, match="not in the order of imagenet's class names: label"):
            class_prompts("imagenet", moved)
    with pytest.raises(ValueError, match="must be the 1000 of imagenet, got 999"):
        class_prompts("imagenet", labels[:-1])
    with pytest.raises(ValueError, match="not in the order"):
        class_prompts("imagenet", sorted(labels))


def test_wordnet_ids_must_be_sorted():
    ids = [f"n{i:08d}" for i in range(1000)]
    assert class_prompts("imagenet", ids).names[1] == "goldfish"
    with pytest.raises(ValueError, match="must be sorted"):
        class_prompts("imagenet_sketch", ids[::-1])


def test_unknown_data_sets_and_labels_name_the_nearest_and_missing_labels_are_asked_for():
    with pytest.raises(ValueError, match="did you mean 'caltech101'"):
        class_prompts("caltech_101")
    with pytest.raises(ValueError, match=r"a label of eurosat must be one of .*, got 'Rivers'; did you mean 'River'\?"):
        class_prompts("eurosat", ["Rivers"])
    with pytest.raises(ValueError, match="label_names must be given for"):
        class_prompts("food101")
