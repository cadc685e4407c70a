"""Pictures of stacked simulation: processes on top of each other, signals as lines."""

from __future__ import annotations

__all__ = ["draw_stack"]

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from specfit.errors import InputError
from specfit.plots.look import DATA, FIT, GUIDE, add_legend, dress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# From dark to light, so that neighbours differ in print too.
STACK = ("#08519C", "#3182BD", "#6BAED6", "#9ECAE1", "#C6DBEF", "#DEEBF7")
SIGNALS = (FIT, DATA, "#009E73", "#CC79A7")
LINES = ("--", "-.", ":", "-")
DECADES_BELOW_ONE = 1e-2
# So many edges of bins that are drawn equally wide can be written side by side.
MOST_EDGES = 11


def draw_stack(
    edges: np.ndarray,
    stack: Mapping[str, np.ndarray],
    ax: Axes,
    *,
    errors: np.ndarray | None = None,
    signals: Mapping[str, np.ndarray] | None = None,
    log: bool = False,
    equally_wide: bool = False,
    x_label: str = "x",
) -> Axes:
    """Draws processes on top of each other, the uncertainty of their sum, and signals as lines.

    Contents are events per bin, not divided by its width.

    Args:
        edges: Bin edges, shape `(n_bins + 1,)`.
        stack: Events of each process, shape `(n_bins,)`, the first at the bottom.
        ax: Where to draw.
        errors: Statistical uncertainty of the sum, shape `(n_bins,)`.
        signals: Events of each signal, drawn in front; the label should say by how much they are scaled.
        log: Logarithmic axis of events.
        equally_wide: Bins are drawn equally wide whatever their edges, which are written below: the narrow ones show.
        x_label: Name of the axis.

    Raises:
        InputError: A process has another number of bins.
    """
    lines = {} if signals is None else signals
    for name, heights in {**stack, **lines}.items():
        if len(heights) != len(edges) - 1:
            raise InputError(f"{name}: {len(edges) - 1} bins are expected, {len(heights)} came")
    base, places = np.zeros(len(edges) - 1), np.arange(len(edges)) if equally_wide else edges
    for i, (name, heights) in enumerate(stack.items()):
        ax.stairs(base + heights, places, baseline=base, fill=True, color=STACK[i % len(STACK)], label=name)
        base = base + heights
    if errors is not None:
        band: dict[str, Any] = {"facecolor": "none", "edgecolor": GUIDE, "hatch": "////", "linewidth": 0}
        ax.stairs(base + errors, places, baseline=base - errors, fill=True, label="Stat. uncertainty", **band)
    for i, (name, heights) in enumerate(lines.items()):
        style = LINES[i % len(LINES)]
        ax.stairs(heights, places, color=SIGNALS[i % len(SIGNALS)], linewidth=2, linestyle=style, label=name)
    _scale(ax, np.concatenate([base, *lines.values()]), log=log)
    ax.set_xlim(places[0], places[-1])
    add_legend(ax, loc="upper center", font=10, columns=3)
    dress(ax, x_label=x_label, y_label="Events")
    if equally_wide:
        named = slice(None, None, -(-len(edges) // MOST_EDGES))
        ax.set_xticks(places[named], [f"{edge:.4g}" for edge in edges[named]], fontsize=9)
        ax.tick_params(axis="x", which="minor", bottom=False, top=False)
    return ax


def _scale(ax: Axes, heights: np.ndarray, *, log: bool) -> None:
    """Leaves the upper quarter to the legend."""
    highest = float(heights.max()) if heights.size and heights.max() > 0 else 1.0
    positive = heights[heights > 0]
    if not log or not positive.size:
        ax.set_ylim(0, 1.4 * highest)
        return
    lowest = 0.5 * max(float(positive.min()), DECADES_BELOW_ONE)
    ax.set_yscale("log")
    ax.set_ylim(lowest, highest * (highest / lowest) ** 0.35)
