r"""Parameters of a model: name, start, limits, prior, and what the raw number means.

A fit moves *raw* numbers without limits; physics reads *physical* ones. `Meaning` ties both: a norm is
:math:`\text{raw}^2`, an amplitude :math:`e^{\text{raw}}`, a Bernstein coefficient :math:`\ln(1 + e^{\text{raw}})`.
"""

from __future__ import annotations

__all__ = ["Meaning", "Parameter", "Prior", "match", "with_priors", "with_start"]

import enum
import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specfit.errors import InputError


class Meaning(enum.Enum):
    """How a raw number becomes a physical one."""

    ITSELF = "itself"
    SQUARE = "square"
    EXP = "exp"
    SOFTPLUS = "softplus"

    def physical(self, raw: Tensor) -> Tensor:
        """Returns the physical numbers of raw ones, same shape."""
        if self is Meaning.SQUARE:
            return raw.square()
        if self is Meaning.EXP:
            return raw.exp()
        return torch.nn.functional.softplus(raw) if self is Meaning.SOFTPLUS else raw

    def slope(self, raw: Tensor) -> Tensor:
        """Returns the derivative of `physical`, same shape."""
        if self is Meaning.SQUARE:
            return 2 * raw
        if self is Meaning.EXP:
            return raw.exp()
        return torch.sigmoid(raw) if self is Meaning.SOFTPLUS else torch.ones_like(raw)

    def raw(self, physical: float) -> float:
        """Returns the raw number, not negative for a square, of a physical one.

        Raises:
            InputError: No raw number has this meaning.
        """
        if self is Meaning.ITSELF:
            return physical
        if physical < 0 or (physical == 0 and self is not Meaning.SQUARE):
            raise InputError(f"a {self.value} cannot be {physical:g}; give a positive number")
        if self is Meaning.SQUARE:
            return math.sqrt(physical)
        return math.log(physical) if self is Meaning.EXP else physical + math.log(-math.expm1(-physical))


@dataclass(frozen=True)
class Prior:
    """A Gaussian constraint on a raw parameter.

    Args:
        mean: Its centre.
        sigma: Its width, above 0.
    """

    mean: float
    sigma: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.sigma) and self.sigma > 0):
            raise InputError(f"prior: a finite mean and a width above 0 are expected, {self.mean}, {self.sigma} came")


@dataclass(frozen=True)
class Parameter:
    """One free number of a model.

    Args:
        name: Its name.
        start: Raw value at which the model multiplies by its neutral factor.
        is_poi: Parameter of interest, listed before the nuisances.
        low: Least raw value.
        high: Greatest raw value.
        prior: Constraint of the raw value.
        meaning: What the raw value means.
    """

    name: str
    start: float = 0.0
    is_poi: bool = True
    low: float = -math.inf
    high: float = math.inf
    prior: Prior | None = None
    meaning: Meaning = Meaning.ITSELF


def match(pattern: str, names: Sequence[str]) -> list[int]:
    """Returns which names a pattern such as `slope_*` matches.

    Raises:
        InputError: It matches none.
    """
    found = [i for i, name in enumerate(names) if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        some = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        raise InputError(f"no parameter is called {pattern!r}; there are {some or 'none'}")
    return found


def with_priors(
    parameters: Sequence[Parameter], priors: Mapping[str, Prior | tuple[float, float]]
) -> tuple[Parameter, ...]:
    """Returns parameters with constraints, given by name or pattern as `Prior` or (mean, sigma) of the raw value."""
    changed, names = list(parameters), [parameter.name for parameter in parameters]
    for pattern, prior in priors.items():
        for i in match(pattern, names):
            changed[i] = replace(changed[i], prior=prior if isinstance(prior, Prior) else Prior(*prior))
    return tuple(changed)


def with_start(parameters: Sequence[Parameter], physical: Mapping[str, float]) -> tuple[Parameter, ...]:
    """Returns parameters that start elsewhere, given by name or pattern as *physical* values.

    Raises:
        InputError: Nothing matches, or a value is none that the parameter can have.
    """
    changed, names = list(parameters), [parameter.name for parameter in parameters]
    for pattern, value in physical.items():
        for i in match(pattern, names):
            try:
                changed[i] = replace(changed[i], start=changed[i].meaning.raw(value))
            except InputError as error:
                raise InputError(f"start (--expect) {pattern}={value:g}: {error}") from None
    return tuple(changed)
