r"""Smooth without any learning: the first estimate of a spectrum, and a generic basis beside a learned one.

Both are Chebyshev polynomials of the log density in a coordinate that is stretched where the spectrum bends, with
amplitudes that the evidence of the spectrum chooses (`specfit.net.posterior.mode_and_evidence`): a turn-on that takes
dozens of polynomials of the bin number takes a few there.

- `smooth_estimate`: what a net reads first.
- `with_generic_basis`: lets a spectrum unlike those that a net learned from be described nevertheless.
"""

from __future__ import annotations

__all__ = [
    "SMOOTH_DIRECTIONS",
    "Described",
    "Description",
    "describe",
    "smooth_estimate",
    "window_sums",
    "with_generic_basis",
]

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from specfit.net.base import LocalModel
from specfit.net.posterior import (
    LOG_RATES,
    gaussian_prediction,
    mode_and_evidence,
    posterior_mode,
    precision_cholesky,
)
from specfit.significance import deviance_p_value, deviance_terms

# Polynomials of the first estimate.
SMOOTH_DIRECTIONS = 24
# How smooth a spectrum may be: pairs a, p for polynomials of amplitude a / (1 + k / 2)^p; and that of a straight line.
SMOOTHNESS, OF_A_LINE = ((5.0, 1.5), (3.0, 2.5), (2.0, 4.0)), 10.0


class _Coordinate(NamedTuple):
    """Polynomials of the first estimate in one coordinate: the bin number, stretched where the spectrum bends."""

    directions: int
    """Number of polynomials."""
    curvature: float
    """Of the log density, over the number of bins squared: from where on the bin number is stretched."""
    smoothness: tuple[tuple[float, float], ...]
    """Amplitudes that are tried."""
    favour: float = 0.0
    """Added to the log evidence."""


# One after the other, each made from the estimate before. Many polynomials have to be much more likely than few, more
# than a signal of five standard deviations makes them, or they would follow it.
COORDINATES = (
    _Coordinate(8, math.inf, ((2.0, 2.5),), favour=15.0),
    _Coordinate(SMOOTH_DIRECTIONS, 10.0, SMOOTHNESS[:1]),
    _Coordinate(SMOOTH_DIRECTIONS, 30.0, SMOOTHNESS[::2]),
    _Coordinate(SMOOTH_DIRECTIONS, 300.0, SMOOTHNESS),
)
MOST_STRETCHED = 30.0
# Polynomials of the generic basis, their coordinate, and amplitudes that the evidence chooses from. A spectrum that is
# described at least so well without them is not asked, and they have to be this much more likely.
GENERIC_DIRECTIONS, GENERIC_CURVATURE, AMPLITUDES = 12, 30.0, (0.0, 0.003, 0.03, 0.3)
DESCRIBED, LEAST_GAIN = 0.05, 1.0
# Data that disagree with the background at this level are believed as far as the net believes them, others wholly.
DISAGREEING = 0.001
# A net that distrusts more than this share of the data sees no bump but a shape that it does not know: its own basis
# gets so many times wider, until the data agree, beside a generic one of the largest amplitude.
MOST_DISTRUSTED, WIDER = 0.5, (3.0, 10.0)


@torch.no_grad()
def smooth_estimate(data: Tensor, log_sizes: Tensor, mask: Tensor) -> Tensor:
    """Fits Chebyshev polynomials to the data, one coordinate after the other; log rates `(m, n_bins)`.

    How fast their amplitudes fall with the order, that is how smooth a spectrum is, its own evidence decides. An
    exponential fall is one of them exactly, and whatever is smooth converges fast; a turn-on does so in a coordinate
    that is stretched there, made from the estimate before. Where bins are masked a straight line between their
    neighbours keeps the polynomials from running away, with an error of one e-fold.

    Args:
        data: Observed events, shape `(m, n_bins)`, float64.
        log_sizes: Logs of the widths of the bins, times their exposures, up to a factor, same shape.
        mask: True for bins that weigh nothing, same shape.
    """
    seen = torch.stack([data, log_sizes.exp()]).masked_fill(mask, 0.0)
    events, width = window_sums(seen, (2,))[:, :, 0]
    log_density = _bridged(((events + 0.5) / width.clamp(min=1e-12)).log(), mask)
    # More events are more certain, but not so much that the tail is left to itself.
    certain = torch.where(mask, 1.0, (events + 1).sqrt())
    mean = (certain * log_density).sum(1, keepdim=True) / certain.sum(1, keepdim=True)
    expected = (log_density + log_sizes).exp()
    believed, filled = torch.where(mask, 1 / (1 + expected), 1.0), torch.where(mask, expected, data)
    estimate, best = log_density + log_sizes, torch.full_like(data[:, 0], -torch.inf)
    for coordinate in COORDINATES:
        before = estimate - log_sizes - mean
        shapes = _chebyshev(_stretched(before, coordinate.curvature), coordinate.directions)
        basis = shapes[:, None] * _amplitudes(shapes.shape[2], coordinate.smoothness).to(shapes)
        m, n, *_ = basis.shape  # all ways to be smooth are rows of one fit
        repeated = [t.repeat_interleave(n, 0) for t in (mean + log_sizes, before, certain, filled, believed)]
        (log_mean, guess, certainty, counts, weight), basis = repeated, basis.flatten(0, 1)
        # The data themselves are no smooth estimate: a step from there leads anywhere.
        start = _least_squares(basis, guess, certainty) if coordinate is COORDINATES[0] else None
        near = log_mean + guess if start is None else None
        mode, evidence = mode_and_evidence(log_mean, basis, counts, weight=weight, start=start, near=near)
        found, which = (evidence.nan_to_num(-torch.inf) + coordinate.favour).view(m, n).max(1)
        mode = mode.view(m, n, data.shape[1])[torch.arange(m, device=data.device), which]
        estimate, best = torch.where((found > best)[:, None], mode, estimate), torch.maximum(best, found)
    return estimate.clamp(*LOG_RATES)


def window_sums(values: Tensor, half_widths: tuple[int, ...]) -> Tensor:
    """Sums values `(*, n_bins)` in windows of 2 h + 1 bins around each bin, shape `(*, len(half_widths), n_bins)`."""
    windows = _windows(values.shape[-1], half_widths, values.device)
    return (values @ windows).view(*values.shape[:-1], len(half_widths), values.shape[-1])


@functools.lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # what is kept is for everybody
def _windows(n_bins: int, half_widths: tuple[int, ...], device: torch.device) -> Tensor:
    bins = torch.arange(n_bins, device=device)
    distance = (bins[:, None] - bins).abs()
    return torch.cat([(distance <= h).double() for h in half_widths], 1)


class Description(NamedTuple):
    """How well an estimate describes the data."""

    deviance: Tensor
    """Shape `(m,)`."""
    n_parameters: Tensor
    """Effective number of parameters that the data determined, shape `(m,)`."""
    n_seen: Tensor
    """Number of bins that are not masked, shape `(m,)`."""

    @property
    def p_value(self) -> Tensor:
        """Probability of a larger deviance, shape `(m,)`."""
        ndf = (self.n_seen - self.n_parameters).clamp(min=1.0)
        p_value: Tensor = deviance_p_value(self.deviance, ndf).nan_to_num(0.0)
        return p_value


class Described(NamedTuple):
    """What a net holds for plausible, and how well that describes the data."""

    model: LocalModel
    """Around every spectrum."""
    log_rate: Tensor
    """At its mode, shape `(m, n_bins)`."""
    description: Description
    """Of the data, by the mode."""


@torch.no_grad()
def with_generic_basis(
    model: LocalModel, log_rate: Tensor, data: Tensor, log_sizes: Tensor, *, mask: Tensor
) -> Described:
    """Puts a generic basis beside a learned one, with the amplitude that the evidence of each spectrum chooses.

    Where it chooses none, the added directions are zero. Every bin is believed, unless the data disagree with the
    background so found: then the net's own weights count, which distrust bumps.

    Args:
        model: What a net holds for plausible.
        log_rate: A background to stretch the coordinate by, shape `(m, n_bins)`.
        data: Observed events, same shape, float64.
        log_sizes: Logs of the widths of the bins, times their exposures, up to a factor, same shape.
        mask: True for bins that weigh nothing, same shape.

    Returns:
        The local model with more directions, and how well it describes the data.
    """
    seen = (~mask).to(data)
    basis = nn.functional.pad(model.basis, (0, _most(GENERIC_DIRECTIONS, data.shape[1])))
    wider = model._replace(basis=basis, weight=seen)
    mode = posterior_mode(model.log_mean, model.basis, data, weight=seen, near=log_rate)
    description = describe(mode, model.basis, data, seen)
    rows = (description.p_value < DESCRIBED).nonzero()[:, 0]
    if len(rows) > 0:
        shapes = _chebyshev(_stretched((log_rate - log_sizes)[rows], GENERIC_CURVATURE), GENERIC_DIRECTIONS)
        shapes = shapes / (1 + torch.arange(shapes.shape[2]).to(shapes) / 2)
        part = _of_poorly_described(model, shapes, data, seen, rows)
        parts = (*part.model, part.log_rate, *part.description)
        for whole, piece in zip((*wider, mode, *description), parts, strict=True):
            whole[rows] = piece
    return Described(wider, mode, description)


def _of_poorly_described(model: LocalModel, shapes: Tensor, data: Tensor, seen: Tensor, rows: Tensor) -> Described:
    """Answers for some spectra, `(r,)`, with generic shapes `(r, n_bins, k)`."""
    log_mean, learned, believed, *others = (t[rows] for t in model)
    data, seen = data[rows], seen[rows]
    basis = torch.cat([learned, _amplitude(log_mean, learned, shapes, data, seen) * shapes], -1)
    mode = posterior_mode(log_mean, basis, data, weight=seen)
    disagree = describe(mode, basis, data, seen).p_value < DISAGREEING
    knows = believed.sum(1) >= (1 - MOST_DISTRUSTED) * seen.sum(1)
    for factor in WIDER:
        some = (disagree & ~knows).nonzero()[:, 0]
        if len(some) == 0:
            break
        wider = torch.cat([factor * learned[some], max(AMPLITUDES) * shapes[some]], -1)
        of_some = log_mean[some], wider, data[some]
        basis[some], mode[some] = wider, posterior_mode(*of_some, weight=seen[some])
        disagree[some] = describe(mode[some], wider, data[some], seen[some]).p_value < DISAGREEING
    disagree &= knows
    weight = torch.where(disagree[:, None], believed, seen)
    if disagree.any():
        of_some = log_mean[disagree], basis[disagree], data[disagree]
        mode[disagree] = posterior_mode(*of_some, weight=weight[disagree])
    return Described(LocalModel(log_mean, basis, weight, *others), mode, describe(mode, basis, data, seen))


def _amplitude(log_mean: Tensor, basis: Tensor, shapes: Tensor, data: Tensor, seen: Tensor) -> Tensor:
    """Chooses the amplitude of the generic basis, shape `(m, 1, 1)`."""
    evidence = []
    for i, amplitude in enumerate(AMPLITUDES):
        both = torch.cat([basis, amplitude * shapes], -1)
        start = torch.zeros_like(both[:, 0])
        found = mode_and_evidence(log_mean, both, data, weight=seen, start=start)[1]
        evidence.append(found.nan_to_num(-torch.inf) - (LEAST_GAIN if i else 0.0))
    return torch.tensor(AMPLITUDES).to(data)[torch.stack(evidence).argmax(0)][:, None, None]


def describe(log_rate: Tensor, basis: Tensor, data: Tensor, seen: Tensor) -> Description:
    """Computes how well the mode of a basis, a log rate `(m, n_bins)`, describes what is seen."""
    deviance = (deviance_terms(data, log_rate.exp()) * seen).sum(1)
    return Description(deviance, gaussian_prediction(log_rate, basis, seen).n_parameters, (seen > 0).sum(1))


def _least_squares(basis: Tensor, guess: Tensor, certain: Tensor) -> Tensor:
    """Returns the coefficients of a basis nearest to a guess, `(m, k)`: good enough to start from."""
    right = basis.mT @ (certain * guess)[..., None]
    return torch.cholesky_solve(right, precision_cholesky(basis, certain))[..., 0]


@functools.cache
@torch.inference_mode(mode=False)  # what is kept is for everybody
def _amplitudes(n: int, smoothness: tuple[tuple[float, float], ...]) -> Tensor:
    """Returns the amplitudes of n polynomials for each way to be smooth, shape `(len(smoothness), 1, n)`."""
    k = torch.arange(n, dtype=torch.float64)
    size, power = torch.tensor(smoothness, dtype=torch.float64)[..., None, None].unbind(1)
    return torch.where(k < 2, OF_A_LINE, size / (1 + k / 2).pow(power))


def _stretched(log_density: Tensor, curvature: float) -> Tensor:
    """Computes a coordinate from 0 to 1, the bin number stretched where a log density bends, shape `(m, n_bins)`."""
    n_bins = log_density.shape[1]
    if n_bins < 3:  # a straight line does not bend
        return torch.linspace(0, 1, 2 * n_bins + 1).to(log_density)[1::2].expand_as(log_density)
    bend = nn.functional.pad(log_density[:, None].diff(n=2), (1, 1), mode="replicate").abs() * n_bins**2
    length = (1 + bend / curvature).sqrt()
    length = (length[:, 0] @ _smoothing(n_bins, log_density.device)).clamp(max=MOST_STRETCHED)
    end = length.cumsum(1)
    return (end - length / 2) / end[:, -1:]


@functools.lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def _smoothing(n_bins: int, device: torch.device) -> Tensor:
    """Returns what averages over neighbours, three times, shape `(n_bins, n_bins)`."""
    values = torch.eye(n_bins, dtype=torch.float64, device=device)[:, None]
    kernel = values.new_tensor([[[0.25, 0.5, 0.25]]])
    for _ in range(3):
        values = nn.functional.conv1d(nn.functional.pad(values, (1, 1), mode="replicate"), kernel)
    return values[:, 0]


def _chebyshev(position: Tensor, most: int) -> Tensor:
    """Evaluates at most so many Chebyshev polynomials at positions from 0 to 1, shape `(m, n_bins, k)`."""
    k = torch.arange(_most(most, position.shape[1]), device=position.device).to(position)
    return torch.cos(k * torch.arccos(1 - 2 * position)[..., None])


def _most(directions: int, n_bins: int) -> int:
    """Returns how many of so many directions so many bins can tell."""
    return min(directions, max(3, n_bins // 2))


def _bridged(values: Tensor, mask: Tensor) -> Tensor:
    """Replaces masked values by a straight line between the next ones that are not, `(m, n_bins)`."""
    n_bins = values.shape[1]
    index = torch.arange(n_bins, device=values.device).expand_as(values)
    before = torch.where(mask, -1, index).cummax(1).values
    after = torch.where(mask, n_bins, index).flip(1).cummin(1).values.flip(1)
    low = torch.where(before < 0, after, before).clamp(0, n_bins - 1)
    high = torch.where(after >= n_bins, before, after).clamp(0, n_bins - 1)
    share = (index - low).to(values) / (high - low).clamp(min=1)
    return torch.lerp(values.gather(1, low), values.gather(1, high), share)
