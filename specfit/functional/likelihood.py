"""The Poisson likelihood of a sum of `ErfExp` components, in numpy and with derivatives.

Minuit is numpy, and a search evaluates some hundred points: here one costs a tenth of what it would through `ErfExp`
and autograd. This is the one twin of `specfit.shapes.ErfExp`; the background that a fit returns comes from there.
"""

from __future__ import annotations

__all__ = ["Array", "ErfExpRanges", "Likelihood", "Point", "parameter_names"]

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.special
from torch import Tensor

from specfit.errors import InputError

Array = npt.NDArray[np.float64]

# Above so many standard deviations the Gaussian cumulative is 1 in float64.
PLATEAU = 8.3
# Precision of a quantity that is uniform between 0 and 1.
UNIFORM_PRECISION = 12.0


@dataclass(frozen=True)
class ErfExpRanges:
    """Limits of the parameters of every component, in the unit of the edges; equal ends fix a parameter.

    Args:
        rho: Power of the fall, positive.
        alpha: Scale of the fall, in the unit of x to the power rho, positive.
        mu: Position of the turn-on.
        sigma: Width of the turn-on, positive.

    Raises:
        InputError: A range is not an increasing pair or not positive.
    """

    rho: Sequence[float] = (0.5, 1.5)
    alpha: Sequence[float] = (25.0, 200.0)
    mu: Sequence[float] = (325.0, 375.0)
    sigma: Sequence[float] = (10.0, 30.0)

    def __post_init__(self) -> None:
        for name, pair in self.pairs().items():
            if len(pair) != 2 or not all(map(math.isfinite, pair)) or pair[0] > pair[1]:
                raise InputError(f"{name}: a range (low, high) with low <= high is expected, {tuple(pair)} came")
            if name != "mu" and pair[0] <= 0:
                raise InputError(f"{name}: a range above 0 is expected, {tuple(pair)} came")

    def pairs(self) -> dict[str, Sequence[float]]:
        """Returns the ranges by name, in the order of the arguments."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class Point(NamedTuple):
    """The likelihood at one position, with its derivatives in the n numbers of the position."""

    nll: float
    """Negative log likelihood relative to a perfect description: half the Poisson deviance."""
    gradient: Array
    """Shape `(n,)`."""
    fisher: Array
    """Expected Hessian, shape `(n, n)`."""
    log_jacobian: Array
    """Derivatives of the log of the expected events, shape `(n, n_bins)`."""


class Likelihood:
    """Poisson likelihood of counts whose expectation is a weighted sum of the density over points of each bin.

    A position, shape `(5 n_components,)`, holds for each component its yield over the total of the counts, then rho,
    log alpha, mu and sigma as fractions of their ranges. So every entry is of order 1, and the valley in which rho and
    alpha trade against each other is straight.

    Args:
        x: Points at which the density is taken, shape `(n_bins, n_points)`.
        log_weights: Logs of their weights, same shape.
        counts: Events per bin, shape `(n_bins,)`.
        ranges: Limits of the parameters.
    """

    def __init__(self, x: Tensor, log_weights: Tensor, counts: Tensor, ranges: ErfExpRanges) -> None:
        self.x, self.log_weights, self.counts = x, log_weights, counts
        limits = np.array([tuple(pair) for pair in ranges.pairs().values()], dtype=np.float64)
        self._widths = np.diff(limits)[:, 0]  # (4,)
        limits[1] = np.log(limits[1])
        self._low, self._span = limits[:, 0], np.diff(limits)[:, 0]
        self._total = float(counts.sum())
        self._n = counts.numpy()
        self._log_n = np.log(np.where(self._n > 0, self._n, 1.0))
        # Points first: numpy sums over a leading axis several times faster.
        self._x, self._weights = (np.ascontiguousarray(t.numpy().T) for t in (x, log_weights.exp()))
        self._log_x = np.log(self._x)
        plateau = limits[2, 1] + PLATEAU * limits[3, 1]
        self._n_turn_on = int((self._x.min(0) < plateau).sum())  # bins that a turn-on can reach

    def parameters(self, position: Array) -> Array:
        """Returns yield, rho, alpha, mu, sigma of each component, shape `(n_components, 5)`."""
        components = position.reshape(-1, 5)
        shapes = self._low + components[:, 1:] * self._span
        shapes[:, 1] = np.exp(shapes[:, 1])
        return np.concatenate([components[:, :1] * self._total, shapes], -1)

    def scale(self, position: Array) -> Array:
        """Returns the derivative of each parameter in its entry of the position, shape `(n,)`."""
        scale = np.tile([self._total, *self._span], (len(position) // 5, 1))
        scale[:, 2] *= self.parameters(position)[:, 2]
        return scale.ravel()

    def constraint(self, position: Array) -> Array:
        """Returns the precision that the ranges and the total add, shape `(n, n)`.

        A range counts as the variance range squared / 12; a share of several components as 1 / 12, while their sum, the
        total, is left to the data.
        """
        n = len(position) // 5
        widths = np.where(self._widths > 0, self._widths, np.inf)
        shapes = (self.scale(position).reshape(n, 5)[:, 1:] / widths) ** 2
        shapes[:, self._widths == 0] = 1.0  # fixed: any finite number, its scale is 0
        precision = np.diag(np.concatenate([np.zeros((n, 1)), shapes], -1).ravel())
        precision[::5, ::5] = np.eye(n) - 1 / n
        return UNIFORM_PRECISION * precision

    def evaluate(self, position: Array) -> Point:
        """Computes the likelihood and its derivatives."""
        log_bins, slopes = self._components(position)
        log_share = log_bins - _log_sum_exp(log_bins, -1)  # (n_components, n_bins)
        slopes -= (np.exp(log_share)[:, None] * slopes).sum(-1, keepdims=True)
        log_parts = np.log(position[::5, None] * self._total) + log_share
        log_expected = _log_sum_exp(log_parts, 0)[0]  # (n_bins,)
        by_yield = np.exp(math.log(self._total) + log_share - log_expected)
        by_shape = np.exp(log_parts - log_expected)[:, None] * slopes
        log_jacobian = np.concatenate([by_yield[:, None], by_shape], 1).reshape(-1, len(self._n))
        expected = np.exp(log_expected)
        excess = expected - self._n
        nll = float((excess - self._n * (log_expected - self._log_n)).sum())
        return Point(nll, log_jacobian @ excess, (log_jacobian * expected) @ log_jacobian.T, log_jacobian)

    def _components(self, position: Array) -> tuple[Array, Array]:
        """Computes the log integral of each component over each bin and its slopes.

        Returns:
            Log integrals, shape `(n_components, n_bins)`, and their derivatives in the last four entries of a
            component's position, shape `(n_components, 4, n_bins)`.
        """
        _, rho, alpha, mu, sigma = self.parameters(position).T[:, :, None, None]  # (n_components, 1, 1) each
        near = slice(self._n_turn_on)
        fall = np.exp(rho * self._log_x) / alpha  # (n_components, n_points, n_bins)
        z = np.minimum((self._x[:, near] - mu) / sigma, PLATEAU)
        # One special function serves both: Phi(z) = erfcx exp(-z^2 / 2) / 2, and the derivative of its log.
        erfcx = scipy.special.erfcx(-math.sqrt(0.5) * z)
        hazard = math.sqrt(2 / math.pi) / erfcx
        log_density = -fall
        log_density[..., near] += np.log(erfcx / 2) - z**2 / 2
        top = log_density.max(1, keepdims=True)
        density = np.exp(log_density - top) * self._weights
        integral = density.sum(1)  # (n_components, n_bins)

        slopes = np.zeros((len(rho), 4, len(self._n)))
        falling, rising = density * fall, density[..., near] * hazard
        slopes[:, 0], slopes[:, 1] = -(falling * self._log_x).sum(1), falling.sum(1)
        slopes[:, 2, near], slopes[:, 3, near] = -rising.sum(1) / sigma[:, 0], -(rising * z).sum(1) / sigma[:, 0]
        slopes *= self._span[:, None] / integral[:, None]
        return np.log(integral) + top[:, 0], slopes


def parameter_names(n_components: int) -> list[str]:
    """Returns `yield_1`, `rho_1`, `alpha_1`, `mu_1`, `sigma_1`, `yield_2` and so on: the order of a position."""
    names = ("yield", *(f.name for f in fields(ErfExpRanges)))
    return [f"{name}_{k + 1}" for k in range(n_components) for name in names]


def _log_sum_exp(values: Array, axis: int) -> Array:
    top = values.max(axis, keepdims=True)
    total: Array = top + np.log(np.exp(values - top).sum(axis, keepdims=True))
    return total
