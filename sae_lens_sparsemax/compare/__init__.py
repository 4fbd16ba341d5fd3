"""Comparing SAE architectures: a grid of trainings on the same activations, one table, Pareto plots."""

from sae_lens_sparsemax.compare.arm import Arm
from sae_lens_sparsemax.compare.config import CompareConfig, EvalDataset, config_from_yaml
from sae_lens_sparsemax.compare.runner import compare

__all__ = ["Arm", "CompareConfig", "EvalDataset", "compare", "config_from_yaml"]
