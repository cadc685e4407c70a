"""The search for the lowest minimum: several starts, Fisher scoring within the limits, Minuit at the end."""

from __future__ import annotations

__all__ = ["SMALLEST_SHARE", "Found", "search", "starting_points"]

import functools
from typing import NamedTuple

import numpy as np
import torch

from specfit.functional.likelihood import Array, Likelihood, Point, parameter_names

# Least yield over the total, so that no expectation becomes zero.
SMALLEST_SHARE = 1e-9
# Starts that end within this of the lowest log likelihood found the same minimum.
SAME_MINIMUM = 0.01
# Fisher scoring stops after so many steps, or after 3 in a row that each gain less than this.
MOST_STEPS, SMALLEST_GAIN = 200, 1e-5
# A step moves no entry of a position further: the first ones are wild, and a turn-on once lost is lost for good.
LONGEST_STEP = 0.1


class Found(NamedTuple):
    """Where a search ended."""

    likelihood: Likelihood
    position: Array
    """Components in the order of falling yield."""
    n_agreeing: int
    """How many starts ended in the lowest minimum."""
    problem: str
    """What went wrong and what to do; empty if nothing."""
    iterations: int = 0
    """How often the likelihood was rebuilt and searched again."""


def starting_points(n_components: int, starts: int, *, rng: torch.Generator | None) -> list[Array]:
    """Draws positions well within the limits, with equal yields; evenly spread and always the same without `rng`."""
    n_points = starts * n_components
    if rng is None:
        # Leaves out the first point of the sequence, a corner; the second is the middle of the ranges.
        spread = torch.quasirandom.SobolEngine(4)  # type: ignore[no-untyped-call]
        unit = spread.draw(n_points + 1, dtype=torch.float64)[1:]
    else:
        unit = torch.rand(n_points, 4, generator=rng, device=rng.device, dtype=torch.float64).cpu()
    share = torch.full((n_points, 1), 1 / n_components, dtype=torch.float64)
    components = torch.cat([share, 0.1 + 0.8 * unit], -1)
    return list(components.view(starts, 5 * n_components).numpy())


def search(likelihood: Likelihood, positions: list[Array]) -> Found:
    """Descends from every position and lets Minuit finish the lowest."""
    ends = [_descend(likelihood, position) for position in positions]
    lowest_nll, lowest = min(ends, key=lambda end: end[0])
    n_agreeing = sum(nll < lowest_nll + SAME_MINIMUM for nll, _ in ends)
    position, problem = _minimise(likelihood, lowest)
    components = position.reshape(-1, 5)
    return Found(likelihood, components[np.argsort(-components[:, 0])].ravel(), n_agreeing, problem)


def _descend(likelihood: Likelihood, position: Array) -> tuple[float, Array]:
    """Descends by damped Fisher scoring within the limits; returns the likelihood reached and where."""
    low, high = _box(len(position))
    point, damping, idle = likelihood.evaluate(position), 1e-3, 0
    for _ in range(MOST_STEPS):
        # The constants keep directions solvable of which the data say nothing.
        matrix = point.fisher + np.diag(damping * (point.fisher.diagonal() + 1e-6) + 1e-9)
        near = np.maximum(low, position - LONGEST_STEP), np.minimum(high, position + LONGEST_STEP)
        trial = _step_in_box(position, point.gradient, matrix, *near)
        there = likelihood.evaluate(trial)
        if there.nll < point.nll:
            idle = idle + 1 if point.nll - there.nll < SMALLEST_GAIN else 0
            position, point, damping = trial, there, max(damping / 5, 1e-7)
        else:
            damping *= 8
        if idle == 3 or damping > 1e8:
            break
    return point.nll, position


def _step_in_box(position: Array, gradient: Array, matrix: Array, low: Array, high: Array) -> Array:
    """Goes to the minimum of the quadratic form; what would leave the box stops at its limit, and the rest adapts."""
    trial = position.copy()
    free = ~((position <= low) & (gradient > 0) | (position >= high) & (gradient < 0))
    while free.any():
        pull = gradient[free] + matrix[np.ix_(free, ~free)] @ (trial - position)[~free]
        trial[free] = position[free] - np.linalg.solve(matrix[np.ix_(free, free)], pull)
        inside = trial.clip(low, high)
        free &= trial == inside
        if (trial == inside).all():
            break
        trial = inside
    return trial


def _minimise(likelihood: Likelihood, position: Array) -> tuple[Array, str]:
    """Minimises with Minuit from a point near the minimum; returns where, and what went wrong."""
    from iminuit import Minuit

    # Minuit asks for the value, the gradient and the Hessian at a point one after another.
    @functools.lru_cache(maxsize=1)
    def at(position: tuple[float, ...]) -> Point:
        return likelihood.evaluate(np.array(position))

    low, high = _box(len(position))
    minuit = Minuit(
        lambda p: at(tuple(p)).nll,
        position,
        grad=lambda p: at(tuple(p)).gradient,
        # The constraint gives a curvature to directions of which the data say nothing; Minuit divides by it.
        hessian=lambda p: at(tuple(p)).fisher + likelihood.constraint(p),
        name=parameter_names(len(position) // 5),
    )
    minuit.errordef, minuit.strategy = Minuit.LIKELIHOOD, 0
    minuit.limits = list(zip(low, high, strict=True))
    # In Minuit's map of limited parameters the likelihood has no slope at a limit.
    minuit.fixed = (position <= low) | (position >= high)
    minuit.migrad()
    values = np.array(minuit.values)
    if minuit.valid:
        return values, ""
    end = "at its call limit" if minuit.fmin.has_reached_call_limit else f"{minuit.fmin.edm:.2g} above the minimum"
    return values, f"Minuit stopped {end}: give more starts, fewer components or other ranges"


def _box(n: int) -> tuple[Array, Array]:
    """Returns the limits of a position of n entries."""
    low, high = np.zeros(n), np.ones(n)
    low[::5], high[::5] = SMALLEST_SHARE, np.inf
    return low, high
