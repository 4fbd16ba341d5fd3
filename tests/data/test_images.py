"""The order of images, its continuation, and images that cannot be used."""

import itertools

import datasets
import numpy as np
import pandas
import PIL.Image
import pytest
import torch
import transformers

from sae_lens_sparsemax.data.image_loader import ImageLoader, decode_image
from sae_lens_sparsemax.data.images import class_names_of, encoded_images, load_image_dataset
from sae_lens_sparsemax.data.order import generator_of_pass, seed_of
from tests.support.tiny_images import encoded, gray_levels, plain_processor


def loader(data, batch_size=4, **kwargs):
    return ImageLoader(encoded_images(data, "image"), plain_processor(), batch_size, **kwargs)


def rows_of(batch) -> list[int]:
    return (batch.pixel_values[:, 0, 0, 0] * 255).round().int().tolist()


def take(images, n, position=None):
    return list(itertools.islice(images.batches(position), n))


@pytest.mark.parametrize("n_workers", [0, 2])
def test_each_pass_shows_every_image_once_in_a_new_order(n_workers):
    rows = [row for batch in take(loader(gray_levels(10), n_workers=n_workers), 5) for row in rows_of(batch)]
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10] != rows[10:] and rows[:10] != list(range(10))


def test_shares_together_are_the_order_of_all_through_every_pass():
    data = gray_levels(10)
    whole = [row for batch in take(loader(data, batch_size=3), 10) for row in rows_of(batch)]
    shares = [
        [row for batch in take(loader(data, batch_size=1, share=(part, 3)), 10) for row in rows_of(batch)]
        for part in range(3)
    ]
    assert [row for three in zip(*shares, strict=True) for row in three] == whole


def test_seed_decides_the_order_and_none_keeps_it():
    first, again, other = (rows_of(take(loader(gray_levels(64), 64, seed=seed), 1)[0]) for seed in (0, 0, 1))
    assert first == again != other
    assert rows_of(take(loader(gray_levels(64), 64, seed=None), 1)[0]) == list(range(64))


@pytest.mark.parametrize("seed", [10**13, 2**63 - 1, -(2**63) + 1])
def test_every_seed_that_a_run_takes_has_an_order(seed):
    rows = [row for batch in take(loader(gray_levels(8), seed=seed), 4) for row in rows_of(batch)]
    assert sorted(rows[:8]) == sorted(rows[8:]) == list(range(8))
    assert rows[:8] != rows[8:]


def test_seeds_that_torch_takes_are_left_alone():
    for number in (0, 3, -1, -(2**63), 2**63, 2**64 - 1):
        assert seed_of(number) == number
    assert generator_of_pass(3, 2).initial_seed() == 3_000_011
    torch.manual_seed(seed_of(10**30))
    torch.manual_seed(seed_of(-(10**30)))


@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_continues_at_every_position(streaming, n_workers):
    data = gray_levels(10).to_iterable_dataset(num_shards=3) if streaming else gray_levels(10)
    batches = take(loader(data), 7)
    for i, batch in enumerate(batches[:6] if n_workers == 0 else batches[2:4], start=1 if n_workers == 0 else 3):
        rest = take(loader(data, n_workers=n_workers), 7 - i, batch.position)
        assert [rows_of(b) for b in rest] == [rows_of(b) for b in batches[i:]]


def test_stream_is_read_again_from_its_start():
    rows = [row for b in take(loader(gray_levels(6).to_iterable_dataset()), 3) for row in rows_of(b)]
    assert rows == [0, 1, 2, 3, 4, 5] * 2


def test_images_that_have_the_models_size_give_the_same_pixels_as_resized_ones():
    noise = [PIL.Image.effect_noise(size, 90) for size in ((16, 16), (16, 23), (40, 16), (16, 16))]
    features = datasets.Features({"image": datasets.Image()})
    data = datasets.Dataset.from_dict({"image": [encoded(image) for image in noise]}, features=features)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)
    batch = next(ImageLoader(encoded_images(data, "image"), processor, 4, seed=None).batches())
    expected = processor([image.convert("RGB") for image in noise], return_tensors="pt")["pixel_values"]
    assert torch.equal(batch.pixel_values, expected)


@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_one_pass_ends_with_the_last_image(streaming, n_workers):
    data = gray_levels(10).to_iterable_dataset() if streaming else gray_levels(10)
    images = loader(data, n_workers=n_workers)
    batches = list(images.batches(one_pass=True))
    assert [len(rows_of(batch)) for batch in batches] == [4, 4, 2]
    assert sorted(row for batch in batches for row in rows_of(batch)) == list(range(10))
    assert list(images.batches(batches[-1].position, one_pass=True)) == []


def test_loading_images_leaves_the_random_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(loader(gray_levels(10), n_workers=2), 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("mode", "size"),
    [("L", (40, 9)), ("RGBA", (9, 40)), ("P", (1, 1)), ("I;16", (8, 8)), ("LA", (3, 70)), ("1", (5, 5))],
)
def test_every_mode_and_size_becomes_rgb(mode, size):
    image = decode_image(encoded(PIL.Image.new(mode, size)))
    assert image.mode == "RGB" and image.size == size
    assert plain_processor()([image], return_tensors="pt")["pixel_values"].shape == (1, 3, 16, 16)


@pytest.mark.filterwarnings("ignore:Downcasting array dtype")
@pytest.mark.parametrize("dtype", ["int16", "uint16", ">u2", "int32", "uint32", "int64"])
@pytest.mark.parametrize("factor", [1, 128])
def test_whole_numbers_of_more_bits_are_levels_up_to_255_and_16_bits_beyond(dtype, factor):
    levels = np.arange(256).reshape(16, 16)
    stored = datasets.Image().encode_example((levels * factor).astype(dtype))
    shown = np.asarray(decode_image(stored))
    assert (shown == (levels if factor == 1 else levels // 2)[..., None]).all()


def broken_among(n: int, broken: set[int]) -> datasets.Dataset:
    whole = encoded(PIL.Image.effect_noise((64, 64), 90))
    kinds = itertools.cycle(
        [
            {"bytes": b"not an image", "path": None},
            {"bytes": whole["bytes"][: len(whole["bytes"]) // 2], "path": None},
            {"bytes": b"", "path": None},
            None,
            encoded(PIL.Image.new("RGB", (1, 500))),
        ]
    )
    images = [next(kinds) if i in broken else whole for i in range(n)]
    return datasets.Dataset.from_dict(
        {"image": images}, features=datasets.Features({"image": datasets.Image(decode=False)})
    )


@pytest.mark.parametrize("n_workers", [0, 2])
def test_broken_images_are_left_out_and_counted(n_workers):
    images = loader(broken_among(40, {0, 5, 6, 7, 30}), 8, seed=None, n_workers=n_workers)
    batches = take(images, 5)
    assert [len(batch.pixel_values) for batch in batches] == [4, 8, 8, 7, 8]
    assert (images.n_good, images.n_bad) == (35, 5)
    assert [error.split(":")[0] for error in images.first_errors[:5]] == [
        "row 0",
        "row 5",
        "row 6",
        "row 7",
        "row 30",
    ]
    assert "too narrow" in images.first_errors[4]


def test_too_many_broken_images_stop_the_run_with_the_first_reason():
    images = loader(broken_among(100, set(range(0, 100, 5))), 10, max_bad_fraction=0.1)
    with pytest.raises(ValueError, match=r"1\d of the first .* images .*0\.1.*row \d+: "):
        take(images, 20)


def test_a_data_set_of_broken_images_ends():
    with pytest.raises(ValueError, match="could not be used"):
        take(loader(broken_among(3, {0, 1, 2}), 2), 1)


def test_columns_are_checked(tmp_path):
    data = gray_levels(3)
    with pytest.raises(
        ValueError, match=r"image_column must be one of 'image', 'label' in .* got 'img'; did you mean 'image'"
    ):
        encoded_images(data, "img")
    with pytest.raises(ValueError, match=r"must be a column with images .* got 'label', which holds ClassLabel"):
        encoded_images(data, "label")
    with pytest.raises(ValueError, match="must have rows"):
        encoded_images(data.select([]), "image")
    with pytest.raises(ValueError, match="image_column must be one of .* got 'img'"):
        encoded_images(data.to_iterable_dataset(), "img")


def test_class_names_are_read_and_missing_ones_reported():
    assert class_names_of(gray_levels(2), "label") == ["even", "odd one"]
    with pytest.raises(ValueError, match="label_column must be one with the names of classes, got 'image'"):
        class_names_of(gray_levels(2), "image")


def test_local_sources_give_the_same_images(tmp_path):
    data = gray_levels(6)
    data.to_parquet(tmp_path / "a.parquet")
    data.save_to_disk(tmp_path / "disk")
    for row in data:
        folder = tmp_path / "folder" / "train" / data.features["label"].names[row["label"]]
        folder.mkdir(parents=True, exist_ok=True)
        row["image"].save(folder / f"{row['image'].getpixel((0, 0))}.png")
    for path in ("a.parquet", "disk", "folder"):
        for streaming in (False, True):
            found = load_image_dataset(str(tmp_path / path), streaming=streaming)
            images = ImageLoader(found, plain_processor(), 6, seed=None)
            assert sorted(rows_of(take(images, 1)[0])) == list(range(6))
    assert class_names_of(load_image_dataset(str(tmp_path / "folder")), "label") == ["even", "odd one"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("beside", [{"path": None}, {"path": "a.png"}, {}], ids=str)
def test_images_that_pandas_kept_are_images(tmp_path, beside, streaming):
    rows = encoded_images(gray_levels(3), "image")
    kept = [{"bytes": row["image"]["bytes"], **beside} for row in rows]
    pandas.DataFrame({"image": kept, "n": range(3)}).to_parquet(tmp_path / "a.parquet")
    for column in ("image", None):
        found = load_image_dataset(str(tmp_path / "a.parquet"), image_column=column, streaming=streaming)
        assert rows_of(take(ImageLoader(found, plain_processor(), 3, seed=None), 1)[0]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("path", "message"),
    [("nothing.parquet", "no file"), ("./nothing", "no file or folder"), ("notes.txt", "could not be loaded")],
)
def test_missing_sources_are_named(path, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_image_dataset(path)


def test_missing_split_is_named(tmp_path):
    gray_levels(3).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"could not be loaded.*validation"):
        load_image_dataset(str(tmp_path / "a.parquet"), split="validation")
