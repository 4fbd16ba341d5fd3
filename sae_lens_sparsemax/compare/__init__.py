"""Comparing SAE architectures: a grid of trainings on the same activations, one table, Pareto plots."""

from sae_lens_sparsemax.compare.config import Arm, CompareConfig, TextData
from sae_lens_sparsemax.compare.runner import compare, compare_from_yaml

__all__ = ["Arm", "CompareConfig", "TextData", "compare", "compare_from_yaml"]
