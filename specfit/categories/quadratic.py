r"""Sums over events whose memberships are a softmax of quadratic forms, fast: for Gaussian mixtures.

The log density of a Gaussian is linear in the monomials :math:`1, x_i, x_i x_j`, so the logits of all events are one
matrix product, and so is the gradient. Memberships are computed in single precision in blocks that stay in the cache;
sums over blocks are in double precision.
"""

from __future__ import annotations

__all__ = ["QuadraticSums", "monomials", "quadratic_form"]

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 16_384


class Block(NamedTuple):
    """Consecutive events that play the same part."""

    basis: Tensor
    """Monomials, shape `(n_monomials, n)`."""
    weights: Tensor
    """The columns that are not zero, shape `(n_columns_here, n)`."""
    columns: list[int]
    """Which columns these are."""


@dataclass(frozen=True, eq=False)
class QuadraticSums:
    """Events as monomials of their features.

    Args:
        blocks: The events.
        center: What was subtracted from the features, so that single precision is enough, shape `(n_features,)`.
        n_columns: Number of columns.
    """

    blocks: list[Block]
    center: Tensor
    n_columns: int

    @classmethod
    def of(
        cls,
        features: Tensor,
        weights: Tensor,
        columns: list[tuple[slice, int]],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> QuadraticSums:
        """Arranges events; `columns` as `specfit.categories.sample.Sample` has them."""
        center = features.mean(0) if len(features) else features.new_zeros(features.shape[1])
        parts = sorted({(part.start, part.stop) for part, _ in columns})
        blocks = []
        for start, stop in parts:
            here = [i for i, (part, _) in enumerate(columns) if (part.start, part.stop) == (start, stop)]
            for first in range(start, stop, BLOCK):
                rows = slice(first, min(first + BLOCK, stop))
                powers = torch.stack([weights[rows] ** columns[i][1] for i in here])
                blocks.append(Block(monomials(features[rows] - center).to(dtype), powers.to(dtype), here))
        return cls(blocks, center, len(columns))

    def soft_totals(self, coefficients: Tensor) -> Tensor:
        """Computes the sums of memberships times each column, shape `(n_columns, n_categories)`.

        Args:
            coefficients: Of the monomials of the centred features, shape `(n_categories, n_monomials)`.
        """
        answer: Tensor = _SoftTotals.apply(coefficients, self)  # type: ignore[no-untyped-call]
        return answer


def monomials(x: Tensor) -> Tensor:
    """Computes :math:`1, x_i, x_i x_j` for i up to j, shape `(n_monomials, n)`, for points of shape `(n, d)`."""
    d = x.shape[1]
    pairs = [x[:, i] * x[:, j] for i in range(d) for j in range(i, d)]
    return torch.stack([torch.ones_like(x[:, 0]), *x.T, *pairs])


def quadratic_form(constant: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """Computes the coefficients of :math:`c - (x - m)^T P (x - m) / 2` in the monomials.

    Args:
        constant: Shape `(k,)`.
        mean: Shape `(k, d)`.
        precision: Symmetric, shape `(k, d, d)`.

    Returns:
        Shape `(k, n_monomials)`.
    """
    linear = (precision @ mean[:, :, None])[:, :, 0]
    zeroth = constant - (linear * mean).sum(1) / 2
    d = mean.shape[1]
    i, j = torch.triu_indices(d, d, device=mean.device)
    second = -precision[:, i, j] * torch.where(i == j, 0.5, 1.0)
    return torch.cat((zeroth[:, None], linear, second), 1)


class _SoftTotals(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, sums: QuadraticSums) -> Tensor:
        totals = coefficients.new_zeros(sums.n_columns, len(coefficients))
        kept = []
        for basis, weights, columns in sums.blocks:
            share = torch.softmax(coefficients.to(basis.dtype) @ basis, 0)  # (n_categories, n)
            totals[columns] += (weights @ share.T).to(totals.dtype)
            kept.append(share)
        ctx.sums = sums
        ctx.dtype = coefficients.dtype
        ctx.save_for_backward(*(kept if ctx.needs_input_grad[0] else ()))
        return totals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.new_zeros(gradient.shape[1], len(ctx.sums.blocks[0].basis) if ctx.sums.blocks else 0)
        for (basis, weights, columns), share in zip(ctx.sums.blocks, ctx.saved_tensors, strict=True):
            worth = gradient[columns].to(basis.dtype).T @ weights  # (n_categories, n)
            worth *= share
            worth -= share * worth.sum(0)
            total += (worth @ basis.T).to(total.dtype)
        return total, None
