r"""Covariance from the exact Hessian, and the directions that data leave open.

A direction in which :math:`-\ln L` is flat (two norms that only enter as a product, a nuisance of an empty channel)
makes the Hessian singular. Then the covariance is that of all other directions, parameters in the open one get an
infinite variance, and the direction is named.
"""

from __future__ import annotations

__all__ = ["Inverse", "invert_hessian"]

from typing import NamedTuple

import torch
from torch import Tensor

# Of the Hessian with unit diagonal: an eigenvalue below this is rounding, above it the inverse has digits.
FLAT = 1e-11
# A parameter that takes part in a flat direction with less than this is only touched by it.
PART = 1e-3
LARGEST_DIAGONALISED = 1500


class Inverse(NamedTuple):
    """The inverse of a Hessian."""

    covariance: Tensor
    """Shape `(p, p)`."""
    open_directions: list[list[int]]
    """For each flat direction the parameters in it, the largest share first."""
    has_negative: bool
    """Whether the Hessian bends downward somewhere, which no minimum does."""


def invert_hessian(hessian: Tensor, *, free: Tensor) -> Inverse:
    """Inverts a Hessian among the free parameters.

    Args:
        hessian: Shape `(p, p)`.
        free: Shape `(p,)`.
    """
    numbers = free.nonzero()[:, 0]
    whole = torch.zeros_like(hessian)
    if not len(numbers):
        return Inverse(whole, [], False)
    matrix = hessian if len(numbers) == len(free) else hessian[numbers][:, numbers]
    size = matrix.diagonal().abs().sqrt()
    size = torch.where(size > 0, size, 1.0)
    lower, info = torch.linalg.cholesky_ex(matrix / (size[:, None] * size))
    # The smallest pivot bounds the smallest eigenvalue from above.
    if not info and float(lower.diagonal().min()) ** 2 > FLAT:
        inverse = torch.cholesky_inverse(lower) / (size[:, None] * size)
        return Inverse(_put(whole, inverse, numbers), [], False)
    return _with_open_directions(matrix, size, numbers, whole)


def _with_open_directions(matrix: Tensor, size: Tensor, numbers: Tensor, whole: Tensor) -> Inverse:
    if len(size) > LARGEST_DIAGONALISED:  # the work grows with the third power, minutes at thousands
        return Inverse(_put(whole, torch.full_like(matrix, torch.nan), numbers), [], True)
    eigenvalues, vectors = torch.linalg.eigh(matrix / (size[:, None] * size))
    flat = eigenvalues.abs() < FLAT
    inverse = (vectors[:, ~flat] / eigenvalues[~flat]) @ vectors[:, ~flat].T / (size[:, None] * size)
    in_parameters = vectors / size[:, None]  # a direction of the scaled problem is this one of the parameters
    directions = []
    for direction in in_parameters.T[flat]:
        share = (direction * size).abs() / (direction * size).abs().max()
        parts = (share > PART).nonzero()[:, 0]
        directions.append(numbers[parts[share[parts].argsort(descending=True)]].tolist())
        inverse[parts, parts] = torch.inf
    negative = bool((eigenvalues < -FLAT).any())
    if negative:
        inverse = torch.full_like(inverse, torch.nan)
    return Inverse(_put(whole, inverse, numbers), directions, negative)


def _put(whole: Tensor, inverse: Tensor, numbers: Tensor) -> Tensor:
    if len(numbers) == len(whole):
        return inverse
    whole[numbers[:, None], numbers] = inverse
    return whole
