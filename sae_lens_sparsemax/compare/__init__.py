"""Comparing SAE architectures: a grid of trainings on the same activations, one table, Pareto plots."""

from sae_lens_sparsemax.compare.config import Arm, CompareConfig, EvalDataset
from sae_lens_sparsemax.compare.runner import compare, compare_from_yaml

__all__ = ["Arm", "CompareConfig", "EvalDataset", "compare", "compare_from_yaml"]
