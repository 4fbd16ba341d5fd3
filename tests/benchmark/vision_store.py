"""How many images a second the activations store feeds, against the model alone on images that are ready."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from sae_lens_sparsemax.activations.sources import ActivationSource
from sae_lens_sparsemax.activations.store import MixedActivationsStore
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.models.vision_at_hook import layers_to_run
from sae_lens_sparsemax.training.cache_runner import cache_activations
from sae_lens_sparsemax.training.sources import image_source
from tests.benchmark.vision_problem import VisionProblem


def store_throughput(
    problem: VisionProblem, n_batches: int, rounds: int, *, with_cache: bool = False
) -> dict[str, float]:
    """Median images a second over rounds in which every way of feeding has its turn.

    Args:
        problem: model, images and sizes; the shuffle buffer is refilled at every batch or few.
        n_batches: batches of images in each turn.
        rounds: turns of which the median counts, after one that does not.
        with_cache: also read activations from a cache on disk.

    Returns:
        `model`: the forward pass up to the hook's block, on preprocessed images in memory; `decoding`: images
        decoded and preprocessed as the store does, without the model; `store`: shuffled activations from encoded
        images; `cache`: shuffled activations from the disk.
    """
    model, data = problem.load_model(), problem.load_images()
    cfg = problem.training_config(10**12)
    cfg.hook_name = model.resolve_hook_name(cfg.hook_name)
    source = image_source(cfg, model, data)
    with TemporaryDirectory() as folder:
        turns = {"model": _model_alone(model, source, cfg.hook_name, n_batches)}
        turns["decoding"] = _decoding(source, n_batches)
        turns["store"] = _store(problem, source, n_batches)
        if with_cache:
            cfg.cached_activations_path = str(Path(folder) / "cache")
            cache_activations(cfg, model, data)
            turns["cache"] = _store(problem, image_source(cfg, model, None), n_batches)
        found: dict[str, list[float]] = {name: [] for name in turns}
        for round_number in range(rounds + 1):
            for name, turn in turns.items():
                time.sleep(0.3)  # the decoding workers of the turn before are done reading ahead
                start = time.perf_counter()
                n_images = turn()
                if round_number:
                    found[name].append(n_images / (time.perf_counter() - start))
    return {name: statistics.median(speeds) for name, speeds in found.items()}


def _model_alone(model: HookedViT, source: ActivationSource, hook_name: str, n_batches: int) -> Callable[[], int]:
    pixels = next(source.images.batches()).pixel_values  # type: ignore[attr-defined]

    @torch.no_grad()
    def turn() -> int:
        for _ in range(n_batches):
            model(pixels, return_type=None, stop_at_layer=layers_to_run(hook_name))
        return n_batches * len(pixels)

    return turn


def _decoding(source: ActivationSource, n_batches: int) -> Callable[[], int]:
    batches = source.images.batches()  # type: ignore[attr-defined]
    # Many more than the workers read ahead, or those that are ready at the start would be counted as fast.
    n_batches = max(n_batches, 40)
    return lambda: sum(len(batch.pixel_values) for batch in itertools.islice(batches, n_batches))


def _store(problem: VisionProblem, source: ActivationSource, n_batches: int) -> Callable[[], int]:
    store = MixedActivationsStore(source, problem.train_batch, problem.buffer_batches * problem.train_batch)

    def turn() -> int:
        if not store.n_inputs:
            next(store)  # fills the shuffle buffer
        before = store.n_inputs
        while store.n_inputs - before < n_batches * problem.image_batch:
            next(store)
        return store.n_inputs - before

    return turn
