r"""Unbinned channels: density ratios of events in an extended likelihood.

With :math:`T_c` the expected events of sample c, :math:`R_{ci} = p_c(x_i)/p_\mathrm{ref}(x_i)` the density ratio of
event i and :math:`g` the interpolation `code4` of its variations,

.. math:: -\ln L = \sum_c T_c - \sum_i w_i \ln r_i, \qquad
    r_i = \sum_c T_c R_{ci} \prod_s g(\alpha_s; u_{cis}, d_{cis}).

The weights :math:`w_i` are the data: 1 for an observed event, the expected events that a simulated one stands for, or
how often it came in a toy. Events of weight zero cost nothing.

The interpolation is of ratios, and at :math:`\alpha` other than 0 and :math:`\pm 1` their integral is 1 only nearly: a
variation that moves a density by a large part of its width biases what it is fitted to. `code4` applies to each event.

What to use when: `EventTable` holds the arrays, `EventTerm` is their part of a likelihood and goes through autograd
twice like any formula of torch, while value, gradient and Hessian come from one pass in chunks that fit into the cache.
Files are memory-mapped: what is not in a chunk is not in memory.

Source: ATLAS, arXiv:2412.01600 (density ratios of mixtures in a likelihood).
"""

from __future__ import annotations

__all__ = ["EventTable", "EventTerm", "Variation"]

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from specfit.stats.interpolation import code4_weights

Array = npt.NDArray[np.float64]
CHUNK = 16_384  # events; a few dozen such vectors fit into the cache of a core
FULL_ENOUGH = 0.7  # share of events with weight above which picking them out does not pay


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


class EventTerm:
    """The events of a channel as a function of yields and variations.

    The argument is `phi`, the yields of the samples and then the parameters of the variations, shape
    `(m, n_samples + n_variations)`.

    Args:
        table: Density ratios.
        weights: Weight of every event, at least 0, shape `(n_events,)`, or `(m, n_events)` for toys.
    """

    def __init__(self, table: EventTable, weights: Tensor) -> None:
        self.table = table
        self._parts = [_with_weight(table, row) for row in weights.reshape(-1, weights.shape[-1])]

    def __call__(self, phi: Tensor) -> Tensor:
        r"""Computes :math:`-\sum_i w_i \ln r_i` for each row of `phi`; shape `(m,)`."""
        parts = self._parts * len(phi) if len(self._parts) == 1 else self._parts
        return torch.stack([_apply(_EventSum, row, part) for row, part in zip(phi, parts, strict=True)])

    def ratio(self, phi: Tensor) -> Tensor:
        """Computes r of every event at one point `phi`, shape `(n_events,)`."""
        point = _Point.at(self.table, phi.detach(), order=0)
        return torch.cat(_over_chunks(self.table.n_events, lambda piece: _Chunk(self.table, piece, point).ratio))


def _apply(function: Any, *arguments: Any) -> Tensor:
    result: Tensor = function.apply(*arguments)
    return result


class _Part(NamedTuple):
    table: EventTable
    weights: Tensor
    last: dict[str, tuple[Tensor, Tensor, Tensor]]
    """Where value and gradient were computed last, and both: a minimiser asks for them one after the other."""


def _with_weight(table: EventTable, weights: Tensor) -> _Part:
    chosen = weights.nonzero()[:, 0]
    if len(chosen) > FULL_ENOUGH * table.n_events:
        return _Part(table, weights, {})
    return _Part(table.take(chosen.numpy()), weights[chosen], {})


class _EventSum(torch.autograd.Function):
    """The sum over events; its derivatives are computed, not traced."""

    @staticmethod
    def forward(ctx: Any, phi: Tensor, part: _Part) -> Tensor:
        value, gradient = _value_and_gradient(phi, part)
        ctx.save_for_backward(phi, gradient)
        ctx.part = part
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        phi, gradient = ctx.saved_tensors
        return grad * _apply(_EventGradient, phi, gradient, ctx.part), None


class _EventGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, phi: Tensor, gradient: Tensor, part: _Part) -> Tensor:
        ctx.save_for_backward(phi)
        ctx.part, ctx.hessian = part, None
        return gradient.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        if ctx.hessian is None:  # the same for every row of a Hessian
            ctx.hessian = _hessian(ctx.saved_tensors[0], ctx.part)
        return ctx.hessian @ grad, None, None


class _Point(NamedTuple):
    """What all chunks share at one point: yields, parameters, and the polynomials of the interpolations there."""

    yields: Tensor
    alphas: Tensor
    weights: list[tuple[Tensor, Tensor] | None]
    """Of a variation inside its polynomial: see `_weights`."""
    order: int

    @classmethod
    def at(cls, table: EventTable, phi: Tensor, *, order: int) -> _Point:
        yields, alphas = phi[: len(table.ratios)], phi[len(table.ratios) :]
        return cls(yields, alphas, [_weights(a, order) if a.abs() <= 1 else None for a in alphas], order)


class _Chunk:
    """Densities of the events of a slice, and their derivatives in the variations.

    Args:
        table: All events.
        piece: Which of them.
        point: Where, and up to which derivative.
    """

    def __init__(self, table: EventTable, piece: slice, point: _Point) -> None:
        self._ratios = _stack(table.ratios, piece)  # (n_samples, chunk)
        self._factors = [
            _Factor(variation, piece, alpha, weights, len(table.ratios), point.order)
            for variation, alpha, weights in zip(table.variations, point.alphas, point.weights, strict=True)
        ]
        self.densities = self._with_factors({})
        self.ratio = point.yields @ self.densities

    def slope(self, *variations: int) -> Tensor:
        """Derivative of the densities in one variation, or in two, shape `(n_samples, chunk)`; 0 where none moves."""
        return self._with_factors({s: variations.count(s) for s in variations})

    def _with_factors(self, orders: dict[int, int]) -> Tensor:
        product = self._ratios
        for s, factor in enumerate(self._factors):
            product = factor.times(product, orders.get(s, 0))
        return product


class _Factor:
    """The interpolation of one variation on a slice of events, with its derivatives."""

    def __init__(
        self,
        variation: Variation,
        piece: slice,
        alpha: Tensor,
        weights: tuple[Tensor, Tensor] | None,
        n_samples: int,
        order: int,
    ) -> None:
        self._samples, self._all = list(variation.samples), len(variation.samples) == n_samples
        up, down = _stack(variation.up, piece), _stack(variation.down, piece)
        if weights is not None:
            terms = _memory.get(6, *up.shape)
            for first, ratio in ((0, up), (3, down)):
                log = ratio.log()
                terms[first] = ratio
                torch.mul(ratio, log, out=terms[first + 1])
                torch.mul(terms[first + 1], log, out=terms[first + 2])
            # One matrix product gives the value and all derivatives of every sample: (order + 1, samples * chunk).
            self._values = torch.addmm(weights[0], weights[1], terms.flatten(1)).reshape(-1, *up.shape)
        else:
            log = up.log() if alpha > 0 else -down.log()
            value = torch.exp(alpha * log)
            self._values = torch.stack([value * log**k for k in range(order + 1)])

    def times(self, product: Tensor, order: int) -> Tensor:
        """Multiplies by the derivative of this order, for the samples that do not move by 1 or 0."""
        if self._all:
            return product * self._values[order]
        moved = product.clone() if order == 0 else torch.zeros_like(product)
        moved[self._samples] = product[self._samples] * self._values[order]
        return moved


class _Memory(threading.local):
    """Memory that a thread uses again and again: to take it anew for every chunk costs more than to fill it."""

    def __init__(self) -> None:
        self._held = torch.empty(0, dtype=torch.float64)

    def get(self, *shape: int) -> Tensor:
        """Returns memory of this shape, with whatever is in it."""
        if self._held.shape != shape:
            self._held = torch.empty(shape, dtype=torch.float64)
        return self._held


_memory = _Memory()


def _weights(alpha: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Weights of `code4` and of its derivatives: of the number one `(order + 1, 1)`, of the terms `(order + 1, 6)`."""
    with torch.enable_grad():
        leaf = alpha.detach().repeat(7).requires_grad_()  # one copy for each weight: all slopes in one pass
        rows = [torch.stack(code4_weights(leaf)).diagonal()]
        for _ in range(order):
            (slope,) = torch.autograd.grad(rows[-1].sum(), leaf, create_graph=True)
            rows.append(slope)
    weights = torch.stack(rows).detach()
    return weights[:, :1], weights[:, 1:].contiguous()


def _value_and_gradient(phi: Tensor, part: _Part) -> tuple[Tensor, Tensor]:
    at, n = phi.detach().clone(), len(part.table.ratios)
    if "last" in part.last and torch.equal(part.last["last"][0], at):
        return part.last["last"][1:]
    point = _Point.at(part.table, at, order=1)

    def of(piece: slice) -> Tensor:
        chunk = _Chunk(part.table, piece, point)
        weights = part.weights[piece]
        pull = weights / chunk.ratio
        slopes = [(at[:n] @ chunk.slope(s)) @ pull for s in range(len(part.table.variations))]
        return torch.cat([(weights @ chunk.ratio.log())[None], chunk.densities @ pull, *(s[None] for s in slopes)])

    total = -_sum(_over_chunks(len(part.weights), of), 1 + len(at))
    part.last["last"] = (at, total[0], total[1:])
    return total[0], total[1:]


def _hessian(phi: Tensor, part: _Part) -> Tensor:
    at, n, n_all = phi.detach(), len(part.table.ratios), len(phi)
    point = _Point.at(part.table, at, order=2)

    def of(piece: slice) -> Tensor:
        chunk = _Chunk(part.table, piece, point)
        pull = part.weights[piece] / chunk.ratio
        in_variation = [chunk.slope(s) for s in range(n_all - n)]
        slopes = torch.cat([chunk.densities, *((at[:n] @ slope)[None] for slope in in_variation)])
        curvature = at.new_zeros(n_all, n_all)
        for s, slope in enumerate(in_variation):
            curvature[:n, n + s] = curvature[n + s, :n] = slope @ pull
            for t in range(s + 1):
                both = (at[:n] @ chunk.slope(s, t)) @ pull
                curvature[n + s, n + t] = curvature[n + t, n + s] = both
        return curvature - (slopes * (pull / chunk.ratio)) @ slopes.T

    return -_sum(_over_chunks(len(part.weights), of), n_all, n_all)


def _over_chunks(n_events: int, of: Callable[[slice], Tensor]) -> list[Tensor]:
    pieces = [slice(start, min(start + CHUNK, n_events)) for start in range(0, n_events, CHUNK)]

    def quietly(piece: slice) -> Tensor:
        with torch.no_grad():
            return of(piece)

    n_threads = min(torch.get_num_threads(), len(pieces))
    if n_threads < 2:
        return [quietly(piece) for piece in pieces]
    with ThreadPoolExecutor(n_threads) as pool:
        return list(pool.map(quietly, pieces))


def _sum(parts: Sequence[Tensor], *shape: int) -> Tensor:
    return torch.stack(list(parts)).sum(0) if parts else torch.zeros(*shape, dtype=torch.float64)


def _stack(arrays: Sequence[npt.NDArray[Any]], piece: slice) -> Tensor:
    """Brings a slice of every array into memory, shape `(n_arrays, chunk)`."""
    return torch.from_numpy(np.stack([array[piece] for array in arrays]).astype(np.float64, copy=False))
