"""Windows of bins: every window by scipy one by one, pyBumpHunter, and far tails in many digits."""

import contextlib
import io
import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch

import specfit
from specfit.search.windows import scan_windows

FALLING = 3000 * torch.exp(-torch.arange(24).double() / 3)


def one_by_one(counts, background, narrowest, widest):
    """Statistic, first bin and width, window after window."""
    best = (0.0, 0, narrowest)
    for width, first in itertools.product(range(narrowest, widest + 1), range(len(counts))):
        n, b = counts[first : first + width].sum(), background[first : first + width].sum()
        if first + width <= len(counts) and n > b:
            best = max(best, (-scipy.stats.poisson.logsf(n - 1, b), first, width), key=lambda found: found[0])
    return best


@pytest.mark.parametrize(("narrowest", "widest"), [(1, 1), (2, 5), (1, 24), (1, None)])
def test_every_window_is_looked_at(narrowest, widest):
    counts = torch.poisson(FALLING.expand(40, -1), generator=torch.Generator().manual_seed(3))
    found = scan_windows(counts, FALLING, narrowest=narrowest, widest=widest)
    for i, row in enumerate(counts.numpy()):
        t, first, width = one_by_one(row, FALLING.numpy(), narrowest, widest or 12)
        assert found.statistic[i] == pytest.approx(t, rel=1e-8)
        assert (found.first[i], found.n_bins[i]) == (first, width)


def test_a_background_for_each_and_any_shape():
    counts = torch.poisson(FALLING.expand(6, -1), generator=torch.Generator().manual_seed(4))
    backgrounds = FALLING * torch.linspace(0.8, 1.2, 6)[:, None]
    found = scan_windows(counts.view(2, 3, -1), backgrounds.view(2, 3, -1))
    alone = torch.stack([scan_windows(n, b).statistic for n, b in zip(counts, backgrounds, strict=True)])
    assert torch.equal(found.statistic.flatten(), alone)
    assert found.first.shape == found.n_bins.shape == (2, 3)
    assert scan_windows(counts[0].tolist(), FALLING.numpy()).statistic.shape == ()


def test_nothing_is_found_where_nothing_is_more_than_expected():
    found = scan_windows(torch.zeros(5), torch.tensor([0.0, 1.0, 2.0, 0.5, 0.0]))
    assert found.statistic == 0
    # Where nothing is expected an event says nothing either.
    assert scan_windows([0.0, 3.0], [1.0, 0.0], widest=1).statistic == 0


def test_far_tails_do_not_end_with_the_numbers():
    """The oracle: the series of the incomplete gamma function, summed term by term."""
    for n, b in ((400, 3.0), (4000, 1200.0), (1_100_000, 1_000_000.0)):
        term, total, k = 1.0, 0.0, 0
        while term > 1e-18 * max(total, 1.0):
            total, k = total + term, k + 1
            term *= b / (n + k)
        log_p = n * math.log(b) - b - math.lgamma(n + 1) + math.log(total)
        assert log_p < -700
        assert scan_windows([float(n)], [b], widest=1).statistic.item() == pytest.approx(-log_p, rel=1e-11)


def test_the_near_and_the_far_tail_meet():
    n = torch.arange(1470.0, 1520.0).double()[:, None]
    t = scan_windows(n, torch.full((1,), 500.0), widest=1).statistic
    assert t[0] < 280 * math.log(10) < t[-1]
    assert t.diff().diff().abs().max() < 2e-3


@pytest.mark.parametrize(
    ("counts", "background", "more", "message"),
    [
        ([1.0, -1.0], [1.0, 1.0], {}, "counts: finite numbers of events"),
        ([1.0, 1.0], [1.0, float("nan")], {}, "background: finite numbers of events"),
        ([1.0, 1.0], [1.0], {}, r"background: shape \(1,\) came"),
        (3.0, 2.0, {}, "background: shape"),
        ([1.0, 1.0], [1.0, 1.0], {"narrowest": 0}, "1 <= narrowest <= widest <= 2"),
        ([1.0, 1.0], [1.0, 1.0], {"widest": 3}, "1 and 3 came"),
        ([1.0, 1.0], [1.0, 1.0], {"widest": 1.5}, "1 and 1.5 came"),
    ],
)
def test_mistakes_are_named(counts, background, more, message):
    with pytest.raises(specfit.InputError, match=message):
        scan_windows(counts, background, **more)


def test_pybumphunter_finds_the_same():
    peer = pytest.importorskip("pyBumpHunter")
    hunter = peer.BumpHunter1D(width_min=2, width_max=6, npe=200, nworker=1, seed=5)
    data, background = FALLING.round().numpy(), FALLING.numpy()
    with contextlib.redirect_stdout(io.StringIO()):
        hunter.bump_scan(data, background, is_hist=True)
    np.random.seed(5)  # noqa: NPY002 - the peer's own toys
    toys = np.random.poisson(background[:, None], (24, 200)).T  # noqa: NPY002
    found = scan_windows(np.concatenate([data[None], toys]), background, narrowest=2, widest=6)
    np.testing.assert_allclose(found.statistic.numpy(), hunter.t_ar, rtol=1e-7, atol=1e-12)
    there = hunter.t_ar > 0
    np.testing.assert_array_equal(found.first.numpy()[there], hunter.min_loc_ar[there])
    np.testing.assert_array_equal(found.n_bins.numpy()[there], hunter.min_width_ar[there])
