r"""Falls whose logarithm is linear in four parameters, all fitted at once.

Cubic in x, cubic in ln x, UA2's :math:`x^{-a} e^{-bx - cx^2}` and the dijet function. One that comes near the data is
near what the net says: a straight fit to that, and damped steps of Fisher scoring from there. Then the last parameter
is left out where the data do not ask for it, and the next one: that leaves exponentials, power laws and what lies
between.

Sources: UA2, Z. Phys. C 49 (1991) 17; CDF, arXiv:0812.4036.
"""

from __future__ import annotations

__all__ = ["FEWEST_PARAMETERS", "PARAMETERS", "fit_falls"]

from typing import NamedTuple

import torch
from torch import Tensor

from specfit.net.forms.plan import NODES, Plan
from specfit.net.forms.task import Fitted, Task
from specfit.net.posterior import LOG_RATES, precision_cholesky, solved
from specfit.significance import deviance_terms

PARAMETERS = 4
"""Of every fall."""
FEWEST_PARAMETERS = 2
"""That stay."""
# In standard errors, what a parameter must be to stay.
NEEDED = 2.0
# Prior width along directions of one e-fold; no step moves a bin by more e-folds, and the last one that is needed moves
# none by more of its standard errors.
WIDTH, LONGEST_STEP, SETTLED, MOST_STEPS = 20.0, 3.0, 0.1, 30
# So many times what is allowed is too far for the steps.
FAR = 20.0


def fit_falls(plan: Plan, task: Task) -> list[Fitted]:
    """Fits every fall; none where all are far from every spectrum."""
    search, position = _start(plan, task)
    if not search.near.any():  # as for one spectrum with a turn-on
        return []
    m, f, n_bins = search.data.shape
    nothing, infinite = position.new_zeros(m, f, n_bins, PARAMETERS), torch.full_like(position[..., 0], torch.inf)
    found = Fitted(torch.zeros_like(search.data), nothing, infinite)
    used = torch.ones_like(position)
    _settle(search, position, used, search.near, found)
    for last in range(PARAMETERS - 1, FEWEST_PARAMETERS - 1, -1):
        # Its square over its variance: all later columns are zero by now.
        information = (search.seen * found.log_rate.exp()).flatten(0, 1)
        lower = precision_cholesky(found.basis.flatten(0, 1), information).view(m, f, PARAMETERS, PARAMETERS)
        pull = position[..., last] * lower[..., last, last]
        leaves = search.near & (used[..., last + 1 :] == 0).all(-1) & (pull.abs() < NEEDED)
        if not leaves.any():
            break
        before = Fitted(*(t.clone() for t in found))
        used[..., last].masked_fill_(leaves, 0.0)
        position *= used
        _settle(search, position, used, leaves, found)
        # Far from normal a pull says little.
        lost = leaves & ~(found.deviance < before.deviance + NEEDED**2)
        for now, then in zip(found, before, strict=True):
            now[lost] = then[lost]
        used[..., last].masked_fill_(lost, 1.0)
    return [Fitted(*(t[:, i] for t in found)) for i in range(f)]


class _Search(NamedTuple):
    """Spectra and falls; r is m, or 1 if all spectra have the same edges."""

    terms: Tensor
    """What the parameters multiply, shape `(r, f, 4, NODES n_bins)`."""
    log_weights: Tensor
    """Of the points, shape `(r, 1, NODES n_bins)`."""
    data: Tensor
    """Shape `(m, f, n_bins)`."""
    seen: Tensor
    """Same shape."""
    near: Tensor
    """Which falls come near, shape `(m, f)`."""

    def of(self, rows: Tensor) -> _Search:
        """Takes some spectra."""
        return self if len(rows) == len(self.data) else _Search(*(t if len(t) == 1 else t[rows] for t in self))


def _start(plan: Plan, task: Task) -> tuple[_Search, Tensor]:
    """Fits every fall to what the net says, by least squares; returns the parameters, `(m, f, 4)`."""
    points, terms = plan.points, WIDTH * plan.falls
    (m, n_bins), f = task.data.shape, terms.shape[1]
    data, seen, log_rate = (t[:, None].expand(-1, f, -1) for t in (task.data, task.seen, task.log_rate))
    log_weights, log_widths = points.log_weights.flatten(1)[:, None], points.log_widths[:, None]
    middle = _averaged((points.log_weights - log_widths).exp().flatten(1)[:, None], terms, n_bins)
    weight, target = seen * log_rate.exp(), log_rate - log_widths
    position = _solved(middle.expand(m, -1, -1, -1), weight, weight * target)
    distance = (weight * (target - _along(middle, position)).square()).sum(-1)
    return _Search(terms, log_weights, data, seen, distance < FAR * task.allowed[:, None]), position


def _settle(search: _Search, position: Tensor, used: Tensor, going: Tensor, found: Fitted) -> None:
    """Takes some falls to the minimum of their deviance; position and what is found are written over.

    Args:
        search: What is fitted to what.
        position: Parameters, shape `(m, f, 4)`.
        used: 0 for parameters that are left out, same shape.
        going: Which of them, shape `(m, f)`.
        found: Log rates, bases and deviances, shape `(m, f, *)`.
    """
    n_bins, going = search.data.shape[2], going.clone()
    for _ in range(MOST_STEPS):
        rows = going.any(1).nonzero()[:, 0]
        if len(rows) == 0:
            break
        # What has settled stays, or an answer would depend on others.
        some, now, moves = search.of(rows), position[rows], going[rows]
        values = (now[:, :, None] @ some.terms)[:, :, 0] + some.log_weights
        values = values.view(*moves.shape, NODES, n_bins)
        whole = values.logsumexp(2)
        basis = _averaged((values - whole[:, :, None]).exp().flatten(2), some.terms, n_bins) * used[rows][:, :, None]
        log_rate = whole.clamp(*LOG_RATES)
        rate = log_rate.exp()
        deviance = (deviance_terms(some.data, rate) * some.seen).sum(-1).nan_to_num(torch.inf)
        for of_all, of_some in zip(found, (log_rate, basis, deviance), strict=True):
            chosen = moves.view(*moves.shape, *[1] * (of_some.ndim - 2))
            of_all[rows] = of_some.where(chosen, of_all[rows])
        step = _solved(basis, some.seen * rate, some.seen * (some.data - rate), less=now)
        moved = _along(basis, step)
        moves = moves & ((moved.square() * some.seen * rate).amax(-1) > SETTLED**2)
        damping = (LONGEST_STEP / (moved * (some.seen > 0)).abs().amax(-1).clamp(min=LONGEST_STEP)) * moves
        position[rows] = now + damping[..., None] * step
        going[rows] = moves


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
