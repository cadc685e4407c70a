"""Pictures of a search: the best window, the local p-values, the limits with their bands."""

from __future__ import annotations

__all__ = ["draw_limits", "draw_local_p", "draw_search"]

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from specfit.plots.contents import Points, is_density
from specfit.plots.look import BAND, DATA, FIT, GUIDE, PULL, TRUTH, add_legend, dress, number, scale_x, shade
from specfit.significance import upper_tail
from specfit.weights import event_weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A line is broken over bins that are left out where its step exceeds both neighbouring ones by this factor.
LONG_STEP = 1.5
# Colours that everyone knows for one and two standard deviations of an expected limit, told apart in grey too.
ONE_SIGMA, TWO_SIGMA = "#7FC97F", "#FFE08A"
SMALLEST_P = 1e-300
# Of the marks at whole standard deviations, as a share of the axis.
LEAST_DISTANCE = 0.05
# Widths told apart by line and colour, no more than so many; shares or widths that differ by less are one.
LINES, STYLES, MOST_LINES, SAME = (DATA, TRUTH, FIT), ("-", "--", "-."), 6, 1e-6


def draw_search(result: Any, *, x_label: str = "x") -> Figure:
    """Draws a `ScanResult`: data with background and best signal, excess over background, local p-values, limits.

    Gaps of the spectrum are grey in every panel.

    Args:
        result: The scan.
        x_label: Name of the mass axis.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 11), layout="constrained")
    grid = figure.add_gridspec(4, 1, height_ratios=(3, 1.3, 2, 2), hspace=0.02)
    top = figure.add_subplot(grid[0])
    panels = [top, *(figure.add_subplot(grid[i], sharex=top) for i in range(1, 4))]
    edges, gaps = result.spectrum.edges.numpy(), ~result.spectrum.measured.numpy()
    for label, chosen in {"No data": gaps, "Left out": result.mask.numpy() & ~gaps}.items():
        for ax in panels if chosen.any() else ():
            # A name that begins with an underscore stays out of legends.
            shade(ax, edges, chosen, label=label if ax is top else f"_{label}")
    _draw_events(result, panels[0])
    _draw_excess(result, panels[1])
    draw_local_p(result, ax=panels[2])
    draw_limits(result, ax=panels[3])
    for ax in panels:
        scale_x(ax, edges)
        dress(ax, font=12)
        ax.label_outer()
    dress(panels[-1], x_label=x_label, font=12)
    figure.align_ylabels(panels)
    return figure


def draw_local_p(result: Any, *, ax: Axes | None = None) -> Figure:
    """Draws the local p-value of each mass, a line for each width, with marks at whole standard deviations.

    A line ends where bins are left out and no signal was tried.

    Args:
        result: A `ScanResult`.
        ax: Where; None makes a figure.
    """
    ax = ax or _axes()
    lines = _lines(result)
    for chosen, color, style in zip(lines, itertools.cycle(LINES), itertools.cycle(STYLES), strict=False):
        p = np.maximum(result.local_p.numpy()[chosen], SMALLEST_P)
        ax.plot(*_broken(result, chosen, p), color=color, linestyle=style, linewidth=1.3, label=_width(result, chosen))
    ax.set_yscale("log")
    highest = max(3.0, float(result.local_z.max()) + 0.7)
    z = torch.tensor([highest, *range(1, int(highest) + 1)], dtype=torch.float64)
    lowest, *heights = upper_tail(z).tolist()
    lowest, last = max(lowest, SMALLEST_P), 0.0
    for sigma, height in enumerate(heights, 1):
        if height < lowest:
            break
        down = math.log(height) / math.log(lowest)  # as a share of the axis
        if down < last + LEAST_DISTANCE:
            continue
        last = down
        ax.axhline(height, color=FIT, linestyle=":", linewidth=0.9)
        ax.annotate(
            rf"{sigma}$\sigma$",
            (1.005, height),
            xycoords=("axes fraction", "data"),
            color=FIT,
            va="center",
            fontsize=10,
        )
    ax.set_ylim(lowest, 1.0)
    text = f"global p-value {number(result.global_p)}"
    ax.annotate(text, (0.02, 0.06), xycoords="axes fraction", fontsize=11)
    if len(lines) > 1:
        add_legend(ax, font=9, loc="lower right")
    dress(ax, y_label="Local p-value", font=12)
    return ax.figure.figure


def draw_limits(result: Any, *, ax: Axes | None = None) -> Figure:
    """Draws the upper limits, observed and expected with bands of one and two standard deviations.

    Of several widths they are those of the most significant signal's; the table of the scan has all.

    Args:
        result: A `ScanResult`.
        ax: Where; None makes a figure.
    """
    ax = ax or _axes()
    lines = _lines(result)
    chosen = next(line for line in lines if result.best in line)
    observed, expected = result.limit.numpy()[chosen], result.expected_limits.numpy()[chosen]
    needs_log = observed.min() > 0 and observed.max() > 20 * observed.min()
    (x, observed), (_, expected) = (_broken(result, chosen, values) for values in (observed, expected))
    ax.fill_between(x, expected[:, 0], expected[:, 4], color=TWO_SIGMA, linewidth=0, label=r"$\pm 2\sigma$")
    ax.fill_between(x, expected[:, 1], expected[:, 3], color=ONE_SIGMA, linewidth=0, label=r"$\pm 1\sigma$")
    ax.plot(x, expected[:, 2], color=DATA, linestyle="--", linewidth=1, label="expected")
    ax.plot(x, observed, color=DATA, linewidth=1.3, label="observed")
    if needs_log:
        ax.set_yscale("log")
    dress(ax, y_label=f"{100 * result.level:g} % CLs limit [events]", font=12)
    add_legend(ax, font=9, title=_width(result, chosen) if len(lines) > 1 else "")
    return ax.figure.figure


def _draw_events(result: Any, ax: Axes) -> None:
    edges, points = result.spectrum.edges.numpy(), Points.of(result.spectrum, left_out=result.mask)
    background, signal = result.background.numpy() / points.unit, result.signal.numpy() / points.unit
    ax.errorbar(
        (edges[1:] + edges[:-1]) / 2,
        points.data,
        points.errors,
        fmt="o",
        color=DATA,
        markersize=3,
        label="Data",
    )
    ax.stairs(background, edges, baseline=None, color=TRUTH, linewidth=1.4, label="Background")
    ax.stairs(background + signal, edges, baseline=None, color=FIT, linewidth=1.4, label="with best signal")
    positive = points.data[points.data > 0]
    if positive.max() > 50 * positive.min():
        ax.set_yscale("log")
        ax.set_ylim(0.3 * positive.min(), 3 * positive.max())
    dress(ax, y_label="Events / unit of x" if is_density(result.spectrum) else "Events", font=12)
    i = result.best
    title = (
        f"{result.mass[i]:.5g}: {result.yields[i]:.4g} "
        f"$^{{+{result.error_high[i]:.3g}}}_{{-{result.error_low[i]:.3g}}}$ events, {result.local_z[i]:.2f}$\\sigma$"
    )
    add_legend(ax, title=title, font=10)


def _draw_excess(result: Any, ax: Axes) -> None:
    """Draws data minus background over its statistical error, with the best signal."""
    edges = result.spectrum.edges.numpy()
    background = np.maximum(result.background.numpy(), 1e-9)
    weights = event_weights(result.spectrum, result.mask).of_bins.numpy()
    root = np.sqrt(background * weights)
    excess = np.where(result.mask.numpy(), np.nan, (result.spectrum.counts.numpy() - background) / root)
    ax.bar(edges[:-1], excess, width=np.diff(edges), align="edge", color=PULL, linewidth=0)
    ax.stairs(result.signal.numpy() / root, edges, baseline=None, color=FIT, linewidth=1.4)
    ax.axhline(0, color=DATA, linewidth=0.8)
    i = result.best
    low, high = (float(result.mass[i] + sign * 2 * result.width[i]) for sign in (-1, 1))
    ax.axvspan(low, high, color=BAND, alpha=0.25, linewidth=0)
    largest = float(np.nanmax(np.abs(excess[background > weights]), initial=1.0))
    ax.set_ylim(-max(3.4, 1.1 * largest), max(3.4, 1.1 * largest))
    for level in (-2, 2):
        ax.axhline(level, color=GUIDE, linestyle=":", linewidth=0.8)
    dress(ax, y_label=r"(Data $-$ B) / $\sqrt{\mathrm{B}}$", font=12)


def _lines(result: Any) -> list[np.ndarray]:
    """Returns the indices of the hypotheses that a line joins: those of one width, masses rising; else all by mass."""
    mass = result.mass.numpy()
    lines = np.split(np.arange(len(mass)), np.flatnonzero(np.diff(mass) <= 0) + 1)
    return lines if len(lines) <= MOST_LINES else [np.argsort(mass, kind="stable")]


def _width(result: Any, chosen: np.ndarray) -> str:
    """Names the width of a line of hypotheses, as a share of the mass where it is one."""
    width, share = result.width.numpy()[chosen], (result.width / result.mass.abs()).numpy()[chosen]
    if np.ptp(share) <= SAME * share.max():
        return f"{100 * share[0]:.3g} % wide"
    return (
        f"{width[0]:.3g} wide"
        if np.ptp(width) <= SAME * width.max()
        else f"{width.min():.2g} to {width.max():.2g} wide"
    )


def _broken(result: Any, chosen: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Puts NaN, where a line ends, between masses with bins that are left out and more than a usual step between."""
    mass = result.mass.numpy()[chosen]
    edges, mask = result.spectrum.edges.numpy(), result.mask.numpy()
    steps = np.diff(mass)
    usual = np.maximum(np.append(steps[1:], 0.0), np.insert(steps[:-1], 0, 0.0)) if steps.size else steps
    hidden = [bool((mask & (edges[:-1] >= a) & (edges[1:] <= b)).any()) for a, b in itertools.pairwise(mass)]
    at = np.flatnonzero(np.array(hidden, dtype=bool) & (steps > LONG_STEP * usual)) + 1
    return np.insert(mass, at, np.nan), np.insert(values, at, np.nan, axis=0)


def _axes() -> Axes:
    from matplotlib.figure import Figure

    axes: Axes = Figure(figsize=(8, 4), layout="constrained").add_subplot()
    return axes
