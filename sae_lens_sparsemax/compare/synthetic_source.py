"""SAELens's synthetic models, whose true features are known, as the source of a comparison."""

from collections.abc import Iterator
from dataclasses import asdict
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

from sae_lens_sparsemax.compare.config import SYNTHETIC_SET, CompareConfig, fingerprint
from sae_lens_sparsemax.compare.sources import VALIDATION, Metrics
from sae_lens_sparsemax.evaluation.reconstruction import evaluate_reconstruction

# Random streams that must not share samples with each other: training seeds count up from 0.
_STREAM_STRIDE = 1_000_003
_MEAN_STREAM, _VALIDATION_STREAM, _TEST_STREAM = -1, -2, -3
_BATCHES_FOR_MEAN = 100


class SyntheticSource:
    """`ComparedActivations` drawn from one synthetic model; batch i of a seed never changes."""

    def __init__(self, cfg: CompareConfig) -> None:
        assert cfg.synthetic_model is not None
        # A firing distribution that is not named is SAELens's default, written out for its `from_dict`.
        settings = {"firing_probability": {"generator_name": "zipfian"}, "seed": 0, **cfg.synthetic_model}
        self.cfg = cfg
        self.model = SyntheticModel(SyntheticModelConfig.from_dict(settings), device=cfg.device)
        self.d_in = self.model.cfg.hidden_dim
        self.fingerprint = fingerprint(
            {
                "synthetic_model": self.model.cfg.to_dict(),
                "n": [cfg.n_validation_tokens, cfg.n_evaluation_tokens],
            }
        )
        self.chosen_fingerprint = ""
        self.metadata: dict[str, Any] = {"synthetic_model": self.model.cfg.to_dict()}

    def batches(self, seed: int) -> Iterator[torch.Tensor]:
        """Training batches, drawn anew at every step."""
        step = 0
        while True:
            with temporary_seed((seed + 8) * _STREAM_STRIDE + step):
                yield self.model.sample(self.cfg.batch_size)
            step += 1

    def mean(self) -> torch.Tensor:
        """Mean over 100 batches that are not trained on, shape (d_in,)."""
        batches = self.batches(_MEAN_STREAM)
        return torch.stack([next(batches).mean(0) for _ in range(_BATCHES_FOR_MEAN)]).mean(0)

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
        source = self.batches(stream)
        batches = (next(source) for _ in range(-(-n_samples // self.cfg.batch_size)))
        return asdict(evaluate_reconstruction(sae, batches, progress=False))

    def _ground_truth(self, sae: SAE[Any]) -> Metrics:
        with temporary_seed((_TEST_STREAM + 8) * _STREAM_STRIDE):
            result = eval_sae_on_synthetic_data(
                sae,
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
