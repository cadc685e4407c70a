r"""Profile likelihoods: how :math:`-\ln L` rises when a parameter is held and all others are fitted again.

What to use when:

- `scan`: the curve for a parameter, and the one without systematic uncertainties beside it;
- `contour`: the same for two parameters, on a grid;
- `minos`: only where the curve crosses one standard deviation (or more), on both sides, to many digits.

Conventions: curves are :math:`2 \Delta \ln L`, 1 at one standard deviation of one parameter. Points of a curve are
fitted together. The statistics-only curve holds every constrained parameter at its best value.

Sources: F. James, M. Roos, Comput. Phys. Commun. 10 (1975) 343 (MINOS); G. Cowan et al., arXiv:1007.1727, eq. 7.
"""

from __future__ import annotations

__all__ = ["Contour", "Interval", "Scan", "contour", "minos", "scan"]

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import scipy.optimize
import scipy.stats
import torch
from torch import Tensor

from specfit import plots
from specfit.arrays import ArrayLike, as_float64
from specfit.errors import InputError
from specfit.stats.fit_result import FitResult
from specfit.stats.fitting import LARGEST_DENSE, fit, fit_many, fit_rows, free_parameters
from specfit.stats.likelihood import Likelihood

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLOSE = 1e-9  # relative, where a crossing counts as found
FARTHEST = 1e6  # first steps, within which a curve reaches a height or never does
FINE_ENOUGH = 1e-8  # distance to the minimum before the last step of a fit: nobody sees it in a curve


@dataclass(frozen=True, eq=False)
class Scan:
    """The profile of one parameter.

    Args:
        parameter: Its name.
        points: Values at which it was held, shape `(n,)`.
        curve: Twice the rise of the negative log likelihood, shape `(n,)`.
        statistical: The same with constrained parameters held, shape `(n,)`; None where nothing is constrained.
        best: Value at the minimum.
        converged: Whether every fit arrived.
    """

    parameter: str
    points: Tensor
    curve: Tensor
    statistical: Tensor | None
    best: float
    converged: bool

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return {
            "parameter": self.parameter,
            "best": self.best,
            "points": self.points.tolist(),
            "curve": self.curve.tolist(),
            "statistical": None if self.statistical is None else self.statistical.tolist(),
            "converged": self.converged,
        }

    def plot(self) -> Figure:
        """Draws the curves with lines at 1, 2 and 3 standard deviations."""
        return plots.draw_scan(self)

    def __str__(self) -> str:
        """Writes the points as a table."""
        beside = [""] * len(self.points) if self.statistical is None else [f"{s:12.6g}" for s in self.statistical]
        rows = [f"{x:12.6g} {y:12.6g} {s}".rstrip() for x, y, s in zip(self.points, self.curve, beside, strict=True)]
        head = (
            f"{self.parameter:>12} {'2 dlnL':>12} {'stat. only' if self.statistical is not None else '':>12}".rstrip()
        )
        return "\n".join([head, *rows])


@dataclass(frozen=True, eq=False)
class Contour:
    """The profile of two parameters on a grid.

    Args:
        parameters: Their names.
        first: Values of the first, shape `(n,)`.
        second: Values of the second, shape `(m,)`.
        surface: Twice the rise of the negative log likelihood, shape `(n, m)`.
        best: Values at the minimum.
        converged: Whether every fit arrived.
    """

    parameters: tuple[str, str]
    first: Tensor
    second: Tensor
    surface: Tensor = field(repr=False)
    best: tuple[float, float]
    converged: bool

    @staticmethod
    def height(probability: float) -> float:
        """Height at which a region of this probability ends, for two parameters: 2.30 for 68.3 %.

        Example:
            >>> round(Contour.height(0.95), 3)
            5.991
        """
        return float(scipy.stats.chi2.ppf(probability, 2))

    def plot(self) -> Figure:
        """Draws the regions of 68 % and 95 %."""
        return plots.draw_contour(self)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return {
            "parameters": list(self.parameters),
            "first": self.first.tolist(),
            "second": self.second.tolist(),
            "surface": self.surface.tolist(),
            "best": list(self.best),
            "converged": self.converged,
        }


class Interval(NamedTuple):
    """Where a profile crosses."""

    parameter: str
    best: float
    lower: float
    """Distance below the best value, negative; minus infinity where a limit or nothing stops it."""
    upper: float
    """Distance above the best value."""
    converged: bool


def scan(
    likelihood: Likelihood,
    parameter: str | None = None,
    *,
    points: ArrayLike | None = None,
    size: int = 31,
    n_sigma: float = 3.0,
    statistical: bool = True,
    best: FitResult | None = None,
) -> Scan:
    """Profiles one parameter.

    Args:
        likelihood: A model with one set of data.
        parameter: Its name; None takes the first parameter of interest.
        points: Values to hold it at, shape `(n,)`; None spreads `size` of them over `n_sigma` standard deviations on
            both sides, within its limits.
        size: Number of points.
        n_sigma: Reach in standard deviations.
        statistical: Whether to add the curve without systematic uncertainties.
        best: The free fit, where it is known already.

    Raises:
        InputError: There is no such parameter, or its uncertainty is not known, which leaves the points open.
    """
    best = best or fit(likelihood)
    name = likelihood.parameter_names[0] if parameter is None else parameter
    at = _points(likelihood, best, name, size, n_sigma) if points is None else as_float64(points, "points")
    start = _linear(likelihood, best, {name: at})
    many = fit_many(likelihood, fixed={name: at}, start=start, tolerance=FINE_ENOUGH)
    curve = 2 * (many.nll - best.nll)
    beside = _statistical(likelihood, best, name, at) if statistical and bool(likelihood.constrained.any()) else None
    return Scan(name, at, curve, beside, best.value(name), best.converged and bool(many.converged.all()))


def contour(
    likelihood: Likelihood,
    parameters: Sequence[str],
    *,
    size: int = 25,
    n_sigma: float = 3.0,
    points: tuple[ArrayLike, ArrayLike] | None = None,
    best: FitResult | None = None,
) -> Contour:
    """Profiles two parameters on a grid.

    Args:
        likelihood: A model with one set of data.
        parameters: Their two names.
        size: Points on each side of the grid.
        n_sigma: Reach in standard deviations.
        points: Values of both instead of `size` and `n_sigma`.
        best: The free fit, where it is known already.

    Raises:
        InputError: Not two different parameters of the model.
    """
    if len(parameters) != 2 or parameters[0] == parameters[1]:
        raise InputError(f"parameters: two different names are expected, {', '.join(parameters)} came")
    best = best or fit(likelihood)
    one, two = parameters
    if points is None:
        first, second = (_points(likelihood, best, name, size, n_sigma) for name in (one, two))
    else:
        first, second = as_float64(points[0], "points"), as_float64(points[1], "points")
    x, y = torch.meshgrid(first, second, indexing="ij")
    held = {one: x.flatten(), two: y.flatten()}
    many = fit_many(likelihood, fixed=held, start=_linear(likelihood, best, held), tolerance=FINE_ENOUGH)
    surface = 2 * (many.nll - best.nll).reshape(x.shape)
    centre = best.value(one), best.value(two)
    return Contour((one, two), first, second, surface, centre, best.converged and bool(many.converged.all()))


def minos(
    likelihood: Likelihood,
    parameters: Sequence[str] | None = None,
    *,
    n_sigma: float = 1.0,
    best: FitResult | None = None,
) -> list[Interval]:
    """Finds where the profile rises by `n_sigma` standard deviations, on both sides.

    Args:
        likelihood: A model with one set of data.
        parameters: Names; None takes all parameters of interest.
        n_sigma: Standard deviations.
        best: The free fit, where it is known already.

    Raises:
        InputError: There is no such parameter.
    """
    best = best or fit(likelihood)
    names = likelihood.parameter_names[: max(1, likelihood.n_poi)] if parameters is None else parameters
    return [_interval(likelihood, best, name, n_sigma) for name in names]


def _interval(likelihood: Likelihood, best: FitResult, name: str, n_sigma: float) -> Interval:
    profile = Profile(likelihood, best, name)
    sigma = best.uncertainty(name)
    width = n_sigma * sigma if 0 < sigma < math.inf else 1.0
    low, high = likelihood.bounds[likelihood.index(name)].tolist()
    ends = [
        profile.crossing(n_sigma**2, step, limit)
        for step, limit in ((-width, low - profile.best), (width, high - profile.best))
    ]
    return Interval(name, profile.best, ends[0], ends[1], best.converged and profile.converged)


class Profile:
    """The rise of twice the negative log likelihood along one parameter; each fit starts from the one before."""

    def __init__(self, likelihood: Likelihood, best: FitResult, name: str) -> None:
        self._likelihood, self._number = likelihood, likelihood.index(name)
        self._least, self.best = best.nll, best.value(name)
        self._at, self.converged = best.values, True

    def __call__(self, value: float) -> float:
        """Rise at a value."""
        start = self._at.clone()
        start[self._number] = value
        free = free_parameters(self._likelihood)
        free[self._number] = False
        found = fit_rows(self._likelihood, start[None], free[None])
        self.converged = self.converged and bool(found.converged.all())
        self._at = found.values[0]
        return 2 * (float(found.nll) - self._least)

    def crossing(self, height: float, step: float, limit: float) -> float:
        """Distance from the best value at which the rise is `height`; infinite where a limit comes before."""
        near, far = 0.0, _towards(step, limit)
        while self(self.best + far) < height:
            if far == limit or abs(far) > FARTHEST * abs(step):
                return math.copysign(math.inf, step)
            near, far = far, _towards(2 * far, limit)
        return root(lambda d: math.sqrt(max(self(self.best + d), 0.0)) - math.sqrt(height), near, far)


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Finds where a function that changes sign between two points is 0."""
    return float(scipy.optimize.brentq(function, low, high, xtol=CLOSE * abs(high - low), rtol=CLOSE))


def root_above(function: Callable[[float], float], low: float, step: float) -> float:
    """Finds where a function that is positive at `low` falls to 0 above it; infinite where it stays positive."""
    near, far = low, low + step
    while function(far) > 0:
        if far - low > FARTHEST * step:
            return math.inf
        near, far = far, 2 * far
    return root(function, near, far)


def _towards(step: float, limit: float) -> float:
    return max(step, limit) if step < 0 else min(step, limit)


def _points(likelihood: Likelihood, best: FitResult, name: str, size: int, n_sigma: float) -> Tensor:
    sigma = best.uncertainty(name)
    if not 0 < sigma < math.inf:
        raise InputError(f"points: the uncertainty of {name} is not known, so give the points")
    low, high = likelihood.bounds[likelihood.index(name)].tolist()
    reach = n_sigma * sigma
    first, last = max(low, best.value(name) - reach), min(high, best.value(name) + reach)
    return torch.linspace(first, last, size, dtype=torch.float64)


def _linear(likelihood: Likelihood, best: FitResult, held: Mapping[str, Tensor]) -> Tensor:
    """Where the others would go if the likelihood were Gaussian, shape `(m, p)`: the refits start there.

    They start at the best values where that is not known, or impossible.
    """
    numbers = [likelihood.index(name) for name in held]
    points = torch.stack(list(held.values()), -1)  # (m, n)
    start = best.values.repeat(len(points), 1)
    start[:, numbers] = points
    covariance = best.covariance[numbers]
    if not covariance.isfinite().all() or len(numbers) > LARGEST_DENSE:
        return start
    moves = (points - best.values[numbers]) @ torch.linalg.pinv(covariance[:, numbers], hermitian=True) @ covariance
    low, high = likelihood.bounds.unbind(-1)
    moved = torch.where(best.fixed, best.values, (best.values + moves).clamp(low, high))
    moved[:, numbers] = points
    with torch.no_grad():
        possible = likelihood.nll(moved).isfinite()
    return torch.where(possible[:, None], moved, start)


def _statistical(likelihood: Likelihood, best: FitResult, name: str, at: Tensor) -> Tensor:
    held = likelihood.constrained.clone()
    held[likelihood.index(name)] = True
    fixed = {
        other: best.value(other) for other, is_held in zip(likelihood.parameter_names, held, strict=True) if is_held
    }
    all_held = {**{other: torch.full_like(at, value) for other, value in fixed.items()}, name: at}
    start = _linear(likelihood, best, all_held)
    many = fit_many(likelihood, fixed={**fixed, name: at}, start=start, tolerance=FINE_ENOUGH)
    return 2 * (many.nll - best.nll)
