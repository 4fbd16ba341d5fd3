"""The tables and figures of the sparsemax paper, one command each, full-size or small.

`recipe` reads what a table needs, `runner` trains the SAEs that are not there yet, measures them with a suite and sets
the figures beside the paper's.
"""

from sae_lens_sparsemax.compare.paper.recipe import Recipe, load_with_parts
from sae_lens_sparsemax.compare.paper.runner import reproduce

__all__ = ["Recipe", "load_with_parts", "reproduce"]
