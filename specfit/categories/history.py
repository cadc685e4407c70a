"""The course of a training, epoch by epoch; each row belongs to the state that its loss was computed with."""

from __future__ import annotations

__all__ = ["History"]

from dataclasses import dataclass, fields

from torch import Tensor
from torch.nn.utils import vector_to_parameters

from specfit.categories.base import Bins


@dataclass(frozen=True, eq=False)
class History:
    """What happened in a training; n epochs, of which some were recorded more closely.

    Args:
        loss: Minus the combined significance of the soft yields, shape `(n,)`.
        low_background: Penalty for little background, before its strength, shape `(n,)`.
        high_uncertainty: Penalty for uncertain background, before its strength, shape `(n,)`.
        background: Soft background, scaled where it is, shape `(n, n_categories)`.
        factors: What the background was scaled by, shape `(n, n_categories)`.
        learning_rate: Shape `(n,)`.
        sharpness: Steepness or temperature, shape `(n,)`.
        parameters: All parameters in a row, shape `(n, n_parameters)`.
        recorded: Epochs whose hard yields were looked at, shape `(m,)`.
        bias: Mean absolute difference of soft and hard background in these, relative, shape `(m,)`.
        hard: Combined significance of the hard yields in these, shape `(m,)`.
    """

    loss: Tensor
    low_background: Tensor
    high_uncertainty: Tensor
    background: Tensor
    factors: Tensor
    learning_rate: Tensor
    sharpness: Tensor
    parameters: Tensor
    recorded: Tensor
    bias: Tensor
    hard: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Returns all fields by their names."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def restore(self, bins: Bins, epoch: int) -> None:
        """Puts categories in the state of an epoch."""
        vector_to_parameters(self.parameters[epoch].to(bins.sharpness.device), bins.parameters())
        bins.sharpen(self.sharpness[epoch].item())
