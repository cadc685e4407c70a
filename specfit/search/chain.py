r"""The chain of a search: spectra in, a yield with its error and a local significance for every hypothesis out.

For each hypothesis

1. the net says what is plausible around the data without the fitted signal, :math:`d\,\lambda_b / (\lambda_b + S s)`,
   with S = 0 at first;
2. background and signal are fitted together to the data (`specfit.search.joint_fit`);
3. where the signal is larger than half a standard deviation, again from 1, so that it no longer pulls the net.

The local significance is :math:`\pm\sqrt{q_0}` from the likelihoods with and without the signal. Each of the two may
use whichever of the net's local models describes the data better with it, that of the data as they are or that of the
data without the signal: where a background of its own explains the data as well, there is no significance (discrete
profiling, arXiv:1408.6865). It and the error of the yield also carry the net's calibration (`specfit.net.error_scale`),
which widens the share of the background in them. Everything that a search does with pseudo-experiments runs this chain
on each.
"""

from __future__ import annotations

__all__ = ["Chain", "ChainResult", "Rows"]

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specfit.errors import InputError
from specfit.inference import SpectrumFitter
from specfit.masks import bridged
from specfit.net import CalibratedNet, LocalModel
from specfit.net.posterior import gaussian_prediction, posterior_mode
from specfit.parallel import on_all_cores
from specfit.search.hypotheses import SignalHypotheses
from specfit.search.joint_fit import TINY, JointFit, fit_jointly
from specfit.search.toys.chunks import digest

# Signals above so many standard deviations are taken out of what the net sees, at most so many times.
SEEN_ABOVE, MOST_PASSES = 0.5, 4
# A row of spectrum and hypothesis is done when its signal moved by less of its standard errors.
SETTLED = 0.05
# A deficit multiplies what the net sees by no more than this.
LARGEST_SHARE = 10.0
# Where a background of its own explains a signal, its error grows by no more than this.
LARGEST_ABSORPTION = 10.0
# Rows of spectrum and hypothesis that are fitted together, and spectra that the net sees together.
ROWS_AT_A_TIME, SPECTRA_AT_A_TIME = 2048, 1024


class ChainResult(NamedTuple):
    """What a search sees in each spectrum at each hypothesis."""

    yields: Tensor
    """Fitted events of the tested signal, shape `(m, h)`; negative for a deficit."""
    error: Tensor
    """Standard error of the yield, the background's included, shape `(m, h)`."""
    local_z: Tensor
    """Signed local significance, shape `(m, h)`."""


class Rows(NamedTuple):
    """Everything that the chain knows, one row for each hypothesis of each spectrum, those of one spectrum together."""

    data: Tensor
    """Events, shape `(m h, n_bins)`."""
    columns: Tensor
    """Templates, the tested one first, then the known peaks, shape `(m h, 1 + q, n_bins)`."""
    model: LocalModel
    """What the net holds for plausible without the signal."""
    fit: JointFit
    """Background and signals together."""
    without: JointFit
    """The same model without the tested signal."""
    widening: Tensor
    """By how much the error of the tested yield is wider than this local model knows, shape `(m h,)`."""

    @property
    def error(self) -> Tensor:
        """Standard error of the tested yield, shape `(m h,)`."""
        return self.fit.covariance[:, 0, 0].sqrt() * self.widening

    @property
    def local_z(self) -> Tensor:
        """Signed local significance, shape `(m h,)`."""
        q0 = (2 * (self.without.nll - self.fit.nll)).clamp(min=0.0)
        return self.fit.yields[:, 0].sign() * q0.sqrt() / self.widening


@dataclass(frozen=True, eq=False)
class Chain:
    """Background by a net and signal by a column, fitted together at every hypothesis.

    Args:
        fitter: Its net has a local model (`net=learned_basis` or `any_binning`).
        edges: Bin edges of the spectra, shape `(n_bins + 1,)`.
        hypotheses: What is looked for.
        known: Templates of peaks that are fitted beside every hypothesis, shape `(q, n_bins)`.
        mask: True for bins to leave out, shape `(n_bins,)`.

    Raises:
        InputError: The net has no local model.
    """

    fitter: SpectrumFitter
    edges: Tensor
    hypotheses: SignalHypotheses
    known: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.fitter.net, CalibratedNet):
            kind = type(self.fitter.net).__name__
            raise InputError(
                f"checkpoint: {kind} gives a background without saying what else is plausible, which a signal is "
                "fitted beside; take a net=learned_basis or net=any_binning"
            )

    def __call__(self, counts: Tensor) -> ChainResult:
        """Runs the chain on counts `(m, n_bins)`."""
        at_a_time = max(1, ROWS_AT_A_TIME // len(self.hypotheses))
        parts = on_all_cores(self._summary, torch.split(counts.double(), at_a_time))
        return ChainResult(*(torch.cat(t) for t in zip(*parts, strict=True)))

    @torch.no_grad()
    def rows(self, counts: Tensor) -> Rows:
        """Runs the chain on counts `(m, n_bins)` and keeps everything; for few spectra."""
        m, h = len(counts), len(self.hypotheses)
        spectrum = torch.arange(m).repeat_interleave(h)
        data, columns = counts[spectrum], self._columns().repeat(m, 1, 1)
        once = self.local_model(counts)
        first = self._fitted(data, columns, LocalModel(*(t[spectrum] for t in once)))
        at_first = first.fit.nll.clone(), first.without.nll.clone()  # its rows are written over
        rows = self._taking_out_signals(first)
        return rows._replace(widening=self._calibration(counts, once, rows) * _absorption(rows, *at_first))

    def local_model(self, counts: Tensor) -> LocalModel:
        """Asks the net what is plausible around counts `(m, n_bins)`; it does not see what is left out."""
        net, mask = self.fitter.net, self.mask.expand_as(counts)
        if self.mask.any():
            # As in a fit: bridged first by a straight line, then by the net's own answer.
            seen = bridged(counts, mask, self.edges)
            own = net.predict(seen, edges=self.edges, mask=mask).background
            counts = torch.where(mask, own.to(counts), counts)
        pieces = zip(*(torch.split(t, SPECTRA_AT_A_TIME) for t in (counts, mask)), strict=True)
        parts = [net.local_model(n, edges=self.edges, mask=k) for n, k in pieces]  # type: ignore[operator]
        return LocalModel(*(torch.cat(t) for t in zip(*parts, strict=True)))

    def weight(self, like: Tensor) -> Tensor:
        """Returns 0 for bins that are left out and 1 for others, in the shape of `like`."""
        return (~self.mask).to(like).expand_as(like)

    def identity(self) -> dict[str, Any]:
        """Tells one search from another, whatever it is run on."""
        return {
            "net": digest(self.fitter.net.state_dict()),
            "search": digest([self.edges, self.hypotheses.templates, self.known, self.mask]),
        }

    def _summary(self, counts: Tensor) -> ChainResult:
        rows = self.rows(counts)
        return ChainResult(*(t.view(len(counts), -1) for t in (rows.fit.yields[:, 0], rows.error, rows.local_z)))

    def _columns(self) -> Tensor:
        """Returns the templates of each hypothesis, the tested one first, `(h, 1 + q, n_bins)`."""
        tested = self.hypotheses.templates[:, None]
        return torch.cat([tested, self.known.expand(len(tested), -1, -1)], 1)

    def _fitted(self, data: Tensor, columns: Tensor, model: LocalModel) -> Rows:
        """Fits with and without the tested signal around a local model."""
        weight = self.weight(data)
        without = fit_jointly(data, model.log_mean, model.basis, columns[:, 1:], weight=weight)
        start = without._replace(yields=torch.cat([torch.zeros_like(without.nll)[:, None], without.yields], 1))
        fit = fit_jointly(data, model.log_mean, model.basis, columns, weight=weight, start=start)
        return Rows(data, columns, model, fit, without, torch.ones_like(fit.nll))

    def _taking_out_signals(self, rows: Rows) -> Rows:
        """Asks the net again without the signals, until they stay."""
        size = rows.fit.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        moving = (rows.fit.yields.abs() > SEEN_ABOVE * size).any(-1).nonzero()[:, 0]
        for _ in range(MOST_PASSES - 1):
            if len(moving) == 0:
                break
            old = JointFit(*(t[moving] for t in rows.fit))
            signal = (rows.columns[moving].mT @ old.yields[..., None])[..., 0]
            share = old.background / (old.background + signal).clamp(min=TINY)
            cleaned = rows.data[moving] * share.clamp(max=LARGEST_SHARE)
            new = self._fitted(rows.data[moving], rows.columns[moving], self.local_model(cleaned))
            for whole, part in zip(rows[2:5], new[2:5], strict=True):  # model, fit, without
                for kept, changed in zip(whole, part, strict=True):
                    kept[moving] = changed
            moved = (new.fit.yields - old.yields)[:, 0].abs()
            moving = moving[moved > SETTLED * new.fit.covariance[:, 0, 0].sqrt()]
        return rows

    def _calibration(self, counts: Tensor, once: LocalModel, rows: Rows) -> Tensor:
        """Returns by how much the calibration of the background's error widens that of each tested yield, `(m h,)`."""
        weight, h = self.weight(counts), len(self.hypotheses)
        log_rate = posterior_mode(once.log_mean, once.basis, counts, weight=weight)
        raw = gaussian_prediction(log_rate, once.basis, weight)
        scaled = self.fitter.net.error_scale(raw, self.mask.expand_as(counts))  # type: ignore[operator]
        variances = (p.factor.square().sum(-1) for p in (scaled, raw))
        wider = torch.div(*variances).nan_to_num(1.0, 1.0, 1.0).repeat_interleave(h, 0)  # (m h, n_bins)
        template = rows.columns[:, 0]
        rate = rows.fit.background + rows.fit.yields[:, :1].clamp(min=0.0) * template
        information = template.square() / rate.clamp(min=TINY) * weight.repeat_interleave(h, 0)
        total = information.sum(-1).clamp(min=TINY**2)
        mean = (wider * information).sum(-1) / total
        # What a known background would leave of the variance is the signal's own.
        of_background = (1 - 1 / (total * rows.fit.covariance[:, 0, 0])).clamp(0.0, 1.0)
        return (1 + of_background * (mean - 1)).clamp(min=TINY).sqrt()


def _absorption(rows: Rows, with_signal: Tensor, without: Tensor) -> Tensor:
    """Returns by how much less significant signals are when the local models of the first pass count too, `(m h,)`."""
    alone = rows.without.nll - rows.fit.nll
    both = torch.minimum(rows.without.nll, without) - torch.minimum(rows.fit.nll, with_signal)
    ratio = (alone.clamp(min=TINY) / both.clamp(min=TINY)).sqrt()
    return ratio.clamp(1.0, LARGEST_ABSORPTION)
