"""SAELens's runners end to end on the embedded model: one SAE, several, synthetic data, cached activations."""

import json
from pathlib import Path

import pytest
import torch
from sae_lens import (
    SAE,
    CacheActivationsRunner,
    CacheActivationsRunnerConfig,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    TrainingSAE,
)
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig
from sae_lens.saes.topk_sae import TopKTrainingSAEConfig
from sae_lens.synthetic import SyntheticModelConfig, SyntheticSAERunner, SyntheticSAERunnerConfig

from sae_lens_sparsemax import SparsemaxSAE, SparsemaxTrainingSAE, SparsemaxTrainingSAEConfig
from tests.hosts.conftest import MODEL_PATH
from tests.support.host_training import HOOK, stream

# SAELens copies the rows of tokenised data sets with torch.tensor.
pytestmark = pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")

QUIET = {"log_to_wandb": False}


def new_sae_config(**settings) -> SparsemaxTrainingSAEConfig:
    return SparsemaxTrainingSAEConfig(**{"d_in": 128, "d_sae": 512, "target_l0": 12.0} | settings)


def runner_config(folder: Path, **settings) -> LanguageModelSAERunnerConfig:
    return LanguageModelSAERunnerConfig(
        **{
            "sae": new_sae_config(),
            "model_name": MODEL_PATH,
            "hook_name": HOOK,
            "dataset_path": "given",
            "context_size": 64,
            "training_tokens": 256 * 8,
            "train_batch_size_tokens": 256,
            "store_batch_size_prompts": 4,
            "n_batches_in_buffer": 16,
            "exclude_special_tokens": True,
            "lr": 2e-3,
            "n_batches_for_norm_estimate": 4,
            "checkpoint_path": None,
            "output_path": str(folder / "output"),
            "logger": LoggingConfig(**QUIET),
            "verbose": False,
        }
        | settings
    )


def test_a_transformers_model_trains_saves_and_loads(token_dataset, tmp_path, activations):
    cfg = runner_config(tmp_path, model_class_name="AutoModelForCausalLM", hook_name="transformer.h.2")
    sae = LanguageModelSAETrainingRunner(cfg, override_dataset=token_dataset).run()
    loaded, x = SAE.load_from_disk(tmp_path / "output"), activations[:200]
    assert type(loaded) is SparsemaxSAE
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), sae(x), rtol=1e-3, atol=1e-3)
    assert loaded.cfg.metadata.hook_name == "transformer.h.2"
    assert loaded.cfg.metadata.exclude_special_tokens is True
    assert loaded.cfg.gate_scale == sae.cfg.gate_scale != 1.0
    assert cfg.sae.gate_scale == 1.0
    assert json.loads((tmp_path / "output" / "runner_cfg.json").read_text())["sae"]["architecture"] == "sparsemax"


class Stream:
    """Activations that go on exactly where a checkpoint left them, which SAELens's own store does not."""

    def __init__(self, activations: torch.Tensor, store) -> None:
        self.activations, self.step = activations, 0
        self.exclude_special_tokens = store.exclude_special_tokens

    def __iter__(self):
        return self

    def __next__(self) -> torch.Tensor:
        self.step += 1
        return next(stream(self.activations, self.step - 1))

    def save_to_checkpoint(self, folder: Path) -> None:
        (folder / "position").write_text(str(self.step))

    def load_from_checkpoint(self, folder: str) -> None:
        self.step = int((Path(folder) / "position").read_text())


@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in"])
def test_a_resumed_run_continues_to_the_bit_on_the_same_stream(normalize, model, token_dataset, activations, tmp_path):
    def run(**settings):
        cfg = runner_config(
            tmp_path, sae=new_sae_config(normalize_activations=normalize, query_projection=True), **settings
        )
        runner = LanguageModelSAETrainingRunner(cfg, override_dataset=token_dataset, override_model=model)
        runner.activations_store = Stream(activations, runner.activations_store)
        return runner.run()

    whole = run(checkpoint_path=str(tmp_path / "checkpoints"), n_checkpoints=1)
    (checkpoint,) = (tmp_path / "checkpoints").glob("*/*")
    torch.manual_seed(77)
    resumed = run(resume_from_checkpoint=str(checkpoint))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert whole.cfg.gate_scale == resumed.cfg.gate_scale
    assert type(TrainingSAE.load_from_disk(checkpoint)) is SparsemaxTrainingSAE


def test_a_run_can_start_from_a_trained_sae(model, token_dataset, trained, tmp_path):
    trained.save_model(tmp_path / "trained")
    cfg = runner_config(tmp_path, from_pretrained_path=str(tmp_path / "trained"), training_tokens=512)
    runner = LanguageModelSAETrainingRunner(cfg, override_dataset=token_dataset, override_model=model)
    assert torch.equal(runner.sae.dictionary.concepts, trained.dictionary.concepts)
    assert runner.run().cfg.gate_scale == pytest.approx(trained.cfg.gate_scale, rel=0.2)


def test_compile_sae_trains_to_the_same_weights(model, token_dataset, tmp_path):
    saes = []
    for compiled in (False, True):
        torch.manual_seed(0)
        cfg = runner_config(tmp_path, compile_sae=compiled, training_tokens=1024)
        saes.append(LanguageModelSAETrainingRunner(cfg, override_dataset=token_dataset, override_model=model).run())
    assert torch.equal(saes[0].dictionary.concepts, saes[1].dictionary.concepts)


def test_autocast_and_prefetching_train(model, token_dataset, tmp_path):
    cfg = runner_config(tmp_path, autocast=True, prefetch_llm_batches=True, training_tokens=1024)
    sae = LanguageModelSAETrainingRunner(cfg, override_dataset=token_dataset, override_model=model).run()
    assert all(torch.isfinite(p).all() for p in sae.parameters())


def test_attention_heads_are_trained_on_joined_and_attached_parted(model, token_dataset, tokens, tmp_path):
    hook = "blocks.1.attn.hook_z"
    cfg = runner_config(tmp_path, hook_name=hook, sae=new_sae_config(reshape_activations="hook_z", target_l0=16.0))
    LanguageModelSAETrainingRunner(cfg, override_dataset=token_dataset, override_model=model).run()
    sae = SAE.load_from_disk(tmp_path / "output")
    assert sae.hook_z_reshaping_mode
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens[:4], names_filter=[hook])
        z = cache[hook]
        assert z.ndim == 4 and sae(z).shape == z.shape
        assert sae.encode(z).shape == (*z.shape[:2], 512)
        _, spliced = model.run_with_cache_with_saes(tokens[:4], saes=[sae])
        torch.testing.assert_close(spliced[f"{hook}.hook_sae_recons"].reshape(z.shape), sae(z), rtol=1e-3, atol=1e-4)
        plain = model(tokens[:4])
        torch.testing.assert_close(
            model.run_with_saes(tokens[:4], saes=[sae], use_error_term=True), plain, rtol=1e-3, atol=1e-3
        )


def multi_config(saes, folder: Path, **settings) -> MultiSAETrainingRunnerConfig:
    return MultiSAETrainingRunnerConfig(
        **{
            "saes": saes,
            "hook_names": HOOK,
            "dataset_path": "given",
            "context_size": 64,
            "training_tokens": 256 * 6,
            "train_batch_size_tokens": 256,
            "store_batch_size_prompts": 4,
            "n_batches_in_buffer": 16,
            "lr": 2e-3,
            "checkpoint_path": None,
            "output_path": str(folder),
            "logger": LoggingConfig(**QUIET),
        }
        | settings
    )


def test_several_saes_train_in_one_run_as_each_would_alone(model, token_dataset, tmp_path):
    def run(configs):
        saes = {}
        for name, cfg in configs.items():
            torch.manual_seed(5)
            saes[name] = SparsemaxTrainingSAE(cfg)
        checkpoints = str(tmp_path / f"checkpoints-{len(saes)}")
        config = multi_config(configs, tmp_path, n_checkpoints=1, checkpoint_path=checkpoints)
        torch.manual_seed(6)
        return MultiSAETrainingRunner(
            config, override_dataset=token_dataset, override_model=model, override_saes=saes
        ).run()

    shared = new_sae_config()
    alone = run({"one": shared})["one"]
    together = run({"one": shared, "other": new_sae_config(target_l0=4.0), "same": shared})
    for name in ("one", "same"):  # two SAEs of one config do not share a gate
        assert together[name].cfg.gate_scale == alone.cfg.gate_scale
        assert torch.equal(together[name].dictionary.concepts, alone.dictionary.concepts)
    assert together["other"].cfg.gate_scale > alone.cfg.gate_scale
    loaded = SAE.load_from_disk(tmp_path / "other")
    assert type(loaded) is SparsemaxSAE and loaded.cfg.gate_scale == together["other"].cfg.gate_scale
    (checkpoint,) = (tmp_path / "checkpoints-3").glob("*/*/same")
    assert type(SAE.load_from_disk(checkpoint)) is SparsemaxSAE


def test_it_trains_beside_another_architecture(model, token_dataset, tmp_path):
    saes = {"ours": new_sae_config(), "topk": TopKTrainingSAEConfig(d_in=128, d_sae=256, k=12)}
    config = multi_config(saes, tmp_path, hook_names={"ours": HOOK, "topk": "blocks.1.hook_resid_post"})
    MultiSAETrainingRunner(config, override_dataset=token_dataset, override_model=model).run()
    assert SAE.load_from_disk(tmp_path / "ours").cfg.metadata.hook_name == HOOK


@pytest.mark.parametrize("structure", ["cross_attention", pytest.param("mlp", marks=pytest.mark.slow)])
def test_synthetic_features_are_recovered(structure, tmp_path):
    cfg = SyntheticSAERunnerConfig(
        synthetic_model=SyntheticModelConfig(num_features=32, hidden_dim=24),
        sae=SparsemaxTrainingSAEConfig(d_in=24, d_sae=32, target_l0=3.0, structure=structure),
        training_samples=512 * 150,
        batch_size=512,
        lr=3e-3,
        eval_samples=4096,
        checkpoint_path=None,
        output_path=str(tmp_path),
        logger=LoggingConfig(**QUIET),
    )
    result = SyntheticSAERunner(cfg).run()
    assert result.final_eval is not None
    assert result.final_eval.mcc > 0.6
    assert SAE.load_from_disk(tmp_path).cfg.gate_scale == result.sae.cfg.gate_scale


def test_cached_activations_train_what_fresh_ones_do(token_dataset, model, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setattr("sae_lens.cache_activations_runner.load_model", lambda *args, **kwargs: model)
    cached = CacheActivationsRunner(
        CacheActivationsRunnerConfig(
            dataset_path="given",
            model_name=MODEL_PATH,
            model_batch_size=4,
            hook_name=HOOK,
            d_in=128,
            training_tokens=64 * 64,
            context_size=64,
            new_cached_activations_path=str(cache),
            shuffle=False,
            device="cpu",
            buffer_size_gb=64 * 16 * 128 * 4 / 1e9 + 1e-6,
        ),
        override_dataset=token_dataset,
    ).run()
    assert len(cached) == 64
    saes = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        cfg = runner_config(
            tmp_path,
            use_cached_activations=use_cache,
            cached_activations_path=str(cache) if use_cache else None,
            exclude_special_tokens=False,
            training_tokens=1024,
        )
        saes.append(LanguageModelSAETrainingRunner(cfg, override_dataset=token_dataset, override_model=model).run())
    torch.testing.assert_close(saes[0].dictionary.concepts, saes[1].dictionary.concepts, rtol=1e-4, atol=1e-5)
