"""The fit: from a user's spectrum to a background with its covariance."""

from __future__ import annotations

__all__ = ["CENTRES", "FunctionalFit", "functional_fit"]

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from specfit import io
from specfit.arrays import ArrayLike
from specfit.background_fit import BackgroundFit
from specfit.errors import InputError
from specfit.functional.likelihood import Array, ErfExpRanges, Likelihood, parameter_names
from specfit.functional.points import expected_events, plan_nodes, points_of_mean_density
from specfit.functional.search import SMALLEST_SHARE, Found, search, starting_points
from specfit.shapes import quadrature
from specfit.significance import poisson_deviance
from specfit.spectrum import Spectrum

CENTRES = ("integrate", "iterate")
"""How `functional_fit` takes the density of a bin."""

# The centres are recomputed until none moves by more than this share of its bin, or so many times.
CENTRES_REST, MOST_ITERATIONS = 1e-3, 10
# Nearer than this to its end, as a share of the range, a parameter is said to sit at the limit.
AT_LIMIT = 1e-3
DEFAULT_RANGES = ErfExpRanges()


@dataclass(frozen=True, eq=False)
class FunctionalFit:
    """A function fitted to a spectrum.

    Args:
        fit: Background, covariance and agreement with the data.
        parameters: Fitted values by name: `yield_1` (events in the range), `rho_1`, `alpha_1`, `mu_1`, `sigma_1`, then
            those of component 2, which has a smaller yield, and so on.
        errors: Their standard deviations.
        nll: Negative log likelihood relative to a perfect description: half the Poisson deviance.
        n_starts_agreeing: How many starts ended in the lowest minimum, before Minuit finished it. Where it is 1 of
            several another start might find a lower one.
    """

    fit: BackgroundFit
    parameters: dict[str, float]
    errors: dict[str, float]
    nll: float
    n_starts_agreeing: int


def functional_fit(
    spectrum: Any,
    edges: ArrayLike | None = None,
    *,
    n_components: int = 1,
    centres: Literal["integrate", "iterate"] = "integrate",
    ranges: ErfExpRanges = DEFAULT_RANGES,
    starts: int = 3,
    rng: torch.Generator | None = None,
) -> FunctionalFit:
    """Fits N components Erf x exp to one spectrum by binned Poisson maximum likelihood.

    Args:
        spectrum: One Spectrum, counts of shape `(n_bins,)`, or anything else that `specfit.read` takes.
        edges: Bin edges for bare counts, positive.
        n_components: Number of components N.
        centres: `"integrate"` integrates the density over bins; `"iterate"` takes it at recomputed centres.
        ranges: Constraints of the parameters.
        starts: How many points the search starts from. One alone may end in a false minimum, with 5 components one in
            twenty does: a small p-value with the right form asks for more starts.
        rng: Draws the starting points. None takes the same evenly spread points at every call.

    Raises:
        InputError: Not one spectrum, edges that are not positive, or an option that does not exist.

    Example:
        >>> from specfit.shapes import ErfExp
        >>> edges = torch.linspace(250, 1000, 31).double()
        >>> shape = ErfExp(*torch.tensor([1.0, 100.0, 350.0, 20.0]).double())
        >>> result = functional_fit(torch.softmax(shape.log_bins(edges), -1) * 1e6, edges)
        >>> {name: round(value, 3) for name, value in result.parameters.items()}
        {'yield_1': 1000000.0, 'rho_1': 1.0, 'alpha_1': 100.0, 'mu_1': 350.0, 'sigma_1': 20.0}
    """
    _check_options(n_components, centres, starts)
    read = _check_spectrum(io.read(spectrum, edges))
    unit = read.content_per_event.item()
    events = Spectrum(read.counts / unit, read.edges)
    positions = starting_points(n_components, starts, rng=rng)
    found = (_fit_integrated if centres == "integrate" else _fit_iterated)(events, ranges, positions)
    return _result(found, read, unit, starts)


def _fit_integrated(events: Spectrum, ranges: ErfExpRanges, positions: list[Array]) -> Found:
    nodes, log_weights = quadrature(events.edges, plan_nodes(events.edges, ranges))
    return search(Likelihood(nodes, log_weights, events.counts, ranges), positions)


def _fit_iterated(events: Spectrum, ranges: ErfExpRanges, positions: list[Array]) -> Found:
    nodes_per_bin = plan_nodes(events.edges, ranges)
    centres, log_widths = events.centers, events.widths.log()[:, None]
    n_agreeing = []
    for iteration in range(MOST_ITERATIONS):
        found = search(Likelihood(centres[:, None], log_widths, events.counts, ranges), positions)
        found = found._replace(iterations=iteration)
        n_agreeing.append(found.n_agreeing)
        parameters = torch.from_numpy(found.likelihood.parameters(found.position))
        moved = points_of_mean_density(parameters, events.edges, centres, nodes_per_bin=nodes_per_bin)
        largest = float(((moved - centres).abs() / events.widths).max())
        if largest < CENTRES_REST:
            break
        centres, positions = moved, [found.position]
    if largest >= CENTRES_REST and not found.problem:
        found = found._replace(problem=f'a centre still moves by {largest:.2g} of its bin: take centres="integrate"')
    return found._replace(n_agreeing=n_agreeing[0])


def _result(found: Found, read: Spectrum, unit: float, starts: int) -> FunctionalFit:
    likelihood, position = found.likelihood, found.position
    values = torch.from_numpy(likelihood.parameters(position))
    expected = expected_events(values, likelihood.x, likelihood.log_weights)
    log_factor, root = _square_roots(likelihood, position)
    in_units = torch.ones_like(values)
    in_units[:, 0] = unit
    parameters = (values * in_units).flatten().tolist()
    errors = (root.square().sum(-1).sqrt() * in_units.flatten()).tolist()
    names = parameter_names(len(values))
    deviance: Tensor = poisson_deviance(likelihood.counts, expected)
    fit = BackgroundFit(
        spectrum=read,
        background=expected * unit,
        factor=expected[:, None] * log_factor * unit,
        n_parameters=(expected * log_factor.square().sum(-1)).sum(),
        mask=torch.zeros(read.n_bins, dtype=torch.bool),
        iterations=torch.tensor(found.iterations),
        converged=torch.tensor(not found.problem),
        message=_message(found, starts),
    )
    return FunctionalFit(
        fit=fit,
        parameters=dict(zip(names, parameters, strict=True)),
        errors=dict(zip(names, errors, strict=True)),
        nll=deviance.sum().item() / 2,
        n_starts_agreeing=found.n_agreeing,
    )


def _square_roots(likelihood: Likelihood, position: Array) -> tuple[Tensor, Tensor]:
    """Returns square roots of two covariances: of the log of the expected events, and of the parameters."""
    point = likelihood.evaluate(position)
    information = point.fisher + likelihood.constraint(position)
    # Of unit diagonal: entries of an absent component are 1e12 times those of the others.
    length = np.sqrt(information.diagonal())
    root = np.linalg.inv(np.linalg.cholesky(information / np.outer(length, length))).T / length[:, None]
    return torch.from_numpy(point.log_jacobian.T @ root), torch.from_numpy(likelihood.scale(position)[:, None] * root)


def _message(found: Found, starts: int) -> str:
    text = found.problem or f"Minuit converged; {found.n_agreeing} of {starts} starts found this minimum"
    shares = np.arange(len(found.position)) % 5 == 0
    at_end = np.abs(found.position - np.round(found.position)) < AT_LIMIT
    at_limit = np.where(
        shares, found.position < 2 * SMALLEST_SHARE, at_end & (found.likelihood.scale(found.position) > 0)
    )
    names = [name for name, sits in zip(parameter_names(len(shares) // 5), at_limit, strict=True) if sits]
    if names:
        text += f"; at a limit: {', '.join(names)} (widen the ranges or take fewer components)"
    return text


def _check_options(n_components: int, centres: str, starts: int) -> None:
    for name, number in (("n_components", n_components), ("starts", starts)):
        if isinstance(number, bool | float) or number != int(number) or number < 1:
            raise InputError(f"{name}: a whole number from 1 upwards is expected, {number!r} came")
    if centres not in CENTRES:
        raise InputError(f"centres: one of {', '.join(map(repr, CENTRES))} is expected, {centres!r} came")


def _check_spectrum(spectrum: Spectrum) -> Spectrum:
    if spectrum.is_batch:
        raise InputError(f"spectrum: one spectrum is expected, {len(spectrum.counts)} came; fit them one at a time")
    if spectrum.edges[0] <= 0:
        raise InputError(f"edges: a power of x needs positive edges, the first is {spectrum.edges[0]:g}")
    return spectrum
