"""Spectrum: counts on edges, the one value that travels through specfit.

One spectrum has counts of shape `(n_bins,)`; many spectra on the same edges have `(n_spectra, n_bins)`. Both are
float64. Everything that can be wrong with a histogram is refused here, so that no other room has to look again.
Counts are events per bin (not a density). Weighted contents carry their variances; without variances the contents
are taken as Poisson counts. Under- and overflow never enter. Where nothing was measured between the first and the last
bin, a spectrum has gaps: bins like all others, but what they hold counts nowhere.
"""

from __future__ import annotations

__all__ = ["MOST_EVENTS", "Spectrum", "check_events"]

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from specfit.arrays import ArrayLike, as_float64
from specfit.errors import InputError

MOST_EVENTS = 1e15
"""Of a bin, where float64 still tells one event more from one less, and of what is sampled."""


@dataclass(frozen=True, eq=False, init=False)
class Spectrum:
    """Counts on edges, validated and frozen.

    Args:
        counts: Events per bin, shape `(n_bins,)` or `(n_spectra, n_bins)`, finite, not negative, not all zero.
        edges: Bin edges, shape `(n_bins + 1,)`, strictly increasing, in any unit.
        variances: Variance of each content (sum of squared weights), same shape as `counts`. None means Poisson
            counts, whose variance is the count itself.
        gaps: True for bins in which nothing was measured (a vetoed region, say), shape `(n_bins,)`, the same for all
            spectra; not the first or the last bin. Fits leave them out and interpolate. None means that there are none,
            and so does an array without a true one.

    Raises:
        InputError: Naming the argument, what came and what was expected.

    Example:
        >>> spectrum = Spectrum([40, 30, 20], edges=[0, 1, 2, 4])
        >>> spectrum.n_bins, spectrum.total.item(), spectrum.widths.tolist()
        (3, 90.0, [1.0, 1.0, 2.0])
        >>> Spectrum([40, 30, 0, 20], edges=[0, 1, 2, 3, 4], gaps=[False, False, True, False]).gap_intervals
        [(2.0, 3.0)]
    """

    counts: Tensor = field()
    edges: Tensor = field()
    variances: Tensor | None = field()
    gaps: Tensor | None = field()

    def __init__(
        self,
        counts: ArrayLike,
        edges: ArrayLike,
        *,
        variances: ArrayLike | None = None,
        gaps: ArrayLike | None = None,
    ) -> None:
        # Copies: a float64 tensor comes through as itself, and its owner may change it later.
        contents, limits = as_float64(counts, "counts").clone(), as_float64(edges, "edges").clone()
        _check_edges(limits)
        _check_contents(contents, limits, name="counts")
        unmeasured = None if gaps is None else _checked_gaps(gaps, len(limits) - 1)
        _check_not_empty(contents if unmeasured is None else contents.masked_fill(unmeasured, 0.0), name="counts")
        spread = None if variances is None else as_float64(variances, "variances").clone()
        if spread is not None:
            _check_variances(spread, contents)
        values = {"counts": contents, "edges": limits, "variances": spread, "gaps": unmeasured}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def n_bins(self) -> int:
        """Number of bins, those of gaps included."""
        return self.counts.shape[-1]

    @property
    def centers(self) -> Tensor:
        """Bin centres, shape `(n_bins,)`."""
        return (self.edges[1:] + self.edges[:-1]) / 2

    @property
    def widths(self) -> Tensor:
        """Bin widths, shape `(n_bins,)`."""
        return self.edges.diff()

    @property
    def total(self) -> Tensor:
        """Sum of the contents, without what stands in gaps: a scalar, or shape `(n_spectra,)`."""
        return self._measured(self.counts).sum(-1)

    @property
    def measured(self) -> Tensor:
        """True for bins that are in no gap, shape `(n_bins,)`."""
        return torch.ones(self.n_bins, dtype=torch.bool) if self.gaps is None else ~self.gaps

    @property
    def gap_intervals(self) -> list[tuple[float, float]]:
        """Lower and upper end of every gap, in rising order; neighbouring bins without data make one gap."""
        if self.gaps is None:
            return []
        # The first and the last bin are in no gap, so that every gap begins and ends at a change.
        ends = self.edges[1:-1][self.gaps[1:] != self.gaps[:-1]].tolist()
        return list(zip(ends[::2], ends[1::2], strict=True))

    @property
    def is_weighted(self) -> bool:
        """Whether variances were given that differ from the counts."""
        if self.variances is None:
            return False
        return not torch.equal(self._measured(self.variances), self._measured(self.counts))

    @property
    def is_batch(self) -> bool:
        """Whether this holds several spectra on the same edges."""
        return self.counts.ndim == 2

    def __repr__(self) -> str:
        many = f"{len(self.counts)} spectra, " if self.is_batch else ""
        kind = "weighted events" if self.is_weighted else "events"
        events = f"{self.total.sum().item():.6g} {kind}"
        n_gaps = len(self.gap_intervals)
        gaps = f"{n_gaps} gap{'s' if n_gaps > 1 else ''}, " if n_gaps else ""
        return f"Spectrum({many}{self.n_bins} bins, {gaps}{self.edges[0]:g} to {self.edges[-1]:g}, {events})"

    def _measured(self, values: Tensor) -> Tensor:
        """Returns values with 0 in gaps."""
        return values if self.gaps is None else values.masked_fill(self.gaps, 0.0)


def check_events(events: Tensor) -> None:
    """Refuses more events in a bin, of shape `(*, n_bins)`, than float64 can count.

    Raises:
        InputError: Names the first bin.
    """
    if events.max() > MOST_EVENTS:
        raise InputError(
            f"counts: {_first_bad(events > MOST_EVENTS, events)} came; beyond {MOST_EVENTS:g} events one more is none; "
            "give variances if these are weights, or smaller units"
        )


def _check_edges(edges: Tensor) -> None:
    if edges.ndim != 1:
        raise InputError(f"edges: one row of numbers is expected, shape {tuple(edges.shape)} came")
    if len(edges) < 3:
        raise InputError(f"edges: {max(len(edges) - 1, 0)} bin(s) came; a background needs at least 2 bins (3 edges)")
    if not edges.isfinite().all():
        raise InputError(f"edges: {_first_bad(~edges.isfinite(), edges)}; every edge must be finite")
    steps = edges.diff()
    if not (steps > 0).all():
        at = int((steps <= 0).nonzero()[0])
        raise InputError(
            f"edges: must increase strictly, but edge {at + 1} ({edges[at + 1]:g}) follows edge {at} ({edges[at]:g})"
        )
    # Centres are sums of two edges, and logarithms of widths are differences.
    if not (2 * edges.abs().amax()).isfinite() or not (steps.amax() / steps.amin()).isfinite():
        raise InputError(
            f"edges: {edges[0]:g} to {edges[-1]:g} with widths of {steps.amin():g} to {steps.amax():g} is beyond "
            "double precision; choose another unit or a shorter range"
        )


def _check_contents(contents: Tensor, edges: Tensor, *, name: str) -> None:
    if contents.ndim not in (1, 2):
        raise InputError(f"{name}: shape (n_bins,) or (n_spectra, n_bins) is expected, {tuple(contents.shape)} came")
    if contents.ndim == 2 and len(contents) == 0:
        raise InputError(f"{name}: no spectrum came (shape {tuple(contents.shape)})")
    if contents.shape[-1] != len(edges) - 1:
        raise InputError(
            f"{name}: {contents.shape[-1]} bins came, but {len(edges)} edges make {len(edges) - 1} bins; "
            "give one edge more than bins"
        )
    if not contents.isfinite().all():
        raise InputError(f"{name}: {_first_bad(~contents.isfinite(), contents)}; every content must be finite")
    if (contents < 0).any():
        raise InputError(
            f"{name}: {_first_bad(contents < 0, contents)}; contents must not be negative "
            "(merge bins where negative weights dominate)"
        )


def _check_not_empty(contents: Tensor, *, name: str) -> None:
    empty = contents.sum(-1) <= 0
    if empty.any():
        which = "" if contents.ndim == 1 else f" in spectrum {int(empty.nonzero()[0])}"
        raise InputError(f"{name}: every bin is zero{which}; there is nothing to fit")


def _checked_gaps(gaps: ArrayLike, n_bins: int) -> Tensor | None:
    given = gaps.detach().cpu().numpy() if isinstance(gaps, Tensor) else np.asarray(gaps)
    if given.dtype != bool or given.shape != (n_bins,):
        raise InputError(
            f"gaps: true or false for each of {n_bins} bins is expected, shape ({n_bins},); "
            f"an array of {given.dtype} and shape {given.shape} came"
        )
    if given[0] or given[-1]:
        raise InputError(
            f"gaps: the {'first' if given[0] else 'last'} bin cannot be one, a gap lies between bins with data; "
            "leave it out of counts and edges"
        )
    return torch.tensor(given) if given.any() else None


def _check_variances(variances: Tensor, contents: Tensor) -> None:
    if variances.shape != contents.shape:
        raise InputError(
            f"variances: shape {tuple(contents.shape)} is expected as for counts, {tuple(variances.shape)} came"
        )
    bad = ~variances.isfinite() | (variances < 0)
    if bad.any():
        raise InputError(f"variances: {_first_bad(bad, variances)}; every variance must be finite and not negative")


def _first_bad(bad: Tensor, values: Tensor) -> str:
    index = bad.nonzero()[0].tolist()
    where = f"bin {index[-1]}" if len(index) == 1 else f"spectrum {index[0]}, bin {index[1]}"
    return f"{values[tuple(index)].item():g} at {where}"
