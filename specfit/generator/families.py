r"""Families of smooth spectra, in units and range of their own choosing.

A family draws one log density a spectrum and evaluates it at given points. Densities are events per unit of x, up to a
factor; x is counted in units of the lowest edge, so that no family knows GeV. A family says how a spectrum falls;
turn-ons are multiplied on top by `draw_turn_on` for those families that have none of their own.

`FAMILIES` are what the net for any binning is trained on, `HELD_OUT` what it is tested on and never shown.

Sources: S. Calvet, "Fitting a spectrum using ML" (2021), for the mixture of turn-ons and falls; CDF, arXiv:0812.4036,
and ATLAS, arXiv:1703.09127, for the dijet function; UA2, Z. Phys. C 49 (1991) 17, for the power law times exponential;
A. Rahimi, B. Recht, NIPS 2007, for Gaussian processes by random cosines; C. Tsallis, J. Stat. Phys. 52 (1988) 479;
J. E. Moyal, Phil. Mag. 46 (1955) 263. The ranges are ours.
"""

from __future__ import annotations

__all__ = ["FAMILIES", "HELD_OUT", "Family", "Points", "draw_turn_on"]

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from specfit.generator.ranges import log_uniform, uniform

# e-folds that a density falls across its range, and the largest number of components of a mixture.
FALL, MOST_COMPONENTS = (0.05, 25.0), 7
LOG_SMALLEST = -80.0


class Points(NamedTuple):
    """Where densities are evaluated; all but `log_ratio` of shape `(m, n_bins, n_nodes)`, float64."""

    x: Tensor
    """Position in units of the lowest edge, from 1 upwards."""
    linear: Tensor
    """Position from 0 to 1, linear in x."""
    logarithmic: Tensor
    """Position from 0 to 1, linear in ln x."""
    log_ratio: Tensor
    """ln(highest edge / lowest edge), shape `(m, 1, 1)`."""


Family = Callable[[Points, torch.Generator], Tensor]
"""Draws a log density for each of m spectra; shape `(m, n_bins, n_nodes)`."""


def turn_on_mixture(points: Points, rng: torch.Generator) -> Tensor:
    """Draws the talk's mixtures: a turn-on near 350 units and a stretched exponential fall, in a unit of their own."""
    m = len(points.x)
    # The turn-on lies at this position of the range; a quarter of the spectra start above it.
    x = points.x * 350 * (-_uniform((-0.15, 0.4), m, rng) * points.log_ratio).exp()
    log_x = x.log()
    stretched = _uniform((0, 1), m, rng) < 0.4
    active = _number_of_components(m, rng)
    mixture = torch.full_like(x, -torch.inf)
    for i in range(int(active.max())):
        rho = torch.where(stretched, _uniform((0.3, 1.8), m, rng), _uniform((0.5, 1.5), m, rng))
        alpha = torch.where(stretched, log_uniform((8, 2000), m, 1, 1, rng=rng), _uniform((25, 200), m, rng))
        mu, sigma = _uniform((325, 375), m, rng), _uniform((10, 30), m, rng)
        sigma = torch.where(stretched, sigma * log_uniform((0.3, 3), m, 1, 1, rng=rng), sigma)
        density = _log_ndtr((x - mu) / sigma) - (rho * log_x).exp() / alpha
        density = density - density.flatten(1).logsumexp(1)[:, None, None]
        share = _uniform((1e-6, 1), m, rng).log().masked_fill(i >= active, -torch.inf)
        mixture = torch.logaddexp(mixture, density + share)
    return mixture


def exponential_of_polynomial(points: Points, rng: torch.Generator) -> Tensor:
    """Draws falls whose logarithm is a polynomial of degree 1 to 4 in x or ln x."""
    m = len(points.x)
    q = _either(points.linear, points.logarithmic, rng)
    fall = _fall(m, rng)
    bend = sum(
        torch.randn(m, 1, 1, generator=rng, device=rng.device).double() / degree * (q**degree - q)
        for degree in (2, 3, 4)
    )
    return -fall * q + bend * fall * _uniform((0, 0.35), m, rng)


def dijet(points: Points, rng: torch.Generator) -> Tensor:
    """Draws dijet functions of three or four parameters."""
    m = len(points.x)
    z = points.x * (-points.log_ratio).exp() * _uniform((0.08, 0.95), m, rng)
    log_z, p1 = z.log(), _uniform((0, 16), m, rng)
    p2 = _uniform((0.5, 9), m, rng)
    p3 = torch.randn(m, 1, 1, generator=rng, device=rng.device).double() * 0.3 * (_uniform((0, 1), m, rng) < 0.7)
    return p1 * torch.log1p(-z) - (p2 + p3 * log_z) * log_z


def power_times_exponential(points: Points, rng: torch.Generator) -> Tensor:
    """Draws UA2's function x^-a exp(-b x - c x^2)."""
    m = len(points.x)
    curved = _uniform((-0.15, 0.4), m, rng) * (_uniform((0, 1), m, rng) < 0.6)
    fall, share = _fall(m, rng), _uniform((0, 1), m, rng)
    u = points.linear
    return -fall * (share * points.logarithmic + (1 - share) * (u + curved * (u * u - u)))


def sum_of_falls(points: Points, rng: torch.Generator) -> Tensor:
    """Draws sums of one to three exponentials and power laws."""
    m = len(points.x)
    total = torch.full_like(points.x, -torch.inf)
    for i in range(3):
        q = _either(points.linear, points.logarithmic, rng)
        share = log_uniform((1e-4, 1), m, 1, 1, rng=rng).log() * (i > 0)
        used = (_uniform((0, 1), m, rng) < 0.6) | (i == 0)
        total = torch.logaddexp(total, torch.where(used, share - _fall(m, rng) * q, -torch.inf))
    return total


def gaussian_process(points: Points, rng: torch.Generator) -> Tensor:
    """Draws a fall times a smooth random function of a random correlation length."""
    m, device = len(points.x), rng.device
    q = _either(points.linear, points.logarithmic, rng)
    length = log_uniform((0.15, 2.0), m, 1, 1, rng=rng)
    wiggle = torch.zeros_like(q)
    for _ in range(8):  # random cosines: the spectral form of a Gaussian kernel
        frequency = torch.randn(m, 1, 1, generator=rng, device=device).double() / length
        wiggle += torch.cos(frequency * q + _uniform((0, 2 * math.pi), m, rng))
    amplitude = log_uniform((0.01, 1.0), m, 1, 1, rng=rng) * length.clamp(max=1.0)
    return amplitude * wiggle / 2 - _fall(m, rng) * _either(points.linear, points.logarithmic, rng)


def bernstein(points: Points, rng: torch.Generator) -> Tensor:
    """Draws positive polynomials of degree 2 to 6 in the Bernstein basis, half of them times an exponential."""
    m, u = len(points.x), points.linear
    degree = int(torch.randint(2, 7, (), generator=rng, device=rng.device))
    total = torch.full_like(u, 1e-4)
    for k in range(degree + 1):
        coefficient = _uniform((0, 1), m, rng) ** 2 * (-_uniform((0, 1.5), m, rng) * k).exp()
        total += coefficient * math.comb(degree, k) * u**k * (1 - u) ** (degree - k)
    return total.log() - _fall(m, rng) * u * (_uniform((0, 1), m, rng) < 0.5)


def tsallis(points: Points, rng: torch.Generator) -> Tensor:
    """Draws Tsallis functions x (1 + x / (n T))^-n, the transverse-momentum spectra of hadron collisions."""
    m = len(points.x)
    n = _uniform((4, 12), m, rng)
    temperature = log_uniform((0.1, 3), m, 1, 1, rng=rng)
    return points.x.log() - n * torch.log1p(points.x / (n * temperature))


def five_parameter_dijet(points: Points, rng: torch.Generator) -> Tensor:
    """Draws dijet functions with squared and cubed logarithms in the exponent."""
    m = len(points.x)
    z = points.x * (-points.log_ratio).exp() * _uniform((0.2, 0.9), m, rng)
    log_z = z.log()
    p3, p4 = (torch.randn(m, 1, 1, generator=rng, device=rng.device).double() * scale for scale in (0.4, 0.1))
    power = _uniform((1, 7), m, rng) + p3 * log_z + p4 * log_z**2
    return _uniform((2, 14), m, rng) * torch.log1p(-z) - power * log_z


def moyal(points: Points, rng: torch.Generator) -> Tensor:
    """Draws Moyal functions: a skew peak with an exponential tail, wide against the range."""
    m = len(points.x)
    z = (points.linear - _uniform((-0.1, 0.35), m, rng)) / log_uniform((0.06, 0.3), m, 1, 1, rng=rng)
    return -(z + (-z).clamp(max=6.0).exp()) / 2


FAMILIES: dict[str, Family] = {
    "turn_on_mixture": turn_on_mixture,
    "exponential_of_polynomial": exponential_of_polynomial,
    "dijet": dijet,
    "power_times_exponential": power_times_exponential,
    "sum_of_falls": sum_of_falls,
    "gaussian_process": gaussian_process,
    "bernstein": bernstein,
}
"""Families to train on, by name."""

HELD_OUT: dict[str, Family] = {"tsallis": tsallis, "five_parameter_dijet": five_parameter_dijet, "moyal": moyal}
"""Families to test on."""


def draw_turn_on(points: Points, rng: torch.Generator) -> Tensor:
    """Draws the log of a turn-on a spectrum: Gaussian cumulative or logistic, in x or ln x, of any steepness."""
    m = len(points.x)
    q = _either(points.linear, points.logarithmic, rng)
    z = (q - _uniform((-0.1, 0.4), m, rng)) / log_uniform((0.004, 0.25), m, 1, 1, rng=rng)
    is_logistic = _uniform((0, 1), m, rng) < 0.3
    log_turn_on = torch.where(is_logistic, torch.nn.functional.logsigmoid(1.7 * z), _log_ndtr(z))
    return log_turn_on.clamp(min=LOG_SMALLEST)


def _number_of_components(m: int, rng: torch.Generator) -> Tensor:
    """Draws 1 to 7, three times as often 1: single components are the most extreme shapes; shape `(m, 1, 1)`."""
    weights = torch.ones(MOST_COMPONENTS, device=rng.device)
    weights[0] = 3.0
    return 1 + torch.multinomial(weights, m, replacement=True, generator=rng)[:, None, None]


def _fall(m: int, rng: torch.Generator) -> Tensor:
    return log_uniform(FALL, m, 1, 1, rng=rng)


def _uniform(pair: tuple[float, float], m: int, rng: torch.Generator) -> Tensor:
    return uniform(pair, m, 1, 1, rng=rng, dtype=torch.float64)


def _either(first: Tensor, second: Tensor, rng: torch.Generator) -> Tensor:
    """Takes one of two coordinates for each spectrum."""
    return torch.where(_uniform((0, 1), len(first), rng) < 0.5, first, second)


def _log_ndtr(z: Tensor) -> Tensor:
    log_cumulative: Tensor = torch.special.log_ndtr(z.clamp(min=-12.0, max=8.0))
    return log_cumulative
