"""Activations of a language model as the source of a comparison: captured once, then read from disk."""

import gc
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from sae_lens import SAE
from sae_lens.load_model import load_model
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.util import str_to_dtype
from transformer_lens.hook_points import HookedRootModule

from sae_lens_sparsemax.activations.compare_cache import ActivationShards, capture_activations, capture_tokens
from sae_lens_sparsemax.compare.config import CompareConfig, fingerprint
from sae_lens_sparsemax.compare.sources import VALIDATION, Metrics
from sae_lens_sparsemax.compare.text import evaluation_text, training_part
from sae_lens_sparsemax.evaluation.cross_entropy import (
    CrossEntropyBaseline,
    evaluate_cross_entropy,
    evaluate_cross_entropy_baseline,
)
from sae_lens_sparsemax.evaluation.reconstruction import evaluate_reconstruction
from sae_lens_sparsemax.files import file_facts, load_json, save_json
from sae_lens_sparsemax.models.language_models import excluded_token_ids

# Settings that change which activations are stored. Those not named here only concern the runs.
_CACHE_SETTINGS = (
    "model_name",
    "model_class_name",
    "hook_name",
    "training_data",
    "held_out_fraction",
    "context_size",
    "prepend_bos",
    "exclude_special_tokens",
    "max_norm_over_median",
    "store_batch_size_prompts",
    "activation_dtype",
)


class LanguageModelSource:
    """An `ActivationSource` that runs a language model once; the model is loaded only when it is needed."""

    def __init__(self, cfg: CompareConfig) -> None:
        self.cfg = cfg
        evaluation = {name: asdict(text) for name, text in cfg.evaluation_data.items()}
        paths = [cfg.model_name, cfg.training_data.path, *(text["path"] for text in evaluation.values())]
        settings = {key: asdict(cfg)[key] for key in _CACHE_SETTINGS} | {
            "evaluation_data": evaluation,
            "n_tokens": [cfg.n_stored_tokens, cfg.n_validation_tokens, cfg.n_evaluation_tokens],
            "files": file_facts(paths),
        }
        self.fingerprint = fingerprint(settings)
        self.chosen_fingerprint = fingerprint({"n_cross_entropy_tokens": cfg.n_cross_entropy_tokens})
        self.folder = Path(cfg.output_path) / "activations" / self.fingerprint
        save_json(settings, self.folder / "settings.json")
        self.metadata: dict[str, Any] = {
            "model_name": cfg.model_name,
            "model_class_name": cfg.model_class_name,
            "hook_name": cfg.hook_name,
            "context_size": cfg.context_size,
            "prepend_bos": cfg.prepend_bos,
            "exclude_special_tokens": cfg.exclude_special_tokens,
        }
        self.train = self._capture("train", cfg.n_stored_tokens)
        self.validation = self._capture(VALIDATION, cfg.n_validation_tokens)
        self.evaluation = {name: self._capture(name, cfg.n_evaluation_tokens) for name in cfg.evaluation_data}
        self.d_in = self.train.d_in
        if cfg.max_norm_over_median is not None:
            # Later measurements of a saved SAE then leave out what its training left out.
            self.metadata["max_norm"] = self._max_norm
        self.unload_model()

    def batches(self, seed: int) -> Iterator[torch.Tensor]:
        """Training batches; every epoch is a permutation fixed by the seed."""
        return self.train.shuffled(self.cfg.batch_size, seed)

    def mean(self) -> torch.Tensor:
        """Mean of all stored training activations, shape (d_in,)."""
        return self.train.mean()

    def evaluate(self, sae: SAE[Any]) -> dict[str, Metrics]:
        """Reconstruction and sparsity on the held-out activations of every set."""
        sets = {VALIDATION: self.validation, **self.evaluation}
        return {
            name: asdict(evaluate_reconstruction(sae, shards.in_order(self.cfg.batch_size), progress=False))
            for name, shards in sets.items()
        }

    def evaluate_chosen(self, sae: SAE[Any]) -> dict[str, Metrics]:
        """Cross-entropy with the SAE spliced in, on every set of text."""
        if self.cfg.n_cross_entropy_tokens == 0:
            return {}
        return {name: self._cross_entropy(sae, name) for name in self.cfg.evaluation_data}

    def unload_model(self) -> None:
        """Free the memory of the language model; it is loaded again when it is needed."""
        if "model" in self.__dict__:
            del self.model
            gc.collect()

    @cached_property
    def model(self) -> HookedRootModule:
        """The language model, with hooks only where they are needed."""
        assert self.cfg.model_name is not None and self.cfg.hook_name is not None
        return load_model(
            self.cfg.model_class_name,
            self.cfg.model_name,
            device=self.cfg.device,
            hook_names=[self.cfg.hook_name],
        )

    @property
    def _special_tokens(self) -> list[int]:
        # Asked first, so that the model is not loaded for nothing.
        return excluded_token_ids(True, self.model) if self.cfg.exclude_special_tokens else []

    def _capture(self, name: str, n_tokens: int) -> ActivationShards:
        folder = self.folder / name
        if (folder / "complete.json").exists():
            return ActivationShards(folder)
        dtype = str_to_dtype(self.cfg.activation_dtype)
        batches = partial(_batches, self._store(name))
        label = f"Activations, {name}"
        return capture_activations(batches, folder, n_tokens, self._width, dtype, label, self._max_norm)

    @cached_property
    def _max_norm(self) -> float:
        """Largest norm that is kept, from the median over the first batch of training text."""
        if self.cfg.max_norm_over_median is None:
            return math.inf
        path = self.folder / "norms.json"
        if not path.exists():
            norms = self._store("train").get_filtered_llm_batch().norm(dim=-1)
            median = norms.median().item()
            save_json({"median": median, "max": self.cfg.max_norm_over_median * median}, path)
        return json.loads(path.read_text())["max"]

    def _store(self, name: str) -> ActivationsStore:
        special = torch.tensor(self._special_tokens, dtype=torch.long)
        return ActivationsStore(
            model=self.model,
            dataset=self._text(name),
            streaming=False,
            hook_name=self.metadata["hook_name"],
            hook_head_index=None,
            context_size=self.cfg.context_size,
            d_in=self._width,
            n_batches_in_buffer=1,
            total_training_tokens=1,  # only used for a warning about repeated epochs, which never happen here
            store_batch_size_prompts=self.cfg.store_batch_size_prompts,
            train_batch_size_tokens=self.cfg.batch_size,
            prepend_bos=self.cfg.prepend_bos,
            normalize_activations="none",
            device=torch.device("cpu"),
            dtype="float32",
            exclude_special_tokens=special if len(special) else None,
        )

    def _text(self, name: str) -> Dataset | IterableDataset:
        if name in ("train", VALIDATION):
            return training_part(self.cfg, name)
        return evaluation_text(self.cfg, name)

    @cached_property
    def _width(self) -> int:
        """Width of the activations at the hook, heads side by side."""
        tokens = torch.zeros(1, 2, dtype=torch.long, device=self.cfg.device)
        hook = self.metadata["hook_name"]
        with torch.no_grad():
            _, cache = self.model.run_with_cache(tokens, names_filter=[hook])
        return cache[hook].flatten(2).shape[-1]

    def _cross_entropy(self, sae: SAE[Any], name: str) -> Metrics:
        cfg = self.cfg
        assert cfg.hook_name is not None
        tokens_path = self.folder / name / f"tokens-{cfg.n_cross_entropy_tokens}.safetensors"
        tokens = capture_tokens(lambda: self._store(name), tokens_path, cfg.n_cross_entropy_tokens)
        batches = tokens.to(cfg.device).split(cfg.store_batch_size_prompts)
        baseline_path = tokens_path.with_suffix(".baseline.json")
        if not baseline_path.exists():
            save_json(
                evaluate_cross_entropy_baseline(self.model, cfg.hook_name, batches, ignore_tokens=self._special_tokens),
                baseline_path,
            )
        baseline = load_json(CrossEntropyBaseline, baseline_path)
        return asdict(
            evaluate_cross_entropy(
                self.model,
                sae,
                batches,
                baseline,
                hook_name=cfg.hook_name,
                ignore_tokens=self._special_tokens,
                max_norm=self._max_norm,
            )
        )


def _batches(store: ActivationsStore, n_skipped: int) -> Iterator[torch.Tensor]:
    """Activations without special tokens, (n, d_in), after the first batches of contexts, to the end of the text."""
    for _ in range(n_skipped):
        store.get_batch_tokens(raise_at_epoch_end=True)
    while True:
        try:
            yield store.get_filtered_llm_batch(raise_on_epoch_end=True)
        except StopIteration:
            return
