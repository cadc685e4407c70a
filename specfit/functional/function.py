"""What a function must answer to be fitted: its expected events on given bins, with derivatives, at many positions.

A `Function` is what the user chooses; `FunctionOnBins` is the same on one binning, ready for a search. A *position* is
the point of a search: numbers of order 1, shares of the total in place of yields, so that one length of step and one
damping serve every function.
"""

from __future__ import annotations

__all__ = ["SMALLEST_SHARE", "UNIFORM_PRECISION", "Function", "FunctionOnBins", "spread_points"]

from abc import ABC, abstractmethod

import torch
from torch import Tensor

# Least yield over the total, so that no expectation becomes zero.
SMALLEST_SHARE = 1e-9
# Precision of a quantity that is uniform between 0 and 1.
UNIFORM_PRECISION = 12.0
# Nearer than this to its end, as a share of the range, a parameter is said to sit at the limit.
AT_LIMIT = 1e-3


class Function(ABC):
    """A family of curves with parameters."""

    @abstractmethod
    def on(self, edges: Tensor) -> FunctionOnBins:
        """Prepares the function for bins with edges of shape `(n_bins + 1,)`.

        Raises:
            InputError: The function is not defined on these edges.
        """


class FunctionOnBins(ABC):
    """A function on one binning; m positions of n numbers at a time, float64.

    Args:
        names: Names of the parameters, n of them; those that begin with "yield" count events.
        low: Least position, shape `(n,)`.
        high: Largest position, same shape.
        longest_step: A step of a search moves no entry of a position further.
    """

    def __init__(self, names: list[str], low: Tensor, high: Tensor, *, longest_step: float) -> None:
        self.names, self.low, self.high, self.longest_step = names, low, high, longest_step
        self.is_yield = torch.tensor([name.startswith("yield") for name in names])

    @abstractmethod
    def log_expected(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the log of the expected share of the total in each bin and its derivatives in the position.

        Args:
            position: Shape `(m, n)`.

        Returns:
            Logs, shape `(m, n_bins)`, and derivatives, shape `(m, n, n_bins)`.
        """

    @abstractmethod
    def parameters(self, position: Tensor) -> Tensor:
        """Returns the parameters, yields as shares of the total, shape `(m, n)`."""

    @abstractmethod
    def slopes(self, position: Tensor) -> Tensor:
        """Returns the derivatives of the parameters (second index) in the position (last), shape `(m, n, n)`."""

    @abstractmethod
    def constraint(self, position: Tensor) -> Tensor:
        """Returns the precision that is known of the position beside the data, shape `(m, n, n)`."""

    @abstractmethod
    def starting_points(self, counts: Tensor, mask: Tensor, starts: int, *, rng: torch.Generator | None) -> Tensor:
        """Returns where to start for each spectrum, shape `(m, starts, n)`; always the same without `rng`.

        Args:
            counts: Events per bin, shape `(m, n_bins)`.
            mask: True for bins that weigh nothing, same shape.
            starts: How many points for each spectrum.
            rng: Draws the points.
        """

    @abstractmethod
    def ordered(self, position: Tensor) -> Tensor:
        """Returns the same with interchangeable components in the order of falling yield, shape `(m, n)`."""

    def at_limit(self, position: Tensor) -> Tensor:
        """Tells which parameters sit at a limit, shape `(m, n)`; fixed ones do not."""
        near = torch.where((self.high - self.low).isfinite(), AT_LIMIT, SMALLEST_SHARE)
        fixed = self.slopes(position).abs().sum(-2) == 0
        return ((position < self.low + near) | (position > self.high - near)) & ~fixed


def spread_points(n_points: int, dimension: int, *, rng: torch.Generator | None) -> Tensor:
    """Draws points of the unit cube, shape `(n_points, dimension)`; evenly spread and always the same without `rng`."""
    if rng is not None:
        return torch.rand(n_points, dimension, generator=rng, device=rng.device, dtype=torch.float64).cpu()
    # Leaves out the first point of the sequence, a corner; the second is the middle.
    sequence = torch.quasirandom.SobolEngine(dimension)  # type: ignore[no-untyped-call]
    points: Tensor = sequence.draw(n_points + 1, dtype=torch.float64)[1:]
    return points
