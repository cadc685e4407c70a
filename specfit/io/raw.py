"""What a source holds before it is checked, and how single bins join to one row of edges.

What to use when: `join_bins` where bins must follow each other (the axis of a histogram); `join_table` where some may
be missing in between (rows of a table), which fills such gaps with bins in which nothing was measured.
"""

from __future__ import annotations

__all__ = ["JOIN_TOLERANCE", "JoinedTable", "RawSpectrum", "join_bins", "join_table"]

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from specfit.arrays import ArrayLike
from specfit.errors import InputError

# Published tables round their edges: neighbours that disagree by this share of the narrower bin do join.
JOIN_TOLERANCE = 1e-3
# A gap of less than this share of the narrower neighbour is taken for a mistake in the edges and refused.
LEAST_GAP = 0.5

Floats = npt.NDArray[np.float64]


class RawSpectrum(NamedTuple):
    """Contents as they came out of a file or an object, in any number type.

    Args:
        counts: Contents, shape `(n_bins,)` or `(n_spectra, n_bins)` if all is well.
        edges: Bin edges, or None where the source has none.
        variances: Variances of the contents, or None for Poisson counts.
        edges_missing: Why there are no edges, for the message to the user.
        gaps: True for bins in which nothing was measured, or None.
    """

    counts: ArrayLike
    edges: ArrayLike | None = None
    variances: ArrayLike | None = None
    edges_missing: str = "counts alone have no edges"
    gaps: npt.NDArray[np.bool_] | None = None


class JoinedTable(NamedTuple):
    """Bins of a table in one row, with bins in its gaps."""

    edges: Floats
    """Shape `(n_bins + 1,)`."""
    gaps: npt.NDArray[np.bool_]
    """True for bins that are no row of the table, shape `(n_bins,)`."""

    def spread(self, values: Floats) -> Floats:
        """Returns one value for each bin, 0 in gaps, from one for each row."""
        spread = np.zeros(len(self.gaps))
        spread[~self.gaps] = values
        return spread


def join_bins(low: npt.ArrayLike, high: npt.ArrayLike, names: Sequence[str]) -> Floats:
    """Joins bins to one row of edges; where neighbours disagree by rounding the lower edge of the upper bin counts.

    Args:
        low: Lower edge of each bin, shape `(n_bins,)`.
        high: Upper edge of each bin, shape `(n_bins,)`.
        names: What the message calls each bin, such as "line 7".

    Raises:
        InputError: A bin has no width, or neighbours leave a gap or overlap by more than rounding.
    """
    lower, upper = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    steps = _steps(lower, upper, names)
    bad = np.flatnonzero(steps > JOIN_TOLERANCE)
    if bad.size:
        raise InputError(
            f"{_meeting('a gap', lower, upper, names, bad[0])}; bins must follow each other (write an empty bin with "
            "content 0)"
        )
    return np.append(lower, upper[-1:])


def join_table(low: npt.ArrayLike, high: npt.ArrayLike, names: Sequence[str]) -> JoinedTable:
    """Joins rows as `join_bins` does, and fills gaps between them with bins like those on either side.

    The widths of the bins in a gap go over geometrically from that of the bin before it to that of the bin after it:
    where these are equal, or all edges stand in one ratio, the bins are those that were left out.

    Args:
        low: Lower edge of each row, shape `(n_rows,)`.
        high: Upper edge of each row, shape `(n_rows,)`.
        names: What the message calls each row, such as "line 7".

    Raises:
        InputError: A bin has no width, neighbours overlap, a gap is narrower than half a bin, or there is more gap than
            data.
    """
    lower, upper = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    steps, widths = _steps(lower, upper, names), upper - lower
    before = np.flatnonzero(steps > JOIN_TOLERANCE)  # the row before each gap
    if not before.size:
        return JoinedTable(join_bins(lower, upper, names), np.zeros(len(lower), dtype=bool))
    narrow = before[steps[before] < LEAST_GAP]
    if narrow.size or 2 * len(before) > len(lower):
        raise InputError(
            f"{_meeting('a gap', lower, upper, names, (narrow if narrow.size else before)[0])}; "
            + ("that is less than half a bin" if narrow.size else "most bins have such a gap before them")
            + ", as if the edges were rounded or the upper ones inclusive: let each bin end where the next one starts"
        )
    numbers = _numbers(lower[before + 1] - upper[before], widths[before], widths[before + 1])
    if numbers.sum() > len(lower):
        widest = before[numbers.argmax()]
        raise InputError(
            f"{_meeting('a gap', lower, upper, names, widest)}; filled with bins like those on either side, gaps would "
            "hold more bins than there are rows, too many to interpolate; fit the parts one by one, or correct the edge"
        )
    parts, flags, first = [], [], 0
    for row, number in zip(before.tolist(), numbers.tolist(), strict=True):
        inside = _filled(upper[row], lower[row + 1], widths[row], widths[row + 1], number)
        parts += [lower[first : row + 1], inside]
        flags += [np.zeros(row + 1 - first, dtype=bool), np.ones(number, dtype=bool)]
        first = row + 1
    edges = np.concatenate([*parts, lower[first:], upper[-1:]])
    return JoinedTable(edges, np.concatenate([*flags, np.zeros(len(lower) - first, dtype=bool)]))


def _steps(lower: Floats, upper: Floats, names: Sequence[str]) -> Floats:
    """Checks widths and order; returns how far each bin starts after the one before, in units of the narrower one."""
    widths = upper - lower
    bad = np.flatnonzero(~(widths > 0))
    if bad.size:
        at = bad[0]
        raise InputError(
            f"{names[at]}: the upper edge must lie above the lower one, {lower[at]:g} to {upper[at]:g} came"
        )
    steps: Floats = (lower[1:] - upper[:-1]) / np.minimum(widths[1:], widths[:-1])
    bad = np.flatnonzero(~(steps >= -JOIN_TOLERANCE))
    if bad.size:
        raise InputError(
            f"{_meeting('an overlap', lower, upper, names, bad[0])}; bins must follow each other in rising order"
        )
    return steps


def _meeting(what: str, lower: Floats, upper: Floats, names: Sequence[str], row: int) -> str:
    """Says where a row and the next one should meet."""
    before = "with the bin before it" if what == "an overlap" else "before it"
    return (
        f"{names[row + 1]}: {what} {before}: it starts at {lower[row + 1]:.10g}, but the bin before it ends at "
        f"{upper[row]:.10g}"
    )


def _numbers(gap: Floats, before: Floats, after: Floats) -> npt.NDArray[np.int64]:
    """Counts the bins whose widths go over geometrically from `before` to `after` and fill gaps best, at least one."""
    log_ratio = np.log(after / before)
    equal = log_ratio == 0
    mean = before * np.where(equal, 1.0, np.expm1(log_ratio) / np.where(equal, 1.0, log_ratio))
    # From the middle of the bin before to that of the bin after it is one step more than there are bins between.
    number = (gap + (before + after) / 2) / mean - 1
    return np.maximum(1, np.rint(np.minimum(number, 1e9))).astype(np.int64)


def _filled(start: float, stop: float, before: float, after: float, number: int) -> Floats:
    """Returns the lower edges of the bins in a gap, the first of which is `start`."""
    sizes = before * (after / before) ** (np.arange(1, number + 1) / (number + 1))
    reached = np.concatenate([[0.0], sizes.cumsum()])
    edges: Floats = start + (stop - start) * reached[:-1] / reached[-1]
    return edges
