r"""The bridge from a fitted background to a likelihood: a sample whose nuisances are the coefficients of its basis.

A `BackgroundFit` has a background b and a square root F of its covariance, :math:`V = F F^T`. In a channel it becomes

.. math:: \nu_i(c) = b_i \exp\Big(\sum_k (F_{ik} / b_i)\, c_k\Big) \quad\text{or}\quad
    \nu_i(c) = b_i + \sum_k F_{ik} c_k

with a unit Gaussian constraint of each coefficient c, so that the likelihood starts from exactly the covariance of the
fit and may pull it.

What to use when: `form="log"`, the default, cannot become negative; `"linear"` has exactly the covariance V also where
the uncertainty is as large as the background.

Conventions: the constraint stands for data that the channel does not hold. Fit the background with the signal window
masked, or on other data, and give the channel the window (`bins`); bins that the fit has seen would count twice.
"""

from __future__ import annotations

__all__ = ["background_sample"]

from collections.abc import Sequence
from typing import Any, Literal

import torch

from specfit.background_fit import BackgroundFit
from specfit.errors import InputError
from specfit.stats.schema import BASIS

# Directions with less than this share of the variance of the largest are left out.
NEGLIGIBLE = 1e-10


def background_sample(
    fit: BackgroundFit,
    *,
    name: str = "background",
    nuisance: str = "background",
    bins: Sequence[bool] | torch.Tensor | slice | None = None,
    form: Literal["log", "linear"] = "log",
) -> dict[str, Any]:
    """Makes a sample of a workspace from a fitted background.

    Args:
        fit: One fitted background (of a batch, take `fit[i]`), of counts.
        name: Name of the sample.
        nuisance: Name of its coefficients, `nuisance[0]`, `nuisance[1]`, ...
        bins: Which bins the channel has, a mask of shape `(n_bins,)` or a slice; None takes all.
        form: `"log"` or `"linear"`.

    Raises:
        InputError: A batch, weighted contents, a background of zero with `form="log"`, or bins that do not fit or
            lie in a gap of the spectrum.

    Returns:
        The sample, to be put into `channels[...].samples`.
    """
    if fit.spectrum.is_batch or fit.spectrum.is_weighted:
        raise InputError("fit: one fit of counts is expected; take fit[i] of a batch")
    if form not in ("log", "linear"):
        raise InputError(f"form: 'log' or 'linear' is expected, {form!r} came")
    chosen = slice(None) if bins is None else bins if isinstance(bins, slice) else torch.as_tensor(bins)
    if isinstance(chosen, torch.Tensor) and (chosen.dtype != torch.bool or chosen.shape != (fit.spectrum.n_bins,)):
        raise InputError(f"bins: a mask of {fit.spectrum.n_bins} bins is expected, {tuple(chosen.shape)} came")
    if not fit.spectrum.measured[chosen].all():
        raise InputError("bins: nothing was measured in some of them; leave gaps out, with bins=fit.spectrum.measured")
    background, factor = fit.background[chosen], _orthogonal(fit.factor[chosen])
    if form == "log":
        if not (background > 0).all():
            raise InputError("fit: an expected background of 0 has no logarithm; take form='linear' or fewer bins")
        factor = factor / background[:, None]
    data = {"directions": factor.tolist(), "form": form}
    return {
        "name": name,
        "data": background.tolist(),
        "modifiers": [{"name": nuisance, "type": BASIS, "data": data}] if factor.shape[1] else [],
    }


def _orthogonal(factor: torch.Tensor) -> torch.Tensor:
    """Turns a factor into one of the same product whose columns are orthogonal, and leaves out those of no size."""
    left, size, _ = torch.linalg.svd(factor, full_matrices=False)
    kept: torch.Tensor = (left * size)[:, size**2 > NEGLIGIBLE * size[:1] ** 2]
    return kept
