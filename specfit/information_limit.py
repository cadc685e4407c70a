r"""The smallest error that any estimator can reach on a generator's spectra: the local Bayesian bound.

At each truth, with :math:`J` the Jacobian of the expected counts in the generator's parameters divided by the root of
the truth, and :math:`P` the precision of the prior (12 / range squared for a uniform one), the error of an efficient
estimator has the covariance :math:`J (J^T J + P)^{-1} J^T` in units of the statistical error. Its trace is the
effective number of parameters :math:`p_\mathrm{eff}`, and
:math:`\mathrm{RMS} = \sqrt{p_\mathrm{eff} / n_\mathrm{bins}}`.

An RMS means nothing without its binning: quote RMS / limit. Only bins with more than half an expected event count.

Source: the posterior form of the Cramer-Rao bound (H. Van Trees, Detection, Estimation and Modulation Theory, 1968).
"""

from __future__ import annotations

__all__ = ["USED_ABOVE", "InformationLimit", "information_limit"]

from typing import NamedTuple

import torch
from torch import Tensor

from specfit.generator import Components, SpectrumGenerator
from specfit.shapes import ErfExp

# Bins with fewer expected events enter no RMS.
USED_ABOVE = 0.5
# Precision of a quantity that is uniform between 0 and 1, and of the log of the total, of which little is assumed.
UNIFORM_PRECISION, LOG_TOTAL_PRECISION = 12.0, 1e-6


class InformationLimit(NamedTuple):
    """The bound, averaged over sampled truths."""

    rms: float
    """Root mean square error over all used bins, in units of the statistical error."""
    n_parameters: float
    """Mean effective number of parameters of a spectrum."""
    rms_per_bin: Tensor
    """The same root mean square for each bin, shape `(n_bins,)`; NaN where no truth reaches half an event."""


def information_limit(generator: SpectrumGenerator, *, size: int = 300, rng: torch.Generator) -> InformationLimit:
    """Computes the bound for the backgrounds of a generator (an injected signal is not part of it).

    Args:
        generator: What is sampled.
        size: Number of truths; 300 give the RMS to about 1 %.
        rng: Source of randomness, on the CPU.
    """
    drawn = generator.sample_components(size, rng=rng)
    variance, used = torch.zeros(size, generator.n_bins).double(), torch.zeros(size, generator.n_bins, dtype=torch.bool)
    n = torch.bincount(drawn.owner, minlength=size)
    for n_components in sorted(set(n.tolist())):
        rows = (n == n_components).nonzero().flatten()
        for some in rows.split(64):  # bounds the memory of the Jacobian
            truth, jacobian = _truth_and_jacobian(generator, drawn, some, n_components)
            used[some] = truth > USED_ABOVE
            variance[some] = _bound(truth, jacobian, used[some])
    mean = (variance * used).sum(0) / used.sum(0)
    pooled = (variance * used).sum() / used.sum()
    return InformationLimit(pooled.sqrt().item(), variance.sum(-1).mean().item(), mean.sqrt())


def _truth_and_jacobian(generator: SpectrumGenerator, drawn: Components, rows: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Computes expected events `(m, n_bins)` and their derivatives `(m, n_bins, 5 n + 1)`.

    Derivatives are taken in parameters scaled to run from 0 to 1, and in the log of the total (the last one).
    """
    of_rows = torch.isin(drawn.owner, rows)
    parameters = tuple(getattr(drawn, name)[of_rows].double().view(-1, n) for name in generator.ranges)
    fraction = drawn.fraction[of_rows].double().view(-1, n, 1)
    total = drawn.total[rows].double()[:, None]

    def components(rho: Tensor, alpha: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
        # (m, n, n_bins), each normalised over the range
        return torch.softmax(ErfExp(rho, alpha, mu, sigma).log_bins(generator.edges_in_units), -1)

    # No component depends on the parameters of another: one forward-mode derivative a parameter serves all.
    derivatives = []
    for i, (low, high) in enumerate(generator.ranges.values()):
        direction = tuple(torch.full_like(p, (high - low) * (i == j)) for j, p in enumerate(parameters))
        # Not torch.func.jvp, whose first use compiles what torch itself warns of.
        jvp = torch.autograd.functional.jvp(components, parameters, direction)  # type: ignore[no-untyped-call]
        derivatives.append(jvp[1])
    shapes = components(*parameters)
    share = fraction / fraction.sum(1, keepdim=True)
    mixture = (share * shapes).sum(1)
    by_fraction = (shapes - mixture[:, None]) / fraction.sum(1, keepdim=True)
    columns = [*(share * d for d in derivatives), by_fraction, mixture[:, None]]
    return total * mixture, total[..., None] * torch.cat(columns, 1).mT


def _bound(truth: Tensor, jacobian: Tensor, used: Tensor) -> Tensor:
    """Computes the variance of each bin over the truth, shape `(m, n_bins)`."""
    scaled = torch.where(used, truth, 1.0).rsqrt()[..., None] * jacobian * used[..., None]
    prior = torch.full((jacobian.shape[-1],), UNIFORM_PRECISION, dtype=torch.float64)
    prior[-1] = LOG_TOTAL_PRECISION
    covariance = torch.linalg.inv(scaled.mT @ scaled + torch.diag(prior))
    variance: Tensor = ((scaled @ covariance) * scaled).sum(-1)
    return variance
