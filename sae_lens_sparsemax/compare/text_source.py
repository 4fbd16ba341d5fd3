"""Activations of a language model as the source of a comparison: captured once, then read from disk."""

import gc
import logging
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from sae_lens import SAE
from sae_lens.training.activations_store import ActivationsStore

from sae_lens_sparsemax.activations.cache_writer import Batches
from sae_lens_sparsemax.activations.sources import TextActivations
from sae_lens_sparsemax.compare.config import CompareConfig, EvalDataset
from sae_lens_sparsemax.compare.identity import fingerprint
from sae_lens_sparsemax.compare.sources import TRAIN, VALIDATION, CapturedActivations, Metrics
from sae_lens_sparsemax.data.texts import load_text_dataset, part_of_dataset
from sae_lens_sparsemax.evaluation.predictions import (
    CrossEntropyBaseline,
    evaluate_cross_entropy,
    evaluate_cross_entropy_baseline,
)
from sae_lens_sparsemax.evaluation.probing import KS, ProbeScores, probe
from sae_lens_sparsemax.evaluation.suite.probing import Passages, Task, passage_tasks, read_passages
from sae_lens_sparsemax.files import (
    file_facts,
    load_json,
    read_tensors,
    reading,
    save_json,
    save_tensors,
    sealed,
)
from sae_lens_sparsemax.models.at_hook import TextAtHook
from sae_lens_sparsemax.models.language_models import (
    excluded_token_ids,
    hook_width,
    load_language_model,
    require_positions,
    resolve_hook_name,
)

logger = logging.getLogger(__name__)

# Settings that change which activations are stored. Those not named here only concern the runs.
_CACHE_SETTINGS = (
    "model_name",
    "model_class_name",
    "hook_name",
    "held_out_fraction",
    "context_size",
    "prepend_bos",
    "exclude_special_tokens",
    "max_norm_over_median",
    "store_batch_size_prompts",
    "activation_dtype",
)


@dataclass
class _Norms:
    """Of the first batch of training text."""

    median: float
    max: float
    """The largest that is kept."""


class TextSource(CapturedActivations):
    """Runs a language model once; the model is loaded only when it is needed."""

    unit = "contexts"

    def __init__(self, cfg: CompareConfig) -> None:
        texts = [cfg.training_dataset, *cfg.eval_datasets.values()]
        settings = {key: asdict(cfg)[key] for key in _CACHE_SETTINGS}
        # By their names in version 0.1, whose captures are found by these settings.
        settings["training_data"] = _identity(cfg.training_dataset)
        settings["evaluation_data"] = {name: _identity(data) for name, data in cfg.eval_datasets.items()}
        settings["files"] = file_facts([cfg.model_name, *(text.path for text in texts)])
        super().__init__(cfg, settings)
        chosen: dict[str, Any] = {"n_cross_entropy_tokens": cfg.n_cross_entropy_tokens}
        if cfg.n_probing_tokens:
            chosen |= {"n_probing_tokens": cfg.n_probing_tokens, "probing_pooling": cfg.probing_pooling}
        self.chosen_fingerprint = fingerprint(chosen)
        self._raw_probes: dict[tuple[str, str], ProbeScores] = {}
        recorded = (
            "model_name", "model_class_name", "hook_name", "context_size", "prepend_bos", "exclude_special_tokens",
            "dataset_path", "dataset_split", "dataset_config",
        )  # fmt: skip
        self.metadata: dict[str, Any] = {key: getattr(cfg, key) for key in recorded}
        self.capture()
        if cfg.max_norm_over_median is not None:
            # Later measurements of a saved SAE then leave out what its training left out.
            self.metadata["max_norm"] = self._max_norm
        if "model" in self.__dict__:  # its memory is free for the training; it is loaded again when it is needed
            del self.model
            gc.collect()

    def evaluate_chosen(self, sae: SAE[Any]) -> dict[str, Metrics]:
        """Cross-entropy with the SAE spliced in, and k-sparse probes, on every set of text."""
        names = self.cfg.evaluation_sets
        found: dict[str, Metrics] = {name: {} for name in names}
        if self.cfg.n_cross_entropy_tokens:
            found = {name: self._cross_entropy(sae, name) for name in names}
        if self.cfg.n_probing_tokens:
            passages = cache(partial(self._passages, sae))
            for place, name in enumerate(names):
                found[name] |= self._probes(name, passage_tasks(name, names[place + 1 :], passages))
        return found

    @property
    def width(self) -> int:
        """Width of the activations at the hook, heads side by side."""
        return hook_width(self.model, self._hook_name)

    @property
    def batch(self) -> tuple[int, int]:
        """Contexts that the model sees at once, and tokens of each."""
        return self.cfg.store_batch_size_prompts, self.cfg.context_size

    def stream(self, name: str) -> Batches:
        """The contexts of a set, without special tokens and tokens of outlying norm."""
        return lambda *where: TextActivations(self._store(name), self._max_norm).batches(*where)

    @cached_property
    def model(self) -> Any:
        """The language model, with hooks only where they are needed."""
        assert self.cfg.model_name is not None and self.cfg.hook_name is not None
        return load_language_model(self.cfg.model_class_name, self.cfg.model_name, self.cfg.hook_name, self.cfg.device)

    @property
    def _hook_name(self) -> str:
        assert self.cfg.hook_name is not None
        return resolve_hook_name(self.model, self.cfg.hook_name)

    @property
    def _special_tokens(self) -> list[int]:
        # Asked first, so that the model is not loaded for nothing.
        return excluded_token_ids(True, self.model) if self.cfg.exclude_special_tokens else []

    @cached_property
    def _max_norm(self) -> float:
        """Largest norm that is kept, from the median over the first batch of training text."""
        if self.cfg.max_norm_over_median is None:
            return math.inf
        path = self.folder / "norms.json"
        if not path.exists():
            norms = self._store(TRAIN).get_filtered_llm_batch().norm(dim=-1)
            median = norms.median().item()
            save_json(sealed(asdict(_Norms(median, self.cfg.max_norm_over_median * median))), path)
        return load_json(_Norms, path).max

    def _store(self, name: str) -> ActivationsStore:
        require_positions(self.model, self.cfg.context_size)
        special = torch.tensor(self._special_tokens, dtype=torch.long)
        return ActivationsStore(
            model=self.model,
            dataset=self._text(name),
            streaming=False,
            hook_name=self._hook_name,
            hook_head_index=None,
            context_size=self.cfg.context_size,
            d_in=self.width,
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
        """The documents of a set: a part of the training text by their hash, or all of a text of its own."""
        cfg = self.cfg
        data = cfg.eval_datasets.get(name)
        if data is not None and not data.held_out:
            return load_text(data)
        part = name if name in (TRAIN, VALIDATION) else "held_out"
        text = load_text(cfg.training_dataset)
        return part_of_dataset(text, part, cfg.held_out_fraction, str(cfg.dataset_path))

    def _at_hook(self, sae: SAE[Any]) -> TextAtHook:
        return TextAtHook(sae, self.model, self._hook_name, self._special_tokens, self._max_norm)

    def _cross_entropy(self, sae: SAE[Any], name: str) -> Metrics:
        cfg, at_hook = self.cfg, self._at_hook(sae)
        tokens = self._tokens(name, "n_cross_entropy_tokens")
        batches = tokens.to(cfg.device).split(cfg.store_batch_size_prompts)
        path = self.folder / name / f"tokens-{cfg.n_cross_entropy_tokens}.baseline.json"
        if not path.exists():
            save_json(sealed(asdict(evaluate_cross_entropy_baseline(at_hook, batches))), path)
        return asdict(evaluate_cross_entropy(at_hook, batches, load_json(CrossEntropyBaseline, path)))

    def _passages(self, sae: SAE[Any], name: str) -> Passages:
        cfg, tokens = self.cfg, self._tokens(name, "n_probing_tokens")
        at_hook = self._at_hook(sae)
        return read_passages(at_hook, tokens, cfg.probing_pooling, cfg.store_batch_size_prompts, progress=False)

    def _probes(self, name: str, tasks: Iterable[Task]) -> Metrics:
        """AUC of the probes, mean over the tasks that have enough texts; nothing if none has."""
        found = [
            probe(task.name, task.texts, task.labels, raw=self._raw_probes.get((name, task.name))) for task in tasks
        ]
        measured = [each for each in found if each is not None]
        self._raw_probes |= {(name, each.task): each.raw for each in measured}
        if not measured:
            logger.warning("The text of %s is not probed: it has too few texts of each class.", name)
            return {}
        auc = {f"probe_auc_k{k}": fmean(each.sparse[i].auc for each in measured) for i, k in enumerate(KS)}
        return {**auc, "probe_auc_without_sae": fmean(each.raw.auc for each in measured), "probe_tasks": len(measured)}

    def _tokens(self, name: str, setting: str) -> torch.Tensor:
        """The first contexts of a set, as many tokens as a setting says or a few more, (n, context), kept on disk."""
        n_tokens = getattr(self.cfg, setting)
        path = self.folder / name / f"tokens-{n_tokens}.safetensors"
        if not path.exists():
            store, batches = self._store(name), []
            while sum(batch.numel() for batch in batches) < n_tokens:
                try:
                    batches.append(store.get_batch_tokens(raise_at_epoch_end=True).cpu())
                except StopIteration:
                    raise ValueError(
                        f"the text of {name} must have at least the {n_tokens} tokens of {setting}, got "
                        f"{sum(batch.numel() for batch in batches)}"
                    ) from None
            save_tensors({"tokens": torch.cat(batches)}, path)
        with reading(path):
            return read_tensors(path)[0]["tokens"]


def load_text(data: EvalDataset) -> Dataset | IterableDataset:
    """The documents of a text file, or of a data set of the hub, which is streamed; without those that are empty.

    Raises:
        ValueError: `load_text_dataset` refuses it.
    """
    assert data.path is not None
    return load_text_dataset(
        data.path,
        split=data.split,
        config=data.config,
        text_column=data.text_column,
        streaming=not Path(data.path).exists(),
    )


def _identity(data: EvalDataset) -> dict[str, Any]:
    return {key: value for key, value in asdict(data).items() if key != "config" or value is not None}
