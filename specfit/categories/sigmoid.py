r"""Sigmoid bins: rows of ordered boundaries whose steps are sigmoids, in one or several variables.

With raw parameters :math:`r_1 \dots r_m` of a variable and :math:`p = \mathrm{softmax}(r_1, \dots, r_m, 0)`, boundary
i lies at :math:`\text{low} + (\text{high} - \text{low}) \sum_{l \le i} p_l`: always in order, always inside. An event
lies right of it with :math:`\sigma(k (x - b_i) / (\text{high} - \text{low}))`, so a steepness means the same on every
axis. Values outside the range belong to the outer bins.
"""

from __future__ import annotations

__all__ = ["SigmoidBins"]

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from specfit.categories.base import Bins
from specfit.categories.passes import direct_totals
from specfit.categories.sample import Sample
from specfit.errors import InputError


class SigmoidBins(Bins):
    """Bins of one discriminant, or the product of bins of several.

    With several variables the category is a number in mixed base, the first variable slowest.

    Args:
        bins: Number of bins, 2 or more, of each variable.
        low: Lower end of each variable, or of all.
        high: Upper end.
        steepness: Of all steps, in units of the inverse range.
        rng: Draws the start; None puts the boundaries at equal distances.

    Raises:
        InputError: Fewer than two bins, or an empty range.

    Example:
        >>> bins = SigmoidBins(4, steepness=1e3)
        >>> bins.boundaries().tolist(), bins.assign(torch.tensor([0.1, 0.25, 0.9]).double()).tolist()
        ([0.25, 0.5, 0.75], [0, 1, 3])
    """

    SHARPNESS = "steepness"

    def __init__(
        self,
        bins: int | Sequence[int],
        *,
        low: float | Sequence[float] = 0.0,
        high: float | Sequence[float] = 1.0,
        steepness: float = 50.0,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.bins = (bins,) if isinstance(bins, int) else tuple(bins)
        self.low, self.high = _one_each(low, self.bins), _one_each(high, self.bins)
        if not self.bins or min(self.bins) < 2:
            raise InputError(f"bins: two or more of each variable are expected, {list(self.bins)} came")
        if any(not a < b for a, b in zip(self.low, self.high, strict=True)):
            raise InputError(f"high: must lie above low, {list(self.low)} to {list(self.high)} came")
        self.n_features, self.n_categories = len(self.bins), prod(self.bins)
        self.raw = torch.nn.ParameterList(torch.zeros(n - 1, dtype=torch.float64) for n in self.bins)
        self.register_buffer("sharpness", torch.tensor(float(steepness), dtype=torch.float64))
        if rng is not None:
            self.reset(rng)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor as plain data."""
        return {
            "bins": list(self.bins),
            "low": list(self.low),
            "high": list(self.high),
            "steepness": self.sharpness.item(),
        }

    def boundaries(self, variable: int = 0) -> Tensor:
        """Computes the inner boundaries of a variable in increasing order, shape `(bins - 1,)`."""
        raw = self.raw[variable]
        share = torch.softmax(torch.cat((raw, raw.new_zeros(1))), 0)
        low, high = self.low[variable], self.high[variable]
        return low + (high - low) * share.cumsum(0)[:-1]

    @torch.no_grad()
    def place(self, boundaries: Tensor, variable: int = 0) -> None:
        """Moves the boundaries of a variable.

        Raises:
            InputError: They do not increase strictly inside the range, or are not as many as before.
        """
        low, high = self.low[variable], self.high[variable]
        edges = torch.cat((boundaries.new_tensor([low]), boundaries.double(), boundaries.new_tensor([high])))
        if len(boundaries) != self.bins[variable] - 1 or (edges.diff() <= 0).any():
            raise InputError(
                f"boundaries: {self.bins[variable] - 1} are expected, increasing between {low:g} and {high:g}, "
                f"{boundaries.tolist()} came"
            )
        share = edges.diff().log()
        self.raw[variable].copy_(share[:-1] - share[-1])

    @torch.no_grad()
    def reset(self, rng: torch.Generator) -> None:
        """Draws every raw parameter uniformly from -2 to 2."""
        for raw in self.raw:
            raw.copy_(4 * torch.rand(raw.shape, generator=rng, dtype=raw.dtype).to(raw.device) - 2)

    def memberships(self, features: Tensor) -> Tensor:
        """Computes the share of each bin in each event, shape `(n, n_categories)`."""
        features = self._check_features(features).double()
        product = features.new_ones(len(features), 1)
        for i in range(self.n_features):
            k = self.sharpness / (self.high[i] - self.low[i])
            right = torch.sigmoid(k * (features[:, i, None] - self.boundaries(i)))
            edge = right.new_ones(len(right), 1)
            in_bin = torch.cat((edge, right), 1) - torch.cat((right, 0 * edge), 1)  # (n, bins)
            product = (product[:, :, None] * in_bin[:, None, :]).flatten(1)
        return product

    @torch.no_grad()
    def assign(self, features: Tensor) -> Tensor:
        """Returns the bin of each event, shape `(n,)`; a value on a boundary lies right of it."""
        features = self._check_features(features).double()
        category = torch.zeros(len(features), dtype=torch.int64, device=features.device)
        for i, n in enumerate(self.bins):
            category = category * n + torch.searchsorted(self.boundaries(i), features[:, i].contiguous(), right=True)
        return category

    def soft_totals(self, sample: Sample) -> Tensor:
        """Computes the soft sums of each column, shape `(n_columns, n_categories)`."""
        self._check_features(sample.features)
        if self.n_features > 1:
            return direct_totals(self.memberships, sample)
        steepness = self.sharpness.item() / (self.high[0] - self.low[0])
        return _between(sample.cells.tails[:, :1], sample.cells.softly_right_of(self.boundaries(), steepness))

    @torch.no_grad()
    def hard_totals(self, sample: Sample) -> Tensor:
        """Computes the sums of each column over the events of each bin, shape `(n_columns, n_categories)`."""
        self._check_features(sample.features)
        if self.n_features > 1:
            return sample.hard_totals(self.assign(sample.features), self.n_categories)
        return _between(sample.cells.tails[:, :1], sample.cells.right_of(self.boundaries()))


def _between(total: Tensor, right: Tensor) -> Tensor:
    """Turns sums right of each boundary into sums between them."""
    return -torch.cat((total, right, torch.zeros_like(total)), 1).diff(dim=1)


def _one_each(value: float | Sequence[float], bins: tuple[int, ...]) -> tuple[float, ...]:
    values = (float(value),) * len(bins) if isinstance(value, int | float) else tuple(map(float, value))
    if len(values) != len(bins):
        raise InputError(f"range: {len(bins)} ends are expected, one a variable, {list(values)} came")
    return values
