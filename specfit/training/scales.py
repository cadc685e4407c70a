"""What both calibrations share: a factor on errors, untrained, and learned from simulated pulls."""

from __future__ import annotations

__all__ = ["learn_log_factor", "untrained"]

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from specfit.net.error_scale import ErrorScale, YieldScale

Scale = TypeVar("Scale", ErrorScale, YieldScale)
LEARNING_RATE = 3e-3


def untrained(kind: type[Scale], *, seed: int) -> Scale:
    """Makes a scale that changes nothing; the seed decides its first weights."""
    with torch.random.fork_rng(devices=[]):  # torch's layers know no other source of randomness
        torch.manual_seed(seed)
        return kind()


def learn_log_factor(
    scale: ErrorScale | YieldScale,
    features: Tensor,
    pulls: Tensor,
    *,
    loss: Callable[[Tensor, Tensor], Tensor],
    steps: int,
    rows_a_step: int,
    rng: torch.Generator,
) -> None:
    """Learns the log of the factor on an error.

    Args:
        scale: Changed in place.
        features: What the factor depends on, shape `(n, n_features)`.
        pulls: Of errors without the factor, shape `(n,)`.
        loss: Of log factors and pulls, both `(rows,)`: a scalar.
        steps: Of the optimizer.
        rows_a_step: How many pulls each sees.
        rng: Chooses them.
    """
    scale.requires_grad_(True)
    optimizer = torch.optim.Adam(scale.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    with torch.enable_grad():
        for _ in range(steps):
            some = torch.randint(len(pulls), (min(rows_a_step, len(pulls)),), generator=rng)
            value = loss(scale.log_factor(features[some])[..., 0], pulls[some])
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    scale.requires_grad_(False)
