"""SAELens's synthetic models, whose true features are known, as the source of a comparison."""

import copy
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.synthetic import (
    SyntheticModel,
    SyntheticModelConfig,
    eval_sae_on_synthetic_data,
    mean_correlation_coefficient,
)
from sae_lens.util import temporary_seed
from tqdm.auto import tqdm

from sae_lens_sparsemax.compare.config import SYNTHETIC_SET, CompareConfig
from sae_lens_sparsemax.compare.identity import fingerprint
from sae_lens_sparsemax.compare.sources import VALIDATION, Metrics
from sae_lens_sparsemax.data.order import seed_of
from sae_lens_sparsemax.evaluation.reconstruction import evaluate_reconstruction
from sae_lens_sparsemax.files import file_facts, reading
from sae_lens_sparsemax.settings.checking import build

# Random streams that must not share samples with each other: training seeds count up from 0.
_STREAM_STRIDE = 1_000_003
_MEAN_STREAM, _VALIDATION_STREAM, _TEST_STREAM = -1, -2, -3
_BATCHES_FOR_MEAN = 100
# Of a stream that is kept: samples of a hierarchy of features can cost four times the training step they are for.
_KEPT_BYTES = 2 * 2**30


class SyntheticSource:
    """`ComparedActivations` drawn from one synthetic model; batch i of a seed never changes."""

    def __init__(self, cfg: CompareConfig) -> None:
        self.cfg = cfg
        self.model = _load(cfg)
        self.d_in = self.model.cfg.hidden_dim
        settings: dict[str, Any] = {
            "synthetic_model": self.model.cfg.to_dict(),
            "n": [cfg.n_validation_tokens, cfg.n_evaluation_tokens],
        }
        if isinstance(cfg.synthetic_model, str):
            settings["source"] = [cfg.synthetic_model, file_facts([cfg.synthetic_model])]
        self.fingerprint = fingerprint(settings)
        self._kept_seed: int | None = None
        self._kept: list[torch.Tensor] = []
        self.chosen_fingerprint = ""
        self.metadata: dict[str, Any] = {"synthetic_model": self.model.cfg.to_dict()}

    def batches(self, seed: int) -> Iterator[torch.Tensor]:
        """Training batches: those of the longest arm, as far as 2 GiB hold them, are drawn at once and kept until
        another seed is asked for, so that no arm's training time has them in it; others are drawn as they come."""
        if self._kept_seed != seed:
            self._kept = []  # frees those of the seed before
            self._kept = self._draw(seed, max(map(self.cfg.steps_of, self.cfg.arms)) * self.cfg.batch_size)
            self._kept_seed = seed
        return self._from(seed, self._kept)

    def _draw(self, stream: int, n_samples: int) -> list[torch.Tensor]:
        """The first batches of a stream, at least `n_samples`, or as many as may be kept."""
        n_bytes = self.cfg.batch_size * self.d_in * 4
        n_batches = min(-(-n_samples // self.cfg.batch_size), _KEPT_BYTES // n_bytes)
        drawn = islice(self._from(stream, []), n_batches)
        return list(tqdm(drawn, total=n_batches, desc="Samples of the synthetic model", unit="batch", leave=False))

    def _from(self, stream: int, kept: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        """A stream without end, of which the first batches are kept."""
        yield from kept
        step = len(kept)
        while True:
            with temporary_seed(seed_of((stream + 8) * _STREAM_STRIDE + step)):
                batch = self.model.sample(self.cfg.batch_size)
            yield batch
            step += 1

    def mean(self) -> torch.Tensor:
        """Mean over 100 batches that are not trained on, shape (d_in,)."""
        return self._mean

    @cached_property
    def _mean(self) -> torch.Tensor:
        batches = islice(self._from(_MEAN_STREAM, []), _BATCHES_FOR_MEAN)
        return torch.stack([batch.mean(0) for batch in batches]).mean(0)

    @cached_property
    def _held_out(self) -> dict[int, list[torch.Tensor]]:
        cfg = self.cfg
        sizes = {_VALIDATION_STREAM: cfg.n_validation_tokens, _TEST_STREAM: cfg.n_evaluation_tokens}
        return {stream: self._draw(stream, n_samples) for stream, n_samples in sizes.items()}

    def check_start(self, sae: SAE[Any], name: str) -> None:
        """Refuse an SAE that starts on the true features, as one does that draws its first numbers from their seed.

        Raises:
            ValueError: giving its MCC with them before training, and that of random directions.
        """
        features = self.model.feature_dict.feature_vectors.detach().cpu()
        directions = torch.randn(sae.W_dec.shape, generator=torch.Generator().manual_seed(_STREAM_STRIDE))
        chance = mean_correlation_coefficient(directions, features)
        start = mean_correlation_coefficient(sae.W_dec.detach().float().cpu(), features)
        if start > (1 + chance) / 2:
            raise ValueError(
                f"the run {name} starts on the true features (MCC {start:.2f} before training, random directions have "
                f"{chance:.2f}), so its results would say nothing: choose another seed or initialisation"
            )

    def evaluate(self, sae: SAE[Any]) -> dict[str, Metrics]:
        """Reconstruction on fresh samples, and SAELens's measures against the true features."""
        return {
            VALIDATION: self._reconstruction(sae, _VALIDATION_STREAM, self.cfg.n_validation_tokens),
            SYNTHETIC_SET: self._reconstruction(sae, _TEST_STREAM, self.cfg.n_evaluation_tokens)
            | self._ground_truth(sae),
        }

    def evaluate_chosen(self, sae: SAE[Any]) -> dict[str, Metrics]:  # noqa: ARG002 (the protocol's)
        """Nothing: all measures are cheap here."""
        return {}

    def _reconstruction(self, sae: SAE[Any], stream: int, n_samples: int) -> Metrics:
        source = self._from(stream, self._held_out[stream])
        batches = islice(source, -(-n_samples // self.cfg.batch_size))
        return asdict(evaluate_reconstruction(sae, batches))

    def _ground_truth(self, sae: SAE[Any]) -> Metrics:
        with temporary_seed((_TEST_STREAM + 8) * _STREAM_STRIDE):
            result = eval_sae_on_synthetic_data(
                # It measures angles with true features of float32, and does so with what it is given.
                copy.deepcopy(sae).to(torch.float32),
                self.model.feature_dict,
                self.model.activation_generator,
                num_samples=self.cfg.n_evaluation_tokens,
                batch_size=self.cfg.batch_size,
            )
        return {
            "mcc": result.mcc,
            "f1": result.classification.f1_score,
            "precision": result.classification.precision,
            "recall": result.classification.recall,
            "uniqueness": result.uniqueness,
            "shrinkage": result.shrinkage,
            "true_l0": result.true_l0,
        }


def _load(cfg: CompareConfig) -> SyntheticModel:
    """The synthetic model of a comparison, made from its settings or loaded from the hub or a folder.

    Raises:
        ValueError: there is none of that name, it is damaged, or SAELens refuses its settings.
    """
    source = cfg.synthetic_model
    assert source is not None
    if isinstance(source, dict):
        return SyntheticModel(build(SyntheticModelConfig, {"seed": 0, **source}, "synthetic_model"), device=cfg.device)
    with reading(source):
        return SyntheticModel.load_from_source(source, device=cfg.device)
