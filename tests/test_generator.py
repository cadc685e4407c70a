"""The generator against adaptive quadrature, scipy's distributions and the state of its one source of randomness."""

import math
from itertools import islice, pairwise

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from torch.testing import assert_close

from specfit.errors import InputError
from specfit.generator import SignalPrior, SpectrumGenerator, mixture
from specfit.generator.mixture import _log_ndtr

BINNINGS = {
    "geometric": np.geomspace(250, 3000, 51),
    "linear": np.linspace(250, 3000, 51),
    "five wide bins": np.linspace(250, 3000, 6),
    "from zero": np.array([0, 100, 300, 310, 400, 1000, 3000]),
    "far tail": np.linspace(2000, 3000, 11),
    "below the turn-on": np.linspace(150, 300, 7),
}
FAR_BELOW_THE_TURN_ON = np.linspace(0, 60, 7)
CHEAP = BINNINGS["five wide bins"]  # where the binning does not matter
STEEPEST = {"rho": (1.5, 1.5), "alpha": (25.0, 25.0), "mu": (375.0, 375.0), "sigma": (10.0, 10.0)}
# Relative, where a bin holds more than one event: float32 of a density that falls by many orders of magnitude.
AS_PLANNED = 1e-4
# A test of a distribution fails by chance once in a thousand seeds; the seed is fixed.
P_VALUE = 1e-3


def component_fractions(edges, rho, alpha, mu, sigma):
    """Bins of one component, normalised to 1 over the range, by adaptive quadrature around its largest density."""
    x = np.linspace(edges[0], edges[-1], 20_001)
    log_density = scipy.special.log_ndtr((x - mu) / sigma) - x**rho / alpha
    top = log_density.max()
    breaks = x[log_density.argmax()] + np.array([-100, -30, -10, -3, 0, 3, 10, 30, 100])

    def density(at):
        return math.exp(scipy.special.log_ndtr((at - mu) / sigma) - at**rho / alpha - top)

    def integral(low, high):
        ends = [low, *breaks[(breaks > low) & (breaks < high)].tolist(), high]
        return sum(scipy.integrate.quad(density, *pair, epsabs=1e-14, epsrel=1e-8)[0] for pair in pairwise(ends))

    bins = np.array([integral(low, high) for low, high in pairwise(edges.tolist())])
    return bins / bins.sum()


def expected_background(edges, drawn):
    """Mixture written down anew: fractions normalised to 1, times the total of each spectrum."""
    mixture, norm = np.zeros((len(drawn.total), len(edges) - 1)), np.zeros((len(drawn.total), 1))
    columns = (drawn.owner, drawn.fraction, drawn.rho, drawn.alpha, drawn.mu, drawn.sigma)
    for owner, fraction, *parameters in zip(*(column.tolist() for column in columns), strict=True):
        mixture[owner] += fraction * component_fractions(edges, *parameters)
        norm[owner] += fraction
    return mixture / norm * drawn.total.double().numpy()[:, None]


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


def assert_as_planned(generator, size):
    background = generator.sample_background(size, rng=seeded()).double().numpy()
    expected = expected_background(generator.edges.numpy(), generator.sample_components(size, rng=seeded()))
    holds_events = expected > 1
    assert holds_events.any()
    np.testing.assert_allclose(background[holds_events], expected[holds_events], rtol=AS_PLANNED)
    # Elsewhere far below the statistical error of one event.
    np.testing.assert_allclose(background[~holds_events], expected[~holds_events], rtol=0, atol=1e-3)


def assert_is_uniform(values, low, high):
    assert scipy.stats.kstest(np.asarray(values), scipy.stats.uniform(low, high - low).cdf).pvalue > P_VALUE
    assert low <= min(values) <= max(values) <= high


# --- expected backgrounds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edges", BINNINGS.values(), ids=BINNINGS)
def test_background_is_the_mixture_integrated_over_bins(edges):
    assert_as_planned(SpectrumGenerator(edges, n_backgrounds=(1, 3)), size=4)


@pytest.mark.parametrize("edges", BINNINGS.values(), ids=BINNINGS)
def test_steepest_corner_is_integrated_as_well(edges):
    whole, corner = SpectrumGenerator(edges), SpectrumGenerator(edges, n_backgrounds=1, **STEEPEST)
    assert_as_planned(corner, size=1)
    # The nodes that are planned over the whole of the ranges serve their corner too.
    corner._x, corner._weights = whole._x, whole._weights
    assert_as_planned(corner, size=1)


@pytest.mark.parametrize("edges", [*BINNINGS.values(), FAR_BELOW_THE_TURN_ON], ids=[*BINNINGS, "far below"])
@pytest.mark.parametrize("ranges", [{}, STEEPEST], ids=["default", "steepest"])
def test_background_is_finite_and_adds_up_to_a_total_in_range(edges, ranges, rng):
    generator = SpectrumGenerator(edges, n_backgrounds=(1, 7), total=(10.0, 1e9), **ranges)
    background = generator.sample_background(500, rng=rng)
    assert background.shape == (500, len(edges) - 1)
    assert background.dtype == torch.float32
    assert background.isfinite().all()
    assert (background >= 0).all()
    totals = background.double().sum(-1)
    assert totals.min() >= 10 * (1 - 1e-5)
    assert totals.max() <= 1e9 * (1 + 1e-5)


@pytest.mark.parametrize("unit", [1e-3, 3.7])
def test_unit_stretches_every_shape(unit):
    edges = BINNINGS["geometric"]
    stretched, plain = SpectrumGenerator(unit * edges, unit=unit), SpectrumGenerator(edges)
    assert_close(
        stretched.sample_background(20, rng=seeded()), plain.sample_background(20, rng=seeded()), rtol=1e-4, atol=1e-6
    )


def test_background_adds_up_to_the_drawn_total():
    generator = SpectrumGenerator(CHEAP)
    background = generator.sample_background(1000, rng=seeded())
    drawn = generator.sample_components(1000, rng=seeded())
    assert_close(background.double().sum(-1), drawn.total.double(), rtol=1e-5, atol=0)


def test_a_fraction_drawn_as_zero_is_no_division_by_zero():
    # torch.rand answers 0 once in 2^24 numbers: find the first one and put it where the fraction is drawn.
    rng, chunk, before = seeded(1), 2**22, 0
    while not (zeros := (torch.rand(chunk, generator=rng) == 0).nonzero()).numel():
        before += chunk
    at = before + int(zeros[0])
    rng = seeded(1)
    torch.rand(at - 4, generator=rng)  # after it the four parameters of one component, then its fraction
    generator = SpectrumGenerator(CHEAP, n_backgrounds=1)
    background = generator.sample_background(1, rng=rng)
    assert background.isfinite().all()
    assert 2e4 <= background.sum() <= 1.8e5


@pytest.mark.parametrize("range_of_z", [(-40, -5), (-5, 0), (0, 5), (5, 40)])
def test_log_of_the_gaussian_cumulative(range_of_z):
    z = torch.linspace(*range_of_z, 20_001)
    expected = scipy.special.log_ndtr(z.double().numpy())
    # 1.2e-7 is the published error of the series; the rest is float32 of the logarithm and of z squared.
    np.testing.assert_allclose(_log_ndtr(z).double().numpy(), expected, rtol=3e-7, atol=4e-7)


# --- what is drawn --------------------------------------------------------------------------------------------------


def test_parameters_are_independent_and_uniform(rng):
    ranges = {"rho": (0.7, 1.1), "alpha": (30.0, 40.0), "mu": (-10.0, 5.0), "sigma": (1.0, 2.0), "total": (1e2, 1e3)}
    drawn = SpectrumGenerator(CHEAP, n_backgrounds=1, **ranges).sample_components(10_000, rng=rng)
    columns = {name: getattr(drawn, name).double().numpy() for name in [*ranges, "fraction"]}
    for name, pair in (ranges | {"fraction": (0.0, 1.0)}).items():
        assert_is_uniform(columns[name], *pair)
    correlations = np.corrcoef(list(columns.values())) - np.eye(len(columns))
    assert np.abs(correlations).max() < 4.5 / math.sqrt(10_000)


@pytest.mark.parametrize("name", ["rho", "alpha", "mu", "sigma", "total"])
def test_equal_ends_fix_a_value(name, rng):
    value = {"rho": 0.9, "alpha": 55.0, "mu": -20.0, "sigma": 0.5, "total": 3e7}[name]
    drawn = SpectrumGenerator(CHEAP, **{name: (value, value)}).sample_components(20, rng=rng)
    assert getattr(drawn, name).unique().tolist() == pytest.approx([value], rel=1e-6)
    others = {"rho", "alpha", "mu", "sigma", "total"} - {name}
    assert all(len(getattr(drawn, other).unique()) > 10 for other in others)


@pytest.mark.parametrize(
    ("n_backgrounds", "weights", "expected"),
    [
        (1, None, {1: 1.0}),
        (5, None, {5: 1.0}),
        ((3, 3), (2.0,), {3: 1.0}),
        ((1, 4), None, {1: 0.25, 2: 0.25, 3: 0.25, 4: 0.25}),
        ([2, 5], (4.0, 2.0, 1.0, 1.0), {2: 0.5, 3: 0.25, 4: 0.125, 5: 0.125}),
        ((1, 3), (0.0, 1.0, 3.0), {2: 0.25, 3: 0.75}),
    ],
)
def test_number_of_components_has_the_asked_frequencies(n_backgrounds, weights, expected, rng):
    size = 4000
    drawn = SpectrumGenerator(CHEAP, n_backgrounds=n_backgrounds, weights=weights).sample_components(size, rng=rng)
    assert (drawn.owner.diff() >= 0).all()
    n = np.bincount(drawn.owner.numpy(), minlength=size)
    seen = dict(zip(*np.unique(n, return_counts=True), strict=True))
    assert set(seen) == set(expected)
    if len(expected) > 1:
        frequencies = [expected[k] * size for k in seen]
        assert scipy.stats.chisquare(list(seen.values()), frequencies).pvalue > P_VALUE


def test_counts_are_poisson_around_background_plus_signal(rng):
    size, edges = 20_000, BINNINGS["geometric"]
    signal = SignalPrior(events=(50.0, 50.0))
    generator = SpectrumGenerator(edges, n_backgrounds=1, total=(2e4, 2e4), **STEEPEST, signal=signal)
    batch = generator.sample(size, rng=rng)
    expected = batch.background + batch.signal
    assert_close(expected, expected[:1].expand_as(expected), rtol=1e-5, atol=1e-9)  # every range is fixed: one truth
    counts, mean = batch.counts.double().numpy(), expected[0].double().numpy()
    assert (counts == counts.round()).all()
    many = mean > 20
    chi2 = ((counts - mean)[:, many] ** 2 / mean[many]).sum()
    assert P_VALUE < scipy.stats.chi2(size * many.sum()).sf(chi2) < 1 - P_VALUE
    mean_errors = (counts.mean(0) - mean)[many] / np.sqrt(mean[many] / size)
    assert scipy.stats.kstest(mean_errors, "norm").pvalue > P_VALUE
    few = int(np.abs(mean - 2.0).argmin())
    seen = np.bincount(counts[:, few].astype(int), minlength=6)
    pmf = scipy.stats.poisson(mean[few]).pmf(np.arange(5))
    seen, wanted = [*seen[:5], seen[5:].sum()], size * np.array([*pmf, 1 - pmf.sum()])
    assert scipy.stats.chisquare(seen, wanted).pvalue > P_VALUE


# --- signal ---------------------------------------------------------------------------------------------------------


def test_no_signal_unless_asked(rng):
    assert not SpectrumGenerator(CHEAP).sample(10, rng=rng).signal.any()


@pytest.mark.parametrize("edges", [BINNINGS["geometric"], BINNINGS["five wide bins"]], ids=["geometric", "wide"])
@pytest.mark.parametrize(("mass", "relative_width"), [(1000.0, 0.1), (260.0, 0.02), (2900.0, 0.3)])
def test_signal_is_a_gaussian_integrated_over_bins(edges, mass, relative_width, rng):
    prior = SignalPrior(mass=(mass, mass), relative_width=(relative_width, relative_width), events=(300.0, 300.0))
    signal = SpectrumGenerator(edges, signal=prior).sample(5, rng=rng).signal.double().numpy()
    expected = 300 * np.diff(scipy.stats.norm(mass, relative_width * mass).cdf(edges))
    np.testing.assert_allclose(signal, np.tile(expected, (5, 1)), rtol=2e-6, atol=1e-5)


def test_signal_parameters_are_uniform_in_their_ranges(rng):
    edges = np.linspace(250, 3000, 551)
    prior = SignalPrior(mass=(600.0, 2000.0), relative_width=(0.01, 0.05), events=(100.0, 900.0))
    signal = prior.sample(torch.ones(1000, 550), torch.as_tensor(edges), rng=rng).double().numpy()
    centers, events = (edges[1:] + edges[:-1]) / 2, signal.sum(-1)
    mass = signal @ centers / events
    variance = (signal * (centers - mass[:, None]) ** 2).sum(-1) / events - np.diff(edges)[0] ** 2 / 12
    # Seen in bins, so a little beyond the ends at most.
    for seen, (low, high) in ((mass, prior.mass), (np.sqrt(variance) / mass, prior.relative_width)):
        assert_is_uniform(np.clip(seen, low, high), low, high)
        assert low * (1 - 1e-4) < seen.min() < seen.max() < high * (1 + 1e-4)
    assert_is_uniform(events, 100.0 * (1 - 1e-6), 900.0 * (1 + 1e-6))


def test_strength_counts_roots_of_the_background_within_two_standard_deviations(rng):
    edges = BINNINGS["linear"]
    prior = SignalPrior(mass=(400.0, 1500.0), relative_width=(0.1, 0.1), strength=(3.0, 3.0))
    batch = SpectrumGenerator(edges, signal=prior).sample(50, rng=rng)
    centers = (edges[1:] + edges[:-1]) / 2
    for background, signal in zip(batch.background.double().numpy(), batch.signal.double().numpy(), strict=True):
        # The mass is not told: read it from the injected Gaussian, of which some is lost below the range.
        fitted, _ = scipy.optimize.curve_fit(
            lambda _, events, mass: events * np.diff(scipy.stats.norm(mass, 0.1 * mass).cdf(edges)),
            centers,
            signal,
            p0=(signal.sum(), signal @ centers / signal.sum()),
        )
        events, mass = fitted
        near = np.abs(centers - mass) < 0.2 * mass
        if np.abs(np.abs(centers - mass) - 0.2 * mass).min() > 0.01:  # no bin on the brink
            assert events == pytest.approx(3 * math.sqrt(max(background[near].sum(), 1)), rel=1e-4)


def test_strength_counts_at_least_one_background_event(rng):
    prior = SignalPrior(mass=(2500.0, 2500.0), relative_width=(0.01, 0.01), strength=(4.0, 4.0))
    generator = SpectrumGenerator(BINNINGS["linear"], n_backgrounds=1, **STEEPEST, signal=prior)
    batch = generator.sample(3, rng=rng)
    assert batch.background[:, 35:].max() < 1e-6
    assert_close(batch.signal.sum(-1), torch.full((3,), 4.0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_probability_is_the_share_of_spectra_with_signal(probability, rng):
    prior = SignalPrior(probability=probability, events=(100.0, 100.0))
    signal = SpectrumGenerator(CHEAP, n_backgrounds=1, signal=prior).sample(3000, rng=rng).signal.sum(-1)
    n_injected = int((signal > 0).sum())
    assert scipy.stats.binomtest(n_injected, 3000, probability).pvalue > P_VALUE
    assert_close(signal[signal > 0], torch.full((n_injected,), 100.0))


def test_without_signal_is_the_same_generator_of_pure_backgrounds():
    generator = SpectrumGenerator(CHEAP, signal=SignalPrior(strength=(1.0, 5.0)))
    pure, full = generator.without_signal().sample(20, rng=seeded()), generator.sample(20, rng=seeded())
    assert not pure.signal.any()
    assert torch.equal(pure.background, full.background)
    assert (full.signal.sum(-1) > 0).all()  # the generator itself is as it was


# --- one source of randomness ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator():
    return SpectrumGenerator(
        BINNINGS["geometric"], n_backgrounds=(1, 7), signal=SignalPrior(probability=0.5, strength=(0.0, 9.0))
    )


def test_one_seed_one_sample(generator):
    first, again, other = (generator.sample(300, rng=seeded(seed)) for seed in (3, 3, 4))
    for name in ("counts", "background", "signal"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


def test_no_global_state_is_read_or_touched(generator):
    torch.manual_seed(1)
    first = generator.sample(10, rng=seeded())
    state = torch.manual_seed(2).get_state()
    again = generator.sample(10, rng=seeded())
    assert torch.equal(first.counts, again.counts)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_chunks_do_not_matter(generator, monkeypatch, step):
    whole = generator.sample_background(30, rng=seeded())
    monkeypatch.setattr(mixture, "COMPONENTS_AT_A_TIME", step)
    assert_close(generator.sample_background(30, rng=seeded()), whole, rtol=1e-5, atol=0)


def test_stream_is_endless_and_fresh(generator, rng):
    batches = list(islice(generator.stream(4, rng=rng), 25))
    assert [batch.counts.shape for batch in batches] == [(4, 50)] * 25
    backgrounds = torch.cat([batch.background for batch in batches])
    assert len(backgrounds.unique(dim=0)) == 100
    again = seeded(20_250_704)  # the seed of the fixture
    assert torch.equal(batches[0].counts, generator.sample(4, rng=again).counts)
    assert torch.equal(batches[1].counts, generator.sample(4, rng=again).counts)


def test_refuses_to_draw_nothing(generator, rng):
    with pytest.raises(InputError, match="size: at least 1 spectrum is expected, 0 came"):
        generator.sample(0, rng=rng)


# --- the caller's mistakes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edges", "match"),
    [
        ([250.0, 3000.0], "edges: at least 3"),
        ([[250.0, 300.0, 400.0]], "edges: at least 3"),
        ([250.0, 300.0, 300.0, 400.0], "edges: .* strictly increasing"),
        ([250.0, 300.0, math.inf], "edges: .* finite"),
        ([250.0, math.nan, 400.0], "edges: .* strictly increasing"),
        ([-1.0, 300.0, 400.0], "edges: .* from 0 upwards, the first is -1"),
        (["a", "b", "c"], "edges: real numbers"),
    ],
)
def test_refuses_edges(edges, match):
    with pytest.raises(InputError, match=match):
        SpectrumGenerator(edges)


@pytest.mark.parametrize(
    ("argument", "match"),
    [
        ({"rho": (1.5, 0.5)}, r"rho: a range \(low, high\) with low <= high is expected, \(1.5, 0.5\) came"),
        ({"rho": 1.0}, "rho: a range .* 1.0 came"),
        ({"alpha": (25.0, 50.0, 100.0)}, "alpha: a range"),
        ({"alpha": ("low", "high")}, "alpha: a range"),
        ({"mu": (325.0, math.inf)}, "mu: a range"),
        ({"sigma": (math.nan, 30.0)}, "sigma: a range"),
        ({"rho": (0.0, 1.0)}, "rho: must be above 0"),
        ({"alpha": (-1.0, 1.0)}, "alpha: must be above 0"),
        ({"sigma": (0.0, 30.0)}, "sigma: must be above 0"),
        ({"total": (0.0, 1e5)}, "total: must be above 0"),
        ({"total": (1e5, 1e30)}, r"total: must be at most 1e\+15, the range \(100000.0, 1e\+30\) came"),
        ({"unit": 0.0}, "unit: must be above 0"),
        ({"unit": math.nan}, "unit: a range"),
        ({"n_backgrounds": 0}, "n_backgrounds: .* from 1 upwards is expected, 0 came"),
        ({"n_backgrounds": (5, 2)}, r"n_backgrounds: .* \(5, 2\) came"),
        ({"n_backgrounds": (1, 2, 3)}, "n_backgrounds: a whole number"),
        ({"n_backgrounds": 2.5}, "n_backgrounds: a whole number"),
        ({"n_backgrounds": (1.0, 3.5)}, "n_backgrounds: a whole number"),
        ({"weights": (1.0, 2.0)}, "weights: 1 numbers"),
        ({"n_backgrounds": (1, 2), "weights": (1.0, -1.0)}, "weights: 2 numbers >= 0"),
        ({"n_backgrounds": (1, 2), "weights": (0.0, 0.0)}, "weights: .* not all zero"),
        ({"n_backgrounds": (1, 2), "weights": (math.inf, 1.0)}, "weights: 2 numbers"),
        ({"n_backgrounds": (1, 2), "weights": (math.nan, 1.0)}, "weights: 2 numbers"),
    ],
)
def test_refuses_ranges(argument, match):
    with pytest.raises(InputError, match=match):
        SpectrumGenerator(BINNINGS["linear"], **argument)


@pytest.mark.parametrize(
    ("argument", "match"),
    [
        ({}, "exactly one of events and strength"),
        ({"events": (1.0, 2.0), "strength": (1.0, 2.0)}, "exactly one of events and strength"),
        ({"events": (1.0, 2.0), "probability": 1.5}, "probability: .* 1.5 came"),
        ({"events": (1.0, 2.0), "probability": -0.1}, "probability: .* -0.1 came"),
        ({"events": (1.0, 2.0), "mass": (0.0, 1000.0)}, "mass: must be above 0"),
        ({"events": (1.0, 2.0), "relative_width": (0.0, 0.1)}, "relative_width: must be above 0"),
        ({"events": (2.0, 1.0)}, "events: a range"),
        ({"events": ()}, "events: a range"),
        ({"events": 100.0}, "events: a range .* 100.0 came"),
        ({"events": (-1.0, 1.0)}, "events: must be at least 0"),
        ({"strength": (-1.0, 1.0)}, "strength: must be at least 0"),
    ],
)
def test_refuses_signals(argument, match):
    with pytest.raises(InputError, match=match):
        SignalPrior(**argument)
