r"""The likelihood of each bin: Poisson, with the statistics of the simulation profiled in closed form.

Barlow-Beeston lite: all simulated events of a bin share one factor :math:`\beta`, measured as :math:`b_0 = 1` with the
weight of :math:`k = (\sum w)^2 / \sum w^2` events. With :math:`y` events from templates that have variances and
:math:`y_0` from those that have none, :math:`\nu = \beta y + y_0` and

.. math:: -\ln L = \nu - n \ln \nu + k (\beta - b_0 \ln \beta),

whose minimum over :math:`\beta` solves :math:`(y + k) y \beta^2 + [(y + k) y_0 - (n + k b_0) y] \beta - k b_0 y_0 = 0`;
:math:`\beta = (n + k b_0) / (y + k)` where :math:`y_0 = 0`. Terms that nothing moves are dropped such that a perfect
description has the value 0.

Sources: R. Barlow, C. Beeston, Comput. Phys. Commun. 77 (1993) 219; J. S. Conway, arXiv:1103.0354, eq. 2 (one factor a
bin).
"""

from __future__ import annotations

__all__ = ["BinDerivatives", "Bins"]

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from specfit.significance import TINY, poisson_deviance


class BinDerivatives(NamedTuple):
    """How the profiled likelihood of each bin moves with its simulated events y and exact events y0, `(n_bins,)`."""

    by_y: Tensor
    by_y0: Tensor
    by_y_y: Tensor
    by_y_y0: Tensor
    by_y0_y0: Tensor


@dataclass(frozen=True, eq=False)
class Bins:
    """Bins with what the simulation knows of them.

    Args:
        effective: Effective number k of simulated events, shape `(n_bins,)`; 0 where there is no factor beta.
    """

    effective: Tensor

    @property
    def has_factor(self) -> Tensor:
        """Which bins have a factor beta, shape `(n_bins,)`."""
        return self.effective > 0

    def nll(self, y: Tensor, y0: Tensor, counts: Tensor, measured: Tensor) -> Tensor:
        """Computes the sum over bins of -ln L, shape `(*,)`; infinite where an expectation is negative.

        Args:
            y: Simulated events, shape `(*, n_bins)`.
            y0: Events known without error, same shape.
            counts: Observed counts n, broadcasting with them.
            measured: Measured factors b0, broadcasting with them; ignored where there is none.
        """
        return self.each(y, y0, counts, measured).sum(-1)

    def each(self, y: Tensor, y0: Tensor, counts: Tensor, measured: Tensor) -> Tensor:
        """Computes -ln L of every bin, shape `(*, n_bins)`."""
        beta = self.factor(y, y0, counts, measured)
        expected = beta * y + y0
        deviance: Tensor = poisson_deviance(counts, expected.clamp(min=0.0))
        if self.has_factor.any():
            k = self.effective
            deviance = deviance + poisson_deviance(k * measured, k * beta)
        return torch.where(expected < 0, torch.inf, deviance / 2)

    def factor(self, y: Tensor, y0: Tensor, counts: Tensor, measured: Tensor) -> Tensor:
        """Computes the profiled factors beta, 1 where there is none, shape `(*, n_bins)`."""
        k, has = self.effective, self.has_factor
        if not has.any():
            return torch.ones_like(y)
        alone = (counts + k * measured) / (y.clamp(min=0.0) + k).clamp(min=TINY)
        mixed = has & (y0 != 0) & (y > 0)
        # Safe arguments where the quadratic is not used, so that no NaN reaches a gradient.
        s, s0 = torch.where(mixed, y, 1.0), torch.where(mixed, y0, 1.0)
        a, b, c = (s + k) * s, (s + k) * s0 - (counts + k * measured) * s, -k * measured * s0
        root = (b.square() - 4 * a * c).clamp(min=TINY).sqrt()
        falling = b <= 0
        quadratic = torch.where(falling, (root - b) / (2 * a), -2 * c / torch.where(falling, 1.0, b + root))
        without_y = torch.where(y <= 0, measured.expand_as(alone), alone)  # nothing there to scale
        return torch.where(has, torch.where(mixed, quadratic, without_y).clamp(min=TINY), 1.0)

    def derivatives(self, y: Tensor, y0: Tensor, counts: Tensor, measured: Tensor) -> BinDerivatives:
        """Computes first and second derivatives of the profiled -ln L of each bin."""
        beta = self.factor(y, y0, counts, measured)
        expected = (beta * y + y0).clamp(min=TINY)
        weight = counts / expected**2
        slope = 1 - counts / expected
        by_y_y, by_y_y0, by_y0_y0 = beta**2 * weight, beta * weight, weight
        if self.has_factor.any():
            # The factor gives way: the curvature at its minimum is less than that at a fixed factor.
            stiffness = weight * y**2 + self.effective * measured / beta**2
            give = torch.where(self.has_factor & (stiffness > 0), 1 / stiffness.clamp(min=TINY), 0.0)
            with_y, with_y0 = slope + beta * weight * y, weight * y
            by_y_y = by_y_y - give * with_y**2
            by_y_y0 = by_y_y0 - give * with_y * with_y0
            by_y0_y0 = by_y0_y0 - give * with_y0**2
        return BinDerivatives(beta * slope, slope, by_y_y, by_y_y0, by_y0_y0)
