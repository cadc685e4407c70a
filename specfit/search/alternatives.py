r"""A background of another family than the net's own: the truth of a test that is not circular.

`best_alternative` fits three families by maximum Poisson likelihood and takes the smallest Akaike criterion,
deviance + 2 parameters, of those that describe the data:

- "dijet": :math:`(1 - z)^{p_1} z^{-p_2 - p_3 \ln z - p_4 \ln^2 z}`, with 3, 4 and 5 parameters,
  :math:`z = x / (1.5\, x_{max})`;
- "exponential of a polynomial": in x and in ln x, of degrees 1 to 6;
- "Erf x exp": `specfit.functional_fit` with 1 and 2 components (not where bins are left out).

Where the first edge is not above 0 only the polynomials in x are tried. The first two families are linear in the log of
the density, which is integrated over bins.

Sources: CDF, arXiv:0812.4036, and ATLAS, arXiv:1703.09127, for the dijet function; H. Akaike, IEEE Trans. Autom.
Control 19 (1974) 716.
"""

from __future__ import annotations

__all__ = ["LEAST_P", "Alternative", "best_alternative"]

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from specfit.errors import InputError
from specfit.functional import ErfExpSum, functional_fit
from specfit.shapes import quadrature
from specfit.significance import deviance_p_value, poisson_deviance
from specfit.spectrum import Spectrum

LEAST_P = 0.01
"""A function whose p-value is smaller does not describe the data."""

NODES = 6
# Where the dijet function ends, over the last edge; near the 13 TeV of the published spectra.
END_OF_DIJET = 1.5
HIGHEST_DEGREE, MOST_COMPONENTS = 6, 2
# Fisher scoring: its steps, halvings of one that goes too far, and the gain in log likelihood that ends it.
MOST_STEPS, MOST_HALVINGS, SETTLED = 100, 30, 1e-9


class Alternative(NamedTuple):
    """A function fitted to a spectrum."""

    name: str
    """Which."""
    background: Tensor
    """Expected events, shape `(n_bins,)`."""
    p_value: float
    """Probability of a larger deviance."""
    score: float
    """Deviance and twice the number of parameters; the smallest is best."""


def best_alternative(counts: Tensor, edges: Tensor, seen: Tensor, *, exposure: Tensor | None = None) -> Alternative:
    """Fits every family and takes the best of those that describe the data, or else of all.

    Args:
        counts: Events, float64, shape `(n_bins,)`.
        edges: Bin edges, shape `(n_bins + 1,)`.
        seen: False for bins to leave out, shape `(n_bins,)`.
        exposure: How many events a bin holds for each one of a smooth background, shape `(n_bins,)`; None for 1.

    Raises:
        InputError: So few bins are left that no family has fewer parameters.
    """
    sizes = torch.ones_like(counts) if exposure is None else exposure
    found = [
        fit_log_linear(name, counts, edges, columns, seen, sizes) for name, columns in _families(edges, int(seen.sum()))
    ]
    if seen.all() and edges[0] > 0:
        found += [_erf_exp(counts, edges, sizes, n) for n in range(1, MOST_COMPONENTS + 1)]
    if not found:
        raise InputError(
            f"{int(seen.sum())} bins are left to tell a background from: a second family to compare with needs more "
            "of them than it has parameters; take more bins"
        )
    good = [one for one in found if one.p_value > LEAST_P]
    return min(good, key=lambda one: one.score) if good else max(found, key=lambda one: one.p_value)


def fit_log_linear(
    name: str, counts: Tensor, edges: Tensor, columns: Tensor, seen: Tensor, exposure: Tensor
) -> Alternative:
    """Fits a density whose logarithm is a sum of columns.

    Args:
        name: What it is called.
        counts: Events, shape `(n_bins,)`.
        edges: Bin edges, shape `(n_bins + 1,)`.
        columns: At the quadrature nodes of every bin, shape `(n_bins, nodes, p)`; the first is constant.
        seen: False for bins to leave out, shape `(n_bins,)`.
        exposure: How many events a bin holds for each one of the density, shape `(n_bins,)`.
    """
    log_weights = quadrature(edges, NODES)[1] + exposure.log()[:, None]
    # Orthogonal columns: powers of x alone are close to each other.
    columns = torch.linalg.qr(columns.flatten(0, 1))[0].view_as(columns)
    a = _first_guess(counts, edges.diff() * exposure, columns, seen)
    nll, rate, derivative = _evaluate(a, counts, columns, log_weights, seen)
    for _ in range(MOST_STEPS):
        weight = rate * seen
        information = (derivative * weight[:, None]).mT @ derivative
        score = derivative.mT @ ((counts - rate) * seen)
        step = torch.linalg.lstsq(information, score[:, None], driver="gelsd").solution[:, 0]
        for _ in range(MOST_HALVINGS):
            trial = _evaluate(a + step, counts, columns, log_weights, seen)
            if trial[0] <= nll:
                break
            step = step / 2
        else:
            break
        gain, a = nll - trial[0], a + step
        nll, rate, derivative = trial
        if gain < SETTLED:
            break
    deviance = poisson_deviance(counts, rate)[seen].sum()
    n_parameters = columns.shape[-1]
    p_value = float(deviance_p_value(deviance, seen.sum() - n_parameters))
    return Alternative(name, rate, p_value, float(deviance) + 2 * n_parameters)


def _families(edges: Tensor, n_seen: int) -> Iterator[tuple[str, Tensor]]:
    """Yields name and columns of every function with fewer parameters than bins."""
    x, _ = quadrature(edges, NODES)
    for label, u in (("x", x), ("ln x", x.log())) if edges[0] > 0 else (("x", x),):
        scaled = 2 * (u - u.min()) / (u.max() - u.min()) - 1
        for degree in range(1, min(HIGHEST_DEGREE, n_seen - 2) + 1):
            powers = torch.stack([scaled**k for k in range(degree + 1)], -1)
            yield f"exponential of a polynomial of degree {degree} in {label}", powers
    if edges[0] > 0:
        z = x / (END_OF_DIJET * edges[-1])
        terms = torch.stack([torch.ones_like(z), z.log(), torch.log1p(-z), z.log() ** 2, z.log() ** 3], -1)
        for n in range(3, min(5, n_seen - 1) + 1):
            yield f"dijet function with {n} parameters", terms[..., :n]


def _erf_exp(counts: Tensor, edges: Tensor, exposure: Tensor, n_components: int) -> Alternative:
    spectrum = Spectrum(counts / exposure, edges, variances=counts / exposure.square())
    fit = functional_fit(spectrum, function=ErfExpSum(n_components)).fit
    p_value = float(fit.p_value) if bool(fit.converged) else 0.0
    name = f"Erf x exp with {n_components} component{'s' if n_components > 1 else ''}"
    events = fit.background * exposure
    return Alternative(name, events, p_value, float(fit.deviance + 2 * fit.n_parameters))


def _first_guess(counts: Tensor, sizes: Tensor, columns: Tensor, seen: Tensor) -> Tensor:
    """Fits the log of the density, counts over sizes, by least squares."""
    weight = (counts + 0.5).sqrt() * seen
    log_density = ((counts + 0.5) / sizes).log()
    answer = torch.linalg.lstsq(weight[:, None] * columns.mean(1), (weight * log_density)[:, None], driver="gelsd")
    solution: Tensor = answer.solution[:, 0]
    return solution


def _evaluate(
    a: Tensor, counts: Tensor, columns: Tensor, log_weights: Tensor, seen: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the negative log likelihood, the expected events `(n_bins,)` and the derivatives of their logarithm."""
    terms = columns @ a + log_weights  # (n_bins, nodes)
    log_rate = torch.logsumexp(terms, -1)
    rate = log_rate.clamp(-100.0, 100.0).exp()
    derivative = (torch.softmax(terms, -1)[..., None] * columns).sum(1)  # (n_bins, p)
    nll = (rate - counts * log_rate)[seen].sum()
    return nll, rate, derivative
