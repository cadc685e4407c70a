"""Refit: ask again with the most discrepant bins taken out, so that a signal does not pull the background.

`refit_talk` is the loop of the talk, to the letter, for many spectra at once: apply the net; take the bin with the
largest significance; while that significance exceeds the threshold, replace every bin on the list by the background,
apply the net again and look for the next bin. A bin is listed once, so the loop ends after at most one round a bin.

Known of it: one bin at a time on pure background masks upward fluctuations and pulls the background down.

Source: S. Calvet, "Fitting a spectrum using ML" (2021), backup slides "Re-fit the data".
"""

from __future__ import annotations

__all__ = ["TALK_THRESHOLD", "Refit", "refit_talk"]

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from specfit.significance import bin_significance

TALK_THRESHOLD = 1.0


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


def refit_talk(predict: Callable[[Tensor], Tensor], counts: Tensor, *, threshold: float = TALK_THRESHOLD) -> Refit:
    """Runs the talk's loop on a batch of spectra.

    Args:
        predict: Maps counts of shape `(m, n_bins)` to backgrounds of that shape.
        counts: Observed events, shape `(m, n_bins)`.
        threshold: A spectrum is done when no unlisted bin exceeds its background by more standard deviations.
    """
    data, mask = counts.clone(), torch.zeros_like(counts, dtype=torch.bool)
    iterations = torch.zeros(len(counts), dtype=torch.int64)
    background = predict(counts)
    active = torch.arange(len(counts))  # rows still refitted
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
