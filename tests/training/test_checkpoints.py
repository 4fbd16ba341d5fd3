"""A run goes on only from a whole checkpoint of its own, and replaces a finished SAE only when told to."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from sae_lens.config import LoggingConfig
from sae_lens.saes.topk_sae import TopKTrainingSAEConfig
from sae_lens.synthetic import SyntheticModelConfig

from sae_lens_sparsemax.training.checkpoints import (
    CHECKSUMS_FILENAME,
    list_checkpoints,
    newest_checkpoint,
    output_of_run,
)
from sae_lens_sparsemax.training.config import SyntheticRunnerConfig
from sae_lens_sparsemax.training.synthetic_runner import SyntheticTrainingRunner

pytestmark = pytest.mark.usefixtures("without_pictures")

SAE_FIELDS = {"d_in": 0, "d_sae": 16, "k": 2}


def config(folder: Path, sae=SAE_FIELDS, **changes):
    settings = {
        "synthetic_model": SyntheticModelConfig(num_features=16, hidden_dim=8, seed=1),
        "training_samples": 640,
        "batch_size": 32,
        "n_checkpoints": 1,
        "eval_samples": 0,
        "eval_frequency": 0,
        "output_path": str(folder),
        "checkpoint_path": str(folder / "checkpoints"),
        "logger": LoggingConfig(log_to_wandb=False),
    }
    return SyntheticRunnerConfig(sae=TopKTrainingSAEConfig(**sae), **(settings | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    SyntheticTrainingRunner(config(folder)).run()
    return folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def resume(folder: Path, **changes) -> SyntheticTrainingRunner:
    checkpoint = str(newest_checkpoint(folder / "checkpoints"))
    return SyntheticTrainingRunner(config(folder, resume_from_checkpoint=checkpoint, **changes))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 1e-2}, "lr must be 0.0003, got 0.01"),
        ({"sae": SAE_FIELDS | {"k": 3}}, "sae.k must be 2, got 3"),
        ({"adam_beta1": 0.5}, "adam_beta1 must be 0.9, got 0.5"),
        ({"batch_size": 64}, "batch_size must be 32, got 64"),
        ({"synthetic_model": SyntheticModelConfig(num_features=16, hidden_dim=8, seed=2)}, "synthetic_model must be"),
    ],
)
def test_other_settings_than_those_of_the_checkpoint_are_refused_by_name(folder, changes, named):
    with pytest.raises(ValueError, match=named):
        resume(folder, **changes)


def test_a_resumed_run_may_be_longer_and_log_and_save_elsewhere(folder, tmp_path):
    logger = LoggingConfig(log_to_wandb=False, wandb_log_frequency=3)
    resume(folder, training_samples=1280, logger=logger, n_checkpoints=0, output_path=str(tmp_path / "longer")).run()
    assert (tmp_path / "longer" / "cfg.json").is_file()


SCHEDULES = {
    "constant": {"lr_decay_steps": 6},
    "cosineannealing": {"lr_scheduler_name": "cosineannealing"},
    "restarts": {"lr_scheduler_name": "cosineannealingwarmrestarts", "n_restart_cycles": 2, "lr_decay_steps": 3},
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))
@pytest.mark.parametrize(("samples", "then"), [(640, 1280), (1280, 640)], ids=["longer", "shorter"])
def test_a_run_resumed_with_another_length_is_the_run_of_that_length(schedule, samples, then, tmp_path):
    settings = {"lr_warm_up_steps": 9, **schedule}
    straight = config(tmp_path / "straight", training_samples=then, **settings)
    torch.manual_seed(0)
    expected = SyntheticTrainingRunner(straight).run().sae.state_dict()
    torch.manual_seed(0)
    SyntheticTrainingRunner(config(tmp_path / "run", training_samples=samples, n_checkpoints=7, **settings)).run()
    checkpoint = list_checkpoints(tmp_path / "run" / "checkpoints")[0]
    assert int(checkpoint.name) <= 9 * 32, "until the warm-up ends, runs of all lengths have the same rates"
    changes = {"training_samples": then, "resume_from_checkpoint": str(checkpoint)}
    found = SyntheticTrainingRunner(config(tmp_path / "run", **changes, **settings)).run().sae.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_a_final_checkpoint_is_resumed_and_replaced_as_any_other(tmp_path):
    SyntheticTrainingRunner(config(tmp_path / "run", save_final_checkpoint=True)).run()
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["352", "final_640"]
    longer = config(tmp_path / "run", training_samples=1280, save_final_checkpoint=True)
    with output_of_run(longer, resume=True):
        assert Path(longer.resume_from_checkpoint).name == "final_640"
    with pytest.raises(ValueError, match="the newest after 640 tokens"):
        SyntheticTrainingRunner(config(tmp_path / "run")).run()
    SyntheticTrainingRunner(longer).run()
    anew = config(tmp_path / "run", n_checkpoints=0)
    SyntheticTrainingRunner(anew).run(overwrite=True)
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []


@pytest.mark.parametrize("normalisation", ["expected_average_only_in", "covariance_whitening"])
def test_a_finished_sae_into_which_its_scaling_is_folded_is_trained_no_further(normalisation, tmp_path):
    changes = {
        "sae": SAE_FIELDS | {"normalize_activations": normalisation},
        "n_batches_for_norm_estimate": 4,
        "save_final_checkpoint": True,
        "n_checkpoints": 19,
    }
    SyntheticTrainingRunner(config(tmp_path, **changes)).run()
    *_, final, last = list_checkpoints(tmp_path / "checkpoints")
    assert (final.name, last.name) == ("final_640", "640")
    longer = changes | {"training_samples": 1280}
    with pytest.raises(ValueError, match=rf"from before the end of its run, .* \({normalisation}\) .* '.*final_640'"):
        SyntheticTrainingRunner(config(tmp_path, **longer, resume_from_checkpoint=str(final)))
    SyntheticTrainingRunner(config(tmp_path, **longer, resume_from_checkpoint=str(last))).run()


def test_a_run_does_not_end_before_the_checkpoint_that_it_goes_on_from(folder):
    with pytest.raises(ValueError, match=r"training_samples must be at least the 352 of the checkpoint .*, got 320"):
        resume(folder, training_samples=320)
    for samples in (321, 352):  # of which the last step ends there
        resume(folder, training_samples=samples).run()


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["trainer_state.pt", "sae_weights.safetensors", "sparsity.safetensors", "cfg.json"])
def test_a_changed_file_is_refused_by_name(folder, name):
    _flip(newest_checkpoint(folder / "checkpoints") / name)
    with pytest.raises(ValueError, match=f"is damaged: '{name}' has changed since it was written"):
        resume(folder)


def test_what_was_made_of_a_checkpoint_since_may_lie_in_it(folder):
    checkpoint = newest_checkpoint(folder / "checkpoints")
    (checkpoint / "evaluation" / "text").mkdir(parents=True)
    for name in ("evaluation.json", "labels.csv", "evaluation/text/results.json"):
        (checkpoint / name).touch()
    resume(folder).run()


def test_missing_files_are_refused_by_name(folder):
    checkpoint = newest_checkpoint(folder / "checkpoints")
    (checkpoint / "sparsity.safetensors").rename(checkpoint.parent / "elsewhere")
    with pytest.raises(ValueError, match="'sparsity.safetensors' is missing"):
        resume(folder)
    sums = json.loads((checkpoint / CHECKSUMS_FILENAME).read_text())
    sums["../elsewhere"] = sums.pop("sparsity.safetensors")
    (checkpoint / CHECKSUMS_FILENAME).write_text(json.dumps(sums))
    with pytest.raises(ValueError, match="'../elsewhere' is missing"):
        resume(folder)
    (checkpoint / "trainer_state.pt").unlink()
    with pytest.raises(ValueError, match=r"it has no trainer_state\.pt"):
        resume(folder)


def as_of_version_0_1(checkpoint: Path) -> None:
    (checkpoint / CHECKSUMS_FILENAME).unlink()
    cfg = json.loads((checkpoint / "cfg.json").read_text())
    del cfg["metadata"]["has_checksums"]
    (checkpoint / "cfg.json").write_text(json.dumps(cfg))


def test_a_checkpoint_whose_checksums_are_gone_is_none_of_an_earlier_version(folder):
    (newest_checkpoint(folder / "checkpoints") / CHECKSUMS_FILENAME).unlink()
    with pytest.raises(ValueError, match="is damaged: 'checksums.json' is missing"):
        resume(folder)


@pytest.mark.parametrize("name", ["trainer_state.pt", "sae_weights.safetensors", "cfg.json", "sparsity.safetensors"])
def test_an_unreadable_file_of_an_earlier_version_is_refused_by_name(folder, name):
    checkpoint = newest_checkpoint(folder / "checkpoints")
    as_of_version_0_1(checkpoint)
    (checkpoint / name).write_bytes((checkpoint / name).read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{name}' is damaged or cannot be read"):
        resume(folder)


def test_checkpoints_without_checksums_go_on_with_the_same_settings(folder):
    as_of_version_0_1(newest_checkpoint(folder / "checkpoints"))
    with pytest.raises(ValueError, match="lr must be"):
        resume(folder, lr=0.5)
    resume(folder).run()


def test_a_finished_sae_is_replaced_only_when_told_to(folder, tmp_path):
    with pytest.raises(ValueError, match="holds checkpoints of an earlier run"), output_of_run(config(folder)):
        pass
    (folder / "checkpoints").rename(tmp_path / "checkpoints")
    refusal = pytest.raises(ValueError, match="holds the SAE of a finished run: replace it with --overwrite")
    with refusal, output_of_run(config(folder)):
        pass
    weights = (folder / "sae_weights.safetensors").read_bytes()
    with pytest.raises(ValueError, match="holds the SAE of a finished run"):
        SyntheticTrainingRunner(config(folder, lr=1e-2)).run()
    assert (folder / "sae_weights.safetensors").read_bytes() == weights
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    elsewhere = config(other, checkpoint_path=str(tmp_path / "checkpoints"))
    refusal = pytest.raises(ValueError, match="output_path must be .*run', as in the checkpoint")
    with refusal, output_of_run(elsewhere, resume=True):
        pass
    elsewhere.resume_from_checkpoint = None
    SyntheticTrainingRunner(elsewhere).run(overwrite=True)
    assert len(list((tmp_path / "checkpoints").glob("[0-9]*"))) == 1


@pytest.mark.parametrize(
    ("given", "scaled"), [((21, 0), (19, 0)), ((1000, 1000), (9, 9)), ((15, 5), (15, 5)), ((0, 80), (0, 19))]
)
def test_a_schedule_too_long_for_the_run_is_scaled_and_said_so(folder, caplog, given, scaled):
    cfg = config(folder, lr_warm_up_steps=given[0], lr_decay_steps=given[1])
    assert (cfg.lr_warm_up_steps, cfg.lr_decay_steps) == scaled
    assert ("the run has 20 steps" in caplog.text) == (given != scaled)


def test_the_bar_moves_every_step_and_ends_at_its_end(folder, monkeypatch):
    shown = []

    class Bar:
        def __init__(self, total, initial, desc):
            self.n, self.total = initial, total
            shown.append(self.n)

        def update(self, n):
            self.n += n
            shown.append(self.n)

        def set_description(self, text):
            pass

        def close(self):
            pass

    monkeypatch.setattr("sae_lens.training.sae_trainer.tqdm", Bar)
    resume(folder, training_samples=3990).run()
    assert shown[0] == 352
    assert shown[-1] == 3990
    assert sorted(set(shown)) == [*range(352, 3990, 32), 3990]
