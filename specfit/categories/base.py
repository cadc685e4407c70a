"""What every kind of categories can do."""

from __future__ import annotations

__all__ = ["Bins"]

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from specfit.categories.sample import Sample
from specfit.errors import InputError


class Bins(torch.nn.Module, ABC):
    """Categories with borders that a gradient can move.

    Each event belongs softly to all categories while they are optimised, and to exactly one in the end. How soft is one
    number, `sharpness`, which a schedule moves during a training; no gradient does.
    """

    SHARPNESS: ClassVar[str]
    """What the sharpness of this kind is called."""
    sharpness: Tensor
    n_categories: int
    n_features: int

    @property
    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor as plain data: with the parameters, all that a file must hold."""

    @abstractmethod
    def memberships(self, features: Tensor) -> Tensor:
        """Computes how much of each event belongs to each category, shape `(n, n_categories)`; rows add up to 1."""

    @abstractmethod
    def assign(self, features: Tensor) -> Tensor:
        """Returns the category of each event, shape `(n,)`: the limit of `memberships` for infinite sharpness."""

    @abstractmethod
    def soft_totals(self, sample: Sample) -> Tensor:
        """Computes the sums of `memberships` times each column of a sample, shape `(n_columns, n_categories)`."""

    @abstractmethod
    def hard_totals(self, sample: Sample) -> Tensor:
        """Computes the sums of each column over the events of each category, shape `(n_columns, n_categories)`."""

    @abstractmethod
    def reset(self, rng: torch.Generator) -> None:
        """Draws new parameters, for another start of a training."""

    def sharpen(self, value: float) -> None:
        """Sets the sharpness."""
        self.sharpness.fill_(value)

    def _check_features(self, features: Tensor) -> Tensor:
        features = features[:, None] if features.ndim == 1 else features
        if features.ndim != 2 or features.shape[1] != self.n_features:
            raise InputError(
                f"features: shape (n, {self.n_features}) is expected by these categories, {tuple(features.shape)} came"
            )
        return features
