"""Structure: which parameters of a fit in cells share a block, and which few touch all of them.

Two parameters belong together if some bin depends on both, directly or through others. A parameter that enters bins of
very many cells would tie all of them into one block: it goes to the border instead. Where to draw the line is decided
by counting the operations that solving would then take.
"""

from __future__ import annotations

__all__ = ["Structure"]

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

# So many ways to part the parameters into cells and border are compared.
MOST_CANDIDATES = 16


class Structure:
    """Which parameters share a block, and which are in the border.

    Args:
        n_parameters: Number of parameters p.
        tables: Parameters that enter each bin of a channel, one tensor `(n_bins, k)` a channel; p stands for none.
        dense: Parameters that enter most bins and stand in no table; always in the border.
    """

    def __init__(self, n_parameters: int, tables: Sequence[Tensor], dense: Tensor) -> None:
        self.n_parameters, self.tables = n_parameters, tuple(tables)
        wide = _cheapest_border(n_parameters, self.tables, dense)
        is_border = torch.zeros(n_parameters, dtype=torch.bool)
        is_border[dense] = True
        is_border[wide] = True
        self.border = is_border.nonzero()[:, 0]
        component = _components(n_parameters, self.tables, is_border)
        local = (~is_border).nonzero()[:, 0]
        sizes = torch.bincount(component[local], minlength=int(component.max()) + 1 if len(component) else 0)
        # Blocks of one size follow each other, so that they form one batch.
        by_size = torch.from_numpy(np.lexsort((component[local].numpy(), sizes[component[local]].numpy())))
        self.local = local[by_size]  # (n_local,), block after block
        size_of = sizes[component[self.local]]
        self.groups: list[tuple[int, int]] = [
            (int(total) // int(m), int(m)) for m, total in zip(*torch.unique(size_of, return_counts=True), strict=True)
        ]  # (n_blocks, m)
        self.block = torch.full((n_parameters + 1,), -1)
        self.rank = torch.full((n_parameters + 1,), -1)  # place in `local` or in `border`
        self.rank[self.local] = torch.arange(len(self.local))
        self.rank[self.border] = torch.arange(len(self.border))
        first = 0
        for n_blocks, m in self.groups:
            members = self.local[self._first_of(first) : self._first_of(first) + n_blocks * m]
            self.block[members] = first + torch.arange(n_blocks).repeat_interleave(m)
            first += n_blocks
        self.n_blocks = first
        self.sizes = torch.cat([torch.full((n,), m) for n, m in self.groups]) if self.groups else torch.zeros(0).long()

    def _first_of(self, block: int) -> int:
        """Returns the place in `local` where a block that opens a group begins."""
        done = place = 0
        for n_blocks, m in self.groups:
            if done == block:
                break
            done, place = done + n_blocks, place + n_blocks * m
        return place

    @property
    def n_border(self) -> int:
        """Number of parameters in the border."""
        return len(self.border)

    def block_of_bins(self, table: Tensor) -> Tensor:
        """Returns the block that each bin belongs to, -1 for none, shape `(n_bins,)`."""
        return self.block[table].max(-1).values if table.shape[-1] else torch.full((len(table),), -1)

    @cached_property
    def targets(self) -> tuple[Tensor, ...]:
        """Where the product of two columns of a table goes in the flat store, `(n_bins * k * k,)` for each table."""
        return tuple(self._target(table).reshape(-1) for table in self.tables)

    @property
    def n_block_entries(self) -> int:
        """Numbers in all blocks."""
        return sum(n * m * m for n, m in self.groups)

    @property
    def n_entries(self) -> int:
        """Numbers in the flat store: blocks, border, corner, and one that takes what is not stored."""
        return self.n_block_entries + (len(self.local) + self.n_border) * self.n_border + 1

    def _target(self, table: Tensor) -> Tensor:
        first, second = table[:, :, None], table[:, None, :]  # (n_bins, k, 1), (n_bins, 1, k)
        block, rank, g = self.block, self.rank, self.n_border
        known = (first < self.n_parameters) & (second < self.n_parameters)
        same = known & (block[first] == block[second]) & (block[first] >= 0)
        to_border = known & (block[first] >= 0) & (block[second] < 0)
        in_corner = known & (block[first] < 0) & (block[second] < 0)
        start, entry = self._starts
        size = torch.cat([self.sizes, torch.ones(1, dtype=torch.long)])[block[first]]
        in_block = (
            entry[block[first]] + (rank[first] - start[block[first]]) * size + rank[second] - start[block[second]]
        )
        strip = self.n_block_entries + rank[first] * g + rank[second]
        corner = self.n_block_entries + len(self.local) * g + rank[first] * g + rank[second]
        trash = torch.tensor(self.n_entries - 1)
        return torch.where(same, in_block, torch.where(to_border, strip, torch.where(in_corner, corner, trash)))

    @cached_property
    def _starts(self) -> tuple[Tensor, Tensor]:
        """Returns where each block begins among the local parameters and in the flat store; one more entry for none."""
        start = torch.cat([torch.zeros(1).long(), self.sizes.cumsum(0)])
        entry = torch.cat([torch.zeros(1).long(), self.sizes.square().cumsum(0)])
        return start, entry


def _cheapest_border(n_parameters: int, tables: Sequence[Tensor], dense: Tensor) -> Tensor:
    """Chooses the parameters of widest reach that, put in the border, make solving cheapest."""
    reach = torch.zeros(n_parameters + 1, dtype=torch.long)
    for table in tables:
        reach += torch.bincount(table.reshape(-1), minlength=n_parameters + 1)
    reach = reach[:-1].clone()
    reach[dense] = 0
    levels = torch.unique(reach)[-MOST_CANDIDATES:].tolist()
    best, least = torch.zeros(0, dtype=torch.long), np.inf
    for level in reversed(levels):
        wide = (reach > level).nonzero()[:, 0]
        is_border = torch.zeros(n_parameters, dtype=torch.bool)
        is_border[dense] = True
        is_border[wide] = True
        component = _components(n_parameters, tables, is_border)
        m = torch.bincount(component[~is_border]).double() if (~is_border).any() else torch.zeros(1).double()
        g = float(is_border.sum())
        cost = float((m**3 + 2 * m**2 * g + 2 * m * g**2).sum()) + g**3
        if cost < least:
            best, least = wide, cost
    return best


def _components(n_parameters: int, tables: Sequence[Tensor], is_border: Tensor) -> Tensor:
    """Numbers the groups of parameters that meet in bins, directly or through others, leaving out the border."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns, first = [], [], n_parameters
    excluded = torch.cat([is_border, torch.ones(1, dtype=torch.bool)])
    for table in tables:
        used = ~excluded[table]
        bins = (first + torch.arange(len(table)))[:, None].expand_as(table)
        rows.append(table[used])
        columns.append(bins[used])
        first += len(table)
    row = torch.cat([*rows, torch.zeros(0).long()]).numpy()
    column = torch.cat([*columns, torch.zeros(0).long()]).numpy()
    graph = coo_array((np.ones(len(row), dtype=np.int8), (row, column)), shape=(first, first))
    labels = connected_components(graph, directed=False)[1][:n_parameters]
    return torch.from_numpy(np.unique(labels, return_inverse=True)[1].astype(np.int64).reshape(-1))
