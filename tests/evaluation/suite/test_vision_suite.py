import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel
from PIL import Image
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata

from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.compare.paper.columns import check_columns, flat
from sae_lens_sparsemax.data.images import load_image_dataset
from sae_lens_sparsemax.data.labelled_images import ImageData, compressed_size, load_images
from sae_lens_sparsemax.evaluation.classification import text_prototypes
from sae_lens_sparsemax.evaluation.settings import VisionSuiteSettings
from sae_lens_sparsemax.evaluation.suite import evaluate_suite
from sae_lens_sparsemax.evaluation.suite.vision import encoder_embeddings
from sae_lens_sparsemax.evaluation.zero_shot import evaluate_zero_shot
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.models.vision_at_hook import open_vision
from sae_lens_sparsemax.settings.checking import build
from tests.support.places import SHARED_DATA as SHARED

HOOK = "blocks.2.hook_resid_post"

pytestmark = pytest.mark.skipif(not SHARED.exists(), reason=f"no shared data at {SHARED}")
MODEL = str(SHARED / "models" / "mini-clip-cifar10")
TEST, TRAIN = (ImageData(str(SHARED / "images" / f"cifar10_{part}.parquet")) for part in ("test", "train"))


def random_sae(**metadata) -> StandardSAE:
    torch.manual_seed(0)
    known = {"model_name": MODEL, "model_class_name": "HookedViT", "hook_name": HOOK, "tokens": "all"}
    return StandardSAE(StandardSAEConfig(d_in=128, d_sae=200, metadata=SAEMetadata(**known | metadata)))


@pytest.fixture
def folder(tmp_path) -> Path:
    random_sae().save_model(tmp_path / "sae")
    return tmp_path / "sae"


SETTINGS = {
    "dataset_path": TEST.path,
    "counting_dataset": {"path": TRAIN.path},
    "n_images": 40,
    "n_counting_images": 30,
    "n_concepts": [1, 20],
    "min_plain_accuracy": 0.3,
    "batch_size": 16,
    "encoder": "pixels",
}


class ThroughHook:
    """What `VisionAtHook` gives, with whole passes alone."""

    def __init__(self, model: HookedViT) -> None:
        self.model = model

    @torch.no_grad()
    def activations(self, pixels):
        return self.model.run_with_cache(pixels, names_filter=HOOK)[1][HOOK]

    @torch.no_grad()
    def embeddings(self, pixels, edit=None):
        hooks: Any = [] if edit is None else [(HOOK, lambda activations, hook: edit(activations))]
        return self.model.run_with_hooks(pixels, fwd_hooks=hooks)


@pytest.mark.usefixtures("pictures")
def test_the_suite_measures_what_the_metrics_measure_one_by_one(folder):
    result = evaluate_suite(str(folder), settings=SETTINGS, progress=False)
    groups = result.results["groups"]
    assert set(groups) == {"tokens", "images", "sparsity", "monosemanticity", "zero_shot", "names"}
    numbers = {name for name, value in flat(groups).items() if isinstance(value, int | float)}
    check_columns({name: name for name in numbers}, [], build(VisionSuiteSettings, SETTINGS))
    sae = random_sae()
    model = open_vision(sae)
    images = load_images(TEST, 40, model.model.image_processor, 16)
    batches = [model.activations(pixels) for pixels in images.pixels()]
    acts = sae.encode(torch.cat(batches)) != 0
    counts = acts.sum(-1).flatten().bincount().tolist()
    assert groups["sparsity"]["per_token"]["counts"] == counts
    assert groups["sparsity"]["per_image"]["mean"] == pytest.approx(acts.any(1).sum(-1).double().mean().item())
    assert groups["sparsity"]["against_complexity"]["n"] == 40
    assert groups["tokens"]["geometry"]["reconstruction"]["n_tokens"] == 40 * 17
    assert groups["images"]["geometry"]["reconstruction"]["n_tokens"] == 40
    assert groups["images"]["geometry"]["n_cknna_batches"] == 1
    assert groups["monosemanticity"]["monosemanticity"]["n_images"] == 40

    # Through TransformerLens's hook rather than by starting behind it, and without anything kept between edits.
    counting = load_images(TRAIN, 30, model.model.image_processor, 16)
    names = [label.replace("_", " ") for label in images.class_labels() or []]
    prototypes = text_prototypes(model.model.encode_text, names, ["a photo of a {}"])
    through_hook: Any = ThroughHook(model.model)
    alone = evaluate_zero_shot(
        sae,
        through_hook,
        counting,
        images,
        prototypes,
        n_concepts=(1, 20),
        min_plain_accuracy=0.3,
        progress=False,
    )
    measured = groups["zero_shot"]["zero_shot"]
    assert measured["no_sae"]["images"] == alone.no_sae.images
    assert measured["all_concepts"]["images"] == alone.all_concepts.images
    assert [entry["accuracy"]["images"] for entry in measured["masked"]] == [
        entry.accuracy.images for entry in alone.masked
    ]
    names = groups["names"]["names"]
    assert names["n_images"] == 40 and names["chance"] == 0.1
    assert 0 <= names["from_images"] <= 1 and 0 <= names["from_decoder"] <= 1
    report = result.report.read_text()
    assert f"| right names, from top images | {100 * names['from_images']:.1f} % |" in report
    for name in ("l0_histogram", "l0_against_complexity", "top_n_accuracy"):
        assert (result.folder / f"{name}.png").is_file()
        assert f"{name}.png" in result.report.read_text()


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (lambda number, label: label if number % 4 else None, None),
        pytest.param(lambda number, label: label if number % 4 else -1, None, marks=pytest.mark.slow),
        pytest.param(lambda number, label: None, "no image of", marks=pytest.mark.slow),
        pytest.param(lambda number, label: -1, "no image of", marks=pytest.mark.slow),
        (lambda number, label: str(label), "must hold classes"),
    ],
)
def test_images_without_labels_are_left_out_of_classification_alone(folder, tmp_path, label, reason):
    data = load_image_dataset(TEST.path).select(range(120))
    names = [name.replace("_", " ") for name in data.features["label"].names]
    labels = [label(number, data[number]["label"]) for number in range(len(data))]
    data.remove_columns("label").add_column("label", labels).to_parquet(tmp_path / "images.parquet")
    settings = {key: value for key, value in SETTINGS.items() if key != "counting_dataset"}
    settings |= {"dataset_path": str(tmp_path / "images.parquet"), "class_names": names, "controls": False}
    groups = evaluate_suite(str(folder), settings=settings | {"n_images": 60}, progress=False).results["groups"]
    assert groups["tokens"]["geometry"]["reconstruction"]["n_tokens"] == 60 * 17
    assert groups["monosemanticity"]["monosemanticity"]["n_images"] == 60
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:60].tolist()
    n_unlabelled = sum(labels[row] in (None, -1) for row in order)
    if reason:
        assert reason in groups["zero_shot"]["not_measured"] and reason in groups["names"]["not_measured"]
    else:
        assert groups["zero_shot"]["n_unlabelled_images"] == n_unlabelled > 0
        assert groups["names"]["names"]["n_images"] == 60 - n_unlabelled


def test_one_split_is_halved_and_no_image_is_in_both(folder):
    settings = {key: value for key, value in SETTINGS.items() if key != "counting_dataset"}
    result = evaluate_suite(str(folder), settings=settings, groups=["zero_shot"], progress=False)
    measured = result.results["groups"]["zero_shot"]
    assert measured["n_counting_images"] + measured["zero_shot"]["n_images"] == 40


def test_an_sae_on_the_cls_token_changes_that_token_alone():
    model = open_vision(random_sae(), tokens="cls")
    pixels = next(iter(load_images(TEST, 8, model.model.image_processor, 8)))[0]
    assert model.activations(pixels).shape == (8, 1, 128)
    plain = model.model(pixels)
    assert torch.equal(model.embeddings(pixels, lambda acts: acts), plain)
    assert not torch.allclose(model.embeddings(pixels, lambda acts: 2 * acts), plain, atol=1e-2)

    def zero_cls(acts, hook):
        acts[:, 0] = 0
        return acts

    expected = model.model.run_with_hooks(pixels, fwd_hooks=[(HOOK, zero_cls)])
    assert torch.allclose(model.embeddings(pixels, torch.zeros_like), expected, atol=1e-6)
    pixels.neg_()  # in place: what was kept of these pixels no longer holds
    assert torch.equal(model.embeddings(pixels, lambda acts: acts), model.model(pixels))


def test_complexity_is_that_of_the_pixels_the_model_sees():
    model = open_vision(random_sae())
    images = load_images(TEST, 5, model.model.image_processor, 2)
    decoded = [Image.open(io.BytesIO(images.data[row]["image"]["bytes"])).convert("RGB") for row in images.rows]
    # CIFAR's images are as large as the model's input, so nothing is resized.
    pixels = [torch.tensor(list(image.tobytes()), dtype=torch.uint8).reshape(32, 32, 3) for image in decoded]
    expected = [compressed_size(each.permute(2, 0, 1).contiguous()) for each in pixels]
    assert images.complexities().tolist() == expected


def test_an_encoder_sees_images_prepared_for_it():
    model = open_vision(random_sae())
    images = load_images(TEST, 5, model.model.image_processor, 2)
    embeddings = torch.cat(list(encoder_embeddings(MODEL, images, "cpu")))
    assert torch.allclose(embeddings, torch.cat([model.model(pixels) for pixels in images.pixels()]))
    pixels = torch.cat(list(encoder_embeddings("pixels", images, "cpu")))
    assert pixels.shape == (5, 3 * 32 * 32)
    assert pixels.mean(1).abs().max() < 1e-6


def test_what_is_missing_for_a_group_is_said_and_the_others_are_measured(folder):
    settings = {key: value for key, value in SETTINGS.items() if key != "encoder"}
    settings |= {"dataset_path": TEST.path, "label_column": "class"}
    said = []
    result = evaluate_suite(str(folder), settings=settings, say=said.append, progress=False)
    assert "geometry" in result.results["groups"]["tokens"]
    assert any("give --encoder" in line for line in said)
    assert any("label_column must be one of" in line for line in said)
    assert "not measured" in result.report.read_text()


@pytest.mark.parametrize(
    ("given", "zero_shot", "names"),
    [
        ({"min_plain_accuracy": 0.99}, "below 99.0%", None),
        pytest.param(
            {"class_names": ["cat", "dog"]},
            "has 2 names for 10 classes",
            "has 2 names for 10 classes",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"label_column": "number", "class_names": ["a", "b"]},
            "labels must lie in [0, 2)",
            "labels must lie in [0, 2)",
            marks=pytest.mark.slow,
        ),
        pytest.param({"classes": "eurosat"}, "label", "label", marks=pytest.mark.slow),
        pytest.param({"encoder": "no/such-encoder"}, None, None, marks=pytest.mark.slow),
    ],
)
def test_a_group_that_cannot_be_measured_does_not_end_the_others(folder, tmp_path, given, zero_shot, names):
    data = load_image_dataset(TEST.path).select(range(120))
    data = data.add_column("number", data["label"])
    data.to_parquet(tmp_path / "images.parquet")
    settings = {key: value for key, value in SETTINGS.items() if key != "counting_dataset"}
    settings |= {"dataset_path": str(tmp_path / "images.parquet"), "controls": False, "n_concepts": [1]}
    result = evaluate_suite(str(folder), settings=settings | given, progress=False)
    groups = result.results["groups"]
    assert "geometry" in groups["tokens"] and "per_token" in groups["sparsity"]
    for name, reason in (("zero_shot", zero_shot), ("names", names)):
        assert reason in groups[name]["not_measured"] if reason else name in groups[name]
    if "encoder" in given:
        assert "no/such-encoder" in groups["monosemanticity"]["not_measured"]
        assert "no/such-encoder" in result.report.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "dataset_path must be given"),
        (["--dataset_path", "absent.parquet"], "there is no file 'absent.parquet'"),
        (
            ["--dataset_path", TEST.path, "--counting_dataset.path", "absent.parquet"],
            "there is no file 'absent.parquet'",
        ),
        (["--dataset_path", TEST.path, "--image_column", "img"], "image_column must be one of"),
        (["--dataset_path", TEST.path, "--dataset_split", "test"], "split"),
        (["--dataset_path", TEST.path, "--classes", "imagenets"], "did you mean 'imagenet'"),
        (["--dataset_path", TEST.path, "--templates", "[a photo]"], "templates must be texts with one {} each"),
        (["--dataset_path", TEST.path, "--counting_dataset.path", TEST.path], "must be other images"),
        (
            ["--dataset_path", TEST.path, "--counting_dataset.path", f"{SHARED}/./images/cifar10_test.parquet"],
            "must be other images",
        ),
        (
            ["--dataset_path", TEST.path, "--counting_dataset.path", TEST.path, "--max_bad_image_fraction", "0.2"],
            "must be other images",
        ),
        (["--dataset_path", TEST.path, "--min_plain_accuracy", "0.95", "--n_images", "40"], "below 95.0%"),
        (
            ["--dataset_path", TEST.path, "--hook_name", "blocks.9.hook_resid_post"],
            "no hook 'blocks.9.hook_resid_post'",
        ),
        (["--dataset_path", TEST.path, "--model_name", "/no/such/model"], "/no/such/model"),
        (["--dataset_path", TEST.path, "--n_concepts=[5, 0]"], "n_concepts must be at least 1, got [5, 0]"),
        (["--dataset_path", TEST.path, "--threshold_quantile", "1.5"], "threshold_quantile must be between 0 and 1"),
        (["--dataset_path", TEST.path, "--min_plain_accuracy", "30"], "min_plain_accuracy must be between 0 and 1"),
    ],
)
def test_a_mistake_is_one_sentence(folder, capsys, arguments, message):
    n_images = [] if "--n_images" in arguments else ["--n_images", "8"]
    small = [*n_images, "--encoder", "pixels", "--groups", "zero_shot"]
    assert main(["evaluate", str(folder), *small, *arguments]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_metadata_without_a_model_say_what_to_give(tmp_path, capsys):
    random_sae(model_name=None).save_model(tmp_path)
    assert main(["evaluate", str(tmp_path), "--suite", "vision", "--dataset_path", TEST.path]) == 2
    assert "have no 'model_name'; give --model_name" in capsys.readouterr().err
    command = ["evaluate", str(tmp_path), "--suite", "vision", "--dataset_path", TEST.path, "--groups", "tokens"]
    assert main([*command, "--model_name", MODEL, "--n_images", "8"]) == 0
    assert (
        json.loads((tmp_path / "evaluation" / "vision" / "results.json").read_text())["settings"]["model_name"] == MODEL
    )


@pytest.mark.parametrize("others", [lambda names: names[1:], lambda names: names[::-1], lambda names: [*names, "x"]])
def test_concepts_are_not_counted_for_other_classes_of_the_same_numbers(folder, tmp_path, others):
    data = load_image_dataset(TEST.path).select(range(40))
    names = others(data.features["label"].names)
    data = data.filter(lambda row: row["label"] < len(names)).cast_column("label", ClassLabel(names=names))
    data.to_parquet(tmp_path / "counted.parquet")
    settings = SETTINGS | {"counting_dataset": {"path": str(tmp_path / "counted.parquet")}}
    with pytest.raises(ValueError, match=r"counting_dataset must be images of the classes .* airplane, .*, got \["):
        evaluate_suite(str(folder), settings=settings, groups=["zero_shot"], progress=False)
