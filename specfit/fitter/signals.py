"""Masks signals: a test of every place and width beside the background, and a window where one passes.

In each round

1. the score of every hypothesis is computed from the fit of the background alone (`specfit.signal.score`), and the
   p-value of the largest one anywhere (`specfit.signal.look_elsewhere.tube_p_value`);
2. where that is small, the best signals of different widths are fitted beside the background by a net that does not
   see them (`specfit.signal.extraction`), and the p-value is that of the largest local significance; where even they do
   not describe the data, the likeliest of all signals is looked for on the background so found, and fitted so;
3. where it is still small, the window of the signal is masked, and whatever other bins it is visible in: they weigh
   nothing from then on. What it has beside them is taken off the data, the net is shown the background of the joint
   fit in the window, and answers again. A window needs bins to believe on both sides.
"""

from __future__ import annotations

__all__ = ["refit_signals"]

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from specfit.fitter.base import FALSE_ALARM, MOST_ROUNDS, STABLE, Found, Refit, as_mask
from specfit.masks import has_sidebands, room_to_mask
from specfit.net import CalibratedNet, LocalModel
from specfit.signal.extraction import REACH, extract
from specfit.signal.hypotheses import SignalHypotheses, binwise_hypotheses
from specfit.signal.joint_fit import LEAST_EXPECTED, TINY, fit_jointly
from specfit.signal.look_elsewhere import tube_p_value
from specfit.signal.rows import Rows
from specfit.signal.score import path_length, score_test
from specfit.significance import normal_deviate
from specfit.weights import exposure_of

# Widths of a signal that are tried with a net that does not see it; of those with this share of the largest pull the
# likeliest is taken.
FEW, AS_SIGNIFICANT = 3, 0.8
# The coarse grid that tells where to look closely sees a signal with at least this share of its significance.
LEAST_OF_COARSE = 0.85
# Data that are described so badly, as a factor on the errors, are looked at everywhere, so often, with so many steps to
# the likeliest yields.
MISLED, MOST_LOOKS, EM_STEPS = 1.5, 2, 20
# A signal is masked wherever more is expected of it than so many standard deviations of the background of a bin.
VISIBLE = 0.5
# Times that the net is asked about masked bins again, and spectra whose scores fit a processor's cache.
MOST_SETTLING, SCORED_AT_A_TIME = 10, 512


def refit_signals(
    net: CalibratedNet,
    counts: Tensor,
    edges: Tensor,
    *,
    first: tuple[LocalModel, Tensor] | None = None,
    mask: Tensor | None = None,
    exposure: Tensor | None = None,
) -> Refit:
    """Masks windows where a signal beside the background is significant, with the looking counted.

    Looked for is every one of `binwise_hypotheses`; of pure backgrounds a share of at most `FALSE_ALARM` is masked.

    Args:
        net: Says what is plausible.
        counts: Observed events, shape `(m, n_bins)`, float64.
        edges: Bin edges, shape `(n_bins + 1,)`.
        first: What `net.fitted` answers to `counts`, `mask` and `exposure`, if it is known already.
        mask: True for bins whose content is no data but a guess of the background, shape `(m, n_bins)`.
        exposure: How many events a bin holds for each one of a smooth background, same shape; None for 1.
    """
    search = _Search(net, edges, binwise_hypotheses(edges))
    spectra = _Spectra(net, counts, edges, as_mask(mask, counts), exposure, first)
    spectra.settle(spectra.mask.any(-1).nonzero()[:, 0])
    rows, found = torch.arange(len(counts), device=counts.device), []
    for _ in range(MOST_ROUNDS):
        signals = search.significant(spectra, rows)
        window = search.window(signals, spectra.mask[signals.row])
        possible = window.any(-1)
        signals, window = signals.of(possible), window[possible]
        rows = signals.row
        if len(rows) == 0:
            break
        found += search.described(signals)
        spectra.leave_out(signals, window)
        spectra.settle(rows)
    message = (
        f"refit (signals): bumps are masked that at most {100 * FALSE_ALARM:g} % of pure backgrounds show anywhere"
    )
    return Refit(spectra.data, spectra.mask, spectra.iterations, message, tuple(found))


class _Spectra:
    """Spectra, what of them is masked, and what the net answers; rows are written over as they are refitted."""

    def __init__(
        self,
        net: CalibratedNet,
        counts: Tensor,
        edges: Tensor,
        mask: Tensor,
        exposure: Tensor | None,
        first: tuple[LocalModel, Tensor] | None,
    ) -> None:
        self.net, self.edges, self.mask, self._exposure = net, edges, mask, exposure
        self.counts = counts.clone()
        """Without what signals that were found have beside their windows."""
        self.data = counts.clone()
        """What the net is shown: counts, and a guess of the background where they are masked."""
        model, log_rate = net.fitted(counts, edges=edges, mask=mask, exposure=exposure) if first is None else first
        self.fitted = [t.clone() for t in (*model, log_rate)]
        self.iterations = torch.zeros(len(counts), dtype=torch.int64, device=counts.device)

    def answer(self, rows: Tensor) -> tuple[LocalModel, Tensor]:
        """Returns the local models of some, and the estimated log rates."""
        *model, log_rate = (t[rows] for t in self.fitted)
        return LocalModel(*model), log_rate

    def exposure(self, rows: Tensor) -> Tensor | None:
        """Returns how many events bins hold for each one of a smooth background, `(r, n_bins)`; None for 1."""
        return exposure_of(self._exposure, rows)

    def densities(self, rows: Tensor) -> _Densities:
        """Returns what signals are tested against."""
        data, (model, log_rate), weight = self.data[rows], self.answer(rows), (~self.mask[rows]).double()
        exposure = self.exposure(rows)
        if exposure is not None:
            data, weight = data / exposure, weight * exposure
            model, log_rate = model.shifted(-exposure.log()), log_rate - exposure.log()
        return _Densities(data, log_rate, model, weight)

    def leave_out(self, signals: _Significant, window: Tensor) -> None:
        """Masks windows `(r, n_bins)`, takes what signals have beside them off, and asks the net again."""
        rows, background = signals.row, signals.background
        self.mask[rows] |= window
        self.counts[rows] *= background / (background + signals.signal).clamp(min=TINY)
        self._ask(rows, background)

    def settle(self, rows: Tensor) -> None:
        """Asks the net again until what stands for masked data is its own answer."""
        for _ in range(MOST_SETTLING):
            background = self.answer(rows)[1].exp()
            shift = (self.data[rows] - background).abs() > STABLE * background.clamp(min=1.0).sqrt()
            moves = (shift & self.mask[rows]).any(-1)
            rows = rows[moves]
            if len(rows) == 0:
                break
            self._ask(rows, background[moves])

    def _ask(self, rows: Tensor, background: Tensor) -> None:
        self.data[rows] = torch.where(self.mask[rows], background, self.counts[rows])
        data, mask, exposure = self.data[rows], self.mask[rows], self.exposure(rows)
        model, log_rate = self.net.fitted(data, edges=self.edges, mask=mask, exposure=exposure)
        for whole, part in zip(self.fitted, (*model, log_rate), strict=True):
            whole[rows] = part
        self.iterations[rows] += 1


class _Densities(NamedTuple):
    """Spectra per exposure, as the templates of signals are."""

    data: Tensor
    """Events over exposures, shape `(r, n_bins)`."""
    log_rate: Tensor
    """Of the estimated background, over exposures, same shape."""
    model: LocalModel
    """Around it."""
    weight: Tensor
    """0 for masked bins, the exposure of others, same shape."""


class _Significant(NamedTuple):
    """Signals that no pure background would show."""

    row: Tensor
    """In which spectrum, shape `(r,)`."""
    number: Tensor
    """Which hypothesis, shape `(r,)`."""
    local_z: Tensor
    p_value: Tensor
    background: Tensor
    """Fitted beside the signal, events, shape `(r, n_bins)`."""
    signal: Tensor
    """Fitted events, none for a deficit, shape `(r, n_bins)`."""

    def of(self, chosen: Tensor) -> _Significant:
        """Takes some, by a mask `(r,)`."""
        return _Significant(*(t[chosen] for t in self))


class _Some(NamedTuple):
    """Spectra in which something may be."""

    data: Tensor
    """Events, shape `(r, n_bins)`."""
    mask: Tensor
    """True for bins that weigh nothing, same shape."""
    exposure: Tensor | None
    """How many events a bin holds for each one of a smooth background, same shape; None for 1."""

    def of(self, chosen: Tensor) -> _Some:
        """Takes some, by indices."""
        return _Some(self.data[chosen], self.mask[chosen], exposure_of(self.exposure, chosen))

    def exposed(self, templates: Tensor, spectrum: Tensor) -> Tensor:
        """Returns the events that shares `(n, n_bins)` of a signal make in spectra, `(n,)` or one."""
        return templates if self.exposure is None else templates * self.exposure[spectrum]


class _Search:
    """What is looked for, and how often a pure background would show it."""

    def __init__(self, net: CalibratedNet, edges: Tensor, signals: SignalHypotheses) -> None:
        self.net, self.edges, self.signals = net, edges, signals
        low, high = ((signals.mass + side * signals.width)[:, None].to(edges) for side in (-REACH, REACH))
        self.windows = (edges[1:] > low) & (edges[:-1] < high)  # (h, n_bins)
        starts = [0, *(1 + (signals.mass.diff() <= 0).nonzero()[:, 0]).tolist(), len(signals)]
        self.paths = [slice(*pair) for pair in itertools.pairwise(starts)]
        """Hypotheses of one width."""
        numbers = [torch.arange(path.start, path.stop, 2 if path.stop - path.start > 2 else 1) for path in self.paths]
        self.coarse = signals[torch.cat(numbers[::2])]
        # No path is shorter than a point: below this significance, less what the coarse grid may miss, none passes.
        self.least_z = LEAST_OF_COARSE * normal_deviate(FALSE_ALARM / len(self.paths))

    def significant(self, spectra: _Spectra, rows: Tensor) -> _Significant:
        """Finds those of some spectra with a significant signal, at most one in each."""
        rows = rows[self._scores(spectra, rows, self.coarse).amax(1) > self.least_z]
        if len(rows) > 0:
            rows, number, length = self._candidates(spectra, rows)
        if len(rows) == 0:  # nearly every single spectrum: nothing more is asked
            nothing = spectra.data[:0]
            return _Significant(rows, rows, nothing[:, 0], nothing[:, 0], nothing, nothing)
        some = _Some(spectra.data[rows], spectra.mask[rows], spectra.exposure(rows))
        number = self._promising(some, spectra.answer(rows)[0], number)
        number, best = self._largest(some, number)
        self._look_everywhere(some, number, best)
        # Not the significance of a discovery: to mask a background costs precision, to believe a signal truth.
        p_value, signal = self._p_value(best.pull, length), best.rate - best.fit.background
        found = _Significant(rows, number, best.pull, p_value, best.fit.background, signal)
        return found.of(p_value < FALSE_ALARM)

    def _look_everywhere(self, spectra: _Some, number: Tensor, best: Rows) -> None:
        """Looks for better signals in spectra that the best so far, `(r,)`, do not describe; both are written over.

        A net that was far off misleads tests that start from there. What it answers to data without a signal, even if
        that is not the right one, is nearer.
        """
        misled = (best.misfit > MISLED).nonzero()[:, 0]
        for _ in range(MOST_LOOKS):
            if len(misled) == 0:
                break
            some = spectra.of(misled)
            again, other = self._largest(some, self._likeliest(some, best.fit.background[misled]))
            better = other.misfit < best.misfit[misled]
            misled = misled[better]
            number[misled] = again[better]
            best.write(misled, other.of(better))
            misled = misled[best.misfit[misled] > MISLED]

    def _likeliest(self, some: _Some, background: Tensor) -> Tensor:
        """Takes the few hypotheses that are likeliest on a known background `(r, n_bins)`, shape `(r, FEW)`."""
        templates, numbers, weights = self.signals.templates.to(some.data), [], (~some.mask).to(some.data)
        each = torch.arange(len(background), device=background.device)
        for i, n, weight, b in zip(each, some.data, weights, background.clamp(min=LEAST_EXPECTED), strict=True):
            shares = some.exposed(templates, i) * weight
            seen = shares.sum(-1).clamp(min=TINY)
            yields = torch.full_like(seen, float((n * weight).sum()))
            for _ in range(EM_STEPS):
                yields = yields * ((n * shares / (b + yields[:, None] * shares)).sum(-1) / seen)
            gain = (weight * n * (yields[:, None] * shares / b).log1p()).sum(-1) - yields * seen
            numbers.append(gain.topk(min(FEW, len(gain))).indices)
        return torch.stack(numbers)

    def window(self, signals: _Significant, mask: Tensor) -> Tensor:
        """Returns what to mask for each signal beside what is masked, `(r, n_bins)`; nothing where that cannot be."""
        near = self.windows[signals.number] & ~mask
        seen = near | (signals.signal > VISIBLE * signals.background.sqrt()) & ~mask

        def possible(window: Tensor) -> Tensor:
            return room_to_mask(window, mask) & has_sidebands(window, mask)

        return torch.where(possible(seen), seen, near & possible(near))

    def _largest(self, some: _Some, number: Tensor) -> tuple[Tensor, Rows]:
        """Takes the hypotheses `(r, n)` out of the data, and keeps the likeliest that is significant, `(r,)`."""
        each = torch.arange(len(number), device=number.device)
        spectrum = each.repeat_interleave(number.shape[1])
        fits = extract(
            self.net,
            some.data,
            self._columns(some, number, spectrum),
            spectrum=spectrum,
            edges=self.edges,
            mask=some.mask,
            exposure=some.exposure,
            trusting=True,
        )
        # A narrow signal is told from the background more easily: of the largest pull alone widths come out too small.
        pull, nll = (t.view(number.shape) for t in (fits.pull, fits.fit.nll))
        best = nll.masked_fill(pull < AS_SIGNIFICANT * pull.amax(-1, keepdim=True), torch.inf).argmin(-1)
        return number[each, best], fits.of(each * number.shape[1] + best)

    def _candidates(self, spectra: _Spectra, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Takes the spectra whose scores pass; `(r,)`, the best signal of each width, `(r, n)`, path lengths `(r,)`."""
        z = self._scores(spectra, rows, self.signals)
        # The path can only raise a p-value: most spectra end here.
        possible = self._p_value(z.amax(1), z.new_zeros(len(z))) < FALSE_ALARM
        rows, z = rows[possible], z[possible]
        number = torch.stack([path.start + z[:, path].argmax(-1) for path in self.paths], 1)
        _, log_rate, model, weight = spectra.densities(rows)
        length = path_length(log_rate, model, self.signals, weight=weight)
        passing = self._p_value(z.amax(1), length) < FALSE_ALARM
        return rows[passing], number[passing], length[passing]

    def _scores(self, spectra: _Spectra, rows: Tensor, signals: SignalHypotheses) -> Tensor:
        scores = []
        for some in torch.split(rows, SCORED_AT_A_TIME):
            data, log_rate, model, weight = spectra.densities(some)
            scores.append(score_test(data, log_rate, model, signals, weight=weight))
        return torch.cat(scores)

    def _promising(self, some: _Some, model: LocalModel, number: Tensor) -> Tensor:
        """Takes the few hypotheses of each row `(r, n)` that raise the likelihood most."""
        # A signal that pulled the background misleads the score of one width; which it is shows in a fit.
        spectrum = torch.arange(len(number), device=number.device).repeat_interleave(number.shape[1])
        weight, columns = (~some.mask).to(some.data), self._columns(some, number, spectrum)
        of_row = (some.data[spectrum], model.log_mean[spectrum], model.basis[spectrum], columns)
        fit = fit_jointly(*of_row, weight=weight[spectrum])
        upward = torch.where(fit.yields[:, 0] > 0, -fit.nll, -torch.inf).view(number.shape)
        return number.gather(1, upward.topk(min(FEW, number.shape[1])).indices)

    def _columns(self, some: _Some, number: Tensor, spectrum: Tensor) -> Tensor:
        """Returns the events of hypotheses `(r, n)` for a yield of 1 in their spectra, shape `(r n, 1, n_bins)`."""
        return some.exposed(self.signals.templates.to(self.edges)[number.flatten()], spectrum)[:, None]

    def described(self, signals: _Significant) -> list[Found]:
        """Says what was found."""
        number = signals.number.cpu()
        of_signal = (self.signals.mass[number], self.signals.width[number], signals.local_z, signals.p_value)
        return list(map(Found, *(t.tolist() for t in (signals.row, *of_signal))))

    def _p_value(self, z: Tensor, path_length: Tensor) -> Tensor:
        return tube_p_value(z, path_length, paths=len(self.paths))
