r"""Falls whose logarithm is linear in four parameters, all fitted at once.

Cubic in x, cubic in ln x, UA2's :math:`x^{-a} e^{-bx - cx^2}` and the dijet function. One that comes near the data is
near what the net says: a straight fit to that, and damped steps of Fisher scoring from there.

Sources: UA2, Z. Phys. C 49 (1991) 17; CDF, arXiv:0812.4036.
"""

from __future__ import annotations

__all__ = ["PARAMETERS", "fit_falls"]

import torch
from torch import Tensor

from specfit.net.forms.plan import NODES, Plan
from specfit.net.forms.task import Fitted, Task
from specfit.net.posterior import LOG_RATES, precision_cholesky, solved
from specfit.significance import deviance_terms

PARAMETERS = 4
"""Of every fall."""
# Prior width along directions of one e-fold; no step moves a bin by more e-folds, and the last one that is needed moves
# none by more of its standard errors.
WIDTH, LONGEST_STEP, SETTLED, MOST_STEPS = 20.0, 3.0, 0.1, 30
# So many times what is allowed is too far for the steps.
FAR = 20.0


def fit_falls(plan: Plan, task: Task) -> list[Fitted]:
    """Fits every fall; none where all are far from every spectrum."""
    points, terms = plan.points, WIDTH * plan.falls  # (r, f, 4, NODES n_bins)
    (m, n_bins), f = task.data.shape, terms.shape[1]
    data, seen, log_rate = (t[:, None].expand(-1, f, -1) for t in (task.data, task.seen, task.log_rate))
    log_weights, log_widths = points.log_weights.flatten(1)[:, None], points.log_widths[:, None]
    middle = _averaged((points.log_weights - log_widths).exp().flatten(1)[:, None], terms, n_bins)
    weight, target = seen * log_rate.exp(), log_rate - log_widths
    position = _solved(middle.expand(m, -1, -1, -1), weight, weight * target)
    distance = (weight * (target - _along(middle, position)).square()).sum(-1)
    near = going = distance < FAR * task.allowed[:, None]
    if not going.any():  # as for one spectrum with a turn-on
        return []
    log_bins, basis = log_rate.clone(), data.new_zeros(m, f, n_bins, PARAMETERS)
    deviance, rows = torch.full_like(distance, torch.inf), torch.arange(m, device=data.device)
    for _ in range(MOST_STEPS):
        some = going.any(1)
        if not some.any():
            break
        if not some.all():  # what has settled stays, or an answer would depend on others
            rows, position, data, seen, going, near = (t[some] for t in (rows, position, data, seen, going, near))
            terms, log_weights = (t if len(t) == 1 else t[some] for t in (terms, log_weights))
        values = ((position[:, :, None] @ terms)[:, :, 0] + log_weights).view(len(rows), f, NODES, n_bins)
        whole = values.logsumexp(2)
        slopes = _averaged((values - whole[:, :, None]).exp().flatten(2), terms, n_bins)
        log_bins[rows], basis[rows] = whole.clamp(*LOG_RATES), slopes
        rate = log_bins[rows].exp()
        found = (deviance_terms(data, rate) * seen).sum(-1).nan_to_num(torch.inf)
        deviance[rows] = found.masked_fill(~near, torch.inf)
        step = _solved(slopes, seen * rate, seen * (data - rate), less=position)
        moved = _along(slopes, step)
        going = going & ((moved.square() * seen * rate).amax(-1) > SETTLED**2)
        damping = (LONGEST_STEP / (moved * seen).abs().amax(-1).clamp(min=LONGEST_STEP)) * going
        position = position + damping[..., None] * step
    return [Fitted(log_bins[:, i], basis[:, i], deviance[:, i]) for i in range(f)]


def _solved(basis: Tensor, information: Tensor, force: Tensor, *, less: Tensor | None = None) -> Tensor:
    """Solves for coefficients `(m, f, 4)` of unit prior; a force on bins, less one on the coefficients."""
    right = (force[:, :, None] @ basis)[:, :, 0]
    right = right if less is None else right - less
    lower = precision_cholesky(basis.flatten(0, 1), information.flatten(0, 1))
    return solved(lower, right.flatten(0, 1)).view_as(right).nan_to_num(0.0, 0.0, 0.0)


def _along(basis: Tensor, position: Tensor) -> Tensor:
    return (basis @ position[..., None])[..., 0]


def _averaged(inside: Tensor, terms: Tensor, n_bins: int) -> Tensor:
    """Averages terms over the events of each bin, shape `(*, f, n_bins, 4)`."""
    weighted = inside[:, :, None] * terms
    return weighted.view(*weighted.shape[:3], NODES, n_bins).sum(-2).mT
