"""Descent by damped Fisher scoring within limits: many spectra at once, each of which stops when it is done.

Source: H. B. Nielsen, Damping parameter in Marquardt's method, IMM-REP-1999-05, DTU (1999), for the damping.
"""

from __future__ import annotations

__all__ = ["Descent", "descend", "estimated_distance"]

from typing import NamedTuple

import torch
from torch import Tensor

from specfit.functional.likelihood import Likelihood, Point

# A row stops after so many steps, or after so many in a row that each gain less than this.
MOST_STEPS, SMALLEST_GAIN, IDLE_STEPS = 200, 1e-5, 2
FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-3, 1e-7, 1e8
# The damping falls to this share of itself after a perfect step and grows by this factor after one that is refused.
MOST_RELIEF, PENALTY = 1 / 3, 4.0
# Curvature that is damped where the data say nothing; positions are of order 1.
FLAT = 1.0


class Descent(NamedTuple):
    """Where descents ended."""

    nll: Tensor
    """Shape `(m,)`."""
    position: Tensor
    """Shape `(m, n)`."""


def descend(likelihood: Likelihood, position: Tensor) -> Descent:
    """Descends from positions of shape `(m, n)`, one a spectrum of the likelihood, each on its own."""
    position, everyone = position.clone(), torch.arange(len(position))
    point = likelihood.evaluate(position)
    final = Descent(point.nll.clone(), position.clone())
    damping, idle = torch.full((len(position),), FIRST_DAMPING).double(), torch.zeros(len(position))
    active, rows = likelihood, everyone
    for _ in range(MOST_STEPS):
        trial = _damped_step(active, position, point, damping)
        there = active.evaluate(trial)
        gain, better = point.nll - there.nll, there.nll < point.nll
        idle = torch.where(better, torch.where(gain < SMALLEST_GAIN, idle + 1, 0.0), idle)
        damping = torch.where(better, _relieved(damping, gain / _promise(point, trial - position)), damping * PENALTY)
        point = Point(*(_where(better, new, old) for new, old in zip(there, point, strict=True)))
        position = _where(better, trial, position)
        going = (idle < IDLE_STEPS) & (damping <= MOST_DAMPING)
        if not going.all():
            final.nll[rows], final.position[rows] = point.nll, position
            rows, active = rows[going], active.rows(going)
            position, damping, idle = position[going], damping[going], idle[going]
            point = Point(*(part[going] for part in point))
        if not len(rows):
            break
    final.nll[rows], final.position[rows] = point.nll, position
    return final


def estimated_distance(likelihood: Likelihood, position: Tensor) -> Tensor:
    """Estimates how far the log likelihood lies above its minimum within the limits, shape `(m,)`."""
    function, point = likelihood.function, likelihood.evaluate(position)
    matrix = point.fisher + function.constraint(position)
    matrix.diagonal(dim1=-2, dim2=-1).add_(1e-9)
    free = _free(position, point.gradient, function.low, function.high)
    return -(_solve_free(matrix, point.gradient, free) * point.gradient).sum(-1) / 2


def _damped_step(likelihood: Likelihood, position: Tensor, point: Point, damping: Tensor) -> Tensor:
    """Goes to the minimum of the damped quadratic form within the limits and the longest step."""
    function, matrix = likelihood.function, point.fisher.clone()
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    diagonal += damping[:, None] * (diagonal + FLAT)
    low = torch.maximum(function.low, position - function.longest_step)
    high = torch.minimum(function.high, position + function.longest_step)
    return _step_in_box(position, point.gradient, matrix, low, high)


def _promise(point: Point, step: Tensor) -> Tensor:
    """Returns by how much the quadratic form promises to lower the likelihood, shape `(m,)`."""
    bend = (point.fisher @ step[..., None])[..., 0]
    return -(step * (point.gradient + bend / 2)).sum(-1).clamp(max=-1e-300)


def _relieved(damping: Tensor, kept: Tensor) -> Tensor:
    """Returns the damping after a step that kept this share of its promise (Nielsen's rule)."""
    return (damping * (1 - (2 * kept - 1) ** 3).clamp(min=MOST_RELIEF, max=2.0)).clamp(min=LEAST_DAMPING)


def _step_in_box(position: Tensor, gradient: Tensor, matrix: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Goes to the minimum of the quadratic form; what would leave the box stops at its limit, and the rest adapts."""
    trial, free = position.clone(), _free(position, gradient, low, high)
    rows = free.any(-1).nonzero()[:, 0]
    while len(rows):
        start, loose, form = position[rows], free[rows], matrix[rows]
        held = torch.where(loose, 0.0, trial[rows] - start)
        pull = gradient[rows] + (form @ held[..., None])[..., 0]
        moved = torch.where(loose, start + _solve_free(form, pull, loose), trial[rows])
        inside = torch.minimum(torch.maximum(moved, low[rows]), high[rows])
        trial[rows] = inside
        stays = inside == moved
        free[rows] = loose & stays
        rows = rows[~stays.all(-1) & (loose & stays).any(-1)]
    return trial


def _free(position: Tensor, gradient: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Tells which entries are not held at a limit, shape `(m, n)`."""
    return ~((position <= low) & (gradient > 0) | (position >= high) & (gradient < 0))


def _solve_free(matrix: Tensor, gradient: Tensor, free: Tensor) -> Tensor:
    """Returns the step that takes the gradient of the free entries to zero, 0 for the others, shape `(m, n)`."""
    only = torch.where(free[:, :, None] & free[:, None], matrix, torch.diag_embed((~free).double()))
    # Of unit diagonal: entries of an absent component are 1e12 times those of the others.
    length = only.diagonal(dim1=-2, dim2=-1).sqrt()
    scaled = only / (length[:, :, None] * length[:, None])
    right = torch.where(free, -gradient, 0.0) / length
    solution: Tensor = torch.linalg.solve_ex(scaled, right[..., None])[0][..., 0] / length
    return solution


def _where(condition: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(condition.view(-1, *[1] * (new.ndim - 1)), new, old)
