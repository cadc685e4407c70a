"""Ranges that parameters are drawn from, and the draws."""

from __future__ import annotations

__all__ = ["Range", "check_range", "log_uniform", "uniform"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from specfit.errors import InputError

Range = Sequence[float]
"""Lower and upper end of a uniform distribution; equal ends fix the value."""


def uniform(pair: Range, *size: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draws uniformly from a range, on the device of `rng`."""
    low, high = pair
    return low + (high - low) * torch.rand(*size, generator=rng, device=rng.device, dtype=dtype)


def log_uniform(pair: Range, *size: int, rng: torch.Generator) -> Tensor:
    """Draws with a uniform logarithm from a range above 0, float64."""
    return uniform((math.log(pair[0]), math.log(pair[1])), *size, rng=rng, dtype=torch.float64).exp()


def check_range(
    name: str, pair: Range, *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf
) -> None:
    """Refuses what is no increasing pair of finite numbers, all above `above`, at least `least` and at most `most`."""
    try:
        low, high = (float(end) for end in pair)
    except (TypeError, ValueError):  # not two numbers
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise InputError(f"{name}: a range (low, high) with low <= high is expected, {pair} came")
    if low <= above:
        raise InputError(f"{name}: must be above {above:g}, the range {pair} came")
    if low < least:
        raise InputError(f"{name}: must be at least {least:g}, the range {pair} came")
    if high > most:
        raise InputError(f"{name}: must be at most {most:g}, the range {pair} came")
