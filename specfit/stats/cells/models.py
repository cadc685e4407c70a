"""What a parametric model is: parameters, and factors that multiply templates bin by bin.

A model names channels, processes and axes. `bind` looks them up, with a clear error for what does not exist, and
answers a `BoundModel`: its parameters, and `Term`s. A term says which parameters enter the factor of each bin of one
process and how. The factor of a bin depends on nothing else: that makes the Hessian sparse, and its blocks known.

A model of your own is a subclass of `ParamModel` with `bind`; derivatives come by themselves.
"""

from __future__ import annotations

__all__ = ["BoundModel", "Composite", "Factor", "ParamModel", "Term"]

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specfit.errors import InputError
from specfit.stats.cells.channels import Channel
from specfit.stats.cells.parameters import Parameter, Prior, with_priors

Factor = Callable[[Tensor], Tensor]
"""From the parameters that enter each bin, shape `(*, n_bins, k)`, to its factor, shape `(*, n_bins)`; elementwise over
bins and twice differentiable."""


@dataclass(frozen=True, eq=False)
class Term:
    """One factor on the template of one process in one channel.

    Args:
        channel: Name of the channel.
        process: Name of the process.
        parameters: Which parameters enter each bin, as positions in the model's own list, shape `(n_bins, k)`.
        factor: Computes the factor from them.
        bins: Flattened bins of the channel that it concerns, shape `(n_bins,)`; None for all.
    """

    channel: str
    process: str
    parameters: Tensor
    factor: Factor
    bins: Tensor | None = None


@dataclass(frozen=True, eq=False)
class BoundModel:
    """A model that has found its channels.

    Args:
        parameters: Its parameters, those of interest first.
        terms: Its factors.
    """

    parameters: tuple[Parameter, ...]
    terms: tuple[Term, ...]


class ParamModel(ABC):
    """A model of how templates depend on parameters."""

    @abstractmethod
    def bind(self, channels: Sequence[Channel]) -> BoundModel:
        """Looks up channels, processes and axes.

        Raises:
            InputError: One of them does not exist or does not fit.
        """


class Composite(ParamModel):
    """The product of several models; parameters are all those of interest in model order, then all nuisances.

    Args:
        *models: The models; composites may be nested.
        priors: Constraints for parameters by name or pattern, as (mean, sigma) of the raw value: what keeps the shape
            of a starved cell within reason.

    Example:
        >>> from specfit.stats.cells import AxisExp, AxisNorm
        >>> cells = ("pt", "eta")
        >>> model = Composite(
        ...     AxisNorm("muons", "signal", cells),
        ...     AxisExp("muons", "background", "mass", cells, slope_axes=["eta"]),
        ...     priors={"slope_*": (0.0, 5.0)},
        ... )
    """

    def __init__(self, *models: ParamModel, priors: Mapping[str, Prior | tuple[float, float]] | None = None) -> None:
        if not models:
            raise InputError("Composite: at least one model is expected, none came")
        self.models, self.priors = models, dict(priors or {})

    def bind(self, channels: Sequence[Channel]) -> BoundModel:
        """Binds every model and puts the parameters into one list.

        Raises:
            InputError: A model does not fit, or two use the same name.
        """
        bound = [model.bind(channels) for model in self.models]
        together = [parameter for one in bound for parameter in one.parameters]
        _check_unique([parameter.name for parameter in together])
        order = sorted(range(len(together)), key=lambda i: not together[i].is_poi)  # stable
        where = torch.empty(len(order), dtype=torch.long)
        where[torch.tensor(order, dtype=torch.long)] = torch.arange(len(order))
        terms, first = [], 0
        for one in bound:
            terms += [replace(term, parameters=where[first + term.parameters]) for term in one.terms]
            first += len(one.parameters)
        return BoundModel(with_priors([together[i] for i in order], self.priors), tuple(terms))


def _check_unique(names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"two models have a parameter {name!r}; give one of them another label=")
        seen.add(name)
