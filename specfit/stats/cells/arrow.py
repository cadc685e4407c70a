r"""Arrow matrices: many small blocks, a border that touches all of them, and a corner.

The Hessian of a fit in cells is one: parameters of a cell meet each other and the few that all cells share, never those
of another cell. With blocks :math:`H_c`, border :math:`B_c` and corner :math:`K`, everything follows from the Schur
complement :math:`S = K - \sum_c B_c^T H_c^{-1} B_c` (A. Bjorck, Numerical Methods for Least Squares Problems, 1996,
section 6.3): solving, the exact inverse, its diagonal. Cost and memory grow with the number of cells, not its square.

`Structure` says which parameters are in which block; `ArrowMatrix` holds the numbers.
"""

from __future__ import annotations

__all__ = ["ArrowFactor", "ArrowMatrix"]

from dataclasses import dataclass

import torch
from torch import Tensor

from specfit.stats.cells.structure import Structure

# A curvature below this share of its own scale is taken as this much.
SMALLEST_CURVATURE = 1e-10


@dataclass(frozen=True, eq=False)
class ArrowMatrix:
    """A symmetric matrix of a structure.

    Args:
        structure: Which parameter is where.
        blocks: Blocks by size, shape `(n_blocks, m, m)` each.
        strip: Entries between local parameters and border, shape `(n_local, n_border)`.
        corner: Entries of the border, shape `(n_border, n_border)`.
    """

    structure: Structure
    blocks: tuple[Tensor, ...]
    strip: Tensor
    corner: Tensor

    @classmethod
    def from_store(cls, structure: Structure, store: Tensor) -> ArrowMatrix:
        """Cuts the flat store of a structure, shape `(n_entries,)`, into a matrix."""
        n_local, g = len(structure.local), structure.n_border
        sizes = [n * m * m for n, m in structure.groups]
        parts = torch.split(store[:-1], [*sizes, n_local * g, g * g])
        blocks = tuple(part.reshape(n, m, m) for part, (n, m) in zip(parts, structure.groups, strict=False))
        return cls(structure, blocks, parts[-2].reshape(n_local, g), parts[-1].reshape(g, g))

    def diagonal(self) -> Tensor:
        """Returns the diagonal, shape `(p,)`."""
        local = [block.diagonal(dim1=-2, dim2=-1).reshape(-1) for block in self.blocks]
        return self._joined(torch.cat([*local, self.corner.new_zeros(0)]), self.corner.diagonal())

    def add_diagonal(self, diagonal: Tensor) -> ArrowMatrix:
        """Returns the matrix with a diagonal `(p,)` added."""
        local, border = self.split(diagonal)
        blocks = [block + part.diag_embed() for block, part in zip(self.blocks, self._grouped(local), strict=True)]
        return ArrowMatrix(self.structure, tuple(blocks), self.strip, self.corner + border.diag())

    def scaled(self, scale: Tensor) -> ArrowMatrix:
        """Returns D M D with D the diagonal matrix of `scale`, shape `(p,)`."""
        local, border = self.split(scale)
        parts = zip(self.blocks, self._grouped(local), strict=True)
        blocks = tuple(part[:, :, None] * block * part[:, None, :] for block, part in parts)
        return ArrowMatrix(
            self.structure,
            blocks,
            local[:, None] * self.strip * border,
            border[:, None] * self.corner * border,
        )

    def matvec(self, vector: Tensor) -> Tensor:
        """Multiplies a vector `(p,)`."""
        local, border = self.split(vector)
        parts = zip(self.blocks, self._grouped(local), strict=True)
        inner = [(block @ part[..., None]).reshape(-1) for block, part in parts]
        return self._joined(
            torch.cat([*inner, local.new_zeros(0)]) + self.strip @ border,
            self.strip.T @ local + self.corner @ border,
        )

    def to_dense(self) -> Tensor:
        """Returns the matrix with all its zeros, shape `(p, p)`."""
        s = self.structure
        dense = self.corner.new_zeros(s.n_parameters, s.n_parameters)
        place = 0
        for block in self.blocks:
            n, m, _ = block.shape
            members = s.local[place : place + n * m].reshape(n, m)
            dense[members[:, :, None], members[:, None, :]] = block
            place += n * m
        dense[s.local[:, None], s.border] = self.strip
        dense[s.border[:, None], s.local] = self.strip.T
        dense[s.border[:, None], s.border] = self.corner
        return dense

    def factorize(self, damping: Tensor | None = None) -> ArrowFactor:
        """Prepares solving; directions of negative or no curvature are turned up, and `ArrowFactor.lifted` says so.

        Args:
            damping: Added to the diagonal of each block and, last, of the corner, shape `(n_blocks + 1,)`.
        """
        roots, lifted = [], []
        damping = self.corner.new_zeros(self.structure.n_blocks + 1) if damping is None else damping
        first = 0
        for block in self.blocks:
            root, up = _positive_root(block, damping[first : first + len(block)])
            roots.append(root)
            lifted.append(up)
            first += len(block)
        w = torch.cat(
            [
                torch.cholesky_solve(part.reshape(*root.shape[:-1], self.structure.n_border), root).reshape(part.shape)
                for root, part in zip(roots, self._strips(), strict=True)
            ]
            + [self.strip[:0]]
        )
        schur = self.corner - self.strip.T @ w
        root, up = _positive_root(schur[None], damping[-1:])
        return ArrowFactor(self, tuple(roots), w, root[0], torch.cat([*lifted, up]))

    def split(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the local and the border part of a vector `(p,)`."""
        return vector[self.structure.local], vector[self.structure.border]

    def _joined(self, local: Tensor, border: Tensor) -> Tensor:
        vector = local.new_empty(self.structure.n_parameters)
        vector[self.structure.local], vector[self.structure.border] = local, border
        return vector

    def _grouped(self, local: Tensor) -> list[Tensor]:
        """Cuts a local vector into `(n_blocks, m)` for each size."""
        parts = torch.split(local, [n * m for n, m in self.structure.groups])
        return [part.reshape(n, m) for part, (n, m) in zip(parts, self.structure.groups, strict=True)]

    def _strips(self) -> tuple[Tensor, ...]:
        return torch.split(self.strip, [n * m for n, m in self.structure.groups])


@dataclass(frozen=True, eq=False)
class ArrowFactor:
    """A factorised arrow matrix, positive definite.

    Args:
        matrix: What was factorised.
        roots: Cholesky factors of the blocks, by size.
        w: Blocks' inverse times the border, shape `(n_local, n_border)`.
        root: Cholesky factor of the Schur complement, shape `(n_border, n_border)`.
        lifted: Whether a block (the last entry: the Schur complement) was not positive definite, `(n_blocks + 1,)`.
    """

    matrix: ArrowMatrix
    roots: tuple[Tensor, ...]
    w: Tensor
    root: Tensor
    lifted: Tensor

    def solve(self, vector: Tensor) -> Tensor:
        """Returns the inverse times a vector `(p,)`."""
        m = self.matrix
        local, border = m.split(vector)
        inner = self._solve_blocks(local)
        shared = torch.cholesky_solve((border - m.strip.T @ inner)[:, None], self.root)[:, 0]
        return m._joined(inner - self.w @ shared, shared)

    def inverse_diagonal(self) -> Tensor:
        """Returns the diagonal of the inverse, exactly, shape `(p,)`."""
        corner = self.inverse_corner()
        own = [torch.cholesky_inverse(root).diagonal(dim1=-2, dim2=-1).reshape(-1) for root in self.roots]
        local = torch.cat([*own, corner.new_zeros(0)]) + (self.w @ corner * self.w).sum(-1)
        return self.matrix._joined(local, corner.diagonal())

    def inverse_corner(self) -> Tensor:
        """Returns the part of the inverse that belongs to the border, shape `(n_border, n_border)`."""
        return torch.cholesky_inverse(self.root)

    def inverse_columns(self, which: Tensor) -> Tensor:
        """Returns columns of the inverse, shape `(p, n)`, for parameters `(n,)`."""
        unit = torch.zeros(self.matrix.structure.n_parameters, len(which), dtype=torch.float64)
        unit[which, torch.arange(len(which))] = 1.0
        return torch.stack([self.solve(column) for column in unit.T], -1)

    def inverse(self) -> Tensor:
        """Returns the inverse with all its entries, shape `(p, p)`: its memory grows with the square of p."""
        s, corner = self.matrix.structure, self.inverse_corner()
        outer = self.w @ corner  # (n_local, n_border)
        local = outer @ self.w.T
        place = 0
        for root in self.roots:
            n, m, _ = root.shape
            rows = torch.arange(place, place + n * m).reshape(n, m)
            local[rows[:, :, None], rows[:, None, :]] += torch.cholesky_inverse(root)
            place += n * m
        dense = corner.new_empty(s.n_parameters, s.n_parameters)
        dense[s.local[:, None], s.local] = local
        dense[s.local[:, None], s.border] = -outer
        dense[s.border[:, None], s.local] = -outer.T
        dense[s.border[:, None], s.border] = corner
        return dense

    def _solve_blocks(self, local: Tensor) -> Tensor:
        parts = zip(self.roots, self.matrix._grouped(local), strict=True)
        solved = [torch.cholesky_solve(part[..., None], root).reshape(-1) for root, part in parts]
        return torch.cat([*solved, local.new_zeros(0)])


def _positive_root(blocks: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Returns Cholesky factors of blocks `(n, m, m)`, made positive where they are not, and which those were."""
    eye = torch.eye(blocks.shape[-1], dtype=torch.float64)
    root, info = torch.linalg.cholesky_ex(blocks + damping[:, None, None] * eye)
    smallest = root.diagonal(dim1=-2, dim2=-1).square()
    bad = (info > 0) | (smallest < SMALLEST_CURVATURE).any(-1)
    if bad.any():
        values, vectors = torch.linalg.eigh(blocks[bad])
        values = values.abs().clamp(min=SMALLEST_CURVATURE) + damping[bad, None]
        root = root.clone()
        root[bad] = torch.linalg.cholesky((vectors * values[:, None, :]) @ vectors.mT)
    return root, bad
