"""SignalPrior: Gaussian signals injected into sampled backgrounds on one binning."""

from __future__ import annotations

__all__ = ["SignalPrior"]

from dataclasses import dataclass

import torch
from torch import Tensor

from specfit.errors import InputError
from specfit.generator.ranges import Range, check_range, uniform
from specfit.shapes import Gaussian


@dataclass(frozen=True)
class SignalPrior:
    """What is injected: a Gaussian, into a share of the spectra.

    Args:
        probability: Share of spectra that get a signal.
        mass: Range of the position, in the unit of the edges.
        relative_width: Range of the standard deviation over the mass.
        events: Range of the expected number of signal events, or None.
        strength: Range of the same number in units of the square root of the background within two standard
            deviations around the mass, or None. Exactly one of `events` and `strength` is given.
    """

    probability: float = 1.0
    mass: Range = (1000.0, 1000.0)
    relative_width: Range = (0.1, 0.1)
    events: Range | None = None
    strength: Range | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise InputError(f"probability: a share between 0 and 1 is expected, {self.probability} came")
        if (self.events is None) == (self.strength is None):
            raise InputError("signal: give exactly one of events and strength")
        check_range("mass", self.mass, above=0.0)
        check_range("relative_width", self.relative_width, above=0.0)
        name = "strength" if self.events is None else "events"
        check_range(name, getattr(self, name), least=0.0)

    def sample(self, background: Tensor, edges: Tensor, *, rng: torch.Generator) -> Tensor:
        """Draws the expected signal events per bin, shape `(size, n_bins)`, for backgrounds of that shape."""
        size, device = len(background), background.device
        mass = uniform(self.mass, size, rng=rng).to(torch.float64)
        width = mass * uniform(self.relative_width, size, rng=rng)
        is_injected = torch.rand(size, generator=rng, device=device) < self.probability
        amount = uniform(self.events or self.strength or (0, 0), size, rng=rng)
        if self.strength is not None:
            centers = (edges[1:] + edges[:-1]) / 2
            near = (centers - mass[:, None]).abs() < 2 * width[:, None]
            amount = amount * (background * near).sum(-1).clamp(min=1.0).sqrt()
        shape = Gaussian(mass, width).log_bins(edges).exp().to(background.dtype)
        return shape * (amount * is_injected)[:, None]
