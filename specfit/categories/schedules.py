"""Schedules: how a learning rate, a steepness or a temperature moves through a training."""

from __future__ import annotations

__all__ = ["Schedule"]

import math
from dataclasses import dataclass
from typing import Literal, get_args

from specfit.errors import InputError

Form = Literal["linear", "cosine", "exponential"]


@dataclass(frozen=True)
class Schedule:
    r"""A value from `initial`, in the first epoch, to `final`, in the last.

    With :math:`\tau` from 0 to 1: linear :math:`v_0 + \tau (v_1 - v_0)`, cosine
    :math:`v_1 + (v_0 - v_1)(1 + \cos \pi\tau)/2`, exponential :math:`v_0 (v_1/v_0)^\tau`.

    Args:
        initial: First value, above 0.
        final: Last value, above 0.
        form: Shape of the way between them.

    Example:
        >>> [round(Schedule(1.0, 0.01, "exponential")(epoch, 3), 4) for epoch in range(3)]
        [1.0, 0.1, 0.01]
    """

    initial: float
    final: float
    form: Form = "cosine"

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise InputError(f"form: one of {', '.join(get_args(Form))} is expected, {self.form!r} came")
        if not (self.initial > 0 and self.final > 0):
            raise InputError(f"schedule: values above 0 are expected, {self.initial:g} to {self.final:g} came")

    def __call__(self, epoch: int, epochs: int) -> float:
        """Computes the value in an epoch, counted from 0, of so many epochs."""
        tau = epoch / max(epochs - 1, 1)
        if self.form == "linear":
            return self.initial + tau * (self.final - self.initial)
        if self.form == "cosine":
            return self.final + (self.initial - self.final) * (1 + math.cos(math.pi * tau)) / 2
        return float(self.initial * (self.final / self.initial) ** tau)
