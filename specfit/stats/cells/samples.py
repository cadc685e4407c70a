"""Samples: one process in one channel, ready to compute, with its first and second derivatives.

A sample is a template times the factors of the parametric models times those of the systematics, plus what additive
systematics contribute:  y = N R(x) exp(K theta + H theta a(theta)) + D theta, bin by bin.
"""

from __future__ import annotations

__all__ = ["Sample", "SampleDerivatives"]

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from specfit.stats.cells.models import Factor
from specfit.stats.cells.systematics import asymmetry


class FactorPlace(NamedTuple):
    """One factor: how to compute it, from which columns, on which bins (None: all)."""

    factor: Factor
    columns: slice
    bins: Tensor | None


class SampleDerivatives(NamedTuple):
    """Events of a sample and how they move, for n bins, k columns of the table and g nuisances."""

    events: Tensor
    """Shape `(n,)`."""
    multiplied: Tensor
    """The part of the events that nuisances multiply, shape `(n,)`."""
    first: Tensor
    """Derivative by each column, shape `(n, k)`."""
    second: Tensor
    """Second derivatives, shape `(n, k, k)`."""
    log_slope: Tensor
    """Derivative of the logarithm of the multiplied part by each nuisance, shape `(n, g)`."""
    log_curvature: Tensor | None
    """Its second derivative, shape `(n, g)`; None for 0."""

    def of_bins(self, which: slice) -> SampleDerivatives:
        """Takes some of the bins."""
        curvature = None if self.log_curvature is None else self.log_curvature[which]
        return SampleDerivatives(
            self.events[which],
            self.multiplied[which],
            self.first[which],
            self.second[which],
            self.log_slope[which],
            curvature,
        )


@dataclass(frozen=True, eq=False)
class Sample:
    """One process in one channel.

    Args:
        process: Its name.
        nominal: Template N, shape `(n,)`.
        variances: Variances of the template; None if it is known without error.
        table: Parameters that enter each bin, positions in the parameter vector, p for none, shape `(n, k)`.
        factors: The factors of R.
        theta: Nuisances that multiply, as positions in the parameter vector, shape `(g,)`.
        log_shift: K, shape `(n, g)`.
        log_asymmetric: H, same shape; None for 0.
        theta_added: Nuisances that add, shape `(a,)`.
        added: D, shape `(n, a)`.
    """

    process: str
    nominal: Tensor
    variances: Tensor | None
    table: Tensor
    factors: tuple[FactorPlace, ...]
    theta: Tensor
    log_shift: Tensor
    log_asymmetric: Tensor | None
    theta_added: Tensor
    added: Tensor

    def events(self, values: Tensor) -> Tensor:
        """Computes the expected events for values `(*, p)`, shape `(*, n)`."""
        events = self.nominal * self.factor(self.gather(values))
        if len(self.theta):
            events = events * self._log_systematics(values).exp()
        if len(self.theta_added):
            events = events + values[..., self.theta_added] @ self.added.T
        return events

    def gather(self, values: Tensor) -> Tensor:
        """Takes the parameters of each bin, shape `(*, n, k)`."""
        return torch.nn.functional.pad(values, (0, 1), value=1.0)[..., self.table]

    def factor(self, x: Tensor) -> Tensor:
        """Computes R from the parameters of each bin, `(*, n, k)` to `(*, n)`."""
        product = torch.ones(x.shape[:-1], dtype=torch.float64)
        for place in self.factors:
            columns = x[..., place.columns]
            if place.bins is None:
                product = product * place.factor(columns)
            else:
                some = place.factor(columns[..., place.bins, :])
                product = product * torch.ones_like(product).index_copy(-1, place.bins, some)
        return product

    def derivatives(self, values: Tensor) -> SampleDerivatives:
        """Computes the events and their derivatives at values `(p,)`."""
        x = self.gather(values.detach()).requires_grad_()  # (n, k)
        with torch.enable_grad():
            factor = self.factor(x)
            slope = _grad(factor, x)
            columns = [_grad(slope[:, i], x) for i in range(x.shape[-1])]
        curvature = torch.stack(columns, -1).detach() if columns else x.new_zeros(*x.shape, 0)
        base, slope = self.nominal, slope.detach()
        log_slope, log_curvature = self.log_shift, None
        if len(self.theta):
            base = base * self._log_systematics(values.detach()).exp()
            if self.log_asymmetric is not None:
                _, first, second = asymmetry(values.detach()[self.theta])
                log_slope = log_slope + self.log_asymmetric * first
                log_curvature = self.log_asymmetric * second
        multiplied = base * factor.detach()
        events = multiplied
        if len(self.theta_added):
            events = events + self.added @ values.detach()[self.theta_added]
        first_, second_ = base[:, None] * slope, base[:, None, None] * curvature
        return SampleDerivatives(events, multiplied, first_, second_, log_slope, log_curvature)

    def _log_systematics(self, values: Tensor) -> Tensor:
        theta = values[..., self.theta]
        total = theta @ self.log_shift.T
        if self.log_asymmetric is not None:
            total = total + asymmetry(theta)[0] @ self.log_asymmetric.T
        return total


def _grad(function: Tensor, x: Tensor) -> Tensor:
    """Differentiates bin by bin: every entry of `function` depends on its own row of `x` only."""
    if not function.requires_grad or not x.numel():
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(function.sum(), x, create_graph=True, materialize_grads=True)
    return gradient
