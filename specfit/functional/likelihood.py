"""The Poisson likelihood of binned counts under a function, for many spectra at once, with exact derivatives."""

from __future__ import annotations

__all__ = ["Likelihood", "Point"]

from typing import NamedTuple

import torch
from torch import Tensor

from specfit.functional.function import FunctionOnBins
from specfit.weights import exposure_of

# So many rows are evaluated at a time: their arrays then stay in the processor's cache.
ROWS_AT_A_TIME = 384


class Point(NamedTuple):
    """The likelihood of m spectra at one position each, with its derivatives in the n numbers of a position."""

    nll: Tensor
    """Negative log likelihood relative to a perfect description: half the Poisson deviance, shape `(m,)`."""
    gradient: Tensor
    """Shape `(m, n)`."""
    fisher: Tensor
    """Expected Hessian, shape `(m, n, n)`."""


class Likelihood:
    """Poisson likelihood of counts on the bins of a function.

    Args:
        function: What gives the expected events.
        counts: Events per bin, shape `(m, n_bins)`.
        mask: True for bins that weigh nothing, same shape.
        worth: How many events a count of each bin stands for, same shape (the exposures of weighted contents); None
            for 1.
    """

    def __init__(self, function: FunctionOnBins, counts: Tensor, mask: Tensor, worth: Tensor | None = None) -> None:
        self.function, self.counts, self.mask, self._worth = function, counts, mask, worth
        self.weight = (~mask).double() if worth is None else worth.masked_fill(mask, 0.0)
        """What each bin counts for, 0 where it is masked."""
        self._n = counts * self.weight
        self.total = counts.masked_fill(mask, 0.0).sum(-1, keepdim=True)
        self._log_n = counts.clamp(min=1e-300).log()  # multiplied by 0 where it is wrong

    def rows(self, index: Tensor) -> Likelihood:
        """Returns the likelihood of some of the spectra, which may be repeated."""
        return Likelihood(self.function, self.counts[index], self.mask[index], exposure_of(self._worth, index))

    def log_expected(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the log of the expected events, shape `(m, n_bins)`, and its derivatives `(m, n, n_bins)`."""
        log_share, jacobian = self.function.log_expected(position)
        return log_share + self.total.log(), jacobian

    def evaluate(self, position: Tensor) -> Point:
        """Computes the likelihood and its derivatives at positions of shape `(m, n)`."""
        if len(position) <= ROWS_AT_A_TIME:
            return self._evaluate(position, slice(None))
        slices = (slice(first, first + ROWS_AT_A_TIME) for first in range(0, len(position), ROWS_AT_A_TIME))
        parts = [self._evaluate(position[rows], rows) for rows in slices]
        return Point(*(torch.cat(pieces) for pieces in zip(*parts, strict=True)))

    def _evaluate(self, position: Tensor, rows: slice) -> Point:
        log_share, jacobian = self.function.log_expected(position)
        n, log_expected = self._n[rows], log_share + self.total[rows].log()
        expected = log_expected.exp() * self.weight[rows]
        excess = expected - n
        nll = (excess - n * (log_expected - self._log_n[rows])).sum(-1)
        gradient = (jacobian @ excess[..., None])[..., 0]
        return Point(nll, gradient, (jacobian * expected[:, None]) @ jacobian.mT)
