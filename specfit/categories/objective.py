r"""The objective: significance of all categories together, and what it costs to rely on too few events.

For signal a with :math:`S_k` events on :math:`B_k` in category k, where :math:`B_k` contains all other signals,
:math:`Z_a = \sqrt{\sum_k Z_A(S_k, B_k)^2}` with the Asimov significance of `specfit.significance`. Several signals are
combined by their geometric mean, or as the caller likes.

A category with a handful of simulated background events looks significant because its background fluctuated down. Two
penalties, or constraints, keep the optimum away from it: the background of each category should reach
`least_background`, its relative statistical uncertainty should stay below `largest_uncertainty`.
"""

from __future__ import annotations

__all__ = ["Objective", "Terms", "geometric_mean"]

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from specfit.categories.sample import Yields
from specfit.errors import InputError
from specfit.significance import asimov_deviance, asimov_significance

# Fewer events than this are taken as this many: a category that lost its background to negative weights, or never had
# any, must not be worth an infinite significance.
FEWEST = 1e-9
# A smaller fraction of all background is the rounding of an empty sum.
NO_BACKGROUND = 1e-10
# Added to squared significances where their logarithm is taken.
NO_SIGNIFICANCE = 1e-12
# Far below every sum that means something, and no denormal number where its root is divided by.
NO_VARIANCE = 1e-200
# Constraints are aimed at with so much room, and pushed with such a force, that the optimum lies inside.
ROOM, FORCE = 0.02, 10.0


class Terms(NamedTuple):
    """What is reported of a training, shape `(*,)` for yields of shape `(*, n_categories)`."""

    loss: Tensor
    """Minus the combined significance."""
    low_background: Tensor
    """Penalty for categories with too little background, before its strength."""
    high_uncertainty: Tensor
    """Penalty for categories whose background is too uncertain, before its strength."""


def geometric_mean(significances: Tensor) -> Tensor:
    """Computes the geometric mean over the signals; its gradient is finite where one of them is 0.

    Example:
        >>> geometric_mean(torch.tensor([2.0, 8.0]).double())
        tensor(4.0000, dtype=torch.float64)
    """
    if significances.shape[-1] == 1:
        return significances[..., 0]
    return (0.5 * (significances.square() + NO_SIGNIFICANCE).log().mean(-1)).exp()


@dataclass(frozen=True)
class Objective:
    r"""What categories are optimised for.

    Args:
        combine: Significances of the signals, shape `(n_signals,)`, to one number.
        least_background: Events of background that each category should hold.
        largest_uncertainty: Statistical uncertainty of the background of a category, relative to it, that is accepted.
        background_strength: Strength of the penalty :math:`\sum_k \max(0, B_{min} - B_k)^2`.
        uncertainty_strength: Strength of the same penalty for the relative uncertainty.
        constrained: Both limits are kept exactly instead: of a training only states that respect them count.
        systematic: Relative systematic uncertainty of the background that the significance knows of.
        simulation: The significance also knows of the statistical uncertainty of the background.

    Raises:
        InputError: A number is negative.
    """

    combine: Callable[[Tensor], Tensor] = geometric_mean
    least_background: float = 10.0
    largest_uncertainty: float = 0.2
    background_strength: float = 0.0
    uncertainty_strength: float = 0.0
    constrained: bool = False
    systematic: float = 0.0
    simulation: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float | int) and not value >= 0:
                raise InputError(f"{name}: a number from 0 upwards is expected, {value} came")

    def significances(self, yields: Yields) -> Tensor:
        """Computes the significance of each signal, shape `(n_signals,)`."""
        if self.systematic or self.simulation:
            return _root(self.by_category(yields).square().sum(-1))
        return _root(asimov_deviance(*self._signal_and_background(yields)).sum(-1))

    def by_category(self, yields: Yields) -> Tensor:
        """Computes the significance of each signal in each category, shape `(n_signals, n_categories)`."""
        signal, background = self._signal_and_background(yields)
        if not self.systematic and not self.simulation:
            return _root(asimov_deviance(signal, background))
        variance = (self.systematic * background) ** 2
        if self.simulation:
            variance = variance + yields.variance[..., None, :]
        answer: Tensor = asimov_significance(signal, background, uncertainty=_root(variance))
        return answer

    def terms(self, yields: Yields) -> Terms:
        """Computes the loss and both penalties."""
        loss = -self.combine(self.significances(yields))
        low, high = self.penalties(yields)
        return Terms(loss, low, high)

    def cost(self, yields: Yields) -> Tensor:
        """Computes what a training minimises, a scalar: the loss and the penalties that count."""
        cost = -self.combine(self.significances(yields))
        strengths = (self.background_strength, self.uncertainty_strength)
        if any(strengths):
            low, high = self.penalties(yields)
            cost = cost + strengths[0] * low + strengths[1] * high
        if self.constrained:
            low, high = self.penalties(yields, room=ROOM)
            cost = cost + FORCE * (low + high)
        return cost

    def penalties(self, yields: Yields, *, room: float = 0.0) -> tuple[Tensor, Tensor]:
        """Computes both penalties without their strengths; limits are tighter by the fraction `room`."""
        lacking = torch.relu(self.least_background * (1 + room) - yields.background)
        excess = torch.relu(relative_uncertainty(yields) - self.largest_uncertainty * (1 - room))
        return lacking.square().sum(-1), excess.square().sum(-1)

    def are_feasible(self, yields: Yields) -> Tensor:
        """Tells which categories respect both limits, shape `(*, n_categories)`."""
        enough = yields.background >= self.least_background
        return enough & (relative_uncertainty(yields) <= self.largest_uncertainty)

    def are_sound(self, yields: Yields) -> Tensor:
        """Tells whether categories can count as the best, shape `(*,)`.

        Of a constrained objective all must respect the limits; of any other none may be without background, where the
        significance has no bound.
        """
        if self.constrained:
            return self.are_feasible(yields).all(-1)
        background = yields.background
        return (background > NO_BACKGROUND * background.sum(-1, keepdim=True)).all(-1)

    def _signal_and_background(self, yields: Yields) -> tuple[Tensor, Tensor]:
        signal, background = yields.signal, yields.background[..., None, :]
        if signal.shape[-2] > 1:
            background = background + signal.sum(-2, keepdim=True) - signal
        return signal.clamp(min=0.0), background.clamp(min=FEWEST)


def relative_uncertainty(yields: Yields) -> Tensor:
    """Computes the statistical uncertainty of the background of each category relative to it."""
    return _root(yields.variance) / yields.background.clamp(min=FEWEST)


def _root(x: Tensor) -> Tensor:
    """Computes the square root; at 0 its slope is huge but finite, and no signal gives no gradient instead of NaN."""
    return (x + NO_VARIANCE).sqrt()
