r"""The chain of a search: one batch of spectra in, a yield with its error and a local significance for every hypothesis.

For each hypothesis

1. the net says what is plausible around the data without the fitted signal, :math:`d\,\lambda_b / (\lambda_b + S s)`,
   with S = 0 at first;
2. background and signal are fitted together to the data (`specfit.search.joint_fit`);
3. where the signal is larger than half a standard deviation, again from 1, so that it no longer pulls the net.

The local significance is :math:`\pm\sqrt{q_0}`, from the likelihoods with and without the signal around the same local
model; it and the error of the yield carry the net's calibration (`specfit.net.error_scale`), which widens the share of
the background in them.

Everything that a search does with pseudo-experiments runs this chain on each.
"""

from __future__ import annotations

__all__ = ["Chain", "ChainResult"]

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from specfit.inference import SpectrumFitter
from specfit.net import CalibratedNet, LocalModel
from specfit.net.posterior import gaussian_prediction, posterior_mode
from specfit.search.hypotheses import SignalHypotheses
from specfit.search.joint_fit import TINY, JointFit, fit_jointly

# Signals above so many standard deviations are taken out of what the net sees, at most so many times.
SEEN_ABOVE, MOST_PASSES = 0.5, 4
# A row of spectrum and hypothesis is done when its signal moved by less of its standard errors.
SETTLED = 0.05
# Rows of spectrum and hypothesis that are fitted together: what keeps a processor's cache.
ROWS_AT_A_TIME, LARGEST_SHARE = 2048, 10.0


class ChainResult(NamedTuple):
    """What a search sees in each spectrum at each hypothesis."""

    yields: Tensor
    """Fitted events of the tested signal, shape `(m, h)`; negative for a deficit."""
    error: Tensor
    """Standard error of the yield, the background's included, shape `(m, h)`."""
    local_z: Tensor
    """Signed local significance, shape `(m, h)`."""
    background: Tensor
    """Background under each hypothesis, shape `(m, h, n_bins)`, or empty if not asked for."""
    others: Tensor
    """Yields of the known peaks, shape `(m, h, q)`."""


@dataclass(frozen=True, eq=False)
class Chain:
    """Background by a net and signal by a column, fitted together at every hypothesis.

    Args:
        fitter: A net with a local model, on its edges.
        edges: Bin edges of the spectra, shape `(n_bins + 1,)`.
        hypotheses: What is looked for.
        known: Templates of peaks that are fitted in every hypothesis beside it, shape `(q, n_bins)`.
        mask: True for bins to leave out, shape `(n_bins,)`.
    """

    fitter: SpectrumFitter
    edges: Tensor
    hypotheses: SignalHypotheses
    known: Tensor
    mask: Tensor

    @torch.no_grad()
    def __call__(self, counts: Tensor, *, with_background: bool = False) -> ChainResult:
        """Runs the chain on counts `(m, n_bins)`."""
        at_a_time = max(1, ROWS_AT_A_TIME // len(self.hypotheses))
        parts = [self._some(some, with_background) for some in counts.double().split(at_a_time)]
        return ChainResult(*(torch.cat(t) for t in zip(*parts, strict=True)))

    def _some(self, counts: Tensor, with_background: bool) -> ChainResult:
        m, (h, n) = len(counts), self.hypotheses.templates.shape
        spectrum = torch.arange(m).repeat_interleave(h)  # of each row of spectrum and hypothesis
        data, columns = counts[spectrum], self._columns().repeat(m, 1, 1)
        once = self._local_model(counts)
        fit, free = self._fit(data, LocalModel(*(t[spectrum] for t in once)), columns)
        fit, free = self._taking_out_signals(data, columns, fit, free)
        z = fit.yields[:, 0].sign() * (2 * (free - fit.nll)).clamp(min=0.0).sqrt()
        error, wider = fit.covariance[:, 0, 0].sqrt(), self._widening(counts, once, fit, columns[:, 0])
        return ChainResult(
            fit.yields[:, 0].view(m, h),
            (error * wider).view(m, h),
            (z / wider).view(m, h),
            fit.background.view(m, h, n) if with_background else counts.new_zeros(m, h, 0),
            fit.yields[:, 1:].reshape(m, h, -1),
        )

    def _taking_out_signals(
        self, data: Tensor, columns: Tensor, fit: JointFit, without: Tensor
    ) -> tuple[JointFit, Tensor]:
        """Asks the net again without the signals, until they stay; returns the fits and the likelihoods without."""
        is_seen = fit.yields.abs() > SEEN_ABOVE * fit.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        rows = is_seen.any(-1).nonzero()[:, 0]
        for _ in range(MOST_PASSES - 1):
            if len(rows) == 0:
                break
            signal = (columns[rows].mT @ fit.yields[rows, :, None])[..., 0]
            share = fit.background[rows] / (fit.background[rows] + signal).clamp(min=TINY)
            # Where the fit expects nothing nothing is known about the share.
            cleaned = data[rows] * share.clamp(max=LARGEST_SHARE)
            model = self._local_model(cleaned)
            new, new_without = self._fit(data[rows], model, columns[rows])
            moved = (new.yields - fit.yields[rows])[:, 0].abs() / new.covariance[:, 0, 0].sqrt()
            for whole, part in zip((*fit, without), (*new, new_without), strict=True):
                whole[rows] = part
            rows = rows[moved > SETTLED]
        return fit, without

    def _fit(self, data: Tensor, model: LocalModel, columns: Tensor) -> tuple[JointFit, Tensor]:
        """Fits with the tested signal; returns with it the likelihood without."""
        weight = (~self.mask).to(data).expand_as(data)
        without = fit_jointly(data, model.log_mean, model.basis, columns[:, 1:], weight=weight)
        start = without._replace(yields=torch.cat([torch.zeros_like(without.nll)[:, None], without.yields], 1))
        fit = fit_jointly(data, model.log_mean, model.basis, columns, weight=weight, start=start)
        return fit, without.nll

    def _columns(self) -> Tensor:
        """Returns the templates of each hypothesis, the tested one first, `(h, 1 + q, n_bins)`."""
        tested = self.hypotheses.templates[:, None]
        return torch.cat([tested, self.known.expand(len(tested), -1, -1)], 1)

    def _local_model(self, counts: Tensor) -> LocalModel:
        net = self.fitter.net
        mask = self.mask.expand_as(counts)
        parts = [net.local_model(n, edges=self.edges, mask=k) for n, k in zip(counts.split(1024), mask.split(1024))]
        return LocalModel(*(torch.cat(t) for t in zip(*parts, strict=True)))

    def _widening(self, counts: Tensor, model: LocalModel, fit: JointFit, template: Tensor) -> Tensor:
        """Returns by how much the calibration of the background's error widens that of each yield, `(m h,)`."""
        weight = (~self.mask).to(counts).expand_as(counts)
        log_rate = posterior_mode(model.log_mean, model.basis, counts, weight=weight)
        raw = gaussian_prediction(log_rate, model.basis, weight)
        scaled = self.fitter.net.error_scale(raw, self.mask.expand_as(counts))
        square = (scaled.factor.square().sum(-1) / raw.factor.square().sum(-1).clamp(min=TINY)) * weight
        rate = (fit.background + fit.yields.clamp(min=0.0)[:, :1] * template).clamp(min=TINY)
        information = template.square() / rate * weight.repeat_interleave(len(self.hypotheses), 0)
        total = information.sum(-1).clamp(min=TINY**2)
        mean = (square.repeat_interleave(len(self.hypotheses), 0) * information).sum(-1) / total
        of_background = (1 - 1 / (total * fit.covariance[:, 0, 0])).clamp(0.0, 1.0)
        return (1 + of_background * (mean - 1)).clamp(min=TINY).sqrt()
