r"""Mass windows: what a category holds under a resonance, estimated from its whole mass range.

A resonance shows in a small window, where few simulated background events lie. With an exponential fitted to the mass
of all background events of a category, the share of the exponential in the window times the yield of the category is a
background with many times the events.

What to use when: `fit="likelihood"` maximises the (unbinned, weighted) Poisson likelihood, which uses every event once;
`fit="least_squares"` is the unweighted least-squares fit of a histogram that the original of arXiv:2601.07756 makes.
"""

from __future__ import annotations

__all__ = ["MassWindow"]

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from specfit.errors import InputError
from specfit.shapes import Exponential

Fit = Literal["likelihood", "least_squares"]
# Beyond this slope an exponential falls by 1e-300 over the range.
STEEPEST = 700.0
BISECTIONS = 60
START_SLOPE = -0.03  # of the least-squares fit, per GeV
MOST_CALLS = 2000


@dataclass(frozen=True)
class MassWindow:
    """A window in the mass, and how the background in it is estimated.

    Args:
        low: Lower end of the window, included.
        high: Upper end, included.
        range_low: Lower end of the range that the fit uses.
        range_high: Upper end.
        fit: How exponentials are fitted.
        n_bins: Bins of the least-squares fit.
        interval: Epochs after which a training fits again.
        scaled: Backgrounds that are estimated in this way; None means all. Of the others only events in the window
            count.

    Raises:
        InputError: The window does not lie in the range, or there is no such fit.
    """

    low: float = 123.5
    high: float = 126.5
    range_low: float = 100.0
    range_high: float = 180.0
    fit: Fit = "likelihood"
    n_bins: int = 10
    interval: int = 50
    scaled: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.range_low <= self.low < self.high <= self.range_high:
            raise InputError(
                f"window: {self.low:g} to {self.high:g} does not lie in {self.range_low:g} to {self.range_high:g}"
            )
        if self.fit not in get_args(Fit):
            raise InputError(f"fit: one of {', '.join(get_args(Fit))} is expected, {self.fit!r} came")
        if self.interval < 1 or self.n_bins < 2:
            raise InputError(f"interval: 1 or more, n_bins: 2 or more, {self.interval} and {self.n_bins} came")

    @property
    def flat_share(self) -> float:
        """Share of the window where no fit is possible: that of a flat mass."""
        return (self.high - self.low) / (self.range_high - self.range_low)

    def shares(self, mass: Tensor, weights: Tensor, category: Tensor, n_categories: int) -> Tensor:
        """Estimates which share of the background of each category lies in the window, shape `(n_categories,)`.

        A category without a usable fit (no events, none in the window, a negative sum) gets `flat_share`.

        Args:
            mass: Mass of each event, shape `(n,)`; those outside the range are left out.
            weights: Shape `(n,)`.
            category: Shape `(n,)`.
            n_categories: Number of categories.
        """
        inside = (mass >= self.range_low) & (mass <= self.range_high)
        mass, weights, category = mass[inside], weights[inside], category[inside]
        slopes = (self._slopes if self.fit == "likelihood" else self._least_squares_slopes)(
            mass, weights, category, n_categories
        )
        in_window = (mass >= self.low) & (mass <= self.high)
        seen = _sums(weights[in_window], category[in_window], n_categories)
        usable = slopes.isfinite() & (seen > 0)
        shares = self.share_of(torch.where(usable, slopes, 0.0))
        return torch.where(usable, shares, self.flat_share)

    def share_of(self, slope: Tensor) -> Tensor:
        """Computes the share of exponentials of these slopes, per unit of mass, that lies in the window."""
        edges = slope.new_tensor([self.range_low, self.low, self.high, self.range_high])
        return torch.where(edges.diff() > 0, Exponential(slope).log_bins(edges), -torch.inf).softmax(-1)[..., 1]

    def _slopes(self, mass: Tensor, weights: Tensor, category: Tensor, n: int) -> Tensor:
        """Solves the likelihood equation: the exponential has the mean of the events."""
        width = self.range_high - self.range_low
        total = _sums(weights, category, n)
        mean = _sums(weights * (mass - self.range_low) / width, category, n) / total
        low, high = (mean.new_full((n,), sign * STEEPEST) for sign in (-1, 1))
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            too_flat = _mean_of(middle) > mean
            low, high = torch.where(too_flat, middle, low), torch.where(too_flat, high, middle)
        found = (total > 0) & (mean > 0) & (mean < 1)
        return torch.where(found, (low + high) / 2, torch.nan) / width

    def _least_squares_slopes(self, mass: Tensor, weights: Tensor, category: Tensor, n: int) -> Tensor:
        edges = np.linspace(self.range_low, self.range_high, self.n_bins + 1)
        centers = (edges[1:] + edges[:-1]) / 2
        m, w, c = (value.cpu().numpy() for value in (mass, weights, category))
        slopes = []
        for k in range(n):
            heights, _ = np.histogram(m[c == k], edges, weights=w[c == k])
            slopes.append(_least_squares_slope(centers, heights))
        return mass.new_tensor(slopes)


def _sums(values: Tensor, category: Tensor, n: int) -> Tensor:
    return values.new_zeros(n).index_add_(0, category, values)


def _mean_of(slope: Tensor) -> Tensor:
    """Computes the mean of exp(-slope u) on 0 to 1; near 0 by its series."""
    near = slope.abs() < 1e-3
    far = torch.where(near, 1.0, slope)
    return torch.where(near, 0.5 - slope / 12, 1 / far - 1 / torch.expm1(far))


def _least_squares_slope(centers: np.ndarray, heights: np.ndarray) -> float:
    def exponential(x: np.ndarray, height: float, slope: float) -> np.ndarray:
        value: np.ndarray = height * np.exp(slope * x)
        return value

    if not heights.any():
        return float("nan")
    start = (max(heights[0], 1e-6), START_SLOPE)
    try:
        with np.errstate(over="ignore"):
            (height, slope), _ = scipy.optimize.curve_fit(
                exponential, centers - centers[0], heights, p0=start, maxfev=MOST_CALLS
            )
    except (RuntimeError, scipy.optimize.OptimizeWarning):
        return float("nan")
    return float(-slope) if height > 0 else float("nan")
