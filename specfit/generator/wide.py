"""WideGenerator: spectra of every family on binnings of every kind, for the net that fits any spectrum.

Each batch has one number of bins; every spectrum in it has edges of its own (linear, geometric, bins that widen as a
resolution does, a few wide bins at the end), a family, a total between a hundred and ten thousand million events, with
or without a turn-on, with up to three Gaussian signals, with or without a window that the fit has to bridge.
"""

from __future__ import annotations

__all__ = ["WideGenerator"]

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from specfit.errors import InputError
from specfit.generator.batch import Batch
from specfit.generator.families import FAMILIES, HELD_OUT, Points, draw_turn_on
from specfit.generator.ranges import Range, check_range, log_uniform, uniform
from specfit.shapes import quadrature

# Gauss-Legendre nodes of a bin.
NODES = 4
MOST_SIGNALS = 3
# A signal is at least so many bins wide (standard deviation) and at most this share of the range.
NARROWEST, WIDEST = 0.4, 0.12


class WideGenerator:
    """Samples spectra of many families and binnings.

    Args:
        n_bins: Smallest and largest number of bins of a batch; few are more likely than many.
        ratio: Range of highest over lowest edge.
        total: Range of the expected number of background events, uniform in its logarithm.
        families: Relative frequency of each family by name (`FAMILIES` and `HELD_OUT`); None takes all of `FAMILIES`,
            the mixture of turn-ons as often as all others together.
        turn_on: Share of the other families that get a turn-on.
        signal: Share of spectra that get signals.
        strength: Range of a signal in units of the root of the background within two standard deviations.
        relative_width: Range of a signal's standard deviation over its mass.
        masked: Share of spectra with a window that is left out.
        emphasis: What some of the batches are sampled from instead: spectra that matter most, or are hardest.
        emphasized: Share of those batches.

    Raises:
        InputError: A range is not an increasing pair, a share is not between 0 and 1, or a family is unknown.
    """

    def __init__(
        self,
        *,
        n_bins: Sequence[int] = (8, 250),
        ratio: Range = (1.15, 25.0),
        total: Range = (1e2, 1e10),
        families: dict[str, float] | None = None,
        turn_on: float = 0.35,
        signal: float = 0.35,
        strength: Range = (0.0, 30.0),
        relative_width: Range = (0.005, 0.15),
        masked: float = 0.15,
        emphasis: WideGenerator | None = None,
        emphasized: float = 0.5,
    ) -> None:
        for name, pair, above in (
            ("ratio", ratio, 1.0),
            ("total", total, 0.0),
            ("relative_width", relative_width, 0.0),
        ):
            check_range(name, pair, above=above)
        check_range("n_bins", n_bins, least=4)
        check_range("strength", strength, least=0.0)
        shares = {"turn_on": turn_on, "signal": signal, "masked": masked, "emphasized": emphasized}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise InputError(f"{name}: a share between 0 and 1 is expected, {share} came")
        self.n_bins, self.ratio, self.total = (int(n_bins[0]), int(n_bins[1])), ratio, total
        self.families = _check_families(families)
        self.turn_on, self.signal, self.strength, self.relative_width = turn_on, signal, strength, relative_width
        self.masked, self.emphasis, self.emphasized = masked, emphasis, emphasized

    def without_signal(self) -> WideGenerator:
        """Returns the same generator of pure backgrounds."""
        pure = copy.copy(self)
        pure.signal = 0.0
        pure.emphasis = None if self.emphasis is None else self.emphasis.without_signal()
        return pure

    def without_emphasis(self) -> WideGenerator:
        """Returns the same generator without batches from another."""
        plain = copy.copy(self)
        plain.emphasis = None
        return plain

    def sample(self, size: int, *, rng: torch.Generator) -> Batch:
        """Draws `size` spectra of one number of bins on the device of `rng`, float64."""
        if self.emphasis is not None and float(torch.rand(1, generator=rng, device=rng.device)) < self.emphasized:
            return self.emphasis.sample(size, rng=rng)
        # Few bins are the most likely: they are most of what is published, and cost least.
        n_bins = round(
            self.n_bins[0]
            * (self.n_bins[1] / self.n_bins[0]) ** float(torch.rand(1, generator=rng, device=rng.device) ** 1.5)
        )
        edges = self.sample_edges(size, n_bins, rng=rng)
        background = self.sample_background(edges, rng=rng)
        signal = self._sample_signals(background, edges, rng=rng)
        counts = torch.poisson(background + signal, generator=rng)
        return Batch(counts, background, signal, edges, self._sample_masks(size, n_bins, rng=rng))

    def sample_edges(self, size: int, n_bins: int, *, rng: torch.Generator) -> Tensor:
        """Draws bin edges, shape `(size, n_bins + 1)`, the first of them 1."""
        device = rng.device
        ratio = log_uniform(self.ratio, size, 1, rng=rng)
        # Widths grow as x^p: 0 is linear, 1 geometric, a calorimeter's resolution about 0.5.
        power = uniform((-0.2, 1.3), size, 1, rng=rng, dtype=torch.float64)
        power = torch.where(torch.rand(size, 1, generator=rng, device=device) < 0.35, 0.0, power)
        power = torch.where((power - 1).abs() < 1e-3, 1.001, power)
        k = torch.linspace(0, 1, n_bins + 1, device=device, dtype=torch.float64)
        widths = (1 + k * (ratio ** (1 - power) - 1)).pow(1 / (1 - power)).diff(dim=1)
        # The last bins of a falling spectrum are often merged.
        merged = torch.rand(size, 1, generator=rng, device=device) < 0.12
        n_last = 1 + (torch.rand(size, 1, generator=rng, device=device) * n_bins / 6).floor()
        is_last = torch.arange(n_bins, device=device) >= n_bins - n_last
        widths = torch.where(
            merged & is_last, widths * uniform((1.5, 5), size, 1, rng=rng, dtype=torch.float64), widths
        )
        edges = torch.cat([torch.zeros_like(ratio), widths.cumsum(1)], 1)
        return 1 + (ratio - 1) * edges / edges[:, -1:]

    def sample_background(self, edges: Tensor, *, rng: torch.Generator) -> Tensor:
        """Draws expected backgrounds in events per bin for edges `(size, n_bins + 1)`; shape `(size, n_bins)`."""
        points, log_weights = _points(edges)
        size = len(edges)
        names, weights = list(self.families), torch.tensor(list(self.families.values()), device=rng.device)
        chosen = torch.multinomial(weights, size, replacement=True, generator=rng)
        log_density = torch.empty_like(points.x)
        for i, name in enumerate(names):
            rows = (chosen == i).nonzero()[:, 0]
            if len(rows):
                log_density[rows] = (FAMILIES | HELD_OUT)[name](Points(*(p[rows] for p in points)), rng)
        has_turn_on = torch.rand(size, generator=rng, device=rng.device) < self.turn_on
        has_turn_on &= chosen != (names.index("turn_on_mixture") if "turn_on_mixture" in names else -1)
        log_density = log_density + torch.where(has_turn_on[:, None, None], draw_turn_on(points, rng), 0.0)
        log_bins = (log_density + log_weights).logsumexp(-1)
        return log_bins.softmax(-1) * log_uniform(self.total, size, 1, rng=rng)

    def _sample_signals(self, background: Tensor, edges: Tensor, *, rng: torch.Generator) -> Tensor:
        size, device = len(edges), rng.device
        has_signal = torch.rand(size, 1, generator=rng, device=device) < self.signal
        centers, typical = (edges[:, 1:] + edges[:, :-1]) / 2, edges.diff(dim=1).median(1, keepdim=True).values
        signal = torch.zeros_like(background)
        for i in range(MOST_SIGNALS):
            mass = edges[:, :1] + (edges[:, -1:] - edges[:, :1]) * torch.rand(size, 1, generator=rng, device=device)
            width = mass * log_uniform(self.relative_width, size, 1, rng=rng)
            width = width.clamp(NARROWEST * typical, WIDEST * (edges[:, -1:] - edges[:, :1]))
            near = (background * ((centers - mass).abs() < 2 * width)).sum(1, keepdim=True).clamp(min=1.0)
            strength = uniform(self.strength, size, 1, rng=rng, dtype=torch.float64) * torch.rand_like(
                near, generator=rng
            )
            # One signal in most spectra, a second in a fifth, a third in few.
            present = has_signal & (torch.rand(size, 1, generator=rng, device=device) < 0.2**i)
            shape = torch.special.ndtr((edges - mass) / width).diff(dim=1)
            signal += torch.where(present, strength * near.sqrt(), 0.0) * shape
        return signal

    def _sample_masks(self, size: int, n_bins: int, *, rng: torch.Generator) -> Tensor:
        device = rng.device
        masked = torch.rand(size, 1, generator=rng, device=device) < self.masked
        width = torch.rand(size, 1, generator=rng, device=device) * 0.25 * n_bins
        start = torch.rand(size, 1, generator=rng, device=device) * n_bins
        bins = torch.arange(n_bins, device=device)
        return masked & (bins >= start) & (bins < start + width)


def _points(edges: Tensor) -> tuple[Points, Tensor]:
    """Returns quadrature points of every bin and the logs of their weights, shape `(size, n_bins, NODES)`."""
    x, log_weights = quadrature(edges, NODES)
    low, high = edges[:, :1, None], edges[:, -1:, None]
    log_ratio = (high / low).log()
    points = Points(x / low, (x - low) / (high - low), (x / low).log() / log_ratio, log_ratio)
    return points, log_weights


def _check_families(families: dict[str, float] | None) -> dict[str, float]:
    if families is None:
        return dict.fromkeys(FAMILIES, 1.0) | {"turn_on_mixture": len(FAMILIES) - 1.0}
    unknown = set(families) - set(FAMILIES | HELD_OUT)
    if unknown or not families:
        raise InputError(
            f"families: {', '.join(sorted(unknown)) or 'none'} came; known are {', '.join(FAMILIES | HELD_OUT)}"
        )
    if min(families.values()) < 0 or not 0 < math.fsum(families.values()) < math.inf:
        raise InputError(f"families: frequencies >= 0, not all zero, are expected, {families} came")
    return dict(families)
