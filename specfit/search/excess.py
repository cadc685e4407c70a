"""The largest excess of a spectrum, and how often a background alone shows one as large at any hypothesis."""

from __future__ import annotations

__all__ = ["LargestExcess", "global_p_of_largest", "largest_excess"]

from typing import NamedTuple

import torch
from torch import Tensor

from specfit.net.posterior import combined
from specfit.parallel import on_all_cores
from specfit.randomness import independent_rng
from specfit.search.chain import Chain
from specfit.signal.joint_fit import TINY
from specfit.signal.look_elsewhere import SAMPLES, global_p_value_of_maximum, significance_vectors
from specfit.signal.rows import Rows

# Prior width of the yield of a known peak, in units of all events: so wide that it says nothing.
FREE = 10.0


class LargestExcess(NamedTuple):
    """What is seen at the hypothesis with the largest local significance of each spectrum, shapes `(m,)`."""

    number: Tensor
    """Which hypothesis."""
    yields: Tensor
    """Fitted events of the signal."""
    error: Tensor
    """Standard error of the yield, the background's included."""
    local_z: Tensor
    global_p: Tensor
    """Probability that a background shows one as large at any hypothesis, from their correlation."""


def largest_excess(
    chain: Chain, counts: Tensor, *, seed: tuple[int, ...] = (0,), samples: int = SAMPLES
) -> LargestExcess:
    """Finds the largest local significance of each spectrum, on all cores.

    Args:
        chain: The search.
        counts: Events, shape `(m, n_bins)`.
        seed: Decides the samples behind the global p-values, like `samples`: how many.
        samples: See `global_p_of_largest`.
    """

    @torch.inference_mode()
    def in_some(some: Tensor) -> LargestExcess:
        rows, number = chain.largest_rows(some)
        p = global_p_of_largest(chain, rows, seed=seed, samples=samples)
        return LargestExcess(number, rows.fit.yields[:, 0], rows.error, rows.local_z, p)

    parts = on_all_cores(in_some, torch.split(counts.double(), chain.spectra_at_a_time))
    return LargestExcess(*(torch.cat(t) for t in zip(*parts, strict=True)))


def global_p_of_largest(chain: Chain, rows: Rows, *, seed: tuple[int, ...], samples: int = SAMPLES) -> Tensor:
    """Computes the global p-value of each spectrum's largest local significance from the correlation, shape `(m,)`.

    Args:
        chain: The search.
        rows: The most significant hypothesis of each spectrum, m rows.
        seed: Decides the samples, the same for every spectrum, so that no answer depends on what it was computed with.
        samples: How many.
    """
    background, peaks = rows.without.background, rows.columns[:, 1:].mT
    rate = (background + combined(rows.without.yields, peaks)).clamp(min=TINY)
    # Directions on the log of everything expected; known peaks are free.
    free = peaks * (FREE * rows.data.sum(-1))[:, None, None]
    basis = torch.cat([background[..., None] * rows.model.basis, free], -1) / rate[..., None]
    vectors = significance_vectors(rate, basis, chain.exposed(chain.hypotheses.templates), chain.weight(rate))
    return global_p_value_of_maximum(rows.local_z, vectors, rng=independent_rng(seed), samples=samples)
