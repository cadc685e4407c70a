r"""The significance of a yield whose error is itself uncertain.

A fit knows its own error; by how much a background may mislead it beside that, `specfit.signal.extraction` estimates:
the error is as much wider. Such an estimate is right on average and wrong for some spectra, so that what it calls five
standard deviations happens more often than chance. With a relative error r on it, a bias b of the yield follows, in
units of its own standard error, Student's distribution of :math:`\nu = 1 / (2 r^2)` degrees of freedom, and is held
less and less the further it goes:

.. math:: Z^2 = \min_b \; (x - b)^2 + \nu \ln\left(1 + \frac{b^2}{\nu (w^2 - 1)}\right),

with x the significance that the fit alone gives, b in units of the fit's error, and w the widening. For r = 0 that is
:math:`(x / w)^2`, and for w = 1 :math:`x^2`: where nothing misleads, nothing is lost. The second term is the least that
a larger standard error costs, by a factor f on its square,

.. math:: \nu \ln(1 + t^2 / \nu) = \min_f \; t^2 / f + \nu (\ln f - 1 + 1 / f), \qquad t^2 = b^2 / (w^2 - 1),

and no standard error is wrong by more than three: f ends at 9. So a signal that no background comes near grows with its
size, and does not drown in a logarithm.

Sources: G. Cowan, Eur. Phys. J. C 79 (2019) 133, arXiv:1809.05778, for errors on errors; D. L. Wallace, Ann. Math.
Stat. 30 (1959) 1121, for the second term, the normal deviate of Student's distribution. That r is a quarter is ours:
in simulation the tails beyond three standard deviations are then those of a normal distribution, and of 40 000 pure
backgrounds none above four standard deviations asks for more than three times an error. Where the bias is
less than 0.3 of the fit's error r is less in proportion: what is hardly there is hardly wrong by many times itself, and
a widening by a thousandth does not take five standard deviations from a signal of fourteen.
"""

from __future__ import annotations

__all__ = ["DEGREES_OF_FREEDOM", "significance"]

import torch
from torch import Tensor

RELATIVE_ERROR = 0.25
DEGREES_OF_FREEDOM = 1 / (2 * RELATIVE_ERROR**2)
# Below this share of the fit's error the bias is known better, in proportion.
SMALL_BIAS = 0.3
# Largest factor on the variance of a bias.
LARGEST_FACTOR = 9.0
STEPS, TINY = 30, 1e-12


def significance(x: Tensor, widening: Tensor) -> Tensor:
    """Computes Z from that of the fit alone, >= 0, and the widening of its error, >= 1; all of shape `(r,)`."""
    systematic = (widening.square() - 1).clamp(min=TINY)
    nu = DEGREES_OF_FREEDOM * (SMALL_BIAS**2 / systematic).clamp(min=1.0)
    least = x.square()
    # Small biases and large ones can both be a minimum.
    for bias in (torch.zeros_like(x), x):
        for _ in range(STEPS):  # none raises it: what the bias so far says of its own variance decides the next
            variance = systematic * _factor(bias, nu, systematic)
            bias = x * variance / (1 + variance)
        factor = _factor(bias, nu, systematic)
        penalty = bias.square() / (systematic * factor) + nu * (factor.log() - 1 + 1 / factor)
        least = torch.where(widening > 1, torch.minimum(least, (x - bias).square() + penalty), least)
    return least.sqrt()


def _factor(bias: Tensor, nu: Tensor, systematic: Tensor) -> Tensor:
    return (1 + bias.square() / (nu * systematic)).clamp(max=LARGEST_FACTOR)
