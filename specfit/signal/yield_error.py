r"""What the error of a fitted yield depends on beside what its fit knows.

The joint fit knows what the data and the net's local model leave open; not by how much the model misses backgrounds
that bend about as fast as the signal does. How often it does, simulation teaches (`specfit.training.calibrate_yields`),
as a function of

- the signal: how wide it is, where it lies, how many background events compete with it;
- the background fitted beside it: how it falls and bends over the width of the signal, as such and in units of what the
  data can tell;
- the two together: the share of the error that the background makes.

None of them grows with the signal, or it would widen the error that it is judged by.
"""

from __future__ import annotations

__all__ = ["yield_features"]

import torch
from torch import Tensor

# Distances from the middle of a signal, in its standard deviations, between which a background falls and bends.
DISTANCES = (1.5, 3.0)
LARGEST_FALL = 5.0
TINY = 1e-12


def yield_features(
    template: Tensor,
    background: Tensor,
    *,
    rate: Tensor,
    edges: Tensor,
    weight: Tensor,
    variance: Tensor,
) -> Tensor:
    """Computes the features of `specfit.net.error_scale.YieldScale`, shape `(r, N_OF_YIELD)`, float32.

    Args:
        template: Share of the events of a signal in each bin, shape `(r, n_bins)`; like all events here over the
            exposure of the bin, if it has one (`weight` is it then).
        background: Fitted beside the signal, events, same shape.
        rate: All that is expected, signals included, same shape.
        edges: Bin edges, shape `(n_bins + 1,)`.
        weight: 0 for masked bins, 1 for others, or how many events one of these stands for, shape `(r, n_bins)`.
        variance: Of the yield, from the joint fit, shape `(r,)`.
    """
    n_bins = template.shape[1]
    index = torch.arange(n_bins).to(template) + 0.5
    total = template.sum(-1).clamp(min=TINY)
    center = template @ index / total  # in bins
    deviation = (template @ index.square() / total - center.square()).clamp(min=1 / 12).sqrt()
    of_known, of_rate = (
        (weight * template.square() / t.clamp(min=TINY)).sum(-1).clamp(min=TINY**2) for t in (background, rate)
    )
    competing = total.square() / of_known
    # What a known background would leave of the variance is the signal's own.
    of_background = (1 - 1 / (of_rate * variance)).clamp(1e-3, 1.0)
    log_density = background.clamp(min=1e-9).log() - edges.diff().to(background).log()
    shapes = []
    for distance in DISTANCES:
        left, middle, right = (
            _interpolated(log_density, center + side * deviation) for side in (-distance, 0.0, distance)
        )
        bend = left - 2 * middle + right
        shapes += [_limited(middle - left), _limited(right - middle), _limited(bend)]
        shapes.append((bend * competing.sqrt()).asinh() / 3)
    position = center / n_bins
    of_signal = [deviation.log() / 2, 4 * position * (1 - position), position, competing.log1p() / 10]
    of_fit = [(of_background.log() + 1) / 2, torch.full_like(total, n_bins).log() / 5]
    return torch.stack(shapes + of_signal + of_fit, -1).float()


def _limited(fall: Tensor) -> Tensor:
    return fall.clamp(-LARGEST_FALL, LARGEST_FALL)


def _interpolated(values: Tensor, position: Tensor) -> Tensor:
    """Interpolates values `(r, n_bins)` of the middles of bins at positions counted in bins, `(r,)`."""
    last = values.shape[1] - 1
    at = (position - 0.5).clamp(0, last)
    below = at.floor().long()
    low, high = (values.gather(1, i[:, None])[:, 0] for i in (below, (below + 1).clamp(max=last)))
    return torch.lerp(low, high, at - below)
