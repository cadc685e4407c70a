"""Batch: what every generator answers."""

from __future__ import annotations

__all__ = ["Batch"]

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Sampled spectra; contents in events per bin, of shape `(size, n_bins)`."""

    counts: Tensor
    """Poisson data around background + signal."""
    background: Tensor
    """Expected background: the truth a fit should find."""
    signal: Tensor
    """Expected signal, zero where none was injected."""
    edges: Tensor
    """Bin edges, shape `(n_bins + 1,)` where they are common, else `(size, n_bins + 1)`."""
    mask: Tensor | None = None
    """True for bins that a fit should leave out, shape `(size, n_bins)`; None if there are none."""
