r"""A lone peak: a resonance that fills a good part of its range, which a net may take for a smooth background.

`has_lone_peak` asks twice. First of the fitted density alone, which costs next to nothing: does it rise and fall by
`LEAST_RISE` around an inner maximum, and level off beyond both flanks? A turn-on does not level off: it falls ever
faster. What is left is fitted, without the net, with a straight line of the log density in the bin number and one peak
beside it (Gaussian and Breit-Wigner, several masses and widths). It is a lone peak if

- the peak is beyond doubt (:math:`q_0` above `LEAST_Q0`) and no polynomial with as many parameters comes near it,
- of what the line leaves undescribed, the peak takes nearly all that the net takes (`LEAST_SHARE`),
- it is at least `LEAST_HEIGHT` as high as the line under it, and
- there are bins with events, of which the peak holds little, on both sides.

Source: Cowan, Cranmer, Gross, Vitells, arXiv:1007.1727 (:math:`q_0`). The numbers are ours, tuned on simulation.
"""

from __future__ import annotations

__all__ = ["has_lone_peak"]

from typing import NamedTuple

import torch
from torch import Tensor

from specfit.net.posterior import LOG_RATES, combined, precision_cholesky, solved
from specfit.shapes import Gaussian
from specfit.signal import fit_jointly
from specfit.significance import deviance_terms
from specfit.weights import exposure_of

# Of the fitted log density: how far it rises over both flanks, and what share of that it may go on to fall beyond.
LEAST_RISE, LEVELLING = 0.25, 0.7
# Distances of the flanks from the maximum, as shares of the range.
FLANKS = (1 / 16, 1 / 12, 1 / 8, 1 / 6, 1 / 5)
# A maximum lies at least so many of these distances from both ends; beyond twice the distance nothing is asked.
REACH = 1.5
# Peaks that are tried: widths and shifts in units of the flank's distance.
WIDTHS, SHIFTS = (0.3, 0.45, 0.65, 0.95), (-0.25, 0.0, 0.25)
LEAST_Q0, LEAST_SHARE, LEAST_HEIGHT = 25.0, 0.9, 0.8
# A sideband: bins where the peak has less than this share of the line, so many and so many events of them on each side.
SIDEBAND_SHARE, LEAST_SIDEBAND, SIDEBAND_EVENTS = 1.0, 3, 10.0
# A line and a peak of free mass and width have five parameters, and so has a polynomial of degree four.
DEGREE, AMPLITUDE, FEWEST_BINS, ROWS_AT_A_TIME, TINY = 4, 10.0, 12, 256, 1e-12


@torch.no_grad()
def has_lone_peak(
    counts: Tensor, background: Tensor, edges: Tensor, *, mask: Tensor, exposure: Tensor | None = None
) -> Tensor:
    """Tells fits that follow one peak on a simple background, shape `(m,)`, bool.

    Args:
        counts: Events per bin, shape `(m, n_bins)`, float64.
        background: As fitted, finite and positive, same shape.
        edges: Bin edges, shape `(n_bins + 1,)`.
        mask: True for bins that did not count in the fit, same shape as `counts`.
        exposure: How many events a bin holds for each one of a smooth background, same shape; None for 1.
    """
    if exposure is not None:  # from here on in events of a smooth background, each of which counts so many times
        counts, background = counts / exposure, background / exposure
    found = torch.zeros(len(counts), dtype=torch.bool, device=counts.device)
    if counts.shape[1] < FEWEST_BINS:
        return found
    bin_, flank = _inner_maximum(background, edges)
    for rows in torch.split((flank > 0).nonzero()[:, 0], ROWS_AT_A_TIME):
        problem = _Problem.of(counts[rows], edges, mask[rows], exposure_of(exposure, rows))
        net = (deviance_terms(counts[rows], background[rows]) * problem.weight).sum(1) / 2
        # No peak describes much more than the net, nor therefore than a polynomial that is near it: most spectra end
        # here, without a fit.
        near = (2 * (problem.near(background[rows]) - net) > LEAST_Q0 / 2).nonzero()[:, 0]
        if len(near) == 0:
            continue
        rows, problem, net = rows[near], problem.rows(near), net[near]
        polynomial = problem.without_peak(DEGREE + 1)  # of which a line is one
        possible = (2 * (polynomial - net) > LEAST_Q0 / 2).nonzero()[:, 0]
        if len(possible) == 0:
            continue
        templates = _templates(bin_[rows][possible], flank[rows][possible], edges)
        some = problem.rows(possible)
        line, (nll, signal, under) = some.without_peak(2), some.with_peak(templates)
        polynomial, net = polynomial[possible], net[possible]
        beyond_doubt = 2 * (polynomial - nll) > LEAST_Q0
        explained = line - nll > LEAST_SHARE * (line - net)
        high = (signal / under.clamp(min=TINY)).amax(1) > LEAST_HEIGHT
        sidebands = _has_sidebands(signal, under, mask[rows][possible])
        found[rows[possible]] = beyond_doubt & explained & high & sidebands
    return found


def _inner_maximum(background: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the highest maximum with flanks that level off, and their distance in bins, 0 for none; both `(m,)`."""
    log_density = (background / edges.diff()).log()[:, None]  # (m, 1, n_bins)
    n_bins = log_density.shape[-1]
    index = torch.arange(n_bins, device=edges.device)
    h = torch.tensor([max(2, round(share * n_bins)) for share in FLANKS], device=edges.device)[:, None]  # (n_flanks, 1)
    inside = (index >= REACH * h) & (index < n_bins - REACH * h)
    steps = torch.stack([-h, h, -2 * h, 2 * h])
    left, right, far_left, far_right = log_density[:, 0, (index + steps).clamp(0, n_bins - 1)].unbind(1)
    rise = log_density - torch.maximum(left, right)
    levels = (left - far_left < LEVELLING * (log_density - left)) & (
        right - far_right < LEVELLING * (log_density - right)
    )
    peaks = torch.where(inside & levels & (rise > LEAST_RISE), rise, 0.0).max(-1)  # (m, n_flanks)
    best = peaks.values.max(-1)
    bin_ = peaks.indices.gather(1, best.indices[:, None])[:, 0]
    return bin_, torch.where(best.values > 0, h[best.indices, 0], 0)


def _templates(bin_: Tensor, flank: Tensor, edges: Tensor) -> Tensor:
    """Returns the shares of peaks around a bin in every bin, shape `(m, n_peaks, n_bins)`."""
    centers = (edges[1:] + edges[:-1]) / 2
    low, high = (centers[(bin_ + side * flank).clamp(0, len(centers) - 1)] for side in (-1, 1))
    unit = (high - low)[:, None, None] / 2
    shift, width = (torch.tensor(t).to(edges) for t in (SHIFTS, WIDTHS))
    mass = (centers[bin_][:, None, None] + shift[:, None] * unit).expand(-1, -1, len(width)).flatten(1)
    width = (unit * width).expand(-1, len(shift), -1).flatten(1)
    gaussian = Gaussian(mass, width).log_bins(edges).exp()
    breit_wigner = torch.atan((edges - mass[..., None]) / width[..., None]).diff(dim=-1) / torch.pi
    return torch.cat([gaussian, breit_wigner], 1)


class _Problem(NamedTuple):
    """Spectra, and the polynomials that are fitted to the logarithm of their density."""

    counts: Tensor
    log_mean: Tensor
    basis: Tensor
    weight: Tensor

    @classmethod
    def of(cls, counts: Tensor, edges: Tensor, mask: Tensor, exposure: Tensor | None) -> _Problem:
        """Takes counts, mask and exposures `(m, n_bins)`."""
        weight, widths, n_bins = (~mask).to(counts), edges.diff(), counts.shape[1]
        weight = weight if exposure is None else weight * exposure
        mean = ((counts * weight).sum(1) / (widths * weight).sum(1).clamp(min=TINY)).clamp(min=TINY)
        x = (2 * torch.arange(n_bins, device=edges.device).to(edges) + 1) / n_bins - 1
        order = torch.arange(DEGREE + 1, device=edges.device).to(edges)
        basis = AMPLITUDE * torch.cos(order * x.arccos()[:, None])  # (n_bins, DEGREE + 1)
        return cls(counts, (mean[:, None] * widths).log(), basis.expand(len(counts), -1, -1), weight)

    def rows(self, chosen: Tensor) -> _Problem:
        """Takes some spectra."""
        return _Problem(*(t[chosen] for t in self))

    def near(self, background: Tensor) -> Tensor:
        """Computes the negative log-likelihood of a polynomial near a background, `(m,)`: no fit is worse."""
        information = self.weight * background
        right = combined(information * (background.log() - self.log_mean), self.basis.mT)
        c = solved(precision_cholesky(self.basis, information), right)
        rate = (self.log_mean + combined(c, self.basis)).clamp(*LOG_RATES).exp()
        return ((deviance_terms(self.counts, rate) * self.weight).sum(1) + c.square().sum(1)) / 2

    def without_peak(self, n_terms: int) -> Tensor:
        """Fits a polynomial alone; negative log-likelihood, `(m,)`."""
        none = self.counts[:, None][:, :0]
        return fit_jointly(self.counts, self.log_mean, self.basis[..., :n_terms], none, weight=self.weight).nll

    def with_peak(self, templates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Fits a line and the best of peaks `(m, n_peaks, n_bins)`; `(m,)`, the peak and the line `(m, n_bins)`."""
        m, n_peaks, _ = templates.shape
        each = torch.arange(m, device=templates.device)
        of_row, columns = self.rows(each.repeat_interleave(n_peaks)), templates.flatten(0, 1)[:, None]
        fit = fit_jointly(of_row.counts, of_row.log_mean, of_row.basis[..., :2], columns, weight=of_row.weight)
        upward = torch.where(fit.yields[:, 0] > 0, fit.nll, torch.inf).nan_to_num(torch.inf)
        nll, number = upward.view(m, n_peaks).min(1)
        chosen = each * n_peaks + number
        return nll, fit.yields[chosen] * columns[chosen, 0], fit.background[chosen]


def _has_sidebands(signal: Tensor, under: Tensor, mask: Tensor) -> Tensor:
    """Tells whether the line can be seen on both sides of the peak, `(m,)`."""
    index = torch.arange(signal.shape[1], device=signal.device)
    middle = (signal / under.clamp(min=TINY)).argmax(1, keepdim=True)
    outside = (signal < SIDEBAND_SHARE * under) & ~mask
    both = torch.ones_like(mask[:, 0])
    for side in (index < middle, index > middle):
        bins = outside & side
        both &= (bins.sum(1) >= LEAST_SIDEBAND) & ((under * bins).sum(1) > SIDEBAND_EVENTS)
    return both
