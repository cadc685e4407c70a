"""The wide generator: every family is finite, smooth and normalised; binnings, signals and masks are what they say."""

import math

import pytest
import scipy.integrate
import torch

from specfit import InputError
from specfit.generator import FAMILIES, HELD_OUT, WideGenerator
from specfit.generator.families import Points
from specfit.generator.wide import _points


def rng(seed=1):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", FAMILIES | HELD_OUT)
def test_every_family_is_finite_and_fluctuates_as_poisson_data(name):
    generator = WideGenerator(families={name: 1.0}, n_bins=(8, 60), signal=0.0, masked=0.0, total=(1e3, 1e9))
    pulls = []
    for seed in range(6):
        batch = generator.sample(64, rng=rng(seed))
        assert batch.background.isfinite().all()
        assert (batch.background >= 0).all()
        assert not batch.signal.any()
        assert not batch.mask.any()
        used = batch.background > 20
        pulls.append(((batch.counts - batch.background) / batch.background.sqrt())[used])
    pulls = torch.cat(pulls)
    assert pulls.mean().abs() < 5 / math.sqrt(len(pulls))
    assert pulls.std().item() == pytest.approx(1, abs=5 / math.sqrt(2 * len(pulls)) + 0.01)


# The mixture shares its components out over the points that it is asked at: one point is no question to it.
@pytest.mark.parametrize("name", sorted((FAMILIES | HELD_OUT).keys() - {"turn_on_mixture"}))
def test_bins_are_integrals_of_the_density(name):
    """Gauss-Legendre bins of a family against scipy's adaptive quadrature of the same draw."""
    edges = torch.linspace(1, 3, 13, dtype=torch.float64)[None]
    family = (FAMILIES | HELD_OUT)[name]
    points, log_weights = _points(edges)
    bins = (family(points, rng(4)) + log_weights).logsumexp(-1)[0].exp()

    def density(x):
        at = torch.tensor([[[x]]], dtype=torch.float64)
        log_ratio = torch.tensor([[[math.log(3)]]]).double()
        return family(Points(at, (at - 1) / 2, at.log() / log_ratio, log_ratio), rng(4)).exp().item()

    exact = [scipy.integrate.quad(density, *pair, epsrel=1e-9)[0] for pair in edges[0].unfold(0, 2, 1).tolist()]
    expected = torch.tensor(exact).double()
    torch.testing.assert_close(bins, expected, rtol=1e-4, atol=1e-7 * expected.sum().item())


def test_edges_cover_what_is_asked():
    edges = WideGenerator(ratio=(1.5, 20.0)).sample_edges(2000, 40, rng=rng())
    assert edges.shape == (2000, 41)
    assert (edges.diff(dim=1) > 0).all()
    assert torch.equal(edges[:, 0], torch.ones(2000).double())
    ratio = edges[:, -1]
    assert 1.5 <= ratio.min() < 1.7
    assert 17 < ratio.max() <= 20.0001
    second = edges.diff(dim=1).diff(dim=1).abs().amax(1)
    assert 0.2 < (second < 1e-9).double().mean() < 0.45  # linear binnings


def test_totals_and_numbers_of_bins_cover_their_ranges():
    generator = WideGenerator(total=(1e2, 1e10))
    batches = [generator.sample(32, rng=rng(seed)) for seed in range(40)]
    n_bins = [batch.counts.shape[1] for batch in batches]
    assert min(n_bins) >= 8
    assert max(n_bins) <= 250
    assert max(n_bins) > 120
    log_total = torch.cat([batch.background.sum(1) for batch in batches]).log10()
    assert 2 <= log_total.min() < 2.3
    assert 9.7 < log_total.max() <= 10


def test_signals_and_masks_come_as_often_as_asked():
    batch = WideGenerator(n_bins=(50, 50), signal=0.4, masked=0.25).sample(4000, rng=rng())
    with_signal = batch.signal.sum(1) > 0
    assert with_signal.double().mean().item() == pytest.approx(0.4, abs=0.03)
    assert batch.mask.any(1).double().mean().item() == pytest.approx(0.25, abs=0.03)
    runs = batch.mask.to(torch.int8).diff(dim=1).abs().sum(1)
    assert runs.max() <= 2  # one window
    assert batch.mask.sum(1).max() <= 13
    assert not WideGenerator().without_signal().sample(64, rng=rng()).signal.any()


def test_an_emphasis_makes_its_share_of_the_batches():
    emphasis = WideGenerator(n_bins=(30, 30), total=(1e4, 1e4))
    wide = WideGenerator(n_bins=(40, 60), emphasis=emphasis, emphasized=0.25)
    stream = rng(3)
    batches = [wide.sample(2, rng=stream) for _ in range(400)]
    of_emphasis = [b for b in batches if b.counts.shape[1] == 30]
    assert 0.17 < len(of_emphasis) / len(batches) < 0.33
    assert of_emphasis[0].background.sum(1).tolist() == pytest.approx([1e4, 1e4])
    assert any(b.signal.any() for b in of_emphasis)
    pure = wide.without_signal()
    assert not any(pure.sample(2, rng=stream).signal.any() for _ in range(50))
    assert emphasis.signal > 0


def test_one_seed_is_one_stream():
    first, second, other = (WideGenerator().sample(8, rng=rng(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert first.counts.shape != other.counts.shape or not torch.equal(first.counts, other.counts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": (0.5, 2)}, "ratio: must be above 1"),
        ({"total": (0, 10)}, "total: must be above 0"),
        ({"n_bins": (2, 10)}, "n_bins: must be at least 4"),
        ({"signal": 1.5}, "signal: a share between 0 and 1"),
        ({"families": {"poetry": 1.0}}, "families: poetry came; known are turn_on_mixture"),
        ({"families": {}}, "families: none came"),
        ({"families": {"dijet": -1.0}}, "frequencies >= 0"),
    ],
)
def test_refuses_what_cannot_be_sampled(arguments, message):
    with pytest.raises(InputError, match=message):
        WideGenerator(**arguments)


def test_without_emphasis_every_batch_is_of_the_prior():
    emphasis = WideGenerator(families={"dijet": 1.0}, n_bins=(9, 9))
    generator = WideGenerator(n_bins=(20, 20), emphasis=emphasis, emphasized=1.0)
    sizes = [
        g.sample(4, rng=torch.Generator().manual_seed(1)).counts.shape[1]
        for g in (generator, generator.without_emphasis())
    ]
    assert sizes == [9, 20]
    assert generator.emphasis is emphasis
