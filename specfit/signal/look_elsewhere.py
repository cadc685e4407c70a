r"""The look-elsewhere effect: how often a background shows, at any hypothesis, what one of them shows.

On pure background the local significances of the hypotheses are close to normal numbers with unit width and a
correlation that the model itself knows: with the derivative :math:`\sqrt{W/\lambda}\,s_h` of the standardised contents
in a yield, and what of it the basis of the background can imitate taken out, each hypothesis is a unit vector
:math:`v_h`, and :math:`Z_h = v_h \cdot \xi` with :math:`\xi` standard normal.

What to use when:

- `significance_vectors` and `global_p_value_of_maximum`: no pseudo-experiment at all, milliseconds; the maximum of such
  a field, by sampling :math:`\xi`, and beyond one in a hundred by the length of the path of the :math:`v_h`.
- `tube_p_value`: its upper bound in closed form, for very many spectra.
- `gross_vitells`: from upcrossings of a low level in a few hundred pseudo-experiments.
- `specfit.search.toys.global_p_value`: counts pseudo-experiments; no assumption, but 1/p of them are needed.

Sources: V. Ananiev, A. L. Read, arXiv:2206.12328 (normal fields); H. Hotelling, Am. J. Math. 61 (1939) 440 (tubes);
E. Gross, O. Vitells, arXiv:1005.1891 (upcrossings).
"""

from __future__ import annotations

__all__ = ["global_p_value_of_maximum", "gross_vitells", "significance_vectors", "tube_p_value", "upcrossings"]

import math

import torch
from torch import Tensor

from specfit.net.posterior import precision_cholesky
from specfit.significance import upper_tail

# Where counting samples ends and the path takes over.
COUNTED_DOWN_TO = 0.01
SAMPLES, SPECTRA_AT_A_TIME = 20_000, 16


def significance_vectors(rate: Tensor, basis: Tensor, templates: Tensor, weight: Tensor) -> Tensor:
    """Computes the unit vectors whose products are the correlations of the local significances.

    Args:
        rate: Expected background, shape `(m, n_bins)`.
        basis: Of the local model, shape `(m, n_bins, k)`.
        templates: Of the hypotheses, shape `(h, n_bins)`.
        weight: 0 for bins that are left out, shape `(m, n_bins)`.

    Returns:
        Shape `(m, h, n_bins + k)`.
    """
    root = (weight * rate).sqrt()
    signal = templates * (weight / rate.clamp(min=1e-12)).sqrt()[:, None]  # (m, h, n_bins)
    scaled = root[..., None] * basis
    lower = precision_cholesky(basis, weight * rate)
    imitated = torch.cholesky_solve(scaled.mT @ signal.mT, lower).mT  # (m, h, k)
    vectors = torch.cat([signal - imitated @ scaled.mT, imitated], -1)
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / length.clamp(min=1e-150)


def global_p_value_of_maximum(z: Tensor, vectors: Tensor, *, rng: torch.Generator, samples: int = SAMPLES) -> Tensor:
    r"""Computes the probability that the largest of normal significances exceeds z.

    Down to 1 % it is counted; beyond, it falls as :math:`\Phi(-z) + L/(2\pi)\, e^{-z^2/2}`, with L the length of the
    path through the unit vectors.

    Args:
        z: Largest local significance of each spectrum, shape `(m,)`.
        vectors: From `significance_vectors`, shape `(m, h, d)`.
        rng: Draws the samples, the same for all spectra.
        samples: How many.

    Returns:
        Shape `(m,)`.
    """
    xi = torch.randn(vectors.shape[-1], samples, dtype=vectors.dtype, generator=rng)
    parts = zip(*(torch.split(t, SPECTRA_AT_A_TIME) for t in (z, vectors)), strict=True)
    return torch.cat([_p_values(some_z, some, xi) for some_z, some in parts])


def tube_p_value(z: Tensor, length: Tensor, *, paths: int = 1) -> Tensor:
    r"""Bounds the probability that the largest of normal significances along paths exceeds z, from above.

    .. math:: p = n\,\Phi(-z) + \frac{L}{2\pi} e^{-z^2/2}, \qquad p \le 1.

    Args:
        z: Largest significance, shape `(m,)`.
        length: L, of all paths together, radians, shape `(m,)`.
        paths: n, how many there are.
    """
    tail: Tensor = paths * upper_tail(z) + length / (2 * math.pi) * (-z.square() / 2).exp()
    return tail.clamp(max=1.0)


def _p_values(z: Tensor, vectors: Tensor, xi: Tensor) -> Tensor:
    highest = (vectors @ xi).amax(1)  # (m, samples)
    counted = (highest >= z[:, None]).double().mean(1)
    level = highest.quantile(1 - COUNTED_DOWN_TO, dim=1)
    neighbours = (vectors[:, 1:] * vectors[:, :-1]).sum(-1).clamp(-1.0, 1.0)
    length = neighbours.arccos().sum(1)
    ratio = tube_p_value(z, length) / tube_p_value(level, length)
    return torch.where(z <= level, counted, COUNTED_DOWN_TO * ratio)


def upcrossings(local_z: Tensor, level: float) -> Tensor:
    """Counts how often significances, in the order of the hypotheses, rise through a level.

    Args:
        local_z: Shape `(m, h)`.
        level: In standard deviations.

    Returns:
        Shape `(m,)`.
    """
    above = local_z > level
    return (above[:, 1:] & ~above[:, :-1]).sum(1)


def gross_vitells(z: float, local_z: Tensor, *, level: float = 0.5) -> float:
    r"""Computes a global p-value from upcrossings, :math:`\Phi(-z) + \langle N \rangle e^{-(z^2 - z_0^2)/2}`.

    Args:
        z: Largest local significance of the data.
        local_z: Of pseudo-experiments without signal, shape `(m, h)`, hypotheses in the order of their masses.
        level: :math:`z_0`, at which upcrossings are counted.
    """
    mean = upcrossings(local_z, level).double().mean().item()
    local = float(upper_tail(torch.tensor(z, dtype=torch.float64)))
    return min(1.0, local + mean * math.exp(-(z**2 - level**2) / 2))
