"""One histogram of activations per concept, in one pass, over a range that is not known beforehand."""

import torch

N_BINS = 128
_HALF = N_BINS // 2


class ActivationHistograms:
    """Histograms over [-2^e, 2^e), each with the smallest whole e that holds all of its concept's activations.

    When a larger activation comes, e grows and neighbouring bins are added together. Bin edges are exact in
    floating point, so the result does not depend on the order or the batches in which activations arrive. At
    least a quarter of the bins lie between 0 and the largest activation.
    """

    def __init__(self, d_sae: int) -> None:
        self.counts = torch.zeros(d_sae, N_BINS, dtype=torch.int32)
        """Shape (d_sae, N_BINS)."""
        self.exponent = torch.full((d_sae,), torch.iinfo(torch.int16).min, dtype=torch.int32)
        """The e of each concept, shape (d_sae,)."""

    def add(self, col: torch.Tensor, value: torch.Tensor) -> None:
        """Add activations, both arguments of shape (nnz,): concept and value, on the CPU."""
        value = value.float()
        exponent = torch.frexp(value).exponent.int()
        self._widen(self.exponent.scatter_reduce(0, col, exponent, "amax"))
        # Multiplying by a power of two is exact, so an activation on an edge always falls to the same side.
        place = torch.ldexp(value.double(), 6 - self.exponent[col]).floor().long() + _HALF
        ones = torch.ones(len(col), dtype=torch.int32)
        self.counts.view(-1).index_add_(0, col * N_BINS + place, ones)

    def _widen(self, exponent: torch.Tensor) -> None:
        # After seven folds everything lies in the two middle bins, and further ones change nothing.
        folds = (exponent - self.exponent).clamp(max=7)
        while (wider := folds.nonzero().flatten()).numel():
            folded = torch.zeros(len(wider), N_BINS, dtype=torch.int32)
            folded[:, _HALF // 2 : _HALF // 2 + _HALF] = self.counts[wider].view(len(wider), _HALF, 2).sum(-1)
            self.counts[wider] = folded
            folds[wider] -= 1
        self.exponent = exponent

    def trimmed(self, concept: int) -> tuple[float, float, list[int]]:
        """Lower edge, bin width and counts of a concept's histogram, from its first to its last filled bin."""
        filled = self.counts[concept].nonzero().flatten()
        if not len(filled):
            return 0.0, 0.0, []
        first, last = int(filled[0]), int(filled[-1])
        width = 2.0 ** (int(self.exponent[concept]) - 6)
        return (first - _HALF) * width, width, self.counts[concept, first : last + 1].tolist()
