r"""Newton's method for many fits at once: toys, points of a scan, or one fit alone.

All fits advance together, each with its own damping and its own set of parameters at a limit; those that have arrived
drop out. What to use when:

- `newton`: up to a few hundred parameters; a matrix for each fit, from `Derivatives.curvature` and, where that is slow
  to converge, the exact Hessian;
- `newton_cg`: one fit of thousands of parameters; Hessian-vector products only.

Conventions: a fit has arrived when its estimated distance to the minimum (EDM, in units of :math:`-\ln L`) is below the
tolerance and one more step was taken. Parameters that do not move are not part of any matrix. Limits are obeyed
exactly: a step is cut at a limit, and a parameter stays there while its slope points outward.

Sources: J. Nocedal, S. J. Wright, Numerical Optimization (2nd ed., 2006), 4.1 and 7.1 (trust region, Steihaug), 10.3
(damping), 16.7 (gradient projection).
"""

from __future__ import annotations

__all__ = ["Minimum", "newton", "newton_cg"]

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from specfit.stats.likelihood import Likelihood

TOLERANCE = 1e-11
"""Estimated distance to the minimum at which a last step is taken; 0.5 is one standard deviation."""
MOST_STEPS = 300
EXACT_AFTER = 4  # steps with the cheap matrix
NOISE = 1e-9  # a rise of -ln L that rounding alone can make, with millions of events
FIRST_DAMPING, LARGEST_DAMPING = 1e-3, 1e14


class Minimum(NamedTuple):
    """Where m fits ended."""

    values: Tensor
    """Shape `(m, p)`."""
    nll: Tensor
    """Shape `(m,)`."""
    edm: Tensor
    """Estimated distance of `nll` to the minimum before the last step, shape `(m,)`."""
    converged: Tensor
    """Shape `(m,)`."""
    n_steps: Tensor
    """Shape `(m,)`."""


def newton(likelihood: Likelihood, start: Tensor, *, free: Tensor, tolerance: float = TOLERANCE) -> Minimum:
    """Minimises `nll` from m starting points.

    Args:
        likelihood: A model with data `(n_data,)` for all fits, or `(m, n_data)` with one row a fit.
        start: Shape `(m, p)`.
        free: Which parameters move, shape `(p,)` or `(m, p)`.
        tolerance: Estimated distance to the minimum.
    """
    return _Newton(likelihood, start, free, tolerance).run()


class _Newton:
    """State of all fits; `index` are those under way."""

    def __init__(self, likelihood: Likelihood, start: Tensor, free: Tensor, tolerance: float) -> None:
        self.likelihood, self.tolerance = likelihood, tolerance
        self.low, self.high = likelihood.bounds.unbind(-1)
        self.free = free.expand_as(start) & (self.low < self.high)
        # Limits are for what moves: a limit on the strength does not keep a scan from going beyond it.
        self.x = torch.where(self.free, start.detach().clamp(self.low, self.high), start.detach())
        m = len(start)
        with torch.no_grad():
            self.nll = likelihood.nll(self.x)
        self.edm = torch.full((m,), torch.inf, dtype=torch.float64)
        self.damping = torch.zeros(m, dtype=torch.float64)
        self.n_steps = torch.zeros(m, dtype=torch.int64)
        self.converged = torch.zeros(m, dtype=torch.bool)

    def run(self) -> Minimum:
        index = torch.arange(len(self.x))
        for step in range(MOST_STEPS):
            likelihood = self._of(index)
            going = self._step(likelihood, index, exact=step >= EXACT_AFTER)
            index = index[going]
            if not len(index):
                break
        return Minimum(self.x, self.nll, self.edm, self.converged, self.n_steps)

    def _of(self, index: Tensor) -> Likelihood:
        if self.likelihood.data.ndim == 1 or len(index) == len(self.likelihood.data):
            return self.likelihood
        return self.likelihood.with_data(self.likelihood.data[index])

    def _step(self, likelihood: Likelihood, index: Tensor, *, exact: bool) -> Tensor:
        """Takes one step of the fits of `index`; returns which of them go on."""
        x, nll, damping = self.x[index], self.nll[index], self.damping[index]
        if exact:
            gradient, matrix = likelihood.gradient(x), likelihood.hessian(x)
        else:
            gradient, matrix = likelihood.derivatives.curvature(x)
        outward = ((x <= self.low) & (gradient > 0)) | ((x >= self.high) & (gradient < 0))
        moving = self.free[index] & ~outward
        step, edm, regular = _damped_step(gradient.masked_fill(~moving, 0.0), matrix, moving, damping)
        trial = torch.where(moving, (x + step).clamp(self.low, self.high), x)
        with torch.no_grad():
            moved = likelihood.nll(trial).nan_to_num(torch.inf)
        change = trial - x
        predicted = -(gradient * change).sum(-1) - 0.5 * (change * (matrix @ change[..., None])[..., 0]).sum(-1)
        gain = (nll - moved) / predicted.clamp(min=1e-300)
        near = edm < self.tolerance
        better = regular & (moved <= nll + NOISE) & ((gain > 1e-4) | (predicted < NOISE))
        self.x[index] = torch.where(better[:, None], trial, x)
        self.nll[index] = torch.where(better, moved, nll)
        self.edm[index] = torch.where(regular, edm, torch.inf)
        self.n_steps[index] += 1
        arrived = regular & near & (damping <= FIRST_DAMPING)
        self.converged[index] = arrived
        self.damping[index] = _next_damping(damping, gain, better, small=predicted < NOISE)
        return ~arrived & (self.damping[index] < LARGEST_DAMPING)


def _damped_step(gradient: Tensor, matrix: Tensor, moving: Tensor, damping: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Solves for the step; returns it, the estimated distance to the minimum, and where the matrix was positive."""
    size = matrix.diagonal(dim1=-2, dim2=-1).abs().sqrt()
    size = torch.where(moving & (size > 0), size, 1.0)
    both = moving[..., None] & moving[..., None, :]
    scaled = torch.where(both, matrix, 0.0) / (size[..., None] * size[..., None, :])
    # Fixed parameters get a diagonal of one, which leaves them where they are.
    scaled = scaled + torch.diag_embed(torch.where(moving, damping[:, None].expand_as(size), 1.0))
    lower, info = torch.linalg.cholesky_ex(scaled)
    regular = (info == 0) & lower.isfinite().all(-1).all(-1)
    lower = torch.where(regular[:, None, None], lower, torch.eye(size.shape[-1], dtype=torch.float64))
    right = -(gradient / size)[..., None]
    step = torch.cholesky_solve(right, lower)[..., 0]
    edm = 0.5 * (step * right[..., 0]).sum(-1)
    return step / size, edm, regular


def _next_damping(damping: Tensor, gain: Tensor, better: Tensor, *, small: Tensor) -> Tensor:
    good, poor = better & ((gain > 0.5) | small), ~better | ((gain < 0.1) & ~small)
    grown = torch.where(better, 4.0, 10.0) * damping.clamp(min=FIRST_DAMPING / 10)
    shrunk = torch.where(damping > FIRST_DAMPING / 10, damping / 10, 0.0)
    return torch.where(poor, grown, torch.where(good, shrunk, damping))


def newton_cg(likelihood: Likelihood, start: Tensor, *, free: Tensor, tolerance: float = TOLERANCE) -> Minimum:
    """Minimises `nll` from one starting point by a trust region and conjugate gradients.

    Only products of the Hessian with vectors are needed, so thousands of parameters are no burden; parameters that do
    not move are taken out. `Derivatives.preconditioner` is used where there is one.

    Args:
        likelihood: A model with data `(n_data,)`.
        start: Shape `(p,)`.
        free: Which parameters move, shape `(p,)`.
        tolerance: Estimated distance to the minimum.
    """
    low, high = likelihood.bounds.unbind(-1)
    free = free & (low < high)
    x = torch.where(free, start.detach().clamp(low, high), start.detach())
    radius, edm, converged, step_number = 10.0, torch.inf, False, 0
    nll, gradient = _value_and_gradient(likelihood, x)
    for step_number in range(1, MOST_STEPS + 1):
        outward = ((x <= low) & (gradient > 0)) | ((x >= high) & (gradient < 0))
        moving = free & ~outward
        step, edm, hit = _steihaug(likelihood, x, gradient, moving, radius)
        trial = torch.where(moving, (x + step).clamp(low, high), x)
        moved, next_gradient = _value_and_gradient(likelihood, trial)
        change = trial - x
        predicted = float(-(gradient @ change) - 0.5 * (change @ likelihood.hvp(x, change)))
        gain = float(nll - moved) / max(predicted, 1e-300) if torch.isfinite(moved) else -1.0
        better = gain > 1e-4 or (predicted < NOISE and float(moved - nll) <= NOISE)
        if better:
            x, nll, gradient = trial, moved, next_gradient
        converged = better and not hit and edm < tolerance
        if converged or radius < 1e-12:
            break
        if gain > 0.75 and hit:
            radius *= 3
        elif gain < 0.25 and predicted >= NOISE:
            radius = min(radius, float(_length(change))) / 4
    as_tensor = torch.tensor([edm], dtype=torch.float64)
    return Minimum(x[None], nll[None], as_tensor, torch.tensor([converged]), torch.tensor([step_number]))


def _steihaug(
    likelihood: Likelihood, x: Tensor, gradient: Tensor, moving: Tensor, radius: float
) -> tuple[Tensor, float, bool]:
    """Minimises the quadratic model inside a sphere; returns step, estimated distance, whether it hit the sphere."""
    of_model = likelihood.derivatives.preconditioner(x)
    precondition: Callable[[Tensor], Tensor] = (lambda v: v) if of_model is None else of_model
    residual = gradient.masked_fill(~moving, 0.0)
    step = torch.zeros_like(x)
    conjugate = precondition(residual).masked_fill(~moving, 0.0)
    direction, power = -conjugate, float(residual @ conjugate)
    # Superlinear convergence needs ever better solutions, but none better than what the tolerance can see.
    enough = max(min(0.1, power**0.25) ** 2 * power, 1e-3 * TOLERANCE) if power > 0 else 0.0
    edm = 0.0
    for _ in range(max(20, 2 * len(x))):
        if power <= 0:
            break
        product = likelihood.hvp(x, direction).masked_fill(~moving, 0.0)
        curvature = float(direction @ product)
        length = power / curvature if curvature > 0 else torch.inf
        trial = step + length * direction if curvature > 0 else step
        if curvature <= 0 or float(_length(trial)) >= radius:
            return _to_sphere(step, direction, radius), torch.inf, True
        edm += 0.5 * length * power
        step, residual = trial, residual + length * product
        conjugate = precondition(residual).masked_fill(~moving, 0.0)
        next_power = float(residual @ conjugate)
        if next_power <= enough:
            break
        direction, power = -conjugate + next_power / power * direction, next_power
    return step, edm, False


def _to_sphere(step: Tensor, direction: Tensor, radius: float) -> Tensor:
    a, b, c = direction @ direction, 2 * step @ direction, step @ step - radius**2
    t = (-b + (b * b - 4 * a * c).clamp(min=0).sqrt()) / (2 * a)
    return step + t * direction


def _length(vector: Tensor) -> Tensor:
    return (vector @ vector).sqrt()


def _value_and_gradient(likelihood: Likelihood, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        nll = likelihood.nll(x)
    return nll, likelihood.gradient(x)
