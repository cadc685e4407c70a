"""What a function is fitted to, and what comes of it."""

from __future__ import annotations

__all__ = ["Fitted", "Task"]

from typing import NamedTuple

from torch import Tensor


class Task(NamedTuple):
    """Spectra that a net has described."""

    log_rate: Tensor
    """What the net says, shape `(m, n_bins)`."""
    data: Tensor
    """Observed events, same shape, float64."""
    seen: Tensor
    """0 for masked bins, 1 for others, or how many events one of the data stands for, same shape."""
    allowed: Tensor
    """By how much the deviance may be larger than the net's, shape `(m,)`."""


class Fitted(NamedTuple):
    """A function fitted to spectra."""

    log_rate: Tensor
    """Shape `(m, n_bins)`."""
    basis: Tensor
    """Its derivatives along its parameters, each as wide as its prior, shape `(m, n_bins, k)`."""
    deviance: Tensor
    """Shape `(m,)`; infinite where the search gave up."""
