"""Sums over a data set that is seen once, in float64: means, total variance, distributions of counts."""

import torch


class RunningMean:
    """Mean of scalars that arrive in batches; every value weighs the same, whatever its batch."""

    def __init__(self) -> None:
        self.sum = 0.0
        self.count = 0

    def add(self, values: torch.Tensor) -> None:
        """Add values of any shape."""
        self.sum += values.double().sum().item()
        self.count += values.numel()

    def merge(self, other: "RunningMean") -> None:
        """Add all that was added to another."""
        self.sum += other.sum
        self.count += other.count

    def mean(self) -> float:
        """The mean; NaN if nothing was added."""
        return self.sum / self.count if self.count else float("nan")


class TotalVariance:
    """Mean vector of x and the sum of ‖x − mean‖² over a stream.

    Batches are merged with the parallel update of Chan, Golub and LeVeque (1979), so that a mean far larger
    than the spread, as in the residual stream, costs no precision.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: torch.Tensor | None = None
        self.sum_of_squares = 0.0

    def add(self, x: torch.Tensor) -> None:
        """Add samples of shape (n, d)."""
        if len(x) == 0:
            return
        x = x.double()
        batch_mean = x.mean(0)
        self._merge(len(x), batch_mean.cpu(), (x - batch_mean).pow(2).sum().item())

    def merge(self, other: "TotalVariance") -> None:
        """Add all that was added to another."""
        if other.mean is not None:
            self._merge(other.count, other.mean, other.sum_of_squares)

    def _merge(self, count: int, mean: torch.Tensor, sum_of_squares: float) -> None:
        self.sum_of_squares += sum_of_squares
        if self.mean is None:
            self.mean, self.count = mean, count
            return
        total = self.count + count
        delta = mean - self.mean
        self.sum_of_squares += delta.pow(2).sum().item() * self.count * count / total
        self.mean = self.mean + delta * (count / total)
        self.count = total


class CountDistribution:
    """Distribution of non-negative integers (the L0 of tokens or images), exact, in memory of the largest."""

    def __init__(self) -> None:
        self.counts = torch.zeros(0, dtype=torch.int64)

    def add(self, values: torch.Tensor) -> None:
        """Add integers of any shape."""
        new = torch.bincount(values.reshape(-1).cpu(), minlength=len(self.counts))
        new[: len(self.counts)] += self.counts
        self.counts = new

    def merge(self, other: "CountDistribution") -> None:
        """Add all that was added to another."""
        size = max(len(self.counts), len(other.counts))
        both = [torch.nn.functional.pad(each.counts, (0, size - len(each.counts))) for each in (self, other)]
        self.counts = both[0] + both[1]

    @property
    def n(self) -> int:
        """How many integers were added."""
        return int(self.counts.sum())

    def mean(self) -> float:
        """The mean; NaN if nothing was added."""
        if self.n == 0:
            return float("nan")
        return (self.counts.double() * torch.arange(len(self.counts))).sum().item() / self.n

    def std(self) -> float:
        """The standard deviation over what was added (not an estimate of a population's)."""
        if self.n == 0:
            return float("nan")
        squared_distance = (torch.arange(len(self.counts)).double() - self.mean()).pow(2)
        return ((self.counts * squared_distance).sum().item() / self.n) ** 0.5

    def percentile(self, percent: float) -> float:
        """The percentile in [0, 100], interpolated linearly between ranks as `numpy.percentile` does."""
        if self.n == 0:
            return float("nan")
        rank = percent / 100 * (self.n - 1)
        lower = int(rank)
        cumulative = self.counts.cumsum(0)
        ranks = torch.tensor([lower, min(lower + 1, self.n - 1)])
        low, high = torch.searchsorted(cumulative, ranks, right=True).tolist()
        return low + (high - low) * (rank - lower)
