r"""Poisson terms of a likelihood, as fast as a fit needs them.

`poisson_nll` is half of `specfit.significance.poisson_deviance`, without its checks, which would stop a minimiser at a
step that it takes back anyway, and infinite where the model is impossible.
"""

from __future__ import annotations

__all__ = ["poisson_nll", "poisson_normalisation"]

import torch
from torch import Tensor


def poisson_nll(observed: Tensor, expected: Tensor) -> Tensor:
    r"""Computes :math:`\nu - n - n \ln(\nu / n)` per bin: 0 for :math:`\nu = n`, and :math:`\nu` for an empty bin.

    Infinite where :math:`\nu < 0`, and where :math:`\nu = 0` and something was observed.

    Args:
        observed: Counts :math:`n \ge 0`, not necessarily whole, shape `(*, n_bins)`.
        expected: Mean :math:`\nu`, broadcasting with `observed`.
    """
    filled = observed > 0
    possible = (expected > 0) | ((expected == 0) & ~filled)
    n = torch.where(filled, observed, 1.0)
    # n (x - ln(1 + x)) with x = (nu - n) / n: nothing of the size of n cancels.
    x = torch.where(filled & possible, (expected - n) / n, 0.0)
    term = torch.where(filled, n * (x - torch.log1p(x)), expected)
    return term.masked_fill(~possible, torch.inf)


def poisson_normalisation(observed: Tensor) -> Tensor:
    r"""Computes what `poisson_nll` lacks to the negative logarithm of the Poisson probability: :math:`-\ln P(n; n)`."""
    entropy: Tensor = torch.special.xlogy(observed, observed)
    return observed - entropy + torch.lgamma(observed + 1)
