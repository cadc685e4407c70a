r"""Functions whose log density is linear in their parameters: dijet functions and exponentials of polynomials.

.. math:: \ln f(x) = \sum_k p_k \, \varphi_k(x)

The likelihood then hardly bends, and a weighted straight fit to the log of the counts starts near its minimum. The
terms of a dijet function are almost the same curve: a search moves along orthonormal sums of them instead, in which one
unit is one e-fold, and parameters are taken from the result.
"""

from __future__ import annotations

__all__ = ["DijetFunction", "ExpPolynomial"]

from dataclasses import dataclass

import torch
from torch import Tensor

from specfit.errors import InputError
from specfit.functional.function import SMALLEST_SHARE, Function, FunctionOnBins, spread_points
from specfit.shapes import Dijet, quadrature

# Nodes a bin; a step changes no term by more e-folds; other starts change the terms by up to this share.
NODES_PER_BIN, LONGEST_STEP, SPREAD = 8, 1.0, 0.5


@dataclass(frozen=True)
class DijetFunction(Function):
    """The dijet function `specfit.shapes.Dijet` with a yield.

    Args:
        sqrt_s: Collision energy, in the unit of the edges; every edge lies below it.
        n_parameters: 4 for yield, p1, p2, p3; 3 leaves out p3.
    """

    sqrt_s: float = 13_000.0
    n_parameters: int = 4

    def __post_init__(self) -> None:
        if self.n_parameters not in (3, 4):
            raise InputError(f"n_parameters: 3 or 4 is expected, {self.n_parameters!r} came")

    def on(self, edges: Tensor) -> FunctionOnBins:
        """Prepares the function for bins."""
        if not (edges[0] > 0 and edges[-1] < self.sqrt_s):
            raise InputError(
                f"edges: a dijet function needs edges above 0 and below sqrt_s = {self.sqrt_s:g}, "
                f"{edges[0]:g} to {edges[-1]:g} came"
            )
        x, log_weights = quadrature(edges, NODES_PER_BIN)
        p1, p2, p3 = torch.eye(3).double()[: self.n_parameters - 1].unbind(-1)  # every parameter once 1, the others 0
        terms = Dijet(p1, p2, p3, self.sqrt_s).log_density(x.flatten()).view(-1, *x.shape)
        return LogLinearOnBins([f"p{k + 1}" for k in range(len(terms))], terms, log_weights)


@dataclass(frozen=True)
class ExpPolynomial(Function):
    r"""Density :math:`\exp(\sum_{k=1}^d a_k u^k)` with a yield; u runs from 0 to 1 over the range.

    Args:
        degree: Degree d of the polynomial; 1 is an exponential.
    """

    degree: int = 3

    def __post_init__(self) -> None:
        if isinstance(self.degree, bool | float) or self.degree < 1:
            raise InputError(f"degree: a whole number from 1 upwards is expected, {self.degree!r} came")

    def on(self, edges: Tensor) -> FunctionOnBins:
        """Prepares the function for bins."""
        x, log_weights = quadrature(edges, NODES_PER_BIN)
        u = (x - edges[0]) / (edges[-1] - edges[0])
        terms = torch.stack([u**k for k in range(1, self.degree + 1)])
        return LogLinearOnBins([f"a{k + 1}" for k in range(len(terms))], terms, log_weights)


class LogLinearOnBins(FunctionOnBins):
    """A log-linear function on bins.

    Args:
        names: Names of the parameters, without the yield.
        terms: The functions that they multiply at the nodes, shape `(n_terms, n_bins, n_nodes)`.
        log_weights: Logs of the weights of the nodes, shape `(n_bins, n_nodes)`.
    """

    def __init__(self, names: list[str], terms: Tensor, log_weights: Tensor) -> None:
        low = torch.full((len(names) + 1,), -torch.inf).double()
        low[0] = SMALLEST_SHARE
        super().__init__(["yield", *names], low, torch.full_like(low, torch.inf), longest_step=LONGEST_STEP)
        if len(terms) >= log_weights.shape[0]:
            raise InputError(
                f"edges: {log_weights.shape[0]} bins came, {len(low)} parameters need as many; take fewer parameters"
            )
        flat = terms.flatten(1)  # (n_terms, n_bins * n_nodes)
        flat = flat - flat.mean(-1, keepdim=True)  # a constant is the yield's
        triangle = torch.linalg.qr(flat.T / flat.shape[1] ** 0.5).R  # (n_terms, n_terms)
        self._to_parameters = torch.linalg.inv(triangle)
        # Nodes before bins: sums over the last axis but one run along memory.
        self._terms = (self._to_parameters.T @ flat).view_as(terms).mT.contiguous()
        self._log_weights = log_weights.T.contiguous()

    def log_expected(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the logs of the normalised integrals and adds that of the yield."""
        values = torch.tensordot(position[:, 1:], self._terms, 1) + self._log_weights  # (m, n_nodes, n_bins)
        log_bins = torch.logsumexp(values, 1)
        inside = (values - log_bins[:, None]).exp_()
        slopes = torch.stack([(inside * term).sum(1) for term in self._terms], 1)  # (m, n_terms, n_bins)
        log_shape = torch.log_softmax(log_bins, -1)
        slopes -= (log_shape.exp()[:, None] * slopes).sum(-1, keepdim=True)
        share = position[:, :1]
        by_share = (1 / share).expand_as(log_shape)
        return log_shape + share.log(), torch.cat([by_share[:, None], slopes], 1)

    def parameters(self, position: Tensor) -> Tensor:
        """Returns yield over the total and the coefficients of the terms."""
        return torch.cat([position[:, :1], position[:, 1:] @ self._to_parameters.T], -1)

    def slopes(self, position: Tensor) -> Tensor:
        """Returns one matrix for all."""
        slopes = torch.eye(position.shape[1]).double()
        slopes[1:, 1:] = self._to_parameters
        return slopes.expand(len(position), -1, -1)

    def constraint(self, position: Tensor) -> Tensor:
        """Returns 0: nothing is known beside the data."""
        return torch.zeros(*position.shape, position.shape[1]).double()

    def starting_points(self, counts: Tensor, mask: Tensor, starts: int, *, rng: torch.Generator | None) -> Tensor:
        """Returns a weighted linear fit to the log of the counts, and that with its terms changed."""
        content = counts + 0.5
        weight = content.masked_fill(mask, 0.0)
        target = content.log() - self._log_weights.exp().sum(0).log()  # log density
        design = torch.cat([torch.ones_like(self._terms[:1, 0]), self._terms.mean(1)])  # (n_terms + 1, n_bins)
        matrix = (design * weight[:, None]) @ design.T  # (m, n_terms + 1, n_terms + 1)
        right = (weight * target) @ design.T
        # Where few bins are left the linear fit may have no unique answer; the search does not need one.
        matrix.diagonal(dim1=-2, dim2=-1).add_(1e-6 * weight.sum(-1, keepdim=True))
        coefficients = torch.linalg.solve(matrix, right)[:, None, 1:]  # (m, 1, n_terms)
        change = 2 * spread_points(starts, len(self._terms), rng=rng) - 1
        change[0] = 0.0
        shapes = coefficients * (1 + SPREAD * change)
        return torch.cat([torch.ones_like(shapes[..., :1]), shapes], -1)

    def ordered(self, position: Tensor) -> Tensor:
        """Returns the position: there is one component."""
        return position
