"""Masks signals: a test of every place and width beside the background, and a window where one passes.

In each round

1. the score of every hypothesis is computed from the fit of the background alone (`specfit.signal.score`), and the
   p-value of the largest one anywhere (`specfit.signal.look_elsewhere.tube_p_value`);
2. where that is small, the best signals of different widths are fitted beside the background by a net that does not
   see them (`specfit.signal.extraction`), and the p-value is that of the largest local significance;
3. where it is still small, the window of the signal is masked: its bins weigh nothing from then on, the net is shown
   the background of the joint fit there, and answers again. A window needs bins to believe on both sides.
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
from specfit.signal.joint_fit import fit_jointly
from specfit.signal.look_elsewhere import tube_p_value
from specfit.signal.score import path_length, score_test

# Widths of a signal that are tried with a net that does not see it.
FEW = 3
# The coarse grid that tells where to look closely sees a signal with at least this share of its significance.
LEAST_OF_COARSE = 0.85
# Times that the net is asked about masked bins again, and spectra whose scores fit a processor's cache.
MOST_SETTLING, SCORED_AT_A_TIME = 10, 512


def refit_signals(
    net: CalibratedNet,
    counts: Tensor,
    edges: Tensor,
    *,
    first: tuple[LocalModel, Tensor] | None = None,
    mask: Tensor | None = None,
    hypotheses: SignalHypotheses | None = None,
    false_alarm: float = FALSE_ALARM,
) -> Refit:
    """Masks windows where a signal beside the background is significant, with the looking counted.

    Args:
        net: Says what is plausible.
        counts: Observed events, shape `(m, n_bins)`, float64.
        edges: Bin edges, shape `(n_bins + 1,)`.
        first: What `net.fitted` answers to `counts` and `mask`, if it is known already.
        mask: True for bins whose content is no data but a guess of the background, shape `(m, n_bins)`.
        hypotheses: Signals to look for; None takes `binwise_hypotheses`.
        false_alarm: Largest share of pure backgrounds in which a window is masked.
    """
    search = _Search(net, edges, binwise_hypotheses(edges) if hypotheses is None else hypotheses, false_alarm)
    spectra = _Spectra(net, counts, edges, as_mask(mask, counts), first)
    spectra.settle(spectra.mask.any(-1).nonzero()[:, 0])
    rows, found = torch.arange(len(counts), device=counts.device), []
    for _ in range(MOST_ROUNDS):
        signals = search.significant(spectra, rows)
        new = search.windows[signals.number] & ~spectra.mask[signals.row]
        masked = spectra.mask[signals.row]
        signals = signals.of((new & room_to_mask(new, masked) & has_sidebands(new, masked)).any(-1))
        rows = signals.row
        if len(rows) == 0:
            break
        found += search.described(signals)
        spectra.leave_out(rows, search.windows[signals.number], signals.background)
        spectra.settle(rows)
    message = (
        f"refit (signals): bumps are masked that at most {100 * false_alarm:g} % of pure backgrounds show anywhere"
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
        first: tuple[LocalModel, Tensor] | None,
    ) -> None:
        self.net, self.counts, self.edges, self.mask = net, counts, edges, mask
        self.data = counts.clone()
        """What the net is shown: counts, and a guess of the background where they are masked."""
        model, log_rate = net.fitted(counts, edges=edges, mask=mask) if first is None else first
        self.fitted = [t.clone() for t in (*model, log_rate)]
        self.iterations = torch.zeros(len(counts), dtype=torch.int64, device=counts.device)

    def answer(self, rows: Tensor) -> tuple[LocalModel, Tensor]:
        """Returns the local models of some, and the estimated log rates."""
        *model, log_rate = (t[rows] for t in self.fitted)
        return LocalModel(*model), log_rate

    def leave_out(self, rows: Tensor, window: Tensor, background: Tensor) -> None:
        """Masks more bins of some, and asks the net again with a background there."""
        self.mask[rows] |= window
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
        model, log_rate = self.net.fitted(self.data[rows], edges=self.edges, mask=self.mask[rows])
        for whole, part in zip(self.fitted, (*model, log_rate), strict=True):
            whole[rows] = part
        self.iterations[rows] += 1


class _Significant(NamedTuple):
    """Signals that no pure background would show."""

    row: Tensor
    """In which spectrum, shape `(r,)`."""
    number: Tensor
    """Which hypothesis, shape `(r,)`."""
    local_z: Tensor
    p_value: Tensor
    background: Tensor
    """Fitted beside the signal, shape `(r, n_bins)`."""

    def of(self, chosen: Tensor) -> _Significant:
        """Takes some, by a mask `(r,)`."""
        return _Significant(*(t[chosen] for t in self))


class _Search:
    """What is looked for, and how often a pure background would show it."""

    def __init__(self, net: CalibratedNet, edges: Tensor, signals: SignalHypotheses, false_alarm: float) -> None:
        self.net, self.edges, self.signals, self.false_alarm = net, edges, signals, false_alarm
        low, high = ((signals.mass + side * signals.width)[:, None].to(edges) for side in (-REACH, REACH))
        self.windows = (edges[1:] > low) & (edges[:-1] < high)  # (h, n_bins)
        starts = [0, *(1 + (signals.mass.diff() <= 0).nonzero()[:, 0]).tolist(), len(signals)]
        self.paths = [slice(*pair) for pair in itertools.pairwise(starts)]
        """Hypotheses of one width."""
        numbers = [torch.arange(path.start, path.stop, 2 if path.stop - path.start > 2 else 1) for path in self.paths]
        self.coarse = signals[torch.cat(numbers[::2])]
        # No path is shorter than a point: below this significance, less what the coarse grid may miss, none passes.
        least = -torch.special.ndtri(torch.tensor(false_alarm / len(self.paths), dtype=torch.float64))
        self.least_z = float(LEAST_OF_COARSE * least)

    def significant(self, spectra: _Spectra, rows: Tensor) -> _Significant:
        """Finds those of some spectra with a significant signal, at most one in each."""
        rows = rows[self._scores(spectra, rows, self.coarse).amax(1) > self.least_z]
        if len(rows) > 0:
            rows, number, length = self._candidates(spectra, rows)
        if len(rows) == 0:  # nearly every single spectrum: nothing more is asked
            nothing = spectra.data[:0]
            return _Significant(rows, rows, nothing[:, 0], nothing[:, 0], nothing)
        data, mask = spectra.data[rows], spectra.mask[rows]
        number = self._promising(data, mask, spectra.answer(rows)[0], number)
        each = torch.arange(len(rows), device=rows.device)
        spectrum = each.repeat_interleave(number.shape[1])
        of_row = (self.net, data, self._columns(number))
        fits = extract(*of_row, spectrum=spectrum, edges=self.edges, mask=mask, trusting=True)
        # Not the significance of a discovery: to mask a background costs precision, to believe a signal truth.
        largest = fits.pull.view(number.shape).max(-1)
        background = fits.fit.background.view(*number.shape, data.shape[1])[each, largest.indices]
        p_value = self._p_value(largest.values, length)
        found = _Significant(rows, number[each, largest.indices], largest.values, p_value, background)
        return found.of(p_value < self.false_alarm)

    def _candidates(self, spectra: _Spectra, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Takes the spectra whose scores pass; `(r,)`, the best signal of each width, `(r, n)`, path lengths `(r,)`."""
        z = self._scores(spectra, rows, self.signals)
        # The path can only raise a p-value: most spectra end here.
        possible = self._p_value(z.amax(1), z.new_zeros(len(z))) < self.false_alarm
        rows, z = rows[possible], z[possible]
        number = torch.stack([path.start + z[:, path].argmax(-1) for path in self.paths], 1)
        model, log_rate = spectra.answer(rows)
        length = path_length(log_rate, model, self.signals, weight=(~spectra.mask[rows]).double())
        passing = self._p_value(z.amax(1), length) < self.false_alarm
        return rows[passing], number[passing], length[passing]

    def _scores(self, spectra: _Spectra, rows: Tensor, signals: SignalHypotheses) -> Tensor:
        scores = []
        for some in torch.split(rows, SCORED_AT_A_TIME):
            model, log_rate = spectra.answer(some)
            weight = (~spectra.mask[some]).double()
            scores.append(score_test(spectra.data[some], log_rate, model, signals, weight=weight))
        return torch.cat(scores)

    def _promising(self, data: Tensor, mask: Tensor, model: LocalModel, number: Tensor) -> Tensor:
        """Takes the few hypotheses of each row `(r, n)` that raise the likelihood most."""
        # A signal that pulled the background misleads the score of one width; which it is shows in a fit.
        spectrum = torch.arange(len(data), device=data.device).repeat_interleave(number.shape[1])
        weight = (~mask).to(data)
        of_row = (data[spectrum], model.log_mean[spectrum], model.basis[spectrum], self._columns(number))
        fit = fit_jointly(*of_row, weight=weight[spectrum])
        upward = torch.where(fit.yields[:, 0] > 0, -fit.nll, -torch.inf).view(number.shape)
        return number.gather(1, upward.topk(min(FEW, number.shape[1])).indices)

    def _columns(self, number: Tensor) -> Tensor:
        """Returns the templates of hypotheses `(r, n)`, shape `(r n, 1, n_bins)`."""
        return self.signals.templates.to(self.edges)[number.flatten(), None]

    def described(self, signals: _Significant) -> list[Found]:
        """Says what was found."""
        number = signals.number.cpu()
        of_signal = (self.signals.mass[number], self.signals.width[number], signals.local_z, signals.p_value)
        return list(map(Found, *(t.tolist() for t in (signals.row, *of_signal))))

    def _p_value(self, z: Tensor, path_length: Tensor) -> Tensor:
        return tube_p_value(z, path_length, paths=len(self.paths))
