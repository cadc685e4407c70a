"""The plain soft pass: all memberships of all events, block by block so that memory stays bounded."""

from __future__ import annotations

__all__ = ["direct_totals"]

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from specfit.categories.sample import Sample

# Events whose memberships are held at a time; they are computed again for the gradient.
BLOCK = 65_536


def direct_totals(memberships: Callable[[Tensor], Tensor], sample: Sample) -> Tensor:
    """Computes the sums of memberships times each column, for any memberships that torch can differentiate.

    Args:
        memberships: Features of shape `(n, n_features)` to shares of shape `(n, n_categories)`.
        sample: The events.

    Returns:
        Shape `(n_columns, n_categories)`, float64.
    """

    def sum_block(features: Tensor, columns: Tensor) -> Tensor:
        return columns @ memberships(features).double()

    totals = sample.weights.new_zeros(())
    for first in range(0, max(len(sample), 1), BLOCK):
        block = slice(first, first + BLOCK)
        columns, features = sample.table[:, block], sample.features[block]
        is_kept = torch.is_grad_enabled()
        part = (
            checkpoint(sum_block, features, columns, use_reentrant=False) if is_kept else sum_block(features, columns)
        )
        totals = totals + part
    return totals
