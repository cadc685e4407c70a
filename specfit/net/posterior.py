"""The background of a learned basis: its most probable coefficients, and their error.

With a mean log rate m, a basis B and coefficients c of unit normal prior, the log rate is m + B c. `posterior_mode`
finds c for Poisson data, `mode_and_evidence` tells bases apart, `gaussian_prediction` takes the normal approximation
around the mode.
"""

from __future__ import annotations

__all__ = [
    "combined",
    "gaussian_prediction",
    "mode_and_evidence",
    "posterior_mode",
    "precision_cholesky",
    "solved",
]

from typing import Any

import torch
from torch import Tensor

from specfit.net.base import Prediction

# A Newton step moves no log rate by more than this, and no log rate leaves the range of exp.
LARGEST_STEP, LOG_RATES = 2.0, (-30.0, 30.0)
# The learned scale of a basis stays below e to this.
LARGEST_LOG_SCALE = 4.0
# Those that would still move by more standard errors go on to the most steps. What is only read by the next stage of a
# net need not be as settled as an answer.
MOST_STEPS, SETTLED, SETTLED_TO_READ = 30, 0.003, 0.1
# A net that is trained does not wait for the last few of a batch.
MOST_STEPS_OF_TRAINING = 8
# Beyond this distance from its mode, in standard errors, a spectrum gives no gradient.
UNSETTLED = 0.3


def posterior_mode(
    log_mean: Tensor,
    basis: Tensor,
    counts: Tensor,
    *,
    weight: Tensor,
    settled: float | None = None,
    near: Tensor | None = None,
    most_steps: int | None = None,
) -> Tensor:
    """Finds the most probable log rate for a basis on it, by damped Newton steps in its coefficients c.

    Every spectrum is followed until it no longer moves. Gradients are those of the mode itself, by the implicit
    function theorem: one more solve, however many steps it took.

    Args:
        log_mean: Log of the expected events for c = 0, shape `(m, n_bins)`, float64.
        basis: Directions on the log rate, shape `(m, n_bins, k)`, float64; c has a unit normal prior.
        counts: Observed events, shape `(m, n_bins)`, float64.
        weight: How far each bin is believed, shape `(m, n_bins)`, from 0 (left out exactly) to 1.
        settled: A spectrum is done when one more step would move no bin by more of its standard errors;
            None: few enough for an answer.
        near: Log rates that are near the mode, shape `(m, n_bins)`, to start from; they need not be of this basis.
        most_steps: After so many steps an answer is given, settled or not; None: many.

    Returns:
        Log of the expected events at the mode, shape `(m, n_bins)`.
    """
    start = None if near is None else _projected(near, log_mean, basis, counts, weight)
    settled = SETTLED if settled is None else settled
    if not torch.is_grad_enabled():
        return _newton(log_mean, basis, counts, weight, settled=settled, start=start, most_steps=most_steps)[1]
    of_fit = log_mean, basis, counts, weight, settled, start, most_steps
    log_rate: Tensor = _PosteriorMode.apply(*of_fit)  # type: ignore[no-untyped-call]
    return log_rate


@torch.no_grad()
def _projected(near: Tensor, log_mean: Tensor, basis: Tensor, counts: Tensor, weight: Tensor) -> Tensor:
    """Takes a Newton step from log rates to the coefficients of a basis that they are not of.

    Args:
        near: Log rates to step from, shape `(m, n_bins)`.
        log_mean: As for `posterior_mode`, like `basis`, `counts` and `weight`.
        basis: Directions on the log rate.
        counts: Observed events.
        weight: How far each bin is believed.

    Returns:
        Coefficients, shape `(m, k)`; zero where the basis cannot come near the log rates.
    """
    rate = near.exp()
    information = weight * rate
    force = combined(weight * (counts - rate) + information * (near - log_mean), basis.mT)
    c = solved(precision_cholesky(basis, information), force)
    too_far = torch.linalg.vector_norm(log_mean + combined(c, basis) - near, torch.inf, 1, keepdim=True) > LARGEST_STEP
    return c.masked_fill(too_far | ~c.isfinite(), 0.0)


class _PosteriorMode(torch.autograd.Function):
    r"""The mode solves :math:`F(c) = B^T w (d - e^{m + B c}) - c = 0`, whose derivative is the negative precision."""

    @staticmethod
    def forward(
        ctx: Any,
        log_mean: Tensor,
        basis: Tensor,
        counts: Tensor,
        weight: Tensor,
        settled: float,
        start: Tensor | None,
        most_steps: int | None,
    ) -> Tensor:
        c, log_rate = _newton(log_mean, basis, counts, weight, settled=settled, start=start, most_steps=most_steps)
        ctx.save_for_backward(basis, counts, weight, log_rate, c[..., None])
        return log_rate

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        basis, counts, weight, log_rate, c = ctx.saved_tensors
        (grad,) = grads
        rate = log_rate.exp()
        cholesky = precision_cholesky(basis, weight * rate)
        adjoint = torch.cholesky_solve(basis.mT @ grad[..., None], cholesky)  # (m, k, 1)
        along = (basis @ adjoint)[..., 0]
        to_mean = grad - weight * rate * along
        to_basis = to_mean[..., None] * c.mT + (weight * (counts - rate))[..., None] * adjoint.mT
        # What has not settled is at no mode: it says nothing about how to move one.
        force = basis.mT @ (weight * (counts - rate))[..., None] - c
        distance = basis @ torch.cholesky_solve(force, cholesky)
        error = ((weight * rate)[..., None] * distance.square()).amax((1, 2))
        settled = error < UNSETTLED**2  # false for NaN too
        parts = (to_mean, to_basis, (counts - rate) * along)
        to_mean, to_basis, to_weight = (
            torch.where(settled.view(-1, *[1] * (t.ndim - 1)), t, 0.0).nan_to_num(0.0, 0.0, 0.0) for t in parts
        )
        return to_mean, to_basis, None, to_weight, None, None, None


@torch.no_grad()
def mode_and_evidence(
    log_mean: Tensor,
    basis: Tensor,
    counts: Tensor,
    *,
    weight: Tensor,
    start: Tensor | None = None,
    near: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Finds the mode and how well this basis as a whole explains the data, without gradients.

    The logarithm of the evidence is that of the posterior at its mode and of the volume around it, in the normal
    approximation: :math:`\ln L - |c|^2 / 2 - \ln\det(B^T W B + 1) / 2`, without what depends on the data alone.

    Args:
        log_mean: As for `posterior_mode`, like `basis`, `counts` and `weight`.
        basis: Directions on the log rate.
        counts: Observed events.
        weight: How far each bin is believed.
        start: Coefficients to start from, shape `(m, k)`.
        near: Or log rates that are near the mode, as for `posterior_mode`.

    Returns:
        Log of the expected events at the mode, shape `(m, n_bins)`, and the log evidence, shape `(m,)`.
    """
    start = start if near is None else _projected(near, log_mean, basis, counts, weight)
    c, log_rate = _newton(log_mean, basis, counts, weight, settled=SETTLED_TO_READ, start=start)
    rate = log_rate.exp()
    likelihood = (weight * (counts * log_rate - rate)).sum(1)
    volume = precision_cholesky(basis, weight * rate).diagonal(dim1=-2, dim2=-1).log().sum(1)
    return log_rate, likelihood - c.square().sum(1) / 2 - volume


def _newton(
    log_mean: Tensor,
    basis: Tensor,
    counts: Tensor,
    weight: Tensor,
    *,
    settled: float,
    start: Tensor | None = None,
    most_steps: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the coefficients `(m, k)` and the log rates `(m, n_bins)` at the mode."""
    c = basis.new_zeros(basis.shape[::2]) if start is None else start
    log_rate = (log_mean if start is None else log_mean + combined(c, basis)).clamp(*LOG_RATES)
    rows: Tensor | None = None  # those that still move; None: all
    # One row a spectrum, (m, 1, *): what one spectrum takes is the number of operations, not their size.
    c, log_rate, w, weighted = (t[:, None] for t in (c, log_rate, weight, weight * counts))
    b, now, log_now = basis, c, log_rate
    most_steps = MOST_STEPS if most_steps is None else most_steps
    for done in range(1, most_steps + 1):
        information = w * log_now.exp()
        force = torch.baddbmm(now, weighted - information, b, beta=-1)
        # What rounding leaves without a factor stays where it is.
        step = _solved_columns(precision_cholesky(b, information[:, 0]), force.mT).nan_to_num(0.0, 0.0, 0.0).mT
        moved = torch.bmm(step, b.mT)
        damping = (LARGEST_STEP / torch.linalg.vector_norm(moved, torch.inf, 2, keepdim=True)).clamp(max=1.0)
        now, log_now = torch.addcmul(now, damping, step), torch.addcmul(log_now, damping, moved).clamp(*LOG_RATES)
        # Where a step is short the next one is as its square.
        square = moved.square()
        is_open = (square * square.clamp(max=1.0) * information).amax((1, 2)) > settled**2
        n_open = int(is_open.sum()) if done < most_steps else 0
        if 0 < n_open == len(is_open):
            continue
        if rows is None:
            c, log_rate = now, log_now
        else:
            c[rows], log_rate[rows] = now, log_now
        if n_open == 0:
            break
        rows = is_open.nonzero()[:, 0] if rows is None else rows[is_open]
        b, w, weighted, now, log_now = (t[is_open] for t in (b, w, weighted, now, log_now))
    return c[:, 0], log_rate[:, 0]


def combined(c: Tensor, basis: Tensor) -> Tensor:
    """Computes B c for coefficients `(m, k)` and a basis `(m, n_bins, k)`, shape `(m, n_bins)`."""
    # Rows times matrices: several times faster than matrices times columns where both are small.
    return torch.bmm(c[:, None], basis.mT)[:, 0]


def solved(lower: Tensor, right: Tensor) -> Tensor:
    """Solves L L^T x = y for right sides `(m, k)`."""
    return _solved_columns(lower, right[..., None])[..., 0]


def _solved_columns(lower: Tensor, right: Tensor) -> Tensor:
    # Two triangular solves of the batch: LAPACK's own solver is called for every matrix.
    half = torch.linalg.solve_triangular(lower, right, upper=False)
    solution: Tensor = torch.linalg.solve_triangular(lower.mT, half, upper=True)
    return solution


def precision_cholesky(basis: Tensor, information: Tensor) -> Tensor:
    """Factorises the precision of the coefficients, B^T diag(information) B + 1: lower triangular, `(m, k, k)`."""
    precision = torch.bmm((basis * information[..., None]).mT, basis)
    # The unit prior makes it positive definite; the factor keeps it so to rounding at 1e10 events a bin.
    precision.diagonal(dim1=-2, dim2=-1).mul_(1 + 1e-13).add_(1.0)
    # The upper factor, turned over, is the lower one in the order of memory that triangular solves take without a copy.
    upper: Tensor = torch.linalg.cholesky_ex(precision, upper=True)[0]
    return upper.mT


def gaussian_prediction(log_rate: Tensor, basis: Tensor, weight: Tensor) -> Prediction:
    """Computes the background with its covariance at the mode, Cov(log rate) = B (B^T W B + 1)^-1 B^T.

    Args:
        log_rate: Log of the expected events at the mode, shape `(m, n_bins)`, float64.
        basis: Directions on the log rate, shape `(m, n_bins, k)`, float64.
        weight: How far each bin is believed, shape `(m, n_bins)`.
    """
    rate = log_rate.exp()
    information = weight * rate
    lower = precision_cholesky(basis, information)
    half = torch.linalg.solve_triangular(lower, basis.mT, upper=False).mT  # (m, n_bins, k)
    n_parameters = (half.square().sum(-1) * information).sum(-1)
    return Prediction(rate, half * rate[..., None], n_parameters, torch.zeros_like(n_parameters))
