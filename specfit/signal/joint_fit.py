r"""Background and signal fitted together: the signal is a column beside the learned basis.

With the local model :math:`(m, B)` that a net holds for plausible around a spectrum, and signal templates :math:`s_j`,

.. math:: \lambda = e^{m + B c} + \sum_j S_j s_j, \qquad
    -\ln L = \sum_i (\lambda_i - d_i \ln \lambda_i) + \tfrac{1}{2} |c|^2,

is minimised in the coefficients c and the yields S, by Fisher scoring: the information of the bin contents is
:math:`J^T \mathrm{diag}(1/\lambda) J` with :math:`J = (e^{m + B c} B, s)`, plus 1 for every coefficient. The variance
of a yield, from its inverse, therefore carries the error of the background. Masked bins weigh nothing.

Everything is float64 and batched: a row is one spectrum with one hypothesis.

Source: Cowan, Cranmer, Gross, Vitells, arXiv:1007.1727 (test statistics).
"""

from __future__ import annotations

__all__ = ["JointFit", "fit_jointly", "n_parameters"]

from typing import NamedTuple

import torch
from torch import Tensor

from specfit.net.posterior import combined, gaussian_prediction, solved
from specfit.significance import deviance_terms

# A step moves no log rate by more than this, and takes no bin further than this share of the way to zero.
LARGEST_STEP, TO_THE_WALL = 2.0, 0.9
MOST_STEPS, SETTLED = 40, 1e-3
# Expected events that are taken for none.
TINY = 1e-12
# Least events of a bin without background: the tail of a signal in one that expects e^-30 would fix its yield.
LEAST_EXPECTED = 1e-3


class JointFit(NamedTuple):
    """Background and yields at the minimum, one row for each spectrum and hypothesis."""

    background: Tensor
    """Expected background events, shape `(m, n_bins)`."""
    yields: Tensor
    """Events of each signal, shape `(m, q)`."""
    covariance: Tensor
    """Covariance of the yields, the error of the background included, shape `(m, q, q)`."""
    nll: Tensor
    """Negative log-likelihood with the prior of the coefficients, less that of a rate equal to the data, `(m,)`."""
    coefficients: Tensor
    """Coefficients of the basis, shape `(m, k)`."""


def fit_jointly(
    counts: Tensor,
    log_mean: Tensor,
    basis: Tensor,
    templates: Tensor,
    *,
    weight: Tensor | None = None,
    fixed: Tensor | None = None,
    start: JointFit | None = None,
) -> JointFit:
    """Fits background and signals to counts.

    Args:
        counts: Events, shape `(m, n_bins)`, float64.
        log_mean: Of the local model, shape `(m, n_bins)`.
        basis: Of the local model, shape `(m, n_bins, k)`; last directions that are zero in a row cost it nothing.
        templates: Events of each signal in each bin for a yield of 1, shape `(m, q, n_bins)`; q may be 0.
        weight: 0 for masked bins, 1 for others, shape `(m, n_bins)`; None takes all.
        fixed: Events of a signal that is not fitted, shape `(m, n_bins)`.
        start: A fit of the same shapes to start from.
    """
    k = basis.shape[-1]
    weight = torch.ones_like(counts) if weight is None else weight
    fixed = torch.zeros_like(counts) if fixed is None else fixed
    problem = _Problem(counts, log_mean, basis, templates.mT, weight, fixed)
    state = counts.new_zeros(len(counts), k + templates.shape[1])
    if start is not None:
        state[:, :k], state[:, k:] = start.coefficients, start.yields
    numbers = torch.arange(1, k + 1, device=counts.device) * basis.any(1)
    n_used = torch.nn.functional.pad(numbers, (1, 0)).amax(1)  # (m,)
    sizes = sorted(set(n_used.tolist()))
    if sizes in ([], [k]):
        return _minimum(problem, state)
    # A generic basis stands beside the learned one of every spectrum, and is zero but in those that need it.
    groups, parts = [(n_used == size).nonzero()[:, 0] for size in sizes], []
    for size, rows in zip(sizes, groups, strict=True):
        narrow = problem.of(rows)._replace(basis=basis[rows, :, :size])
        part = _minimum(narrow, torch.cat([state[rows, :size], state[rows, k:]], 1))
        parts.append(part._replace(coefficients=torch.nn.functional.pad(part.coefficients, (0, k - size))))
    back = torch.cat(groups).argsort()
    return JointFit(*(torch.cat(field)[back] for field in zip(*parts, strict=True)))


def n_parameters(fit: JointFit, basis: Tensor, weight: Tensor) -> Tensor:
    """Computes the effective number of parameters of the backgrounds, shape `(m,)`.

    Args:
        fit: Its background counts.
        basis: That it was fitted with, shape `(m, n_bins, k)`.
        weight: 0 for masked bins, 1 for others, shape `(m, n_bins)`.
    """
    return gaussian_prediction(fit.background.clamp(min=TINY).log(), basis, weight).n_parameters


def _minimum(problem: _Problem, state: Tensor) -> JointFit:
    """Minimises from coefficients and yields `(m, k + q)`, which are written over."""
    counts, weight, k = problem.counts, problem.weight, problem.basis.shape[-1]
    rows = torch.arange(len(counts), device=counts.device)
    for _ in range(MOST_STEPS):
        step, size = _step(problem.of(rows), state[rows])
        state[rows] += step
        rows = rows[size > SETTLED**2]
        if len(rows) == 0:
            break
    c, yields = state[:, :k], state[:, k:]
    background, rate = problem.rates(state)
    # Half the deviance: from the data on, or differences between fits would drown in the rounding of large sums.
    nll = (weight * deviance_terms(counts, rate)).sum(-1) / 2 + c.square().sum(-1) / 2
    # The error of a deficit is that of no signal: at the wall of an empty bin the information has no end.
    expected = problem.rates(torch.cat([c, yields.clamp(min=0.0)], -1))
    lower = torch.linalg.cholesky_ex(_information(problem, *expected)[1])[0]
    return JointFit(background, yields, _last_block(lower, yields.shape[1]), nll, c)


class _Problem(NamedTuple):
    counts: Tensor
    log_mean: Tensor
    basis: Tensor
    columns: Tensor
    weight: Tensor
    fixed: Tensor

    def of(self, rows: Tensor) -> _Problem:
        """Takes some rows."""
        return self if len(rows) == len(self.counts) else _Problem(*(t[rows] for t in self))

    def rates(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the expected events of the background and of everything, both `(m, n_bins)`."""
        k = self.basis.shape[-1]
        background = (self.log_mean + combined(state[:, :k], self.basis)).clamp(-30.0, 30.0).exp()
        rate = background + combined(state[:, k:], self.columns) + self.fixed
        floor = torch.where(background > LEAST_EXPECTED, TINY, LEAST_EXPECTED)
        return background, torch.maximum(rate, floor)


def _information(problem: _Problem, background: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the Jacobian `(m, n_bins, k + q)` and the information with the prior, `(m, k + q, k + q)`."""
    jacobian = torch.cat([background[..., None] * problem.basis, problem.columns], -1)
    information = (jacobian * (problem.weight / rate)[..., None]).mT @ jacobian
    diagonal = information.diagonal(dim1=-2, dim2=-1)
    diagonal[:, : problem.basis.shape[-1]] += 1.0
    # Positive definite to rounding, whatever the units of the rows.
    diagonal *= 1 + 1e-12
    diagonal += TINY**2
    return jacobian, information


def _step(problem: _Problem, state: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a step of Fisher scoring `(m, k + q)`, damped, and the square of its size in standard errors `(m,)`."""
    k = problem.basis.shape[-1]
    background, rate = problem.rates(state)
    jacobian, information = _information(problem, background, rate)
    score = combined(problem.weight * (problem.counts / rate - 1), jacobian.mT)
    score[:, :k] -= state[:, :k]
    lower = torch.linalg.cholesky_ex(information)[0]
    step = solved(lower, score).nan_to_num(0.0, 0.0, 0.0)
    # Masked bins damp nothing: a deficit may take them below zero. Nor does the wall of empty bins without background.
    seen = problem.weight > 0
    walled = seen & ((problem.counts > 0) | (background > LEAST_EXPECTED))
    log_move = combined(step[:, :k], problem.basis) * seen
    move = (background * log_move + combined(step[:, k:], problem.columns)) * walled
    small = LARGEST_STEP / log_move.abs().amax(1).clamp(min=1e-9)
    to_the_wall = (TO_THE_WALL * rate / (-move).clamp(min=TINY)).amin(1)
    step = step * torch.minimum(small, to_the_wall).clamp(max=1.0)[:, None]
    return step, combined(step, lower.mT).square().sum(1)


def _last_block(lower: Tensor, q: int) -> Tensor:
    """Returns the last q rows and columns of the inverse of L L^T: the inverse of the last block's own L L^T."""
    last = lower[:, lower.shape[1] - q :, lower.shape[1] - q :]
    inverse = torch.linalg.solve_triangular(last, torch.eye(q).to(last).expand_as(last), upper=False)
    block: Tensor = inverse.mT @ inverse
    return block
