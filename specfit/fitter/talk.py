"""The talk's loop, to the letter: one bin at a time, down to one standard deviation.

Source: S. Calvet, "Fitting a spectrum using ML" (2021), backup slides "Re-fit the data".
"""

from __future__ import annotations

__all__ = ["TALK_THRESHOLD", "refit_talk"]

from collections.abc import Callable

import torch
from torch import Tensor

from specfit.fitter.base import Refit, as_mask
from specfit.significance import bin_significance

TALK_THRESHOLD = 1.0
"""Standard deviations at which the talk's loop stops."""


def refit_talk(
    predict: Callable[[Tensor], Tensor],
    counts: Tensor,
    *,
    mask: Tensor | None = None,
    threshold: float = TALK_THRESHOLD,
) -> Refit:
    """Runs the talk's loop on a batch of spectra.

    Args:
        predict: Maps counts of shape `(m, n_bins)` to backgrounds of that shape.
        counts: Observed events, shape `(m, n_bins)`.
        mask: True for bins whose content is no data but a guess of the background, shape `(m, n_bins)`.
        threshold: A spectrum is done when no unlisted bin exceeds its background by more standard deviations.
    """
    data, mask = counts.clone(), as_mask(mask, counts)
    iterations = torch.zeros(len(counts), dtype=torch.int64, device=counts.device)
    background = predict(counts).clone()  # rows are written below, and `predict` may answer with what it keeps
    active = torch.arange(len(counts), device=counts.device)  # rows still refitted
    while True:
        excess = bin_significance(counts[active], background[active]).masked_fill(mask[active], -torch.inf)
        largest, bin_index = excess.max(-1)
        active, bin_index = active[largest > threshold], bin_index[largest > threshold]
        if len(active) == 0:
            break
        mask[active, bin_index] = True
        data[active] = torch.where(mask[active], background[active].to(counts.dtype), counts[active])
        background[active] = predict(data[active])
        iterations[active] += 1
    message = f"refit (talk): no bin left more than {threshold:g} standard deviations above the background"
    return Refit(data, mask, iterations, message)
