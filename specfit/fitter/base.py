"""What every refit rule returns and starts from."""

from __future__ import annotations

__all__ = ["FALSE_ALARM", "MOST_ROUNDS", "STABLE", "Found", "Refit", "as_mask"]

from typing import NamedTuple

import torch
from torch import Tensor

FALSE_ALARM = 0.01
"""Share of pure backgrounds in which a rule that counts the looking masks anything."""

# A refit is stable when no masked bin moves by more statistical errors; it is given up after so many rounds.
STABLE, MOST_ROUNDS = 0.05, 30


class Found(NamedTuple):
    """Something that a rule took for a signal."""

    row: int
    """Which spectrum."""
    mass: float
    """Where, in the unit of the edges."""
    width: float
    """Its standard deviation."""
    local_z: float
    """Its significance there."""
    p_value: float
    """Probability that a pure background shows as much anywhere."""


class Refit(NamedTuple):
    """What a refit did to each spectrum."""

    counts: Tensor
    """What the net was asked last: data with the masked bins replaced, shape `(m, n_bins)`."""
    mask: Tensor
    """True where the data were replaced, shape `(m, n_bins)`."""
    iterations: Tensor
    """How often the net was asked again, shape `(m,)`."""
    message: str
    """Why it stopped."""
    found: tuple[Found, ...] = ()
    """The signals that the masks are for, if the rule knows them."""


def as_mask(mask: Tensor | None, counts: Tensor) -> Tensor:
    """Returns a mask of the shape of the counts that may be written to."""
    return torch.zeros_like(counts, dtype=torch.bool) if mask is None else mask.expand_as(counts).clone()
