"""By how much errors are too small because background and signals together do not describe the data.

Where even the best fit is worse than chance allows, whatever is wrong may be wrong below the signal too. Errors are
then scaled up as where measurements disagree (Particle Data Group, Review of Particle Physics, introduction, 5.2.2),
but with what one in a hundred good fits exceeds in place of the mean, so that good fits are left alone.
"""

from __future__ import annotations

__all__ = ["misfit"]

import torch
from torch import Tensor

from specfit.net.base import LocalModel
from specfit.signal.joint_fit import JointFit, n_parameters

# The normal deviate that one in a hundred exceeds.
RARE = 2.326


def misfit(fit: JointFit, model: LocalModel, weight: Tensor) -> Tensor:
    """Returns the factor on the errors, >= 1, shape `(r,)`.

    Args:
        fit: Background and signals together, r rows.
        model: What the background was fitted with.
        weight: 0 for masked bins, 1 for others, shape `(r, n_bins)`.
    """
    deviance = 2 * fit.nll - fit.coefficients.square().sum(1)
    seen, factor = weight.sum(1) - fit.yields.shape[1], torch.ones_like(deviance)
    # With as few degrees of freedom as there can be the limit is lowest: most rows end here.
    rows = (deviance > _rarely_exceeded(seen - model.basis.shape[-1])).nonzero()[:, 0]
    if len(rows) > 0:
        used = n_parameters(JointFit(*(t[rows] for t in fit)), model.basis[rows], weight[rows])
        factor[rows] = (deviance[rows] / _rarely_exceeded(seen[rows] - used)).clamp(min=1.0).sqrt()
    return factor


def _rarely_exceeded(ndf: Tensor) -> Tensor:
    """Returns the chi-square that one in a hundred exceeds (E. B. Wilson, M. M. Hilferty, PNAS 17 (1931) 684)."""
    share = 2 / (9 * ndf.clamp(min=1.0))
    limit: Tensor = ndf.clamp(min=1.0) * (1 - share + RARE * share.sqrt()).pow(3)
    return limit
