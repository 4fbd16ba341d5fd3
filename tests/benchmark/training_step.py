"""Where the time of a training step on a language model goes: the real runner, with clocks in it.

But: on a GPU every part is waited for, so no part's launches run ahead of the work of another, as they may in a run.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections import defaultdict
from typing import Any

import torch
from typing_extensions import override

from sae_lens_sparsemax.models.encoding import sparse_acts
from sae_lens_sparsemax.training.config import TextRunnerConfig
from sae_lens_sparsemax.training.text_runner import TextTrainingRunner
from tests.benchmark.forms import config_of, select
from tests.benchmark.measure import peak_bytes, wait
from tests.benchmark.naive import NaiveTrainingSAE

SHARES = ("model", "forward", "backward", "optimizer", "other")
WARM_UP = 3
"""Steps that do not count."""


class _TimedRunner(TextTrainingRunner):
    """Trains without saving or logging, and takes the time of the parts of each step and its L0."""

    support: float | None = None
    """Concepts per token to select in every step; None leaves them as they come."""
    seconds: dict[str, list[float]]
    l0: list[float]

    @override
    def run_trainer_with_interruption_handling(self, trainer: Any) -> Any:
        self.seconds, self.l0 = defaultdict(list), []
        provider, sae, optimizer = trainer.data_provider, trainer.sae, trainer.optimizer
        support, device = self.support, str(self.cfg.device)

        class Timed:
            def __iter__(self) -> Timed:
                return self

            def __next__(self) -> torch.Tensor:
                return run("model", next, provider)

        def now() -> float:
            wait(device)
            return time.perf_counter()

        def run(name: str, function: Any, *arguments: Any, **named: Any) -> Any:
            start = now()
            result = function(*arguments, **named)
            self.seconds[name].append(now() - start)
            return result

        forward, backward, step = sae.training_forward_pass, torch.Tensor.backward, trainer.step
        updates: list[float] = []

        def timed_step(batch: torch.Tensor) -> Any:
            if support is not None:
                select(sae, trainer.activation_scaler(batch.to(sae.device)), support)
            output = run("step", step, batch)
            self.l0.append(sparse_acts(output.feature_acts).l0().double().mean().item())
            return output

        trainer.data_provider = Timed()
        sae.training_forward_pass = lambda *a, **k: run("forward", forward, *a, **k)
        # By hooks, since schedulers of the learning rate complain of another step() than the one they know.
        optimizer.register_step_pre_hook(lambda *_: updates.append(now()))
        optimizer.register_step_post_hook(lambda *_: self.seconds["optimizer"].append(now() - updates.pop()))
        trainer.step = timed_step
        torch.Tensor.backward = lambda *a, **k: run("backward", backward, *a, **k)  # type: ignore[method-assign]
        try:
            return super().run_trainer_with_interruption_handling(trainer)
        finally:
            torch.Tensor.backward = backward  # type: ignore[method-assign]


def measure(cfg: TextRunnerConfig[Any], form: str, steps: int) -> dict[str, Any]:
    """Run `steps` steps of a configuration with one form of its SAE: median seconds, shares, peak memory and mean L0.

    A target L0 is held from the first step on, so that forms are compared at one L0.
    """
    support = cfg.sae.target_l0
    cfg = copy.copy(cfg)
    cfg.sae = config_of(form, cfg.sae)
    cfg.training_tokens = steps * cfg.train_batch_size_tokens
    cfg.output_path = cfg.checkpoint_path = None
    cfg.n_checkpoints = 0
    cfg.lr_warm_up_steps = cfg.lr_decay_steps = 0
    runner = _TimedRunner(cfg)
    runner.support = support
    if form == "naive":
        runner.sae = NaiveTrainingSAE(runner.sae.cfg).to(cfg.device)
    runner.run()
    parts = {name: values[WARM_UP:] for name, values in runner.seconds.items()}
    total = {name: sum(values) for name, values in parts.items()}
    # The first reads fill the buffer, so the model's time is spread over all steps, the first ones included.
    total["model"] = sum(runner.seconds["model"]) * len(parts["step"]) / steps
    total["other"] = total["step"] - total["forward"] - total["backward"] - total["optimizer"]
    whole = total["model"] + total["step"]
    return {
        "step_seconds": statistics.median(parts["step"]),
        "tokens_per_second": len(parts["step"]) * cfg.train_batch_size_tokens / whole,
        "peak_gb": peak_bytes(str(cfg.device)) / 1e9,
        "l0": statistics.mean(runner.l0[WARM_UP:]),
        "shares": {name: total[name] / whole for name in SHARES},
    }
