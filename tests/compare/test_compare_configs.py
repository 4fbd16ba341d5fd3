"""The comparisons that come with the project can be read, and ask for what the README says of them."""

import pytest

from sae_lens_sparsemax.compare.config import config_from_yaml
from tests.support import places

CONFIGS = sorted((places.CONFIGS / "compare").glob("*.yaml"))


def given(name: str) -> dict[str, str]:
    """What the recipe of that name leaves to the command line."""
    if "smollm2" in name:
        return {key: f"the {key}" for key in ("model_name", "dataset_path", "eval_datasets.wikitext103.path")}
    return {"model_name": "given"} if "clip" in name else {}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_valid_at_every_sparsity(path):
    cfg = config_from_yaml(path, given(path.stem))
    assert cfg.output_path == f"output/compare/{path.stem}"
    for arm in cfg.arms:
        for sparsity in arm.sparsities:
            sae = arm.sae_config(sparsity, d_in=8, d_sae=cfg.d_sae)
            # The README says "sparsemax" where it means a single pass of it.
            if arm.name.startswith("sparsemax"):
                assert (sae.alpha, sae.passes, sae.refinements, sae.activation_floor) == (2, 1, 0, 0)
    if path.stem.endswith(("_all", "_ablation", "_small")):
        assert len(cfg.seeds) == 3


@pytest.mark.parametrize("name", ["synthetic", "smollm2", "mini_clip"])
def test_all_of_saelens_trainable_architectures_are_compared(name):
    path = CONFIGS[0].parent / f"{name}_all.yaml"
    cfg = config_from_yaml(path, given(name))
    architectures = {arm.architecture for arm in cfg.arms}
    assert {"sparsemax", "standard", "gated", "jumprelu", "topk", "batchtopk", "matryoshka_batchtopk"} <= architectures


@pytest.mark.parametrize("name", ["synthetic", "smollm2", "mini_clip"])
def test_the_ablation_crosses_structure_and_gate(name):
    path = CONFIGS[0].parent / f"{name}_ablation.yaml"
    cfg = config_from_yaml(path, given(name))
    configs = [arm.sae_config(arm.sparsities[0], d_in=8, d_sae=cfg.d_sae) for arm in cfg.arms]
    found = {(sae.structure, sae.gate) for sae in configs}
    assert found == {(s, g) for s in ("cross_attention", "mlp") for g in ("sparsemax", "relu")}
