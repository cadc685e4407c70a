"""Pictures of an acceptance sheet: spurious signal, linearity, pulls, p-values, background."""

from __future__ import annotations

__all__ = [
    "draw_background_shift",
    "draw_injection",
    "draw_linearity",
    "draw_p_values",
    "draw_pulls",
    "draw_spurious_signal",
]

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from specfit.plots.look import BAND, DATA, FIT, GUIDE, OVERLAY, PULL, TRUTH, add_legend, dress, scale_x

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^v<>ph*"
# Half widths of the bands of a bias, in standard errors of the fit: accepted, and strict.
ACCEPTED, STRICT = 0.5, 0.2
PULL_RANGE, PULL_BINS, P_BINS = 4.5, 36, 10
# Distance of series that are drawn at the same mass, in points.
APART = 5.0
BIAS = r"$\langle S_\mathrm{fit} - S_\mathrm{inj}\rangle\ /\ \sigma_\mathrm{fit}$"


def draw_injection(result: Any, *, x_label: str = "x") -> Figure:
    """Draws an `InjectionResult`: bias of every strength against mass, linearity, pulls.

    Args:
        result: What came out.
        x_label: Name of the mass axis.
    """
    figure = _figure(7, 11)
    top, middle, bottom = figure.subplots(3, 1)
    _draw_bias(result, top, strengths=range(len(result.strength)), x_label=x_label)
    _draw_line(result, middle)
    _draw_pulls(result, bottom)
    return figure


def draw_spurious_signal(studies: Sequence[Any], *, x_label: str = "x") -> Figure:
    """Draws the mean signal fitted to pseudo-data without one, against mass, for each width.

    Args:
        studies: Each has a `name` and an `injection`, an `InjectionResult` whose smallest strength is drawn.
        x_label: Name of the mass axis.
    """
    figure, panels = _panels(studies)
    for ax, study in zip(panels, studies, strict=True):
        smallest = int(study.injection.strength.argmin())
        _draw_bias(study.injection, ax, strengths=[smallest], x_label=x_label)
    return figure


def draw_linearity(studies: Sequence[Any]) -> Figure:
    """Draws mean fitted against injected yields and, below, their difference.

    Args:
        studies: Each has a `name` and an `injection`, an `InjectionResult`.
    """
    figure = _figure(5.5 * len(studies), 6)
    grid = figure.subplots(2, len(studies), squeeze=False, sharex=True, sharey="row", height_ratios=(2, 1))
    for (top, below), study in zip(grid.T, studies, strict=True):
        top.set_title(study.name, fontsize=11, loc="left")
        _draw_line(study.injection, top)
        _draw_bias_by_strength(study.injection, below)
        top.label_outer()
        below.label_outer()
    return figure


def draw_pulls(studies: Sequence[Any]) -> Figure:
    """Draws the pulls of all masses, widths and strengths together with a normal distribution.

    Args:
        studies: Each has a `name` and an `injection`, an `InjectionResult`.
    """
    figure, panels = _panels(studies)
    for ax, study in zip(panels, studies, strict=True):
        _draw_pulls(study.injection, ax)
    return figure


def draw_p_values(studies: Sequence[Any], *, data: tuple[float, float] | None = None) -> Figure:
    """Draws histograms of the p-values of the fits and of the global p-values, with what is expected.

    Args:
        studies: Each has a `name`, `p_values` and `global_p`.
        data: Both p-values of the data.
    """
    figure = _figure(5.5 * len(studies), 6.5)
    grid = figure.subplots(2, len(studies), squeeze=False)
    for column, study in zip(grid.T, studies, strict=True):
        column[0].set_title(study.name, fontsize=11, loc="left")
        kinds = (("p-value of the fit", study.p_values), ("Global p-value", study.global_p))
        for i, (ax, (name, values)) in enumerate(zip(column, kinds, strict=True)):
            _draw_uniform(values.numpy(), ax, name=name, of_data=None if data is None else data[i])
    return figure


def draw_background_shift(studies: Sequence[Any], *, x_label: str = "x") -> Figure:
    """Draws the mean fitted background less its truth, in statistical errors of the data; not bins that are left out.

    Args:
        studies: Each has a `name`, a `background_shift` and an `injection` with the edges.
        x_label: Name of the horizontal axis.
    """
    figure = _figure(8, 3.6)
    ax = figure.add_subplot()
    for study, color in zip(studies, OVERLAY, strict=False):
        edges = study.injection.edges.numpy()
        ax.stairs(study.background_shift.numpy(), edges, baseline=None, color=color, linewidth=1.5, label=study.name)
    ax.axhline(0, color=DATA, linewidth=0.8)
    scale_x(ax, edges)
    low, high = ax.get_ylim()
    reach = 1.5 * max(abs(low), abs(high), 0.4)
    ax.set_ylim(-reach, reach)
    dress(ax, x_label=x_label, y_label=r"$\langle b_\mathrm{fit} - t\rangle\ /\ \sqrt{t}$", font=12)
    add_legend(ax, font=10, columns=2)
    return figure


def _draw_bias(result: Any, ax: Axes, *, strengths: Sequence[int], x_label: str) -> None:
    """Draws bias against mass, one series for each width and strength, side by side."""
    from matplotlib.transforms import offset_copy

    mass, bias, error = result.mass.numpy(), result.bias.numpy(), result.bias_error.numpy()
    _bias_bands(ax)
    scale_x(ax, result.edges.numpy())
    series = list(itertools.product(_signals_by_width(result), strengths))
    for i, ((label, chosen), k) in enumerate(series):
        words = [label] * (len(strengths) < len(series)) + [f"{result.strength[k]:g}$\\sigma_0$"] * (len(strengths) > 1)
        ax.errorbar(
            mass[chosen],
            bias[chosen, k],
            error[chosen, k],
            fmt=MARKERS[i % len(MARKERS)],
            color=OVERLAY[i % len(OVERLAY)],
            markersize=5,
            linewidth=1.2,
            label=", ".join(words) or label,
            transform=offset_copy(
                ax.transData, ax.get_figure(root=True), x=APART * (i - (len(series) - 1) / 2), units="points"
            ),
        )
    _open_up(ax, bias[:, list(strengths)], error[:, list(strengths)])
    dress(ax, x_label=x_label, y_label=BIAS, font=12)
    add_legend(ax, font=9, columns=2 if len(series) > 2 else 1)


def _draw_line(result: Any, ax: Axes) -> None:
    """Draws fitted against injected yields, both in units of the error with the background known."""
    strength, sigma0 = result.strength.numpy(), result.sigma0.numpy()[:, None]
    fitted = result.mean.numpy() / sigma0
    error = result.bias_in_sigma0_error.numpy()
    longest = 1.1 * max(float(strength.max()), 1.0)
    ax.plot([-0.05 * longest, longest], [-0.05 * longest, longest], color=GUIDE, linewidth=1)
    by_width = _signals_by_width(result)
    several = len(by_width) > 1
    widths = {i: f" ({label.removeprefix('width ')})" if several else "" for label, chosen in by_width for i in chosen}
    for i, (mass, apart) in enumerate(zip(result.mass.numpy(), _apart(len(fitted)), strict=True)):
        ax.errorbar(
            strength + apart,
            fitted[i],
            error[i],
            fmt=MARKERS[i % len(MARKERS)],
            color=OVERLAY[i % len(OVERLAY)],
            markersize=4,
            linewidth=1,
            label=f"{mass:.4g}{widths[i]}: {result.slope[i]:.3f} $\\pm$ {result.slope_error[i]:.3f}",
        )
    ax.set_xlim(-0.07 * longest, longest)
    # Room for the legend; a signal that is hardly measured at all does not set the scale.
    ax.set_ylim(max(ax.get_ylim()[0], -0.5 * longest), 1.9 * longest)
    dress(ax, x_label=r"$S_\mathrm{inj} / \sigma_0$", y_label=r"$\langle S_\mathrm{fit} \rangle / \sigma_0$", font=12)
    add_legend(ax, title="slope at each mass", font=8, loc="upper left", columns=1 if len(fitted) < 6 else 2)


def _draw_bias_by_strength(result: Any, ax: Axes) -> None:
    _bias_bands(ax)
    bias, error = result.bias.numpy(), result.bias_error.numpy()
    for i, apart in enumerate(_apart(len(bias))):
        color, marker = OVERLAY[i % len(OVERLAY)], MARKERS[i % len(MARKERS)]
        ax.errorbar(
            result.strength.numpy() + apart, bias[i], error[i], fmt=marker, color=color, markersize=4, linewidth=1
        )
    _open_up(ax, bias, error)
    dress(ax, x_label=r"$S_\mathrm{inj} / \sigma_0$", y_label=BIAS, font=12)


def _draw_pulls(result: Any, ax: Axes) -> None:
    """Draws all pulls with the normal distribution of width 1."""
    pulls = result.pulls.numpy().ravel()
    bins = np.linspace(-PULL_RANGE, PULL_RANGE, PULL_BINS + 1)
    inside = np.clip(pulls, bins[0], bins[-1])  # the first and last bin hold what lies beyond
    contents = np.histogram(inside, bins)[0]
    ax.stairs(contents, bins, color=PULL, fill=True, alpha=0.7, label="pulls")
    x = np.linspace(bins[0], bins[-1], 400)
    normal = len(pulls) * (bins[1] - bins[0]) * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    ax.plot(x, normal, color=FIT, linewidth=1.5, label="normal, width 1")
    ax.set_xlim(bins[0], bins[-1])
    ax.set_ylim(0, 1.4 * max(contents.max(), normal.max()))
    dress(ax, x_label=r"$(S_\mathrm{fit} - S_\mathrm{inj})\ /\ \sigma_\mathrm{fit}$", y_label="Fits", font=12)
    add_legend(ax, title=f"mean {pulls.mean():+.2f}, width {pulls.std():.2f}", font=9, loc="upper left")


def _draw_uniform(values: np.ndarray, ax: Axes, *, name: str, of_data: float | None) -> None:
    from scipy.stats import binom

    contents, bins = np.histogram(values, np.linspace(0, 1, P_BINS + 1))
    expected = len(values) / P_BINS
    low, high = (float(binom.ppf(level, len(values), 1 / P_BINS)) for level in (0.16, 0.84))
    ax.axhspan(low, high, color=BAND, alpha=0.35, linewidth=0, label="expected, 68 %")
    ax.axhline(expected, color=FIT, linewidth=1.2)
    ax.stairs(contents, bins, color=TRUTH, linewidth=1.6, label="pseudo-data")
    if of_data is not None:
        ax.axvline(of_data, ymax=0.8, color=DATA, linestyle="--", linewidth=1.4, label="data")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.5 * max(contents.max(), high))
    dress(ax, x_label=name, y_label="Pseudo-experiments", font=12)
    add_legend(ax, font=9, columns=3, loc="upper center")


def _signals_by_width(result: Any) -> list[tuple[str, np.ndarray]]:
    """Returns a label and the indices of the signals of each width, which is a share of the mass."""
    share = (result.width / result.mass.abs()).numpy()
    known = sorted({float(f"{x:.4g}") for x in share})
    if len(known) == len(share) > 1:  # widths of the user's own, no common share
        return [("signals", np.arange(len(share)))]
    return [(f"width {100 * x:g} %", np.flatnonzero(np.isclose(share, x, rtol=1e-3))) for x in known]


def _bias_bands(ax: Axes) -> None:
    ax.axhspan(-ACCEPTED, ACCEPTED, color=BAND, alpha=0.25, linewidth=0)
    ax.axhspan(-STRICT, STRICT, color=BAND, alpha=0.45, linewidth=0)
    ax.axhline(0, color=DATA, linewidth=0.8)


def _open_up(ax: Axes, bias: np.ndarray, error: np.ndarray) -> None:
    """Makes the vertical range symmetric, with room for a legend."""
    reach = 1.7 * max(float(np.nanmax(np.abs(bias) + error)), ACCEPTED)
    ax.set_ylim(-reach, reach)


def _apart(n: int) -> np.ndarray:
    return 0.6 / max(n, 5) * (np.arange(n) - (n - 1) / 2)


def _panels(studies: Sequence[Any]) -> tuple[Figure, Sequence[Axes]]:
    """Makes one panel for each background, side by side."""
    figure = _figure(5.5 * len(studies), 4)
    panels = figure.subplots(1, len(studies), squeeze=False, sharey=True)[0]
    for ax, study in zip(panels, studies, strict=True):
        ax.set_title(study.name, fontsize=11, loc="left")
    return figure, panels


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
