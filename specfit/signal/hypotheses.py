r"""SignalHypotheses: the signals that a search looks for, as shares of events per bin.

What to use when:

- `gaussian_hypotheses(edges, width=0.05)`: a Gaussian at every mass of a grid that the resolution sets; one or several
  widths; the width may be a share of the mass or a function of it.
- `template_hypotheses`: your own shapes.
- `binwise_hypotheses(edges)`: Gaussians of every width that the binning resolves, where no resolution is known.

Conventions: a template holds, bin by bin, the share of a signal's events that fall there; what falls outside the range
is lost, so a template sums to at most 1 and a yield counts all events of the signal. Masses and widths are in the unit
of the edges.
"""

from __future__ import annotations

__all__ = ["SignalHypotheses", "binwise_hypotheses", "edges_at", "gaussian_hypotheses", "template_hypotheses"]

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specfit.arrays import ArrayLike, as_float64
from specfit.errors import InputError
from specfit.shapes import Gaussian
from specfit.signal.joint_fit import TINY

Width = float | Sequence[float] | Callable[[Tensor], Tensor]
"""A share of the mass, several, or a function from masses `(h,)` to widths `(h,)` in the unit of the edges."""

# Steps of the grid of masses, in standard deviations of the peak; a finer grid finds nothing more.
STEP = 0.5
# Where no resolution is known: from half a bin, each width so much wider than the last, to this share of the range.
NARROWEST, WIDER_BY, WIDEST = 0.5, 2**0.5, 1 / 15
# So many widths of such a signal lie inside the range on either side: at an end nothing tells signal from background.
ROOM = 3.0


@dataclass(frozen=True, eq=False)
class SignalHypotheses:
    """Signals to look for, in a spectrum of `n_bins` bins.

    Args:
        mass: Position of each, shape `(h,)`.
        width: Standard deviation of each, shape `(h,)`.
        templates: Share of the events of each in each bin, shape `(h, n_bins)`.
    """

    mass: Tensor
    width: Tensor
    templates: Tensor

    def __len__(self) -> int:
        return len(self.mass)

    def __getitem__(self, chosen: Tensor | slice) -> SignalHypotheses:
        """Takes some of them, by a mask or by indices `(h,)`."""
        return SignalHypotheses(self.mass[chosen], self.width[chosen], self.templates[chosen])

    def share_seen(self, seen: Tensor) -> Tensor:
        """Computes how much of what each has inside the range is in bins that are seen `(n_bins,)`, shape `(h,)`."""
        return (self.templates * seen).sum(-1) / self.templates.sum(-1).clamp(min=TINY)


def gaussian_hypotheses(edges: ArrayLike, *, width: Width = 0.05, mass: ArrayLike | None = None) -> SignalHypotheses:
    """Makes Gaussian signals on a grid of masses.

    Args:
        edges: Bin edges, shape `(n_bins + 1,)`.
        width: Standard deviation: a share of the mass, several shares (each mass is then tried with each), or a
            function of the mass.
        mass: Masses to try, shape `(h,)`; None takes steps of half a width, or half a bin where bins are wider, from
            one width (at least a bin) inside the first edge to as much inside the last.

    Raises:
        InputError: A width that is not positive or leaves no mass inside the range, or a mass outside of it.

    Example:
        >>> signals = gaussian_hypotheses(torch.linspace(100.0, 200.0, 51), width=0.02)
        >>> len(signals), signals.templates.shape
        (66, torch.Size([66, 50]))
    """
    limits = as_float64(edges, "edges")
    kinds = _width_functions(width)
    parts = []
    for function in kinds:
        masses = _mass_grid(limits, function) if mass is None else as_float64(mass, "mass").flatten()
        _check_masses(masses, limits)
        widths = _checked_widths(function, masses)
        parts.append((masses, widths, Gaussian(masses, widths).log_bins(limits).exp()))
    return SignalHypotheses(*(torch.cat(t) for t in zip(*parts, strict=True)))


def binwise_hypotheses(edges: ArrayLike) -> SignalHypotheses:
    """Makes Gaussian signals of half a bin to a fifteenth of the range, each width √2 times the last, all over it.

    Args:
        edges: Bin edges, shape `(n_bins + 1,)`.

    Example:
        >>> signals = binwise_hypotheses(torch.linspace(100.0, 200.0, 51))
        >>> len(signals), float(signals.width.min()), round(float(signals.width.max()), 3)
        (398, 1.0, 5.657)
    """
    return _binwise(tuple(as_float64(edges, "edges").tolist()))


@functools.lru_cache(maxsize=8)  # a fit of one spectrum would spend half its time on them
@torch.inference_mode(mode=False)  # what is kept is for everybody
def _binwise(edges: tuple[float, ...]) -> SignalHypotheses:
    limits = torch.tensor(edges, dtype=torch.float64)
    n_bins, parts = len(limits) - 1, []
    width = NARROWEST
    while width == NARROWEST or width <= WIDEST * n_bins:
        inside = min(ROOM * width, n_bins / 2)
        centers = torch.arange(inside, n_bins - inside + 1e-9, max(STEP * width, NARROWEST), dtype=torch.float64)
        sides = [edges_at(limits, centers + side) for side in (0.0, width / 2, -width / 2)]
        parts.append((sides[0], sides[1] - sides[2]))
        width *= WIDER_BY
    masses, widths = (torch.cat(t) for t in zip(*parts, strict=True))
    return SignalHypotheses(masses, widths, Gaussian(masses, widths).log_bins(limits).exp())


def template_hypotheses(templates: ArrayLike, edges: ArrayLike, *, mass: ArrayLike | None = None) -> SignalHypotheses:
    """Makes signals from shapes of one's own.

    Args:
        templates: Share of the events of each signal in each bin, shape `(h, n_bins)` or `(n_bins,)`. A shape that
            sums to more than 1 is taken for events and divided by its sum.
        edges: Bin edges, shape `(n_bins + 1,)`.
        mass: Position of each, for the labels; None takes the mean.
    """
    limits = as_float64(edges, "edges")
    shapes = as_float64(templates, "templates")
    shapes = shapes[None] if shapes.ndim == 1 else shapes
    if shapes.shape[-1] != len(limits) - 1:
        raise InputError(f"templates: {shapes.shape[-1]} bins came, the spectrum has {len(limits) - 1}")
    if not shapes.isfinite().all() or (shapes < 0).any() or (shapes.sum(-1) <= 0).any():
        raise InputError("templates: finite shares, not negative and not all 0, are expected")
    shapes = shapes / shapes.sum(-1, keepdim=True).clamp(min=1.0)
    centers, inside = (limits[1:] + limits[:-1]) / 2, shapes / shapes.sum(-1, keepdim=True)
    mean = inside @ centers
    width = (inside @ centers**2 - mean**2 + inside @ limits.diff() ** 2 / 12).sqrt()
    masses = mean if mass is None else as_float64(mass, "mass").flatten()
    if len(masses) != len(shapes):
        raise InputError(f"mass: {len(masses)} came for {len(shapes)} templates; give one for each")
    return SignalHypotheses(masses, width, shapes)


def edges_at(edges: Tensor, position: Tensor) -> Tensor:
    """Interpolates edges `(n_bins + 1,)` at positions counted in bins, any shape."""
    below = position.floor().long().clamp(0, len(edges) - 2)
    return edges[below] + (position - below) * edges.diff()[below]


def _width_functions(width: Width) -> list[Callable[[Tensor], Tensor]]:
    if callable(width):
        return [width]
    shares = as_float64(width, "width").flatten()
    if len(shares) == 0 or not (shares.isfinite() & (shares > 0)).all():
        raise InputError(f"width: positive shares of the mass are expected, {width} came")
    return [functools.partial(_share_of_mass, share) for share in shares.tolist()]


def _share_of_mass(share: float, mass: Tensor) -> Tensor:
    return share * mass.abs()


def _checked_widths(width: Callable[[Tensor], Tensor], masses: Tensor) -> Tensor:
    widths = width(masses)
    if not (widths.isfinite() & (widths > 0)).all():
        raise InputError(f"width: {float(widths.min()):g} came for a mass; a width must be positive")
    return widths


def _mass_grid(edges: Tensor, width: Callable[[Tensor], Tensor]) -> Tensor:
    """Steps through the range, half a width or half a bin at a time."""

    def step(at: Tensor, share: float) -> Tensor:
        bin_index = (torch.searchsorted(edges, at, right=True) - 1).clamp(0, len(edges) - 2)
        return share * torch.maximum(_checked_widths(width, at), edges.diff()[bin_index])

    first = edges[:1] + edges.diff()[:1]  # the width may vanish at the first edge itself
    masses = [first + step(first, 1.0) - edges.diff()[:1]]
    if masses[0] > edges[-1]:
        came = f"{float(width(first)):g} at {float(first):g}"
        raise InputError(f"width: {came} leaves no mass inside {edges[0]:g} to {edges[-1]:g}; take a narrower one")
    while True:
        following = masses[-1] + step(masses[-1], STEP)
        if following + step(following, 1.0) > edges[-1]:
            break
        masses.append(following)
    return torch.cat(masses)


def _check_masses(masses: Tensor, edges: Tensor) -> None:
    outside = ~((masses >= edges[0]) & (masses <= edges[-1]))  # true for nan
    if len(masses) == 0 or outside.any():
        what = "none" if len(masses) == 0 else f"{float(masses[outside][0]):g}"
        raise InputError(f"mass: masses from {edges[0]:g} to {edges[-1]:g} are expected, {what} came")
