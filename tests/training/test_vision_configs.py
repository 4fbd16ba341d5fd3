"""The configurations that ship for vision: each loads, and means what its remarks say."""

import pytest

from sae_lens_sparsemax.training.config_file import config_from_values, load_config
from tests.support import places

CONFIGS = sorted((places.CONFIGS / "vision").glob("*.yaml"))
GIVEN = {"model_name": "given on the command line"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_loads(path):
    loaded = load_config(path, GIVEN)
    assert loaded.runner == "vision"
    cfg = loaded.config
    assert cfg.output_path == f"output/{path.stem}"
    assert cfg.logger.log_to_wandb is False
    if path.stem.startswith("clip_vit_b16"):
        assert cfg.training_tokens == 2_621_440 * 197 == cfg.total_training_steps * cfg.train_batch_size_tokens
        assert cfg.train_batch_size_tokens == 32 * 197
        assert (cfg.sae.d_sae, cfg.lr, cfg.lr_warm_up_steps) == (64 * 768, 4e-4, 500)


def test_all_architectures_of_the_paper_are_there():
    found = {load_config(path, GIVEN).config.sae.architecture() for path in CONFIGS}
    assert found == {"sparsemax", "topk", "batchtopk", "standard", "gated", "jumprelu"}


def test_unknown_keys_are_answered_with_the_nearest():
    values = {"runner": "vision", "model_name": "a", "hook_name": "b", "dataset_path": "c", "sae": {"d_sae": 64}}
    assert config_from_values(values).config.tokens == "all"
    with pytest.raises(ValueError, match=r"token is not a valid key; did you mean tokens"):
        config_from_values(values | {"token": "cls"})
    with pytest.raises(ValueError, match="tokens must be"):
        config_from_values(values | {"tokens": "first"})
