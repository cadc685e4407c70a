"""Known peaks: fitted beside every hypothesis, so that what is no news is found in no search."""

from __future__ import annotations

__all__ = ["LEAST_SEEN", "fitted_peaks", "is_known", "peak_templates"]

from collections.abc import Sequence

import torch
from torch import Tensor

from specfit.arrays import as_float64
from specfit.errors import InputError
from specfit.search.result import KnownPeak
from specfit.signal.hypotheses import gaussian_hypotheses
from specfit.signal.joint_fit import TINY
from specfit.signal.rows import Rows

LEAST_SEEN = 0.3
"""A signal of which less is left beside what is masked is not looked for."""
# Shapes that agree so far are one (cosine of the angle between them).
INDISTINGUISHABLE = 0.98


def peak_templates(known: Sequence[tuple[float, float]], edges: Tensor, left_out: Tensor) -> Tensor:
    """Returns the share of each peak in each bin, shape `(q, n_bins)`.

    Args:
        known: Peaks, as (mass, standard deviation).
        edges: Bin edges, shape `(n_bins + 1,)`.
        left_out: True for bins that are left out, shape `(n_bins,)`.

    Raises:
        InputError: One lies outside, where nothing is seen, or is another one again.
    """
    if len(known) == 0:
        return edges.new_zeros(0, len(edges) - 1)
    peaks = as_float64(known, "known")
    if peaks.ndim != 2 or peaks.shape[1] != 2:
        raise InputError(f"known: peaks as (mass, standard deviation) are expected, {known} came")
    masses, widths = peaks.unbind(-1)
    fine = (masses >= edges[0]) & (masses <= edges[-1]) & (widths > 0) & widths.isfinite()
    if not fine.all():
        mass, deviation = peaks[~fine][0].tolist()
        raise InputError(
            f"known: peaks between {edges[0]:g} and {edges[-1]:g} with a positive standard deviation are expected, "
            f"({mass:g}, {deviation:g}) came"
        )
    signals = gaussian_hypotheses(edges, width=lambda _: widths, mass=masses)
    hidden = signals.share_seen(~left_out) <= LEAST_SEEN
    if hidden.any():
        mass, deviation = peaks[hidden][0].tolist()
        raise InputError(
            f"known: ({mass:g}, {deviation:g}) lies where mask or gaps leave bins out, nothing says how large it is; "
            "leave it out, or fewer bins"
        )
    templates = signals.templates
    for i in range(1, len(templates)):
        if is_known(templates[i, None], templates[:i], left_out).any():
            mass, deviation = peaks[i].tolist()
            raise InputError(f"known: no data tell the peak ({mass:g}, {deviation:g}) from one before; name it once")
    return templates


def is_known(templates: Tensor, peaks: Tensor, left_out: Tensor) -> Tensor:
    """Tells templates `(h, n_bins)` that what is seen does not tell from a known peak `(q, n_bins)`, shape `(h,)`."""
    shapes, others = (
        t / torch.linalg.vector_norm(t, dim=-1, keepdim=True).clamp(min=TINY)
        for t in (templates * ~left_out, peaks * ~left_out)
    )
    alike: Tensor = shapes @ others.T > INDISTINGUISHABLE
    return alike.any(-1)


def fitted_peaks(rows: Rows, best: int, known: Sequence[tuple[float, float]], unit: float) -> tuple[KnownPeak, ...]:
    """Returns the known peaks as they were fitted beside the best hypothesis, yields in units of contents."""
    yields, variances = rows.fit.yields[best, 1:], rows.fit.covariance[best].diagonal()[1:]
    return tuple(
        KnownPeak(mass, width, float(n) * unit, float(v.sqrt()) * unit, float(n / v.sqrt()))
        for (mass, width), n, v in zip(known, yields, variances, strict=True)
    )
