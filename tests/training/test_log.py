import json
import math

import pytest
import torch
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_sparsemax import SparsemaxTrainingSAE, SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.training.log import TrainingLog, read_metrics
from sae_lens_sparsemax.training.trainer import adapt


def make_trainer(n_steps: int = 7, architecture: str = "topk") -> SAETrainer:
    torch.manual_seed(0)
    if architecture == "topk":
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=4, d_sae=8, k=2))
    else:
        sae = SparsemaxTrainingSAE(SparsemaxTrainingSAEConfig(d_in=4, d_sae=8, target_l0=2.0))
    config = SAETrainerConfig(total_training_samples=16 * n_steps, train_batch_size_samples=16, lr_end=1e-4)
    return SAETrainer(config, sae, iter(lambda: torch.randn(16, 4), None))


def steps_of(path) -> list[int]:
    return [line["step"] for line in read_metrics(path)]


def test_every_nth_step_and_the_last_are_logged_with_the_trainers_own_numbers(tmp_path):
    trainer = make_trainer()
    expected = {}
    build = trainer.build_train_step_log_dict

    def remember(output, n_training_samples):
        expected[n_training_samples] = build(output, n_training_samples)
        return expected[n_training_samples]

    trainer.build_train_step_log_dict = remember
    log = TrainingLog(tmp_path, every=3)
    adapt(trainer, log=log)
    trainer.fit()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [3, 6, 7]
    assert [line["n_training_samples"] for line in lines] == [48, 96, 112]
    for line in lines:
        assert expected[line["n_training_samples"]].items() <= line.items()
        assert line["metrics/dead_fraction"] == 0
    assert lines[0]["seconds"] <= lines[2]["seconds"]


def test_a_fresh_run_starts_a_fresh_log_and_a_resumed_one_keeps_what_it_passed(tmp_path):
    def run(position: int) -> None:
        trainer = make_trainer()
        trainer.n_training_steps, trainer.n_training_samples = position, 16 * position
        adapt(trainer, log=TrainingLog(tmp_path, every=1))
        trainer.fit()

    run(0)
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()
    run(4)
    after = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert steps_of(tmp_path / "metrics.jsonl") == [1, 2, 3, 4, 5, 6, 7]
    assert after[:4] == before[:4]
    assert json.loads(after[4])["seconds"] >= json.loads(before[3])["seconds"]
    run(0)
    assert steps_of(tmp_path / "metrics.jsonl") == [1, 2, 3, 4, 5, 6, 7]


def test_a_line_cut_short_by_a_crash_is_dropped_and_other_damage_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "n_training_samples": 16, "seconds": 1.0}\n{"step": 2, "n_tr')
    assert steps_of(path) == [1]
    trainer = make_trainer()
    trainer.n_training_steps, trainer.n_training_samples = 1, 16
    adapt(trainer, log=TrainingLog(tmp_path, every=1))
    trainer.fit()
    assert steps_of(path) == [1, 2, 3, 4, 5, 6, 7]
    path.write_text("oops\n" + path.read_text())
    with pytest.raises(ValueError, match=r"line 1 of .* must be a line of the log"):
        read_metrics(path)


def test_values_that_are_not_finite_become_null(tmp_path):
    trainer = make_trainer(1)
    metrics = {"metrics/l0": math.nan, "metrics/explained_variance": math.inf}
    trainer.build_train_step_log_dict = lambda output, n: metrics
    adapt(trainer, log=TrainingLog(tmp_path, every=1))
    trainer.fit()
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert line.keys() > metrics.keys()
    assert [line[name] for name in metrics] == [None, None]


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("architecture", [pytest.param("topk", marks=pytest.mark.slow), "sparsemax"])
def test_closing_draws_both_pictures(tmp_path, architecture):
    """For dense and for sparse activations."""
    trainer = make_trainer(architecture=architecture)
    log = TrainingLog(tmp_path, every=2)
    adapt(trainer, log=log)
    trainer.fit()
    log.close()
    for name in ("training_curves.png", "l0_histogram.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_log_that_was_never_started_draws_nothing(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "metrics/l0": 1.0}\n')
    TrainingLog(tmp_path).close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_each_sae_of_a_multi_sae_trainer_has_its_own_log(tmp_path):
    torch.manual_seed(0)
    saes = {name: TopKTrainingSAE(TopKTrainingSAEConfig(d_in=4, d_sae=8, k=k)) for name, k in (("a", 1), ("b", 3))}
    batches = iter(lambda: {"hook": torch.randn(16, 4)}, None)
    config = SAETrainerConfig(total_training_samples=64, train_batch_size_samples=16, lr_end=1e-4)
    trainer = MultiSAETrainer(config, saes, dict.fromkeys(saes, "hook"), batches)
    for name, each in trainer.trainers.items():
        adapt(each, log=TrainingLog(tmp_path / name, every=2))
    trainer.fit()
    for name, k in (("a", 1), ("b", 3)):
        lines = read_metrics(tmp_path / name / "metrics.jsonl")
        assert [line["step"] for line in lines] == [2, 4]
        # Fewer than k are active only where fewer than k scores are positive.
        assert all(k - 1 < line["metrics/l0"] <= k for line in lines)


def test_an_interval_below_one_step_is_refused(tmp_path):
    with pytest.raises(ValueError, match="every must be at least 1 step, got 0"):
        TrainingLog(tmp_path, every=0)
