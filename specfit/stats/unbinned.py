r"""Unbinned channels: density ratios of events in an extended likelihood.

With :math:`T_c` the expected events of sample c, :math:`R_{ci} = p_c(x_i)/p_\mathrm{ref}(x_i)` the density ratio of
event i and :math:`g` the interpolation `code4` of its variations,

.. math:: -\ln L = \sum_c T_c - \sum_i w_i \ln r_i, \qquad
    r_i = \sum_c T_c R_{ci} \prod_s g(\alpha_s; u_{cis}, d_{cis}).

The weights :math:`w_i` are the data: 1 for an observed event, the expected events that a simulated one stands for, or
how often it came in a toy. Events of weight zero cost nothing.

What to use when: `EventTable` holds the arrays, `EventTerm` is their part of a likelihood and goes through autograd
twice like any formula of torch, while value, gradient and Hessian come from one pass in chunks that fit into the cache.
Files are memory-mapped: what is not in a chunk is not in memory.

Source: ATLAS, arXiv:2412.01600 (density ratios of mixtures in a likelihood).
"""

from __future__ import annotations

__all__ = ["EventTable", "EventTerm", "Variation"]

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
        parts = _over_chunks(self.table.n_events, lambda piece: _Chunk(self.table, piece, phi, order=0).ratio)
        return torch.cat(parts)


def _apply(function: Any, *arguments: Any) -> Tensor:
    result: Tensor = function.apply(*arguments)
    return result


class _Part(NamedTuple):
    table: EventTable
    weights: Tensor


def _with_weight(table: EventTable, weights: Tensor) -> _Part:
    chosen = weights.nonzero()[:, 0]
    if len(chosen) > FULL_ENOUGH * table.n_events:
        return _Part(table, weights)
    return _Part(table.take(chosen.numpy()), weights[chosen])


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


class _Chunk:
    """Densities of the events of a slice, and their derivatives in the variations up to an order.

    Args:
        table: All events.
        piece: Which of them.
        phi: Yields and parameters.
        order: Highest derivative of the interpolations: 0, 1 or 2.
    """

    def __init__(self, table: EventTable, piece: slice, phi: Tensor, *, order: int) -> None:
        n = len(table.ratios)
        self.yields = phi[:n]
        self._ratios = _stack(table.ratios, piece)  # (n_samples, chunk)
        self._factors = [
            _Factor(variation, piece, alpha, n, order)
            for variation, alpha in zip(table.variations, phi[n:], strict=True)
        ]
        self.densities = self._with_factors({})
        self.ratio = self.yields @ self.densities

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

    def __init__(self, variation: Variation, piece: slice, alpha: Tensor, n_samples: int, order: int) -> None:
        self._samples, self._all = list(variation.samples), len(variation.samples) == n_samples
        up, down = _stack(variation.up, piece), _stack(variation.down, piece)
        if alpha.abs() <= 1:
            log_up, log_down = up.log(), down.log()
            terms = torch.stack([up, up * log_up, up * log_up**2, down, down * log_down, down * log_down**2])
            one, weights = _weights(alpha, order)
            # One matrix product gives the value and all derivatives of every sample: (order + 1, samples * chunk).
            self._values = (weights @ terms.flatten(1) + one).reshape(-1, *up.shape)
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


def _weights(alpha: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Weights of `code4` and of its derivatives: of the number one `(order + 1, 1)`, of the terms `(order + 1, 6)`."""
    with torch.enable_grad():
        leaf = alpha.detach().requires_grad_()
        rows = [torch.stack(code4_weights(leaf))]
        for _ in range(order):
            rows.append(torch.stack([_derivative(w, leaf) for w in rows[-1]]))
    weights = torch.stack(rows).detach()
    return weights[:, :1], weights[:, 1:]


def _derivative(value: Tensor, leaf: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(value, leaf, create_graph=True, materialize_grads=True)
    return slope


def _value_and_gradient(phi: Tensor, part: _Part) -> tuple[Tensor, Tensor]:
    at, n = phi.detach(), len(part.table.ratios)

    def of(piece: slice) -> Tensor:
        chunk = _Chunk(part.table, piece, at, order=1)
        weights = part.weights[piece]
        pull = weights / chunk.ratio
        slopes = [(at[:n] @ chunk.slope(s)) @ pull for s in range(len(part.table.variations))]
        return torch.cat([(weights @ chunk.ratio.log())[None], chunk.densities @ pull, *(s[None] for s in slopes)])

    total = -_sum(_over_chunks(len(part.weights), of), 1 + len(at))
    return total[0], total[1:]


def _hessian(phi: Tensor, part: _Part) -> Tensor:
    at, n, n_all = phi.detach(), len(part.table.ratios), len(phi)

    def of(piece: slice) -> Tensor:
        chunk = _Chunk(part.table, piece, at, order=2)
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
