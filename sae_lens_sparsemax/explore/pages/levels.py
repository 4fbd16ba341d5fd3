"""Activations of an example as a short text, read by `levels.js`.

For each active token: the gap to the active token before it, then its activation in 61 steps of the peak, each as
one of 62 digits. `+` skips 61 tokens more, and `-` stands before a negative activation.
"""

import torch

from sae_lens_sparsemax.explore.examples import LEVELS

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
FULL = 61


def encode_levels(levels: torch.Tensor) -> str:
    """Levels of one example at every token, shape (n_tokens,), int8 in units of peak / LEVELS, as text."""
    parts, last = [], -1
    tokens = levels.nonzero().flatten().tolist()
    for token, level in zip(tokens, levels[tokens].tolist(), strict=True):
        skips, gap = divmod(token - last - 1, FULL)
        step = max(1, round(abs(level) / LEVELS * FULL))
        parts.append("+" * skips + DIGITS[gap] + ("-" if level < 0 else "") + DIGITS[step])
        last = token
    return "".join(parts)
