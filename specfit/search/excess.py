"""The largest excess of a spectrum, and how often a background alone shows one as large at any hypothesis."""

from __future__ import annotations

__all__ = ["global_p_of_largest", "largest_excess"]

import torch
from torch import Tensor

from specfit.randomness import independent_rng
from specfit.search.chain import ROWS_AT_A_TIME, Chain
from specfit.signal.look_elsewhere import SAMPLES, global_p_value_of_maximum, significance_vectors


def largest_excess(chain: Chain, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the largest local significance of each spectrum and its global p-value from the correlation, both `(m,)`.

    Args:
        chain: The search.
        counts: Events, shape `(m, n_bins)`.
    """
    at_a_time = max(1, ROWS_AT_A_TIME // len(chain.hypotheses))
    parts = [_largest_excess(chain, some) for some in torch.split(counts, at_a_time)]
    z, p = (torch.cat(t) for t in zip(*parts, strict=True))
    return z, p


def _largest_excess(chain: Chain, counts: Tensor) -> tuple[Tensor, Tensor]:
    rows, h = chain.rows(counts), len(chain.hypotheses)
    z, best = rows.local_z.view(-1, h).max(1)
    at = best + h * torch.arange(len(counts))
    rate, basis = rows.without.background[at], rows.model.basis[at]
    return z, global_p_of_largest(chain, z, counts, rate=rate, basis=basis, seed=(0,))


def global_p_of_largest(
    chain: Chain,
    z: Tensor,
    counts: Tensor,
    *,
    rate: Tensor,
    basis: Tensor,
    seed: tuple[int, ...],
    samples: int = SAMPLES,
) -> Tensor:
    """Computes the global p-value of each spectrum's largest local significance from the correlation, shape `(m,)`.

    Args:
        chain: The search.
        z: Largest local significances, shape `(m,)`.
        counts: Events, shape `(m, n_bins)`.
        rate: What is expected without the tested signal, shape `(m, n_bins)`.
        basis: Directions in which its logarithm is free, shape `(m, n_bins, k)`.
        seed: Decides the samples, the same for every spectrum, so that no answer depends on what it was computed with.
        samples: How many.
    """
    vectors = significance_vectors(rate, basis, chain.hypotheses.templates, chain.weight(counts))
    return global_p_value_of_maximum(z, vectors, rng=independent_rng(seed), samples=samples)
