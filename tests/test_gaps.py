"""Gaps between bins. Oracles: the whole spectrum with the same window masked, and the grid that rows were cut from."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import hist
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import specfit
from specfit import InputError, Spectrum, SpectrumFitter, cli, plots
from specfit.functional import DijetFunction, functional_fit, functional_fit_many
from specfit.io import like, parse_edges, read, to_hist, write
from specfit.io.raw import join_table
from specfit.masks import left_out_bins
from specfit.net import NETS
from specfit.search import inject, scan, scan_many
from specfit.stats import background_sample
from specfit.weights import event_weights

# Bins of the shipped net; the gap is 4 of them wide.
EDGES = parse_edges("250:3000:50:log")
COUNTS = torch.from_numpy(np.random.default_rng(3).poisson(1e5 * np.exp(-np.arange(50) / 8))).double()
GAPS = torch.zeros(50, dtype=torch.bool)
GAPS[20:24] = True
GAP = (EDGES[20].item(), EDGES[24].item())
GAP_IN_WORDS = f"{GAP[0]:g} to {GAP[1]:g}"


@pytest.fixture(scope="module")
def fitter():
    return SpectrumFitter.from_checkpoint()


@pytest.fixture(scope="module")
def gapped():
    return Spectrum(COUNTS.masked_fill(GAPS, 0.0), EDGES, gaps=GAPS)


@pytest.fixture(scope="module")
def fit(fitter, gapped):
    return fitter.fit(gapped)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the command line in this process, in an empty folder; answers exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["specfit", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return call


def csv_of(path, counts, edges, gaps):
    columns = (np.asarray(t)[~np.asarray(gaps)].tolist() for t in (edges[:-1], edges[1:], counts))
    rows = (",".join(map(repr, row)) for row in zip(*columns, strict=True))
    path.write_text("\n".join(["low_edge,high_edge,content", *rows]) + "\n")
    return path


# The value


def test_a_spectrum_says_where_its_gaps_are(gapped):
    assert gapped.gap_intervals == [GAP]
    assert torch.equal(gapped.measured, ~GAPS)
    assert repr(gapped).startswith("Spectrum(50 bins, 1 gap, 250 to 3000, ")
    two = Spectrum([1, 9, 2, 9, 9, 3], range(7), gaps=[False, True, False, True, True, False])
    assert two.gap_intervals == [(1, 2), (3, 5)]
    assert "2 gaps" in repr(two)


def test_what_stands_in_a_gap_counts_nowhere():
    gaps = [False, True, False, False]
    spectrum = Spectrum([[1, 7, 2, 3], [4, 7, 0, 0]], range(5), variances=[[2, 9, 4, 6], [8, 1, 0, 0]], gaps=gaps)
    assert spectrum.total.tolist() == [6, 4]
    assert event_weights(spectrum).unit.tolist() == [[2], [2]]
    assert event_weights(spectrum).exposure is None
    assert not Spectrum([1, 7, 2], range(4), variances=[1, 9, 2], gaps=[False, True, False]).is_weighted
    with pytest.raises(InputError, match="every bin is zero"):
        Spectrum([0, 7, 0], range(4), gaps=[False, True, False])


def test_no_gap_is_none():
    assert Spectrum([1, 2], range(3)).gaps is None
    assert Spectrum([1, 2], range(3), gaps=[False, False]).gaps is None
    assert Spectrum([1, 2], range(3)).gap_intervals == []
    assert Spectrum([1, 2], range(3)).measured.all()


@pytest.mark.parametrize("kind", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_a_later_change_of_the_users_flags_does_not_reach_it(kind):
    gaps = kind([False, True, False])
    spectrum = Spectrum([1, 0, 2], range(4), gaps=gaps)
    gaps[1] = False
    assert spectrum.gaps.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("gaps", "message"),
    [
        ([False, True], r"gaps: true or false for each of 3 bins is expected, shape \(3,\).*\(2,\) came"),
        ([0, 1, 0], "an array of int64"),
        ([[False, True, False]], r"shape \(1, 3\) came"),
        ([True, False, False], "the first bin cannot be one.*leave it out"),
        ([False, False, True], "the last bin cannot be one"),
        ("many", "true or false"),
    ],
)
def test_gaps_that_are_none_are_refused(gaps, message):
    with pytest.raises(InputError, match=message):
        Spectrum([1, 2, 3], range(4), gaps=gaps)


# Tables


@given(
    low=st.floats(1, 1e3),
    step=st.floats(0.01, 50),
    n=st.integers(5, 60),
    is_log=st.booleans(),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_the_bins_in_a_gap_are_those_that_were_cut_out_of_a_grid(low, step, n, is_log, cut):
    edges = np.geomspace(low, low * (1 + step), n + 1) if is_log else low + step * np.arange(n + 1)
    first = 1 + int(cut[0] * (n - 3))
    last = first + 1 + int(cut[1] * (min(n - 1, first + n // 2) - first - 1))
    kept = np.ones(n, dtype=bool)
    kept[first:last] = False
    joined = join_table(edges[:-1][kept], edges[1:][kept], [f"row {i}" for i in range(n)])
    np.testing.assert_array_equal(joined.gaps, ~kept)
    assert abs(joined.edges - edges).max() <= 1e-9 * edges.max()
    np.testing.assert_array_equal(
        np.delete(joined.edges, np.arange(first + 1, last)), np.delete(edges, range(first + 1, last))
    )


def test_one_missing_row_of_any_width_comes_back_to_the_last_digit(tmp_path):
    edges = np.array([0.1, 0.35, 0.7, 1.3, 2.2, 3.1, 5.3])
    gaps = np.array([False, False, True, False, True, False])
    spectrum = read(csv_of(tmp_path / "h.csv", np.array([9.0, 8, 0, 6, 0, 4]), edges, gaps))
    np.testing.assert_array_equal(spectrum.edges, edges)
    np.testing.assert_array_equal(spectrum.gaps, gaps)
    assert spectrum.counts.tolist() == [9, 8, 0, 6, 0, 4]


def test_widths_in_a_gap_lie_between_those_beside_it():
    low = [*range(10), 30, 34, 38, 42]
    joined = join_table(low, [*range(1, 11), 34, 38, 42, 46], [str(x) for x in low])
    widths = np.diff(joined.edges)[joined.gaps]
    assert ((widths > 1) & (widths < 4)).all()
    np.testing.assert_allclose(widths[1:] / widths[:-1], widths[1] / widths[0])
    assert joined.edges[:11].tolist() == list(range(11))
    assert joined.edges[-5:].tolist() == [30, 34, 38, 42, 46]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,1,4\n1,2,4\n2,3,4\n3.3,4,2\n", "line 4: a gap before it.*3.3.*ends at 3; that is less than half a bin"),
        ("0,4,9\n5,9,8\n10,14,7\n15,19,6\n", "line 2: a gap before it.*less than half a bin.*inclusive"),
        ("0,1,9\n2,3,8\n4,5,7\n6,7,6\n", "line 2: a gap before it.*most bins have such a gap.*inclusive"),
        ("0,1,4\n1,2,4\n2,3,2\n90,91,2\n", "line 4: .*starts at 90.*more bins than there are rows.*one by one"),
        ("0,1,4\n1,2,4\n2,3,2\n1e300,2e300,2\n", "line 4: .*more bins than there are rows"),
        ("0,1,4\n5,6,2\n1,2,4\n2,3,1\n", "line 3: an overlap with the bin before it.*rising order"),
        ("5,6,4\n2,3,2\n0,1,1\n", "line 2: an overlap with the bin before it"),
    ],
    ids=["narrow", "inclusive", "whole numbers", "too wide", "far", "one astray", "falling"],
)
def test_tables_that_are_wrong_are_refused_with_their_line(tmp_path, text, message):
    (tmp_path / "h.csv").write_text(text)
    with pytest.raises(InputError, match=f"h.csv: {message}"):
        read(tmp_path / "h.csv")


def test_a_histogram_whose_axis_leaves_something_out_is_refused():
    histogram = hist.Hist(hist.axis.IntCategory([1, 5, 7]))
    histogram.fill([1, 5, 5, 7])
    with pytest.raises(InputError, match=r"bin 1: a gap before it.*write an empty bin"):
        read(histogram)


def test_written_tables_leave_out_the_same_rows(tmp_path, gapped):
    first = read(write(gapped, tmp_path / "a.csv"))
    text = (tmp_path / "a.csv").read_text()
    assert len(text.splitlines()) == 1 + 46
    again = read(write(first, tmp_path / "b.csv"))
    assert (tmp_path / "b.csv").read_text() == text
    for name in ("counts", "edges", "gaps"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    np.testing.assert_allclose(first.edges, EDGES, rtol=1e-7)
    assert torch.equal(parse_edges(tmp_path / "a.csv"), first.edges)
    assert read(tmp_path / "a.csv", tmp_path / "a.csv").gap_intervals == [GAP]


def test_npz_keeps_gaps_and_what_stands_in_them(tmp_path):
    spectrum = Spectrum([3, 7, 2], range(4), variances=[6, 7, 4], gaps=[False, True, False])
    found = read(write(spectrum, tmp_path / "h.npz"))
    for name in ("counts", "edges", "variances", "gaps"):
        assert torch.equal(getattr(found, name), getattr(spectrum, name))
    counts = Spectrum([3, 7, 2], range(4), gaps=[False, True, False])
    assert read(counts, variances=[1, 1, 1]).gaps.tolist() == [False, True, False]


def test_variances_of_a_table_with_a_gap(tmp_path):
    (tmp_path / "h.csv").write_text("low_edge,high_edge,content,error\n0,1,4,3\n1,2,3,2\n3,4,2,1\n")
    assert read(tmp_path / "h.csv").variances.tolist() == [9, 4, 0, 1]


def test_a_histogram_is_not_given_empty_bins_for_gaps(tmp_path, gapped, fit):
    with pytest.raises(InputError, match=r"nothing was measured from 675.*only show as empty bins; write .csv or .npz"):
        to_hist(gapped)
    with pytest.raises(InputError, match="nothing was measured"):
        write(gapped, tmp_path / "h.root:h")
    assert not (tmp_path / "h.root").exists()
    np.testing.assert_array_equal(fit.to_hist().values(), fit.background)
    assert torch.equal(read(fit.save(tmp_path / "b.root:h")).counts, fit.background)


# Fits


@pytest.mark.parametrize("refit", ["windows", "talk", None])
@pytest.mark.parametrize("shape", [(), (2, 1)], ids=["one", "batch"])
def test_a_fit_with_a_gap_is_the_masked_fit_bit_for_bit(fitter, refit, shape):
    full = COUNTS.expand(*shape[:1], 50) if shape else COUNTS
    peak = torch.zeros(50, dtype=torch.float64)
    peak[30:33] = torch.tensor([400.0, 900, 400])  # something for the refit
    full = full + peak
    found = fitter.fit(Spectrum(full.masked_fill(GAPS, 0.0), EDGES, gaps=GAPS), refit=refit)
    masked = fitter.fit(Spectrum(full, EDGES), mask=[GAP], refit=refit)
    for name in ("background", "factor", "mask", "n_parameters", "iterations", "converged"):
        assert torch.equal(getattr(found, name), getattr(masked, name)), name
    for name in ("deviance", "ndf", "p_value"):
        assert torch.equal(getattr(found, name), getattr(masked, name)), name
    assert torch.equal(found.significance[..., ~GAPS], masked.significance[..., ~GAPS])
    assert (found.significance[..., GAPS] == 0).all()
    assert found.mask[..., GAPS].all()
    assert f"; 1 gap interpolated ({GAP_IN_WORDS})" in found.message
    assert found.message.replace(f"; 1 gap interpolated ({GAP_IN_WORDS})", "") == masked.message


def test_what_stands_in_a_gap_does_not_change_a_fit(fitter, fit):
    other = fitter.fit(Spectrum(COUNTS.masked_fill(GAPS, 1e7), EDGES, gaps=GAPS))
    assert torch.equal(other.background, fit.background)
    assert other.summary() == fit.summary()


def test_a_weighted_spectrum_with_a_gap_is_the_masked_one():
    torch.manual_seed(1)
    fitter = SpectrumFitter(NETS["any_binning"](), None)
    empty = COUNTS.masked_fill(GAPS, 0.0)
    found = fitter.fit(Spectrum(empty, EDGES, variances=3 * empty, gaps=GAPS), refit=None)
    masked = fitter.fit(Spectrum(empty, EDGES, variances=3 * empty), mask=GAPS, refit=None)
    assert torch.equal(found.background, masked.background)
    assert torch.equal(found.deviance, masked.deviance)
    assert found.summary()[0]["weighted"]


def test_functions_with_a_gap_are_the_masked_ones_bit_for_bit(gapped):
    function, full = DijetFunction(sqrt_s=13_000), Spectrum(COUNTS, EDGES)
    one, same = functional_fit(gapped, function=function), functional_fit(full, function=function, mask=[GAP])
    assert one.parameters == same.parameters
    assert one.errors == same.errors
    assert torch.equal(one.fit.background, same.fit.background)
    assert one.fit.message == f"{same.fit.message}; 1 gap interpolated ({GAP_IN_WORDS})"
    batch = Spectrum(torch.stack([COUNTS, 2 * COUNTS]), EDGES, gaps=GAPS)
    many = functional_fit_many(batch, function=function)
    masked = functional_fit_many(Spectrum(batch.counts, EDGES), function=function, mask=[GAP])
    assert torch.equal(many.fit.background, masked.fit.background)
    assert "1 gap interpolated" in many.fit.message
    assert functional_fit_many(gapped, function=function).fit.spectrum.gap_intervals == [GAP]


def test_the_same_kind_comes_back(tmp_path, fit, gapped, fitter):
    background = fit.to_spectrum()
    assert torch.equal(background.gaps, GAPS)
    assert torch.equal(background.counts, fit.background)  # with the interpolation
    assert like(gapped, background) is background
    smooth = specfit.smooth_background(write(gapped, tmp_path / "h.csv"))
    torch.testing.assert_close(smooth.counts, fit.background, rtol=1e-6, atol=0)
    assert smooth.gap_intervals == [GAP]
    written = read(fit.save(tmp_path / "b.csv"))
    assert torch.equal(written.counts[~GAPS], fit.background[~GAPS])
    assert (written.counts[GAPS] == 0).all()
    batch = fitter.fit(Spectrum(torch.stack([COUNTS, COUNTS]), EDGES, gaps=GAPS))
    assert torch.equal(batch[1].spectrum.gaps, GAPS)


def test_the_interpolation_has_an_error_and_holds_what_was_cut_out(fit):
    expected, error = fit.window(*GAP)
    events = COUNTS[GAPS].sum()
    assert 0 < error < 0.02 * expected
    assert abs(events - expected) < 3 * (events + error**2).sqrt()


def test_the_summary_leaves_gaps_out_and_names_them(fit):
    summary = fit.summary()[0]
    seen = ~GAPS
    assert summary["events"] == COUNTS[seen].sum()
    assert summary["bins"] == 46
    assert summary["gaps"] == [GAP]
    assert summary["background_total"] == pytest.approx(fit.background[seen].sum().item())
    assert summary["background_total_uncertainty"] == pytest.approx(
        fit.covariance[seen][:, seen].sum().sqrt().item(), rel=1e-9
    )
    assert summary["masked_bins"] == []
    assert summary["largest_excess"] == fit.significance[seen].max()
    assert summary["ndf"] == pytest.approx(46 - fit.n_parameters.item())


def test_a_deficit_everywhere_has_its_largest_excess_where_there_are_data(fit):
    summary = replace(fit, background=fit.background * 3).summary()[0]
    assert summary["largest_excess"] < 0
    assert not GAP[0] <= summary["largest_excess_low"] < GAP[1]


def test_gaps_and_mask_are_left_out_together(fitter, gapped):
    window = (EDGES[30].item(), EDGES[33].item())
    expected = GAPS.clone()
    expected[30:33] = True
    assert torch.equal(left_out_bins(gapped, [window])[0], expected)
    assert torch.equal(left_out_bins(gapped, None)[0], GAPS)
    found = fitter.fit(gapped, mask=[window])
    assert torch.equal(found.background, fitter.fit(COUNTS, EDGES, mask=[GAP, window]).background)
    assert found.summary()[0]["masked_bins"] == [30, 31, 32]


def test_too_little_beside_gaps_is_refused(fitter):
    gaps = torch.zeros(50, dtype=torch.bool)
    gaps[10:30] = True
    spectrum = Spectrum(COUNTS, EDGES, gaps=gaps)
    with pytest.raises(InputError, match="mask and gaps of the spectrum together: more than half of the 50 bins"):
        fitter.fit(spectrum, mask=[(EDGES[30].item(), EDGES[37].item())])


def test_a_likelihood_gets_no_bins_without_data(fit):
    with pytest.raises(InputError, match=r"leave gaps out, with bins=fit.spectrum.measured"):
        background_sample(fit)
    sample = background_sample(fit, bins=fit.spectrum.measured)
    assert sample["data"] == fit.background[~GAPS].tolist()


# Searches


def test_a_scan_with_a_gap_is_the_masked_scan_bit_for_bit(fitter, gapped, tmp_path):
    found = scan(gapped, checkpoint=fitter, width=0.02)
    masked = scan(COUNTS, EDGES, checkpoint=fitter, width=0.02, mask=[GAP])
    for name in ("mass", "yields", "error", "local_z", "limit", "expected_limits", "background", "mask"):
        assert torch.equal(getattr(found, name), getattr(masked, name)), name
    assert found.global_p == masked.global_p
    # No signal is tried in the middle of the gap, and all are beside it.
    inside = (found.mass > GAP[0] + 0.02 * GAP[0]) & (found.mass < GAP[1] - 0.02 * GAP[1])
    assert not inside.any()
    assert found.mass.min() < GAP[0]
    assert found.mass.max() > GAP[1]
    assert found.summary()["bins"] == 46
    assert found.summary()["gaps"] == [GAP]
    assert "1 gap interpolated" in found.message
    with pytest.raises(
        InputError, match="mask and gaps of the spectrum: they cover every signal that was to be looked for"
    ):
        scan(gapped, checkpoint=fitter, width=0.01, mass=[750.0])


def test_many_spectra_are_searched_beside_their_gaps(fitter):
    spectra = torch.stack([COUNTS, COUNTS.flip(0)])
    found = scan_many(Spectrum(spectra, EDGES, gaps=GAPS), checkpoint=fitter)
    masked = scan_many(spectra, EDGES, checkpoint=fitter, mask=[GAP])
    for name, column in masked.table.items():
        seen = found.table[name]
        if name == "events":
            np.testing.assert_array_equal(seen, spectra[:, ~GAPS].sum(1))
        else:
            np.testing.assert_array_equal(seen, column, err_msg=name)


def test_signals_are_injected_beside_gaps(fitter, gapped):
    result = inject(gapped, checkpoint=fitter, width=0.02, n_toys=2)
    assert not ((result.mass > GAP[0] * 1.02) & (result.mass < GAP[1] * 0.98)).any()
    with pytest.raises(InputError, match="mass: mask and gaps cover the signal at 750"):
        inject(gapped, checkpoint=fitter, width=0.02, mass=[750.0], n_toys=2)


# Pictures and words


def test_a_gap_is_grey_and_has_no_points_but_the_background(fit):
    figure = plots.draw_fit(fit)
    top, bottom = figure.axes
    for ax in (top, bottom):
        (grey,) = [p for p in ax.patches if p.get_label() == "No data"]
        np.testing.assert_array_equal(np.isfinite(grey.get_data().values), GAPS)
        assert grey.get_hatch() in (None, "")
        assert not [p for p in ax.patches if p.get_label() == "Masked"]
    points = {c.get_label(): c[0].get_xdata() for c in top.containers}
    np.testing.assert_allclose(points["Data"], fit.spectrum.centers[~GAPS])
    assert len(points["Masked data"]) == 0
    assert len(points["Empty"]) == 0
    heights = [bar.get_height() for bar in bottom.containers[0]]
    assert all(height == 0 for height, gap in zip(heights, GAPS.tolist(), strict=True) if gap)
    assert "No data" in [text.get_text() for text in top.get_legend().get_texts()]
    figure.draw_without_rendering()


def test_lines_of_a_scan_end_at_a_gap(fitter, gapped):
    found = scan(gapped, checkpoint=fitter, width=0.02)
    figure = found.plot()
    figure.draw_without_rendering()
    events, excess, local_p, limits = figure.axes
    for ax in (local_p, limits):
        x = next(line.get_xdata() for line in ax.lines if len(line.get_xdata()) >= len(found.mass))
        (at,) = np.flatnonzero(np.isnan(x))
        assert x[at - 1] < np.mean(GAP) < x[at + 1]
    data = next(c for c in events.containers if c.get_label() == "Data")[0]
    assert np.isnan(data.get_ydata()[GAPS.numpy()]).all()
    assert np.isfinite(data.get_ydata()[~GAPS.numpy()]).all()
    assert np.isnan([bar.get_height() for bar in excess.containers[0]])[GAPS.numpy()].all()
    without = scan(COUNTS, EDGES, checkpoint=fitter, width=0.02).plot().axes[2]
    assert not any(np.isnan(line.get_xdata()).any() for line in without.lines)


def test_the_command_line_says_what_it_left_out(run, gapped):
    write(gapped, "hist.csv")
    code, out, _ = run("predict", "hist.csv", "--plot")
    assert code == 0
    assert f"46 and 1 gap ({GAP_IN_WORDS})" in out
    assert "1 gap interpolated" in " ".join(out.split())
    assert len(Path("hist_background.csv").read_text().splitlines()) == 47
    assert Path("hist_background.png").exists()
    code, out, _ = run("predict", "hist.csv", "--json")
    assert json.loads(out)["fits"][0]["gaps"] == [list(GAP)]
    code, out, _ = run("scan", "hist.csv", "--width", "0.05")
    assert code == 0
    assert f"in 46 bins and 1 gap ({GAP_IN_WORDS})" in out


def test_rows_cut_out_of_a_published_spectrum_are_interpolated(spectra_folder, tmp_path):
    full = read(spectra_folder / "cms_caloscouting_2015D_1p9fb_5GeVbins_turnon_analysis_input.csv")
    gaps = (full.edges[:-1] >= 600) & (full.edges[1:] <= 650)
    found = read(csv_of(tmp_path / "cut.csv", full.counts, full.edges, gaps))
    assert torch.equal(found.edges, full.edges)
    fitter = SpectrumFitter.from_checkpoint("any_binning")
    fit, masked = fitter.fit(found), fitter.fit(full, mask=[(600, 650)])
    assert torch.equal(fit.background, masked.background)
    assert torch.equal(fit.factor, masked.factor)
    expected, error = fit.window(600, 650)
    events = full.counts[gaps].sum()
    assert abs(events - expected) < 3 * (events + error**2).sqrt()
