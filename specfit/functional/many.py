"""The fit of thousands of spectra at once: the same likelihood and descent without Minuit, all advance together."""

from __future__ import annotations

__all__ = ["functional_fit_many"]

from typing import Any

import torch
from torch import Tensor

from specfit import io
from specfit.arrays import ArrayLike
from specfit.background_fit import BackgroundFit
from specfit.functional.descent import estimated_distance
from specfit.functional.fitting import ONE_COMPONENT, check_starts
from specfit.functional.function import Function, FunctionOnBins
from specfit.functional.likelihood import Likelihood
from specfit.functional.result import Answer, FunctionalFits, answer
from specfit.functional.search import lowest_of_starts
from specfit.masks import describe_gaps, left_out_bins
from specfit.spectrum import Spectrum
from specfit.weights import describe_weights, event_weights, split_exposure

# So many descents advance together; more would only need more memory.
DESCENTS_AT_A_TIME = 4096
# A fit has converged if the log likelihood is estimated to lie within this of its minimum.
CLOSE = 1e-3


def functional_fit_many(
    spectra: Any,
    edges: ArrayLike | None = None,
    *,
    function: Function = ONE_COMPONENT,
    mask: ArrayLike | None = None,
    starts: int = 3,
    rng: torch.Generator | None = None,
) -> FunctionalFits:
    """Fits a function to each of many spectra by binned Poisson maximum likelihood.

    The minimum is that of `functional_fit`, found by Fisher scoring alone. Whatever a start gains it gains by itself:
    the answer for a spectrum does not depend on those beside it.

    Args:
        spectra: Spectra on the same edges: a Spectrum, counts of shape `(m, n_bins)` or `(n_bins,)` (one of them), or
            anything else that `specfit.read` takes.
        edges: Bin edges for bare counts.
        function: What is fitted: `ErfExpSum(n_components, ranges)`, `DijetFunction(sqrt_s)`, `ExpPolynomial(degree)`.
        mask: Bins to leave out beside gaps, see `SpectrumFitter.fit`; the function is drawn through.
        starts: How many points each search starts from.
        rng: Draws the starting points. None takes the same evenly spread points at every call.

    Raises:
        InputError: No spectra, edges on which the function is not defined, or an option that does not exist.

    Example:
        >>> from specfit.functional import ExpPolynomial
        >>> edges = torch.linspace(0, 1, 21).double()
        >>> falls = torch.tensor([[-2.0], [-5.0]]).double() * (edges[1:] + edges[:-1]) / 2
        >>> fits = functional_fit_many(1e4 * falls.exp(), edges, function=ExpPolynomial(1))
        >>> fits.parameters["a1"]
        tensor([-2.0000, -5.0000], dtype=torch.float64)
    """
    check_starts(starts)
    read = io.read(spectra, edges)
    if not read.is_batch:
        variances = None if read.variances is None else read.variances[None]
        read = Spectrum(read.counts[None], read.edges, variances=variances, gaps=read.gaps)
    left_out = left_out_bins(read, mask)
    weights = event_weights(read, left_out)
    on_bins = function.on(read.edges)
    rows = max(1, DESCENTS_AT_A_TIME // starts)
    split = [torch.split(t, rows) for t in (read.counts / weights.unit, left_out, weights.unit)]
    exposures = split_exposure(weights.exposure, rows, len(read.counts))
    parts = [
        _fit_some(on_bins, counts, out, unit, exposure, starts=starts, rng=_same_draws(rng))
        for counts, out, unit, exposure in zip(*split, exposures, strict=True)
    ]
    found, distances, agreeing = zip(*parts, strict=True)
    whole = Answer(*(torch.cat(pieces) for pieces in zip(*found, strict=True)))
    return _result(on_bins, read, left_out, whole, torch.cat(distances), torch.cat(agreeing))


def _fit_some(
    function: FunctionOnBins,
    counts: Tensor,
    mask: Tensor,
    unit: Tensor,
    exposure: Tensor | None,
    *,
    starts: int,
    rng: torch.Generator | None,
) -> tuple[Answer, Tensor, Tensor]:
    """Fits a part; returns what it says, how far each is from its minimum, and how many starts agree."""
    likelihood = Likelihood(function, counts, mask, exposure)
    found = lowest_of_starts(likelihood, starts, rng=rng)
    position = function.ordered(found.position)
    return answer(likelihood, position, unit), estimated_distance(likelihood, position), found.n_agreeing


def _same_draws(rng: torch.Generator | None) -> torch.Generator | None:
    """Returns a copy, so that every part starts from the same points."""
    return None if rng is None else rng.clone_state()


def _result(
    function: FunctionOnBins, read: Spectrum, mask: Tensor, found: Answer, distance: Tensor, agreeing: Tensor
) -> FunctionalFits:
    converged = distance < CLOSE  # not a number is not below
    text = f"Fisher scoring: {int(converged.sum())} of {len(converged)} spectra converged"
    if not converged.all():
        text += "; for the others give more starts, fewer components or other ranges"
    text = "; ".join([text, *describe_weights(read, mask), *describe_gaps(read)])
    names = function.names
    fit = BackgroundFit(
        spectrum=read,
        background=found.background,
        factor=found.factor,
        n_parameters=found.n_parameters,
        mask=mask,
        iterations=torch.zeros(len(converged), dtype=torch.int64),
        converged=converged,
        message=text,
        left_out=mask,
    )
    return FunctionalFits(
        fit=fit,
        parameters=dict(zip(names, found.parameters.T, strict=True)),
        errors=dict(zip(names, found.errors.T, strict=True)),
        nll=found.nll,
        n_starts_agreeing=agreeing,
        at_limit=dict(zip(names, found.at_limit.T, strict=True)),
    )
