import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch
from sae_lens import SAE, TopKTrainingSAEConfig
from sae_lens.config import LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file

from sae_lens_sparsemax import SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.training import trainer
from sae_lens_sparsemax.training.checkpoints import newest_checkpoint, seal_checkpoint
from sae_lens_sparsemax.training.config import TextRunnerConfig
from sae_lens_sparsemax.training.log import read_metrics
from sae_lens_sparsemax.training.text_runner import TextTrainingRunner
from tests.support.tiny_language_model import documents

D_MODEL = 16
HOOK_NAME = "blocks.0.hook_out"

BATCH = 32
STEPS = 40


@pytest.fixture(scope="module")
def text_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    # About 1,000 tokens: the runs below read it more than once, so they pass the end of the data.
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents(25)))
    return path


def make_config(model: Path, text: Path, output: Path, **changes) -> TextRunnerConfig:
    settings = {
        "sae": TopKTrainingSAEConfig(d_in=0, d_sae=32, k=4),
        "model_name": str(model),
        "model_class_name": "TransformerBridge",
        "hook_name": HOOK_NAME,
        "dataset_path": str(text),
        "context_size": 16,
        "store_batch_size_prompts": 4,
        "n_batches_in_buffer": 12,
        "train_batch_size_tokens": BATCH,
        "training_tokens": BATCH * STEPS,
        "lr": 1e-2,
        "lr_warm_up_steps": 15,
        "feature_sampling_window": 7,
        "dead_feature_window": 5,
        "output_path": str(output),
        "checkpoint_path": str(output / "checkpoints"),
        "logger": LoggingConfig(log_to_wandb=False, wandb_log_frequency=1),
        "verbose": False,
    }
    return TextRunnerConfig(**(settings | changes))


def assert_same_files(one: Path, other: Path) -> None:
    for name in ("sae_weights.safetensors", "sparsity.safetensors"):
        first, second = load_file(one / name), load_file(other / name)
        assert first.keys() == second.keys()
        for key in first:
            assert torch.equal(first[key], second[key]), f"{key} of {name} differs"


def without_times(path: Path) -> list[dict]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in read_metrics(path)]


@pytest.mark.usefixtures("pictures")
def test_a_run_leaves_a_loadable_sae_a_log_and_pictures(tiny_model_folder, text_file, tmp_path):
    TextTrainingRunner(make_config(tiny_model_folder, text_file, tmp_path)).run()

    sae = SAE.load_from_disk(tmp_path)
    assert sae.cfg.d_in == D_MODEL
    assert sae.cfg.metadata.text_column == "text"
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert (tmp_path / "training_curves.png").stat().st_size > 10_000
    assert (tmp_path / "l0_histogram.png").stat().st_size > 5_000


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(
    "sae",
    [
        SparsemaxTrainingSAEConfig(d_in=D_MODEL, d_sae=32, target_l0=4.0),
        TopKTrainingSAEConfig(d_in=D_MODEL, d_sae=32, k=4, normalize_activations="expected_average_only_in"),
    ],
    ids=["sparsemax", "topk, normalised"],
)
def test_a_resumed_run_ends_exactly_as_an_uninterrupted_one(tiny_model_folder, text_file, tmp_path, sae):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    common = {"sae": sae, "n_checkpoints": 4, "n_batches_for_norm_estimate": 9}
    TextTrainingRunner(make_config(tiny_model_folder, text_file, whole, **common)).run()
    checkpoints = sorted((whole / "checkpoints").iterdir(), key=lambda path: int(path.name))
    assert [path.name for path in checkpoints] == ["288", "544", "800", "1056"]

    for checkpoint in (checkpoints[0], checkpoints[-1]):
        torch.manual_seed(1234)
        shutil.rmtree(resumed, ignore_errors=True)
        config = make_config(tiny_model_folder, text_file, resumed, **common, resume_from_checkpoint=str(checkpoint))
        TextTrainingRunner(config).run()
        assert_same_files(whole, resumed)
        steps_before = int(checkpoint.name) // BATCH
        assert (
            without_times(resumed / "metrics.jsonl")[-(STEPS - steps_before) :]
            == (without_times(whole / "metrics.jsonl")[steps_before:])
        )


@pytest.mark.usefixtures("without_pictures")
def test_checkpoints_already_passed_are_not_written_again(tiny_model_folder, text_file, tmp_path):
    TextTrainingRunner(make_config(tiny_model_folder, text_file, tmp_path, n_checkpoints=4)).run()
    checkpoints = tmp_path / "checkpoints"
    newest = newest_checkpoint(checkpoints)
    before = sorted(path.name for path in checkpoints.iterdir())
    config = make_config(tiny_model_folder, text_file, tmp_path, n_checkpoints=4, resume_from_checkpoint=str(newest))
    TextTrainingRunner(config).run()
    assert sorted(path.name for path in checkpoints.iterdir()) == before


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("stop_signal", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_saves_a_checkpoint_that_continues_exactly_and_another_one_does_not_stop_that(
    tiny_model_folder, text_file, tmp_path, stop_signal, monkeypatch
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    TextTrainingRunner(make_config(tiny_model_folder, text_file, whole)).run()

    original_fit = SAETrainer.fit

    def fit_and_stop_at_step_14(self):
        step = self.step

        def step_with_signal(batch):
            # 14 is a multiple of the sparsity window, the step at which the running statistics restart.
            if self.n_training_steps == 13:
                os.kill(os.getpid(), stop_signal)
            return step(batch)

        self.step = step_with_signal
        return original_fit(self)

    def seal_and_be_told_again(folder):
        os.kill(os.getpid(), stop_signal)
        seal_checkpoint(folder)

    monkeypatch.setattr(SAETrainer, "fit", fit_and_stop_at_step_14)
    monkeypatch.setattr(trainer, "seal_checkpoint", seal_and_be_told_again)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(InterruptedException):
        TextTrainingRunner(make_config(tiny_model_folder, text_file, stopped)).run()
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    monkeypatch.undo()

    checkpoint = newest_checkpoint(stopped / "checkpoints")
    assert int(checkpoint.name) == 14 * BATCH
    config = make_config(tiny_model_folder, text_file, stopped, resume_from_checkpoint=str(checkpoint))
    TextTrainingRunner(config).run()
    assert_same_files(whole, stopped)
    assert without_times(stopped / "metrics.jsonl") == without_times(whole / "metrics.jsonl")


@pytest.mark.usefixtures("without_pictures")
def test_training_works_outside_the_main_thread(tiny_model_folder, text_file, tmp_path):
    config = make_config(tiny_model_folder, text_file, tmp_path)
    thread = threading.Thread(target=lambda: TextTrainingRunner(config).run())
    thread.start()
    thread.join()
    assert (tmp_path / "sae_weights.safetensors").is_file()


@pytest.mark.usefixtures("without_pictures")
def test_the_seed_decides_the_run(tiny_model_folder, text_file, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(ord(name))
        TextTrainingRunner(make_config(tiny_model_folder, text_file, tmp_path / name, seed=seed)).run()
    assert_same_files(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same_files(tmp_path / "a", tmp_path / "c")


def test_an_error_in_a_step_leaves_checkpoints_and_log_usable(tiny_model_folder, text_file, tmp_path, monkeypatch):
    original_fit = SAETrainer.fit

    def fit_with_failure(self):
        step = self.step

        def failing_step(batch):
            if self.n_training_steps == 30:
                raise ValueError("The activations at blocks.0.hook_out hold NaN in step 31.")
            return step(batch)

        self.step = failing_step
        return original_fit(self)

    monkeypatch.setattr(SAETrainer, "fit", fit_with_failure)
    config = make_config(tiny_model_folder, text_file, tmp_path, n_checkpoints=2)
    with pytest.raises(ValueError, match="hold NaN in step 31"):
        TextTrainingRunner(config).run()
    monkeypatch.undo()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 30
    assert (tmp_path / "training_curves.png").is_file()
    newest = newest_checkpoint(tmp_path / "checkpoints")
    config = make_config(tiny_model_folder, text_file, tmp_path, resume_from_checkpoint=str(newest))
    TextTrainingRunner(config).run()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == STEPS


@pytest.mark.usefixtures("without_pictures")
def test_a_save_that_fails_leaves_the_last_checkpoint_and_sae(tiny_model_folder, text_file, tmp_path, monkeypatch):
    TextTrainingRunner(make_config(tiny_model_folder, text_file, tmp_path, n_checkpoints=1)).run()
    weights = (tmp_path / "sae_weights.safetensors").read_bytes()
    checkpoint = newest_checkpoint(tmp_path / "checkpoints")
    saved = {path.name: path.read_bytes() for path in checkpoint.iterdir()}

    def no_space(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sae_lens.llm_sae_training_runner.json.dump", no_space)
    for n_checkpoints in (2, 0):
        changes = {"n_checkpoints": n_checkpoints, "resume_from_checkpoint": str(checkpoint)}
        with pytest.raises(OSError, match="No space left"):
            TextTrainingRunner(make_config(tiny_model_folder, text_file, tmp_path, **changes)).run()
        assert (tmp_path / "sae_weights.safetensors").read_bytes() == weights
        assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == saved
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [checkpoint.name]
        assert not list(tmp_path.rglob(".*new"))


@pytest.mark.usefixtures("without_pictures")
def test_a_checkpoint_that_does_not_fit_is_refused(tiny_model_folder, text_file, tmp_path):
    TextTrainingRunner(make_config(tiny_model_folder, text_file, tmp_path, n_checkpoints=1)).run()
    checkpoint = str(newest_checkpoint(tmp_path / "checkpoints"))

    def resume(**changes):
        config = make_config(
            tiny_model_folder, text_file, tmp_path / "other", resume_from_checkpoint=checkpoint, **changes
        )
        TextTrainingRunner(config).run()

    with pytest.raises(ValueError, match="sae.d_sae must be 32, got 64"):
        resume(sae=TopKTrainingSAEConfig(d_in=D_MODEL, d_sae=64, k=4))
    from sae_lens import StandardTrainingSAEConfig

    with pytest.raises(ValueError, match="of the architecture 'topk'; this run trains 'standard'"):
        resume(sae=StandardTrainingSAEConfig(d_in=D_MODEL, d_sae=32))
    with pytest.raises(ValueError, match="n_batches_in_buffer must be 12, got 20"):
        resume(n_batches_in_buffer=20)
    (Path(checkpoint) / "trainer_state.pt").unlink()
    with pytest.raises(ValueError, match=r"no complete checkpoint: it has no trainer_state\.pt"):
        resume()


@pytest.mark.usefixtures("without_pictures")
def test_a_prefetching_run_is_resumed_without_prefetching_and_says_so(tiny_model_folder, text_file, tmp_path, caplog):
    config = make_config(tiny_model_folder, text_file, tmp_path, prefetch_llm_batches=True, n_checkpoints=1)
    TextTrainingRunner(config).run()
    checkpoint = newest_checkpoint(tmp_path / "checkpoints")
    assert not (checkpoint / "data_state.safetensors").exists()
    config = make_config(tiny_model_folder, text_file, tmp_path, resume_from_checkpoint=str(checkpoint))
    TextTrainingRunner(config).run()
    assert "is not exact: it has no data_state.safetensors" in caplog.text
    config.prefetch_llm_batches = True
    with pytest.raises(ValueError, match="cannot be resumed with 'prefetch_llm_batches'"):
        TextTrainingRunner(config)


@pytest.mark.usefixtures("without_pictures")
def test_width_hook_and_data_mistakes_are_named(tiny_model_folder, text_file, tmp_path):
    def run(**changes):
        TextTrainingRunner(make_config(tiny_model_folder, text_file, tmp_path, **changes))

    with pytest.raises(ValueError, match=r"'sae\.d_in' is 8, but .*'blocks\.0\.hook_out' are 16 wide"):
        run(sae=TopKTrainingSAEConfig(d_in=8, d_sae=32, k=4))
    with pytest.raises(ValueError, match=r"'blocks\.0\.hook_outt'; did you mean 'blocks\.0\.hook_out'"):
        run(hook_name="blocks.0.hook_outt")
    short = tmp_path / "short.txt"
    short.write_text("hello")
    with pytest.raises(ValueError, match="context_size must be at most the number of tokens .* got 16"):
        run(dataset_path=str(short))


@pytest.mark.usefixtures("without_pictures")
def test_the_hosts_own_config_class_works(tiny_model_folder, text_file, tmp_path):
    config = LanguageModelSAERunnerConfig(
        sae=TopKTrainingSAEConfig(d_in=0, d_sae=32, k=4),
        model_name=str(tiny_model_folder),
        model_class_name="TransformerBridge",
        hook_name="blocks.0.hook_resid_post",
        dataset_path=str(text_file),
        context_size=16,
        train_batch_size_tokens=BATCH,
        n_batches_in_buffer=8,
        training_tokens=10 * BATCH,
        output_path=str(tmp_path),
        checkpoint_path=None,
        logger=LoggingConfig(log_to_wandb=False),
    )
    TextTrainingRunner(config).run()
    assert SAE.load_from_disk(tmp_path).cfg.metadata.hook_name == HOOK_NAME
    assert config.sae.d_in == 0
