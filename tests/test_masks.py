"""Windows and flags become bins to leave out; what stands in for them is a straight line on a log scale."""

import numpy as np
import pytest
import torch

from specfit import InputError, Spectrum
from specfit.masks import bridged, left_out_bins

EDGES = [100.0, 110, 130, 160, 200, 250, 300]
SPECTRUM = Spectrum([90.0, 80, 70, 60, 50, 40], EDGES)
BATCH = Spectrum([[90.0, 80, 70, 60, 50, 40], [9.0, 8, 7, 6, 5, 4]], EDGES)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (None, []),
        ([], []),
        ([(135, 140)], [2]),
        ([(110, 160)], [1, 2]),  # edges that only touch do not overlap
        ([(109, 159)], [0, 1, 2]),
        ([(0, 101), (299, 1e9)], [0, 5]),
        (np.array([False, False, True, False, False, True]), [2, 5]),
        (torch.tensor([True, False, False, False, False, False]), [0]),
    ],
)
def test_windows_and_flags_become_bins(mask, expected):
    for spectrum, m in ((SPECTRUM, 1), (BATCH, 2)):
        flags = left_out_bins(spectrum, mask)
        assert flags.shape == (m, 6)
        assert all(row.nonzero()[:, 0].tolist() == expected for row in flags)


def test_each_spectrum_may_have_its_own_flags():
    flags = np.zeros((2, 6), dtype=bool)
    flags[1, 3] = True
    assert left_out_bins(BATCH, flags).tolist() == flags.tolist()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([(300, 200)], "low < high"),
        ([(400, 500)], "no bin overlaps 400 to 500; the edges run from 100 to 300"),
        ([100, 200], "windows"),
        (np.ones(5, dtype=bool), r"shape \(6,\) or \(1, 6\) is expected, \(5,\) came"),
        ([(100, 250)], "more than half of the 6 bins"),
        ("signal", "mask"),
    ],
)
def test_refuses_what_is_no_mask(mask, message):
    with pytest.raises(InputError, match=message):
        left_out_bins(SPECTRUM, mask)


def test_refuses_to_leave_nothing():
    with pytest.raises(InputError, match="all of the content"):
        left_out_bins(Spectrum([0.0, 0, 70, 0, 0, 0], EDGES), [(130, 160)])


def test_bridges_an_exponential_exactly():
    edges = torch.linspace(0, 10, 11).double()
    counts = (1e6 * torch.exp(-torch.arange(10).double() / 3)) - 0.5
    gap = torch.zeros(2, 10, dtype=torch.bool)
    gap[0, 3:6] = True
    spoiled = counts.expand(2, 10).clone()
    spoiled[0, 3:6] = 7e7
    result = bridged(spoiled, gap, edges)
    torch.testing.assert_close(result[0], counts + torch.where(gap[0], 0.5, 0.0), rtol=1e-12, atol=0)
    assert torch.equal(result[1], counts)
