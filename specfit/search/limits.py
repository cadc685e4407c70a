r"""Intervals and limits on the yield of every hypothesis of one spectrum, from its profile likelihood.

The background is fitted again at each yield, around the local model of the best fit. Conventions: `interval` is where
:math:`2 \Delta \ln L` reaches 1 on each side (MINOS); `upper_limits` follow the CLs rule with
:math:`\tilde q_\mu` and its asymptotic distributions, expectations from the Asimov data of the background. Likelihood
differences are divided by the square of the widening of the error (see `specfit.signal.extraction`).

Where hardly any events are expected the asymptotic distributions exclude too much. No CLs limit lies below
:math:`-\ln(1 - \text{level})` seen events, 3.0 at 95 %: with probability :math:`e^{-S}` a signal of S leaves no event
and the data are those of the background alone, so CLs is at least :math:`e^{-S}`, whatever the test statistic.

Sources: F. James, M. Roos, Comput. Phys. Commun. 10 (1975) 343; Cowan, Cranmer, Gross, Vitells, arXiv:1007.1727;
A. L. Read, J. Phys. G 28 (2002) 2693.
"""

from __future__ import annotations

__all__ = ["Limits", "interval", "upper_limits"]

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from specfit.signal.joint_fit import TINY, fit_jointly
from specfit.signal.rows import Rows
from specfit.stats.limits import BANDS, asymptotic_p_values

# Halvings of a bracket, which is no wider than the first step or twice the distance of the end: that is found to a
# ten-thousandth of the larger of the two, if it lies within so many doublings of the first step.
HALVINGS, MOST_DOUBLINGS = 14, 60
# Share of the largest content of a template that counts as none.
NEGLIGIBLE = 1e-3


class Limits(NamedTuple):
    """Upper limits on yields."""

    observed: Tensor
    """Shape `(h,)`."""
    expected: Tensor
    """Without signal, at -2, -1, 0, 1, 2 standard deviations, shape `(h, 5)`."""


def interval(rows: Rows, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Finds how far below and above its best value a yield lies within one standard deviation, shapes `(h,)`."""
    best = rows.fit.yields[:, 0]
    curve = _Profile(rows, rows.data, weight)
    # Where a bin would have to expect fewer than no events the interval ends.
    template = rows.columns[:, 0]
    ratio = rows.fit.background / template.clamp(min=TINY)
    wall = ratio.masked_fill(template < NEGLIGIBLE * template.amax(1, keepdim=True), torch.inf).amin(1)

    def height(value: Tensor) -> Tensor:
        return curve(value) - 2 * rows.fit.nll / rows.widening**2 - 1

    # Beyond the wall the likelihood of empty bins does not fall any more.
    low = best - _root(lambda value: height(value).masked_fill(value < -wall, torch.inf), best, -rows.error)
    high = _root(height, best, rows.error) - best
    return torch.minimum(low, (best + wall).clamp(min=0.0)), high


def upper_limits(rows: Rows, weight: Tensor, *, level: float) -> Limits:
    """Finds the yields that the CLs rule excludes.

    Args:
        rows: Of one spectrum.
        weight: 0 for bins that are left out, shape `(h, n_bins)`.
        level: Confidence level.
    """
    alpha, best = 1 - level, rows.fit.yields[:, 0]
    of_data, of_asimov = _Profile(rows, rows.data, weight), _asimov(rows, weight)
    least = torch.where(best > 0, 2 * rows.fit.nll, 2 * rows.without.nll) / rows.widening**2
    least_of_asimov = of_asimov(torch.zeros_like(best))

    def log_cls(value: Tensor) -> Tensor:
        q = (of_data(value) - least).clamp(min=0.0)
        root_a = (of_asimov(value) - least_of_asimov).clamp(min=1e-12).sqrt()
        p = asymptotic_p_values(q.sqrt().numpy(), root_a.numpy())[0]
        return torch.from_numpy(np.log(alpha) - np.log(np.maximum(p, 1e-300)))

    observed = _root(log_cls, best.clamp(min=0.0), rows.error)
    expected = []
    for band in BANDS:
        # Without signal CLs is a function of the Asimov statistic alone.
        height = float(scipy.stats.norm.isf(alpha * scipy.stats.norm.sf(-band))) + band
        above = least_of_asimov + height**2
        expected.append(_root(lambda v, above=above: of_asimov(v) - above, torch.zeros_like(best), rows.error))  # type: ignore[misc]
    seen = (rows.columns[:, 0] * weight).sum(1)  # events of a yield of 1
    fewest = -np.log(alpha) / seen.clamp(min=TINY)
    return Limits(torch.maximum(observed, fewest), torch.maximum(torch.stack(expected, -1), fewest[:, None]))


class _Profile:
    """Twice the negative log-likelihood of data at given yields, fitted again in everything else."""

    def __init__(self, rows: Rows, data: Tensor, weight: Tensor) -> None:
        self.rows, self.data, self.weight = rows, data, weight

    def __call__(self, value: Tensor) -> Tensor:
        rows = self.rows
        model, known = rows.model, rows.columns[:, 1:]
        held, mean, basis = value[:, None] * rows.columns[:, 0], model.log_mean, model.basis
        fit = fit_jointly(self.data, mean, basis, known, weight=self.weight, fixed=held, start=rows.without)
        return 2 * fit.nll / rows.widening**2


def _asimov(rows: Rows, weight: Tensor) -> _Profile:
    """Makes the data that the fit without signal expects, and the prior that goes with them: around that fit too."""
    background, yields = rows.without.background, rows.without.yields
    expected = background + (rows.columns[:, 1:].mT @ yields[..., None])[..., 0]
    model = rows.model._replace(log_mean=background.clamp(min=TINY).log())
    without = rows.without._replace(coefficients=torch.zeros_like(rows.without.coefficients))
    return _Profile(rows._replace(model=model, without=without), expected.clamp(min=0.0), weight)


def _root(height: Callable[[Tensor], Tensor], low: Tensor, step: Tensor) -> Tensor:
    """Finds where a rising function of the distance from `low` passes 0, in the direction of `step`; `(h,)`.

    Infinite where that is nowhere.
    """
    high = low + step
    for _ in range(MOST_DOUBLINGS):
        short = height(high) < 0
        if not short.any():
            break
        low, high = torch.where(short, high, low), torch.where(short, high + 2 * (high - low), high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        before = height(middle) < 0
        low, high = torch.where(before, middle, low), torch.where(before, high, middle)
    return torch.where(short, torch.inf * step.sign(), (low + high) / 2)
