r"""Sums over sorted events around boundaries: exact where steps are hard, to 1e-8 where they are soft.

A soft step of steepness :math:`k` at :math:`b` asks for :math:`R(b) = \sum_i w_i \sigma(k (x_i - b))`. Only events
within `REACH` :math:`/ k` of the boundary need a sigmoid; to the right of them a cumulative sum is the answer. Within,
events are summed in cells of width :math:`h` with :math:`k h \le 1/2`: about the centre :math:`c` of a cell the sigmoid
is its Taylor series,

.. math:: \sum_{i \in \text{cell}} w_i \sigma(k (x_i - b))
          = \sum_{p < 8} \frac{(k h)^p}{p!} \sigma^{(p)}(k (c - b)) M_p,

with moments :math:`M_p = \sum_i w_i ((x_i - c) / h)^p`, so the price of a boundary does not depend on the number of
events.
Cells of twice the width inherit their moments.
Where boundaries are so steep that they would need finer cells than `FINEST_LEVEL`, or there are few events in all,
those around the boundaries are summed themselves.
"""

from __future__ import annotations

__all__ = ["CellSums"]

import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Beyond so many 1/k the sigmoid is 0 or 1 to 1e-11.
REACH = 25.0
ORDERS = 8
LARGEST_STEP = 1 / 2
FINEST_LEVEL = 16
"""Cells on the range of the events, in powers of two."""
# A minibatch of so few events is used once: to arrange it in cells would take longer than to sum it.
FEW_EVENTS = 30_000


class Level(NamedTuple):
    """Cells of one width with an empty one on either side."""

    low: float
    width: float
    moments: Tensor
    """Shape `(n_cells + 2, ORDERS, n_columns)`."""
    above: Tensor
    """Sum of each column over this cell and all above, shape `(n_cells + 3, n_columns)`."""


@dataclass(frozen=True, eq=False)
class CellSums:
    """Events of one discriminant, sorted, with their columns of weights.

    Args:
        x: Sorted values, shape `(n,)`.
        columns: Weights in the same order, shape `(n_columns, n)`.
        tails: Sum of each column from an event to the last, with a final 0, shape `(n_columns, n + 1)`.
        levels: Cells that were needed so far, by the logarithm of their number.
    """

    x: Tensor
    columns: Tensor
    tails: Tensor
    levels: dict[int, Level] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, x: Tensor, columns: Tensor) -> CellSums:
        """Sorts events; `x` of shape `(n,)`, `columns` of shape `(n_columns, n)`."""
        x, order = x.sort()
        columns = columns[:, order]
        tails = columns.new_zeros(len(columns), len(x) + 1)
        tails[:, :-1] = columns.flip(1).cumsum(1).flip(1)
        return cls(x, columns, tails)

    def right_of(self, boundaries: Tensor) -> Tensor:
        """Sums the events at or above each boundary, shape `(n_columns, n_boundaries)`."""
        return self.tails[:, torch.searchsorted(self.x, boundaries)]

    def softly_right_of(self, boundaries: Tensor, steepness: float) -> Tensor:
        r"""Sums :math:`w \sigma(k (x - b))` for each boundary, shape `(n_columns, n_boundaries)`; has a gradient."""
        answer: Tensor = _SoftlyRight.apply(boundaries, steepness, self)  # type: ignore[no-untyped-call]
        return answer

    def value_and_slope(self, b: Tensor, k: float) -> tuple[Tensor, Tensor]:
        """Computes the sums and their derivatives in b, both of shape `(n_columns, n_boundaries)`."""
        if len(self.x) == 0:
            return (b.new_zeros(len(self.columns), len(b)),) * 2
        span = (self.x[-1] - self.x[0]).item()
        if len(self.x) < FEW_EVENTS or not span > 0 or k * span > LARGEST_STEP * 2**FINEST_LEVEL:
            return self._from_events(b, k)
        level = math.ceil(math.log2(max(k * span / LARGEST_STEP, 1)))
        return self._from_cells(b, k, self._level(level))

    def _from_events(self, b: Tensor, k: float) -> tuple[Tensor, Tensor]:
        first, last = torch.searchsorted(self.x, torch.stack((b - REACH / k, b + REACH / k)))
        n = last - first
        which = torch.repeat_interleave(n)  # the boundary of each event that is near one
        rows = torch.arange(len(which), device=b.device) - (torch.cumsum(n, 0) - n - first)[which]
        s = torch.sigmoid(k * (self.x[rows] - b[which]))
        w = self.columns[:, rows]
        value = self.tails[:, last].index_add(1, which, w * s)
        return value, torch.zeros_like(value).index_add(1, which, w * (s * (s - 1) * k))

    def _from_cells(self, b: Tensor, k: float, level: Level) -> tuple[Tensor, Tensor]:
        step, n_cells = k * level.width, len(level.moments) - 2
        half = math.ceil(REACH / step) + 1
        offset = torch.arange(-half, half + 1, device=b.device)
        place = (b - level.low) / level.width
        cell = place.floor()
        z = step * ((offset + 0.5) - (place - cell)[:, None])  # (m, window)
        # A window that sticks out repeats the empty cells at both ends.
        index = (cell.long()[:, None] + offset + 1).clamp(0, n_cells + 1)
        powers = torch.sigmoid(z)[..., None].expand(-1, -1, ORDERS + 1).cumprod(-1)
        series = (powers @ _expansion(step, b.device)).reshape(*z.shape, 2, ORDERS)  # (m, window, 2, ORDERS)
        sums = series.transpose(1, 2).flatten(2) @ level.moments[index].flatten(1, 2)  # (m, 2, n_columns)
        return (level.above[index[:, -1] + 1] + sums[:, 0]).T, -k * sums[:, 1].T

    def _level(self, number: int) -> Level:
        """Returns the cells of a level, kept for the next call."""
        if number not in self.levels:
            self.levels[number] = self._finest() if number == FINEST_LEVEL else _merged(self._level(number + 1))
        return self.levels[number]

    def _finest(self) -> Level:
        n_cells, low = 2**FINEST_LEVEL, self.x[0].item()
        width = (self.x[-1].item() - low) * (1 + 1e-12) / n_cells
        place = (self.x - low) / width
        cell = place.floor().clamp(max=n_cells - 1)
        t = place - cell - 0.5
        moments = self.x.new_zeros(n_cells + 2, ORDERS, len(self.columns))
        edges = torch.searchsorted(cell, torch.arange(n_cells + 1, device=cell.device, dtype=cell.dtype))
        for column, weights in enumerate(self.columns):
            product = weights
            for p in range(ORDERS):
                sums = torch.nn.functional.pad(product.cumsum(0), (1, 0))
                moments[1:-1, p, column] = sums[edges].diff()
                product = product * t
        return _level_of(low, width, moments)


class _SoftlyRight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, boundaries: Tensor, steepness: float, sums: CellSums) -> Tensor:
        value, slope = sums.value_and_slope(boundaries, steepness)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return (gradient * slope).sum(0), None, None


def _level_of(low: float, width: float, moments: Tensor) -> Level:
    above = moments[:, 0].flip(0).cumsum(0).flip(0)
    return Level(low, width, moments, torch.cat((above, torch.zeros_like(above[:1]))))


def _merged(fine: Level) -> Level:
    """Joins cells in pairs: seen from the new centre, a child lies a quarter width aside and is half as wide."""
    left, right = (fine.moments.new_tensor(_shift(side)) for side in (-0.25, 0.25))
    inside = fine.moments[1:-1]
    merged = torch.zeros_like(fine.moments[: len(inside) // 2 + 2])
    merged[1:-1] = left @ inside[0::2] + right @ inside[1::2]
    return _level_of(fine.low, 2 * fine.width, merged)


@cache
def _shift(side: float) -> list[list[float]]:
    """Computes what turns moments of t into moments of t / 2 + side."""
    return [
        [math.comb(p, q) * 0.5**q * side ** (p - q) if q <= p else 0.0 for q in range(ORDERS)] for p in range(ORDERS)
    ]


def _expansion(step: float, device: torch.device) -> Tensor:
    """Returns what turns powers of s = sigmoid(z) into the terms of both series, shape `(ORDERS + 1, 2 ORDERS)`."""
    scale = [step**p / math.factorial(p) for p in range(ORDERS)]
    return _derivatives(device) * torch.tensor(scale * 2, dtype=torch.float64, device=device)


@cache
def _derivatives(device: torch.device) -> Tensor:
    """Returns the coefficients of s, s^2 ... in sigma, sigma' ..., and beside them those of the derivative.

    From ds/dz = s - s^2 the derivative of s^q is q s^q - q s^(q + 1).
    """
    rows = [[1.0] + [0.0] * ORDERS]
    for _ in range(ORDERS):
        before = rows[-1]
        rows.append([(q + 1) * before[q] - q * (before[q - 1] if q else 0.0) for q in range(ORDERS + 1)])
    return torch.tensor([*rows[:-1], *rows[1:]], dtype=torch.float64, device=device).T.contiguous()
