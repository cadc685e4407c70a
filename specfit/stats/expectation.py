r"""Expected yields: every modifier of every sample as index tables, evaluated in a handful of tensor operations.

A row is one bin of one sample (or the total of a sample of an unbinned channel); an output is a bin of a channel, the
sum of its rows (or such a total itself). With factors f and differences d of the modifiers on it, row r yields

.. math:: y_r(\theta) = \Big(\prod_k f_{rk}(\theta)\Big) \Big(Y_r + \sum_j d_{rj}(\theta)\Big)
    \exp\Big(\sum_j B_{rj} \theta_j\Big).

Conventions: inside, the batch is the last axis, `(n, m)`: gathering and adding rows is then copying and adding whole
vectors. The derivatives are written out, because fits of many toys live on them; tests hold them against autograd.
"""

from __future__ import annotations

__all__ = ["Expectation"]

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from specfit.stats.units import (
    Additions,
    DifferenceInterpolation,
    FactorInterpolation,
    Rows,
    Units,
    as_column,
    as_index,
    transposed,
)


class Expectation:
    """Outputs for given parameters, and their derivatives.

    Args:
        rows: Rows and what moves them.
        n_outputs: Number of outputs.
        n_parameters: Number of parameters p.
        factor: Interpolation of factors.
        difference: Interpolation of differences.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        n_outputs: int,
        n_parameters: int,
        factor: FactorInterpolation,
        difference: DifferenceInterpolation,
    ) -> None:
        self.n_outputs, self.n_parameters = n_outputs, n_parameters
        self._nominal, self._output = as_column(rows.contents), as_index(rows.outputs)
        self._units = Units(rows, n_parameters, factor)
        self._columns = self._units.columns(rows, len(rows.contents))
        # Of each column: the rows that have a factor in it, that factor, and its parameter.
        self._used = [(column != self._units.one).nonzero()[:, 0] for column in self._columns]
        self._unit = [column[used] for column, used in zip(self._columns, self._used, strict=True)]
        self._additions = Additions(rows.differences, difference)
        row, parameter, change = transposed(rows.directions, 3)
        self._direction_row, self._direction_parameter = as_index(row), as_index(parameter)
        self._change = as_column(change)
        self._first_row, self._first_parameter = self._first_entries()
        self._first_place = self._output[self._first_row] * n_parameters + self._first_parameter

    def outputs(self, values: Tensor) -> Tensor:
        """Computes the outputs, differentiably.

        Args:
            values: Parameters, shape `(p, m)`.

        Returns:
            Shape `(n_outputs, m)`.
        """
        units = self._units.evaluate(values)
        yields = self._contents(values)
        for column in self._columns:
            yields = yields * units[column]
        return self._sum(yields)

    def jacobian(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the outputs `(n_outputs, m)` and their derivatives `(n_outputs, p, m)`; they carry no gradients."""
        with torch.no_grad():
            parts = self._parts(values, order=1)
            jacobian = values.new_zeros(self.n_outputs * self.n_parameters, values.shape[1])
            jacobian.index_add_(0, self._first_place, self._first_derivatives(parts))
            return self._sum(parts.yields), jacobian.reshape(self.n_outputs, self.n_parameters, -1)

    def weighted_hessian(self, values: Tensor, weights: Tensor) -> Tensor:
        r"""Computes :math:`\sum_o w_o \, \partial^2 y_o / \partial\theta_i \partial\theta_j`.

        Args:
            values: Parameters, shape `(p, m)`.
            weights: Weight of each output, shape `(n_outputs, m)`.

        Returns:
            Shape `(p, p, m)`, without gradients.
        """
        p = self.n_parameters
        with torch.no_grad():
            hessian = values.new_zeros(p * p, values.shape[1])
            by_row = weights[self._output]
            for row, i, j, second in self._second_derivatives(self._parts(values, order=2)):
                hessian.index_add_(0, i * p + j, second * by_row[row])
            return hessian.reshape(p, p, -1)

    def _first_entries(self) -> tuple[Tensor, Tensor]:
        """Rows and parameters of the derivatives that are not zero, in the order of `_first_derivatives`."""
        pairs = [(used, self._units.parameter[unit]) for used, unit in zip(self._used, self._unit, strict=True)]
        pairs.append((self._additions.row, self._additions.parameter))
        pairs.append((self._direction_row, self._direction_parameter))
        rows, parameters = zip(*pairs, strict=True)
        return torch.cat(rows), torch.cat(parameters)

    def _parts(self, values: Tensor, *, order: int) -> _Parts:
        units = self._units.derivatives(values, order)
        contents = self._contents(values)
        factors = [units[0][column] for column in self._columns]
        others = _products_of_others(factors)
        product = others[0] * factors[0] if factors else torch.ones_like(contents)
        added = self._additions.derivatives(values, order) if self._additions.any else []
        exponential = self._exponential(values) if len(self._direction_row) else None
        return _Parts(units, factors, others, product, contents, added, exponential, product * contents)

    def _first_derivatives(self, parts: _Parts) -> Tensor:
        pieces = [
            others[used] * parts.units[1][unit] * parts.contents[used]
            for used, unit, others in zip(self._used, self._unit, parts.others, strict=True)
        ]
        if parts.added:
            pieces.append(self._scaled(parts.product, parts.exponential)[self._additions.row] * parts.added[0])
        if len(self._direction_row):
            pieces.append(parts.yields[self._direction_row] * self._change)
        return torch.cat(pieces) if pieces else parts.yields[:0]

    def _second_derivatives(self, parts: _Parts) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yields rows, two parameters and the derivative in both; every ordered pair once."""
        yield from self._of_two_factors(parts)
        if parts.added:
            yield from self._of_additions(parts)
        if len(self._direction_row):
            yield from self._of_directions(parts)

    def _of_two_factors(self, parts: _Parts) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        for k, (used, unit) in enumerate(zip(self._used, self._unit, strict=True)):
            i = self._units.parameter[unit]
            yield used, i, i, parts.others[k][used] * parts.units[2][unit] * parts.contents[used]
            without = _products_of_others([*parts.factors[:k], *parts.factors[k + 1 :]])
            for place, l in enumerate(n for n in range(len(self._columns)) if n != k):  # noqa: E741
                other = self._columns[l][used]
                slopes = parts.units[1][unit] * parts.units[1][other]
                second = without[place][used] * slopes * parts.contents[used]
                yield used, i, self._units.parameter[other], second

    def _of_additions(self, parts: _Parts) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        row, j = self._additions.row, self._additions.parameter
        scale = 1.0 if parts.exponential is None else parts.exponential[row]
        yield row, j, j, parts.product[row] * scale * parts.added[1]
        for column, others in zip(self._columns, parts.others, strict=True):
            unit = column[row]
            i = self._units.parameter[unit]
            second = others[row] * parts.units[1][unit] * parts.added[0] * scale
            yield row, i, j, second
            yield row, j, i, second

    def _of_directions(self, parts: _Parts) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        first = self._first_derivatives(parts)
        entry, direction = _joined(self._first_row, self._direction_row)
        i, j = self._first_parameter[entry], self._direction_parameter[direction]
        second = first[entry] * self._change[direction]
        yield self._first_row[entry], i, j, second
        # A pair of two directions is among the ordered pairs already; of a direction and another it is not.
        mixed = entry < len(self._first_row) - len(self._direction_row)
        yield self._first_row[entry[mixed]], j[mixed], i[mixed], second[mixed]

    def _contents(self, values: Tensor) -> Tensor:
        """Contents with all differences, times the exponential of the directions, shape `(n_rows, m)`."""
        contents = self._nominal.expand(-1, values.shape[1])
        if self._additions.any:
            contents = self._additions.add_to(contents, values)
        return self._scaled(contents, self._exponential(values) if len(self._direction_row) else None)

    def _exponential(self, values: Tensor) -> Tensor:
        exponent = values.new_zeros(len(self._nominal), values.shape[1])
        return exponent.index_add(0, self._direction_row, self._change * values[self._direction_parameter]).exp()

    def _scaled(self, contents: Tensor, exponential: Tensor | None) -> Tensor:
        return contents if exponential is None else contents * exponential

    def _sum(self, yields: Tensor) -> Tensor:
        return yields.new_zeros(self.n_outputs, yields.shape[1]).index_add(0, self._output, yields)


class _Parts(NamedTuple):
    """What derivatives are made of, the batch last."""

    units: list[Tensor]
    factors: list[Tensor]
    others: list[Tensor]
    """For each column the product of the factors in all others."""
    product: Tensor
    contents: Tensor
    added: list[Tensor]
    exponential: Tensor | None
    yields: Tensor


def _products_of_others(factors: Sequence[Tensor]) -> list[Tensor]:
    """For each factor the product of all others; no division, since a factor may be 0."""
    if not factors:
        return []
    one = torch.ones_like(factors[0])
    before = list(itertools.accumulate(factors[:-1], torch.mul, initial=one))
    after = list(itertools.accumulate(reversed(factors[1:]), torch.mul, initial=one))
    return [b * a for b, a in zip(before, reversed(after), strict=True)]


def _joined(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Finds all pairs of positions at which two lists hold the same number."""
    pairs = (left[:, None] == right).nonzero()
    return pairs[:, 0], pairs[:, 1]
