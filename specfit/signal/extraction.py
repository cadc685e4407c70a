r"""Signals taken out of spectra: yield, error and significance, with a net that has not seen the signal.

For each row, a hypothesis of a spectrum,

1. the net says what is plausible around the data without the fitted signal, :math:`d\,\lambda_b / (\lambda_b + S s)`,
   with S = 0 at first, and without known peaks that are fitted beside it;
2. background and signal are fitted together to the data (`specfit.signal.joint_fit`);
3. where the background makes more than half of the variance of the yield, as for wide signals and where the data end,
   a net that has seen the signal may hold it for background whatever its size: it answers again with the window of the
   signal masked, and that is taken where it describes the data as well;
4. where the signal is larger than half a standard deviation, again from 1, so that it no longer pulls the net.

What the fit alone says is :math:`\pm\sqrt{q_0}`, from the likelihoods with and without the signal, and its error. The
error is made wider, by the product of

- what another background explains: each of the two likelihoods may use whichever local model describes the data better
  with it, that of the data with the signal, that of the data without it, or, at the price of the parameters that it
  uses more, one that goes several times further from what the net expects (discrete profiling, arXiv:1408.6865);
- what even both together do not describe, at first or at last (`specfit.signal.misfit`): where a net that has seen the
  signal knows no background for it, another background may be what it does not know;
- by how much the net's local models miss a background that bends as fast as the signal does, which no likelihood knows:
  what simulation taught the net (`specfit.signal.yield_error`). The calibration of the background's own error is not in
  it: it answers for what a fit of the background alone does not see, which the second pass finds.

The significance falls with it, and faster where it is large (`specfit.signal.uncertain_error`); but not where a
background further from what the net expects makes it: that is a likelihood ratio, which leaves nothing to guess. Of a
small signal that another background explains wholly nothing is left, whatever its size; its error grows by no more than
that size, in quadrature.
"""

from __future__ import annotations

__all__ = ["REACH", "extract", "extract_largest"]

import math

import torch
from torch import Tensor

from specfit.masks import room_to_mask
from specfit.net import CalibratedNet, LocalModel
from specfit.net.posterior import combined
from specfit.signal.joint_fit import TINY, JointFit, fit_jointly, n_parameters
from specfit.signal.misfit import misfit
from specfit.signal.rows import Rows
from specfit.signal.yield_error import yield_features
from specfit.weights import exposure_of, split_exposure

REACH = 2.75
"""Standard deviations on either side of a Gaussian signal that its window holds."""
# A background that makes more of the variance of a yield may be mistaken for the signal, whose window is masked then:
# all bins above this share of its largest one.
CONFUSABLE, OUTSIDE = 0.5, math.exp(-(REACH**2) / 2)
# What the net answers then is taken where -ln L is larger by less.
AS_WELL = 3.0
# Signals above so many standard deviations are taken out of what the net sees, at most so many times.
SEEN_ABOVE, MOST_PASSES = 0.5, 4
# A row is done when its signal moved by less of its standard errors.
SETTLED = 0.05
# A deficit multiplies what the net sees by no more than this.
LARGEST_SHARE = 10.0
# Where a background of its own explains a signal, its error grows by no more than this. A half of ln L is a standard
# deviation: what a signal gains below about that says nothing about its error.
LARGEST_ABSORPTION, NEGLIGIBLE = 10.0, 0.4
# For signals above so many standard deviations a background may be so many times further from what the net expects;
# an effective parameter that it uses more costs so much of ln L, twice what H. Akaike asks for, IEEE Trans. Autom.
# Control 19 (1974) 716. Then those above four standard deviations among pure backgrounds are as many as chance allows.
DOUBTED_ABOVE, WIDER, PRICE = 2.0, (3.0, 10.0), 2.0
# What has at least this share of the largest significance of a spectrum, or is within this distance, may become it.
NEAR_SHARE, NEAR_DISTANCE = 0.6, 0.5
# Spectra that the net sees together.
SPECTRA_AT_A_TIME = 1024


def extract(
    net: CalibratedNet,
    counts: Tensor,
    columns: Tensor,
    *,
    spectrum: Tensor,
    edges: Tensor,
    mask: Tensor,
    exposure: Tensor | None = None,
    trusting: bool = False,
) -> Rows:
    """Takes a signal out of every row.

    Args:
        net: Says what is plausible.
        counts: Events, shape `(m, n_bins)`, float64; a guess of the background where masked.
        columns: Events for a yield of 1 of each row, first of the tested signal, then of peaks fitted beside it, the
            same in all rows of a spectrum, shape `(r, 1 + q, n_bins)`.
        spectrum: Which counts each row is about, shape `(r,)`.
        edges: Bin edges, shape `(n_bins + 1,)`.
        mask: True for bins that weigh nothing, shape `(m, n_bins)`.
        exposure: How many events a bin holds for each one of a smooth background, same shape; None for 1.
        trusting: Whether the net is believed where it may hold the signal for background (leaves out 3).
    """
    first = _first(net, counts, columns, spectrum=spectrum, edges=edges, mask=mask, exposure=exposure)
    return _finished(net, first, edges, mask[spectrum], trusting=trusting)


def extract_largest(
    net: CalibratedNet,
    counts: Tensor,
    columns: Tensor,
    *,
    spectrum: Tensor,
    edges: Tensor,
    mask: Tensor,
    exposure: Tensor | None = None,
) -> tuple[Rows, Tensor]:
    """Takes the most significant signal out of every spectrum, several times faster than all of them.

    Only rows that come near the largest significance of their spectrum at first are asked about again.

    Args:
        net: As for `extract`, like all others.
        counts: Events.
        columns: Templates of each row.
        spectrum: Which counts each row is about; each has at least one row.
        edges: Bin edges.
        mask: True for bins that weigh nothing.
        exposure: Of the bins.

    Returns:
        One row for each spectrum, and which of the rows that came it is, shape `(m,)`.
    """
    first = _first(net, counts, columns, spectrum=spectrum, edges=edges, mask=mask, exposure=exposure)
    nothing = torch.ones_like(first.widening)
    first = _calibrated(net, first, edges, mask[spectrum], explained=(nothing, nothing, nothing), undescribed=nothing)
    z = _significances(first)
    largest = _largest_of_each(z, spectrum, len(counts))
    rows = (z >= torch.minimum(NEAR_SHARE * largest, largest - NEAR_DISTANCE)[spectrum]).nonzero()[:, 0]
    first = first.of(rows)
    spectrum = spectrum[rows]
    some = _finished(net, first, edges, mask[spectrum])
    z = _significances(some)
    is_largest = z == _largest_of_each(z, spectrum, len(counts))[spectrum]
    number = torch.where(is_largest, torch.arange(len(z), device=z.device), len(z))
    best = torch.full_like(counts[:, 0], len(z), dtype=torch.int64).scatter_reduce(0, spectrum, number, "amin")
    return some.of(best), rows[best]


def _significances(rows: Rows) -> Tensor:
    return rows.local_z.nan_to_num(-torch.inf)


def _largest_of_each(z: Tensor, spectrum: Tensor, size: int) -> Tensor:
    return z.new_full((size,), -torch.inf).scatter_reduce(0, spectrum, z, "amax")


def _plausible(
    net: CalibratedNet, counts: Tensor, *, edges: Tensor, mask: Tensor, exposure: Tensor | None
) -> LocalModel:
    """Asks the net what is plausible around counts `(m, n_bins)`, which hold a guess of the background where masked."""
    split = [torch.split(t, SPECTRA_AT_A_TIME) for t in (counts, mask)]
    pieces = zip(*split, split_exposure(exposure, SPECTRA_AT_A_TIME, len(counts)), strict=True)
    parts = [net.local_model(n, edges=edges, mask=k, exposure=e) for n, k, e in pieces]
    return LocalModel(*(torch.cat(t) for t in zip(*parts, strict=True)))


def _first(
    net: CalibratedNet,
    counts: Tensor,
    columns: Tensor,
    *,
    spectrum: Tensor,
    edges: Tensor,
    mask: Tensor,
    exposure: Tensor | None,
) -> Rows:
    """Fits every row around what is plausible of the data as they are, but for known peaks."""
    once = _plausible(net, counts, edges=edges, mask=mask, exposure=exposure)
    each = torch.full_like(counts[:, 0], len(spectrum), dtype=torch.int64)
    number = torch.arange(len(spectrum), device=counts.device)
    peaks = columns[each.scatter_reduce(0, spectrum, number, "amin"), 1:]
    if peaks.shape[1]:  # nor does the net see the known peaks
        of_peaks = _fitted(counts, peaks, once, mask=mask, exposure=exposure)
        alone = _without_signals_for_the_net(net, of_peaks, edges, mask, seen=slice(None))
        once, without = alone.model, alone.fit
    else:
        without = _alone(counts, peaks, once, mask)
    # What is there without the tested signal is the same in all rows of a spectrum.
    model, without = LocalModel(*(t[spectrum] for t in once)), JointFit(*(t[spectrum] for t in without))
    of_rows = exposure_of(exposure, spectrum)
    return _fitted(counts[spectrum], columns, model, without, mask=mask[spectrum], exposure=of_rows)


def _alone(data: Tensor, peaks: Tensor, model: LocalModel, mask: Tensor) -> JointFit:
    return fit_jointly(data, model.log_mean, model.basis, peaks, weight=(~mask).to(data))


def _fitted(
    data: Tensor,
    columns: Tensor,
    model: LocalModel,
    without: JointFit | None = None,
    *,
    mask: Tensor,
    exposure: Tensor | None,
) -> Rows:
    """Fits with and without the tested signal around a local model."""
    weight = (~mask).to(data)
    if without is None:
        without = _alone(data, columns[:, 1:], model, mask)
    start = without._replace(yields=torch.cat([torch.zeros_like(without.nll)[:, None], without.yields], 1))
    fit = fit_jointly(data, model.log_mean, model.basis, columns, weight=weight, start=start)
    none = torch.ones_like(fit.nll)
    factors = none, none, none, none, data.new_zeros(len(data), 0)
    return Rows(data, columns, exposure, model, fit, without, *factors)


def _finished(net: CalibratedNet, first: Rows, edges: Tensor, mask: Tensor, *, trusting: bool = False) -> Rows:
    """Asks the net again where there is a signal, and says by how much errors are wider than it knows."""
    at_first = first.fit.nll.clone(), first.without.nll.clone()  # its rows are written over
    undescribed = misfit(first.fit, first.model, (~mask).to(first.data))
    rows = first if trusting else _without_windows_for_the_net(net, first, edges, mask)
    rows = _without_signals_for_the_net(net, rows, edges, mask, seen=slice(0, 1))
    explained = _explained(rows, *at_first, mask, wider=() if trusting else WIDER)
    return _calibrated(net, rows, edges, mask, explained=explained, undescribed=undescribed)


def _calibrated(
    net: CalibratedNet,
    rows: Rows,
    edges: Tensor,
    mask: Tensor,
    *,
    explained: tuple[Tensor, Tensor, Tensor],
    undescribed: Tensor,
) -> Rows:
    """Widens the errors by what another background explains, what nothing describes, and what simulation taught."""
    weight = (~mask).to(rows.data)
    features = yield_features(
        *(rows.over_exposure(t) for t in (rows.columns[:, 0], rows.fit.background)),
        rate=rows.over_exposure(rows.rate),
        edges=edges,
        weight=weight if rows.exposure is None else weight * rows.exposure,
        variance=rows.fit.covariance[:, 0, 0],
    )
    undescribed = torch.maximum(undescribed, misfit(rows.fit, rows.model, weight))
    absorption, imitation, of_error = explained
    otherwise = undescribed * net.yield_scale(features)
    return rows._replace(
        widening=of_error * otherwise,
        weakening=absorption * imitation * otherwise,
        imitation=imitation,
        misfit=undescribed,
        features=features,
    )


def _without_windows_for_the_net(net: CalibratedNet, rows: Rows, edges: Tensor, mask: Tensor) -> Rows:
    """Asks the net again with the window of the tested signal masked, where a background may be mistaken for it."""
    template, variance = rows.columns[:, 0], rows.fit.covariance[:, 0, 0]
    of_known = ((~mask) * template.square() / rows.rate.clamp(min=TINY)).sum(-1)
    confusable = 1 - 1 / (of_known * variance) > CONFUSABLE
    shape = rows.over_exposure(template)
    hidden = mask | (shape > OUTSIDE * shape.amax(-1, keepdim=True))
    asked = (confusable & room_to_mask(hidden, mask)[:, 0]).nonzero()[:, 0]
    if len(asked) > 0:
        new = _asked_again(net, rows.of(asked), edges, mask[asked], hidden[asked])
        # Where nothing beside the window holds a background, it may miss the data altogether.
        good = new.fit.nll < rows.fit.nll[asked] + AS_WELL
        rows.write(asked[good], new.of(good))
    return rows


def _without_signals_for_the_net(net: CalibratedNet, rows: Rows, edges: Tensor, mask: Tensor, *, seen: slice) -> Rows:
    """Asks the net again without the signals, until those of some columns, which it has seen, stay."""
    size = rows.fit.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    moving = (rows.fit.yields.abs() > SEEN_ABOVE * size)[:, seen].any(-1).nonzero()[:, 0]
    for _ in range(MOST_PASSES - 1):
        if len(moving) == 0:
            break
        before = rows.fit.yields[moving]
        new = _asked_again(net, rows.of(moving), edges, mask[moving], mask[moving])
        rows.write(moving, new)
        size = new.fit.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        moving = moving[((new.fit.yields - before).abs() > SETTLED * size)[:, seen].any(-1)]
    return rows


def _asked_again(net: CalibratedNet, rows: Rows, edges: Tensor, mask: Tensor, hidden: Tensor) -> Rows:
    """Asks the net about the data without the fitted signals, and fits again with what it answers.

    Args:
        net: Says what is plausible.
        rows: What was fitted.
        edges: Bin edges.
        mask: True for bins that weigh nothing in the fit, shape `(r, n_bins)`.
        hidden: True for bins that the net does not see, same shape.
    """
    background, signal = rows.fit.background, combined(rows.fit.yields, rows.columns.mT)
    share = background / (background + signal).clamp(min=TINY)
    cleaned = torch.where(hidden, background, rows.data * share.clamp(max=LARGEST_SHARE))
    model = _plausible(net, cleaned, edges=edges, mask=hidden, exposure=rows.exposure)
    new = _fitted(rows.data, rows.columns, model, mask=mask, exposure=rows.exposure)
    return rows._replace(model=new.model, fit=new.fit, without=new.without)


def _explained(
    rows: Rows, with_signal: Tensor, without: Tensor, mask: Tensor, *, wider: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns by how much less significant signals are when other local models count too.

    Args:
        rows: Signals, with the local model of the last pass.
        with_signal: Negative log-likelihoods for the local model of the first pass, shape `(r,)`.
        without: The same without the tested signal.
        mask: True for bins that weigh nothing, shape `(r, n_bins)`.
        wider: So many times further than the net expects others may go.

    Returns:
        Three factors `(r,)`: on the significance for that of the first pass, and for those further from what the net
        expects; and on the error for both.
    """
    with_signal, without = torch.minimum(rows.fit.nll, with_signal), torch.minimum(rows.without.nll, without)
    alone, both = (
        (one - other).clamp(min=TINY) for one, other in ((rows.without.nll, rows.fit.nll), (without, with_signal))
    )
    doubted = (alone > DOUBTED_ABOVE**2 / 2).nonzero()[:, 0]
    if wider and len(doubted) > 0:
        some, weight = rows.of(doubted), (~mask[doubted]).to(rows.data)
        used = n_parameters(some.without, some.model.basis, weight)
        for factor in wider:
            basis = factor * some.model.basis
            problem = (some.data, some.model.log_mean, basis)
            alone_wider = fit_jointly(*problem, some.columns[:, 1:], weight=weight)
            both_wider = fit_jointly(*problem, some.columns, weight=weight)
            price = PRICE * (n_parameters(alone_wider, basis, weight) - used)
            for best, other in ((without, alone_wider), (with_signal, both_wider)):
                best[doubted] = torch.minimum(best[doubted], other.nll + price)
    left = (without - with_signal).clamp(min=TINY)
    # A signal that others explain wholly has about its own size in its error, in quadrature; the ratio of two gains of
    # little alone would make an error of any size.
    ratios = alone / both, both / left, (alone + NEGLIGIBLE) / (left + NEGLIGIBLE)
    absorption, imitation, of_error = (ratio.sqrt().clamp(1.0, LARGEST_ABSORPTION) for ratio in ratios)
    return absorption, imitation, of_error
