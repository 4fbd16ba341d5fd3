"""One run of a comparison: an SAE trained by SAELens's own trainer, saved for inference and measured."""

import logging
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import SAEMetadata, TrainingSAE, TrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_sparsemax.compare.arm import Arm
from sae_lens_sparsemax.compare.config import CompareConfig
from sae_lens_sparsemax.compare.identity import fingerprint, resolved_sae
from sae_lens_sparsemax.compare.sources import VALIDATION, ComparedActivations, Metrics
from sae_lens_sparsemax.data.order import seed_of
from sae_lens_sparsemax.files import atomic_directory, load_json, save_json, verify_checksums, write_checksums
from sae_lens_sparsemax.models.saved_saes import load_sae
from sae_lens_sparsemax.sae.divergence import Diverged
from sae_lens_sparsemax.training.trainer import adapt

# A prime, so that the streams of an SAE's initialisation meet no other.
INITIALISATION_STREAM = 15_485_863
_RESULT = "result.json"
# What tables of all runs show.
_ALWAYS_MEASURED = ("explained_variance", "l0", "dead_fraction")
# They say where a training runs and what is kept of it, not what comes out.
_NOT_IN_RESULTS = {"device", "logger", "n_checkpoints", "checkpoint_path", "save_final_checkpoint"}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSettings:
    """Which of the runs of a comparison this is."""

    arm: Arm
    """What is trained."""
    sparsity: float
    """Value of the arm's sparsity field."""
    lr: float
    """Learning rate."""
    seed: int
    """What the initialisation and the order of the activations are drawn from, each in a stream of its own."""

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        sparsity = f"{self.arm.sparsity_field}-{_exact(self.sparsity)}"
        return f"{self.arm.name}_{sparsity}_lr-{_exact(self.lr)}_seed-{self.seed}"

    def sae_config(self, source: ComparedActivations) -> TrainingSAEConfig:
        """The config of the SAE that is trained, every default in it."""
        common: dict[str, Any] = {"d_in": source.d_in, "d_sae": source.cfg.d_sae, "device": source.cfg.device}
        return self.arm.sae_config(self.sparsity, **common, metadata=SAEMetadata(**source.metadata))

    def starts_at_mean(self, cfg: CompareConfig) -> bool:
        """Whether the decoder bias starts at the mean of the training activations, whatever the architecture does."""
        return cfg.b_dec_init == "mean" and "b_dec_init" not in self.arm.sae

    def fingerprint(self, source: ComparedActivations) -> str:
        """Hash of everything that a result depends on, so that a stale result is not taken for this one."""
        trainer = asdict(source.cfg.trainer_config(self.arm, self.lr))
        return fingerprint(
            {
                "architecture": self.arm.architecture,
                "sae": resolved_sae(self.sae_config(source)),
                "trainer": {key: value for key, value in trainer.items() if key not in _NOT_IN_RESULTS},
                "starts_at_mean": self.starts_at_mean(source.cfg),
                "activations": source.fingerprint,
                "seed": self.seed,
                "initialisation": INITIALISATION_STREAM,
            }
        )


def _exact(number: float) -> str:
    """A number as short as it is told from every other."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


@dataclass
class RunResult:
    """What is known of a finished run."""

    arm: str
    """Name of the arm."""
    architecture: str
    """SAELens architecture that was trained."""
    sparsity_field: str
    """Field that sets the sparsity."""
    sparsity: float
    """Its value."""
    lr: float
    """Learning rate."""
    seed: int
    """Seed."""
    fingerprint: str
    """Hash of everything the result depends on."""
    training_seconds: float
    """Wall time of the training steps, on the machine they ran on."""
    training_l0: float
    """Mean L0 over the trainer's last sparsity window."""
    training_dead_fraction: float
    """Fraction of the concepts not active in the last `dead_feature_window` steps, or the run if shorter."""
    metrics: dict[str, Metrics] = field(default_factory=dict)
    """Measures by evaluation set."""
    chosen_fingerprint: str | None = None
    """Hash of the settings of the slow measures; none if this run was not chosen for them."""
    diverged: str | None = None
    """Why there is no SAE, if the training came to nothing; its measures are NaN then."""


def all_runs(cfg: CompareConfig) -> list[RunSettings]:
    """Every run of a comparison; seeds vary slowest, so that a first complete picture comes early."""
    return [
        RunSettings(arm, sparsity, lr, seed)
        for seed in cfg.seeds
        for arm in cfg.arms
        for sparsity in arm.sparsities
        for lr in arm.lrs
    ]


def finished_run(run: RunSettings, source: ComparedActivations) -> RunResult | None:
    """The saved result of a run, if there is one with the same settings."""
    folder = run_folder(source.cfg, run)
    if not (folder / _RESULT).exists():
        return None
    try:
        verify_checksums(folder)
        result = load_json(RunResult, folder / _RESULT)
    except ValueError as error:  # damaged, or written by a version that kept other things
        logger.warning("Training again: %s", error)
        return None
    return result if result.fingerprint == run.fingerprint(source) else None


def train_and_evaluate(run: RunSettings, source: ComparedActivations) -> RunResult:
    """Train one SAE, save its inference form and its result in the run's folder, and return the result.

    A training that diverges is a result too, the worst there is: one rate that is too high ends no comparison.
    """
    cfg, sae = source.cfg, _untrained_sae(run, source)
    trainer_cfg = cfg.trainer_config(run.arm, run.lr)
    trainer = adapt(SAETrainer(trainer_cfg, sae, source.batches(run.seed)))
    _estimate_normalisation(trainer, source.batches(run.seed))
    if run.starts_at_mean(cfg):
        sae.b_dec.data.copy_(trainer.activation_scaler.scale(source.mean().to(sae.b_dec)))
    started, diverged = time.perf_counter(), None
    try:
        trainer.fit()
    except Diverged as error:
        diverged = str(error)
        logger.warning("The run %s diverged and counts as the worst: %s", run.name, error)
    except ValueError as error:
        raise ValueError(f"the run {run.name} failed: {error}") from error
    seconds = time.perf_counter() - started
    window = min(trainer_cfg.dead_feature_window, cfg.steps_of(run.arm))
    with atomic_directory(run_folder(cfg, run)) as folder:
        if not diverged:
            sae.save_inference_model(folder)
        result = RunResult(
            arm=run.arm.name,
            architecture=run.arm.architecture,
            sparsity_field=run.arm.sparsity_field,
            sparsity=run.sparsity,
            lr=run.lr,
            seed=run.seed,
            fingerprint=run.fingerprint(source),
            training_seconds=seconds,
            training_l0=trainer.feature_sparsity.sum().item(),
            training_dead_fraction=(trainer.n_forward_passes_since_fired >= window).double().mean().item(),
            metrics=_nothing_measured(cfg) if diverged else source.evaluate(load_sae(str(folder), cfg.device)),
            diverged=diverged,
        )
        save_json(result, folder / _RESULT)
        write_checksums(folder)
    return result


def evaluate_chosen(run: RunSettings, source: ComparedActivations) -> RunResult:
    """Add the slow measures to a finished run, unless it has them already or no SAE, and return its result."""
    kept = run_folder(source.cfg, run)
    result = load_json(RunResult, kept / _RESULT)
    if not result.diverged and result.chosen_fingerprint != source.chosen_fingerprint:
        for name, metrics in source.evaluate_chosen(load_run(source.cfg, run)).items():
            # What earlier settings measured besides is none of what these ask for.
            always = {key: result.metrics[name][key] for key in result.metrics[VALIDATION]}
            result.metrics[name] = always | metrics
        result.chosen_fingerprint = source.chosen_fingerprint
        with atomic_directory(kept) as folder:
            shutil.copytree(kept, folder, dirs_exist_ok=True)  # with what `evaluate` and `explore` wrote there
            save_json(result, folder / _RESULT)
            write_checksums(folder, again=True)
    return result


def _nothing_measured(cfg: CompareConfig) -> dict[str, Metrics]:
    return {name: dict.fromkeys(_ALWAYS_MEASURED, math.nan) for name in (VALIDATION, *cfg.evaluation_sets)}


def run_folder(cfg: CompareConfig, run: RunSettings) -> Path:
    """Folder of a run's SAE and result."""
    return Path(cfg.output_path) / "runs" / run.name


def load_run(cfg: CompareConfig, run: RunSettings) -> SAE[Any]:
    """The inference SAE of a finished run."""
    return load_sae(str(run_folder(cfg, run)), cfg.device)


def _untrained_sae(run: RunSettings, source: ComparedActivations) -> TrainingSAE[Any]:
    # Not the seed itself, from which a synthetic model may draw its features: an arm could start on them.
    torch.manual_seed(seed_of((run.seed + 1) * INITIALISATION_STREAM))
    sae = get_sae_training_class(run.arm.architecture)[0](run.sae_config(source))
    source.check_start(sae, run.name)
    return sae


def _estimate_normalisation(trainer: SAETrainer[Any, Any], batches: Iterator[torch.Tensor]) -> None:
    """Estimate what would else cost the trainer batches of its own, so that all arms train on the same."""
    sae_cfg, n_batches = trainer.sae.cfg, trainer.cfg.n_batches_for_norm_estimate
    if sae_cfg.normalize_activations == "expected_average_only_in":
        trainer.activation_scaler.estimate_scaling_factor(sae_cfg.d_in, islice(batches, n_batches), n_batches)
    elif sae_cfg.normalize_activations == "covariance_whitening":
        trainer.activation_scaler.estimate_whitening(sae_cfg.d_in, islice(batches, n_batches), n_batches)
