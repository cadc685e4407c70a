"""The guard: tells a background that can be used from a confident wrong line.

A fit is not converged if

- it gave no finite positive background,
- the data that it believed disagree with it beyond chance (`LEAST_P_VALUE`),
- the refit took so much for signal that hardly anything is left to tell the background from (`MOST_MASKED`),
- the net has seen nothing like the spectrum (its novelty is above `MOST_NOVEL`), or
- it follows a single peak that fills a good part of the range (`specfit.lone_peak`; for nets of any binning, to which
  that is a smooth spectrum like many that they learned from).

Each comes with what to do about it.
"""

from __future__ import annotations

__all__ = ["LEAST_P_VALUE", "MOST_MASKED", "MOST_NOVEL", "Verdict", "judge"]

from typing import NamedTuple

import torch
from torch import Tensor

from specfit.lone_peak import has_lone_peak
from specfit.net import Prediction
from specfit.significance import deviance_p_value, deviance_terms
from specfit.weights import exposure_of

LEAST_P_VALUE = 1e-6
MOST_MASKED = 1 / 3
MOST_NOVEL = 1.3


FAULTS = (
    "gave no finite positive background; train for such spectra (specfit train)",
    f"disagree with the data beyond chance (p < {LEAST_P_VALUE:g}): a structure that is no smooth background; "
    "leave it out with mask (--mask lo:hi) or fit a range without it",
    "took more than a third of the bins for signal; fit a wider range, leave the peak out with mask "
    "(--mask lo:hi), or fit without refit",
    "are unlike anything that the net was trained on; leave out what is no background with mask "
    "(--mask lo:hi), fit another range, or train for such spectra (specfit train)",
    "follow a single peak on a simple background as if it were background; leave the peak out with mask "
    "(--mask lo:hi), or look for it with specfit scan, with --known for peaks that are no news",
)
"""What makes a fit useless, and what to do about it."""


class Verdict(NamedTuple):
    """Whether fits can be used."""

    faults: Tensor
    """Which of `FAULTS` each fit has, shape `(m, len(FAULTS))`, bool."""

    @property
    def converged(self) -> Tensor:
        """True for fits without fault, shape `(m,)`."""
        return ~self.faults.any(-1)

    @property
    def reasons(self) -> list[str]:
        """What was found, with the number of spectra and what to do; empty if all converged."""
        how_many = self.faults.sum(0).tolist()
        return [f"{n} of {len(self.faults)} fits {what}" for n, what in zip(how_many, FAULTS, strict=True) if n]


def judge(
    counts: Tensor,
    prediction: Prediction,
    *,
    mask: Tensor,
    left_out: Tensor,
    exposure: Tensor | None = None,
    edges: Tensor | None = None,
) -> Verdict:
    """Judges fits.

    Args:
        counts: Events per bin, shape `(m, n_bins)`.
        prediction: The background with its error.
        mask: True for bins that did not count in the fit, shape `(m, n_bins)`.
        left_out: True for those of them that the caller left out.
        exposure: How many events a bin holds for each one of a smooth background, shape `(m, n_bins)`; None for 1.
        edges: Bin edges, shape `(n_bins + 1,)`, to look for a peak that the fit follows; None does not look.
    """
    background = prediction.background
    usable = (background.isfinite() & (background > 0)).all(-1)
    safe = torch.where(usable[:, None], background, 1.0)
    deviance = deviance_terms(counts, safe).masked_fill(mask, 0.0).sum(-1)
    ndf = ((~mask).sum(-1) - prediction.n_parameters.nan_to_num(0.0)).clamp(min=1.0)
    agrees = deviance_p_value(deviance, ndf) >= LEAST_P_VALUE
    masked = (mask & ~left_out).sum(-1) <= MOST_MASKED * (~left_out).sum(-1)
    known = prediction.novelty <= MOST_NOVEL
    faults = [~usable, usable & ~agrees, usable & ~masked, usable & ~known]
    follows_peak = torch.zeros_like(usable)
    if edges is not None:
        rows = (usable & agrees & masked & known).nonzero()[:, 0]
        some = exposure_of(exposure, rows)
        follows_peak[rows] = has_lone_peak(counts[rows], background[rows], edges, mask=mask[rows], exposure=some)
    return Verdict(torch.stack([*faults, follows_peak], -1))
