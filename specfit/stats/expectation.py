r"""Expected yields: every modifier of every sample as index tables, evaluated in a handful of tensor operations.

A row is one bin of one sample (or the total of a sample of an unbinned channel); an output is a bin of a channel, the
sum of its rows (or such a total itself). With factors f and differences d of the modifiers on it, row r yields

.. math:: y_r(\theta) = \Big(\prod_k f_{rk}(\theta)\Big) \Big(Y_r + \sum_j d_{rj}(\theta)\Big)
    \exp\Big(\sum_j B_{rj} \theta_j\Big).

A factor depends on one parameter. Rows share a factor wherever they can, so that it is computed once.

Conventions: inside, the batch is the last axis, `(n, m)`: gathering and adding rows is then copying and adding whole
vectors. `jacobian` is written out, because fits of many toys live on it; a test holds it against autograd.
"""

from __future__ import annotations

__all__ = ["Expectation", "Rows"]

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

FactorInterpolation = Callable[[Tensor, Tensor, Tensor], Tensor]
DifferenceInterpolation = Callable[[Tensor], Tensor]


@dataclass
class Rows:
    """Rows and what moves them, collected one modifier at a time; parameters are numbers."""

    contents: list[float] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    factors: list[tuple[int, tuple[float, ...]]] = field(default_factory=list)
    differences: list[tuple[int, int, float, float]] = field(default_factory=list)
    directions: list[tuple[int, int, float]] = field(default_factory=list)

    def add(self, contents: Sequence[float], first_output: int) -> int:
        """Adds the rows of a sample, whose outputs follow each other, and returns the number of the first."""
        self.contents.extend(contents)
        self.outputs.extend(range(first_output, first_output + len(contents)))
        return len(self.contents) - len(contents)

    def multiply(self, row: int, parameter: int) -> None:
        """Multiplies a row by a parameter."""
        self.factors.append((row, (_PARAMETER, parameter)))

    def multiply_by_variation(self, row: int, parameter: int, up: float, down: float) -> None:
        """Multiplies a row by the interpolation of two ratios."""
        self.factors.append((row, (_VARIATION, parameter, up, down)))

    def multiply_by_polynomial(self, row: int, parameter: int, coefficients: Sequence[float]) -> None:
        """Multiplies a row by a polynomial of a parameter, coefficients from the highest power down."""
        self.factors.append((row, (_POLYNOMIAL, parameter, *coefficients)))

    def add_difference(self, row: int, parameter: int, up: float, down: float) -> None:
        """Adds to a row what +1 adds (`up`) and what -1 takes away (`down`), interpolated."""
        self.differences.append((row, parameter, (up + down) / 2, (up - down) / 2))

    def add_direction(self, row: int, parameter: int, change: float) -> None:
        """Adds to the logarithm of a row a multiple of a parameter."""
        self.directions.append((row, parameter, change))


_PARAMETER, _VARIATION, _POLYNOMIAL = range(3)


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
        self._contents = _column(rows.contents)
        self._outputs = _index(rows.outputs)
        self._units = _Units(rows, n_parameters, factor)
        self._columns = self._units.columns(rows, len(rows.contents))
        self._additions = _Additions(rows.differences, difference)
        row, parameter, change = _transposed(rows.directions, 3)
        self._direction_row, self._direction_parameter = _index(row), _index(parameter)
        self._direction_change = _column(change)
        self._entries = self._find_entries()

    def outputs(self, values: Tensor) -> Tensor:
        """Computes the outputs.

        Args:
            values: Parameters, shape `(p, m)`.

        Returns:
            Shape `(n_outputs, m)`.
        """
        units = self._units.evaluate(values)
        yields = self._contents_at(values)
        for column in self._columns:
            yields = yields * units[column]
        if len(self._direction_row):
            yields = yields * self._exponential(values)
        return self._sum(yields)

    def jacobian(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the outputs `(n_outputs, m)` and their derivatives `(n_outputs, p, m)`; neither carries gradients."""
        with torch.no_grad():
            exponential = self._exponential(values) if len(self._direction_row) else torch.ones(1, 1).double()
            contents = self._contents_at(values) * exponential
        units, slopes = self._units.with_slopes(values)
        factors = [units[column] for column in self._columns]
        product = _product(factors, like=contents)
        parts = [
            (others * slopes[column] * contents)[used]
            for column, used, others in zip(self._columns, self._used, _products_of_others(factors), strict=True)
        ]
        if self._additions.any:
            row, slope = self._additions.slopes(values)
            parts.append((product * exponential)[row] * slope)
        yields = product * contents
        if len(self._direction_row):
            parts.append(yields[self._direction_row] * self._direction_change)
        jacobian = values.new_zeros(self.n_outputs * self.n_parameters, values.shape[1])
        if parts:
            jacobian.index_add_(0, self._entries, torch.cat(parts))
        return self._sum(yields), jacobian.unflatten(0, (self.n_outputs, self.n_parameters))

    def _find_entries(self) -> Tensor:
        """Finds where in the flattened Jacobian each derivative goes, in the order in which `jacobian` makes them."""
        self._used = [(column != self._units.one).nonzero()[:, 0] for column in self._columns]
        pairs = [
            (used, self._units.parameter[column[used]]) for used, column in zip(self._used, self._columns, strict=True)
        ]
        if self._additions.any:
            pairs.append((self._additions.row, self._additions.parameter))
        if len(self._direction_row):
            pairs.append((self._direction_row, self._direction_parameter))
        places = [self._outputs[row] * self.n_parameters + parameter for row, parameter in pairs]
        return torch.cat(places) if places else _index([])

    def _contents_at(self, values: Tensor) -> Tensor:
        if not self._additions.any:
            return self._contents.expand(-1, values.shape[1])
        return self._additions.add_to(self._contents.expand(-1, values.shape[1]), values)

    def _exponential(self, values: Tensor) -> Tensor:
        exponent = values.new_zeros(len(self._contents), values.shape[1])
        return exponent.index_add(
            0, self._direction_row, self._direction_change * values[self._direction_parameter]
        ).exp()

    def _sum(self, yields: Tensor) -> Tensor:
        return yields.new_zeros(self.n_outputs, yields.shape[1]).index_add(0, self._outputs, yields)


class _Units:
    """Every different factor once: the parameters themselves, variations, polynomials, and last the number one."""

    def __init__(self, rows: Rows, n_parameters: int, interpolation: FactorInterpolation) -> None:
        keys = dict.fromkeys(key for _, key in rows.factors)
        variations = [key for key in keys if key[0] == _VARIATION]
        polynomials = [key for key in keys if key[0] == _POLYNOMIAL]
        self._number: dict[tuple[float, ...], int] = {(_PARAMETER, j): j for j in range(n_parameters)}
        self._number |= {key: n_parameters + i for i, key in enumerate([*variations, *polynomials])}
        self.one = len(self._number)
        self.parameter = _index([int(key[1]) for key in self._number] + [0])
        self._interpolation = interpolation
        self._varied = _index([int(key[1]) for key in variations])
        self._up, self._down = (_column([key[i] for key in variations]) for i in (2, 3))
        self._argument = _index([int(key[1]) for key in polynomials])
        degree = max((len(key) for key in polynomials), default=0) - 2
        padded = [[0.0] * (degree + 2 - len(key)) + list(key[2:]) for key in polynomials]
        self._coefficients = [_column(c) for c in zip(*padded, strict=True)]

    def columns(self, rows: Rows, n_rows: int) -> list[Tensor]:
        """Lays the factors of each row side by side: each column holds one unit for every row, or the number one."""
        of_row: list[list[int]] = [[] for _ in range(n_rows)]
        for row, key in rows.factors:
            of_row[row].append(self._number[key])
        return [_index(column) for column in itertools.zip_longest(*of_row, fillvalue=self.one)]

    def evaluate(self, values: Tensor) -> Tensor:
        """Computes all units, shape `(n_units, m)`."""
        parts = [values]
        if len(self._varied):
            parts.append(self._interpolation(values[self._varied], self._up, self._down))
        if len(self._argument):
            parts.append(self._polynomials(values[self._argument]))
        return torch.cat([*parts, torch.ones_like(values[:1])])

    def with_slopes(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Computes all units and the derivative of each in its parameter, both `(n_units, m)`."""
        parts, slopes = [values], [torch.ones_like(values)]
        if len(self._varied):
            at = values[self._varied]
            for all_of, one in zip((parts, slopes), _with_slope(self._variations, at), strict=True):
                all_of.append(one)
        if len(self._argument):
            at = values[self._argument]
            for all_of, one in zip((parts, slopes), _with_slope(self._polynomials, at), strict=True):
                all_of.append(one)
        last = values[:1]
        return torch.cat([*parts, torch.ones_like(last)]), torch.cat([*slopes, torch.zeros_like(last)])

    def _variations(self, at: Tensor) -> Tensor:
        return self._interpolation(at, self._up, self._down)

    def _polynomials(self, at: Tensor) -> Tensor:
        total = torch.zeros_like(at)
        for coefficient in self._coefficients:
            total = total * at + coefficient
        return total


class _Additions:
    """Differences on rows: linear in the parameter and in one function of it."""

    def __init__(self, differences: Sequence[tuple[int, int, float, float]], function: DifferenceInterpolation) -> None:
        row, parameter, mean, gap = _transposed(differences, 4)
        self.row, self.parameter = _index(row), _index(parameter)
        self._mean, self._gap = _column(mean), _column(gap)
        self._moving, self._of_moving = torch.unique(self.parameter, return_inverse=True)
        self._function = function
        self.any = bool(len(differences))

    def add_to(self, contents: Tensor, values: Tensor) -> Tensor:
        """Adds to contents `(n_rows, m)`."""
        at = values[self._moving]
        curved = self._function(at)
        return contents.index_add(0, self.row, self._mean * at[self._of_moving] + self._gap * curved[self._of_moving])

    def slopes(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Returns rows and the derivatives of what is added to them."""
        _, slope = _with_slope(self._function, values[self._moving])
        return self.row, self._mean + self._gap * slope[self._of_moving]


def _with_slope(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    """Computes an elementwise function and its derivative."""
    with torch.enable_grad():
        leaf = at.detach().requires_grad_()
        value = function(leaf)
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), slope


def _product(factors: Sequence[Tensor], *, like: Tensor) -> Tensor:
    product = torch.ones_like(like)
    for factor in factors:
        product = product * factor
    return product


def _products_of_others(factors: Sequence[Tensor]) -> list[Tensor]:
    """For each factor the product of all others; no division, since a factor may be 0."""
    if not factors:
        return []
    before = [torch.ones_like(factors[0])]
    for factor in factors[:-1]:
        before.append(before[-1] * factor)
    after = torch.ones_like(factors[0])
    products = []
    for factor, ahead in zip(reversed(factors), reversed(before), strict=True):
        products.append(ahead * after)
        after = after * factor
    return products[::-1]


def _transposed(entries: Sequence[tuple[float, ...]], n: int) -> list[list[float]]:
    return [list(column) for column in zip(*entries, strict=True)] or [[] for _ in range(n)]


def _column(numbers: Sequence[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def _index(numbers: Sequence[float]) -> Tensor:
    return torch.tensor([int(i) for i in numbers], dtype=torch.int64)
