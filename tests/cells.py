"""Histograms for cells: named regular axes, with or without variances."""

import hist
import numpy as np


def histogram(values, variances=None, *, names, ends=(0.0, 1.0)):
    """A histogram with one regular axis for each name, between the same ends."""
    axes = [hist.axis.Regular(n, *ends, name=name) for n, name in zip(np.shape(values), names, strict=True)]
    weighted = variances is not None
    h = hist.Hist(*axes, storage=hist.storage.Weight() if weighted else hist.storage.Double())
    h[...] = np.stack([values, variances], -1) if weighted else values
    return h
