"""Pictures of statistical results: profiles, contours, impacts, correlations, yields before and after a fit."""

from __future__ import annotations

__all__ = ["draw_contour", "draw_correlation", "draw_impacts", "draw_scan", "draw_yields"]

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from specfit.errors import InputError
from specfit.plots.contents import poisson_interval
from specfit.plots.look import BAND, DATA, FIT, GUIDE, OVERLAY, TRUTH, add_legend, dress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIGMAS = (1, 2, 3)
MOST_IMPACTS = 20
MOST_NUMBERS = 15  # parameters up to which a matrix carries its numbers
HEIGHTS = {"68 %": 2.2957, "95 %": 5.9915}  # of a region of two parameters


def draw_scan(scans: Any, *, ax: Axes | None = None, labels: Sequence[str] | None = None) -> Figure:
    """Draws profiles, dashed without systematic uncertainties, with lines at 1, 2 and 3 standard deviations.

    Args:
        scans: One `Scan`, or several to compare.
        ax: Where; None makes a figure.
        labels: One for each scan.

    Raises:
        InputError: `labels` has another length.
    """
    several = list(scans) if isinstance(scans, list | tuple) else [scans]
    names = list(labels) if labels is not None else [""] * len(several)
    if len(names) != len(several):
        raise InputError(f"labels: one for each of {len(several)} scans is expected, {len(names)} came")
    ax = ax or _axes(6.5, 5)
    for one, name, colour in zip(several, names, _colours(len(several)), strict=True):
        ax.plot(one.points, one.curve, color=colour, label=name or "with systematic uncertainties")
        if one.statistical is not None:
            ax.plot(one.points, one.statistical, "--", color=colour, label=f"{name} statistical only".strip())
    top = max(float(one.curve.max()) for one in several)
    for sigma in SIGMAS:
        if sigma**2 < 1.1 * top:
            ax.axhline(sigma**2, color=GUIDE, linestyle=":", linewidth=1)
            ax.annotate(
                rf"{sigma}$\sigma$", (1.0, sigma**2), xycoords=("axes fraction", "data"), ha="right", va="bottom"
            )
    ax.set_ylim(0, min(1.1 * top, 12) if top > 0 else 1)
    dress(ax, x_label=several[0].parameter, y_label=r"$-2\,\Delta\ln L$")
    add_legend(ax)
    return ax.figure.figure


def draw_contour(contour: Any, *, ax: Axes | None = None) -> Figure:
    """Draws the regions of 68 % and 95 % of two parameters and the best point.

    Args:
        contour: A `Contour`.
        ax: Where; None makes a figure.
    """
    ax = ax or _axes(6, 5.5)
    heights = [h for h in HEIGHTS.values() if float(contour.surface.min()) < h < float(contour.surface.max())]
    x, y = np.meshgrid(contour.first, contour.second, indexing="ij")
    lines = ax.contour(x, y, contour.surface, levels=heights or [1e300], colors=[FIT, TRUTH][: max(1, len(heights))])
    ax.clabel(lines, fmt={h: name for name, h in HEIGHTS.items()}, fontsize=10)
    ax.plot(*contour.best, "+", color=DATA, markersize=10)
    dress(ax, x_label=contour.parameters[0], y_label=contour.parameters[1])
    return ax.figure.figure


def draw_impacts(impacts: Any, *, most: int = MOST_IMPACTS) -> Figure:
    """Draws impacts, before the fit as outlines and after it filled, and the pulls beside them.

    Args:
        impacts: The `Impacts` on one parameter.
        most: How many to draw, the largest first.
    """
    from matplotlib.figure import Figure

    shown = impacts.impacts[:most][::-1]
    figure = Figure(figsize=(8, 1.9 + 0.32 * max(len(shown), 3)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
    rows = np.arange(len(shown))
    for side, colour, label in (("up", FIT, "+1"), ("down", TRUTH, "-1")):
        changes = [getattr(one, f"{side}_before") for one in shown]
        right.barh(rows, np.nan_to_num(changes), fill=False, edgecolor=colour, height=0.7)
        right.barh(rows, [getattr(one, side) for one in shown], color=colour, alpha=0.7, height=0.7, label=label)
    pulls, widths = np.array([one.pull for one in shown]), np.array([one.width for one in shown])
    left.errorbar(pulls, rows, xerr=widths, fmt="o", color=DATA, markersize=4)
    for at in (-1, 0, 1):
        left.axvline(at, color=GUIDE, linestyle=":", linewidth=1)
    left.set_yticks(rows, [one.parameter for one in shown])
    dress(left, x_label=r"$(\hat\theta - \theta_0)/\sigma_0$", font=11)
    dress(right, x_label=rf"change of {impacts.parameter}", font=11)
    left.yaxis.minorticks_off()
    right.yaxis.minorticks_off()
    # Above the panels: beside the bars there is no place that none of them reaches.
    handles, labels = right.get_legend_handles_labels()
    title = "standard deviations"
    figure.legend(handles, labels, title=title, loc="outside upper right", ncols=2, frameon=False, fontsize=11)
    return figure


def draw_correlation(fit: Any, *, ax: Axes | None = None) -> Figure:
    """Draws the correlation matrix of the parameters that moved.

    Args:
        fit: A `FitResult`.
        ax: Where; None makes a figure.
    """
    moving = np.flatnonzero(~fit.fixed.numpy())
    names = [fit.parameter_names[i] for i in moving]
    matrix = fit.correlation.numpy()[np.ix_(moving, moving)]
    size = 2.5 + 0.35 * min(len(names), 40)
    ax = ax or _axes(size + 0.8, size)
    image = ax.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
    if len(names) <= MOST_NUMBERS:
        for (i, j), value in np.ndenumerate(matrix):
            ax.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=8)
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.figure.colorbar(image, ax=ax, shrink=0.8)
    return ax.figure.figure


def draw_yields(yields: Any, *, ax: Axes | None = None) -> Figure:
    """Draws the counts of a channel and what was expected before and after the fit, with its band.

    Args:
        yields: The `ChannelYields`.
        ax: Where; None makes a figure.
    """
    ax = ax or _axes(7, 5)
    edges = np.arange(len(yields.observed) + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    after, spread = yields.after.numpy(), yields.after_uncertainty.numpy()
    ax.stairs(yields.before.numpy(), edges, color=GUIDE, linestyle="--", label="before the fit")
    ax.stairs(after, edges, color=FIT, label="after the fit")
    ax.stairs(after + spread, edges, baseline=after - spread, fill=True, color=BAND, alpha=0.4)
    observed = yields.observed.numpy()
    low, high = poisson_interval(observed)
    errors = np.stack((observed - low, high - observed))
    ax.errorbar(centres, observed, yerr=errors, fmt="o", color=DATA, markersize=4, label="data")
    ax.set_ylim(bottom=0)
    dress(ax, x_label=f"bin of {yields.channel}", y_label="events")
    add_legend(ax)
    return ax.figure.figure


def _axes(width: float, height: float) -> Axes:
    from matplotlib.figure import Figure

    axes: Axes = Figure(figsize=(width, height), layout="constrained").add_subplot()
    return axes


def _colours(n: int) -> list[str]:
    return [OVERLAY[i % len(OVERLAY)] for i in range(n)]
