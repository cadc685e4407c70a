"""What a fitted function says: `FunctionalFit` of one spectrum, `FunctionalFits` of many; how a search gives them."""

from __future__ import annotations

__all__ = ["Answer", "FunctionalFit", "FunctionalFits", "answer"]

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from specfit.background_fit import BackgroundFit
from specfit.functional.likelihood import Likelihood


@dataclass(frozen=True, eq=False)
class FunctionalFit:
    """A function fitted to a spectrum.

    Args:
        fit: Background, covariance and agreement with the data.
        parameters: Fitted values by name in the order of the function, yields in events. Of `ErfExpSum`: `yield_1`,
            `rho_1`, `alpha_1`, `mu_1`, `sigma_1`, then those of component 2, which has a smaller yield, and so on.
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


@dataclass(frozen=True, eq=False)
class FunctionalFits:
    """A function fitted to each of m spectra; an index takes one of them.

    Args:
        fit: Backgrounds, covariances and agreement with the data; `fit.message` counts what did not converge.
        parameters: Fitted values by name, shape `(m,)` each; see `FunctionalFit`.
        errors: Their standard deviations, likewise.
        nll: Negative log likelihoods, shape `(m,)`.
        n_starts_agreeing: How many starts ended in the lowest minimum, shape `(m,)`.
        at_limit: Which parameters sit at a limit, by name, shape `(m,)` each.
    """

    fit: BackgroundFit
    parameters: dict[str, Tensor]
    errors: dict[str, Tensor]
    nll: Tensor
    n_starts_agreeing: Tensor
    at_limit: dict[str, Tensor]

    def __getitem__(self, index: int) -> FunctionalFit:
        """Takes one spectrum."""
        return FunctionalFit(
            fit=self.fit[index],
            parameters={name: values[index].item() for name, values in self.parameters.items()},
            errors={name: values[index].item() for name, values in self.errors.items()},
            nll=self.nll[index].item(),
            n_starts_agreeing=int(self.n_starts_agreeing[index]),
        )

    def __len__(self) -> int:
        """Number of spectra."""
        return len(self.nll)


class Answer(NamedTuple):
    """Fitted functions of m spectra, in the unit of their counts."""

    background: Tensor
    """Shape `(m, n_bins)`."""
    factor: Tensor
    """Square root of its covariance, shape `(m, n_bins, n)`."""
    n_parameters: Tensor
    """How many the data determined, shape `(m,)`."""
    parameters: Tensor
    """Shape `(m, n)`."""
    errors: Tensor
    """Shape `(m, n)`."""
    nll: Tensor
    """Shape `(m,)`."""
    at_limit: Tensor
    """Which parameters sit at a limit, shape `(m, n)`."""


def answer(likelihood: Likelihood, position: Tensor, unit: Tensor) -> Answer:
    """Computes what a fit says at positions of shape `(m, n)`.

    Args:
        likelihood: Of the counts in events.
        position: The ends of searches.
        unit: Content that an event stands for, shape `(m, 1)`.
    """
    function, point = likelihood.function, likelihood.evaluate(position)
    log_expected, jacobian = likelihood.log_expected(position)
    root = _inverse_root(point.fisher + function.constraint(position))
    log_factor, expected = jacobian.mT @ root, log_expected.exp()
    of_data = expected * log_factor.square().sum(-1) * likelihood.weight
    scale = torch.where(function.is_yield, likelihood.total * unit, 1.0)  # (m, n)
    return Answer(
        background=expected * unit,
        factor=(expected * unit)[..., None] * log_factor,
        n_parameters=of_data.sum(-1),
        parameters=function.parameters(position) * scale,
        errors=(function.slopes(position) @ root).square().sum(-1).sqrt() * scale,
        nll=point.nll,
        at_limit=function.at_limit(position),
    )


def _inverse_root(information: Tensor) -> Tensor:
    """Returns R with R R^T the inverse, shape `(m, n, n)`; directions without information get a finite answer."""
    # Of unit diagonal: entries of an absent component are 1e12 times those of the others.
    length = information.diagonal(dim1=-2, dim2=-1).clamp(min=1e-12).sqrt()
    scaled = information / (length[:, :, None] * length[:, None])
    scaled.diagonal(dim1=-2, dim2=-1).add_(1e-13)
    lower, info = torch.linalg.cholesky_ex(scaled)
    failed = info > 0
    if failed.any():
        values, vectors = torch.linalg.eigh(scaled[failed])
        lower[failed] = vectors * values.clamp(min=1e-13).sqrt()[:, None]
    root: Tensor = torch.linalg.inv(lower).mT / length[:, :, None]
    return root
