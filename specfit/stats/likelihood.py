r"""Likelihood: the one interface between a model of data and everything that is inferred from it.

A model says its parameters, what it expects and :math:`-\ln L`; `fit`, `scan`, `upper_limit`, toys and all the rest of
`specfit.stats` take any model that does. What to use when:

- write a model: derive from `Likelihood`, define `nll`, `expected`, `sample` and `with_data`; gradient and Hessian come
  from autograd, exactly;
- the Hessian has a structure that autograd cannot know (blocks, a closed form): give the constructor a `Derivatives`
  of your own.

Conventions: everything is float64. `nll` is :math:`-\ln L`, not :math:`-2 \ln L` (that is `twice_nll`): a unit Gaussian
constraint adds :math:`\alpha^2/2`, so an uncertainty is where `nll` rises by 1/2. Terms that no parameter moves are
dropped such that a model which meets every observation exactly has the value 0. Parameters of interest come first.
`data` is one flat vector of everything observed: counts, then event weights, then the auxiliary measurements behind the
constraints, so that a toy can draw all of them. A batch `(m, n_data)` of data goes with values `(m, n_parameters)`:
toy i meets values i.
"""

from __future__ import annotations

__all__ = ["AutomaticDerivatives", "Derivatives", "Likelihood", "asimov"]

import difflib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from specfit.arrays import ArrayLike, as_float64
from specfit.errors import InputError


class Derivatives(ABC):
    """How a likelihood is differentiated; every result belongs to `nll`, at `values` of shape `(*, p)`.

    The first three have to be there; `curvature` and `preconditioner` are hooks that may make fits faster.
    """

    @abstractmethod
    def gradient(self, values: Tensor) -> Tensor:
        """First derivatives, shape `(*, p)`."""

    @abstractmethod
    def hessian(self, values: Tensor) -> Tensor:
        """Second derivatives, shape `(*, p, p)`."""

    @abstractmethod
    def hvp(self, values: Tensor, vector: Tensor) -> Tensor:
        """Hessian times `vector`, both of shape `(*, p)`, without the Hessian."""

    def curvature(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient `(*, p)`, and a matrix `(*, p, p)` like the Hessian that is cheaper: it sets the steps of a fit."""
        return self.gradient(values), self.hessian(values)

    def preconditioner(self, values: Tensor) -> Callable[[Tensor], Tensor] | None:  # noqa: ARG002
        """Something like the inverse Hessian as a map of vectors `(p,)`, symmetric and positive; None: nothing known.

        It makes the conjugate gradients of a large fit converge in fewer steps; it never changes the answer.
        """
        return None


class AutomaticDerivatives(Derivatives):
    """Exact derivatives of any `nll` that torch can differentiate twice.

    Args:
        nll: Maps `(*, p)` to `(*,)`; an entry of the result depends on its own row of the values only.
    """

    def __init__(self, nll: Callable[[Tensor], Tensor]) -> None:
        self._nll = nll

    def gradient(self, values: Tensor) -> Tensor:
        """First derivatives, shape `(*, p)`."""
        return self._gradient(values.detach().requires_grad_(), again=False)[0]

    def hessian(self, values: Tensor) -> Tensor:
        """Second derivatives, shape `(*, p, p)`."""
        gradient, leaf = self._gradient(values.detach().requires_grad_(), again=True)
        if not gradient.requires_grad:  # a linear nll
            return torch.zeros(*gradient.shape, gradient.shape[-1], dtype=torch.float64)
        rows = [_grad(column.sum(), leaf, retain=True) for column in gradient.unbind(-1)]
        return torch.stack(rows, -2)

    def hvp(self, values: Tensor, vector: Tensor) -> Tensor:
        """Hessian times `vector`, both of shape `(*, p)`."""
        gradient, leaf = self._gradient(values.detach().requires_grad_(), again=True)
        if not gradient.requires_grad:
            return torch.zeros_like(gradient)
        return _grad((gradient * vector.detach()).sum(), leaf)

    def _gradient(self, leaf: Tensor, *, again: bool) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self._nll(leaf).sum(), leaf, create_graph=again, materialize_grads=True)
        return gradient, leaf


class Likelihood(ABC):
    """A model together with what was observed.

    Args:
        parameter_names: One name a parameter, the parameters of interest first.
        n_poi: How many parameters are of interest.
        initial_values: Where a fit starts, shape `(p,)`.
        bounds: Lower and upper limit of each parameter, shape `(p, 2)`; infinite where it is free, equal where it is
            fixed. None leaves all of them free.
        data: Everything observed, shape `(n_data,)`, or `(m, n_data)` for toys.
        derivatives: How to differentiate `nll`; None differentiates it automatically.
        priors: Centre and standard deviation of the constraint of each parameter, shape `(p, 2)`; the latter infinite
            where there is none. None: nothing is constrained.
        n_counts: How many entries of `data`, from the first, are counts of bins. None: all but one for each constraint.

    Raises:
        InputError: Names that repeat, or shapes or bounds that do not fit them.
    """

    def __init__(
        self,
        parameter_names: Sequence[str],
        *,
        n_poi: int,
        initial_values: ArrayLike,
        data: ArrayLike,
        bounds: ArrayLike | None = None,
        derivatives: Derivatives | None = None,
        priors: ArrayLike | None = None,
        n_counts: int | None = None,
    ) -> None:
        self.parameter_names = tuple(parameter_names)
        self.n_poi = n_poi
        self.initial_values = as_float64(initial_values, "initial_values")
        free = torch.tensor([-torch.inf, torch.inf], dtype=torch.float64).expand(self.n_parameters, 2)
        self.bounds = free if bounds is None else as_float64(bounds, "bounds")
        self.data = as_float64(data, "data")
        self.derivatives = AutomaticDerivatives(self.nll) if derivatives is None else derivatives
        none = torch.tensor([0.0, torch.inf], dtype=torch.float64).expand(self.n_parameters, 2)
        self.priors = none if priors is None else as_float64(priors, "priors")
        n_constraints = int(self.constrained.sum())
        self.n_counts = self.data.shape[-1] - n_constraints if n_counts is None else n_counts
        self._check()

    @abstractmethod
    def nll(self, values: Tensor) -> Tensor:
        r"""Computes :math:`-\ln L` for values of shape `(*, p)`, differentiable twice; shape `(*,)`."""

    @abstractmethod
    def expected(self, values: Tensor) -> Tensor:
        """Computes the mean of `data` for values of shape `(*, p)`; shape `(*, n_data)`."""

    @abstractmethod
    def sample(self, values: Tensor, *, rng: torch.Generator) -> Tensor:
        """Draws one toy of `data`, auxiliary measurements included, for each row of values `(*, p)`."""

    @abstractmethod
    def with_data(self, data: Tensor) -> Likelihood:
        """Returns the same model with other observations, of the form of `data`."""

    @property
    def constrained(self) -> Tensor:
        """Which parameters have a constraint of their own, shape `(p,)`."""
        return self.priors[:, 1].isfinite()

    @property
    def n_parameters(self) -> int:
        """Number of parameters p."""
        return len(self.parameter_names)

    def twice_nll(self, values: Tensor) -> Tensor:
        r"""Computes :math:`-2 \ln L`, in which an uncertainty is where it rises by 1; shape `(*,)`."""
        return 2 * self.nll(values)

    def gradient(self, values: Tensor) -> Tensor:
        """Computes the first derivatives of `nll`, shape `(*, p)`."""
        return self.derivatives.gradient(values)

    def hessian(self, values: Tensor) -> Tensor:
        """Computes the second derivatives of `nll`, shape `(*, p, p)`."""
        return self.derivatives.hessian(values)

    def hvp(self, values: Tensor, vector: Tensor) -> Tensor:
        """Computes the Hessian of `nll` times a vector, both of shape `(*, p)`."""
        return self.derivatives.hvp(values, vector)

    def index(self, name: str) -> int:
        """Finds a parameter by its name.

        Raises:
            InputError: There is none of this name; near ones are shown.
        """
        if name not in self.parameter_names:
            raise InputError(f"parameter {name!r} does not exist; {_nearest(name, self.parameter_names)}")
        return self.parameter_names.index(name)

    def _check(self) -> None:
        p = self.n_parameters
        twice = [name for name, times in Counter(self.parameter_names).items() if times > 1]
        if twice:
            raise InputError(f"parameter_names: {', '.join(twice)} came twice; every parameter needs its own name")
        if not 0 <= self.n_poi <= p:
            raise InputError(f"n_poi: a number from 0 to the {p} parameters is expected, {self.n_poi} came")
        if self.initial_values.shape != (p,) or self.bounds.shape != (p, 2):
            came = f"{tuple(self.initial_values.shape)} and {tuple(self.bounds.shape)}"
            raise InputError(f"initial_values, bounds: shapes ({p},) and ({p}, 2) are expected, {came} came")
        outside = (self.initial_values < self.bounds[:, 0]) | (self.initial_values > self.bounds[:, 1])
        if outside.any():
            i = int(outside.nonzero()[0])
            low, high = self.bounds[i].tolist()
            value = self.initial_values[i].item()
            raise InputError(f"{self.parameter_names[i]}: starts at {value:g}, outside its bounds [{low:g}, {high:g}]")


def asimov(likelihood: Likelihood, values: Tensor | None = None) -> Likelihood:
    """Returns the model with the data that it expects, auxiliary measurements included.

    Args:
        likelihood: The model.
        values: Parameters that made the data, shape `(p,)` or `(m, p)`; None takes the initial values.
    """
    at = likelihood.initial_values if values is None else values
    return likelihood.with_data(likelihood.expected(at).detach())


def _grad(scalar: Tensor, leaf: Tensor, *, retain: bool = False) -> Tensor:
    (gradient,) = torch.autograd.grad(scalar, leaf, retain_graph=retain, materialize_grads=True)
    return gradient


def _nearest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.3)
    shown = close or list(names[:5])
    return f"{'did you mean' if close else 'there are'} {', '.join(shown)}"
