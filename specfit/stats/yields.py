"""What a channel holds before and after the fit, with the uncertainty that the covariance gives."""

from __future__ import annotations

__all__ = ["ChannelYields", "channel_yields"]

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specfit import plots
from specfit.stats.fit_result import FitResult
from specfit.stats.fitting import fit
from specfit.stats.model import StatisticalModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class ChannelYields:
    """Counts of one channel and their expectation; all of shape `(n_bins,)`.

    Args:
        channel: Its name.
        observed: Counts.
        before: Expected at the initial values.
        before_uncertainty: From the constraints alone, free parameters held.
        after: Expected at the best values.
        after_uncertainty: From the covariance of the fit.
    """

    channel: str
    observed: Tensor
    before: Tensor
    before_uncertainty: Tensor
    after: Tensor
    after_uncertainty: Tensor

    def plot(self) -> Figure:
        """Draws counts and both expectations."""
        return plots.draw_yields(self)


def channel_yields(model: StatisticalModel, channel: str, *, best: FitResult | None = None) -> ChannelYields:
    """Computes the yields of a binned channel before and after the fit.

    Args:
        model: A workspace model with one set of data.
        channel: Name of the channel.
        best: Its fit, where it is known already.

    Raises:
        InputError: There is no such binned channel.
    """
    best = best or fit(model)
    before = model.expected_in(channel, model.initial_values)
    prior = torch.where(model.constrained & ~best.fixed, model.priors[:, 1], 0.0)
    covariance = best.covariance.nan_to_num(0.0, posinf=0.0)
    return ChannelYields(
        channel=channel,
        observed=model.data[model.compiled.channels[channel]],
        before=before,
        before_uncertainty=_spread(model, channel, model.initial_values, torch.diag(prior**2)),
        after=model.expected_in(channel, best.values),
        after_uncertainty=_spread(model, channel, best.values, covariance),
    )


def _spread(model: StatisticalModel, channel: str, values: Tensor, covariance: Tensor) -> Tensor:
    _, jacobian = model.compiled.expectation.jacobian(values[:, None])
    slopes = jacobian[model.compiled.channels[channel], :, 0]
    return ((slopes @ covariance) * slopes).sum(-1).clamp(min=0).sqrt()
