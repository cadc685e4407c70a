r"""Gaussian mixture bins: categories in any number of dimensions, one Gaussian each.

An event at x belongs to category k with

.. math:: \gamma_k(x) = \frac{[\pi_k \mathcal N(x; \mu_k, \Sigma_k)]^{1/T}}
                              {\sum_l [\pi_l \mathcal N(x; \mu_l, \Sigma_l)]^{1/T}}

and in the end to the category where this is largest, whatever T: borders are pieces of conics. At T = 1 these are the
responsibilities of the mixture; as T falls they become hard. T is read anew in every step, so annealing it acts.
"""

from __future__ import annotations

__all__ = ["GaussianMixtureBins"]

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from specfit.categories.base import Bins
from specfit.categories.quadratic import monomials, quadratic_form
from specfit.categories.sample import Sample
from specfit.errors import InputError

Region = Literal["simplex", "box"]
BLOCK = 65_536


class GaussianMixtureBins(Bins):
    r"""Categories that are the strongholds of Gaussians.

    Args:
        n_categories: Number of categories, 2 or more.
        n_features: Number of dimensions.
        temperature: Softness of the memberships.
        region: Where means may lie: "simplex", for scores that add up to at most 1 (leave out the last of a softmax),
            or "box".
        low: Lower end of the box in each dimension, or in all.
        high: Upper end.
        damping: What off-diagonal elements of the Cholesky factors are multiplied by: the smaller, the slower shapes
            turn.
        rng: Draws the start; None puts all means in the middle, from where no gradient tells them apart.

    Raises:
        InputError: Fewer than two categories, another region, or an empty box.

    Example:
        >>> bins = GaussianMixtureBins(3, 2, rng=torch.Generator().manual_seed(1))
        >>> round(bins.memberships(torch.tensor([[0.2, 0.7]]).double()).sum().item(), 12)
        1.0
    """

    SHARPNESS = "temperature"

    def __init__(
        self,
        n_categories: int,
        n_features: int,
        *,
        temperature: float = 1.0,
        region: Region = "simplex",
        low: float | Sequence[float] = 0.0,
        high: float | Sequence[float] = 1.0,
        damping: float = 0.1,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if n_categories < 2 or n_features < 1:
            raise InputError(f"n_categories: 2 or more in 1 or more dimensions, {n_categories} in {n_features} came")
        if region not in get_args(Region):
            raise InputError(f"region: one of {', '.join(get_args(Region))} is expected, {region!r} came")
        ends = [torch.as_tensor(end, dtype=torch.float64).expand(n_features).clone() for end in (low, high)]
        if not (ends[0] < ends[1]).all():
            raise InputError(f"high: must lie above low, {low} to {high} came")
        self.n_categories, self.n_features, self.region, self.damping = n_categories, n_features, region, damping
        self.ends = ends
        self.log_weights = torch.nn.Parameter(torch.zeros(n_categories, dtype=torch.float64))
        self.raw_means = torch.nn.Parameter(torch.zeros(n_categories, n_features, dtype=torch.float64))
        self.raw_factors = torch.nn.Parameter(torch.zeros(n_categories, n_features, n_features, dtype=torch.float64))
        self.register_buffer("sharpness", torch.tensor(float(temperature), dtype=torch.float64))
        if rng is not None:
            self.reset(rng)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor as plain data."""
        return {
            "n_categories": self.n_categories,
            "n_features": self.n_features,
            "temperature": self.sharpness.item(),
            "region": self.region,
            "low": self.ends[0].tolist(),
            "high": self.ends[1].tolist(),
            "damping": self.damping,
        }

    @torch.no_grad()
    def reset(self, rng: torch.Generator) -> None:
        """Draws mixture weights and means around the middle; all Gaussians start round and of one size."""

        def normal(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=rng, dtype=like.dtype).to(like.device)

        self.log_weights.copy_(0.1 * normal(self.log_weights))
        self.raw_means.copy_(2 * normal(self.raw_means))
        self.raw_factors.zero_()

    def means(self) -> Tensor:
        """Computes the means, shape `(n_categories, n_features)`."""
        if self.region == "simplex":
            raw = torch.cat((self.raw_means, torch.zeros_like(self.raw_means[:, :1])), 1)
            return torch.softmax(raw, 1)[:, :-1]
        low, high = (end.to(self.raw_means.device) for end in self.ends)
        return low + torch.sigmoid(self.raw_means) * (high - low)

    def factors(self) -> Tensor:
        """Computes the lower Cholesky factors of the covariances, shape `(n_categories, n_features, n_features)`."""
        diagonal = self.raw_factors.diagonal(dim1=1, dim2=2).exp()
        lower = self.damping * self.raw_factors.tril(-1) + torch.diag_embed(diagonal)
        return self._size().to(lower.device)[:, None] * lower

    def memberships(self, features: Tensor) -> Tensor:
        """Computes the share of each category in each event, shape `(n, n_categories)`."""
        features = self._check_features(features).double()
        return torch.softmax(self._log_densities(features) / self.sharpness, 0).T

    @torch.no_grad()
    def assign(self, features: Tensor) -> Tensor:
        """Returns the category of each event, shape `(n,)`."""
        features = self._check_features(features).double()
        parts = range(0, len(features), BLOCK)
        blocks = [self._log_densities(features[first : first + BLOCK]).argmax(0) for first in parts]
        return torch.cat(blocks) if blocks else torch.zeros(0, dtype=torch.int64, device=features.device)

    def soft_totals(self, sample: Sample) -> Tensor:
        """Computes the soft sums of each column, shape `(n_columns, n_categories)`."""
        self._check_features(sample.features)
        sums = sample.quadratic
        return sums.soft_totals(self._coefficients(sums.center) / self.sharpness)

    @torch.no_grad()
    def hard_totals(self, sample: Sample) -> Tensor:
        """Computes the sums of each column over the events of each category, shape `(n_columns, n_categories)`."""
        return sample.hard_totals(self.assign(sample.features), self.n_categories)

    @torch.no_grad()
    def boundaries(self) -> tuple[Tensor, Tensor]:
        """Computes, in one dimension, where the category changes, and the categories between.

        Returns:
            Boundaries in increasing order, shape `(n,)`, and categories from left to right, shape `(n + 1,)`. A
            category may win nowhere, or on both sides of another.

        Raises:
            InputError: There are several dimensions.
        """
        if self.n_features != 1:
            raise InputError(f"boundaries: these are for one dimension, the categories have {self.n_features}")
        c, b, a = self._coefficients(self.means().new_zeros(1)).T
        i, j = torch.triu_indices(self.n_categories, self.n_categories, 1, device=a.device)
        crossings = _roots(a[i] - a[j], b[i] - b[j], c[i] - c[j]).sort().values
        if len(crossings) == 0:
            return crossings, self.assign(self.means()[:1])
        ends = torch.cat((crossings[:1] - 1, (crossings[1:] + crossings[:-1]) / 2, crossings[-1:] + 1))
        winner = self.assign(ends)
        changes = winner.diff() != 0
        return crossings[changes], torch.cat((winner[:1], winner[1:][changes]))

    def _size(self) -> Tensor:
        """Computes the width at the start: as many balls of this radius as categories fill the region."""
        d = self.n_features
        ball = math.pi ** (d / 2) / math.gamma(d / 2 + 1)
        if self.region == "simplex":
            return self.ends[0].new_full((d,), (1 / (math.factorial(d) * self.n_categories * ball)) ** (1 / d))
        widths: Tensor = self.ends[1] - self.ends[0]
        return widths.mul((1 / (self.n_categories * ball)) ** (1 / d))

    def _coefficients(self, center: Tensor) -> Tensor:
        """Computes the log densities as coefficients of the monomials of x - center."""
        factors = self.factors()
        log_determinant = factors.diagonal(dim1=1, dim2=2).log().sum(1)
        precision = torch.cholesky_inverse(factors)
        return quadratic_form(
            torch.log_softmax(self.log_weights, 0) - log_determinant, self.means() - center, precision
        )

    def _log_densities(self, features: Tensor) -> Tensor:
        """Computes log densities with mixture weights, less a common constant, shape `(n_categories, n)`."""
        center = features.new_full((self.n_features,), 1 / (self.n_features + 1))
        return self._coefficients(center) @ monomials(features - center)


def _roots(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Returns all real roots of a x^2 + b x + c, also of linear ones."""
    discriminant = b * b - 4 * a * c
    real = discriminant >= 0
    # The form that loses no digits where a is small: q / a and c / q.
    q = -(b + torch.where(b >= 0, 1.0, -1.0) * discriminant.clamp(min=0).sqrt()) / 2
    roots = torch.cat(((q / a)[real], (c / q)[real]))
    return roots[roots.isfinite()]
