r"""Events of an unbinned channel, chunk by chunk: density ratios, their variations, and the sums over them.

What to use when: `EventTable` holds the arrays, `sum_over` sums :math:`w_i \ln r_i` and its derivatives over a piece of
them, at many points in one pass. A chunk fits into the cache, and each logarithm of a variation is taken once for all
points; points that differ in their yields only share their densities.

Conventions: as in `unbinned`. Arrays may be of any type of number, in memory or mapped; all is computed in float64.
"""

from __future__ import annotations

__all__ = ["CHUNK", "EventTable", "Points", "Variation", "pieces", "places", "ratios", "sum_over"]

import threading
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from specfit.stats.interpolation import code4_slopes

Key = TypeVar("Key", bound=Hashable)
CHUNK = 16_384  # events; a few dozen such vectors fit into the cache of a core
# Weights of `code4` in the order of the terms of a chunk: up and down, for each power of the logarithm.
_TERMS = (1, 4, 2, 5, 3, 6)
MOST_PIECES = 64  # of a table, each summed by one thread


class Variation(NamedTuple):
    """Ratios to nominal of every event for one parameter, for the samples that it moves."""

    samples: Sequence[int]
    up: Sequence[npt.NDArray[Any]]
    down: Sequence[npt.NDArray[Any]]


class EventTable(NamedTuple):
    """Arrays of one channel, all in the same order of events, in memory or mapped."""

    ratios: Sequence[npt.NDArray[Any]]
    variations: Sequence[Variation]

    @property
    def n_events(self) -> int:
        """Number of events."""
        return len(self.ratios[0])

    def take(self, chosen: npt.NDArray[np.int64]) -> EventTable:
        """Copies the chosen events into memory."""
        return EventTable(
            [ratio[chosen] for ratio in self.ratios],
            [Variation(v.samples, [a[chosen] for a in v.up], [a[chosen] for a in v.down]) for v in self.variations],
        )


class Points:
    """What all chunks share: the points, and the polynomials of the interpolations there.

    Args:
        phi: Shape `(m, k)`.
        n_samples: How many of the k numbers are yields.
        order: Derivatives in the variations up to this one.
    """

    def __init__(self, phi: Tensor, n_samples: int, *, order: int) -> None:
        self.yields, alphas = phi[:, :n_samples], phi[:, n_samples:]
        self.order, self.alphas = order, alphas.tolist()
        weights = code4_slopes(alphas, order)  # (m, n_variations, order + 1, 7)
        self.polynomials = [[(w[:, :1], w[:, _TERMS]) for w in row] for row in weights]
        # Points that differ in their yields only have the same densities.
        self.groups = list(places([tuple(row) for row in self.alphas]).values())


class _Densities(NamedTuple):
    """Densities of the events of a chunk with their derivatives in the variations."""

    nominal: Tensor
    """Shape `(n_samples, n)`."""
    slopes: Tensor
    """Shape `(n_variations, n_samples, n)`."""
    second: list[tuple[int, int, Tensor]]
    """Of every pair of variations, in one order of the two, `(n_samples, n)`; empty where nobody asked."""


class _Chunk:
    """A slice of the events in memory, valid until its thread makes the next one.

    Args:
        table: All events.
        chunk: Which of them.
        keep: Whether to keep what is the same at every point, for the next of several.
    """

    def __init__(self, table: EventTable, chunk: slice, *, keep: bool) -> None:
        self._variations, self._chunk, self._keep = table.variations, chunk, keep
        self._ratios = _memory.get("ratios", len(table.ratios), chunk.stop - chunk.start)
        _read(table.ratios, chunk, into=self._ratios)
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def densities(self, points: Points, row: int) -> _Densities:
        """Computes the densities at one of the points, with derivatives up to the order of the points."""
        alphas = points.alphas[row]
        factors = [self._factor(s, alphas[s], *points.polynomials[row][s]) for s in range(len(alphas))]
        before = [self._ratios]
        for factor in factors:
            before.append(before[-1] * factor[0])
        slopes = _slopes(before, factors) if points.order else []
        pairs = [(s, t) for s in range(len(factors)) for t in range(s + 1)] if points.order > 1 else []
        second = [(s, t, self._derivative(factors, s, t)) for s, t in pairs]
        return _Densities(before[-1], torch.stack(slopes) if slopes else before[-1][None, :0], second)

    def _factor(self, s: int, alpha: float, one: Tensor, weights: Tensor) -> Sequence[Tensor]:
        """Computes a factor and its derivatives up to the order of the weights, each `(n_samples, n)`."""
        samples, order = list(self._variations[s].samples), len(one) - 1
        terms, log = self._kept[s] if s in self._kept else self._terms(s)
        if abs(alpha) <= 1:
            # One matrix product gives the value and all derivatives of every sample: (order + 1, samples * n).
            values = torch.addmm(one, weights, terms).reshape(order + 1, len(samples), -1)
        else:
            slope = log[0] if alpha > 0 else -log[1]
            value = torch.exp(alpha * slope)
            values = torch.stack([value * slope**k for k in range(order + 1)])
        if len(samples) == len(self._ratios):
            return values.unbind()
        everywhere = values.new_zeros(order + 1, *self._ratios.shape)
        everywhere[0] = 1.0  # the samples that do not move
        everywhere[:, samples] = values
        return everywhere.unbind()

    def _terms(self, s: int) -> tuple[Tensor, Tensor]:
        """Computes the terms in which `code4` is linear, `(6, samples * n)`, and the logarithms `(2, samples, n)`."""
        variation, place = self._variations[s], s if self._keep else 0  # one place stays in the cache
        shape = 2, len(variation.samples), self._chunk.stop - self._chunk.start  # up and down
        terms, log = _memory.get(("terms", place), 3, *shape), _memory.get(("log", place), *shape)
        for side, arrays in zip(terms[0], (variation.up, variation.down), strict=True):
            _read(arrays, self._chunk, into=side)
        torch.log(terms[0], out=log)
        torch.mul(terms[0], log, out=terms[1])
        torch.mul(terms[1], log, out=terms[2])
        if self._keep:
            self._kept[s] = terms.reshape(6, -1), log
        return terms.reshape(6, -1), log

    def _derivative(self, factors: Sequence[Sequence[Tensor]], *variations: int) -> Tensor:
        product = self._ratios
        for s, factor in enumerate(factors):
            product = product * factor[variations.count(s)]
        return product


def _slopes(before: Sequence[Tensor], factors: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Replaces each factor in turn by its derivative; no division, since a factor may be 0."""
    slopes, after = [], None
    for product, factor in zip(reversed(before[:-1]), reversed(factors), strict=True):
        slope = product * factor[1]
        slopes.append(slope if after is None else slope * after)
        after = factor[0] if after is None else after * factor[0]
    return slopes[::-1]


class _Memory(threading.local):
    """Memory that a thread uses again and again: to take it anew for every chunk costs more than to fill it."""

    def __init__(self) -> None:
        self._held: dict[Hashable, Tensor] = {}

    def get(self, use: Hashable, *shape: int) -> Tensor:
        """Returns memory of this shape, with whatever is in it."""
        held = self._held.get(use)
        if held is None or held.shape != shape:
            held = self._held[use] = torch.empty(shape, dtype=torch.float64)
        return held


_memory = _Memory()


def sum_over(table: EventTable, weights: Tensor, points: Points, piece: slice) -> Tensor:
    """Sums over a piece of the events at every point.

    Args:
        table: All events.
        weights: Their weights, shape `(n_events,)`.
        points: Points of k numbers each, of order 1 or 2.
        piece: Which events.

    Returns:
        The negative sum, its gradient and, at order 2, its Hessian: shape `(m, 1 + k)` or `(m, 1 + k + k^2)`.
    """
    k = points.yields.shape[1] + len(table.variations)
    total = points.yields.new_zeros(len(points.yields), 1 + k + (k * k if points.order > 1 else 0))
    for slice_ in _chunks(piece):
        chunk = _Chunk(table, slice_, keep=len(points.groups) > 1)
        for rows in points.groups:
            densities = chunk.densities(points, rows[0])
            for row in rows:
                _add_sums(points.yields[row], densities, weights[slice_], total[row])
    return total


def ratios(table: EventTable, points: Points, piece: slice) -> Tensor:
    """Computes r of every event of a piece at the first of the points, shape `(n,)`."""
    chunks = (_Chunk(table, chunk, keep=False) for chunk in _chunks(piece))
    return torch.cat([points.yields[0] @ chunk.densities(points, 0).nominal for chunk in chunks])


def _add_sums(yields: Tensor, densities: _Densities, weights: Tensor, total: Tensor) -> None:
    """Adds value, gradient and, where there is room for it, the Hessian at one point to `total`."""
    ratio = yields @ densities.nominal
    slopes = torch.cat([densities.nominal, yields @ densities.slopes])  # of r, (k, n)
    pull, k = weights / ratio, len(slopes)
    total[0] -= weights @ ratio.log()
    total[1 : 1 + k] -= slopes @ pull
    if len(total) == 1 + k:
        return
    hessian, n = total[1 + k :].view(k, k), len(yields)
    hessian.addmm_(slopes * (pull / ratio), slopes.T)
    mixed = densities.slopes @ pull  # (n_variations, n_samples); in the yields alone, r is linear
    hessian[n:, :n] -= mixed
    hessian[:n, n:] -= mixed.T
    for s, t, second in densities.second:
        curvature = (yields @ second) @ pull
        for i, j in {(s, t), (t, s)}:
            hessian[n + i, n + j] -= curvature


def places(keys: Sequence[Key]) -> dict[Key, list[int]]:
    """Finds where each key is."""
    places: dict[Key, list[int]] = {}
    for i, key in enumerate(keys):
        places.setdefault(key, []).append(i)
    return places


def pieces(n_events: int) -> list[slice]:
    """Cuts a table into pieces of whole chunks; the same for any number of threads."""
    n_chunks = -(-n_events // CHUNK)
    size = CHUNK * -(-n_chunks // MOST_PIECES)
    return [slice(start, min(start + size, n_events)) for start in range(0, n_events, size)] if n_events else []


def _chunks(piece: slice) -> Iterator[slice]:
    for start in range(piece.start, piece.stop, CHUNK):
        yield slice(start, min(start + CHUNK, piece.stop))


def _read(arrays: Sequence[npt.NDArray[Any]], chunk: slice, *, into: Tensor) -> None:
    """Brings a slice of every array into memory of shape `(n_arrays, n)`."""
    if arrays:
        np.stack([array[chunk] for array in arrays], out=into.numpy())
