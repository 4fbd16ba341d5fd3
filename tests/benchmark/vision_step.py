"""Where the time of a vision training step goes, and how much memory it takes: the real runner, with clocks in it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from typing_extensions import override

from sae_lens_sparsemax.training.vision_runner import VisionSAETrainingRunner
from tests.benchmark.measure import peak_bytes
from tests.benchmark.vision_problem import VisionProblem

PARTS = {
    "vit": "vision model, forward",
    "sae_forward": "SAE, forward and loss",
    "sae_backward": "SAE, backward",
    "optimizer": "optimiser",
    "rest": "rest: shuffling, waiting for images, gradient norm, counting which concepts fired",
}


class _Clock:
    """Adds up the seconds spent in functions, by name."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def start(self, name: str) -> None:
        self.seconds[name] -= time.perf_counter()

    def stop(self, name: str) -> None:
        self.seconds[name] += time.perf_counter()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.start(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.stop(name)

        return run


class _TimedRunner(VisionSAETrainingRunner):
    """Keeps the seconds of each step in `steps`."""

    @override
    def run_trainer_with_interruption_handling(self, trainer: Any) -> Any:
        clock, self.steps = _Clock(), []
        source = self.activations_store.source
        source.activations_of = clock.timed("vit", source.activations_of)
        forward = clock.timed("sae_forward", trainer.sae.training_forward_pass)

        def forward_with_timed_backward(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            output.loss.backward = clock.timed("sae_backward", output.loss.backward)
            return output

        trainer.sae.training_forward_pass = forward_with_timed_backward
        trainer.optimizer.register_step_pre_hook(lambda *_: clock.start("optimizer"))
        trainer.optimizer.register_step_post_hook(lambda *_: clock.stop("optimizer"))
        begin_step, started = trainer.maybe_reset_sparsity, 0.0

        def begin_timed_step() -> dict[str, Any]:
            nonlocal started
            now = time.perf_counter()
            if started:
                self.steps.append({**clock.seconds, "step": now - started})
            clock.seconds.update(dict.fromkeys(PARTS, 0.0))
            started = now
            return begin_step()

        trainer.maybe_reset_sparsity = begin_timed_step
        return super().run_trainer_with_interruption_handling(trainer)


def step_cost(problem: VisionProblem, steps: int) -> dict[str, float]:
    """Mean seconds of the parts of a training step, and the process's peak memory in bytes.

    The first step, which fills the shuffle buffer, and the last, which ends with the run, do not count. The model runs
    when the buffer is refilled, half of it at a time, so count a multiple of half of `buffer_batches` steps.

    Returns:
        The keys of `PARTS`, `step`, `images` (a second) and `peak_bytes`.
    """
    cfg = problem.training_config((steps + 2) * problem.train_batch)
    runner = _TimedRunner(cfg, problem.load_model(), problem.load_images())
    runner.run()
    counted = runner.steps[1:]
    cost = {name: statistics.mean(step[name] for step in counted) for name in counted[0]}
    # Within one step the parts cannot exceed the whole; medians of each would not add up.
    cost["rest"] = cost["step"] - sum(cost[name] for name in PARTS if name != "rest")
    tokens_per_image = runner.model.cfg.n_ctx
    return {**cost, "images": problem.train_batch / tokens_per_image / cost["step"], "peak_bytes": peak_bytes()}
