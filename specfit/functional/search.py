"""The search for the lowest minimum: several starts, Fisher scoring within the limits, and Minuit for one spectrum."""

from __future__ import annotations

__all__ = ["Found", "finish_with_minuit", "lowest_from", "lowest_of_starts"]

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from specfit.functional.descent import descend
from specfit.functional.likelihood import Likelihood

# Starts that end within this of the lowest log likelihood found the same minimum.
SAME_MINIMUM = 0.01
# A deviance so many standard deviations above its degrees of freedom asks for EXTRA times as many starts again.
POOR, EXTRA = 5.0, 3
# Least curvature of an entry that Minuit may divide by.
SMALLEST_CURVATURE = 1e-6


class Found(NamedTuple):
    """Where the searches of m spectra ended."""

    position: Tensor
    """Shape `(m, n)`."""
    nll: Tensor
    """Shape `(m,)`."""
    n_agreeing: Tensor
    """How many starts ended in the lowest minimum, shape `(m,)`."""


def lowest_of_starts(likelihood: Likelihood, starts: int, *, rng: torch.Generator | None) -> Found:
    """Descends from several starts; spectra that are then described badly get `EXTRA` times as many more.

    A component that an early wild step has taken away does not come back: that start is lost, and now and then all are.
    """
    positions = likelihood.function.starting_points(
        likelihood.counts, likelihood.mask, (1 + EXTRA) * starts, rng=rng
    )  # (m, (1 + EXTRA) starts, n)
    found = lowest_from(likelihood, positions[:, :starts])
    ndf = (~likelihood.mask).sum(-1) - positions.shape[-1]
    poor = (2 * found.nll > ndf + POOR * (2 * ndf.clamp(min=1)).sqrt()).nonzero()[:, 0]
    if len(poor):
        again = lowest_from(likelihood.rows(poor), positions[poor, starts:])
        better = again.nll < found.nll[poor] - SAME_MINIMUM
        for whole, part in zip(found, again, strict=True):
            whole[poor[better]] = part[better]
    return found


def lowest_from(likelihood: Likelihood, positions: Tensor) -> Found:
    """Descends from given starts, shape `(m, starts, n)`, and takes the lowest end of each spectrum."""
    m, starts, n = positions.shape
    rows = torch.arange(m).repeat_interleave(starts)
    end = descend(likelihood.rows(rows), positions.reshape(m * starts, n))
    lowest, at = end.nll.view(m, starts).min(-1)
    n_agreeing = (end.nll.view(m, starts) < lowest[:, None] + SAME_MINIMUM).sum(-1)
    return Found(end.position.view(m, starts, n)[torch.arange(m), at], lowest, n_agreeing)


def finish_with_minuit(likelihood: Likelihood, position: Tensor) -> tuple[Tensor, str]:
    """Minimises for one spectrum from near the minimum, shape `(1, n)`; returns where, and what went wrong."""
    from iminuit import Minuit

    # Minuit asks for the value, the gradient and the Hessian at a point one after another.
    @functools.lru_cache(maxsize=1)
    def at(numbers: tuple[float, ...]) -> tuple[float, npt.NDArray[Any], npt.NDArray[Any]]:
        there = torch.tensor([numbers], dtype=torch.float64)
        point = likelihood.evaluate(there)
        # The constraint gives a curvature to directions of which the data say nothing; Minuit divides by it.
        hessian = (point.fisher + likelihood.function.constraint(there))[0].numpy()
        return point.nll.item(), point.gradient[0].numpy(), hessian + SMALLEST_CURVATURE * np.eye(len(hessian))

    function = likelihood.function
    minuit = Minuit(
        lambda p: at(tuple(p))[0],
        position[0].numpy(),
        grad=lambda p: at(tuple(p))[1],
        hessian=lambda p: at(tuple(p))[2],
        name=function.names,
    )
    minuit.errordef, minuit.strategy = Minuit.LIKELIHOOD, 0
    minuit.limits = list(zip(function.low.tolist(), function.high.tolist(), strict=True))
    # In Minuit's map of limited parameters the likelihood has no slope at a limit.
    minuit.fixed = ((position <= function.low) | (position >= function.high))[0].tolist()
    minuit.migrad()
    values = torch.tensor([list(minuit.values)], dtype=torch.float64)
    if minuit.valid:
        return values, ""
    end = "at its call limit" if minuit.fmin.has_reached_call_limit else f"{minuit.fmin.edm:.2g} above the minimum"
    return values, f"Minuit stopped {end}: give more starts, fewer components or other ranges"
