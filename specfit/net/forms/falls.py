r"""Falls whose logarithm is linear in four parameters, all fitted at once.

Cubic in x, cubic in ln x, UA2's :math:`x^{-a} e^{-bx - cx^2}` and the dijet function. One that comes near the data is
near what the net says: a straight fit to that, and few steps of Fisher scoring from there.

Sources: UA2, Z. Phys. C 49 (1991) 17; CDF, arXiv:0812.4036.
"""

from __future__ import annotations

__all__ = ["PARAMETERS", "fit_falls"]

import torch
from torch import Tensor

from specfit.net.forms.plan import NODES, Fitted, Plan
from specfit.net.posterior import LOG_RATES, precision_cholesky, solved
from specfit.significance import poisson_deviance

PARAMETERS = 4
"""Of every fall."""
# Prior width along directions of one e-fold; steps.
WIDTH, STEPS = 20.0, 2
# So many times what is allowed is too far for the steps.
FAR = 20.0


def fit_falls(plan: Plan, log_rate: Tensor, data: Tensor, seen: Tensor, *, allowed: Tensor) -> list[Fitted]:
    """Fits every fall; none where all are far from every spectrum.

    Args:
        plan: Of the binning.
        log_rate: What the net says, shape `(m, n_bins)`.
        data: Observed events, same shape, float64.
        seen: 0 for masked bins, 1 for others, same shape.
        allowed: By how much the deviance may be larger than the net's, shape `(m,)`.
    """
    m, n_bins = data.shape
    terms = WIDTH * plan.falls  # (r, f, 4, NODES n_bins)
    f = terms.shape[1]
    data, seen, log_rate = (t[:, None].expand(-1, f, -1).flatten(0, 1) for t in (data, seen, log_rate))  # (m f, n_bins)
    weights, log_widths = plan.log_weights.flatten(1)[:, None], plan.log_widths[:, None]
    inside = (plan.log_weights - log_widths).exp().flatten(1)[:, None]
    basis = _averaged(inside, terms, n_bins).expand(m, -1, -1, -1).flatten(0, 1)
    weight = seen * log_rate.exp()
    target = log_rate - log_widths.expand(m, f, -1).flatten(0, 1)
    position = solved(precision_cholesky(basis, weight), ((weight * target)[:, None] @ basis)[:, 0])
    distance = (weight * (target - (basis @ position[..., None])[..., 0]).square()).sum(1).view(m, f)
    if (distance > FAR * allowed[:, None]).all():  # as for one spectrum with a turn-on
        return []
    for step in range(STEPS + 1):
        values = (position.view(m, f, 1, -1) @ terms)[:, :, 0] + weights  # (m, f, NODES n_bins)
        values = values.view(m, f, NODES, n_bins)
        log_bins = values.logsumexp(2)
        inside = (values - log_bins[:, :, None]).exp().flatten(2)
        basis = _averaged(inside, terms, n_bins).flatten(0, 1)
        rate = log_bins.flatten(0, 1).clamp(*LOG_RATES).exp()
        if step < STEPS:
            force = ((seen * (data - rate))[:, None] @ basis)[:, 0] - position
            moved = position + solved(precision_cholesky(basis, seen * rate), force)
            position = torch.where(moved.isfinite(), moved, position)
    deviance = (poisson_deviance(data, rate) * seen).sum(-1).nan_to_num(torch.inf).view(m, f)
    basis = basis.view(m, f, n_bins, -1)
    return [Fitted(log_bins[:, i].clamp(*LOG_RATES), basis[:, i], deviance[:, i]) for i in range(f)]


def _averaged(inside: Tensor, terms: Tensor, n_bins: int) -> Tensor:
    """Averages terms over the events of each bin, shape `(*, f, n_bins, 4)`."""
    weighted = inside[:, :, None] * terms
    return weighted.view(*weighted.shape[:3], NODES, n_bins).sum(-2).mT
