r"""Event weights: how many events stand behind weighted contents, bin by bin.

A content n with variance v counts like :math:`n_\mathrm{eff} = n^2 / v` events, each of which stands for
:math:`w = v / n` (scaled Poisson counts; G. Bohm, G. Zech, arXiv:1309.1287). Everything that is fitted is fitted to
such events; the exposure of a bin, the average weight over its own, says how many of them it holds for each one of
average weight, and takes the part that a bin width has for plain counts.

The v / n of a single bin is no weight to fit with: where events of one bin weigh differently it rises and falls with
the content, and a fit that believes upward fluctuations less is biased. So bins are taken together, in segments that
end where weights step, as at the end of a simulated slice: where two levels of ln(v / n) describe the bins better than
one does, by more than half the sum of its squared steps from bin to bin (what single bins of other weight make, never
pays). Before that a straight line is taken off where it explains as much, for weights that fall with the mass. How
large the weights of a segment are, all its contents and variances say together. Bins in gaps, and those that are left
out, tell nothing.
"""

from __future__ import annotations

__all__ = ["Weights", "describe_weights", "event_weights", "exposure_of", "split_exposure"]

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from specfit.spectrum import Spectrum

# Weights that are the same but for rounding, and those that are worth a word.
ALIKE, DIFFERENT = 1e-4, 2.0
# Bins of the shortest segment, and the share of the squared steps that a split has to explain.
SHORTEST, LEAST_EXPLAINED = 4, 0.5

_Array = npt.NDArray[np.float64]


class Weights(NamedTuple):
    """What an event stands for, 1 everywhere for counts."""

    of_bins: Tensor
    """In each bin, shape `(*, n_bins)`."""
    unit: Tensor
    """On average, shape `(*, 1)`."""

    @property
    def are_one(self) -> bool:
        """Whether every event stands for 1, as in counts."""
        return bool((self.of_bins == 1).all())

    @property
    def exposure(self) -> Tensor | None:
        """Events that a bin holds for each one of average weight, shape `(*, n_bins)`; None where that is 1 in all."""
        differ = self.of_bins != self.unit
        return self.unit / self.of_bins if differ.any() else None


def event_weights(spectrum: Spectrum, left_out: Tensor | None = None) -> Weights:
    """Computes the weights of events.

    Args:
        spectrum: One spectrum or many.
        left_out: True for bins that nothing may be learned from, shape `(*, n_bins)`.

    Example:
        >>> counts = torch.tensor([400, 300, 200, 100, 8000, 7000, 6000, 5000])
        >>> weight = torch.tensor([2.0, 2.0, 2.0, 2.0, 0.1, 0.1, 0.1, 0.1])
        >>> spectrum = Spectrum(counts * weight, edges=range(9), variances=counts * weight**2)
        >>> event_weights(spectrum).of_bins
        tensor([2.0000, 2.0000, 2.0000, 2.0000, 0.1000, 0.1000, 0.1000, 0.1000],
               dtype=torch.float64)
    """
    counts, variances = spectrum.counts, spectrum.variances
    seen = spectrum.measured if left_out is None else spectrum.measured & ~left_out
    if variances is None or not (seen & (variances != counts)).any():
        return Weights(torch.ones_like(counts), torch.ones_like(counts[..., :1]))
    tells = seen & (counts > 0) & (variances > 0)
    content, variance = (torch.where(tells, t, 0.0).view(-1, spectrum.n_bins).numpy() for t in (counts, variances))
    of_bins = torch.from_numpy(np.stack(list(map(_of_row, content, variance)))).view_as(counts)
    total = torch.where(tells, counts, 0.0).sum(-1, keepdim=True)
    average = torch.where(tells, variances, 0.0).sum(-1, keepdim=True) / torch.where(total > 0, total, 1.0)
    unit = torch.where(total > 0, average, 1.0)
    alike = of_bins.amax(-1, keepdim=True) <= (1 + ALIKE) * of_bins.amin(-1, keepdim=True)
    return Weights(torch.where(alike, unit, of_bins), unit)


def describe_weights(spectrum: Spectrum, left_out: Tensor | None = None) -> list[str]:
    """Says how weighted contents are fitted, for the message of the result; an empty list for counts.

    Args:
        spectrum: What is fitted.
        left_out: As for `event_weights`.

    Example:
        >>> describe_weights(Spectrum([400, 40, 30], edges=[0, 1, 2, 3], variances=[40, 4, 3]))
        ['weighted contents, fitted as scaled Poisson counts']
    """
    weights = event_weights(spectrum, left_out)
    if weights.are_one:
        return []
    low, high = weights.of_bins.amin(-1), weights.of_bins.amax(-1)
    said, differ = "weighted contents, fitted as scaled Poisson counts", high > DIFFERENT * low
    if not differ.any():
        return [said]
    which = f" of {int(differ.sum())} of {len(differ)} spectra" if differ.ndim else ""
    return [
        f"{said}; an event stands for {low[differ].amin():.3g} to {high[differ].amax():.3g} in different bins{which}"
    ]


def exposure_of(exposure: Tensor | None, rows: Tensor) -> Tensor | None:
    """Takes the exposures of some spectra; None, for 1 everywhere, stays None."""
    return None if exposure is None else exposure[rows]


def split_exposure(exposure: Tensor | None, size: int, n_spectra: int) -> Sequence[Tensor | None]:
    """Splits the exposures of so many spectra as `torch.split` splits what is counted."""
    return [None] * -(-n_spectra // size) if exposure is None else torch.split(exposure, size)


def _of_row(content: _Array, variance: _Array) -> _Array:
    """Returns the weights of one spectrum, shape `(n_bins,)`; bins without content tell nothing."""
    tells = np.flatnonzero(content > 0)
    if len(tells) == 0:
        return np.ones_like(content)
    index, y = np.arange(len(content)), np.log(variance[tells] / content[tells])
    slope = _slope(tells, y)
    ways = []
    for tried in {0.0, slope}:
        line = tried * (tells - tells.mean())
        parts = _segments(y - line)
        rest = sum(np.square(part - part.mean()).sum() for part in np.split(y - line, parts))
        ways.append((rest, len(parts), tried, parts))
    _, _, slope, parts = min(ways, key=lambda way: way[:2])
    weights, before = np.empty_like(content), None
    for bins in np.split(tells, parts):
        # Beyond the last bin that tells something a line says nothing.
        shape = np.exp(slope * (np.clip(index, bins[0], bins[-1]) - bins.mean()))
        own = shape * (variance[bins] / shape[bins]).sum() / content[bins].sum()
        first = 0 if before is None else bins[0]
        weights[first:] = own[first:]
        if before is not None:
            # An empty bin between belongs to the segment of heavier events: in the other it would not be empty.
            between = slice(before[0], bins[0])
            weights[between] = np.maximum(before[1][between], own[between])
        before = bins[-1] + 1, own
    return weights


def _slope(x: npt.NDArray[np.int64], y: _Array) -> float:
    """Returns the slope of a straight line where it explains enough, else 0."""
    if len(y) < 2 * SHORTEST:
        return 0.0
    away = x - x.mean()
    slope = float(away @ y / (away @ away))
    return slope if slope * (away @ y) > LEAST_EXPLAINED * _squared_steps(y) else 0.0


def _segments(y: _Array) -> list[int]:
    """Returns where segments begin, but for the first: bins are split in two as long as that explains enough."""
    n = len(y)
    if n < 2 * SHORTEST:
        return []
    at = np.arange(SHORTEST, n - SHORTEST + 1)
    sums = np.cumsum(y - y.mean())[at - 1]
    explained = np.square(sums) * n / (at * (n - at))
    best = int(explained.argmax())
    # Rounding explains nothing.
    if explained[best] <= LEAST_EXPLAINED * _squared_steps(y) + n * ALIKE**2:
        return []
    begin = int(at[best])
    return [*_segments(y[:begin]), begin, *(begin + later for later in _segments(y[begin:]))]


def _squared_steps(y: _Array) -> float:
    steps = np.diff(y)
    return float(np.square(steps - steps.mean()).sum())
