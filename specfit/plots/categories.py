"""Pictures of categories: the course of their optimisation, what they hold, where they lie, what they reach."""

from __future__ import annotations

__all__ = [
    "draw_bias_history",
    "draw_category_map",
    "draw_history",
    "draw_significance_comparison",
    "draw_yield_and_uncertainty",
    "save_gif",
]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specfit.errors import InputError
from specfit.io.files import replacing
from specfit.plots.look import BAND, DATA, FIT, OVERLAY, PULL, TRUTH, add_legend, dress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LABELLED = 12
LEGEND_COLUMNS = 4
# Height of a line of a legend, of the axes.
LEGEND_LINE = 0.075
# Smaller regions of a map are named in its legend only, as a fraction of all its points.
LARGE_ENOUGH_FOR_A_NAME = 0.01
# Red, green and blue of a shade on which black cannot be read add up to less than this.
DARK = 1.3
MARKERS = ("o", "s", "^", "D", "v", "P")


def draw_history(
    values: np.ndarray, ax: Axes, *, y_label: str, labels: Sequence[str] | None = None, log: bool = False
) -> Axes:
    """Draws one value, or several, against the epoch.

    Args:
        values: Shape `(n_epochs,)` or `(n_epochs, n_lines)`.
        ax: Where to draw.
        y_label: Name of the vertical axis.
        labels: Names of the lines.
        log: Logarithmic vertical axis.
    """
    lines = values[:, None] if values.ndim == 1 else values
    shades = _shades(lines.shape[1])
    for i in range(lines.shape[1]):
        label = None if labels is None else labels[i]
        ax.plot(lines[:, i], color=shades[i], linewidth=1.8, label=label)
    if log and (lines > 0).any():
        ax.set_yscale("log")
    elif not lines.any():
        ax.set_ylim(-0.05, 1)  # a penalty that never acts, instead of zero between -0.05 and 0.05
    ax.set_xlim(0, max(len(lines) - 1, 1))
    if labels is not None and len(labels) <= MOST_LABELLED:
        columns = min(len(labels), LEGEND_COLUMNS)
        _make_room(ax, LEGEND_LINE * -(-len(labels) // columns))
        add_legend(ax, loc="upper center", columns=columns)
    dress(ax, x_label="Epoch", y_label=y_label)
    return ax


def draw_bias_history(
    epochs: np.ndarray, bias: np.ndarray, ax: Axes, *, sharpness: np.ndarray, name: str, log: bool = False
) -> Axes:
    """Draws the mean bias of soft yields against the epoch, and steepness or temperature on a second axis.

    Args:
        epochs: Shape `(n,)`.
        bias: Mean absolute relative bias in these epochs, shape `(n,)`.
        ax: Where to draw; its twin takes the right side.
        sharpness: Steepness or temperature in these epochs, shape `(n,)`.
        name: What `sharpness` is.
        log: Logarithmic axis of the bias.
    """
    ax.plot(epochs, bias, "o-", color=TRUTH, label="Mean |hard - soft| / hard")
    twin = ax.twinx()
    twin.plot(epochs, sharpness, "s--", color=FIT, label=name.capitalize(), markersize=4)
    twin.set_yscale("log")
    if log and (bias > 0).any():
        ax.set_yscale("log")
    elif not log:
        ax.set_ylim(bottom=0)
    for axis in (ax, twin):
        _make_room(axis, 2 * LEGEND_LINE)
    dress(ax, x_label="Epoch", y_label="Mean bias of the background")
    dress(twin, y_label=name.capitalize())
    ax.tick_params(which="both", right=False)
    twin.tick_params(which="both", left=False, labelleft=False)
    (a, b), (c, d) = ax.get_legend_handles_labels(), twin.get_legend_handles_labels()
    add_legend(ax, dict(zip([*b, *d], [*a, *c], strict=True)), loc="upper right")
    return ax


def draw_yield_and_uncertainty(background: np.ndarray, uncertainty: np.ndarray, ax: Axes, *, log: bool = False) -> Axes:
    """Draws, side by side for each category, its background and the relative uncertainty of that.

    Args:
        background: Expected events, shape `(n,)`.
        uncertainty: Relative statistical uncertainty, shape `(n,)`.
        ax: Where to draw; its twin takes the right side.
        log: Logarithmic axes.
    """
    place = np.arange(len(background))
    ax.bar(place - 0.2, background, 0.4, color=PULL, label="Background")
    twin = ax.twinx()
    twin.bar(place + 0.2, uncertainty, 0.4, color=BAND, label="Relative uncertainty")
    for axis, values in ((ax, background), (twin, uncertainty)):
        positive = values[values > 0]
        if log and positive.size:
            axis.set_yscale("log")
            axis.set_ylim(positive.min() / 3, positive.max() * (positive.max() / positive.min()) ** 0.3 * 3)
        else:
            axis.set_ylim(0, 1.3 * values.max() if values.max() > 0 else 1.0)
    dress(ax, x_label="Category", y_label="Background events")
    dress(twin, y_label="Relative stat. uncertainty")
    ax.tick_params(which="both", right=False)
    twin.tick_params(which="both", left=False, labelleft=False)
    ax.set_xticks(place)
    ax.minorticks_off()
    (a, b), (c, d) = ax.get_legend_handles_labels(), twin.get_legend_handles_labels()
    add_legend(ax, dict(zip([*b, *d], [*a, *c], strict=True)), loc="upper center", columns=2)
    return ax


def draw_significance_comparison(
    series: Mapping[str, Mapping[int, tuple[float, float]]], ax: Axes, *, x_label: str = "Number of bins"
) -> Axes:
    """Draws significances against the number of categories.

    Args:
        series: For each label, the significance and its uncertainty by the number of categories.
        ax: Where to draw.
        x_label: Name of the horizontal axis.
    """
    for i, (label, points) in enumerate(series.items()):
        numbers = sorted(points)
        z, error = (np.array([points[n][j] for n in numbers]) for j in (0, 1))
        style: dict[str, Any] = {
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": "-" if i % 2 == 0 else "--",
            "capsize": 3,
        }
        ax.errorbar(numbers, z, yerr=error, color=OVERLAY[i % len(OVERLAY)], label=label, linewidth=1.8, **style)
    ax.set_ylim(0, 1.05 * max((z + error for points in series.values() for z, error in points.values()), default=1.0))
    _make_room(ax, LEGEND_LINE * len(series))
    add_legend(ax, loc="upper left")
    dress(ax, x_label=x_label, y_label="Significance")
    ax.set_xticks(sorted({n for points in series.values() for n in points}))
    ax.tick_params(
        axis="x", which="minor", bottom=False, top=False
    )  # between numbers as uneven as these they are a blur
    return ax


def draw_category_map(
    x: np.ndarray,
    y: np.ndarray,
    category: np.ndarray,
    ax: Axes,
    *,
    n_categories: int,
    labels: tuple[str, str],
    title: str | None = None,
) -> Axes:
    """Draws which category owns which part of a plane.

    Args:
        x: Points of the grid, shape `(nx,)`.
        y: Points of the grid, shape `(ny,)`.
        category: Category at each point, shape `(ny, nx)`, or -1 where there are no events.
        ax: Where to draw.
        n_categories: Number of colours.
        labels: Names of both axes.
        title: Text above.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    shades = ListedColormap(_shades(n_categories, light=True))
    masked = np.ma.masked_less(category, 0)
    ax.pcolormesh(x, y, masked, cmap=shades, vmin=-0.5, vmax=n_categories - 0.5, rasterized=True, shading="nearest")
    for k in range(n_categories):
        here = category == k
        if here.any():
            # Half step off the grid lines: contours of a yes-or-no map.
            ax.contour(x, y, here.astype(float), levels=[0.5], colors=DATA, linewidths=0.8)
        if here.mean() > LARGE_ENOUGH_FOR_A_NAME:
            rows, columns = np.nonzero(here)
            middle = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
            ink = "white" if sum(shades(k)[:3]) < DARK else "black"
            ax.text(x[columns[middle]], y[rows[middle]], str(k), ha="center", va="center", fontsize=13, color=ink)
    ax.set_aspect("equal")
    names = {f"Cat. {k}": Patch(facecolor=shades(k), edgecolor=DATA) for k in range(n_categories)}
    if n_categories <= MOST_LABELLED:
        add_legend(ax, names, loc="upper right")
    if title is not None:
        ax.set_title(title, fontsize=13)
    dress(ax, x_label=labels[0], y_label=labels[1])
    return ax


def save_gif(frames: Sequence[Path], path: Path, *, milliseconds: int = 500) -> Path:
    """Joins pictures to an endless film, whole or not at all.

    Raises:
        InputError: No picture came.
    """
    from PIL import Image

    if not frames:
        raise InputError("frames: no picture came; a film needs one or more")
    pictures = []
    for frame in frames:
        with Image.open(frame) as picture:
            pictures.append(picture.convert("P", palette=Image.Palette.ADAPTIVE))
    with replacing(path) as temporary:
        first, *rest = pictures
        first.save(
            temporary, format="GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0, disposal=2
        )
    return path


def _make_room(ax: Axes, share: float) -> None:
    """Raises the upper end of the vertical axis, so that this share of it, at the top, is empty."""
    transform = ax.yaxis.get_transform()
    low, high = transform.transform(np.array(ax.get_ylim()))
    ends = np.array([low, high + (high - low) * share / (1 - share)])
    ax.set_ylim(*transform.inverted().transform(ends))


def _shades(n: int, *, light: bool = False) -> list[str]:
    """Returns colours that tell apart up to six lines, and a ramp for more."""
    if n <= len(OVERLAY) and not light:
        return list(OVERLAY[:n])
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [
        to_hex(c) for c in colormaps["YlGnBu" if light else "viridis"](np.linspace(0.05, 0.8 if light else 0.95, n))
    ]
