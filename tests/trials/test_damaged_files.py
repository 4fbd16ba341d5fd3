"""Damaged files, many at random, of every kind that is read back: each gives one sentence, or the result it gave whole.

`TRIAL_DAMAGED_FILES` says how many.
"""

import contextlib
import io
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from huggingface_hub.errors import EntryNotFoundError

from sae_lens_sparsemax.activations.cache_files import _VERSION, MANIFEST_FILENAME
from sae_lens_sparsemax.activations.cache_reader import CachedActivations
from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.compare import compare, config_from_yaml
from sae_lens_sparsemax.compare.text_source import _Norms
from sae_lens_sparsemax.evaluation.suite.groups import MetricGroup, run_groups
from sae_lens_sparsemax.explore.gather import load_state, save_state
from sae_lens_sparsemax.files import CHECKSUMS_FILENAME, load_json, read_tensors, save_json, save_tensors, sealed
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.models.language_models import load_language_model
from sae_lens_sparsemax.models.saved_saes import load_sae
from sae_lens_sparsemax.training.checkpoints import newest_checkpoint
from sae_lens_sparsemax.training.log import TrainingLog
from sae_lens_sparsemax.training.synthetic_runner import SyntheticTrainingRunner
from sae_lens_sparsemax.training.text_runner import TextTrainingRunner
from tests.activations.test_cache import make_cache
from tests.compare.test_compare import SYNTHETIC, write
from tests.support.tiny_language_model import documents, save_tiny_llama
from tests.support.tiny_training import make_files
from tests.training.test_checkpoints import as_of_version_0_1, config
from tests.training.test_text_runner import make_config
from tests.trials.damage import harm

pytestmark = pytest.mark.slow
N_FILES = int(os.environ.get("TRIAL_DAMAGED_FILES", "150"))


class Kind(NamedTuple):
    """A kind of file, and what reads it."""

    whole: Path
    """What is copied and then harmed."""
    use: Callable[[Path], Any]
    """Gives what comes of a copy."""
    is_checked: bool = True
    """Whether the files hold checksums, so that another result cannot come of them."""


def weights(sae) -> dict[str, Any]:
    settings = {key: value for key, value in sae.cfg.to_dict().items() if key != "metadata"}
    return {"settings": json.dumps(settings, default=str), **{name: t.clone() for name, t in sae.state_dict().items()}}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return one == other


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, Kind]:
    place = tmp_path_factory.mktemp("kinds")
    patch = pytest.MonkeyPatch()
    patch.setattr(TrainingLog, "close", lambda self: None)  # drawing takes longer than these runs
    made = dict(_kinds(place, patch))
    yield made
    patch.undo()


def _kinds(place: Path, patch: pytest.MonkeyPatch):
    run = place / "run"
    SyntheticTrainingRunner(config(run)).run()
    sae = Path(shutil.copytree(run, place / "sae", ignore=shutil.ignore_patterns("checkpoints", "*.jsonl", "runner*")))
    yield "SAE", Kind(sae, lambda folder: weights(load_sae(str(folder))), False)

    def hub(folder: Path) -> Any:
        def download(repo_id, filename, **kwargs):
            path = folder / Path(filename).name
            if not path.is_file():
                raise EntryNotFoundError(f"{filename} is not there", response=SimpleNamespace(headers={}, request=None))
            return str(path)

        with pytest.MonkeyPatch.context() as inner:
            inner.setattr("sae_lens.loading.pretrained_sae_loaders.hf_hub_download", download)
            return weights(load_sae("user/repository:id"))

    yield "SAE on the hub", Kind(sae, hub, False)

    def go_on(folder: Path) -> Any:
        checkpoint = str(newest_checkpoint(folder / "checkpoints"))
        result = SyntheticTrainingRunner(config(folder, resume_from_checkpoint=checkpoint)).run()
        return weights(result.sae)

    checkpoint = Path(shutil.copytree(run / "checkpoints", place / "checkpoint" / "checkpoints")).parent
    yield "checkpoint", Kind(checkpoint, go_on)
    earlier = Path(shutil.copytree(checkpoint, place / "earlier"))
    as_of_version_0_1(newest_checkpoint(earlier / "checkpoints"))
    yield "checkpoint of version 0.1", Kind(earlier, go_on, False)

    model = save_tiny_llama(place / "tiny-model")
    text = place / "text.jsonl"
    text.write_text("".join(json.dumps({"text": each}) + "\n" for each in documents(25)))
    loaded = load_language_model("TransformerBridge", str(model), "blocks.0.hook_out")

    def text_run(folder: Path, **changes) -> Any:
        cfg = make_config(model, text, folder, n_checkpoints=1, **changes)
        return weights(TextTrainingRunner(cfg, override_model=loaded).run())

    text_run(place / "text")
    kept = Path(shutil.copytree(place / "text" / "checkpoints", place / "text-kept" / "checkpoints")).parent
    go_on_text = lambda f: text_run(f, resume_from_checkpoint=str(newest_checkpoint(f / "checkpoints")))  # noqa: E731
    yield "checkpoint of text", Kind(kept, go_on_text)

    yield "language model", Kind(model, lambda f: bool(load_language_model("TransformerBridge", str(f), "x")), False)
    (place / "vision").mkdir()
    make_files(place / "vision")
    vision_model = place / "vision" / "model"
    yield "vision model", Kind(vision_model, lambda f: bool(HookedViT.from_pretrained(str(f))), False)

    make_cache(place / "vision", place / "cache", training_tokens=200)

    def cached(folder: Path) -> Any:
        source = CachedActivations(folder, 3)
        drawn, found = 0, []
        for batch in source.batches():
            found.append(batch.acts)
            drawn += len(batch.lengths)
            if drawn >= 2 * source.manifest.n_inputs:
                return {"acts": torch.cat(found)}

    yield "cache", Kind(place / "cache", cached)
    older = Path(shutil.copytree(place / "cache", place / "cache-2"))
    manifest = json.loads((older / MANIFEST_FILENAME).read_text())
    assert manifest.pop("sha256") and manifest["format_version"] == _VERSION
    (older / MANIFEST_FILENAME).write_text(json.dumps(manifest | {"format_version": 2}, indent=1))
    yield "cache of format 2", Kind(older, cached, False)

    (log := place / "log").mkdir()
    (place / "text" / "metrics.jsonl").rename(log / "metrics.jsonl")
    shutil.copy(place / "text" / "runner_cfg.json", log) if (place / "text" / "runner_cfg.json").is_file() else None
    settings = {"runner": "language_model", "sae": {"d_sae": 32, "target_l0": 4}, "output_path": "x"}
    (place / "settings.yaml").write_text(yaml.safe_dump(settings))

    def suggest(folder: Path) -> Any:
        _main("suggest-k", str(folder), "--output_path", str(folder / "out"))
        return True

    yield "training log and settings", Kind(log, suggest, False)

    def measured(folder: Path) -> Any:
        groups = [MetricGroup(name, {"n": 1}, lambda name=name: {"value": [1.5, name]}) for name in ("one", "two")]
        return run_groups(groups, folder, "digest", say=lambda line: None, progress=False)

    (place / "groups").mkdir()
    measured(place / "groups")
    yield "evaluation", Kind(place / "groups", measured)

    table = compare(config_from_yaml(write(place / "compare", SYNTHETIC | {"seeds": [0]})))

    def compared(folder: Path) -> Any:
        return compare(config_from_yaml(write(folder, SYNTHETIC | {"seeds": [0]}))).read_text().split("seconds")[0]

    yield "comparison", Kind(place / "compare", compared, False)
    assert table.is_file()

    def gathered(folder: Path) -> Any:
        found = SimpleNamespace(n=1, values=torch.zeros(40))
        if not load_state(found, folder / "0.safetensors", "fingerprint"):
            found.n, found.values = 7, torch.arange(40.0)  # gathered anew
        return dict(vars(found))

    (place / "gathered").mkdir()
    save_state(SimpleNamespace(n=7, values=torch.arange(40.0)), place / "gathered" / "0.safetensors", "fingerprint")
    yield "explorer", Kind(place / "gathered", gathered)

    (place / "beside").mkdir()
    save_json(sealed({"max": 2.5, "median": 0.25}), place / "beside" / "norms.json")
    save_tensors({"tokens": torch.arange(40)}, place / "beside" / "tokens.safetensors")

    def beside(folder: Path) -> Any:
        return asdict(load_json(_Norms, folder / "norms.json")) | read_tensors(folder / "tokens.safetensors")[0]

    yield "norms and tokens of a comparison", Kind(place / "beside", beside)


def _main(*words: str) -> None:
    """Run the command line; its own refusal is raised."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = main(list(words))
    if status:
        assert status == 2
        raise ValueError(said.getvalue().strip().splitlines()[-1])


def test_a_damaged_file_gives_a_sentence_or_the_result_it_gave_whole(kinds, tmp_path):
    draw, found = random.Random(0), Counter()
    expected = {}
    for name, kind in kinds.items():
        shutil.copytree(kind.whole, tmp_path / "whole")
        expected[name] = kind.use(tmp_path / "whole")
        shutil.rmtree(tmp_path / "whole")
    names = [name for name in kinds for _ in range(1 if name == "comparison" else 8)]  # that trains again
    wrong = []
    for number in range(N_FILES):
        name = draw.choice(names)
        kind, folder = kinds[name], tmp_path / "harmed"
        shutil.copytree(kind.whole, folder)
        harmed = f"{number}: {name}: {harm(folder, draw)}"
        try:
            result = kind.use(folder)
        except (ValueError, OSError) as error:
            found[name, "sentence"] += 1
            if not str(error) or "\n" in str(error).strip() or len(str(error)) > 1500:
                wrong.append(f"{harmed}: no sentence: {error}")
        except Exception as error:
            wrong.append(f"{harmed}: {type(error).__name__}: {error}")
        else:
            is_same = same(result, expected[name])
            found[name, "same" if is_same else "another result"] += 1
            if kind.is_checked and not is_same:
                wrong.append(f"{harmed}: another result")
        shutil.rmtree(folder)
    for name in kinds:
        print(f"{name:34}", {how: found[name, how] for how in ("sentence", "same", "another result")})
    assert not wrong, f"{len(wrong)} of {N_FILES}\n" + "\n".join(wrong)


def test_checksums_that_are_gone_are_the_only_way_to_another_sae(kinds, tmp_path):
    """A harmed SAE either is refused, or has lost its checksums too."""
    draw = random.Random(1)
    kind = kinds["SAE"]
    assert (kind.whole / CHECKSUMS_FILENAME).is_file()
    whole = kind.use(kind.whole)
    for _ in range(N_FILES // 5):
        shutil.copytree(kind.whole, tmp_path / "sae")
        harmed = harm(tmp_path / "sae", draw)
        with contextlib.suppress(ValueError):
            assert same(kind.use(tmp_path / "sae"), whole), harmed
        shutil.rmtree(tmp_path / "sae")
