r"""Goodness of fit against the saturated model, and toys.

The saturated model has a parameter for every bin and meets every count; twice the `nll` of a fit is then the likelihood
ratio to it, distributed as chi-square with as many degrees of freedom as bins less unconstrained parameters, or as its
toys are.

Source: R. D. Cousins, "Generalization of chisquare goodness-of-fit test for binned data using saturated models" (2013).
"""

from __future__ import annotations

__all__ = ["GoodnessOfFit", "goodness_of_fit", "toys"]

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specfit.errors import InputError
from specfit.significance import deviance_p_value
from specfit.stats.fit_result import FitResult
from specfit.stats.fitting import fit, fit_many
from specfit.stats.likelihood import Likelihood


@dataclass(frozen=True)
class GoodnessOfFit:
    """How well the best fit describes the data.

    Args:
        statistic: Twice the negative log likelihood ratio to the saturated model.
        ndf: Degrees of freedom.
        p_value: Probability of a value at least this large.
        n_toys: Toys behind the p-value; 0 for the chi-square distribution.
        converged: Whether every fit arrived.
    """

    statistic: float
    ndf: int
    p_value: float
    n_toys: int
    converged: bool

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def __str__(self) -> str:
        """Writes statistic, degrees of freedom and p-value."""
        source = f"{self.n_toys} toys" if self.n_toys else "chi-square"
        return f"saturated {self.statistic:.2f} / {self.ndf}, p = {self.p_value:.3g} ({source})"


def goodness_of_fit(
    likelihood: Likelihood,
    *,
    best: FitResult | None = None,
    n_toys: int = 0,
    rng: torch.Generator | None = None,
) -> GoodnessOfFit:
    """Compares the best fit with the saturated model.

    Args:
        likelihood: A model with one set of data, all of it in bins.
        best: Its fit, where it is known already.
        n_toys: Toys from the best fit; 0 takes the chi-square distribution.
        rng: Draws the toys.

    Raises:
        InputError: The model has unbinned events, no degree of freedom is left, or toys without `rng`.
    """
    if likelihood.data.shape[-1] > likelihood.n_counts + int(likelihood.constrained.sum()):
        raise InputError("likelihood: events without bins have no saturated model; look at their histograms")
    best = best or fit(likelihood)
    statistic = 2 * best.nll
    ndf = likelihood.n_counts - int((~best.fixed & ~likelihood.constrained).sum())
    if not n_toys:
        if ndf < 1:
            raise InputError(
                f"likelihood: {likelihood.n_counts} bins and as many free parameters leave nothing to test"
            )
        return GoodnessOfFit(statistic, ndf, float(deviance_p_value(statistic, ndf)), 0, best.converged)
    many = fit_many(toys(likelihood, n_toys, values=best.values, rng=rng), start=best.values)
    p = float((2 * many.nll >= statistic).double().mean())
    return GoodnessOfFit(statistic, ndf, p, n_toys, best.converged and bool(many.converged.all()))


def toys(
    likelihood: Likelihood, size: int, *, values: Tensor | None = None, rng: torch.Generator | None = None
) -> Likelihood:
    """Draws toys, auxiliary measurements included; `fit_many` fits them together.

    Args:
        likelihood: The model.
        size: Number of toys.
        values: Parameters that make them, shape `(p,)`; None takes the initial values.
        rng: Draws them.

    Raises:
        InputError: No `rng`, or a size below 1.

    Returns:
        The model with data of shape `(size, n_data)`.
    """
    if rng is None:
        raise InputError("rng: toys need a source of randomness, such as torch.Generator().manual_seed(1)")
    if size < 1:
        raise InputError(f"size: a number from 1 upwards is expected, {size} came")
    at = likelihood.initial_values if values is None else values
    return likelihood.with_data(likelihood.sample(at.expand(size, -1), rng=rng))
