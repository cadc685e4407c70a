r"""Shapes: the functions of resonance searches as expected fractions per bin.

Every shape is a frozen value that holds its parameters as tensors of one common shape `(*,)` and answers one
question: `log_bins(edges)`, the logarithm of its integral over each bin, shape `(*, n_bins)`. Logarithms, because a
steep spectrum spans hundreds of orders of magnitude. Shapes are not normalised: take `log_softmax` over the bins for
fractions of the range, add the log of a total for events.

What to use when:

- `ErfExp`: a trigger or kinematic turn-on and a stretched-exponential fall; the component of the generator.
- `Exponential`: a plain exponential, closed form.
- `Dijet`: the three- or four-parameter function of dijet searches.
- `Bernstein`: a polynomial that cannot become negative; linear in its coefficients.
- `Gaussian`: a narrow resonance; exact.

`ErfExp` and `Dijet` are integrated by Gauss-Legendre quadrature in log space, with the number of nodes per bin that the
caller chooses (`nodes_per_bin`); the others are exact. A value at the bin centre is wrong for wide bins.

Sources: S. Calvet, "Fitting a spectrum using ML" (2021) for `ErfExp`; CDF, arXiv:0812.4036, and ATLAS,
arXiv:1703.09127, eq. 1, for `Dijet`.
"""

from __future__ import annotations

__all__ = [
    "PLATEAU",
    "Bernstein",
    "Dijet",
    "ErfExp",
    "Exponential",
    "Gaussian",
    "Shape",
    "log_sinhc",
    "log_turn_on",
    "quadrature",
]

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specfit.errors import InputError

PLATEAU = 8.3
"""Above so many standard deviations the Gaussian cumulative is 1 in float64."""


class Shape(ABC):
    """An unnormalised density whose integral over a bin is known in log space."""

    @abstractmethod
    def log_bins(self, edges: Tensor) -> Tensor:
        """Computes the log of the integral over each bin, shape `(*, n_bins)`, for edges of shape `(n_bins + 1,)`."""


@dataclass(frozen=True, eq=False)
class ErfExp(Shape):
    r"""Density :math:`\Phi((x - \mu)/\sigma) \, e^{-x^\rho / \alpha}`, for x > 0.

    Args:
        rho: Power of the fall, shape `(*,)`.
        alpha: Scale of the fall, in the unit of x to the power rho.
        mu: Position of the turn-on (half of the plateau), in the unit of x.
        sigma: Width of the turn-on, in the unit of x.
        nodes_per_bin: Quadrature nodes. 16 give 1e-9 where a bin falls by up to 40 e-folds and spans up to 8 sigma of
            the turn-on. A steeper bin comes out low (a factor 2 at 440 e-folds): give more nodes if it matters.

    Example:
        >>> shape = ErfExp(*torch.tensor([1.0, 100.0, 350.0, 20.0]).double())
        >>> shape.log_bins(torch.tensor([300.0, 350.0, 400.0]).double()).exp()
        tensor([0.2726, 0.9752], dtype=torch.float64)
    """

    rho: Tensor
    alpha: Tensor
    mu: Tensor
    sigma: Tensor
    nodes_per_bin: int = 16

    def log_density(self, x: Tensor) -> Tensor:
        """Computes the log density at points of shape `(n_points,)`; the answer has shape `(*, n_points)`."""
        rho, alpha, mu, sigma = (p[..., None] for p in (self.rho, self.alpha, self.mu, self.sigma))
        log_turn_on: Tensor = torch.special.log_ndtr((x - mu) / sigma)
        return log_turn_on - torch.exp(rho * x.log()) / alpha

    def log_bins(self, edges: Tensor) -> Tensor:
        """Computes the log integrals by quadrature."""
        _check_domain(edges)
        x, log_weights = quadrature(edges, self.nodes_per_bin)
        values = self.log_density(x.flatten())
        values = values.reshape(*values.shape[:-1], *x.shape)  # (*, n_bins, nodes)
        return torch.logsumexp(values + log_weights, -1)


@dataclass(frozen=True, eq=False)
class Dijet(Shape):
    r"""Density :math:`(1 - z)^{p_1} z^{-(p_2 + p_3 \ln z)}` with :math:`z = x / \sqrt{s}`.

    Args:
        p1: Power of the kinematic end, shape `(*,)`.
        p2: Power of the fall.
        p3: Running of that power; 0 gives the three-parameter function.
        sqrt_s: Collision energy, in the unit of x; every edge lies below it.
        nodes_per_bin: Quadrature nodes.
    """

    p1: Tensor
    p2: Tensor
    p3: Tensor
    sqrt_s: float
    nodes_per_bin: int = 8

    def log_density(self, x: Tensor) -> Tensor:
        """Computes the log density at points of shape `(n_points,)`; the answer has shape `(*, n_points)`."""
        p1, p2, p3 = (p[..., None] for p in (self.p1, self.p2, self.p3))
        z = x / self.sqrt_s
        return p1 * torch.log1p(-z) - (p2 + p3 * z.log()) * z.log()

    def log_bins(self, edges: Tensor) -> Tensor:
        """Computes the log integrals by quadrature."""
        _check_domain(edges, end=self.sqrt_s)
        x, log_weights = quadrature(edges, self.nodes_per_bin)
        values = self.log_density(x.flatten())
        values = values.reshape(*values.shape[:-1], *x.shape)  # (*, n_bins, nodes)
        return torch.logsumexp(values + log_weights, -1)


@dataclass(frozen=True, eq=False)
class Exponential(Shape):
    r"""Density :math:`e^{-\lambda x}`; the slope :math:`\lambda` may be 0 or negative.

    Args:
        slope: Slope in the inverse unit of x, shape `(*,)`.
    """

    slope: Tensor

    def log_bins(self, edges: Tensor) -> Tensor:
        """Computes the exact log integrals."""
        center, width = (edges[:-1] + edges[1:]) / 2, edges.diff()
        # integral = e^(-slope center) * width * sinh(h) / h
        return -self.slope[..., None] * center + width.log() + log_sinhc(self.slope[..., None] * width / 2)


@dataclass(frozen=True, eq=False)
class Bernstein(Shape):
    r"""Density :math:`\sum_k c_k \binom{d}{k} u^k (1 - u)^{d - k}` with u from 0 to 1 over the range.

    Args:
        coefficients: :math:`c_k \ge 0`, not all zero, shape `(*, degree + 1)`.
    """

    coefficients: Tensor

    def log_bins(self, edges: Tensor) -> Tensor:
        """Computes the exact log integrals: so many nodes integrate a polynomial of this degree exactly."""
        degree = self.coefficients.shape[-1] - 1
        x, log_weights = quadrature(edges, degree // 2 + 1)
        u = ((x - edges[0]) / (edges[-1] - edges[0]))[..., None]  # (n_bins, nodes, 1)
        k = torch.arange(degree + 1, dtype=edges.dtype, device=edges.device)
        log_choose = torch.lgamma(k.new_tensor(degree + 1)) - torch.lgamma(k + 1) - torch.lgamma(degree - k + 1)
        basis = log_choose.exp() * u**k * (1 - u) ** (degree - k)
        integrals = (basis * log_weights.exp()[..., None]).sum(-2)  # (n_bins, degree + 1)
        return (self.coefficients[..., None, :] * integrals).sum(-1).log()


@dataclass(frozen=True, eq=False)
class Gaussian(Shape):
    """A Gaussian peak, normalised to 1 over the whole axis.

    Args:
        mass: Position, in the unit of x, shape `(*,)`.
        width: Standard deviation, in the unit of x.
    """

    mass: Tensor
    width: Tensor

    def log_bins(self, edges: Tensor) -> Tensor:
        """Computes the exact log integrals, accurate in both tails."""
        z = (edges - self.mass[..., None]) / self.width[..., None]
        # In the upper tail both cumulatives are 1: mirror each bin to the side where they are small.
        flip = (z[..., :-1] + z[..., 1:]) > 0
        low = torch.where(flip, -z[..., 1:], z[..., :-1])
        high = torch.where(flip, -z[..., :-1], z[..., 1:])
        log_high: Tensor = torch.special.log_ndtr(high)
        ratio = (torch.special.log_ndtr(low) - log_high).clamp(max=-1e-15)
        return log_high + torch.log(-torch.expm1(ratio))


def quadrature(edges: Tensor, nodes_per_bin: int) -> tuple[Tensor, Tensor]:
    """Returns Gauss-Legendre nodes and log weights of each bin for edges `(*, n_bins + 1)`.

    Both have shape `(*, n_bins, nodes_per_bin)`.
    """
    nodes, weights = (torch.as_tensor(v, dtype=edges.dtype, device=edges.device) for v in _legendre(nodes_per_bin))
    half = edges.diff()[..., None] / 2
    return edges[..., :-1, None] + half * (1 + nodes), (half * weights).log()


def log_sinhc(h: Tensor) -> Tensor:
    """Computes ln(sinh(h) / h), by its series near 0 and without overflow far from it.

    By so much the log of the mean of an exponential over a bin, over which it falls by 2 h e-folds, exceeds that of its
    middle.
    """
    near = h.abs() < 1e-2
    size = torch.where(near, 1.0, h.abs())
    return torch.where(near, h**2 / 6 - h**4 / 180, size + (-torch.expm1(-2 * size) / (2 * size)).log())


def log_turn_on(z: Tensor) -> tuple[Tensor, Tensor]:
    """Computes ln Phi(z), for z up to `PLATEAU`, and its derivative, with one special function for both."""
    # Phi(z) = erfcx(-z / sqrt 2) exp(-z^2 / 2) / 2
    erfcx = torch.special.erfcx(-math.sqrt(0.5) * z)
    return (erfcx / 2.0).log_().sub_(z.square(), alpha=0.5), math.sqrt(2 / math.pi) / erfcx


def _check_domain(edges: Tensor, *, end: float = math.inf) -> None:
    if edges[0] < 0 or edges[-1] > end:
        raise InputError(f"edges: this shape is defined from 0 to {end:g}, {edges[0]:g} to {edges[-1]:g} came")


def _legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(n)
