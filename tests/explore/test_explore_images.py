"""Images end to end: from a saved SAE to the data of the pages."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from PIL import Image

from sae_lens_sparsemax.data.images import load_image_dataset
from sae_lens_sparsemax.explore.gather import gather
from sae_lens_sparsemax.explore.pages.site import PLOTLY
from sae_lens_sparsemax.explore.run import explore, short_names
from sae_lens_sparsemax.explore.settings import ExploreSettings
from sae_lens_sparsemax.explore.streams import ImageStream
from sae_lens_sparsemax.models.saved_saes import load_sae
from sae_lens_sparsemax.settings.checking import build
from tests.explore.test_page_data import decode_levels
from tests.support.sites import BRIGHT, DEAD, HOSTILE_CLASS, N_IMAGES, bright_square
from tests.support.small_sae import small_sae

FEW = ExploreSettings(samples=6, showcase=2, examples=2)


def read(pages: Path, name: str) -> Any:
    script = (pages / "data" / f"{name}.js").read_text()
    return json.loads(script[len(f'explorer.receive("{name}",') : -len(");\n")])


def row_of(sample: int) -> int:
    """Row in the data set of a sample, from the explorer's fixed order."""
    return int(torch.randperm(N_IMAGES, generator=torch.Generator().manual_seed(0))[sample])


def test_the_mask_of_the_bright_concept_lies_over_the_bright_square(image_pages):
    samples, site = read(image_pages, "samples"), read(image_pages, "explore")
    rows, columns = site["grid"]
    concept = read(image_pages, "0/concepts-0")[BRIGHT]
    assert len(concept["e"]) == len(concept["m"]) == 5 and len(concept["d"]) == 8
    for _, mean, peak, text in concept["d"]:
        restored = peak * sum(decode_levels(text, site["tokens"])) / site["tokens"]
        assert mean == pytest.approx(restored, rel=0.05)
    for sample, _, _, text in concept["e"] + concept["m"] + concept["d"]:
        width, height, left, top, right, bottom, _ = samples[str(sample)]
        image, box = bright_square(row_of(sample))
        assert (width, height) == image.size and width != height
        levels = decode_levels(text, site["tokens"])[site["prefix"] :]
        (patch,) = [k for k, level in enumerate(levels) if level > 0.5]
        row, column = divmod(patch, columns)
        x, y = (right - left) / columns, (bottom - top) / rows
        mask = (left + column * x, top + row * y, left + (column + 1) * x, top + (row + 1) * y)
        assert mask == pytest.approx(box, abs=1)


def test_tables_hold_every_concept_of_every_sae(image_pages):
    site = read(image_pages, "explore")
    assert [sae["name"] for sae in site["saes"]] == ["sae", "other"] and site["classes"] == ["wide", HOSTILE_CLASS]
    for number in (0, 1):
        table = read(image_pages, f"{number}/table")
        assert table["n_tokens"] == N_IMAGES * 17 and len(table["label"]) == 8
        assert table["active"][DEAD] == 0 and table["max"][DEAD] is None and table["entropy"][DEAD] is None
        assert table["active"][BRIGHT] >= N_IMAGES and table["mono"][BRIGHT] is not None
        assert site["saes"][number]["n_dead"] >= 1


def test_every_image_that_a_page_names_is_there(image_pages):
    shown = {int(path.stem) for path in (image_pages / "images").iterdir()}
    named = set(read(image_pages, "explore")["showcase"])
    for number in (0, 1):
        for concept in read(image_pages, f"{number}/concepts-0"):
            named |= {example[0] for kind in "emd" for example in concept.get(kind, [])}
    assert shown == named == {int(key) for key in read(image_pages, "samples")}
    with Image.open(image_pages / "images" / f"{min(shown)}.jpg") as image:
        assert image.size == bright_square(row_of(min(shown)))[0].size


def test_the_pages_name_no_other_place(image_pages):
    # Plotly's script names places that only charts of geography ask for; the browser tests see that none is.
    ours = [file for file in (image_pages / "assets").iterdir() if file.name != PLOTLY]
    for file in [*image_pages.glob("*.html"), *ours]:
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text and "fetch(" not in text, file


def test_an_earlier_folder_is_replaced_and_anything_else_is_refused(image_world, tmp_path):
    path = [str(image_world / "sae")]
    index = explore(path, tmp_path / "pages", FEW, progress=False)
    (tmp_path / "pages" / "old").touch()
    explore(path, tmp_path / "pages", FEW, progress=False)
    assert index.is_file() and not (tmp_path / "pages" / "old").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pages"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"mine' holds something else"):
        explore(path, tmp_path / "mine", FEW, progress=False)


def test_only_the_first_images_of_a_stream_are_read(image_world, tmp_path):
    sae = load_sae(str(image_world / "sae"))
    whole = ImageStream(sae, ExploreSettings())
    stream = ImageStream(sae, ExploreSettings(streaming=True, samples=7))
    assert stream.n_samples == len(stream.images.data) == 7
    assert sorted(stream.images.rows) == list(range(7))
    assert stream.images.data[:]["image"] == whole.images.data[:7]["image"]
    assert stream.class_names == whole.class_names != []
    settings = ExploreSettings(streaming=True, samples=7, showcase=2, examples=2)
    index = explore([str(image_world / "sae")], tmp_path / "pages", settings, progress=False)
    assert len(read(index.parent, "samples")) <= 7


@pytest.mark.parametrize("missing", [-1, None])
@pytest.mark.parametrize("every", [3, 1])
def test_images_without_a_class_are_shown_without_one(image_world, tmp_path, missing, every):
    data = load_image_dataset(str(image_world / "images.parquet"))
    labels = [missing if number % every == 0 else label for number, label in enumerate(data["label"])]
    features = data.features["label"]
    data = data.remove_columns("label").add_column("label", labels, feature=features)
    data.to_parquet(tmp_path / "images.parquet")
    settings = ExploreSettings(dataset_path=str(tmp_path / "images.parquet"), showcase=N_IMAGES, examples=2)
    pages = explore([str(image_world / "sae")], tmp_path / "pages", settings, progress=False).parent
    assert read(pages, "explore")["classes"] == (["wide", HOSTILE_CLASS] if every > 1 else [])
    shown = {row_of(int(number)): line[-1] for number, line in read(pages, "samples").items()}
    assert shown == {row: -1 if label is None else label for row, label in enumerate(labels)}
    assert read(pages, "0/table")["n_tokens"] == N_IMAGES * 17


def test_a_data_set_that_is_gone_is_an_error_in_one_sentence(image_world, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.parquet' could not be loaded"):
        settings = ExploreSettings(dataset_path=str(tmp_path / "nowhere.parquet"))
        explore([str(image_world / "sae")], tmp_path / "pages", settings, progress=False)


def test_a_model_that_has_moved_is_an_error_that_says_what_to_do(image_world, tmp_path):
    with pytest.raises(
        ValueError, match=r"nowhere' could not be loaded: there is no such folder; --model_name says where"
    ):
        settings = ExploreSettings(model_name=str(tmp_path / "nowhere"))
        explore([str(image_world / "sae")], tmp_path / "pages", settings, progress=False)


def test_saes_of_other_models_are_not_put_beside_each_other(image_world, text_world, tmp_path):
    with pytest.raises(ValueError, match="cannot be compared: their model"):
        paths = [str(image_world / "sae"), str(text_world / "sae")]
        explore(paths, tmp_path / "pages", FEW, progress=False)


@pytest.mark.parametrize("part", ["samples", "read"])
def test_a_run_is_known_by_all_that_decides_what_it_reads(image_world, tmp_path, part):
    folder = tmp_path / "data"
    folder.mkdir()
    data = load_image_dataset(str(image_world / "images.parquet"))
    names = datasets.ClassLabel(names=["odd", "even"])
    data = data.add_column("other", [1, 0] * (N_IMAGES // 2)).cast_column("other", names)
    data = data.add_column("picture", data["image"]).cast_column("picture", datasets.Image())
    data.to_parquet(folder / "images.parquet")
    given = {"dataset_path": str(folder)}

    def identity(hook="hook_embed", kwargs=None, **others):
        sae = load_sae(str(image_world / "sae"))
        sae.cfg.metadata.hook_name, sae.cfg.metadata.model_from_pretrained_kwargs = hook, kwargs
        return ImageStream(sae, ExploreSettings(**given | others)).identity()[part]

    known, others = identity(), {
        "samples": [{"label_column": "other"}, {"image_column": "picture"}, {"streaming": True}],
        "read": [{"hook": "blocks.0.hook_resid_post"}, {"encoder": str(image_world / "clip")},
                 {"kwargs": {"attn_implementation": "eager"}}],
    }[part]  # fmt: skip
    assert known == identity(batch_size=3, showcase=2) and json.dumps(known)
    for other in others:
        assert identity(**other) != known, other
    if part == "samples":
        data.select(range(1, N_IMAGES)).to_parquet(folder / "images.parquet")
        assert identity() != known


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        build(ExploreSettings, {"samples": 0})


def test_names_are_as_short_as_they_can_be():
    assert short_names(["runs/a/sae", "runs/b"]) == ["sae", "b"]
    assert short_names(["runs/a/sae", "runs/b/sae"]) == ["a/sae", "b/sae"]
    assert short_names(["runs/x", "runs/x"]) == ["x (0)", "x (1)"]


def test_labels_that_name_no_classes_are_said_not_to_be_shown(image_world, tmp_path, caplog):
    data = load_image_dataset(str(image_world / "images.parquet")).remove_columns("label")
    words = [("cat", "dog", None)[number % 3] for number in range(len(data))]
    data.add_column("label", words).to_parquet(tmp_path / "images.parquet")
    sae, settings = load_sae(str(image_world / "sae")), ExploreSettings(dataset_path=str(tmp_path / "images.parquet"))
    assert ImageStream(sae, settings).class_names == []
    assert "'label'" in caplog.text and "names no classes" in caplog.text


@pytest.mark.parametrize("tokens", ["all", "patches", "cls"])
def test_examples_are_those_of_images_as_the_processor_makes_them_not_as_the_model_is_configured(
    image_world, tmp_path, tokens
):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2}
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes, image_size=56, patch_size=8)).save_pretrained(tmp_path)
    transformers.BitImageProcessor(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}, do_convert_rgb=True
    ).save_pretrained(tmp_path)
    sae = small_sae(d_in=24, d_sae=16).eval()
    for name, value in {
        "model_name": str(tmp_path), "model_class_name": "HookedViT", "hook_name": "blocks.0.hook_resid_post",
        "tokens": tokens, "dataset_path": str(image_world / "images.parquet"), "context_size": 50,
    }.items():  # fmt: skip
        sae.cfg.metadata[name] = value
    stream = ImageStream(sae, ExploreSettings(batch_size=5))
    statistics = gather(sae, stream, n_examples=4, n_showcase=3, progress=False)
    pixels = stream.model.preprocess([stream.image(number) for number in range(N_IMAGES)])
    with torch.no_grad():
        acts = torch.stack([sae.encode(each).to_dense() for each in stream.at_hook.activations(pixels)])
    assert acts.shape[1] == {"all": 17, "patches": 16, "cls": 1}[tokens]
    assert torch.equal(statistics.n_active_samples, (acts != 0).any(1).sum(0))
    best = acts.mean(1).topk(4, dim=0).values.T
    torch.testing.assert_close(statistics.examples.score.clamp(min=0), best, rtol=1e-4, atol=1e-5)
    assert statistics.showcase.token.max() < acts.shape[1]
