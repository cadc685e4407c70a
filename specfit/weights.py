r"""Event weights: how many events stand behind weighted contents, bin by bin.

A content n with variance v counts like :math:`n_\mathrm{eff} = n^2 / v` events, each of which stands for
:math:`w = v / n` (scaled Poisson counts; G. Bohm, G. Zech, arXiv:1309.1287). Everything that is fitted is fitted to
such events; the exposure of a bin, the average weight over its own, says how many of them it holds for each one of
average weight, and takes the part that a bin width has for plain counts.

A bin of few events does not tell its weight: it takes that of the smallest neighbourhood with `ENOUGH` events. Bins in
gaps, and those that are left out, tell nothing.
"""

from __future__ import annotations

__all__ = ["Weights", "describe_weights", "event_weights"]

from typing import NamedTuple

import torch
from torch import Tensor

from specfit.spectrum import Spectrum

# Events that tell a weight, weights that are the same but for rounding, and those that are worth a word.
ENOUGH, ALIKE, DIFFERENT = 10.0, 1e-4, 2.0


class Weights(NamedTuple):
    """What an event stands for, 1 everywhere for counts."""

    of_bins: Tensor
    """In each bin, shape `(*, n_bins)`."""
    unit: Tensor
    """On average, shape `(*, 1)`."""

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
        >>> weights = event_weights(Spectrum([40, 4, 0, 300], edges=range(5), variances=[80, 8, 0, 30]))
        >>> weights.of_bins
        tensor([2.0000, 2.0000, 0.1250, 0.1000], dtype=torch.float64)
    """
    counts = spectrum.counts
    if spectrum.variances is None or not spectrum.is_weighted:
        return Weights(torch.ones_like(counts), torch.ones_like(counts[..., :1]))
    seen = spectrum.measured if left_out is None else spectrum.measured & ~left_out
    content, variance = (torch.where(seen, t, 0.0) for t in (counts, spectrum.variances))
    average = variance.sum(-1, keepdim=True) / content.sum(-1, keepdim=True)
    unit = torch.where((average > 0) & average.isfinite(), average, 1.0)
    tells = (content > 0) & (variance > 0)
    own = _of_neighbourhoods(*(torch.where(tells, t, 0.0).view(-1, spectrum.n_bins) for t in (content, variance)))
    own = own.view_as(counts)
    own = torch.where(own > 0, own, unit)
    alike = own.amax(-1, keepdim=True) <= (1 + ALIKE) * own.amin(-1, keepdim=True)
    return Weights(torch.where(alike, unit, own), unit)


def describe_weights(spectrum: Spectrum, left_out: Tensor | None = None) -> list[str]:
    """Says how weighted contents are fitted, for the message of the result; an empty list for counts.

    Args:
        spectrum: What is fitted.
        left_out: As for `event_weights`.

    Example:
        >>> describe_weights(Spectrum([400, 40, 30], edges=[0, 1, 2, 3], variances=[40, 4, 3]))
        ['weighted contents, fitted as scaled Poisson counts']
    """
    if not spectrum.is_weighted:
        return []
    weights = event_weights(spectrum, left_out).of_bins
    low, high = weights.amin(-1), weights.amax(-1)
    said, differ = "weighted contents, fitted as scaled Poisson counts", high > DIFFERENT * low
    if not differ.any():
        return [said]
    which = f" of {int(differ.sum())} of {len(differ)} spectra" if differ.ndim else ""
    return [
        f"{said}; an event stands for {low[differ].amin():.3g} to {high[differ].amax():.3g} in different bins{which}"
    ]


def _of_neighbourhoods(content: Tensor, variance: Tensor) -> Tensor:
    """Returns the weight around each bin of `(m, n_bins)`, same shape; 0 where nothing tells one."""
    n_bins, found = content.shape[1], torch.zeros_like(content)
    reach = 0
    while True:
        sums = [_summed(t, reach) for t in (content, variance)]
        events = sums[0].square() / sums[1]  # NaN for nothing
        weight = sums[1] / sums[0]
        found = torch.where((found == 0) & (events >= ENOUGH), weight, found)
        if reach >= n_bins or (found > 0).all():
            # Where even all bins together hold fewer events, they are all there is.
            return torch.where(found == 0, weight.nan_to_num(0.0), found)
        reach = max(1, 2 * reach)


def _summed(values: Tensor, reach: int) -> Tensor:
    """Sums over so many neighbours on either side: not by differences, in which small weights would drown."""
    if reach == 0:
        return values
    padded = torch.nn.functional.pad(values[:, None], (reach, reach))
    return torch.nn.functional.avg_pool1d(padded, 2 * reach + 1, stride=1)[:, 0] * (2 * reach + 1)
