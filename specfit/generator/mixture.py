r"""SpectrumGenerator: the talk's mixtures on one binning, without end.

A background is a mixture of :math:`N_\mathrm{bgd}` components

.. math:: \mathrm{PDF}(x) = \sum_i f_i \, \mathrm{Erf}(x; \sigma_i, \mu_i) \, e^{-x^{\rho_i} / \alpha_i}

with a Gaussian cumulative as Erf. Each component is normalised to 1 over the range, the fractions are uniform in (0, 1)
and then normalised, every parameter is drawn independently and uniformly from its range. On top a Gaussian signal may
be injected. Data are Poisson counts around background plus signal.

Densities are integrated over bins, by a quadrature whose number of nodes per bin is planned at construction over the
ranges, relative to the largest density, so that no component is too steep. One `torch.Generator` makes a stream
reproducible; its device decides where the work is done.

Source: S. Calvet, "Fitting a spectrum using ML" (2021): the form, the ranges, the totals. The normalisation of the
components and the distribution of the fractions are not in the source and are our choice.
"""

from __future__ import annotations

__all__ = ["Components", "SpectrumGenerator"]

import copy
import math
import operator
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from specfit.arrays import ArrayLike, as_float64
from specfit.errors import InputError
from specfit.generator.batch import Batch
from specfit.generator.ranges import Range, check_range, uniform
from specfit.generator.signal import SignalPrior
from specfit.shapes import ErfExp, quadrature
from specfit.spectrum import MOST_EVENTS

# A bin is planned to be integrated to this share of itself, or to this share of the whole spectrum if that is larger.
RELATIVE_ERROR, ERROR_OF_TOTAL = 1e-5, 1e-9
NODES, NODES_OF_REFERENCE = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64), 128
# So many mixture components are evaluated at a time: their arrays then stay in the processor's cache.
COMPONENTS_AT_A_TIME = 1024
SMALLEST_FRACTION = 2.0**-25


class Components(NamedTuple):
    """The parameters of sampled backgrounds, one entry a mixture component but for `total`."""

    owner: Tensor
    """Which spectrum a component belongs to, shape `(n_components,)`, increasing."""
    rho: Tensor
    alpha: Tensor
    mu: Tensor
    sigma: Tensor
    fraction: Tensor
    """Fraction before the fractions of a spectrum are normalised to 1."""
    total: Tensor
    """Expected events, shape `(size,)`."""


class SpectrumGenerator:
    """Samples truth, signal and data for one binning.

    Args:
        edges: Bin edges, shape `(n_bins + 1,)`, not negative, strictly increasing.
        n_backgrounds: Number of components: one number, or the smallest and largest of a uniform draw.
        rho: Range of the power of the fall.
        alpha: Range of the scale of the fall.
        mu: Range of the position of the turn-on.
        sigma: Range of the width of the turn-on.
        unit: What the four ranges above count as 1, in the unit of the edges: 2 stretches every shape by a factor 2.
        total: Range of the expected number of background events in a spectrum.
        weights: Relative frequency of each number of components from the smallest to the largest; equal if None.
        signal: What is injected, or None.

    Raises:
        InputError: A range is not an increasing pair or leaves the allowed region.

    Example:
        >>> generator = SpectrumGenerator(torch.linspace(250, 3000, 51), n_backgrounds=(1, 7))
        >>> batch = generator.sample(100, rng=torch.Generator().manual_seed(1))
        >>> batch.counts.shape, batch.background.shape
        (torch.Size([100, 50]), torch.Size([100, 50]))
    """

    def __init__(
        self,
        edges: ArrayLike,
        *,
        n_backgrounds: int | Sequence[int] = 5,
        rho: Range = (0.5, 1.5),
        alpha: Range = (25.0, 200.0),
        mu: Range = (325.0, 375.0),
        sigma: Range = (10.0, 30.0),
        unit: float = 1.0,
        total: Range = (2e4, 1.8e5),
        weights: Sequence[float] | None = None,
        signal: SignalPrior | None = None,
    ) -> None:
        self.edges = _check_edges(as_float64(edges, "edges"))
        self.n_backgrounds = _check_n_backgrounds(n_backgrounds)
        self.ranges = {"rho": rho, "alpha": alpha, "mu": mu, "sigma": sigma}
        for name, pair in self.ranges.items():
            check_range(name, pair, above=-math.inf if name == "mu" else 0.0)
        check_range("total", total, above=0.0, most=MOST_EVENTS)
        check_range("unit", (unit, unit), above=0.0)
        self.unit, self.total, self.signal = unit, total, signal
        self.weights = _check_weights(weights, self.n_backgrounds)
        self._x, self._weights = _plan_quadrature(self.edges_in_units, self.ranges)

    @property
    def n_bins(self) -> int:
        """Number of bins."""
        return len(self.edges) - 1

    @property
    def edges_in_units(self) -> Tensor:
        """Bin edges as the ranges of the shapes count them, shape `(n_bins + 1,)`."""
        return self.edges / self.unit

    def without_signal(self) -> SpectrumGenerator:
        """Returns the same generator of pure backgrounds."""
        pure = copy.copy(self)
        pure.signal = None
        return pure

    def sample(self, size: int, *, rng: torch.Generator) -> Batch:
        """Draws `size` spectra on the device of `rng`, float32.

        The answer depends on the state of `rng` only.
        """
        background = self.sample_background(size, rng=rng)
        edges = self.edges.to(background.device)
        signal = self.signal.sample(background, edges, rng=rng) if self.signal else torch.zeros_like(background)
        return Batch(torch.poisson(background + signal, generator=rng), background, signal, edges)

    def stream(self, batch_size: int, *, rng: torch.Generator) -> Iterator[Batch]:
        """Yields fresh batches without end."""
        while True:
            yield self.sample(batch_size, rng=rng)

    def sample_components(self, size: int, *, rng: torch.Generator) -> Components:
        """Draws the parameters of `size` backgrounds on the device of `rng`."""
        if size < 1:
            raise InputError(f"size: at least 1 spectrum is expected, {size} came")
        device = rng.device
        low, high = self.n_backgrounds
        if low == high:
            n = torch.full((size,), low, device=device)
        else:
            n = low + torch.multinomial(self.weights.to(device), size, replacement=True, generator=rng)
        owner = torch.repeat_interleave(torch.arange(size, device=device), n)
        rho, alpha, mu, sigma = (uniform(pair, len(owner), rng=rng) for pair in self.ranges.values())
        # One draw in 17 million is exactly 0: a spectrum of one such component would be 0 / 0.
        fraction = torch.rand(len(owner), generator=rng, device=device).clamp(min=SMALLEST_FRACTION)
        return Components(owner, rho, alpha, mu, sigma, fraction, uniform(self.total, size, rng=rng))

    def sample_background(self, size: int, *, rng: torch.Generator) -> Tensor:
        """Draws expected backgrounds, shape `(size, n_bins)`, float32, in events per bin."""
        drawn = self.sample_components(size, rng=rng)
        device, n_components = rng.device, len(drawn.owner)
        x, weights = self._x.to(device), self._weights.to(device)
        bins = torch.empty(n_components, self.n_bins, device=device)
        step = COMPONENTS_AT_A_TIME if device.type == "cpu" else n_components
        for start in range(0, n_components, step):
            part = slice(start, start + step)
            density = _relative_density(x, drawn.rho[part], drawn.alpha[part], drawn.mu[part], drawn.sigma[part])
            torch.matmul(density, weights, out=bins[part])  # (step, n_nodes) -> (step, n_bins)
        bins *= (drawn.fraction / bins.sum(-1))[:, None]
        mixture = torch.zeros(size, self.n_bins, device=device).index_add_(0, drawn.owner, bins)
        return mixture * (drawn.total / mixture.sum(-1))[:, None]


def _relative_density(x: Tensor, rho: Tensor, alpha: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """Computes each component's density relative to its largest value, shape `(n_components, n_nodes)`."""
    # x^rho / alpha from its value at the first node, so that float32 resolves the fall where it starts.
    fall = (rho * x[0].log()).exp() / alpha
    log_density = torch.outer(rho, (x / x[0]).log()).expm1_().mul_(-fall[:, None])
    # Beyond 6 standard deviations above every turn-on the Gaussian cumulative is 1 in float32.
    n_turn_on = int((x < (mu + 6 * sigma).max()).sum())
    if n_turn_on:
        z = (x[:n_turn_on] - mu[:, None]) / sigma[:, None]
        log_density[:, :n_turn_on] += _log_ndtr(z)
    return log_density.sub_(log_density.amax(-1, keepdim=True)).exp_()


def _log_ndtr(z: Tensor) -> Tensor:
    """Computes the log of the Gaussian cumulative to 2e-7: 10 times faster than torch.special.log_ndtr in float32.

    Press et al., Numerical Recipes (3rd ed., 2007), section 6.2.2: Chebyshev fit of the complementary error function.
    """
    y = z.abs() * math.sqrt(0.5)
    t = 1 / (1 + 0.5 * y)
    series = torch.full_like(t, _ERFC_SERIES[-1])
    for coefficient in reversed(_ERFC_SERIES[:-1]):
        series = series.mul_(t).add_(coefficient)
    log_erfc = series.sub_(y * y).add_(t.log())  # of the smaller tail
    return torch.where(z < 0, log_erfc - math.log(2), torch.log1p(-0.5 * log_erfc.exp()))


_ERFC_SERIES = (
    -1.26551223,
    1.00002368,
    0.37409196,
    0.09678418,
    -0.18628806,
    0.27886807,
    -1.13520398,
    1.48851587,
    -0.82215223,
    0.17087277,
)


def _plan_quadrature(edges: Tensor, ranges: dict[str, Range]) -> tuple[Tensor, Tensor]:
    """Chooses the nodes of each bin so that the whole of the ranges is integrated well enough.

    Returns:
        Nodes, shape `(n_nodes,)`, and the matrix that sums densities at the nodes to integrals over bins, shape
        `(n_nodes, n_bins)`, both float32.
    """
    grid = [
        torch.linspace(low, high, n, dtype=torch.float64)
        for (low, high), n in zip(ranges.values(), (7, 5, 2, 2), strict=True)
    ]
    rho, alpha, mu, sigma = torch.cartesian_prod(*grid).unbind(-1)  # (n_probes,) each
    log_exact = ErfExp(rho, alpha, mu, sigma, nodes_per_bin=NODES_OF_REFERENCE).log_bins(edges)
    norm = torch.logsumexp(log_exact, -1, keepdim=True)
    exact = (log_exact - norm).exp()
    n_bins = len(edges) - 1
    chosen = torch.full((n_bins,), NODES[-1])
    is_open = torch.ones(n_bins, dtype=torch.bool)
    for n in NODES:
        share = (ErfExp(rho, alpha, mu, sigma, nodes_per_bin=n).log_bins(edges) - norm).exp()
        good = ((share - exact).abs() <= (RELATIVE_ERROR * exact).clamp(min=ERROR_OF_TOTAL)).all(0)
        chosen[is_open & good] = n
        is_open &= ~good
        if not is_open.any():
            break
    rules = [quadrature(edges[i : i + 2], n) for i, n in enumerate(chosen.tolist())]
    nodes = torch.cat([x[0] for x, _ in rules])
    weights = torch.zeros(len(nodes), n_bins, dtype=torch.float64)
    weights[torch.arange(len(nodes)), torch.repeat_interleave(chosen)] = torch.cat([w[0] for _, w in rules]).exp()
    return nodes.float(), weights.float()


def _check_edges(edges: Tensor) -> Tensor:
    if edges.ndim != 1 or len(edges) < 3 or not (edges.diff() > 0).all() or not edges.isfinite().all():
        raise InputError("edges: at least 3 finite, strictly increasing numbers in one row are expected")
    if edges[0] < 0:
        raise InputError(f"edges: x to a power needs edges from 0 upwards, the first is {edges[0]:g}")
    return edges


def _check_n_backgrounds(n: int | Sequence[int]) -> tuple[int, int]:
    try:
        low, high = (n, n) if isinstance(n, int) else (operator.index(end) for end in n)
    except (TypeError, ValueError):  # not two whole numbers
        low, high = 0, 0
    if not 1 <= low <= high:
        raise InputError(f"n_backgrounds: a whole number or a range of them from 1 upwards is expected, {n} came")
    return low, high


def _check_weights(weights: Sequence[float] | None, n_backgrounds: tuple[int, int]) -> Tensor:
    expected = n_backgrounds[1] - n_backgrounds[0] + 1
    chosen = torch.ones(expected) if weights is None else torch.tensor(list(weights), dtype=torch.float32)
    if len(chosen) != expected or not ((chosen >= 0) & chosen.isfinite()).all() or not chosen.sum() > 0:
        raise InputError(f"weights: {expected} numbers >= 0, not all zero, are expected, {weights} came")
    return chosen
