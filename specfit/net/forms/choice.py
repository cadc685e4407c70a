r"""Functions of few parameters beside a net: where one describes a spectrum as well, the net need not look further.

A net that serves every spectrum leaves directions open that a spectrum of a plain shape does not need, and each costs
precision. So the functions that the field has fitted for decades are fitted too (`specfit.net.forms.falls`,
`specfit.net.forms.turn_on`), each from what the net says, and

.. math:: \text{deviance} + 6 \times \text{effective parameters}

decides between them and the net, as in discrete profiling (P. Dauncey et al., arXiv:1408.6865), with a price between
Akaike's 2 and what Schwarz asks for from some hundred events on, their logarithm.

No function is the truth. The net's own directions stay beside the chosen one, their amplitude a share of the net's that
the evidence of the spectrum decides, 0 to 0.8, averaged over what it leaves possible. Erf x exp, which hardly fits by
chance, is taken at its word unless the evidence speaks against it; no error is ever: there the share is at least 0.15.
"""

from __future__ import annotations

__all__ = ["with_functional_form"]

import torch
from torch import Tensor, nn

from specfit.net.base import LocalModel
from specfit.net.forms import falls, turn_on
from specfit.net.forms.plan import Plan, plan_of
from specfit.net.forms.task import Fitted, Task
from specfit.net.posterior import combined, gaussian_prediction, posterior_mode, precision_cholesky
from specfit.net.smooth import DESCRIBED, DISAGREEING, Described, describe

# What a parameter has to gain in deviance; a function must save at least so many of them, and needs so many bins. A net
# that uses no more parameters than the last leaves nothing to gain.
PRICE, LEAST_SAVING, FEWEST_BINS, FEWEST_OF_NET = 6.0, 0.5, 10, 3.5
# Shares of the net's own directions that are tried, and what counts for the errors at least.
SHARES, LEAST_SHARE_OF_ERROR = (0.0, 0.1, 0.2, 0.4, 0.8), 0.15
# Added to the log evidence of no deviation from a turn-on.
TRUST_IN_TURN_ON = 6.0


@torch.no_grad()
def with_functional_form(
    described: Described,
    n_learned: int,
    data: Tensor,
    edges: Tensor,
    *,
    mask: Tensor,
    exposure: Tensor | None = None,
) -> tuple[LocalModel, Tensor]:
    """Puts a function in the place of the mean that a net holds for plausible, where that is as good.

    Args:
        described: What the net holds for plausible, and how well that describes the data.
        n_learned: How many of its directions the net has learned; the others, at least five, are spare.
        data: Observed events, shape `(m, n_bins)`, float64.
        edges: Bin edges, shape `(m, n_bins + 1)`.
        mask: True for bins that weigh nothing, shape `(m, n_bins)`.
        exposure: How many events a bin holds for each one of a smooth background, same shape; None for 1.

    Returns:
        The local model and the estimated log rate, `(m, n_bins)`. Where a function was chosen, the model is at least as
        wide as the one whose mode the estimate is.
    """
    if exposure is not None:
        return _per_exposure(described, n_learned, data, edges, mask, exposure)
    return _of_densities(described, n_learned, data, edges, (~mask).to(data))


def _per_exposure(
    described: Described, n_learned: int, data: Tensor, edges: Tensor, mask: Tensor, exposure: Tensor
) -> tuple[LocalModel, Tensor]:
    """Fits functions, which are densities, to data over their exposures, each of which stands for so many events."""
    log_exposure, (model, log_rate, description) = exposure.log(), described
    described = Described(model.shifted(-log_exposure), log_rate - log_exposure, description)
    model, log_rate = _of_densities(described, n_learned, data / exposure, edges, exposure.masked_fill(mask, 0.0))
    return model.shifted(log_exposure), log_rate + log_exposure


def _of_densities(
    described: Described, n_learned: int, data: Tensor, edges: Tensor, seen: Tensor
) -> tuple[LocalModel, Tensor]:
    """Does what `with_functional_form` promises; `seen` is how many events one of the data stands for, 0 if masked."""
    model, log_rate, description = described
    possible = (description.p_value > DISAGREEING) & (description.n_parameters > FEWEST_OF_NET)
    possible &= (description.n_seen >= FEWEST_BINS) & (edges[:, 0] >= 0)
    rows = possible.nonzero()[:, 0]
    if len(rows) == 0:
        return model, log_rate
    data, seen, n_parameters = data[rows], seen[rows], description.n_parameters[rows]
    task = Task(log_rate[rows], data, seen, PRICE * n_parameters)
    chosen, fitted, trust = _chosen(plan_of(edges, rows), task, description.deviance[rows], n_parameters)
    if not chosen.any():
        return model, log_rate
    rows, data, seen, trust = rows[chosen], data[chosen], seen[chosen], trust[chosen]
    own, learned = fitted.basis[chosen], model.basis[rows, :, :n_learned]
    mode = fitted.log_rate[chosen]
    share = _share_of_deviations(mode, own, learned, data, seen, trust=trust)[:, None, None]
    plausible = torch.cat([share * learned, own], -1)
    found = posterior_mode(mode, plausible, data, weight=seen)
    # Nor may it spoil a description: what is saved is not worth that.
    described_by_net = description.p_value[rows].clamp(max=DESCRIBED)
    good = describe(found, plausible, data, seen).p_value > described_by_net
    rows, mode, own, learned, share, found = (t[good] for t in (rows, mode, own, learned, share, found))
    log_mean, basis, own_share = model.log_mean.clone(), model.basis.clone(), model.own_share.clone()
    log_rate = log_rate.clone()
    log_mean[rows], basis[rows], own_share[rows], log_rate[rows] = mode, 0.0, share[:, 0, 0], found
    basis[rows, :, :n_learned] = share.clamp(min=LEAST_SHARE_OF_ERROR) * learned
    basis[rows, :, n_learned : n_learned + own.shape[-1]] = own
    return model._replace(log_mean=log_mean, basis=basis, own_share=own_share), log_rate


def _chosen(plan: Plan, task: Task, deviance: Tensor, n_parameters: Tensor) -> tuple[Tensor, Fitted, Tensor]:
    """Fits every function, and compares it with the deviance and the number of parameters of the net, `(m,)` each.

    Returns:
        Whether one is chosen, `(m,)`, the best of them, and how far it is trusted, `(m,)`.
    """
    least, log_rate = deviance + task.allowed, task.log_rate
    best = Fitted(log_rate.clone(), log_rate.new_zeros(*log_rate.shape, turn_on.PARAMETERS), deviance.clone())
    trust, chosen = torch.zeros_like(least), torch.zeros_like(least, dtype=torch.bool)
    functions = [(one, 0.0) for one in falls.fit_falls(plan, task)]
    # Where few parameters serve, one of the falls does.
    allowed = task.allowed.masked_fill(n_parameters < falls.PARAMETERS + LEAST_SAVING, -torch.inf)
    functions.append((turn_on.fit_turn_on(plan, task._replace(allowed=allowed)), TRUST_IN_TURN_ON))
    for one, trusted in functions:
        if not (one.deviance < least).any():
            continue
        used = gaussian_prediction(one.log_rate, one.basis, task.seen).n_parameters
        score = one.deviance + PRICE * used
        better = (score < least) & (used < n_parameters - LEAST_SAVING)
        padded = nn.functional.pad(one.basis, (0, turn_on.PARAMETERS - one.basis.shape[-1]))
        for whole, part in zip(best, (one.log_rate, padded, one.deviance), strict=True):
            whole[better] = part[better]
        least[better], trust[better] = score[better], trusted
        chosen |= better
    return chosen, best, trust


def _share_of_deviations(
    log_rate: Tensor, own: Tensor, learned: Tensor, data: Tensor, seen: Tensor, *, trust: Tensor
) -> Tensor:
    r"""Finds how much of a net's own directions a spectrum needs beside a function, shape `(m,)`.

    In the normal approximation around the function, with what its parameters do not follow of the directions, and
    eigenvalues :math:`e_i` of their information with forces :math:`g_i` along them, the log evidence of a share s is
    :math:`\frac12 \sum_i s^2 g_i^2 / (1 + s^2 e_i) - \ln(1 + s^2 e_i)`. The square of the share is averaged over it.

    Args:
        log_rate: Of the function, shape `(m, n_bins)`.
        own: Its derivatives, shape `(m, n_bins, k)`.
        learned: Directions of the net, shape `(m, n_bins, n)`.
        data: Observed events.
        seen: 0 for masked bins, else how many events one of the data stands for.
        trust: Added to the log evidence of none, shape `(m,)`.
    """
    information = seen * log_rate.exp()
    weighted = information[..., None] * learned
    followed = torch.cholesky_solve(own.mT @ weighted, precision_cholesky(own, information))
    rest = (learned - own @ followed).nan_to_num(0.0, 0.0, 0.0)  # where rounding left no factor
    force = combined(seen * (data - log_rate.exp()), rest.mT)
    eigenvalues, vectors = torch.linalg.eigh(rest.mT @ (information[..., None] * rest))
    eigenvalues = eigenvalues.clamp(min=0.0)
    along = combined(force, vectors.mT).square()
    square = data.new_tensor(SHARES).square()
    scaled = square[:, None] * eigenvalues[:, None]  # (m, shares, n)
    evidence = (square[:, None] * along[:, None] / (1 + scaled) - scaled.log1p()).sum(-1) / 2
    evidence[:, 0] += trust
    share: Tensor = (evidence.softmax(-1) @ square).sqrt()
    return share
