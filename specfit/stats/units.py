r"""What a modifier multiplies or adds, once for all rows that share it, with its first two derivatives.

`Rows` collects what the modifiers do; `Units` are the different factors among it, `Additions` the differences.

Conventions: parameters and rows are numbers; the batch is the last axis. Each factor and each difference depends on one
parameter, so its derivatives are those of elementwise functions, and autograd gives them from the formula itself.
"""

from __future__ import annotations

__all__ = ["Additions", "Rows", "Units", "as_column", "as_index", "transposed"]

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

FactorInterpolation = Callable[[Tensor, Tensor, Tensor], Tensor]
DifferenceInterpolation = Callable[[Tensor], Tensor]
_PARAMETER, _VARIATION, _POLYNOMIAL = range(3)


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


class Units:
    """Every different factor once: the parameters themselves, variations, polynomials, and last the number one."""

    def __init__(self, rows: Rows, n_parameters: int, interpolation: FactorInterpolation) -> None:
        keys = dict.fromkeys(key for _, key in rows.factors)
        variations = [key for key in keys if key[0] == _VARIATION]
        polynomials = [key for key in keys if key[0] == _POLYNOMIAL]
        self._number: dict[tuple[float, ...], int] = {(_PARAMETER, j): j for j in range(n_parameters)}
        self._number |= {key: n_parameters + i for i, key in enumerate([*variations, *polynomials])}
        self.one = len(self._number)
        self.parameter = as_index([int(key[1]) for key in self._number] + [0])
        self._interpolation = interpolation
        self._varied = as_index([int(key[1]) for key in variations])
        self._up, self._down = (as_column([key[i] for key in variations]) for i in (2, 3))
        self._argument = as_index([int(key[1]) for key in polynomials])
        degree = max((len(key) for key in polynomials), default=0) - 2
        padded = [[0.0] * (degree + 2 - len(key)) + list(key[2:]) for key in polynomials]
        self._coefficients = [as_column(c) for c in zip(*padded, strict=True)]

    def columns(self, rows: Rows, n_rows: int) -> list[Tensor]:
        """Lays the factors of each row side by side: each column holds one unit for every row, or the number one."""
        of_row: list[list[int]] = [[] for _ in range(n_rows)]
        for row, key in rows.factors:
            of_row[row].append(self._number[key])
        return [as_index(column) for column in itertools.zip_longest(*of_row, fillvalue=self.one)]

    def evaluate(self, values: Tensor) -> Tensor:
        """Computes all units, shape `(n_units, m)`."""
        parts = [values]
        if len(self._varied):
            parts.append(self._interpolation(values[self._varied], self._up, self._down))
        if len(self._argument):
            parts.append(self._polynomials(values[self._argument]))
        return torch.cat([*parts, torch.ones_like(values[:1])])

    def derivatives(self, values: Tensor, order: int) -> list[Tensor]:
        """Computes all units and their derivatives up to an order, each in its own parameter, all `(n_units, m)`."""
        parts = [[values], [torch.ones_like(values)], [torch.zeros_like(values)]][: order + 1]
        for numbers, function in ((self._varied, self._variations), (self._argument, self._polynomials)):
            if len(numbers):
                for of_order, part in zip(parts, _derivatives(function, values[numbers], order), strict=True):
                    of_order.append(part)
        one = torch.ones_like(values[:1])
        return [torch.cat([*of_order, one if k == 0 else torch.zeros_like(one)]) for k, of_order in enumerate(parts)]

    def _variations(self, at: Tensor) -> Tensor:
        return self._interpolation(at, self._up, self._down)

    def _polynomials(self, at: Tensor) -> Tensor:
        total = torch.zeros_like(at)
        for coefficient in self._coefficients:
            total = total * at + coefficient
        return total


class Additions:
    """Differences on rows: linear in the parameter and in one function of it."""

    def __init__(self, differences: Sequence[tuple[int, int, float, float]], function: DifferenceInterpolation) -> None:
        row, parameter, mean, gap = transposed(differences, 4)
        self.row, self.parameter = as_index(row), as_index(parameter)
        self._mean, self._gap = as_column(mean), as_column(gap)
        self._moving, self._of_moving = torch.unique(self.parameter, return_inverse=True)
        self._function = function
        self.any = bool(len(differences))

    def add_to(self, contents: Tensor, values: Tensor) -> Tensor:
        """Adds to contents `(n_rows, m)`."""
        at = values[self._moving]
        curved = self._function(at)
        return contents.index_add(0, self.row, self._mean * at[self._of_moving] + self._gap * curved[self._of_moving])

    def derivatives(self, values: Tensor, order: int) -> list[Tensor]:
        """Computes the derivatives of what is added to each of `row`, first to `order`-th, each `(n_entries, m)`."""
        _, *slopes = _derivatives(self._function, values[self._moving], order)
        linear = [self._mean, *[torch.zeros_like(self._mean)] * (order - 1)]
        return [mean + self._gap * slope[self._of_moving] for mean, slope in zip(linear, slopes, strict=True)]


def _derivatives(function: Callable[[Tensor], Tensor], at: Tensor, order: int) -> list[Tensor]:
    """Computes an elementwise function and its derivatives up to an order."""
    with torch.enable_grad():
        leaf = at.detach().requires_grad_()
        parts = [function(leaf)]
        for k in range(order):
            (slope,) = torch.autograd.grad(parts[-1].sum(), leaf, create_graph=k + 1 < order, materialize_grads=True)
            parts.append(slope)
    return [part.detach() for part in parts]


def transposed(entries: Sequence[tuple[float, ...]], n: int) -> list[list[float]]:
    """Turns entries of n numbers into n columns."""
    return [list(column) for column in zip(*entries, strict=True)] or [[] for _ in range(n)]


def as_column(numbers: Sequence[float]) -> Tensor:
    """Makes a float64 column `(n, 1)`."""
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def as_index(numbers: Sequence[float]) -> Tensor:
    """Makes an index."""
    return torch.tensor([int(i) for i in numbers], dtype=torch.int64)
