r"""Blinding: every fit, scan and toy works, but the values of some parameters are shifted by numbers nobody has seen.

The shift of a parameter follows from its name and a phrase, so all members of an analysis get the same, today and
tomorrow, and whoever does not mean to look does not see. Uncertainties, correlations, pulls of other parameters and
goodness of fit are those of the data. To unblind, fit the model itself.
"""

from __future__ import annotations

__all__ = ["Blinded"]

import hashlib
import statistics
from collections.abc import Mapping

import torch
from torch import Tensor

from specfit.errors import InputError
from specfit.stats.likelihood import Likelihood


class Blinded(Likelihood):
    """A likelihood whose parameters of some names are shifted.

    Limits of shifted parameters are removed, because they would show the shift, and the start is not shifted.

    Args:
        likelihood: The model.
        scales: For each parameter to hide the standard deviation of its shift, a few times its expected uncertainty.
        phrase: Decides the shifts, together with the names.

    Raises:
        InputError: A parameter that does not exist, a scale that is not positive, or no phrase.
    """

    def __init__(self, likelihood: Likelihood, scales: Mapping[str, float], *, phrase: str) -> None:
        if not phrase:
            raise InputError("phrase: give a phrase of your analysis; it decides the shifts")
        shift = torch.zeros(likelihood.n_parameters, dtype=torch.float64)
        bounds = likelihood.bounds.clone()
        for name, scale in scales.items():
            if not scale > 0:
                raise InputError(f"scales: {name} needs a number above 0, {scale} came")
            shift[likelihood.index(name)] = scale * _normal(f"{phrase}\n{name}")
            bounds[likelihood.index(name)] = torch.tensor([-torch.inf, torch.inf])
        self._likelihood, self._shift = likelihood, shift
        self._scales, self._phrase = dict(scales), phrase
        super().__init__(
            likelihood.parameter_names,
            n_poi=likelihood.n_poi,
            initial_values=likelihood.initial_values,
            data=likelihood.data,
            bounds=bounds,
            priors=likelihood.priors,
            n_counts=likelihood.n_counts,
        )

    def nll(self, values: Tensor) -> Tensor:
        r"""Computes :math:`-\ln L` at the values behind the shifted ones."""
        return self._likelihood.nll(values - self._shift)

    def expected(self, values: Tensor) -> Tensor:
        """Computes the mean of `data`."""
        return self._likelihood.expected(values - self._shift)

    def sample(self, values: Tensor, *, rng: torch.Generator) -> Tensor:
        """Draws one toy for each row of values."""
        return self._likelihood.sample(values - self._shift, rng=rng)

    def with_data(self, data: Tensor) -> Blinded:
        """Returns the same model, equally shifted, with other observations."""
        return Blinded(self._likelihood.with_data(data), self._scales, phrase=self._phrase)


def _normal(text: str) -> float:
    """Turns a text into a number of a standard normal distribution."""
    digest = hashlib.sha256(text.encode()).digest()
    uniform = (int.from_bytes(digest[:8], "big") + 0.5) / 2**64
    return statistics.NormalDist().inv_cdf(uniform)
