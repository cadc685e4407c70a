"""Pictures of fits: data and background above, the significance of each bin below."""

from __future__ import annotations

__all__ = ["draw_examples", "draw_fit"]

import math
import re
import textwrap
from collections.abc import Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np

from specfit.arrays import ArrayLike
from specfit.errors import InputError
from specfit.plots.contents import Contents, DrawableFit, is_density, not_drawn, to_numpy
from specfit.plots.look import BAND, DATA, EMPTY, FIT, GUIDE, PULL, TRUTH, add_legend, dress, number, scale_x, shade

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

LOG_SIGNIFICANCE_ABOVE = 15.0
MOST_EXAMPLES = 6


def draw_fit(
    fit: DrawableFit,
    *,
    axes: tuple[Axes, Axes] | None = None,
    title: str | None = None,
    truth: ArrayLike | None = None,
    x_label: str = "x",
) -> Figure:
    """Draws data, background with its band of one standard deviation, and below them the significance of each bin.

    Masked bins are hatched and their points hollow; gaps and what the caller left out are grey, with the interpolated
    background alone. On a logarithmic axis an empty bin shows its upper error only, in grey. Beyond a significance of
    15 the lower panel is logarithmic outside ±3. A fit that did not converge says so above the picture.

    Args:
        fit: One fit (of a batch, take `fit[i]`).
        axes: Upper and lower panel to draw in; None makes a figure of 8 by 6 inches.
        title: Text above the picture.
        truth: Expected background events per bin, shape `(n_bins,)`, drawn as a thin line.
        x_label: Name of the axis. A unit in brackets at its end, "mass [GeV]", is also the unit of events per x.

    Raises:
        InputError: The fit holds a batch, or `truth` has another number of bins.
    """
    contents = Contents.of(fit, truth)
    top, bottom = _two_panels() if axes is None else axes
    handles = _draw_panels(contents, top, bottom, font=14)
    _label_panels(fit, top, bottom, x_label=x_label, font=14)
    add_legend(top, handles, title=_quality(fit))
    _add_title(fit, top, title)
    return top.figure.figure  # of a sub-figure, the whole


def draw_examples(
    fits: Sequence[DrawableFit],
    *,
    truths: Sequence[ArrayLike | None] | None = None,
    titles: Sequence[str | None] | None = None,
) -> Figure:
    """Draws up to six fits in a grid, each with the significance of its bins.

    Args:
        fits: One to six fits.
        truths: Expected background events per bin of each fit, each of shape `(n_bins,)` or None.
        titles: Text above each.

    Raises:
        InputError: No fit or more than six came, or `truths` or `titles` has another length.
    """
    if not 1 <= len(fits) <= MOST_EXAMPLES:
        raise InputError(f"fits: {len(fits)} came, 1 to {MOST_EXAMPLES} are drawn; take fits[:{MOST_EXAMPLES}]")
    all_truths, all_titles = _one_each(truths, fits, "truths"), _one_each(titles, fits, "titles")
    figure, cells = _grid(len(fits))
    handles: dict[str, Any] = {}
    for cell, fit, truth, title in zip(cells, fits, all_truths, all_titles, strict=True):
        panels = cell.subgridspec(2, 1, height_ratios=(3, 1), hspace=0.08)
        top = figure.add_subplot(panels[0])
        bottom = figure.add_subplot(panels[1], sharex=top)
        handles |= _draw_panels(Contents.of(fit, truth), top, bottom, font=10)
        _label_panels(fit, top, bottom, x_label="", font=9)
        add_legend(top, {}, title=_quality(fit), font=9)
        state = "" if bool(fit.converged) else "not converged"
        top.set_title(": ".join(filter(None, (title, state))), fontsize=10, color=FIT if state else DATA)
    figure.legend(handles.values(), handles, loc="lower center", ncols=len(handles), fontsize=10, frameon=False)
    return figure


def _grid(n: int) -> tuple[Figure, list[SubplotSpec]]:
    """Places n cells by hand, all lengths in inches: a layout engine takes seconds for a dozen panels."""
    from matplotlib.figure import Figure

    columns = 2 if n in (2, 4) else min(n, 3)
    rows = math.ceil(n / columns)
    cell_width, cell_height, gap_x, gap_y = 3.45, 3.1, 0.75, 0.55
    left, right, bottom, top = 0.75, 0.15, 0.7, 0.3
    width = left + columns * (cell_width + gap_x) - gap_x + right
    height = bottom + rows * (cell_height + gap_y) - gap_y + top
    figure = Figure(figsize=(width, height))
    grid = figure.add_gridspec(
        rows,
        columns,
        left=left / width,
        right=1 - right / width,
        bottom=bottom / height,
        top=1 - top / height,
        wspace=gap_x / cell_width,
        hspace=gap_y / cell_height,
    )
    return figure, [grid[i] for i in range(n)]


def _two_panels() -> tuple[Axes, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(3, 1), hspace=0.0)
    top = figure.add_subplot(grid[0])
    return top, figure.add_subplot(grid[1], sharex=top)


def _draw_panels(contents: Contents, top: Axes, bottom: Axes, *, font: int) -> dict[str, Any]:
    """Fills both panels; returns the handles of a legend by label."""
    handles = _draw_events(contents, top, scale=font / 14) | _draw_mask(contents, top, bottom)
    for label, chosen in {"No data": contents.gaps, "Left out": contents.left_out}.items():
        if chosen.any():
            handles[label], _ = (shade(ax, contents.edges, chosen, label=label) for ax in (top, bottom))
    _draw_significance(contents, bottom)
    if contents.needs_log:
        top.set_yscale("log")
    for ax in (top, bottom):
        scale_x(ax, contents.edges)
        dress(ax, font=font)
    top.set_ylim(*contents.y_limits)
    top.tick_params(labelbottom=False)
    return handles


def _draw_events(contents: Contents, ax: Axes, *, scale: float) -> dict[str, Any]:
    c = contents
    low, high = c.background - c.uncertainty, c.background + c.uncertainty
    band = ax.stairs(high, c.edges, baseline=low, fill=True, color=BAND, alpha=0.5)
    # Over the points: the line is seen even where they crowd.
    line = ax.stairs(c.background, c.edges, baseline=None, color=FIT, linewidth=1.6 * scale, zorder=4)
    handles = {"Data": _draw_points(c, ax, scale=scale), r"Fit $\pm 1\sigma$": (band, line)}
    if c.truth is not None:
        handles["Truth"] = ax.stairs(
            c.truth, c.edges, baseline=None, color=TRUTH, linestyle="--", linewidth=scale, zorder=4
        )
    return handles


def _draw_points(contents: Contents, ax: Axes, *, scale: float) -> Any:
    """Draws filled points, hollow ones where masked, and in grey the empty bins of a logarithmic axis."""
    c = contents
    centers, errors = (c.edges[1:] + c.edges[:-1]) / 2, np.stack((c.data - c.low, c.high - c.data))
    size = scale * float(np.interp(c.data.size, (40, 100, 400), (5.0, 3.5, 2.0)))
    absent = c.needs_log & (c.data == 0)
    kinds = {
        "Empty": (absent, EMPTY, "none"),
        "Masked data": (c.mask & ~absent, DATA, "white"),
        "Data": (~c.mask & ~absent & ~c.gaps & ~c.left_out, DATA, DATA),
    }
    points = {}
    for label, (chosen, color, inside) in kinds.items():
        points[label] = ax.errorbar(
            centers[chosen],
            c.data[chosen],
            yerr=errors[:, chosen],
            fmt="o",
            color=color,
            markerfacecolor=inside,
            markersize=size,
            linewidth=scale,
            label=label,
            zorder=3,
        )
    return points["Data"]


def _draw_mask(contents: Contents, *axes: Axes) -> dict[str, Any]:
    """Hatches the masked bins over the full height of each panel."""
    if not contents.mask.any():
        return {}
    patches = [shade(ax, contents.edges, contents.mask, label="Masked", hatch="////") for ax in axes]
    return {"Masked": patches[0]}


def _draw_significance(contents: Contents, ax: Axes) -> None:
    z, edges = contents.significance, contents.edges
    for level in (-3, -2, -1, 1, 2, 3):
        ax.axhline(level, color=GUIDE, linewidth=0.8, linestyle=":", zorder=1)
    ax.axhline(0, color=DATA, linewidth=0.8, zorder=2.5)
    bars = ax.bar(edges[:-1], z, width=np.diff(edges), align="edge", color=PULL, linewidth=0.0, zorder=2)
    for bar in compress(bars, contents.mask):
        bar.set(facecolor="white", edgecolor=GUIDE, linewidth=0.8)
    _scale_significance(ax, float(np.abs(z[np.isfinite(z)]).max(initial=0.0)))


def _scale_significance(ax: Axes, largest: float) -> None:
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, StrMethodFormatter

    if largest <= LOG_SIGNIFICANCE_ABOVE:
        ax.set_ylim(-max(3.4, 1.12 * largest), max(3.4, 1.12 * largest))
        ax.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, symmetric=True, prune="both"))
        return
    # A resonance of a hundred sigma would flatten every other bin.
    ax.set_yscale("symlog", linthresh=3)
    ax.set_ylim(-2 * largest, 2 * largest)
    power = 10 ** math.floor(math.log10(largest))
    outer = power * (largest // power)
    ax.yaxis.set_major_locator(FixedLocator([-outer, -3, 0, 3, outer]))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    ax.yaxis.set_minor_locator(NullLocator())


def _label_panels(fit: DrawableFit, top: Axes, bottom: Axes, *, x_label: str, font: int) -> None:
    unit = re.search(r"\[([^\[\]]+)\]\s*$", x_label)
    per = ("unit of x" if unit is None else unit[1]) if is_density(fit.spectrum) else "bin"
    kind = "Weighted events" if fit.spectrum.is_weighted else "Events"
    top.set_ylabel(f"{kind} / {per}", fontsize=font)
    bottom.set_xlabel(x_label, fontsize=font)
    bottom.set_ylabel("Significance", fontsize=font)
    top.figure.align_ylabels([top, bottom])


def _add_title(fit: DrawableFit, ax: Axes, title: str | None) -> None:
    lines = [] if title is None else [title]
    if not bool(fit.converged):
        # A dollar would start a formula.
        lines += textwrap.wrap(f"Not converged: {fit.message}".replace("$", r"\$"), 75)
    ax.set_title("\n".join(lines), fontsize=14, color=DATA if bool(fit.converged) else FIT)


def _quality(fit: DrawableFit) -> str:
    p, kind = float(fit.p_value), "weighted events" if fit.spectrum.is_weighted else "events"
    return (
        f"deviance / ndf = {number(float(fit.deviance))} / {number(float(fit.ndf))}\n"
        f"p-value {'< $10^{-300}$' if p == 0 else f'= {number(p)}'}\n"
        f"{number(float(to_numpy(fit.spectrum.counts)[~not_drawn(fit)].sum()))} {kind}"
    )


def _one_each(values: Sequence[Any] | None, fits: Sequence[Any], name: str) -> Sequence[Any]:
    if values is None:
        return [None] * len(fits)
    if len(values) != len(fits):
        raise InputError(
            f"{name}: {len(values)} came for {len(fits)} fits; give one for each, None where there is none"
        )
    return values
