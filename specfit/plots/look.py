"""The look that all pictures share: colours, axes as the field draws them, legends, numbers as on paper."""

from __future__ import annotations

__all__ = [
    "BAND",
    "DATA",
    "EMPTY",
    "FIT",
    "GUIDE",
    "OVERLAY",
    "PULL",
    "TRUTH",
    "add_legend",
    "dress",
    "number",
    "scale_x",
    "shade",
]

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.legend import Legend

# Okabe and Ito's palette, and greys.
DATA, FIT, BAND, TRUTH, PULL = "#000000", "#D55E00", "#E69F00", "#0072B2", "#56B4E9"
GUIDE, EMPTY = "#888888", "#AAAAAA"
OVERLAY = (TRUTH, FIT, "#009E73", "#CC79A7", BAND, DATA)
LOG_X_ABOVE = 5.0  # ratio of bin widths


def dress(ax: Axes, *, x_label: str | None = None, y_label: str | None = None, font: int = 14) -> None:
    """Turns ticks inside, on all sides, with minor ticks, and writes the names of the axes.

    Args:
        ax: What to dress.
        x_label: Name of the horizontal axis; None keeps the one there.
        y_label: Name of the vertical axis; None keeps the one there.
        font: Size of the names in points; the numbers at the ticks are smaller.
    """
    from matplotlib.ticker import AutoMinorLocator

    # A logarithmic axis has minor ticks of its own.
    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_scale() == "linear":
            axis.set_minor_locator(AutoMinorLocator())
    ax.tick_params(which="both", direction="in", top=True, right=True, labelsize=font - 2)
    ax.tick_params(which="major", length=0.5 * font)
    ax.tick_params(which="minor", length=0.28 * font)
    if x_label is not None:
        ax.set_xlabel(x_label, fontsize=font)
    if y_label is not None:
        ax.set_ylabel(y_label, fontsize=font)


def scale_x(ax: Axes, edges: np.ndarray) -> None:
    """Sets the range to that of the edges, and a logarithmic scale where bins widen geometrically."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    widths = np.diff(edges)
    if edges[0] > 0 and widths.max() > LOG_X_ABOVE * widths.min():
        ax.set_xscale("log")
        # A spectrum seldom spans two decades: powers of ten alone would label one or two points.
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.xaxis.set_minor_locator(LogLocator(subs=range(1, 10)))
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(edges[0], edges[-1])


def shade(ax: Axes, edges: np.ndarray, chosen: np.ndarray, *, label: str = "No data", hatch: str = "") -> Any:
    """Colours some bins grey over the full height of a panel, behind everything else.

    Args:
        ax: Where.
        edges: Bin edges, shape `(n_bins + 1,)`.
        chosen: True for the bins, shape `(n_bins,)`.
        label: Name in a legend.
        hatch: Pattern, as matplotlib names it.
    """
    return ax.stairs(
        np.where(chosen, 1.0, np.nan),
        edges,
        fill=True,
        transform=ax.get_xaxis_transform(),
        label=label,
        zorder=0,
        facecolor="#EEEEEE",
        edgecolor="#BBBBBB",
        hatch=hatch,
        linewidth=0.0,
    )


def add_legend(
    ax: Axes,
    handles: dict[str, Any] | None = None,
    *,
    title: str = "",
    loc: Any = "best",
    font: int = 11,
    columns: int = 1,
) -> Legend:
    """Adds a legend without a frame, its title flush with its entries.

    Args:
        ax: Where.
        handles: What each label stands for; None takes what was labelled when drawn.
        title: Lines of text above the entries.
        loc: Corner as matplotlib names it; "best" covers the least of what is drawn.
        font: Size in points.
        columns: Columns of entries.
    """
    labels: list[str]
    artists, labels = ax.get_legend_handles_labels() if handles is None else ([*handles.values()], [*handles])
    return ax.legend(
        artists,
        labels,
        loc=loc,
        title=title,
        fontsize=font,
        title_fontsize=font,
        alignment="left",
        frameon=False,
        ncols=columns,
    )


def number(value: float) -> str:
    r"""Writes three digits as on paper: whole numbers in full up to 99999, long ones as a power of ten.

    Example:
        >>> number(41.26), number(9230.0), number(2.374e-30)
        ('41.3', '9230', '$2.37 \\times 10^{-30}$')
    """
    if value == 0 or not math.isfinite(value) or 1e-3 <= abs(value) < 99999.5:
        return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.3g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return rf"${mantissa} \times 10^{{{int(exponent)}}}$"
