"""Masks signals: a test of every place and width beside the background, and a window where one passes.

In each round

1. the score of every hypothesis is computed from the fit of the background alone (`specfit.signal.score_test`), and the
   p-value of the largest one anywhere (`specfit.signal.look_elsewhere.tube_p_value`);
2. where that is small, the best signals of different widths are fitted beside the background by a net that does not
   see them (`specfit.signal.extraction`), and the p-value is that of the largest likelihood ratio;
3. where it is still small, the window of the signal is masked: its bins weigh nothing from then on, the net is shown
   the background of the joint fit there, and answers again.
"""

from __future__ import annotations

__all__ = ["refit_signals"]

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from specfit.fitter.base import FALSE_ALARM, MOST_ROUNDS, STABLE, Found, Refit, as_mask, room_to_mask
from specfit.net import CalibratedNet, LocalModel
from specfit.signal.extraction import extract
from specfit.signal.hypotheses import SignalHypotheses, binwise_hypotheses
from specfit.signal.joint_fit import fit_jointly
from specfit.signal.look_elsewhere import tube_p_value
from specfit.signal.score_test import score_test

# Standard deviations of a signal that are masked on either side of its mass.
REACH = 2.75
# Widths of a signal that are tried with a net that does not see it.
FEW = 3


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
    data, mask = counts.clone(), as_mask(mask, counts)
    fitted = net.fitted(counts, edges=edges, mask=mask) if first is None else first
    iterations = torch.zeros(len(counts), dtype=torch.int64, device=counts.device)
    rows, found, rounds = torch.arange(len(counts), device=counts.device), [], 0
    while True:
        background = fitted[1].exp()
        moves = _moves(data[rows], background, mask[rows]) & (rounds < MOST_ROUNDS)
        signals = search.significant(data[rows], mask[rows], *fitted)
        new = search.windows[signals.number] & ~mask[rows[signals.row]]
        signals = signals.of((room_to_mask(new, mask[rows[signals.row]]) & new).any(-1) & (rounds < MOST_ROUNDS))
        mask[rows[signals.row]] |= search.windows[signals.number]
        background[signals.row], moves[signals.row] = signals.background, True
        found += search.described(signals, rows)
        rows, background = rows[moves], background[moves]
        if len(rows) == 0:
            break
        data[rows] = torch.where(mask[rows], background, counts[rows])
        fitted = net.fitted(data[rows], edges=edges, mask=mask[rows])
        iterations[rows] += 1
        rounds += 1
    message = f"refit (signals): masked what {100 * false_alarm:g} % of pure backgrounds would show anywhere, or fewer"
    return Refit(data, mask, iterations, message, tuple(found))


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

    def significant(self, data: Tensor, mask: Tensor, model: LocalModel, log_rate: Tensor) -> _Significant:
        """Finds the spectra with a significant signal, at most one in each."""
        test = score_test(data, log_rate, model, self.signals, weight=(~mask).to(data))
        of_path = [test.local_z[:, path].max(-1) for path in self.paths]
        number = torch.stack([best.indices + path.start for best, path in zip(of_path, self.paths, strict=True)], 1)
        p_value = self._p_value(torch.stack([best.values for best in of_path], 1).amax(1), test.path_length)
        row = (p_value < self.false_alarm).nonzero()[:, 0]
        data, mask, length, model = data[row], mask[row], test.path_length[row], LocalModel(*(t[row] for t in model))
        number = self._promising(data, mask, model, number[row])
        spectrum = torch.arange(len(row), device=data.device)
        fits = extract(
            self.net,
            data,
            self._columns(number),
            spectrum=spectrum.repeat_interleave(number.shape[1]),
            edges=self.edges,
            mask=mask,
        )
        largest = fits.local_z.view(number.shape).max(-1)
        background = fits.fit.background.view(*number.shape, data.shape[1])[spectrum, largest.indices]
        p_value = self._p_value(largest.values, length)
        found = _Significant(row, number[spectrum, largest.indices], largest.values, p_value, background)
        return found.of(p_value < self.false_alarm)

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

    def described(self, signals: _Significant, rows: Tensor) -> list[Found]:
        """Says what was found; `rows` are the numbers of the spectra that were looked at."""
        number = signals.number.cpu()
        of_signal = (self.signals.mass[number], self.signals.width[number], signals.local_z, signals.p_value)
        return list(map(Found, *(t.tolist() for t in (rows[signals.row], *of_signal))))

    def _p_value(self, z: Tensor, path_length: Tensor) -> Tensor:
        return tube_p_value(z, path_length, paths=len(self.paths))


def _moves(data: Tensor, background: Tensor, mask: Tensor) -> Tensor:
    """Returns the spectra in which what stands for masked data is no longer the background, `(m,)`."""
    shift = (data - background).abs() > STABLE * background.clamp(min=1.0).sqrt()
    return (shift & mask).any(-1)
