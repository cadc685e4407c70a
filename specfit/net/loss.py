r"""The loss that nets are trained with: AtlasSignificanceNormalized.

The truth is normalised to the prediction, :math:`t = \mathrm{truth} \cdot \sum p / \sum \mathrm{truth}`, and the
loss is

.. math:: \mathrm{mean}\left(t \ln \frac{t}{p} - (t - p)\right),

half the Poisson deviance. A net that decides on the total itself is trained without that normalisation, which would
reward predicting next to nothing. Near the optimum it is half the mean square of :math:`(p - t)/\sqrt{t}`: loss and
headline figure (RMS in units of the statistical error) are one thing, :math:`\mathrm{RMS} = \sqrt{2\,\mathrm{loss}}`.

Source: S. Calvet, "Fitting a spectrum using ML" (2021); ATL-PHYS-PUB-2020-025 for the significance without uncertainty.
"""

from __future__ import annotations

__all__ = ["significance_loss"]

import torch
from torch import Tensor

from specfit.significance import poisson_deviance


def significance_loss(
    predicted: Tensor, truth: Tensor, *, mask: Tensor | None = None, normalize: bool = True
) -> Tensor:
    """Computes the mean half deviance of truth against prediction, after normalising the truth to it.

    Args:
        predicted: Predicted events per bin, at least 0, shape `(m, n_bins)`.
        truth: Expected events per bin, at least 0, shape `(m, n_bins)`.
        mask: True for bins that do not count, shape `(m, n_bins)` or `(n_bins,)`.
        normalize: Whether the truth is normalised to the prediction, for nets that keep the total of their input.

    Returns:
        A scalar, float64: the sums over many events need it.

    Example:
        >>> significance_loss(torch.tensor([[110.0, 90.0]]), torch.tensor([[100.0, 100.0]])).item()  # ~ 0.5 * 1**2
        0.5025...
    """
    p, t = predicted.double(), truth.double()
    used = torch.ones_like(p) if mask is None else (~mask).to(p).expand_as(p)
    if normalize:
        t = t * ((p * used).sum(-1, keepdim=True) / (t * used).sum(-1, keepdim=True).clamp(min=1e-12))
    half_deviance: Tensor = poisson_deviance(t, p) / 2
    return (half_deviance * used).sum() / used.sum().clamp(min=1.0)
