r"""Exact derivatives of a likelihood of cells, in the structure that the cells give its Hessian.

With :math:`F(y, y_0)` the profiled likelihood of a bin, the Hessian is
:math:`\sum_b (F'' \, \nabla y \nabla y^T + F' \, \nabla \nabla y)`. Only parameters that enter a bin appear in its
term, so the sum is formed where it lands in the blocks; systematics that move whole templates are matrix products.
"""

from __future__ import annotations

__all__ = ["ArrowDerivatives", "Expansion"]

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from specfit.stats.cells.arrow import ArrowMatrix
from specfit.stats.cells.assembly import Assembly, CompiledChannel
from specfit.stats.cells.bins import BinDerivatives, Bins
from specfit.stats.cells.samples import SampleDerivatives
from specfit.stats.cells.structure import Structure
from specfit.stats.likelihood import AutomaticDerivatives, Derivatives

# So many bins are worked on at a time where each has a row for every systematic: they stay in the processor's cache.
BINS_AT_A_TIME = 2048


class Expansion(NamedTuple):
    """A likelihood around a point, to second order."""

    gradient: Tensor
    """Shape `(p,)`."""
    hessian: ArrowMatrix


class Observed(NamedTuple):
    """Data of a likelihood in its parts."""

    counts: Tensor
    """Counts of all fitted bins, shape `(*, n_bins)`."""
    measured: Tensor
    """Measured factors of the simulation, 1 where there is none, shape `(*, n_bins)`."""
    centers: Tensor
    """Centres of the constraints, 0 where there is none, shape `(*, p)`."""


class ArrowDerivatives(Derivatives):
    """Gradient by reverse differentiation; Hessian block by block.

    Args:
        nll: Negative log likelihood of values `(*, p)`.
        assembly: Parameters and samples.
        structure: Where each entry of the Hessian goes.
        bins: Likelihood of each bin.
        observed: The data.
        precision: 1 / sigma^2 of each constraint, 0 where there is none, shape `(p,)`.
    """

    def __init__(
        self,
        nll: Callable[[Tensor], Tensor],
        assembly: Assembly,
        structure: Structure,
        *,
        bins: Bins,
        observed: Observed,
        precision: Tensor,
    ) -> None:
        self.structure = structure
        self._automatic = AutomaticDerivatives(nll)
        self._assembly, self._bins, self._observed, self._precision = assembly, bins, observed, precision
        # The same point is asked for many times in a row by conjugate gradients.
        self._latest: tuple[Tensor, Expansion] | None = None

    def gradient(self, values: Tensor) -> Tensor:
        """First derivatives, shape `(*, p)`."""
        return self._automatic.gradient(values)

    def hessian(self, values: Tensor) -> Tensor:
        """Second derivatives with all their zeros, shape `(*, p, p)`."""
        return self._rows(lambda expansion, _: expansion.hessian.to_dense(), values, values)

    def hvp(self, values: Tensor, vector: Tensor) -> Tensor:
        """Hessian times `vector`, both of shape `(*, p)`."""
        return self._rows(lambda expansion, v: expansion.hessian.matvec(v), values, vector)

    def curvature(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient `(*, p)` and Hessian `(*, p, p)`, computed together."""
        if values.ndim == 1 and self._observed.counts.ndim == 1:
            expansion = self.expand(values)
            return expansion.gradient, expansion.hessian.to_dense()
        return self.gradient(values), self.hessian(values)

    def preconditioner(self, values: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The inverse Hessian itself, made positive, at values `(p,)`."""
        return self.expand(values).hessian.factorize().solve

    def expand(self, values: Tensor, *, dense: bool = True) -> Expansion:
        """Computes gradient and Hessian together at values `(p,)`.

        Args:
            values: Where.
            dense: False leaves out systematics that move whole templates, as if they were fixed: much cheaper.
        """
        if not dense:
            return self._expand(values.detach(), self._observed, dense=False)
        if self._latest is None or not torch.equal(self._latest[0], values):
            self._latest = values.detach().clone(), self._expand(values.detach(), self._observed)
        return self._latest[1]

    def _rows(self, function: Callable[[Expansion, Tensor], Tensor], values: Tensor, vector: Tensor) -> Tensor:
        if values.ndim == 1 and self._observed.counts.ndim == 1:
            return function(self.expand(values), vector)
        batch = values.shape[:-1]
        parts = [part.expand(*batch, -1).reshape(-1, part.shape[-1]) for part in self._observed]
        rows = zip(values.reshape(-1, values.shape[-1]), vector.reshape(-1, vector.shape[-1]), *parts, strict=True)
        answers = [function(self._expand(value, Observed(*part)), v) for value, v, *part in rows]
        return torch.stack(answers).reshape(*batch, *answers[0].shape)

    def _expand(self, values: Tensor, observed: Observed, *, dense: bool = True) -> Expansion:
        s, p = self.structure, self.structure.n_parameters
        sums = _Sums(
            gradient=torch.zeros(p + 1, dtype=torch.float64),
            store=torch.zeros(s.n_entries, dtype=torch.float64),
            cross=torch.zeros(p + 1, s.n_border, dtype=torch.float64),
            corner=torch.zeros(s.n_border, s.n_border, dtype=torch.float64),
            border=torch.zeros(s.n_border, dtype=torch.float64),
        )
        first = 0
        for channel, target in zip(self._assembly.fitted, s.targets, strict=True):
            here = slice(first, first + channel.channel.n_bins)
            first = here.stop
            _add_channel(
                sums,
                channel,
                target,
                values,
                bins=Bins(self._bins.effective[here]),
                rank=s.rank if dense else None,
                data=(observed.counts[here], observed.measured[here]),
            )
        gradient = sums.gradient[:-1]
        gradient[s.border] += sums.border
        sparse = ArrowMatrix.from_store(s, sums.store)
        shared = sums.cross[s.border]
        corner = sparse.corner + sums.corner + shared + shared.T
        hessian = ArrowMatrix(s, sparse.blocks, sparse.strip + sums.cross[s.local], corner)
        pull = self._precision * (values - observed.centers)
        return Expansion(gradient + pull, hessian.add_diagonal(self._precision))


class _Sums(NamedTuple):
    """What the bins add up to; each tensor is added to in place."""

    gradient: Tensor  # (p + 1,); the last entry takes what belongs to no parameter
    store: Tensor  # flat entries of the arrow matrix between parameters of the tables
    cross: Tensor  # (p + 1, n_border), between parameters of the tables and dense ones
    corner: Tensor  # (n_border, n_border), between dense ones
    border: Tensor  # (n_border,), gradient of dense ones


class _Moved(NamedTuple):
    """How the bins of a channel move."""

    samples: list[SampleDerivatives]
    """One for each process."""
    exact: list[bool]
    """Whether its template is known without error."""
    curve: BinDerivatives
    """Derivatives of -ln L by the events of each kind."""

    def slopes(self) -> list[Tensor]:
        """First derivative of -ln L by the events of each process, shape `(n,)`."""
        return [self.curve.by_y0 if e else self.curve.by_y for e in self.exact]

    def of_bins(self, which: slice) -> _Moved:
        """Takes some of the bins."""
        curve = BinDerivatives(*(part[which] for part in self.curve))
        return _Moved([sample.of_bins(which) for sample in self.samples], self.exact, curve)


def _add_channel(
    sums: _Sums,
    channel: CompiledChannel,
    target: Tensor,
    values: Tensor,
    *,
    bins: Bins,
    rank: Tensor | None,
    data: tuple[Tensor, Tensor],
) -> None:
    samples = [sample.derivatives(values) for sample in channel.samples]
    exact = [sample.variances is None for sample in channel.samples]
    zero = torch.zeros(channel.channel.n_bins, dtype=torch.float64)
    y = sum((m.events for m, e in zip(samples, exact, strict=True) if not e), zero)
    y0 = sum((m.events for m, e in zip(samples, exact, strict=True) if e), zero)
    moved = _Moved(samples, exact, bins.derivatives(y, y0, *data))
    _add_tables(sums, channel, target, moved)
    if rank is not None and len(sums.border):
        _add_dense(sums, channel, moved, rank)


def _add_tables(sums: _Sums, channel: CompiledChannel, target: Tensor, moved: _Moved) -> None:
    """Adds what the parameters of the tables do, among themselves."""
    widths = [m.first.shape[-1] for m in moved.samples]
    if not sum(widths):
        return
    first, slopes = torch.cat([m.first for m in moved.samples], -1), moved.slopes()  # (n, k)
    slope = torch.cat([s[:, None].expand(-1, k) for s, k in zip(slopes, widths, strict=True)], -1)
    sums.gradient.index_add_(0, channel.table.reshape(-1), (slope * first).reshape(-1))
    is_exact = torch.tensor([e for e, k in zip(moved.exact, widths, strict=True) for _ in range(k)])
    hessian = _weights(moved.curve, is_exact) * first[:, :, None] * first[:, None, :]  # (n, k, k)
    place = 0
    for s, m, k in zip(slopes, moved.samples, widths, strict=True):
        hessian[:, place : place + k, place : place + k] += s[:, None, None] * m.second
        place += k
    sums.store.index_add_(0, target, hessian.reshape(-1))


def _weights(curve: BinDerivatives, is_exact: Tensor) -> Tensor:
    """Returns F'' for each pair of columns, shape `(n, k, k)` or `(n, 1, 1)` where all are of one kind."""
    if is_exact.all():
        return curve.by_y0_y0[:, None, None]
    if not is_exact.any():
        return curve.by_y_y[:, None, None]
    kinds = torch.stack([curve.by_y_y, curve.by_y_y0, curve.by_y0_y0])  # (3, n)
    which = is_exact[:, None].long() + is_exact[None, :].long()  # (k, k)
    return kinds[which].permute(2, 0, 1)


def _add_dense(sums: _Sums, channel: CompiledChannel, moved: _Moved, rank: Tensor) -> None:
    """Adds what systematics of whole templates do, among themselves and with the parameters of the tables."""
    for first in range(0, channel.channel.n_bins, BINS_AT_A_TIME):
        here = slice(first, first + BINS_AT_A_TIME)
        part = moved.of_bins(here)
        jacobian = _jacobians(channel, part, rank, here, n_border=len(sums.border))
        bent = _add_border(sums, part.curve, jacobian)
        for sample, m, e, slope in zip(channel.samples, part.samples, part.exact, part.slopes(), strict=True):
            rows = _add_sample(sums, m, slope, rank[sample.theta], bent=bent[e])
            for i, row in enumerate(rows):
                sums.cross.index_add_(0, sample.table[here, i], row)


def _jacobians(
    channel: CompiledChannel, moved: _Moved, rank: Tensor, here: slice, *, n_border: int
) -> dict[bool, Tensor]:
    """Returns the derivatives by the border of all exact (True) and all simulated (False) events, `(n, g)` each."""
    n = len(moved.curve.by_y)
    jacobian = {e: torch.zeros(n, n_border, dtype=torch.float64) for e in set(moved.exact)}
    for sample, m, e in zip(channel.samples, moved.samples, moved.exact, strict=True):
        jacobian[e].index_add_(1, rank[sample.theta], m.multiplied[:, None] * m.log_slope)
        jacobian[e].index_add_(1, rank[sample.theta_added], sample.added[here])
    return jacobian


def _add_border(sums: _Sums, curve: BinDerivatives, jacobian: dict[bool, Tensor]) -> dict[bool, Tensor]:
    """Adds F'' of the border; returns F'' times the derivatives by the border for events of each kind, `(n, g)`."""
    bent = {}
    for e in jacobian:
        parts = [_between(curve, e, other)[:, None] * one for other, one in jacobian.items()]
        bent[e] = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
        sums.border.add_(jacobian[e].T @ (curve.by_y0 if e else curve.by_y))
        sums.corner.add_(jacobian[e].T @ bent[e])
    return bent


def _add_sample(sums: _Sums, m: SampleDerivatives, slope: Tensor, theta: Tensor, *, bent: Tensor) -> list[Tensor]:
    """Adds F' of the border for one sample; returns what the border does with each column of its table, `(n, g)`."""
    pull = slope * m.multiplied
    # Two variations of one sample may have the same nuisance, hence the accumulation.
    sums.corner.index_put_((theta[:, None], theta), m.log_slope.T @ (pull[:, None] * m.log_slope), accumulate=True)
    if m.log_curvature is not None:
        sums.corner.index_put_((theta, theta), pull @ m.log_curvature, accumulate=True)
    rows = []
    for column in m.first.T:
        row = column[:, None] * bent
        rows.append(row.index_add_(1, theta, (slope * column)[:, None] * m.log_slope))
    return rows


def _between(curve: BinDerivatives, exact: bool, other: bool) -> Tensor:
    if exact != other:
        return curve.by_y_y0
    return curve.by_y0_y0 if exact else curve.by_y_y
