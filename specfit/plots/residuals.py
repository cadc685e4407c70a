"""Pictures of residuals: how far fits lie from the truth, over all bins and along the axis."""

from __future__ import annotations

__all__ = ["draw_bias", "draw_residual_correlation", "draw_residuals"]

import math
from typing import TYPE_CHECKING

import numpy as np

from specfit.arrays import ArrayLike, as_float64
from specfit.errors import InputError
from specfit.plots.contents import to_numpy
from specfit.plots.look import DATA, FIT, GUIDE, OVERLAY, PULL, add_legend, dress, scale_x

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESIDUAL = r"(fit $-$ truth) / $\sqrt{\mathrm{truth}}$"
BINS = 80


def draw_residual_correlation(
    x: ArrayLike, y: ArrayLike, ax: Axes, *, slope: float | None = None, labels: tuple[str, str]
) -> Axes:
    r"""Draws residuals y against residuals x, bin by bin, with the slope of y on x and their correlation.

    The slope is that of least squares, :math:`\mathrm{cov}(x, y) / \mathrm{var}(x)`. All values enter it; drawn are the
    central 99.9 % on each axis.

    Args:
        x: Residuals, any shape, for example (data - truth) / sqrt(truth).
        y: Residuals, same shape, for example (fit - truth) / sqrt(truth).
        ax: Where to draw; a colour bar takes its place beside it.
        slope: Expected slope, drawn as a second line through the origin.
        labels: Names of both axes.

    Raises:
        InputError: The shapes differ, a value is not finite, or all values of x or of y are equal.
    """
    from matplotlib.colors import LogNorm

    a, b = _finite(x, "x"), _finite(y, "y")
    if a.shape != b.shape:
        raise InputError(f"y: {b.size} residuals came, but x has {a.size}; give one of each per bin")
    for name, values in (("x", a), ("y", b)):
        if np.ptp(values) == 0:
            raise InputError(f"{name}: all {values.size} residuals are equal, so there is no correlation to draw")
    (xx, xy), (_, yy) = np.cov(a, b)
    reach = [1.05 * np.quantile(np.abs(values), 0.999) for values in (a, b)]
    span = [(-r, r) for r in reach]
    mesh = ax.hist2d(a, b, bins=BINS, range=span, norm=LogNorm(), cmin=1, cmap="cividis", rasterized=True)[3]
    _add_line(ax, (a.mean(), b.mean()), xy / xx, color=FIT, name="measured")
    if slope is not None:
        _add_line(ax, (0.0, 0.0), slope, color=DATA, name="expected", linestyle="--")
    # The corner that the line leaves free.
    legend = add_legend(ax, title=f"correlation {xy / math.sqrt(xx * yy):.3f}", loc=f"upper {_free_side(xy)}")
    legend.set_frame_on(True)
    bar = ax.figure.colorbar(mesh, ax=ax)
    bar.set_label("Bins", fontsize=14)
    bar.ax.tick_params(which="both", direction="in", labelsize=12)
    dress(ax, x_label=labels[0], y_label=labels[1])
    return ax


def draw_residuals(residuals: ArrayLike, ax: Axes, *, label: str) -> Axes:
    r"""Draws the distribution of pooled residuals, with mean and RMS (about 0) in the legend.

    Drawn are residuals up to five RMS; the legend counts those outside, and mean and RMS contain them.

    Args:
        residuals: :math:`(b - t) / \sqrt{t}` of all bins and spectra, any shape.
        ax: Where to draw; a second call with another label overlays in another colour.
        label: Name in the legend.

    Raises:
        InputError: No residual came, or one is not finite.
    """
    values = _finite(residuals, "residuals")
    rms = math.sqrt(np.mean(values**2))
    reach = min(float(np.abs(values).max()), 5 * rms) or 1.0
    outside = int((np.abs(values) > reach).sum())
    heights, edges = np.histogram(values, bins=BINS, range=(-reach, reach))
    text = f"{label}: mean {values.mean():+.3f}, RMS {rms:.3f}" + (f", {outside} outside" if outside else "")
    color = OVERLAY[len(ax.get_legend_handles_labels()[0]) % len(OVERLAY)]
    ax.stairs(heights / (values.size * np.diff(edges)), edges, color=color, linewidth=1.8, label=text)
    ax.margins(x=0, y=0.3)
    add_legend(ax, loc="upper left")
    dress(ax, x_label=RESIDUAL, y_label="Bins (normalised)")
    return ax


def draw_bias(
    edges: ArrayLike, mean: ArrayLike, rms: ArrayLike, ax: Axes, *, limit: float | None = None, x_label: str = "x"
) -> Axes:
    """Draws mean and RMS of the residuals in each bin against x.

    Args:
        edges: Bin edges, shape `(n_bins + 1,)`.
        mean: Mean residual per bin, in statistical errors, shape `(n_bins,)`.
        rms: Root mean square of the residuals per bin, shape `(n_bins,)`.
        ax: Where to draw.
        limit: Largest mean that is accepted on either side of 0, drawn as dashed lines.
        x_label: Name of the axis.

    Raises:
        InputError: The numbers of bins do not fit together, or a value is not finite.
    """
    limits, bias, spread = _finite(edges, "edges"), _finite(mean, "mean"), _finite(rms, "rms")
    for name, values in (("mean", bias), ("rms", spread)):
        if values.size != limits.size - 1:
            raise InputError(f"{name}: {values.size} bins came, but {limits.size} edges make {limits.size - 1} bins")
    ax.axhline(0, color=GUIDE, linewidth=0.8)
    ax.stairs(spread, limits, baseline=None, color=PULL, linewidth=2, label="RMS")
    ax.stairs(bias, limits, baseline=None, color=FIT, linewidth=2, label="Mean")
    if limit is not None:
        ax.axhline(limit, color=DATA, linestyle="--", linewidth=1.2, label=f"Limit on the mean, ±{limit:g}")
        ax.axhline(-limit, color=DATA, linestyle="--", linewidth=1.2)
    ax.margins(y=0.2)
    add_legend(ax)
    scale_x(ax, limits)
    dress(ax, x_label=x_label, y_label=RESIDUAL)
    return ax


def _add_line(
    ax: Axes, through: tuple[float, float], slope: float, *, color: str, name: str, linestyle: str = "-"
) -> None:
    ax.axline(through, slope=slope, color=color, linestyle=linestyle, linewidth=1.8, label=f"{name} slope {slope:.3f}")


def _free_side(covariance: float) -> str:
    return "left" if covariance >= 0 else "right"


def _finite(values: ArrayLike, name: str) -> np.ndarray:
    flat = to_numpy(as_float64(values, name)).ravel()
    if flat.size == 0:
        raise InputError(f"{name}: nothing came; at least one number is expected")
    if not np.isfinite(flat).all():
        bad = int((~np.isfinite(flat)).sum())
        raise InputError(f"{name}: {bad} of {flat.size} values are not finite; leave those bins out")
    return flat
