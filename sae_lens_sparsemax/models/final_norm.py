"""Directions of a residual stream read through the norm before a model's head, as a logit lens reads them.

Layer norms, RMS norms, those whose weight is added to one and those whose weight is folded away all give
g * (x - m(x)) / |x - m(x)| + b, where m is the mean over the width or nothing. What g and m are is asked of the module
itself, with a few inputs of unit scale, since its weights alone do not say.
But: the size of the input is left out, which is one factor for all that a direction promotes.
"""

from typing import Any

import torch


@torch.no_grad()
def before_norm(norm: Any, matrix: torch.Tensor) -> torch.Tensor:
    """What maps a direction before a norm to what `matrix` maps it to behind it.

    Args:
        norm: the module.
        matrix: `(d_model, n)`.

    Returns:
        `(d_model, n)`, float32, on the device of `matrix`.
    """
    d_model = len(matrix)
    # A mean and a wave about it, none of whose entries is near zero.
    ones = torch.ones(d_model)
    wave = ones - 2 * (torch.arange(d_model) % 2)
    wave = (wave - wave.mean()) / (wave - wave.mean()).square().mean().sqrt()
    weights = next(iter(norm.parameters()), matrix)
    asked = torch.stack([torch.zeros(d_model), ones, wave])[None].to(weights.device, weights.dtype)
    bias, of_mean, of_wave = norm(asked)[0].float().to(matrix.device)
    gain = (of_wave - bias) / wave.to(matrix.device)
    # A norm that removes the mean makes nothing of it but rounding.
    removes_mean = (of_mean - bias).abs().sum() < 0.5 * gain.abs().sum()
    through = gain[:, None] * matrix.float()
    return through - through.mean(0) if removes_mean else through
