"""What tests of several rooms share: tiny models, the trained mini-CLIP where the shared data is at hand, a browser.

Imports of size stand in the fixtures: the process that hands tests out to workers reads this file and runs none.
"""

from __future__ import annotations

import functools
import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.places import SHARED_DATA

if TYPE_CHECKING:
    import torch

    from sae_lens_sparsemax.models.hooked_vit import HookedViT

# Half a million objects come with the libraries and stay; looking through them while they come frees nothing.
gc.disable()

# Tests need no network, and what is not here is not waited for.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


# Modules of few tests that take long, as they start processes and browsers: begun first, or one of them runs on alone.
LONG = ("cli", "trials", "training", "sae/test_sharding", "sae/test_traced", "explore", "evaluation", "compare")


def pytest_configure(config: pytest.Config) -> None:
    """Modules are handed out in the order of `pytest_collection_modifyitems`, not by how many tests they have.

    Workers share the cores: one thread for each and the processes it starts, of which they are told before they
    start, since NumPy, which plugins import before this file, asks then.
    """
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False
    if getattr(config.option, "numprocesses", None):
        os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long modules first; nothing else changes places."""
    places = [f"tests/{name}" for name in LONG]
    items.sort(key=lambda item: next((i for i, place in enumerate(places) if item.nodeid.startswith(place)), len(LONG)))


def pytest_collectstart() -> None:
    """Where no GPU is at hand, Triton's kernels run in its interpreter; it reads the variable when first imported.

    A seed for a device that is not there would be kept with its caller's stack, which takes a millisecond or two.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    for device in (torch.cuda, torch.xpu, torch.mtia):
        if not device.is_available():
            device.manual_seed_all = lambda seed: None


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Before the first test: figures are saved empty, files stay unflushed, and processes are forked from here.

    The process that hands out tests has none itself; one that has used CUDA is none to fork from. Rubbish is collected
    from here on, but not looked for among what was there before, which took a tenth of the time of all tests.
    """
    gc.freeze()
    gc.enable()
    if not session.items:
        return
    import torch
    from matplotlib.figure import Figure
    from transformers import PretrainedConfig

    from tests.support.fresh_processes import serve_from_here

    # Each load of a model writes its configuration out for a log that nobody reads.
    PretrainedConfig.__repr__ = object.__repr__
    # No test can cut the power; that a file is flushed, and what happens when that fails, is tested with other ones.
    os.fsync = lambda descriptor: None
    Figure.savefig = functools.wraps(Figure.savefig)(lambda *_, **__: None)
    if not torch.cuda.is_available():
        serve_from_here()


def pytest_unconfigure() -> None:
    """Libraries complain of what they find alive at the end."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama of width 16 with a word-level tokenizer, as a Hugging Face folder."""
    from tests.support.tiny_language_model import save_tiny_llama

    return save_tiny_llama(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture
def pictures(monkeypatch):
    """What is saved of figures is what they show; laying one out takes a second, so other tests save nothing."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", Figure.savefig.__wrapped__)


@pytest.fixture
def without_pictures(monkeypatch):
    """Drawing takes longer than the small runs of tests."""
    from sae_lens_sparsemax.training.log import TrainingLog

    monkeypatch.setattr(TrainingLog, "close", lambda self: None)
    monkeypatch.setattr("sae_lens_sparsemax.compare.runner.write_plots", lambda cfg, points, folder: [])


@pytest.fixture
def hooked_transformer(monkeypatch, tiny_model_folder):
    """HookedTransformer loads no local folders, so the name `tiny` gives a random one with the same tokenizer."""
    import transformer_lens
    from transformers import AutoTokenizer

    from sae_lens_sparsemax.models import language_models

    config = transformer_lens.HookedTransformerConfig(
        n_layers=2, d_model=16, n_ctx=64, d_head=8, n_heads=2, d_vocab=62, act_fn="gelu", seed=0
    )
    model = transformer_lens.HookedTransformer(config, AutoTokenizer.from_pretrained(tiny_model_folder))
    load = language_models.load_model
    monkeypatch.setattr(
        language_models, "load_model", lambda *args, **kwargs: model if args[1] == "tiny" else load(*args, **kwargs)
    )


@pytest.fixture
def bert_folder(tmp_path, tiny_model_folder):
    """A random BERT, with the tokenizer of the other models."""
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    folder = tmp_path / "bert"
    AutoTokenizer.from_pretrained(tiny_model_folder).save_pretrained(folder)
    config = BertConfig(
        vocab_size=62,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_clip() -> HookedViT:
    from sae_lens_sparsemax.models.hooked_vit import HookedViT
    from tests.support.tiny_vision_models import tiny_model

    return HookedViT(tiny_model("clip"))


@pytest.fixture
def pixels() -> torch.Tensor:
    import torch

    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.exists():
        pytest.skip(f"no shared data at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def mini_clip(shared_data) -> HookedViT:
    from sae_lens_sparsemax.models.hooked_vit import HookedViT

    return HookedViT.from_pretrained(str(shared_data / "models" / "mini-clip-cifar10"))


@pytest.fixture(scope="session")
def clip_and_sae(tmp_path_factory):
    """A vision model and an SAE whose concept BRIGHT fires on bright patches and whose concept DEAD never fires."""
    from sae_lens_sparsemax.models.hooked_vit import HookedViT
    from sae_lens_sparsemax.models.saved_saes import load_sae
    from tests.support import sites

    folder = tmp_path_factory.mktemp("concepts")
    clip, images = sites.save_clip(folder / "clip"), sites.save_images(folder)
    sae = load_sae(str(sites.save_image_sae(folder / "sae", clip, images)))
    return HookedViT.from_pretrained(str(clip)), sae


@pytest.fixture(scope="session")
def language_model_and_sae(tmp_path_factory):
    from sae_lens_sparsemax.data.quickstart import QUICKSTART
    from sae_lens_sparsemax.models.language_models import load_language_model
    from sae_lens_sparsemax.models.saved_saes import load_sae
    from tests.support import sites

    folder = tmp_path_factory.mktemp("concepts-of-text")
    sae = load_sae(str(sites.save_text_sae(folder / "sae", sites.save_text(folder))))
    return load_language_model("TransformerBridge", QUICKSTART, sae.cfg.metadata.hook_name), sae


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless browser."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the pages are clicked with Playwright: pip install playwright"
    )
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no Chromium was found on PATH; name one in the environment variable CHROMIUM")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A model hub on the loopback address, which huggingface_hub takes for the real one."""
    from huggingface_hub import constants, hf_api

    from tests.support.hub_server import running_hub

    with running_hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(hf_api.api, "endpoint", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_loopback")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield running
