r"""The significance of very many signals from one fit of the background alone.

With the local model :math:`\lambda = e^{m + B c}` of a net, residuals :math:`r = w (d - \lambda)` and the precision
:math:`P = B^T W B + 1`, :math:`W = \mathrm{diag}(w \lambda)`, the score of the yield of a template s at zero, with the
coefficients c profiled, is

.. math:: U = \sum_i \frac{s_i r_i}{\lambda_i} - (B^T w s)^T P^{-1} (B^T r - c), \qquad
    \mathrm{Var}\, U = \sum_i \frac{w_i s_i^2}{\lambda_i} - (B^T w s)^T P^{-1} (B^T w s),

and :math:`U / \sqrt{\mathrm{Var}\, U}` is its significance. Nothing is fitted for a hypothesis, so hundreds of them
cost a few matrix products. At few events the score exaggerates: it is multiplied by what the Poisson likelihood ratio
makes of the same excess over a known background, in proportion.

Sources: C. R. Rao, Proc. Cambridge Phil. Soc. 44 (1948) 50 (score test); Cowan, Cranmer, Gross, Vitells,
arXiv:1007.1727, eq. 97 (likelihood ratio of a counting experiment).
"""

from __future__ import annotations

__all__ = ["path_length", "score_test"]

import torch
from torch import Tensor

from specfit.net import LocalModel
from specfit.net.posterior import combined, precision_cholesky
from specfit.signal.hypotheses import SignalHypotheses

# A hypothesis of which less is left beside what is masked is not tried.
LEAST_SEEN = 0.5
# A step that changes the log rate of a bin by more is none that a score knows.
LARGEST_STEP = 1.0
# Below this share of excess the likelihood ratio is the square of the score.
SMALL_EXCESS = 1e-3


def score_test(
    counts: Tensor, log_rate: Tensor, model: LocalModel, hypotheses: SignalHypotheses, *, weight: Tensor
) -> Tensor:
    """Tests every signal in every spectrum.

    Args:
        counts: Events, shape `(m, n_bins)`, float64; over their exposure, if bins have one (`weight` is it then).
        log_rate: Log of an estimated background, one that `model` can describe, shape `(m, n_bins)`; near its mode.
        model: What the net holds for plausible.
        hypotheses: Signals.
        weight: 0 for masked bins, 1 for others, or how many events one of `counts` stands for, shape `(m, n_bins)`.

    Returns:
        Signed significance, shape `(m, h)`; 0 where more than half of the signal is masked.
    """
    templates, rate = hypotheses.templates.to(counts), log_rate.exp()
    information, residual = weight / rate, counts - rate
    # A step to the mode of the model is taken off: the estimate was found with other weights, or fewer directions.
    away = log_rate - model.log_mean  # B c
    force = combined(weight * (residual + rate * away), model.basis.mT)  # (m, k)
    lower, whitened = _whitened(rate, model, weight)
    imitated = _imitated(whitened, templates, weight)
    pull = torch.linalg.solve_triangular(lower, force[..., None], upper=False)
    # No such step leads from one that does not believe what it sees to one that does: there the estimate stays.
    near = (pull.mT @ whitened - away[:, None]).abs().amax(2) < LARGEST_STEP  # (m, 1)
    steps = (weight * away) @ templates.T - (pull.mT @ imitated)[:, 0]
    score = (information * residual) @ templates.T + torch.where(near, steps, 0.0)  # (m, h)
    alone = information @ templates.square().T
    deviation = _deviation(alone, imitated)
    seen = weight @ templates.T
    ratio = ((information * counts) @ templates.T) / seen
    z = score / deviation * _of_likelihood(ratio, seen.square() / alone)
    return torch.where(_tried(weight, templates), z, 0.0)


def path_length(log_rate: Tensor, model: LocalModel, hypotheses: SignalHypotheses, *, weight: Tensor) -> Tensor:
    """Computes how long the paths of neighbouring hypotheses through their correlations are, radians, shape `(m,)`.

    Args:
        log_rate: As for `score_test`, like `model` and `weight`.
        model: What the net holds for plausible.
        hypotheses: Signals; neighbours in the list are neighbours in mass, but where the width changes.
        weight: As for `score_test`.
    """
    templates, rate = hypotheses.templates.to(log_rate), log_rate.exp()
    information, (_, whitened) = weight / rate, _whitened(rate, model, weight)
    imitated = _imitated(whitened, templates, weight)
    deviation = _deviation(information @ templates.square().T, imitated)
    covariance = information @ (templates[1:] * templates[:-1]).T - (imitated[..., 1:] * imitated[..., :-1]).sum(1)
    angle = (covariance / (deviation[:, 1:] * deviation[:, :-1])).clamp(-1.0, 1.0).arccos()
    neighbours = (hypotheses.mass[1:] > hypotheses.mass[:-1]).to(information.device)
    tried = _tried(weight, templates)
    return torch.where(tried[:, 1:] & tried[:, :-1] & neighbours, angle, 0.0).sum(-1)


def _whitened(rate: Tensor, model: LocalModel, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the Cholesky factor of the precision, and directions of which each has that error, `(m, k, n_bins)`."""
    lower = precision_cholesky(model.basis, weight * rate)
    return lower, torch.linalg.solve_triangular(lower, model.basis.mT, upper=False)


def _imitated(whitened: Tensor, templates: Tensor, weight: Tensor) -> Tensor:
    """Returns what of each template a background imitates, `(m, k, h)`."""
    return (whitened * weight[:, None]) @ templates.T


def _deviation(alone: Tensor, imitated: Tensor) -> Tensor:
    return (alone - imitated.square().sum(1)).clamp(min=1e-300).sqrt()


def _tried(weight: Tensor, templates: Tensor) -> Tensor:
    return (weight > 0).to(weight) @ templates.T > LEAST_SEEN * templates.sum(-1)


def _of_likelihood(ratio: Tensor, events: Tensor) -> Tensor:
    """Compares the likelihood ratio of an excess over so many known events with its score, `(m, h)`, at most 1."""
    excess = ratio - 1
    q0 = 2 * events * (ratio.clamp(min=1.0).log() * ratio - excess)
    score = (excess * events.sqrt()).clamp(min=1e-30)
    return torch.where(excess > SMALL_EXCESS, q0.clamp(min=0.0).sqrt() / score, 1.0)
