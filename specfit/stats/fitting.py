r"""Fits: the maximum of a likelihood, with the covariance from its exact Hessian.

What to use when:

- `fit(likelihood)`: one fit. `method="auto"` takes Newton's method, with a matrix up to 400 parameters and by conjugate
  gradients above, and Minuit where Newton does not arrive.
- `method="minuit"`: Migrad with exact gradients, then one Newton step, so that both methods end at the same digits.
- `fit_many`: toys, or one data set at many fixed values; all advance together.

Conventions: `fixed` maps names to values, inside the limits or beyond them. Limits are those of the likelihood; a
parameter with equal limits is fixed. A parameter that ends at a limit keeps the uncertainty of the curvature there.
"""

from __future__ import annotations

__all__ = ["ManyFits", "fit", "fit_many"]

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from specfit.errors import InputError
from specfit.parallel import on_all_cores
from specfit.stats.covariance import Inverse, invert_hessian
from specfit.stats.fit_result import FitResult
from specfit.stats.likelihood import Likelihood
from specfit.stats.newton import TOLERANCE, Minimum, newton, newton_cg

Method = Literal["auto", "newton", "newton-cg", "minuit"]
METHODS = ("auto", "newton", "newton-cg", "minuit")
LARGEST_DENSE = 400
# So many numbers a matrix of second derivatives of all fits at a time may hold.
NUMBERS_AT_A_TIME = 4_000_000
FITS_AT_A_TIME = 256  # more take their memory from the system anew in every step
TOLERANCE_OF_TOYS = 1e-8


class ManyFits(NamedTuple):
    """Minima of m fits."""

    values: Tensor
    """Shape `(m, p)`."""
    nll: Tensor
    """Shape `(m,)`."""
    edm: Tensor
    """Shape `(m,)`."""
    converged: Tensor
    """Shape `(m,)`."""


def fit(
    likelihood: Likelihood,
    *,
    method: Method = "auto",
    fixed: Mapping[str, float] | None = None,
    start: Tensor | None = None,
) -> FitResult:
    """Maximises a likelihood.

    Args:
        likelihood: A model with one set of data.
        method: `"auto"`, `"newton"`, `"newton-cg"` or `"minuit"`.
        fixed: Values of parameters that do not move, by name.
        start: Where to start, shape `(p,)`; None takes the initial values.

    Raises:
        InputError: A parameter or a method that does not exist, or a batch of data.
    """
    if method not in METHODS:
        raise InputError(f"method: one of {', '.join(METHODS)} is expected, {method!r} came")
    if likelihood.data.ndim != 1:
        raise InputError(f"likelihood: it holds {len(likelihood.data)} toys; fit them with fit_many")
    x, free = _start(likelihood, fixed or {}, start)
    if not torch.isfinite(likelihood.nll(x)):
        raise InputError(
            "likelihood: impossible at the starting point (a bin expects nothing where events are); start elsewhere"
        )
    found, used = _minimise(likelihood, x, free, method)
    return _result(likelihood, found, free, used)


def fit_many(
    likelihood: Likelihood,
    *,
    fixed: Mapping[str, Tensor | float] | None = None,
    start: Tensor | None = None,
    size: int | None = None,
    tolerance: float | None = None,
) -> ManyFits:
    """Fits many sets of data, or one at many values of fixed parameters, all advancing together.

    Args:
        likelihood: A model with data `(m, n_data)`, or with one set of data for all fits.
        fixed: Values of parameters that do not move: one for all fits or, of shape `(m,)`, one each.
        start: Shape `(p,)` or `(m, p)`; None takes the initial values.
        size: Number of fits m, where neither the data nor `fixed` nor `start` say it.
        tolerance: Estimated distance to the minimum, in units of `nll`, at which one last step is taken; None takes
            1e-11, or 1e-8 for toys, which scatter by 1/2.

    Raises:
        InputError: A parameter that does not exist, or numbers of fits that do not agree.
    """
    values = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in (fixed or {}).items()}
    m = _number_of_fits(likelihood, values, start, size)
    x = likelihood.initial_values if start is None else start
    x = x.expand(m, -1).clone()
    free = free_parameters(likelihood)
    for name, value in values.items():
        x[:, likelihood.index(name)] = value
        free[likelihood.index(name)] = False
    return fit_rows(likelihood, x, free.expand_as(x), tolerance=tolerance)


def fit_rows(likelihood: Likelihood, start: Tensor, free: Tensor, *, tolerance: float | None = None) -> ManyFits:
    """Fits each row of `start` with its own set of free parameters, both of shape `(m, p)`."""
    m = len(start)
    if likelihood.n_parameters > LARGEST_DENSE:
        parts = [_newton_cg_of(likelihood, i, start[i], free[i]) for i in range(m)]
    else:
        batch = max(1, min(FITS_AT_A_TIME, NUMBERS_AT_A_TIME // likelihood.n_parameters**2))
        pieces = [slice(i, i + batch) for i in range(0, m, batch)]

        def of(piece: slice) -> Minimum:
            return _newton_of(likelihood, piece, start[piece], free[piece], tolerance)

        # Many small operations go to one thread; a few points of one data set may have events for all threads.
        alone = likelihood.data.ndim == 1 and len(pieces) == 1
        parts = [of(pieces[0])] if alone else on_all_cores(of, pieces)
    joined = [torch.cat(column) for column in zip(*parts, strict=True)]
    return ManyFits(joined[0], joined[1], joined[2], joined[3])


def free_parameters(likelihood: Likelihood) -> Tensor:
    """Returns which parameters a fit may move, shape `(p,)`."""
    return likelihood.bounds[:, 0] < likelihood.bounds[:, 1]


def _newton_of(likelihood: Likelihood, piece: slice, start: Tensor, free: Tensor, tolerance: float | None) -> Minimum:
    part = likelihood if likelihood.data.ndim == 1 else likelihood.with_data(likelihood.data[piece])
    # Toys scatter: what a last step beyond this would add is a hundred-thousandth of a standard deviation.
    default = TOLERANCE if part.data.ndim == 1 else TOLERANCE_OF_TOYS
    with torch.enable_grad():  # a likelihood may differentiate itself
        return newton(part, start, free=free, tolerance=default if tolerance is None else tolerance)


def _newton_cg_of(likelihood: Likelihood, i: int, start: Tensor, free: Tensor) -> Minimum:
    part = likelihood if likelihood.data.ndim == 1 else likelihood.with_data(likelihood.data[i])
    return newton_cg(part, start, free=free)


def _number_of_fits(likelihood: Likelihood, values: dict[str, Tensor], start: Tensor | None, size: int | None) -> int:
    numbers = {len(value) for value in values.values() if value.ndim}
    numbers |= {len(likelihood.data)} if likelihood.data.ndim == 2 else set()
    numbers |= {len(start)} if start is not None and start.ndim == 2 else set()
    numbers |= {size} if size is not None else set()
    if len(numbers) > 1:
        raise InputError(
            f"data, fixed, start, size: they mean {', '.join(map(str, sorted(numbers)))} fits; agree on one"
        )
    return numbers.pop() if numbers else 1


def _start(likelihood: Likelihood, fixed: Mapping[str, float], start: Tensor | None) -> tuple[Tensor, Tensor]:
    x = (likelihood.initial_values if start is None else start).clone()
    if x.shape != (likelihood.n_parameters,):
        raise InputError(f"start: shape ({likelihood.n_parameters},) is expected, {tuple(x.shape)} came")
    free = free_parameters(likelihood)
    for name, value in fixed.items():
        i = likelihood.index(name)
        x[i], free[i] = value, False
    return x, free


def _minimise(likelihood: Likelihood, x: Tensor, free: Tensor, method: Method) -> tuple[Minimum, str]:
    if method == "minuit":
        return _minuit(likelihood, x, free), "minuit"
    if method == "newton-cg" or (method == "auto" and int(free.sum()) > LARGEST_DENSE):
        return newton_cg(likelihood, x, free=free), "newton-cg"
    found = newton(likelihood, x[None], free=free)
    if method == "newton" or found.converged:
        return found, "newton"
    other = _minuit(likelihood, x, free)
    return (other, "minuit") if other.converged else (found, "newton")


def _minuit(likelihood: Likelihood, x: Tensor, free: Tensor) -> Minimum:
    import iminuit

    def value(values: np.ndarray) -> float:
        with torch.no_grad():
            nll = float(likelihood.nll(torch.from_numpy(np.array(values))))
        return nll if np.isfinite(nll) else 1e15  # Minuit steps back from a large number, not from infinity

    def gradient(values: np.ndarray) -> np.ndarray:
        slope: np.ndarray = likelihood.gradient(torch.from_numpy(np.array(values))).nan_to_num(0.0).numpy()
        return slope

    minuit = iminuit.Minuit(value, x.numpy(), grad=gradient, name=likelihood.parameter_names)
    minuit.errordef = iminuit.Minuit.LIKELIHOOD
    minuit.strategy = 0  # the covariance comes from the exact Hessian
    for name, (low, high), moves in zip(likelihood.parameter_names, likelihood.bounds.tolist(), free, strict=True):
        minuit.limits[name] = (low, high) if low < high else None
        minuit.fixed[name] = not moves
    minuit.migrad()
    polished = newton(likelihood, torch.tensor([list(minuit.values)], dtype=torch.float64), free=free)
    return polished._replace(n_steps=polished.n_steps + minuit.nfcn)


def _result(likelihood: Likelihood, found: Minimum, free: Tensor, method: str) -> FitResult:
    x, converged = found.values[0], bool(found.converged[0])
    low, high = likelihood.bounds.unbind(-1)
    at_limit = free & ((x <= low) | (x >= high))
    inverse = invert_hessian(likelihood.hessian(x), free=free)
    return FitResult(
        parameter_names=likelihood.parameter_names,
        n_poi=likelihood.n_poi,
        values=x,
        covariance=inverse.covariance,
        nll=float(found.nll[0]),
        edm=float(found.edm[0]),
        converged=converged,
        message=_message(likelihood, converged, at_limit, inverse),
        fixed=~free,
        at_limit=at_limit,
        n_steps=int(found.n_steps[0]),
        method=method,
    )


def _message(likelihood: Likelihood, converged: bool, at_limit: Tensor, inverse: Inverse) -> str:
    names = likelihood.parameter_names
    text = "converged" if converged else "not converged: start elsewhere, narrow the limits or fix parameters"
    if at_limit.any():
        text += f"; at a limit: {', '.join(names[i] for i in at_limit.nonzero()[:, 0].tolist()[:10])}"
    for direction in inverse.open_directions[:5]:
        open_names = ", ".join(names[i] for i in direction[:6])
        text += f"; the data leave a direction open: {open_names} (fix one, or give a prior)"
    if inverse.has_negative:
        text += "; the Hessian is not positive here, so there are no uncertainties"
    return text
