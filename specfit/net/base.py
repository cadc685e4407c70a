"""What every net is: counts in, background out, with the error that Poisson fluctuations of the counts cause.

A net for one binning knows its number of bins and nothing of edges; the checkpoint ties it to them. A net for any
binning reads the edges beside the counts.
"""

from __future__ import annotations

__all__ = ["BackgroundNet", "LocalModel", "Prediction"]

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Prediction(NamedTuple):
    """A fitted background with its error, float64."""

    background: Tensor
    """Expected events per bin, shape `(m, n_bins)`."""
    factor: Tensor
    """Square root of the covariance, events, shape `(m, n_bins, n_directions)`."""
    n_parameters: Tensor
    """Effective number of parameters that the data determined, shape `(m,)`."""
    novelty: Tensor
    """How unlike anything simulated the spectrum is: above 1 hardly any simulated one comes; shape `(m,)`."""


class LocalModel(NamedTuple):
    """What a net holds for plausible around a spectrum: log rate = log_mean + basis c, c of unit normal prior."""

    log_mean: Tensor
    """Log of the expected events for c = 0, shape `(m, n_bins)`, float64."""
    basis: Tensor
    """Directions on the log rate, shape `(m, n_bins, k)`, float64."""
    weight: Tensor
    """How far each bin is believed, from 0 to 1, shape `(m, n_bins)`; masked bins 0."""
    features: Tensor
    """What the net made of the spectrum before it answered, shape `(m, n_features)`."""
    own_share: Tensor
    """How much of what it holds for plausible the spectrum needs beside a function of few parameters, shape `(m,)`; 1
    where none is in its place."""

    def shifted(self, log_rate: Tensor) -> LocalModel:
        """Returns what is plausible around rates that are so much larger in their logarithm, shape `(m, n_bins)`."""
        return self._replace(log_mean=self.log_mean + log_rate)


class BackgroundNet(nn.Module, ABC):
    """A net that maps counts of shape `(m, n_bins)` to the background under them.

    Args:
        n_bins: Number of bins, or None for any.
        keeps_total: Whether the background always has the total of the input.
        arguments: The constructor's arguments as plain data; a checkpoint rebuilds the net from them.
    """

    def __init__(self, n_bins: int | None, *, keeps_total: bool, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.n_bins = n_bins
        self.keeps_total = keeps_total
        self.arguments = arguments

    @abstractmethod
    def stages(self, counts: Tensor, *, edges: Tensor | None = None, mask: Tensor | None = None) -> list[Tensor]:
        """Computes the background of each stage of refinement that is trained, each of shape `(m, n_bins)`.

        Args:
            counts: Events per bin, shape `(m, n_bins)`.
            edges: Bin edges, shape `(n_bins + 1,)` or `(m, n_bins + 1)`; a net for one binning does not look at them.
            mask: As for `predict`.
        """

    @abstractmethod
    def predict(
        self,
        counts: Tensor,
        *,
        edges: Tensor | None = None,
        mask: Tensor | None = None,
        exposure: Tensor | None = None,
    ) -> Prediction:
        """Computes the background with its error.

        Args:
            counts: Events per bin, shape `(m, n_bins)`; masked bins hold a guess of the background.
            edges: As for `stages`.
            mask: True for bins whose content is a guess and not data, shape `(m, n_bins)`. A net with a likelihood
                leaves them out; others can only take the guess.
            exposure: How many events a bin holds for each one of a smooth background, same shape, as weighted contents
                have it (`specfit.weights`); None for 1.
        """

    def forward(self, counts: Tensor, *, edges: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Computes the background, shape `(m, n_bins)`: that of `predict`, and for most nets that of the last stage."""
        return self.stages(counts, edges=edges, mask=mask)[-1]


def propagate_poisson_errors(
    net: Callable[[Tensor], Tensor], counts: Tensor, exposure: Tensor | None = None
) -> Prediction:
    r"""Propagates the Poisson errors of the counts through a net, for nets that carry no error of their own.

    With the Jacobian :math:`J = \partial b / \partial n` the covariance is :math:`J \,\mathrm{diag}(b)\, J^T` and the
    effective number of parameters is :math:`\mathrm{tr} J` (J. Ye, JASA 93 (1998) 120). What the net does not know of
    the truth (its bias) is not in it.

    Args:
        net: Maps counts of shape `(m, n_bins)` to backgrounds of that shape, each row for itself.
        counts: Shape `(m, n_bins)`.
        exposure: As for `BackgroundNet.predict`: the net sees counts over it.
    """
    with torch.inference_mode(False), torch.enable_grad():  # the caller may have switched either off
        counts = counts.detach().clone().requires_grad_()
        background = net(counts) if exposure is None else net(counts / exposure) * exposure
        # No row depends on another, so one backward pass gives a bin's derivatives for all rows.
        rows = [torch.autograd.grad(bin_.sum(), counts, retain_graph=True)[0] for bin_ in background.unbind(-1)]
    jacobian, background = torch.stack(rows, 1).double(), background.detach().double()  # (m, n_bins, n_bins)
    factor = jacobian * background.sqrt()[:, None, :]
    n_parameters = jacobian.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=0.0)
    return Prediction(background, factor, n_parameters, torch.zeros_like(n_parameters))
