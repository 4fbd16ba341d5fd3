"""The trainer of a run over several processes: what SAELens's counts on one rank, made that of all.

Every rank runs the same loop on tokens of its own, and whatever is decided is decided alike on all of them, in the same
step: they all find out what is logged, saved or evaluated, and the first one writes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sae_lens.saes.sae import TrainingSAE, TrainStepOutput
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.sae_trainer import SAETrainer
from torch.distributed.tensor import DTensor
from typing_extensions import override

from sae_lens_sparsemax.training.log import EvaluationLog, TrainingLog
from sae_lens_sparsemax.training.ranks import Ranks
from sae_lens_sparsemax.training.ranks_batches import AgreedBatches
from sae_lens_sparsemax.training.ranks_checkpoints import save_checkpoint_of_ranks
from sae_lens_sparsemax.training.trainer import RunTrainer, adapt

_STOPPED = 130
"""The shell's status for a command ended by Ctrl-C."""


class RanksTrainer(RunTrainer):
    """``RunTrainer`` on one of several ranks, whose SAE is divided among them. Made by ``adapt_to_ranks``.

    ``n_training_samples`` counts the tokens of all ranks. Steps since a concept fired and how often it fired are those
    on this rank's share of tokens and concepts until ``reconcile``.
    """

    ranks: Ranks
    batches: AgreedBatches
    """What ``data_provider`` is."""
    _savers: dist.ProcessGroup | None
    """All ranks, for the threads that write checkpoints; None where training waits for them."""
    _saving: Future[None] | None
    """The checkpoint that is being written by a thread."""
    _l0: tuple[int, torch.Tensor]
    """What ``l0_per_token`` gave last, and after how many samples."""

    @override
    def fit(self) -> TrainingSAE[Any]:
        """Train; where a run begins, what scales its activations is estimated on the tokens of all ranks."""
        scaler, whitening = self.activation_scaler, self.sae.cfg.normalize_activations == "covariance_whitening"
        is_estimated = whitening or self.sae.cfg.normalize_activations == "expected_average_only_in"
        if is_estimated and scaler.scaling_factor is None and scaler.whitening is None:
            # SAELens's own estimate, of the batches that one process would draw; what the first rank found counts.
            estimate = scaler.estimate_whitening if whitening else scaler.estimate_scaling_factor
            batches: Any = (self._gathered(batch) for batch in self.data_provider)
            estimate(self.sae.cfg.d_in, batches, self.cfg.n_batches_for_norm_estimate)
            whitening = scaler.whitening and scaler.whitening.to(torch.device("cpu"))
            scaler.scaling_factor, scaler.whitening = self.ranks.broadcast((scaler.scaling_factor, whitening))
        try:
            sae = super().fit()
            self._finish_saving()
            return sae
        finally:
            if self._saving is not None:  # whatever has failed since, the other ranks write theirs
                wait([self._saving])

    @override
    def step(self, batch: torch.Tensor) -> TrainStepOutput:
        self.n_training_samples += (self.ranks.size - 1) * len(batch)  # SAELens counts this rank's own
        return super().step(batch)

    @torch.no_grad()
    def reconcile(self) -> None:
        """Make the statistics those of all ranks. How often each concept fired is then kept by the first rank alone,
        so that the next sum over ranks does not count it again."""
        dist.all_reduce(self.n_forward_passes_since_fired, op=dist.ReduceOp.MIN)
        dist.all_reduce(self.act_freq_scores, op=dist.ReduceOp.SUM)
        if not self.ranks.is_first:
            self.act_freq_scores.zero_()

    @override
    def _weights(self) -> list[torch.Tensor]:
        local = [p.to_local() if isinstance(p, DTensor) else p for p in self.sae.parameters()]
        return [weights for weights in local if weights.numel()]

    @override
    def _stop_if_diverged(self) -> None:
        found = [torch.empty_like(self._diverged) for _ in range(self.ranks.size)]
        dist.all_gather(found, self._diverged)
        diverged = [values for values in torch.stack(found).cpu() if values[0]]
        if diverged:
            first = min(diverged, key=lambda values: float(values[0]))
            with self.ranks.together():
                self._refuse(first)

    @override
    def l0_per_token(self, output: TrainStepOutput) -> torch.Tensor:
        """(N,) of the tokens of all ranks on the first one, of its own on another; of the last step."""
        if self._l0[0] != self.n_training_samples:  # asked for twice where it is logged
            counts = super().l0_per_token(output)  # of the group's tokens, on this rank's concepts
            dist.all_reduce(counts, group=self.ranks.mesh.get_group("concepts"))
            n, place = len(output.sae_in), self.ranks.mesh.get_local_rank("concepts")
            self._l0 = self.n_training_samples, self._gathered(counts[place * n : (place + 1) * n])
        return self._l0[1]

    @override
    def build_train_step_log_dict(self, output: TrainStepOutput, n_training_samples: int) -> dict[str, Any]:
        self.reconcile()
        sae_in, sae_out = self._gathered(output.sae_in), self._gathered(output.sae_out)
        whole = dataclasses.replace(output, sae_in=sae_in, sae_out=sae_out)
        values = super().build_train_step_log_dict(whole, n_training_samples)
        return values | {"metrics/l0": self.l0_per_token(output).float().mean().item()}

    def _gathered(self, own: torch.Tensor) -> torch.Tensor:
        """(P·n, ...) of all ranks, in their order, on the first one; (n, ...) as it was on another."""
        own = own.detach().contiguous()
        parts = [torch.empty_like(own) for _ in range(self.ranks.size)] if self.ranks.is_first else None
        dist.gather(own, parts)
        return own if parts is None else torch.cat(parts)

    @override
    def _build_sparsity_log_dict(self) -> dict[str, Any]:
        self.reconcile()
        return super()._build_sparsity_log_dict()

    @override
    def set_final_sae_metadata(self) -> None:
        self.reconcile()
        super().set_final_sae_metadata()
        metadata = self.sae.cfg.metadata
        metadata.l0, metadata.num_dead_features = self.ranks.broadcast((metadata.l0, metadata.num_dead_features))

    @override
    def sae_to_evaluate(self) -> TrainingSAE[Any]:
        divided: Any = self.sae
        return divided.whole()

    @override
    def _run_and_log_evals(self) -> None:
        steps = self.cfg.logger.wandb_log_frequency * self.cfg.logger.eval_every_n_wandb_logs
        if (self.n_training_steps + 1) % steps == 0:
            divided, self.sae = self.sae, self.sae_to_evaluate()
            try:
                super()._run_and_log_evals()
            finally:
                self.sae = divided

    @override
    def save_checkpoint(
        self,
        checkpoint_name: str,
        base_path: Path | str | None = None,
        wandb_aliases: list[str] | None = None,
    ) -> None:
        """Save what all ranks have, into one folder; wandb is given no copy. One that is being written comes first."""
        del wandb_aliases
        self._stop_if_diverged()
        base = base_path if base_path is not None else self.cfg.checkpoint_path
        if base is not None:
            self._finish_saving()
            self.reconcile()
            self._saving = save_checkpoint_of_ranks(self, Path(base) / checkpoint_name, self.ranks, self._savers)
            if self._is_to_stop():
                self._finish_saving()

    def _finish_saving(self) -> None:
        """Wait for the checkpoint that is being written, if there is one; what went wrong with it is raised here."""
        if (saving := self._saving) is not None:
            self._saving = None
            with self.ranks.together():
                saving.result()

    @override
    def _is_to_stop(self) -> bool:
        return self.batches.is_to_stop

    @override
    def _may_be_cut_short(self) -> bool:
        # A rank that leaves alone takes all with it; and one Ctrl-C comes twice: from the terminal, and from torchrun.
        return False

    @override
    def maybe_reset_sparsity(self) -> dict[str, Any]:
        try:
            return super().maybe_reset_sparsity()
        except InterruptedException as stopped:
            if self.ranks.is_first:
                raise
            raise SystemExit(_STOPPED) from stopped  # the first one says so


def adapt_to_ranks(
    trainer: SAETrainer[Any, Any],
    ranks: Ranks,
    *,
    log: TrainingLog | None = None,
    evaluation: EvaluationLog | None = None,
    more_to_log: Callable[[], dict[str, Any]] = dict,
    resumed: bool = False,
    async_checkpoints: bool = False,
) -> RanksTrainer:
    """Turn the trainer of one rank into a ``RanksTrainer``; see ``adapt``. All ranks do so with the same arguments.

    Args:
        trainer: SAELens's, of an SAE that is divided among the ranks, and of this rank's batches.
        ranks: all of them.
        log, evaluation: write on the first rank alone.
        more_to_log: gives this rank's counts, of which the sums are logged.
        resumed: a checkpoint was loaded.
        async_checkpoints: training goes on while a checkpoint is written.
    """

    def sums() -> dict[str, Any]:
        counts = more_to_log()
        if not counts:
            return counts
        total = torch.tensor(list(counts.values()))
        dist.all_reduce(total)
        return dict(zip(counts, total.tolist(), strict=True))

    for record in (log, evaluation):
        if record is not None:
            record.is_written = ranks.is_first
    adapted = adapt(trainer, log=log, evaluation=evaluation, more_to_log=sums, resumed=resumed)
    adapted.__class__ = RanksTrainer
    assert isinstance(adapted, RanksTrainer)
    adapted.ranks, adapted._l0 = ranks, (-1, torch.empty(0))
    savers: Any = dist.new_group(backend="gloo") if async_checkpoints else None
    adapted._saving, adapted._savers = None, savers
    adapted.data_provider = adapted.batches = AgreedBatches(trainer.data_provider, adapted._stop_asked_for)
    return adapted
