"""Windows of bins whose excess is significant: the rule for nets that do not say what else is plausible."""

from __future__ import annotations

__all__ = ["refit_windows"]

from collections.abc import Callable

import torch
from torch import Tensor

from specfit.fitter.base import FALSE_ALARM, MOST_ROUNDS, STABLE, Refit, as_mask
from specfit.masks import room_to_mask
from specfit.net import Prediction
from specfit.significance import bin_significance, normal_deviate

# Widths of the windows that are looked at, in bins; wider ones than a quarter of the range are left out.
WINDOW_WIDTHS = (1, 2, 3, 5, 8, 12)


def refit_windows(
    predict: Callable[[Tensor, Tensor], Prediction],
    counts: Tensor,
    first: Prediction,
    *,
    mask: Tensor | None = None,
    false_alarm: float = FALSE_ALARM,
) -> Refit:
    """Masks windows whose excess is significant with the looking counted, and fits again until nothing moves.

    In each round the window with the largest significance (with the uncertainty of its background) is masked if it
    exceeds the threshold; the masked data are replaced by the latest background. The threshold is the normal quantile
    of `false_alarm` divided by the number of windows.

    Args:
        predict: Maps counts and a mask, both of shape `(m, n_bins)`, to predictions.
        counts: Observed events, shape `(m, n_bins)`.
        first: What `predict` answers to `counts` and `mask`.
        mask: True for bins whose content is no data but a guess of the background, shape `(m, n_bins)`.
        false_alarm: Largest share of pure backgrounds in which a window is masked.
    """
    n_bins = counts.shape[-1]
    widths = [width for width in WINDOW_WIDTHS if width <= max(1, n_bins // 4)]
    n_windows = sum(n_bins - width + 1 for width in widths)
    threshold = normal_deviate(false_alarm / n_windows)
    data, mask = counts.clone(), as_mask(mask, counts)
    iterations = torch.zeros(len(counts), dtype=torch.int64, device=counts.device)
    rows, prediction, rounds = torch.arange(len(counts), device=counts.device), first, 0
    while True:
        found = _largest_window(data[rows].double(), prediction, widths, threshold) & ~mask[rows]
        found &= room_to_mask(found, mask[rows]) & (rounds < MOST_ROUNDS)
        mask[rows] |= found
        background = prediction.background.to(counts.dtype)
        shift = (data[rows] - background).abs() > STABLE * background.clamp(min=1.0).sqrt()
        moves = found.any(-1) | ((shift & mask[rows]).any(-1) & (rounds < MOST_ROUNDS))
        rows, background = rows[moves], background[moves]
        if len(rows) == 0:
            break
        data[rows] = torch.where(mask[rows], background, counts[rows])
        prediction = predict(data[rows], mask[rows])
        iterations[rows] += 1
        rounds += 1
    message = f"refit (windows): masked where an excess passes {threshold:.2f} sigma, 1 % of pure backgrounds"
    return Refit(data, mask, iterations, message.replace("1 %", f"{100 * false_alarm:g} %"))


def _largest_window(data: Tensor, prediction: Prediction, widths: list[int], threshold: float) -> Tensor:
    """Marks the bins of the most significant window of each row, if that exceeds the threshold; `(m, n_bins)`, bool."""
    # Differences of running sums may round below 0.
    observed, expected = (_running(t, widths).clamp(min=0.0) for t in (data, prediction.background))
    # Without the background's error the pull is an upper bound of the significance of an excess: the rest is computed
    # only for spectra, and then for windows, that exceed the threshold.
    pull = (observed - expected) / expected.clamp(min=1e-12).sqrt()
    rows = (pull > threshold).any(-1).nonzero()[:, 0]
    observed, expected = observed[rows], expected[rows]
    error = _running(prediction.factor[rows], widths).square().sum(-1).sqrt()
    z = torch.zeros_like(observed)
    some = (observed - expected) / (expected + error**2).clamp(min=1e-12).sqrt() > threshold
    z[some] = bin_significance(observed[some], expected[some], uncertainty=error[some])
    largest, window = torch.zeros_like(data[:, 0]), torch.zeros_like(data[:, 0], dtype=torch.int64)
    largest[rows], window[rows] = z.max(-1)
    start, width = (torch.as_tensor(v, device=data.device) for v in _windows(data.shape[-1], widths))
    bins = torch.arange(data.shape[-1], device=data.device)
    # The most significant window of a Gaussian peak ends where the peak does not: half a width more on either side.
    start, width = start[window][:, None], width[window][:, None]
    inside = (bins >= start - (width + 1) // 2) & (bins < start + width + (width + 1) // 2)
    return inside & (largest > threshold)[:, None]


def _running(values: Tensor, widths: list[int]) -> Tensor:
    """Sums over every window: `(m, n_bins, ...)` to `(m, n_windows, ...)`."""
    total = torch.cat([torch.zeros_like(values[:, :1]), values.cumsum(1)], 1)
    return torch.cat([total[:, width:] - total[:, :-width] for width in widths], 1)


def _windows(n_bins: int, widths: list[int]) -> tuple[list[int], list[int]]:
    """Lists first bin and width of every window, in the order of `_running`."""
    windows = [(start, width) for width in widths for start in range(n_bins - width + 1)]
    return [start for start, _ in windows], [width for _, width in windows]
