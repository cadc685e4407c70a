r"""Unbinned channels: density ratios of events in an extended likelihood.

With :math:`T_c` the expected events of sample c, :math:`R_{ci} = p_c(x_i)/p_\mathrm{ref}(x_i)` the density ratio of
event i and :math:`g` the interpolation `code4` of its variations,

.. math:: -\ln L = \sum_c T_c - \sum_i w_i \ln r_i, \qquad
    r_i = \sum_c T_c R_{ci} \prod_s g(\alpha_s; u_{cis}, d_{cis}).

The weights :math:`w_i` are the data: 1 for an observed event, the expected events that a simulated one stands for, or
how often it came in a toy. Events of weight zero cost nothing.

The interpolation is of ratios, and at :math:`\alpha` other than 0 and :math:`\pm 1` their integral is 1 only nearly: a
variation that moves a density by a large part of its width biases what it is fitted to. `code4` applies to each event.

What to use when: an `EventTable` holds the arrays, `EventTerm` is their part of a likelihood. Called, it goes through
autograd twice like any formula of torch; value, gradient and Hessian at many points come from one pass over the events
in chunks that fit into the cache, each logarithm taken once for all points. Files are memory-mapped: what is not in a
chunk is not in memory. Whatever their type, all is computed in float64, and the answer does not depend on the number of
threads.

Source: ATLAS, arXiv:2412.01600 (density ratios of mixtures in a likelihood).
"""

from __future__ import annotations

__all__ = ["EventTerm"]

from typing import Any, NamedTuple

import torch
from torch import Tensor

from specfit.parallel import on_all_cores
from specfit.stats.event_chunks import EventTable, Points, pieces, places, ratios, sum_over

FULL_ENOUGH = 0.7  # share of events with weight above which picking them out does not pay


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
        # What was computed last: a minimiser asks for value, gradient and Hessian of a point one after the other.
        self._known: dict[tuple[int, bytes], Tensor] = {}
        self._curved = False

    def __call__(self, phi: Tensor) -> Tensor:
        r"""Computes :math:`-\sum_i w_i \ln r_i` for each row of `phi`; shape `(m,)`."""
        return _apply(_EventSum, phi, self)

    def gradient(self, phi: Tensor) -> Tensor:
        """Computes the first derivatives for each row of `phi`, shape `(m, k)`; they carry no gradients."""
        return self.sums(phi)[:, 1:]

    def hessian(self, phi: Tensor) -> Tensor:
        """Computes the second derivatives for each row of `phi`, shape `(m, k, k)`; they carry no gradients."""
        self._curved = True  # who asks at one point asks at the next
        m, k = phi.shape
        return self._sums(phi)[:, 1 + k :].reshape(m, k, k)

    def sums(self, phi: Tensor) -> Tensor:
        """Computes value and first derivatives for each row of `phi`, shape `(m, 1 + k)`; they carry no gradients."""
        return self._sums(phi)[:, : 1 + phi.shape[1]]

    def ratio(self, phi: Tensor) -> Tensor:
        """Computes r of every event at one point `phi`, shape `(n_events,)`."""
        points = Points(phi.detach()[None], len(self.table.ratios), order=0)
        return torch.cat(on_all_cores(lambda piece: ratios(self.table, points, piece), pieces(self.table.n_events)))

    def _sums(self, phi: Tensor) -> Tensor:
        """Value, gradient and, once somebody asked for it, Hessian; shape `(m, 1 + k)` or `(m, 1 + k + k^2)`."""
        at, (m, k) = phi.detach().contiguous(), phi.shape
        curved = self._curved
        size = 1 + k + (k * k if curved else 0)
        keys = [(i % len(self._parts), row.tobytes()) for i, row in enumerate(at.numpy())]
        last = self._known
        known = {key: last[key] for key in keys if key in last and len(last[key]) == size}
        missing = {key: i for i, key in enumerate(keys) if key not in known}
        found, work = at.new_zeros(len(missing), size), []
        points, parts = at[list(missing.values())], [part for part, _ in missing]
        for number, rows in places(parts).items():
            part = self._parts[number]
            of_part = Points(points[rows], len(part.table.ratios), order=2 if curved else 1)
            work += [(rows, part.table, part.weights, of_part, piece) for piece in pieces(len(part.weights))]
        for (rows, *_), sums in zip(work, on_all_cores(lambda task: sum_over(*task[1:]), work), strict=True):
            found[rows] += sums
        known |= dict(zip(missing, found, strict=True))
        self._known = known
        return torch.stack([known[key] for key in keys]).reshape(m, size)


def _apply(function: Any, *arguments: Any) -> Tensor:
    result: Tensor = function.apply(*arguments)
    return result


class _EventSum(torch.autograd.Function):
    """The sum over events; its derivatives are computed, not traced."""

    @staticmethod
    def forward(ctx: Any, phi: Tensor, term: EventTerm) -> Tensor:
        sums = term.sums(phi)
        ctx.save_for_backward(phi, sums[:, 1:])
        ctx.term = term
        return sums[:, 0].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        phi, gradient = ctx.saved_tensors
        return grad[:, None] * _apply(_EventGradient, phi, gradient, ctx.term), None


class _EventGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, phi: Tensor, gradient: Tensor, term: EventTerm) -> Tensor:
        ctx.save_for_backward(phi)
        ctx.term = term
        return gradient.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        hessian = ctx.term.hessian(ctx.saved_tensors[0])
        return (hessian @ grad[..., None])[..., 0], None, None


class _Part(NamedTuple):
    """Events of one set of data."""

    table: EventTable
    weights: Tensor


def _with_weight(table: EventTable, weights: Tensor) -> _Part:
    chosen = weights.nonzero()[:, 0]
    if len(chosen) > FULL_ENOUGH * table.n_events:
        return _Part(table, weights)
    return _Part(table.take(chosen.numpy()), weights[chosen])
