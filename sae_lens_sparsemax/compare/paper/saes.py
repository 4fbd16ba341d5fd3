"""The SAEs of a recipe: trained when they are missing, shared by every recipe that asks for the same training."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sae_lens_sparsemax.compare.config import fingerprint
from sae_lens_sparsemax.compare.mean_l0 import mean_l0
from sae_lens_sparsemax.compare.paper.recipe import MATCH, Recipe
from sae_lens_sparsemax.files import save_json
from sae_lens_sparsemax.training.checkpoints import list_checkpoints, prepare_output
from sae_lens_sparsemax.training.config_file import config_from_values

TRAINED_FILENAME = "trained.json"
"""Written last, with the settings: an SAE without it is trained again, from its newest checkpoint if there is one."""

# They change where and how fast a training runs, not what comes out.
_NOT_IN_FINGERPRINT = {"device", "n_decode_workers", "prefetch_image_batches", "verbose", "logger", "n_checkpoints"}


def trained_sae(recipe: Recipe, name: str, say: Callable[[str], None]) -> Path:
    """
    The folder of one SAE of a recipe, which is trained if it is not there.

    An SAE with `match` is trained at the mean L0 of another, which comes first.
    """
    k = None
    match = recipe.saes[name].get(MATCH)
    if match is not None:
        k, where = mean_l0(trained_sae(recipe, match, say), {})
        say(f"{name}: k = {k:.2f}, the mean L0 of {match} ({where})")
    settings = recipe.training(name, "unused", k)
    folder = Path(recipe.output_path) / "saes" / f"{_slug(name)}-{_training_fingerprint(settings)}"
    if (folder / TRAINED_FILENAME).is_file():
        say(f"{name}: kept, it was trained earlier ({folder})")
        return folder
    loaded = config_from_values({**settings, "output_path": str(folder)})
    prepare_output(loaded.config, resume=bool(list_checkpoints(loaded.config.checkpoint_path)), overwrite=False)
    say(f"{name}: training in {folder}")
    loaded.make_runner().run()
    save_json(settings, folder / TRAINED_FILENAME)
    return folder


def _training_fingerprint(settings: Mapping[str, Any]) -> str:
    lasting = {key: value for key, value in settings.items() if key not in _NOT_IN_FINGERPRINT}
    return fingerprint(lasting)[:8]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
