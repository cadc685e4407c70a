"""Spectrum: what it holds is what came, and everything that is no histogram is refused."""

import dataclasses

import hist
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from specfit.errors import InputError
from specfit.spectrum import Spectrum

EDGES = [0.0, 1.0, 2.0, 4.0]


@given(
    counts=hnp.arrays(np.float64, st.integers(2, 40), elements=st.floats(0.5, 1e9)),
    start=st.floats(-1e4, 1e4),
    step=st.floats(0.01, 100),
)
def test_properties_agree_with_a_histogram_of_the_hist_package(tolerance, counts, start, step):
    edges = start + step * np.arange(len(counts) + 1) ** 1.3
    spectrum = Spectrum(counts, edges)
    axis = hist.axis.Variable(edges)
    np.testing.assert_allclose(spectrum.centers, axis.centers, **tolerance["closed_form"])
    np.testing.assert_allclose(spectrum.widths, axis.widths, **tolerance["closed_form"])
    assert spectrum.n_bins == len(axis)
    assert spectrum.total.item() == pytest.approx(counts.sum())
    np.testing.assert_array_equal(spectrum.counts, counts)
    np.testing.assert_array_equal(spectrum.edges, edges)


@pytest.mark.parametrize(
    "counts",
    [
        [3, 2, 1],
        (3, 2, 1),
        np.array([3, 2, 1], dtype=np.uint8),
        np.array([3, 2, 1], dtype=">f4"),
        torch.tensor([3, 2, 1]),
        torch.tensor([3.0, 2.0, 1.0], dtype=torch.bfloat16),
    ],
)
def test_every_number_type_becomes_float64(counts):
    spectrum = Spectrum(counts, EDGES, variances=counts)
    assert spectrum.counts.dtype == spectrum.edges.dtype == spectrum.variances.dtype == torch.float64
    assert spectrum.counts.tolist() == [3, 2, 1]


@pytest.mark.parametrize("kind", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_a_later_change_of_the_users_arrays_does_not_reach_it(kind):
    arrays = [kind([3.0, 2.0, 1.0]), kind(EDGES), kind([9.0, 4.0, 1.0])]
    if kind is torch.tensor:
        arrays = [array.double() for array in arrays]
    spectrum = Spectrum(arrays[0], arrays[1], variances=arrays[2])
    for array in arrays:
        array[0] = -7
    assert spectrum.counts.tolist() == [3, 2, 1]
    assert spectrum.edges.tolist() == EDGES
    assert spectrum.variances.tolist() == [9, 4, 1]


def test_fields_cannot_be_replaced():
    spectrum = Spectrum([3, 2, 1], EDGES)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spectrum.counts = spectrum.edges


def test_a_batch_has_one_total_each():
    batch = Spectrum([[3, 2, 1], [1, 0, 4]], EDGES)
    assert batch.is_batch
    assert batch.total.tolist() == [6, 5]
    assert (batch.n_bins, batch.counts.shape) == (3, (2, 3))
    assert not Spectrum([3, 2, 1], EDGES).is_batch


def test_is_weighted_only_when_variances_say_something_new():
    assert not Spectrum([3, 2, 1], EDGES).is_weighted
    assert not Spectrum([3, 2, 1], EDGES, variances=[3, 2, 1]).is_weighted
    assert Spectrum([3, 2, 1], EDGES, variances=[6, 2, 1]).is_weighted


def test_repr_says_how_much_of_what():
    assert repr(Spectrum([3, 2, 1], EDGES)) == "Spectrum(3 bins, 0 to 4, 6 events)"
    batch = Spectrum([[3, 2, 1]] * 2, EDGES, variances=[[9, 2, 1]] * 2)
    assert repr(batch) == "Spectrum(2 spectra, 3 bins, 0 to 4, 12 weighted events)"


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([[0, 1], [2, 3]], r"edges: one row of numbers is expected, shape \(2, 2\) came"),
        (3.0, r"edges: one row of numbers is expected, shape \(\) came"),
        ([], r"edges: 0 bin\(s\) came"),
        ([0], r"edges: 0 bin\(s\) came"),
        ([0, 1], r"edges: 1 bin\(s\) came"),
        ([0, 1, np.nan, 4], "edges: nan at bin 2"),
        ([0, 1, 2, np.inf], "edges: inf at bin 3"),
        ([0, 2, 1, 4], r"edges: must increase strictly, but edge 2 \(1\) follows edge 1 \(2\)"),
        ([0, 1, 1, 4], r"edge 2 \(1\) follows edge 1 \(1\)"),
        ([4, 2, 1, 0], r"edge 1 \(2\) follows edge 0 \(4\)"),
        ([0, 1e307, 2e307, 1e308], r"edges: 0 to 1e\+308 with .* is beyond double precision"),
        ([1e-200, 2e-200, 3e-200, 1e150], r"edges: 1e-200 to 1e\+150 with widths of 1e-200 to 1e\+150"),
        (["a", "b", "c", "d"], "edges: real numbers are expected"),
        ([[0, 1], [2]], "edges: not a rectangular array"),
    ],
)
def test_edges_that_are_none_are_refused(edges, message):
    with pytest.raises(InputError, match=message):
        Spectrum([3, 2, 1], edges)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (3.0, r"counts: shape \(n_bins,\) or \(n_spectra, n_bins\) is expected, \(\) came"),
        (np.ones((2, 2, 3)), r"\(2, 2, 3\) came"),
        (np.ones((0, 3)), r"counts: no spectrum came"),
        ([3, 2], "counts: 2 bins came, but 4 edges make 3 bins"),
        ([3, 2, 1, 0], "counts: 4 bins came, but 4 edges make 3 bins"),
        (np.ones((3, 2)), "counts: 2 bins came, but 4 edges make 3 bins"),
        ([3, np.nan, 1], "counts: nan at bin 1"),
        ([3, 2, -np.inf], "counts: -inf at bin 2"),
        ([3, -2, 1], "counts: -2 at bin 1; contents must not be negative"),
        ([[3, 2, 1], [1, 1, -1]], "counts: -1 at spectrum 1, bin 2"),
        ([0, 0, 0], "counts: every bin is zero; there is nothing to fit"),
        ([[3, 2, 1], [0, 0, 0]], "counts: every bin is zero in spectrum 1"),
        (["3", "2", "1"], "counts: real numbers are expected"),
        ([3j, 2, 1], "counts: real numbers are expected"),
        (torch.tensor([3j, 2, 1]), "counts: complex numbers came"),
        (np.array([3, 2, None]), "counts: real numbers are expected, an array of object came"),
    ],
)
def test_counts_that_are_none_are_refused(counts, message):
    with pytest.raises(InputError, match=message):
        Spectrum(counts, EDGES)


@pytest.mark.parametrize(
    ("variances", "message"),
    [
        ([1, 2], r"variances: shape \(3,\) is expected as for counts, \(2,\) came"),
        ([[1, 2, 3]], r"variances: shape \(3,\) is expected as for counts, \(1, 3\) came"),
        ([1, -2, 3], "variances: -2 at bin 1"),
        ([1, 2, np.nan], "variances: nan at bin 2"),
        ([1, np.inf, 3], "variances: inf at bin 1"),
        ("many", "variances: real numbers are expected"),
    ],
)
def test_variances_that_are_none_are_refused(variances, message):
    with pytest.raises(InputError, match=message):
        Spectrum([3, 2, 1], EDGES, variances=variances)


ODD_NUMBERS = st.sampled_from([-1.0, 0.0, 1.0, 2.0, 2.0 + 1e-15, 3.0, 4.0, 1e9, np.nan, np.inf])


@given(counts=st.lists(ODD_NUMBERS, min_size=2, max_size=3), edges=st.lists(ODD_NUMBERS, min_size=3, max_size=4))
def test_any_numbers_are_either_refused_or_a_histogram(counts, edges):
    is_histogram = (
        len(edges) == len(counts) + 1
        and bool(np.isfinite(counts).all() and np.isfinite(edges).all())
        and min(counts) >= 0
        and sum(counts) > 0
        and edges == sorted(set(edges))
    )
    try:
        Spectrum(counts, edges)
    except InputError:
        assert not is_histogram
    else:
        assert is_histogram
