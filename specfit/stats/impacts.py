r"""Pulls and impacts: what the fit learned about each nuisance, and how much each moves a parameter of interest.

What to use when:

- `pulls`: :math:`(\hat\theta - \theta_0) / \sigma_0` and the ratio of the uncertainty after to that before the fit;
- `impacts`: the change of a parameter of interest when a nuisance is held one standard deviation from its best value,
  up and down, and everything else is fitted again. `refit=False` takes the linear answer from the covariance,
  :math:`C_{ij} / \sigma_j`, which costs nothing.

Conventions: ordered by size, the largest first. All refits of all nuisances advance together.
"""

from __future__ import annotations

__all__ = ["Impact", "Impacts", "Pull", "impacts", "pulls"]

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from specfit import plots
from specfit.errors import InputError
from specfit.io.files import finite_or_none
from specfit.stats.fit_result import FitResult
from specfit.stats.fitting import fit, fit_rows, free_parameters
from specfit.stats.likelihood import Likelihood

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Pull(NamedTuple):
    """What the fit learned about a constrained parameter."""

    parameter: str
    pull: float
    """Distance of the best value from the centre of the constraint, in its standard deviations."""
    width: float
    """Standard deviation after the fit over that before."""


class Impact(NamedTuple):
    """What a nuisance does to the parameter of interest."""

    parameter: str
    up: float
    """Change for one standard deviation up, after the fit."""
    down: float
    up_before: float
    """Change for one standard deviation of the constraint alone; nan for a parameter without one."""
    down_before: float
    pull: float
    width: float

    @property
    def size(self) -> float:
        """The larger of the two changes after the fit."""
        return max(abs(self.up), abs(self.down))


@dataclass(frozen=True)
class Impacts:
    """Impacts on one parameter, the largest first.

    Args:
        parameter: The parameter of interest.
        impacts: One for each nuisance.
        converged: Whether every fit arrived.
    """

    parameter: str
    impacts: tuple[Impact, ...]
    converged: bool

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return {
            "parameter": self.parameter,
            "converged": self.converged,
            "impacts": [finite_or_none(one._asdict()) for one in self.impacts],
        }

    def plot(self) -> Figure:
        """Draws impacts and pulls, the twenty largest."""
        return plots.draw_impacts(self)

    def __str__(self) -> str:
        """Writes a table, one nuisance a line."""
        width = max((len(one.parameter) for one in self.impacts), default=9)
        head = f"{'on ' + self.parameter:{width}} {'up':>10} {'down':>10} {'pull':>8} {'width':>7}"
        rows = [
            f"{one.parameter:{width}} {one.up:+10.4g} {one.down:+10.4g} {_pull_text(one)}".rstrip()
            for one in self.impacts
        ]
        return "\n".join([head, *rows])


def _pull_text(one: Impact) -> str:
    return f"{one.pull:+8.3f} {one.width:7.3f}" if one.width == one.width else ""


def pulls(likelihood: Likelihood, best: FitResult | None = None) -> list[Pull]:
    """Computes the pulls of all constrained parameters that moved.

    Args:
        likelihood: A model with one set of data.
        best: Its fit, where it is known already.
    """
    best = best or fit(likelihood)
    numbers = (likelihood.constrained & ~best.fixed).nonzero()[:, 0].tolist()
    pull, width = _pulls(likelihood, best)
    return [Pull(likelihood.parameter_names[i], float(pull[i]), float(width[i])) for i in numbers]


def impacts(
    likelihood: Likelihood, parameter: str | None = None, *, best: FitResult | None = None, refit: bool = True
) -> Impacts:
    """Computes the impact of every nuisance on a parameter of interest.

    Args:
        likelihood: A model with one set of data.
        parameter: The parameter of interest; None takes the first.
        best: The free fit, where it is known already.
        refit: Whether to fit again; else the linear answer.

    Raises:
        InputError: There is no such parameter, or its uncertainty is not known.
    """
    best = best or fit(likelihood)
    name = likelihood.parameter_names[0] if parameter is None else parameter
    number = likelihood.index(name)
    others = [i for i in (~best.fixed).nonzero()[:, 0].tolist() if i != number and i >= likelihood.n_poi]
    others = [i for i in others if 0 < float(best.uncertainties[i]) < torch.inf]
    if not 0 < best.uncertainty(name) < torch.inf:
        raise InputError(f"parameter: the uncertainty of {name} is not known; {best.message}")
    after = best.uncertainties[others]
    before = torch.where(likelihood.constrained, likelihood.priors[:, 1], torch.nan)[others]
    shifts = torch.stack([after, -after, before, -before])  # (4, n)
    moved, converged = (
        _moved(likelihood, best, number, others, shifts) if refit else _linear(best, number, others, shifts)
    )
    pull, width = _pulls(likelihood, best)
    found = [
        Impact(likelihood.parameter_names[i], up, down, more, less, float(pull[i]), float(width[i]))
        for i, (up, down, more, less) in zip(others, moved.T.tolist(), strict=True)
    ]
    return Impacts(name, tuple(sorted(found, key=lambda one: -one.size)), best.converged and converged)


def _moved(
    likelihood: Likelihood, best: FitResult, number: int, others: list[int], shifts: Tensor
) -> tuple[Tensor, bool]:
    """Changes of the parameter in refits, shape `(4, n)`."""
    known = shifts.isfinite()
    which = torch.tensor(others).expand_as(shifts)[known]
    start = best.values.repeat(len(which), 1)
    rows = torch.arange(len(which))
    # The linear answer is where the refit starts.
    start += (shifts[known] / best.uncertainties[which] ** 2)[:, None] * best.covariance[which]
    start[rows, which] = best.values[which] + shifts[known]
    start = torch.where(best.fixed, best.values, start)
    free = free_parameters(likelihood).repeat(len(which), 1) & ~best.fixed
    free[rows, which] = False
    found = fit_rows(likelihood, start, free)
    moved = torch.full_like(shifts, torch.nan)
    moved[known] = found.values[:, number] - best.values[number]
    return moved, bool(found.converged.all())


def _linear(best: FitResult, number: int, others: list[int], shifts: Tensor) -> tuple[Tensor, bool]:
    slopes = best.covariance[number, others] / best.uncertainties[others] ** 2
    return shifts * slopes, True


def _pulls(likelihood: Likelihood, best: FitResult) -> tuple[Tensor, Tensor]:
    centre, width = likelihood.priors.unbind(-1)
    constrained = likelihood.constrained
    safe = torch.where(constrained, width, 1.0)
    pull = torch.where(constrained, (best.values - centre) / safe, torch.nan)
    return pull, torch.where(constrained, best.uncertainties / safe, torch.nan)
