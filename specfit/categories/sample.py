"""A sample: events arranged by the part they play, so that all sums a significance needs come from one pass.

Signals come first, each in its own slice, then the background whose yield is scaled per category, then the rest. Every
sum is a column: each signal's weights, then weights and squared weights of both kinds of background.
"""

from __future__ import annotations

__all__ = ["Sample", "Yields"]

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from specfit.categories.cells import CellSums
from specfit.categories.events import Events
from specfit.categories.quadratic import QuadraticSums
from specfit.errors import InputError


class Yields(NamedTuple):
    """What each category holds, in expected events, float64."""

    signal: Tensor
    """Each signal, shape `(n_signals, n_categories)`."""
    background: Tensor
    """All that is no signal, shape `(n_categories,)`."""
    variance: Tensor
    """Squared statistical uncertainty of the simulated background, shape `(n_categories,)`."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Events in the order of their roles.

    Args:
        features: Shape `(n, n_features)`.
        weights: Shape `(n,)`.
        signals: Names of the signals.
        ends: Where the events of each signal, of the scaled and of the other background end.
        mass: Shape `(n,)`, where the events have one.
    """

    features: Tensor
    weights: Tensor
    signals: tuple[str, ...]
    ends: tuple[int, ...]
    mass: Tensor | None = None

    @classmethod
    def of(cls, events: Events, *, signals: Sequence[str], scaled: Sequence[str] | None = None) -> Sample:
        """Arranges events.

        Args:
            events: What to arrange.
            signals: Processes that are looked for; all others are background.
            scaled: Backgrounds whose yield per category is multiplied by a factor; None means all of them.

        Raises:
            InputError: No signal, or a name that is no process.
        """
        if not signals or len(set(signals)) < len(signals):
            raise InputError(f"signals: names of one or more different processes are expected, {list(signals)} came")
        is_signal = events.of_process(signals)
        is_scaled = ~is_signal if scaled is None else events.of_process(scaled) & ~is_signal
        roles = [events.of_process([name]) for name in signals] + [is_scaled, ~is_signal & ~is_scaled]
        order = [role.nonzero()[:, 0] for role in roles]
        ends = torch.tensor([len(rows) for rows in order]).cumsum(0).tolist()
        rows = torch.cat(order)
        mass = None if events.mass is None else events.mass[rows]
        return cls(events.features[rows], events.weights[rows], tuple(signals), tuple(ends), mass)

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def slices(self) -> list[slice]:
        """The events of each signal, of the scaled and of the other background."""
        return [slice(first, last) for first, last in zip((0, *self.ends[:-1]), self.ends, strict=True)]

    @property
    def columns(self) -> list[tuple[slice, int]]:
        """For each sum its events and the power of their weights."""
        *signals, scaled, other = self.slices
        parts = [*((part, 1) for part in signals), (scaled, 1), (scaled, 2)]
        return parts if other.start == other.stop else [*parts, (other, 1), (other, 2)]

    @cached_property
    def table(self) -> Tensor:
        """Every column as a row of numbers, zero where an event plays no part in it, shape `(n_columns, n)`."""
        rows = self.weights.new_zeros(len(self.columns), len(self))
        for row, (part, power) in zip(rows, self.columns, strict=True):
            row[part] = self.weights[part] ** power
        return rows

    @cached_property
    def cells(self) -> CellSums:
        """The first feature sorted once, for exact sums around any boundary."""
        return CellSums.of(self.features[:, 0], self.table)

    @cached_property
    def squares(self) -> Sample:
        """The same events with squared weights: their sums are the variances of the sums of this sample."""
        return replace(self, weights=self.weights**2)

    @cached_property
    def quadratic(self) -> QuadraticSums:
        """Monomials of the features, for memberships by Gaussians."""
        return QuadraticSums.of(self.features, self.weights, self.columns)

    def hard_totals(self, category: Tensor, n_categories: int) -> Tensor:
        """Sums every column over the events of each category, shape `(n_columns, n_categories)`."""
        sums = self.weights.new_zeros(len(self.columns), n_categories)
        for row, (part, power) in zip(sums, self.columns, strict=True):
            row.index_add_(0, category[part], self.weights[part] ** power)
        return sums

    def yields(self, totals: Tensor, factors: Tensor | None = None) -> Yields:
        """Makes yields of the sums of all columns.

        Args:
            totals: Sums, shape `(n_columns, n_categories)`.
            factors: What the scaled background of each category is multiplied by, shape `(n_categories,)`.
        """
        n = len(self.signals)
        background, variance = totals[n], totals[n + 1]
        if factors is not None:
            background, variance = factors * background, factors**2 * variance
        if len(totals) > n + 2:
            background, variance = background + totals[n + 2], variance + totals[n + 3]
        return Yields(totals[:n], background, variance)

    def minibatch(self, size: int, *, rng: torch.Generator) -> Sample:
        """Draws events of every role in proportion, without replacement, and scales their weights to the totals.

        The sums of squared weights come out too large by the same proportion: they are those of the smaller sample.
        """
        rows, factors, ends = [], [], [0]
        for part in self.slices:
            n = part.stop - part.start
            take = min(n, max(1, round(size * n / len(self)))) if n else 0
            # A random stretch of the events is as good as random events only if these came in random order.
            chosen = torch.randint(n, (take,), generator=rng) if n else torch.empty(0, dtype=torch.int64)
            rows.append(chosen + part.start)
            factors.append(torch.full((take,), n / max(take, 1), dtype=torch.float64))
            ends.append(ends[-1] + take)
        index = torch.cat(rows).to(self.weights.device)
        weights = self.weights[index] * torch.cat(factors).to(self.weights.device)
        mass = None if self.mass is None else self.mass[index]
        return Sample(self.features[index], weights, self.signals, tuple(ends[1:]), mass)
