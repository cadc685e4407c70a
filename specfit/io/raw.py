"""What a source holds before it is checked, and how single bins join to one row of edges."""

from __future__ import annotations

__all__ = ["JOIN_TOLERANCE", "RawSpectrum", "join_bins"]

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from specfit.arrays import ArrayLike
from specfit.errors import InputError

# Published tables round their edges: a gap of this share of the narrower bin is rounding, a larger one a missing bin.
JOIN_TOLERANCE = 1e-3


class RawSpectrum(NamedTuple):
    """Contents as they came out of a file or an object, in any number type.

    Args:
        counts: Contents, shape `(n_bins,)` or `(n_spectra, n_bins)` if all is well.
        edges: Bin edges, or None where the source has none.
        variances: Variances of the contents, or None for Poisson counts.
        edges_missing: Why there are no edges, for the message to the user.
    """

    counts: ArrayLike
    edges: ArrayLike | None = None
    variances: ArrayLike | None = None
    edges_missing: str = "counts alone have no edges"


def join_bins(low: npt.ArrayLike, high: npt.ArrayLike, names: Sequence[str]) -> npt.NDArray[np.float64]:
    """Joins bins to one row of edges; where neighbours disagree by rounding the lower edge of the upper bin counts.

    Args:
        low: Lower edge of each bin, shape `(n_bins,)`.
        high: Upper edge of each bin, shape `(n_bins,)`.
        names: What the message calls each bin, such as "line 7".

    Raises:
        InputError: A bin has no width, or neighbours leave a gap or overlap by more than rounding.
    """
    lower, upper = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    widths = upper - lower
    bad = np.flatnonzero(~(widths > 0))
    if bad.size:
        at = bad[0]
        raise InputError(
            f"{names[at]}: the upper edge must lie above the lower one, {lower[at]:g} to {upper[at]:g} came"
        )
    gaps = lower[1:] - upper[:-1]
    bad = np.flatnonzero(~(abs(gaps) <= JOIN_TOLERANCE * np.minimum(widths[1:], widths[:-1])))
    if bad.size:
        at = bad[0]
        what = "a gap before it" if gaps[at] > 0 else "an overlap with the bin before it"
        raise InputError(
            f"{names[at + 1]}: {what}: it starts at {lower[at + 1]:.10g}, but the bin before it ends at "
            f"{upper[at]:.10g}; bins must follow each other in rising order (write an empty bin with content 0)"
        )
    return np.append(lower, upper[-1:])
