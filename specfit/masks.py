"""Bins to leave out: blinded windows and gaps, what must be left, and what stands in for them until a fit answers."""

from __future__ import annotations

__all__ = ["bridged", "describe_gaps", "has_sidebands", "left_out_bins", "room_to_mask"]

from typing import Any

import numpy as np
import torch
from torch import Tensor

from specfit.arrays import as_float64
from specfit.errors import InputError
from specfit.spectrum import Spectrum

# A message names no more gaps than this.
MOST_NAMED = 4
# So many bins have to be believed on each side of a masked window.
FEWEST_BESIDE = 3


def left_out_bins(spectrum: Spectrum, mask: Any) -> Tensor:
    """Returns which bins are left out, the gaps of the spectrum always, shape `(m, n_bins)`, bool.

    Args:
        spectrum: One spectrum or many.
        mask: None; windows `[(low, high), ...]` in the unit of the edges, of which every bin that overlaps is left out;
            or true for each such bin, shape `(n_bins,)` or `(m, n_bins)`.

    Raises:
        InputError: It is none of these, a window lies outside of the edges, or too little would be left to fit.
    """
    m, n_bins = spectrum.counts.view(-1, spectrum.n_bins).shape
    chosen = ~spectrum.measured
    given = mask.cpu().numpy() if isinstance(mask, Tensor) else np.asarray([] if mask is None else mask)
    if given.size:
        chosen = chosen | (_flags(given, (m, n_bins)) if given.dtype == bool else _overlaps(given, spectrum.edges))
    left_out = chosen.expand(m, n_bins).clone()
    if not left_out.any():
        return left_out
    content = spectrum.counts.view(m, n_bins).masked_fill(left_out, 0.0).sum(-1)
    too_much = (left_out.sum(-1) > n_bins // 2) | (content <= 0)
    if too_much.any():
        what = "mask" if spectrum.gaps is None else "mask and gaps of the spectrum together"
        which = f" of spectrum {int(too_much.nonzero()[0])}" if m > 1 else ""
        raise InputError(
            f"{what}: more than half of the {n_bins} bins{which}, or all of the content, would be left out"
        )
    return left_out


def describe_gaps(spectrum: Spectrum) -> list[str]:
    """Says which gaps a fit interpolates, for the message of its result; an empty list without gaps.

    Example:
        >>> describe_gaps(Spectrum([4, 0, 3], edges=[0, 1, 2, 3], gaps=[False, True, False]))
        ['1 gap interpolated (1 to 2)']
    """
    intervals = [f"{low:g} to {high:g}" for low, high in spectrum.gap_intervals]
    if not intervals:
        return []
    named = ", ".join(intervals[:MOST_NAMED]) + (", ..." if len(intervals) > MOST_NAMED else "")
    return [f"{len(intervals)} gap{'s' if len(intervals) > 1 else ''} interpolated ({named})"]


def bridged(counts: Tensor, left_out: Tensor, edges: Tensor) -> Tensor:
    """Replaces what is left out by a straight line through the log of the density on either side.

    Args:
        counts: Events per bin, shape `(m, n_bins)`.
        left_out: True for bins to replace, same shape.
        edges: Bin edges, shape `(n_bins + 1,)`.
    """
    x, widths = ((edges[1:] + edges[:-1]) / 2).cpu().numpy(), edges.diff().cpu().numpy()
    result = counts.clone()
    for row in left_out.any(-1).nonzero()[:, 0].tolist():
        out = left_out[row].cpu().numpy()
        log_density = np.log((counts[row].cpu().numpy() + 0.5) / widths)
        filled = np.exp(np.interp(x[out], x[~out], log_density[~out])) * widths[out]
        result[row, left_out[row]] = torch.as_tensor(filled).to(result)
    return result


def room_to_mask(found: Tensor, mask: Tensor) -> Tensor:
    """Returns which spectra keep half of their bins, `(m, 1)`: they have to be believed, or there is nothing to fit."""
    return (found | mask).sum(-1, keepdim=True) <= mask.shape[-1] // 2


def has_sidebands(found: Tensor, mask: Tensor) -> Tensor:
    """Returns which spectra keep bins to believe on both sides of what was found, `(m, 1)`: nothing else holds them."""
    believed = ~(found | mask)
    index = torch.arange(mask.shape[-1], device=mask.device).expand_as(mask)
    first = torch.where(found, index, mask.shape[-1]).amin(-1, keepdim=True)
    last = torch.where(found, index, -1).amax(-1, keepdim=True)
    sides = torch.stack([(believed & (index < first)).sum(-1), (believed & (index > last)).sum(-1)], -1)
    return (sides >= FEWEST_BESIDE).all(-1, keepdim=True)


def _flags(given: np.ndarray, shape: tuple[int, int]) -> Tensor:
    if given.shape not in ((shape[1],), shape):
        raise InputError(f"mask: shape ({shape[1]},) or {shape} is expected, {given.shape} came")
    return torch.as_tensor(given)


def _overlaps(given: np.ndarray, edges: Tensor) -> Tensor:
    windows = as_float64(given, "mask")
    if windows.ndim != 2 or windows.shape[1] != 2 or not (windows[:, 0] < windows[:, 1]).all():
        raise InputError(
            f"mask: windows [(low, high), ...] with low < high, or a bool for each bin, expected; {given} came"
        )
    overlaps = (edges[:-1] < windows[:, 1:]) & (edges[1:] > windows[:, :1])  # (n_windows, n_bins)
    if not overlaps.any(-1).all():
        low, high = windows[~overlaps.any(-1)][0].tolist()
        raise InputError(f"mask: no bin overlaps {low:g} to {high:g}; the edges run from {edges[0]:g} to {edges[-1]:g}")
    return overlaps.any(0)
