"""The fit of one spectrum: from a user's histogram to a background with its covariance, finished by Minuit."""

from __future__ import annotations

__all__ = ["CENTRES", "functional_fit"]

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from specfit import io
from specfit.arrays import ArrayLike
from specfit.background_fit import BackgroundFit
from specfit.errors import InputError
from specfit.functional.erf_exp import ErfExpSum
from specfit.functional.function import Function, FunctionOnBins
from specfit.functional.likelihood import Likelihood
from specfit.functional.points import plan_nodes, points_of_mean_density
from specfit.functional.result import FunctionalFit, answer
from specfit.functional.search import Found, finish_with_minuit, lowest_from, lowest_of_starts
from specfit.masks import describe_gaps, left_out_bins
from specfit.spectrum import Spectrum
from specfit.weights import describe_weights, event_weights

CENTRES = ("integrate", "iterate")
"""How `functional_fit` takes the density of a bin."""

# The centres are recomputed until none moves by more than this share of its bin, or so many times.
CENTRES_REST, MOST_ITERATIONS = 1e-3, 10
ONE_COMPONENT = ErfExpSum()


class _End(NamedTuple):
    """Where the search for one spectrum ended."""

    likelihood: Likelihood
    position: Tensor
    """Shape `(1, n)`."""
    n_agreeing: int
    problem: str
    """What went wrong and what to do; empty if nothing."""
    iterations: int = 0
    """How often the centres were recomputed."""


def functional_fit(
    spectrum: Any,
    edges: ArrayLike | None = None,
    *,
    function: Function = ONE_COMPONENT,
    centres: Literal["integrate", "iterate"] = "integrate",
    mask: ArrayLike | None = None,
    starts: int = 3,
    rng: torch.Generator | None = None,
) -> FunctionalFit:
    """Fits a function to one spectrum by binned Poisson maximum likelihood, with Minuit.

    Args:
        spectrum: One Spectrum, counts of shape `(n_bins,)`, or anything else that `specfit.read` takes.
        edges: Bin edges for bare counts.
        function: What is fitted: `ErfExpSum(n_components, ranges)`, `DijetFunction(sqrt_s)`, `ExpPolynomial(degree)`.
        centres: `"integrate"` integrates the density over bins; `"iterate"` (`ErfExpSum` only) takes it at recomputed
            centres.
        mask: Bins to leave out beside gaps, see `SpectrumFitter.fit`; the function is drawn through.
        starts: How many points the search starts from. One alone may end in a false minimum, with 5 components one in
            twenty does: a small p-value with the right form asks for more starts.
        rng: Draws the starting points. None takes the same evenly spread points at every call.

    Raises:
        InputError: Not one spectrum, edges on which the function is not defined, or an option that does not exist.

    Example:
        >>> from specfit.shapes import ErfExp
        >>> edges = torch.linspace(250, 1000, 31).double()
        >>> shape = ErfExp(*torch.tensor([1.0, 100.0, 350.0, 20.0]).double())
        >>> result = functional_fit(torch.softmax(shape.log_bins(edges), -1) * 1e6, edges)
        >>> {name: round(value, 3) for name, value in result.parameters.items()}
        {'yield_1': 1000000.0, 'rho_1': 1.0, 'alpha_1': 100.0, 'mu_1': 350.0, 'sigma_1': 20.0}
    """
    check_starts(starts)
    if centres not in CENTRES:
        raise InputError(f"centres: one of {', '.join(map(repr, CENTRES))} is expected, {centres!r} came")
    read = io.read(spectrum, edges)
    if read.is_batch:
        raise InputError(
            f"spectrum: one spectrum is expected, {len(read.counts)} came; fit them with functional_fit_many"
        )
    left_out = left_out_bins(read, mask)
    weights = event_weights(read, left_out[0])
    exposure = None if weights.exposure is None else weights.exposure[None]
    data = _Data((read.counts / weights.unit)[None], read.edges, left_out, exposure)
    if centres == "iterate":
        end = _fit_iterated(data, _check_iterable(function), starts, rng)
    else:
        end = _fit_on_bins(function.on(read.edges), data, starts, rng)
    return _result(end, read, weights.unit.view(1, 1), starts)


def check_starts(starts: int) -> None:
    """Refuses what is no whole number from 1 upwards."""
    if isinstance(starts, bool | float) or starts < 1:
        raise InputError(f"starts: a whole number from 1 upwards is expected, {starts!r} came")


class _Data(NamedTuple):
    """One spectrum."""

    counts: Tensor
    """In events of average weight, shape `(1, n_bins)`."""
    edges: Tensor
    mask: Tensor
    exposure: Tensor | None
    """How many events such a count stands for, shape `(1, n_bins)`; None for 1."""

    def likelihood(self, function: FunctionOnBins) -> Likelihood:
        """Returns the likelihood of a function."""
        return Likelihood(function, self.counts, self.mask, self.exposure)


def _fit_on_bins(function: FunctionOnBins, data: _Data, starts: int, rng: torch.Generator | None) -> _End:
    likelihood = data.likelihood(function)
    return _finish(likelihood, lowest_of_starts(likelihood, starts, rng=rng))


def _finish(likelihood: Likelihood, found: Found) -> _End:
    position, problem = finish_with_minuit(likelihood, found.position)
    return _End(likelihood, likelihood.function.ordered(position), int(found.n_agreeing), problem)


def _fit_iterated(data: _Data, function: ErfExpSum, starts: int, rng: torch.Generator | None) -> _End:
    edges, widths = data.edges, data.edges.diff()
    function.on(edges)  # refuses edges on which it is not defined
    nodes_per_bin = plan_nodes(edges, function.ranges.pairs())
    centres, log_widths = (edges[1:] + edges[:-1]) / 2, widths.log()[:, None]
    n_agreeing, last = [], None
    for iteration in range(MOST_ITERATIONS):
        at_centres = function.at(centres[:, None], log_widths)
        likelihood = data.likelihood(at_centres)
        found = lowest_of_starts(likelihood, starts, rng=rng) if last is None else lowest_from(likelihood, last)
        end = _finish(likelihood, found)._replace(iterations=iteration)
        n_agreeing.append(end.n_agreeing)
        parameters = at_centres.parameters(end.position).view(-1, 5)
        moved = points_of_mean_density(parameters, edges, centres, nodes_per_bin=nodes_per_bin)
        largest = float(((moved - centres).abs() / widths).max())
        if largest < CENTRES_REST:
            break
        centres, last = moved, end.position[None]
    if largest >= CENTRES_REST and not end.problem:
        end = end._replace(problem=f'a centre still moves by {largest:.2g} of its bin: take centres="integrate"')
    return end._replace(n_agreeing=n_agreeing[0])


def _result(end: _End, read: Spectrum, unit: Tensor, starts: int) -> FunctionalFit:
    names, found = end.likelihood.function.names, answer(end.likelihood, end.position, unit)
    text = end.problem or f"Minuit converged; {end.n_agreeing} of {starts} starts found this minimum"
    limited = [name for name, sits in zip(names, found.at_limit[0].tolist(), strict=True) if sits]
    if limited:
        text += f"; at a limit: {', '.join(limited)} (widen the ranges or take fewer components)"
    text = "; ".join([text, *describe_weights(read, end.likelihood.mask[0]), *describe_gaps(read)])
    fit = BackgroundFit(
        spectrum=read,
        background=found.background[0],
        factor=found.factor[0],
        n_parameters=found.n_parameters[0],
        mask=end.likelihood.mask[0],
        iterations=torch.tensor(end.iterations),
        converged=torch.tensor(not end.problem),
        message=text,
        left_out=end.likelihood.mask[0],
    )
    return FunctionalFit(
        fit=fit,
        parameters=dict(zip(names, found.parameters[0].tolist(), strict=True)),
        errors=dict(zip(names, found.errors[0].tolist(), strict=True)),
        nll=found.nll.item(),
        n_starts_agreeing=end.n_agreeing,
    )


def _check_iterable(function: Function) -> ErfExpSum:
    if not isinstance(function, ErfExpSum):
        raise InputError(f'centres: "iterate" knows ErfExpSum only, {type(function).__name__} came; take "integrate"')
    return function
