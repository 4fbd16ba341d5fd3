"""Everything that is measured on one saved SAE, suite by suite: language models and image models.

A suite is a list of metric groups (`groups`), each kept on the disk as soon as it is finished. `text` and `vision`
say what is measured, `evaluate` runs a suite, `report` and `pictures` show it.
"""

from sae_lens_sparsemax.evaluation.suite.evaluate import SuiteResult, evaluate_suite

__all__ = ["SuiteResult", "evaluate_suite"]
