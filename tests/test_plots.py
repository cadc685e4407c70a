"""Pictures: what is drawn are the numbers of the fit, in the right place; a file appears whole or not at all."""

import csv
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import scipy.stats
import torch
from hist.intervals import poisson_interval
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from specfit import plots
from specfit.errors import InputError
from specfit.search import ScanResult
from specfit.spectrum import Spectrum
from specfit.stats import ChannelYields

SPECTRA = Path(__file__).resolve().parents[2] / "shared" / "data" / "spectra"
NAMES = (
    "atlas_dijet_resonance_ystar0p6_13TeV_37fb_PRD96_052004",
    "atlas_dilepton_ee_13TeV_139fb_PLB796_68",
    "atlas_diphoton_750_13TeV_3p2fb_CONF_2015_081_digitised",
    "cms_dimuon_1b_13TeV_138fb_JHEP10_2023_043",
    "cms_mttbar_muo_t0B1_L1chi2lo_mtt_13TeV_2p6fb_B2G16015",
    "cms_opendata_dimuon_2011_7TeV_0to4GeV",
)


@dataclass(frozen=True)
class Fit:
    """A fit as anybody could bring one: it is not a BackgroundFit."""

    spectrum: Spectrum
    background: torch.Tensor
    uncertainty: torch.Tensor
    significance: torch.Tensor
    mask: torch.Tensor
    deviance: torch.Tensor
    ndf: torch.Tensor
    p_value: torch.Tensor
    converged: torch.Tensor
    message: str = "all is well"


def make_fit(counts, edges, *, variances=None, mask=None, significance=None):
    spectrum = Spectrum(counts, edges, variances=variances)
    background = spectrum.counts * 1.1 + 0.3
    z = (spectrum.counts - background) / background.sqrt() if significance is None else torch.as_tensor(significance)
    masked = torch.zeros(spectrum.n_bins, dtype=torch.bool) if mask is None else torch.as_tensor(mask)
    quality = {"deviance": 41.26, "ndf": 38.0, "p_value": 0.334, "converged": True}
    scalars = {name: torch.tensor(value) for name, value in quality.items()}
    return Fit(spectrum, background, 0.2 * background, z.double(), masked, **scalars)


@pytest.fixture
def falling():
    """Falling by more than thirty, bins of equal width, an empty bin, bins 2 and 3 masked."""
    mask = [False, False, True, True, False, False]
    return make_fit([400, 120, 60, 9, 0, 1], np.linspace(10, 70, 7), mask=mask)


@pytest.fixture
def flat():
    return make_fit([40, 52, 31, 44], [0, 1, 2, 3, 4])


def containers(ax):
    return {c.get_label(): c for c in ax.containers}


def errors_of(container):
    """Ends of the vertical bars of an errorbar container, shape (2, n)."""
    (bars,) = container[2]
    assert isinstance(bars, LineCollection)
    return np.array([segment[:, 1] for segment in bars.get_segments()]).T


def steps_of(ax):
    """All step curves of a panel as (values, baseline)."""
    return [(p.get_data().values, p.get_data().baseline) for p in ax.patches if hasattr(p, "get_data")]


def has_step(ax, values, baseline=None):
    same = [np.allclose(v, values) and (baseline is None or np.allclose(b, baseline)) for v, b in steps_of(ax)]
    return any(same)


def legend_texts(ax):
    legend = ax.get_legend()
    return [legend.get_title().get_text(), *(t.get_text() for t in legend.get_texts())]


# Two panels -----------------------------------------------------------------------------------------------------------


def test_a_fit_has_two_panels_on_one_axis(flat):
    figure = plots.draw_fit(flat, title="A title", x_label="mass [GeV]")
    top, bottom = figure.axes
    assert top.get_shared_x_axes().joined(top, bottom)
    assert bottom.get_xlim() == (0, 4)
    assert top.get_position().y0 == pytest.approx(bottom.get_position().y1)
    assert (top.get_title(), bottom.get_xlabel(), bottom.get_ylabel()) == ("A title", "mass [GeV]", "Significance")
    assert [ax.xaxis.get_major_ticks(1)[0].label1.get_visible() for ax in figure.axes] == [False, True]


def test_data_are_points_with_the_poisson_interval_of_hist(flat):
    points = containers(plots.draw_fit(flat).axes[0])["Data"]
    counts = flat.spectrum.counts.numpy()
    np.testing.assert_allclose(points[0].get_xydata(), np.stack((flat.spectrum.centers, counts), 1))
    np.testing.assert_allclose(errors_of(points), poisson_interval(counts), rtol=1e-12)


def test_an_empty_bin_has_the_upper_error_of_hist():
    points = containers(plots.draw_fit(make_fit([3, 0, 2, 0], [0, 1, 2, 3, 4])).axes[0])["Data"]
    np.testing.assert_allclose(errors_of(points), poisson_interval(np.array([3.0, 0, 2, 0])), rtol=1e-12)


def test_weighted_data_have_the_square_root_of_their_variance():
    fit = make_fit([40.0, 30.0], [0, 1, 2], variances=[16.0, 9.0])
    top = plots.draw_fit(fit).axes[0]
    np.testing.assert_allclose(errors_of(containers(top)["Data"]), [[36, 27], [44, 33]])
    assert top.get_ylabel() == "Weighted events / bin"


def test_background_band_and_truth_are_steps(flat):
    truth = np.array([41.0, 42, 43, 44])
    top = plots.draw_fit(flat, truth=truth).axes[0]
    b, s = flat.background.numpy(), flat.uncertainty.numpy()
    assert has_step(top, b)
    assert has_step(top, b + s, b - s)
    assert has_step(top, truth)
    assert legend_texts(top)[1:] == ["Data", r"Fit $\pm 1\sigma$", "Truth"]


def test_bars_are_the_significance_of_each_bin(falling):
    (bars,) = plots.draw_fit(falling).axes[1].containers
    np.testing.assert_allclose([b.get_height() for b in bars], falling.significance)
    np.testing.assert_allclose([b.get_x() for b in bars], falling.spectrum.edges[:-1])
    np.testing.assert_allclose([b.get_width() for b in bars], falling.spectrum.widths)


@pytest.mark.parametrize("largest", [0.5, 3.3, 7.0, 14.9, 15.1, 19.0, 42.0, 250.0])
def test_significance_range_is_symmetric_and_covers_the_extremes(largest):
    fit = make_fit([40, 52, 31, 44], [0, 1, 2, 3, 4], significance=[0.1, -largest, 0.2, 0.3])
    bottom = plots.draw_fit(fit).axes[1]
    low, high = bottom.get_ylim()
    assert low == -high
    assert high > max(3, largest)
    assert bottom.get_yscale() == ("symlog" if largest > 15 else "linear")
    guides = {line.get_ydata()[0] for line in bottom.lines}
    assert guides == {-3, -2, -1, 0, 1, 2, 3}
    ticks = [t for t in bottom.get_yticks() if low <= t <= high]
    assert 0 in ticks
    assert len(ticks) >= 3
    np.testing.assert_allclose(ticks, [-t for t in reversed(ticks)])


def test_quality_of_the_fit_is_in_the_legend(flat):
    assert legend_texts(plots.draw_fit(flat).axes[0])[0].split("\n") == [
        "deviance / ndf = 41.3 / 38",
        "p-value = 0.334",
        "167 events",
    ]


@pytest.mark.parametrize(
    ("p", "text"), [(0.0, "< $10^{-300}$"), (2.374e-30, r"= $2.37 \times 10^{-30}$"), (float("nan"), "= nan")]
)
def test_small_p_values_are_powers_of_ten(flat, p, text):
    fit = replace(flat, p_value=torch.tensor(p, dtype=torch.float64))
    assert legend_texts(plots.draw_fit(fit).axes[0])[0].split("\n")[1] == f"p-value {text}"


def test_a_fit_that_failed_says_so_and_is_still_drawn(flat):
    nothing = torch.full_like(flat.background, float("nan"))
    failed = replace(
        flat,
        background=nothing,
        uncertainty=nothing,
        significance=nothing,
        deviance=torch.tensor(float("nan")),
        converged=torch.tensor(False),
        message="raise max_iterations, $5 each",
    )
    figure = plots.draw_fit(failed, title="A title")
    assert figure.axes[0].get_title() == "A title\nNot converged: raise max_iterations, \\$5 each"
    figure.draw_without_rendering()
    assert "Not converged" not in plots.draw_fit(flat, title="A title").axes[0].get_title()


# Masked bins ----------------------------------------------------------------------------------------------------------


def test_masked_bins_are_hatched_hollow_and_white(falling):
    figure = plots.draw_fit(falling)
    for ax in figure.axes:
        (hatched,) = [p for p in ax.patches if p.get_hatch()]
        np.testing.assert_array_equal(np.isfinite(hatched.get_data().values), falling.mask)
        np.testing.assert_array_equal(hatched.get_data().edges, falling.spectrum.edges)
    drawn = containers(figure.axes[0])
    np.testing.assert_array_equal(drawn["Masked data"][0].get_ydata(), [60, 9])
    assert to_hex(drawn["Masked data"][0].get_markerfacecolor()) == "#ffffff"
    np.testing.assert_array_equal(drawn["Data"][0].get_ydata(), [400, 120, 1])
    assert to_hex(drawn["Data"][0].get_markerfacecolor()) == "#000000"
    white = [to_hex(bar.get_facecolor()) == "#ffffff" for bar in figure.axes[1].containers[0]]
    np.testing.assert_array_equal(white, falling.mask)
    assert "Masked" in legend_texts(figure.axes[0])


def test_nothing_is_hatched_without_a_mask(flat):
    figure = plots.draw_fit(flat)
    assert not any(p.get_hatch() for ax in figure.axes for p in ax.patches)
    assert "Masked" not in legend_texts(figure.axes[0])


# Scales ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "scale"),
    [([30, 10, 1], "linear"), ([31, 10, 1], "log"), ([30, 0, 1], "linear"), ([5e6, 2e5, 1e5], "log")],
)
def test_contents_are_logarithmic_beyond_a_factor_of_thirty(counts, scale):
    assert plots.draw_fit(make_fit(counts, [0, 1, 2, 3])).axes[0].get_yscale() == scale


@pytest.mark.parametrize(
    ("edges", "scale"),
    [([1, 2, 7], "linear"), ([1, 2, 7.1], "log"), ([0, 1, 6.1], "linear"), ([-9, -8, 2], "linear")],
)
def test_x_is_logarithmic_where_bins_widen_more_than_fivefold(edges, scale):
    figure = plots.draw_fit(make_fit([30, 20], edges))
    assert [ax.get_xscale() for ax in figure.axes] == [scale, scale]
    ticks = figure.axes[1].get_xticks()
    assert sum((edges[0] <= ticks) & (ticks <= edges[-1])) >= 2


@pytest.mark.parametrize(
    ("edges", "x_label", "y_label"),
    [
        ([1, 2, 3.19], "x", "Events / bin"),
        ([1, 2, 3.21], "x", "Events / unit of x"),
        ([1, 2, 3.21], "mass [GeV]", "Events / GeV"),
        ([1, 2, 3.19], "mass [GeV]", "Events / bin"),
    ],
)
def test_contents_are_per_unit_where_widths_vary(edges, x_label, y_label):
    fit = make_fit([30, 20], edges)
    top = plots.draw_fit(fit, x_label=x_label, truth=[25, 25]).axes[0]
    unit = np.ones(2) if y_label.endswith("bin") else np.diff(edges)
    assert top.get_ylabel() == y_label
    points = containers(top)["Data"]
    np.testing.assert_allclose(points[0].get_ydata(), np.array([30, 20]) / unit)
    np.testing.assert_allclose(errors_of(points), poisson_interval(np.array([30.0, 20.0])) / unit)
    assert has_step(top, fit.background.numpy() / unit)
    assert has_step(top, 25 / unit)


def test_empty_bins_on_a_log_axis_show_their_upper_error(falling):
    top = plots.draw_fit(falling).axes[0]
    empty = containers(top)["Empty"]
    assert empty[0].get_xdata().tolist() == [55.0]
    upper = poisson_interval(np.array([0.0]))[1]
    np.testing.assert_allclose(errors_of(empty)[1], upper)
    assert 0 < top.get_ylim()[0] < upper


@pytest.mark.skipif(not SPECTRA.is_dir(), reason="the measured spectra lie beside the repository, not in it")
@pytest.mark.parametrize("name", NAMES)
def test_every_measured_content_is_inside_the_picture(name):
    with (SPECTRA / f"{name}.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    edges = [float(row["low_edge"]) for row in rows] + [float(rows[-1]["high_edge"])]
    top = plots.draw_fit(make_fit([float(row["content"]) for row in rows], edges)).axes[0]
    low, high = top.get_ylim()
    ends = errors_of(containers(top)["Data"])
    y = containers(top)["Data"][0].get_ydata()
    assert (ends[1] < high).all()
    assert (np.where(y > 0, ends[0], high) > low).all() or low == 0


# Where it is drawn ----------------------------------------------------------------------------------------------------


def test_the_caller_places_the_panels(flat):
    figure = Figure()
    left, right = figure.subfigures(1, 2)
    own = tuple(left.subplots(2, 1, sharex=True))
    right.subplots()
    before = len(figure.axes)
    assert plots.draw_fit(flat, axes=own) is figure
    assert len(figure.axes) == before
    assert len(own[1].containers[0]) == flat.spectrum.n_bins


def test_ticks_are_inside_on_all_sides(falling):
    for ax in plots.draw_fit(falling).axes:
        for axis in (ax.xaxis, ax.yaxis):
            assert len(axis.get_minorticklocs()) > 0
            for tick in (axis.get_major_ticks(1)[0], axis.get_minor_ticks(1)[0]):
                assert tick.get_tickdir() == "in"
                assert tick.tick1line.get_visible()
                assert tick.tick2line.get_visible()


def test_a_batch_is_refused(flat):
    batch = replace(flat, spectrum=Spectrum([[1, 2], [3, 4]], [0, 1, 2]))
    with pytest.raises(InputError, match=r"fit: 2 spectra came, one is drawn; take fit\[i\]"):
        plots.draw_fit(batch)


def test_truth_of_another_length_is_refused(flat):
    with pytest.raises(InputError, match=r"truth: shape \(4,\) is expected as for the spectrum, \(2,\) came"):
        plots.draw_fit(flat, truth=[1.0, 2.0])


def test_neither_import_nor_drawing_touches_global_state():
    code = """
import sys
from specfit import plots
assert "matplotlib" not in sys.modules, "import"
import matplotlib
names = set(matplotlib.rcParams) - {"backend"}  # to read this one imports pyplot
before = [matplotlib.rcParams[name] for name in names]
from types import SimpleNamespace
import torch
from specfit.spectrum import Spectrum
one = torch.ones(3)
fit = SimpleNamespace(spectrum=Spectrum([40, 30, 1], [0, 1, 2, 3]), background=20 * one, uncertainty=one,
    significance=one, mask=one > 2, deviance=one[0], ndf=one[0], p_value=one[0], converged=one[0], message="")
plots.draw_fit(fit)
plots.draw_examples([fit])
assert "matplotlib.pyplot" not in sys.modules, "pyplot"
assert [matplotlib.rcParams[name] for name in names] == before, "style"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Examples -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 4, 6])
def test_examples_have_two_panels_each(flat, falling, n):
    fits = [flat, falling, flat, falling, flat, falling][:n]
    titles = [f"fit {i}" for i in range(n)]
    figure = plots.draw_examples(fits, titles=titles, truths=[None] * (n - 1) + [fits[-1].background])
    tops, bottoms = figure.axes[::2], figure.axes[1::2]
    assert [ax.get_title() for ax in tops] == titles
    for fit, bottom in zip(fits, bottoms, strict=True):
        np.testing.assert_allclose([b.get_height() for b in bottom.containers[0]], fit.significance)
    labels = {t.get_text() for t in figure.legends[0].get_texts()}
    assert labels == {"Data", r"Fit $\pm 1\sigma$", "Truth"} | ({"Masked"} if n > 1 else set())
    boxes = [ax.get_position() for ax in figure.axes]
    assert all(not a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_no_text_of_the_examples_covers_another(falling):
    figure = plots.draw_examples([falling] * 2, titles=["one", "two"])
    figure.draw_without_rendering()
    boxes = [figure.legends[0].get_window_extent()]
    for ax in figure.axes:
        boxes += [text.get_window_extent() for text in (ax.title, ax.yaxis.label) if text.get_text()]
        for axis, is_drawn in ((ax.xaxis, ax in figure.axes[1::2]), (ax.yaxis, True)):
            low, high = axis.get_view_interval()
            inside = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high and is_drawn]
            boxes += [tick.label1.get_window_extent() for tick in inside]
    assert len(boxes) > 20
    assert [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)] == []
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in boxes)


def test_an_example_that_failed_says_so(flat):
    figure = plots.draw_examples([replace(flat, converged=torch.tensor(False)), flat], titles=["one", "two"])
    assert [ax.get_title() for ax in figure.axes[::2]] == ["one: not converged", "two"]


@pytest.mark.parametrize("n", [0, 7])
def test_more_examples_than_fit_are_refused(flat, n):
    with pytest.raises(InputError, match=f"fits: {n} came, 1 to 6 are drawn"):
        plots.draw_examples([flat] * n)


@pytest.mark.parametrize("name", ["truths", "titles"])
def test_examples_need_one_text_and_truth_each(flat, name):
    with pytest.raises(InputError, match=f"{name}: 1 came for 2 fits"):
        plots.draw_examples([flat, flat], **{name: [None]})


# Searches -------------------------------------------------------------------------------------------------------------


def made_scan(spectrum, *, largest_z=3.2):
    """A search with an excess of a given local significance in the middle."""
    low, high = spectrum.edges[[0, -1]].tolist()
    mass = torch.linspace(low, high, 35).double()[1:-1]
    shape = torch.exp(-(((mass - (low + high) / 2) / (high - low)) ** 2) * 50)
    one, n_bins = torch.ones(33).double(), spectrum.n_bins
    return ScanResult(
        spectrum=spectrum,
        mass=mass,
        width=0.05 * mass,
        yields=20 * one,
        error=10 * one,
        error_low=10 * one,
        error_high=10 * one,
        local_z=largest_z * shape,
        limit=30 * one,
        expected_limits=one[:, None] * torch.tensor([15.0, 20.0, 30.0, 40.0, 55.0]).double(),
        level=0.95,
        global_p=0.1,
        global_p_by={"correlation": 0.1},
        global_p_interval=None,
        n_toys=0,
        background=spectrum.counts + 0.3,
        signal=torch.ones(n_bins).double(),
        known=(),
        mask=torch.zeros(n_bins, dtype=torch.bool),
        converged=True,
        message="",
    )


@pytest.mark.parametrize("edges", [np.arange(6.0), np.array([1.0, 2, 4, 7, 11, 16])])
def test_data_of_a_search_have_the_poisson_interval_of_hist_in_empty_bins_too(edges):
    counts = np.array([40.0, 12, 3, 0, 1])
    points = containers(plots.draw_search(made_scan(Spectrum(counts, edges))).axes[0])["Data"]
    unit = np.diff(edges)
    np.testing.assert_allclose(points[0].get_ydata(), counts / unit)
    np.testing.assert_allclose(errors_of(points), poisson_interval(counts) / unit, rtol=1e-12)


def test_weighted_data_of_a_search_have_the_square_root_of_their_variance():
    scanned = made_scan(Spectrum([40.0, 30.0, 6.0], [0, 1, 2, 3], variances=[16.0, 9.0, 4.0]))
    points = containers(plots.draw_search(scanned).axes[0])["Data"]
    np.testing.assert_allclose(errors_of(points), [[36, 27, 4], [44, 33, 8]])


def test_counts_of_a_channel_have_the_poisson_interval_of_hist():
    counts = torch.tensor([7.0, 0.0, 2.0]).double()
    drawn = plots.draw_yields(ChannelYields("SR", counts, *(counts + 0.5 for _ in range(4))))
    bars = errors_of(containers(drawn.axes[0])["data"])
    np.testing.assert_allclose(bars, poisson_interval(counts.numpy()), rtol=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("largest_z", "first", "last"), [(0.4, 1, 3), (3.2, 1, 3), (12.0, 3, 12), (205.0, 8, 37)])
def test_marks_of_standard_deviations_keep_apart_however_large_the_excess(largest_z, first, last):
    figure = plots.draw_local_p(made_scan(Spectrum([40, 52, 31, 44], [1, 2, 3, 4, 5]), largest_z=largest_z))
    (ax,) = figure.axes
    figure.draw_without_rendering()
    marks = [text for text in ax.texts if "sigma" in text.get_text()]
    assert [marks[i].get_text() for i in (0, -1)] == [rf"{first}$\sigma$", rf"{last}$\sigma$"]
    for text in marks:
        sigma = int(text.get_text().partition("$")[0])
        assert text.xy[1] == pytest.approx(scipy.stats.norm.sf(sigma), rel=1e-9)
        assert ax.get_ylim()[0] <= text.xy[1] < 1
    heights = np.array([ax.transData.transform((1, text.xy[1]))[1] for text in marks])
    assert (-np.diff(heights) > 0.049 * ax.get_window_extent().height).all()


# Residuals ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ax():
    return Figure(layout="constrained").subplots()


@pytest.fixture
def pairs():
    rng = np.random.default_rng(7)
    x = rng.normal(0.1, 1, 20_000)
    return x, 0.05 - 0.3 * x + rng.normal(0, 0.4, x.size)


def test_correlation_shows_measured_and_expected_slope(ax, pairs):
    x, y = pairs
    assert plots.draw_residual_correlation(x, y, ax, slope=-0.25, labels=("data", "fit")) is ax
    slope, offset = np.polyfit(x, y, 1)
    measured, expected = ax.lines
    assert measured.get_slope() == pytest.approx(slope, rel=1e-9)
    at, height = measured.get_xy1()
    assert height == pytest.approx(offset + slope * at, rel=1e-9)
    assert (expected.get_slope(), expected.get_xy1()) == (-0.25, (0, 0))
    assert legend_texts(ax) == [
        f"correlation {np.corrcoef(x, y)[0, 1]:.3f}",
        f"measured slope {slope:.3f}",
        "expected slope -0.250",
    ]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("data", "fit")


def test_correlation_counts_pairs_on_a_log_colour_scale(ax, pairs):
    x, y = pairs
    plots.draw_residual_correlation(x.reshape(2, -1), y.reshape(2, -1), ax, labels=("a", "b"))
    (mesh,) = ax.collections
    shown = mesh.get_array().sum()
    assert 0.997 * x.size < shown < x.size
    assert type(mesh.norm).__name__ == "LogNorm"
    assert len(ax.lines) == 1
    assert len(ax.figure.axes) == 2  # with its colour bar
    ax.figure.draw_without_rendering()


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 2, 3], [1, 2], "y: 2 residuals came, but x has 3"),
        ([1, 2], [1, np.nan], "y: 1 of 2 values are not finite"),
        ([], [], "x: nothing came"),
        ([1, 1], [1, 2], "x: all 2 residuals are equal"),
        ([1, 2], [3, 3], "y: all 2 residuals are equal"),
    ],
)
def test_correlation_refuses_what_has_none(ax, x, y, message):
    with pytest.raises(InputError, match=message):
        plots.draw_residual_correlation(x, y, ax, labels=("x", "y"))


def test_residuals_overlay_with_mean_and_rms(ax, pairs):
    x, y = pairs
    assert plots.draw_residuals(x, ax, label="function") is ax
    plots.draw_residuals(y.reshape(-1, 50), ax, label="net")
    texts = legend_texts(ax)[1:]
    for values, name, text in zip((x, y), ("function", "net"), texts, strict=True):
        rms = np.sqrt(np.mean(values**2))
        assert text.startswith(f"{name}: mean {values.mean():+.3f}, RMS {rms:.3f}")
    first, second = ax.patches
    for patch in (first, second):
        heights, edges, _ = patch.get_data()
        assert (heights * np.diff(edges)).sum() == pytest.approx(1, abs=1e-3)
    assert first.get_edgecolor() != second.get_edgecolor()
    assert ax.get_ylim()[0] == 0
    assert ax.get_ylim()[1] > max(p.get_data().values.max() for p in (first, second))


def test_residuals_far_outside_are_counted_not_drawn(ax):
    values = np.concatenate((np.linspace(-1, 1, 2001), [50.0, -60.0]))
    plots.draw_residuals(values, ax, label="net")
    (text,) = legend_texts(ax)[1:]
    assert text.endswith(", 2 outside")
    heights, edges, _ = ax.patches[0].get_data()
    assert (heights * np.diff(edges)).sum() == pytest.approx(2001 / 2003)


def test_residuals_that_are_all_zero_are_drawn(ax):
    plots.draw_residuals(np.zeros(5), ax, label="exact")
    ax.figure.draw_without_rendering()
    assert legend_texts(ax)[1:] == ["exact: mean +0.000, RMS 0.000"]


def test_bias_shows_mean_rms_and_limit(ax):
    edges, mean, rms = [1.0, 2, 4, 9], [0.1, -0.3, 0.05], [0.5, 0.4, 0.6]
    assert plots.draw_bias(edges, mean, rms, ax, limit=0.2, x_label="mass [GeV]") is ax
    drawn = {p.get_label(): p.get_data() for p in ax.patches}
    np.testing.assert_array_equal(drawn["Mean"].values, mean)
    np.testing.assert_array_equal(drawn["RMS"].values, rms)
    np.testing.assert_array_equal(drawn["Mean"].edges, edges)
    dashed = [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--"]
    assert dashed == [0.2, -0.2]
    assert (ax.get_xlabel(), ax.get_xlim()) == ("mass [GeV]", (1, 9))
    low, high = ax.get_ylim()
    assert low < -0.3
    assert high > 0.6


def test_bias_without_a_limit_has_no_dashed_line(ax):
    plots.draw_bias([1, 2, 3], [0.1, 0.2], [0.3, 0.4], ax)
    assert [line for line in ax.lines if line.get_linestyle() == "--"] == []


@pytest.mark.parametrize(("mean", "rms", "name"), [([0.1], [0.1, 0.2], "mean"), ([0.1, 0.2], [0.1], "rms")])
def test_bias_refuses_another_number_of_bins(ax, mean, rms, name):
    with pytest.raises(InputError, match=f"{name}: 1 bins came, but 3 edges make 2 bins"):
        plots.draw_bias([1, 2, 3], mean, rms, ax)


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def empty():
    return Figure(figsize=(8, 6))


@pytest.mark.parametrize(
    ("name", "begin"), [("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml"), ("A.PNG", b"\x89PNG")]
)
def test_the_ending_says_the_format(tmp_path, empty, name, begin):
    path = tmp_path / name
    assert plots.save(empty, path) == path
    assert path.read_bytes().startswith(begin)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_fit_is_1200_dots_wide(tmp_path, falling):
    picture = plots.save(plots.draw_fit(falling), str(tmp_path / "a.png"))
    assert picture.read_bytes()[16:24] == (1200).to_bytes(4, "big") + (900).to_bytes(4, "big")


def test_one_figure_can_be_saved_twice(tmp_path, empty):
    empty.text(0.5, 0.5, "still there")
    first = plots.save(empty, tmp_path / "a.png").read_bytes()
    assert plots.save(empty, tmp_path / "b.png").read_bytes() == first
    empty.texts[0].remove()
    assert plots.save(empty, tmp_path / "b.png").read_bytes() != first


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.png.gz"])
def test_another_ending_is_refused(tmp_path, empty, name):
    with pytest.raises(InputError, match=rf"path: the name '{name}' ends in none of \.png, \.pdf, \.svg"):
        plots.save(empty, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_no_folder_is_made(tmp_path, empty):
    with pytest.raises(FileNotFoundError, match=r"the folder .*missing does not exist"):
        plots.save(empty, tmp_path / "missing" / "a.png")
    assert list(tmp_path.iterdir()) == []


class FullDisk(Figure):
    """A figure whose file breaks off in the middle."""

    def savefig(self, fname, **kwargs):
        Path(fname).write_bytes(b"half a pict")
        raise OSError(28, "No space left on device")


def test_a_write_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="No space left"):
        plots.save(FullDisk(), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_keeps_the_older_file(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"older")
    with pytest.raises(OSError, match="No space left"):
        plots.save(FullDisk(), path)
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


def test_a_figure_of_pyplot_is_closed(tmp_path):
    with mpl.rc_context({"backend": "agg"}):
        from matplotlib import pyplot

        kept, figure = pyplot.figure(), pyplot.figure()
        plots.save(figure, tmp_path / "a.png")
        assert pyplot.fignum_exists(kept.number)
        assert not pyplot.fignum_exists(figure.number)
        pyplot.close(kept)
