"""Categories: memberships, sums, objective and optimum against brute force, finite differences and scipy."""

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from numpy.testing import assert_allclose
from torch.autograd import gradcheck

from specfit.categories import (
    Events,
    GaussianMixtureBins,
    MassWindow,
    Objective,
    Sample,
    Schedule,
    SigmoidBins,
    Yields,
    evaluate,
    geometric_mean,
    optimal_boundaries,
    toy_1d,
    toy_diphoton,
    toy_three_class,
)
from specfit.categories.cells import CellSums
from specfit.categories.objective import relative_uncertainty
from specfit.categories.passes import direct_totals
from specfit.errors import InputError
from specfit.significance import asimov_deviance, asimov_significance


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def leaf(*values):
    return [double(value).requires_grad_() for value in values]


def events_1d(rng, n=400, *, negative=False):
    """One signal towards 1, two backgrounds towards 0; some weights may be negative."""
    tables = {}
    for name, power, weight in (("signal", 0.3, 0.1), ("b1", 3.0, 2.0), ("b2", 1.5, 1.0)):
        x = torch.rand(n, generator=rng, dtype=torch.float64) ** power
        w = weight * torch.rand(n, generator=rng, dtype=torch.float64)
        if negative:
            w = torch.where(torch.rand(n, generator=rng) < 0.1, -w, w)
        tables[name] = (x, w)
    return Events.of(tables)


def events_2d(rng, n=300):
    tables = {}
    for name, center in (("s1", (0.7, 0.2)), ("s2", (0.2, 0.7)), ("b", (0.2, 0.2))):
        x = double([center]) + 0.1 * torch.randn(n, 2, generator=rng, dtype=torch.float64)
        tables[name] = (x, torch.rand(n, generator=rng, dtype=torch.float64))
    return Events.of(tables)


# Objective


def test_the_fused_deviance_is_the_square_of_the_significance(tolerance):
    b = torch.logspace(-6, 8, 57, dtype=torch.float64)
    for ratio in (0.0, 1e-12, 1e-6, 0.999e-3, 1.001e-3, 0.1, 3.0, 1e6):
        assert_allclose(asimov_deviance(ratio * b, b), asimov_significance(ratio * b, b) ** 2, **tolerance["relative"])


def test_the_fused_deviance_has_the_right_gradient_everywhere():
    s, b = leaf([1e-4, 0.5, 3.0, 40.0, 0.9], [2.0, 3e2, 5.0, 1.0, 1e3])
    assert gradcheck(asimov_deviance, (s, b))
    s, b = leaf([0.0, 0.0, 5.0], [3.0, 0.0, 0.0])
    asimov_deviance(s, b).sum().backward()
    assert s.grad.isfinite().all()
    assert b.grad.isfinite().all()


@pytest.mark.parametrize("options", [{}, {"systematic": 0.1}, {"simulation": True}])
def test_the_significance_is_the_quadrature_sum_with_other_signals_as_background(options, tolerance):
    signal, background, variance = double([[3.0, 1.0], [0.5, 2.0]]), double([40.0, 7.0]), double([1.5, 0.5])
    z = Objective(**options).significances(Yields(signal, background, variance))
    for a, other in ((0, 1), (1, 0)):
        b = background + signal[other]
        sigma2 = (options.get("systematic", 0) * b) ** 2 + (variance if options.get("simulation") else 0)
        expected = asimov_significance(signal[a], b, uncertainty=torch.as_tensor(sigma2).double().sqrt() + 0 * b)
        assert_allclose(z[a], expected.square().sum().sqrt(), **tolerance["closed_form"])


@pytest.mark.parametrize(
    "objective",
    [
        Objective(),
        Objective(systematic=0.1, simulation=True),
        Objective(background_strength=0.3, uncertainty_strength=2.0, least_background=20.0, largest_uncertainty=0.05),
        Objective(constrained=True, least_background=20.0, largest_uncertainty=0.05),
    ],
)
def test_the_cost_has_the_right_gradient(objective):
    leaves = leaf([[3.0, 1.0, 0.2], [0.5, 2.0, 0.1]], [40.0, 7.0, 3.0], [1.5, 0.5, 0.4])
    assert gradcheck(lambda *parts: objective.cost(Yields(*parts)), leaves)


@pytest.mark.parametrize("options", [{}, {"systematic": 0.1}, {"simulation": True}, {"constrained": True}])
@pytest.mark.parametrize(
    "yields",
    [
        ([[0.0, 0.0], [0.0, 0.0]], [5.0, 3.0], [1.0, 1.0]),
        ([[0.0, 0.0], [1.0, 2.0]], [5.0, 3.0], [1.0, 1.0]),
        ([[1.0, 0.0], [1.0, 0.0]], [5.0, 0.0], [1.0, 0.0]),
        ([[1.0, 0.5], [1.0, 0.5]], [5.0, -0.2], [1.0, 0.1]),
        ([[1.0, -0.5], [1.0, -0.5]], [5.0, 2.0], [1.0, 0.1]),
    ],
    ids=["no signal", "one signal missing", "empty category", "negative background", "negative signal"],
)
def test_the_gradient_is_finite_where_there_is_nothing(options, yields):
    leaves = leaf(*yields)
    cost = Objective(**options).cost(Yields(*leaves))
    cost.backward()
    assert cost.isfinite()
    for part in leaves:
        assert part.grad is None or part.grad.isfinite().all()


def test_penalties_are_sums_of_squares_of_what_is_missing(tolerance):
    yields = Yields(double([[1.0, 1.0, 1.0]]), double([4.0, 12.0, 9.0]), double([4.0, 1.0, 0.0]))
    low, high = Objective(least_background=10.0, largest_uncertainty=0.2).penalties(yields)
    assert_allclose(low, 6.0**2 + 1.0**2, **tolerance["rounding"])
    assert_allclose(high, (2.0 / 4.0 - 0.2) ** 2, **tolerance["closed_form"])
    feasible = Objective(least_background=5.0, largest_uncertainty=0.2).are_feasible(yields)
    assert feasible.tolist() == [False, True, True]
    with pytest.raises(InputError, match="systematic"):
        Objective(systematic=-1.0)


def test_signals_may_be_combined_in_another_way():
    yields = Yields(double([[3.0, 1.0], [0.5, 2.0]]), double([40.0, 7.0]), double([1.0, 1.0]))
    z = Objective().significances(yields)
    assert Objective(combine=lambda z: z.sum(-1)).cost(yields) == -z.sum()
    assert_allclose(geometric_mean(z), z.prod().sqrt(), rtol=1e-9)
    many = Yields(*(torch.stack((part, 2 * part)) for part in yields))
    assert_allclose(Objective().terms(many).loss, [Objective().terms(Yields(*p)).loss for p in zip(*many, strict=True)])


# Sums over sorted events


@pytest.mark.parametrize("k", [3.0, 50.0, 700.0, 1e4, 3e5])
@pytest.mark.parametrize("spread", ["wide", "heap"])
def test_soft_sums_are_those_over_all_events(k, spread, rng):
    x = torch.rand(40_000, generator=rng, dtype=torch.float64)
    x = x if spread == "wide" else 0.9 + 0.1 * x**4
    columns = torch.randn(2, 40_000, generator=rng, dtype=torch.float64)
    b = double([-0.2, 0.0, 0.31, 0.9000001, 0.95, 1.0, 1.3])
    value, slope = CellSums.of(x, columns).value_and_slope(b, k)
    share = torch.sigmoid(k * (x[:, None] - b))
    scale = columns.abs().sum(1, keepdim=True)
    few = CellSums.of(x[:500], columns[:, :500]).value_and_slope(b, k)[0]
    assert ((few - columns[:, :500] @ share[:500]).abs() < 1e-9 * scale).all()
    assert ((value - columns @ share).abs() < 1e-9 * scale).all()
    assert ((slope + k * columns @ (share * (1 - share))).abs() < 1e-8 * k * scale).all()


def test_soft_sums_survive_equal_values_and_no_events():
    same = CellSums.of(torch.full((5,), 0.3, dtype=torch.float64), torch.ones(1, 5, dtype=torch.float64))
    value, slope = same.value_and_slope(double([0.3, 0.9]), 10.0)
    assert_allclose(value, [[2.5, 5 * scipy.special.expit(-6)]])
    assert slope.isfinite().all()
    none = CellSums.of(torch.zeros(0, dtype=torch.float64), torch.zeros(1, 0, dtype=torch.float64))
    assert none.value_and_slope(double([0.3]), 10.0)[0].tolist() == [[0.0]]


# Sigmoid bins


@pytest.mark.parametrize("n", [400, 11_000])
@pytest.mark.parametrize("negative", [False, True])
def test_sigmoid_totals_are_sums_of_memberships_and_their_gradient_too(rng, negative, n):
    sample = Sample.of(events_1d(rng, n, negative=negative), signals=["signal"], scaled=["b1"])
    bins = SigmoidBins(5, low=0.0, high=1.2, steepness=200.0, rng=rng)
    fast, slow = bins.soft_totals(sample), direct_totals(bins.memberships, sample)
    assert_allclose(fast.detach(), slow.detach(), rtol=1e-9, atol=1e-8)
    weight = torch.randn(fast.shape, generator=rng, dtype=torch.float64)
    gradients = [torch.autograd.grad((weight * totals).sum(), bins.raw[0])[0] for totals in (fast, slow)]
    assert_allclose(gradients[0], gradients[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steepness", [30.0, 3e3])
def test_the_sigmoid_gradient_is_that_of_finite_differences(rng, steepness):
    sample = Sample.of(events_1d(rng), signals=["signal"])
    bins = SigmoidBins(4, steepness=steepness, rng=rng)
    objective = Objective(background_strength=0.1)

    def cost(raw):
        with torch.no_grad():
            bins.raw[0].copy_(raw)
        return objective.cost(sample.yields(bins.soft_totals(sample)))

    raw = bins.raw[0].detach().clone()
    (slope,) = torch.autograd.grad(cost(raw), bins.raw[0])
    step = 1e-5 / steepness
    for i in range(3):
        shift = step * torch.eye(3, dtype=torch.float64)[i]
        expected = (cost(raw + shift) - cost(raw - shift)).item() / (2 * step)
        assert slope[i].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_hard_bins_agree_with_searchsorted_and_with_histograms(rng):
    events = events_1d(rng, negative=True)
    bins = SigmoidBins(6, rng=rng)
    edges = bins.boundaries().detach().numpy()
    x, w = events.features[:, 0].numpy(), events.weights.numpy()
    assert (bins.assign(events.features).numpy() == np.searchsorted(edges, x, side="right")).all()
    totals = bins.hard_totals(Sample.of(events, signals=["signal"]))
    is_signal = (events.process == 0).numpy()
    for row, (chosen, power) in zip(totals, [(is_signal, 1), (~is_signal, 1), (~is_signal, 2)], strict=True):
        expected, _ = np.histogram(x[chosen], [-9, *edges, 9], weights=w[chosen] ** power)
        assert_allclose(row, expected, atol=1e-9)
    on_edge = bins.assign(bins.boundaries().detach())
    assert on_edge.tolist() == [1, 2, 3, 4, 5]


def test_memberships_become_hard_as_the_steepness_grows(rng):
    x = torch.rand(200, 2, generator=rng, dtype=torch.float64) * double([1.0, 2000.0])
    bins = SigmoidBins([3, 4], low=[0.0, 200.0], high=[1.0, 1800.0], rng=rng)
    soft = bins.memberships(x)
    assert soft.shape == (200, 12)
    assert_allclose(soft.detach().sum(1), np.ones(200))
    assert (soft >= 0).all()
    bins.sharpen(1e9)
    assert (bins.memberships(x).argmax(1) == bins.assign(x)).all()
    # The first variable is the slowest.
    assert (bins.assign(x) // 4 == torch.searchsorted(bins.boundaries(0), x[:, 0].contiguous(), right=True)).all()


def test_products_of_bins_have_the_sums_of_their_memberships(rng):
    sample = Sample.of(events_2d(rng), signals=["s1", "s2"])
    bins = SigmoidBins([2, 3], steepness=20.0, rng=rng)
    assert_allclose(
        bins.soft_totals(sample).detach(), (sample.table @ bins.memberships(sample.features)).detach(), atol=1e-9
    )


def test_boundaries_can_be_placed_and_are_checked():
    bins = SigmoidBins(4, low=-1.0, high=3.0)
    bins.place(double([-0.5, 0.0, 2.9]))
    assert_allclose(bins.boundaries().detach(), [-0.5, 0.0, 2.9], atol=1e-14)
    with pytest.raises(InputError, match="increasing between -1 and 3"):
        bins.place(double([0.0, -0.5, 2.0]))
    with pytest.raises(InputError, match="two or more"):
        SigmoidBins(1)
    with pytest.raises(InputError, match="above low"):
        SigmoidBins(3, low=1.0, high=1.0)
    with pytest.raises(InputError, match="shape \\(n, 1\\)"):
        bins.memberships(torch.zeros(5, 2))


# Gaussian mixture bins


@pytest.mark.parametrize(("region", "d"), [("simplex", 2), ("box", 1), ("box", 3)])
def test_responsibilities_are_those_of_scipys_gaussians(region, d, rng, tolerance):
    bins = GaussianMixtureBins(3, d, region=region, low=-1.0, high=2.0, damping=0.5, rng=rng)
    with torch.no_grad():
        bins.raw_factors.copy_(0.5 * torch.randn(bins.raw_factors.shape, generator=rng, dtype=torch.float64))
    x = torch.rand(50, d, generator=rng, dtype=torch.float64)
    factors = bins.factors().detach()
    assert (factors.triu(1) == 0).all()
    densities = np.stack(
        [
            scipy.stats.multivariate_normal(bins.means()[k].detach().numpy(), (L @ L.T).numpy()).pdf(x.numpy())
            * bins.log_weights.softmax(0)[k].item()
            for k, L in enumerate(factors)
        ],
        1,
    ).reshape(50, 3)
    for temperature in (1.0, 0.3):
        bins.sharpen(temperature)
        tempered = densities ** (1 / temperature)
        expected = tempered / tempered.sum(1, keepdims=True)
        assert_allclose(bins.memberships(x).detach(), expected, **tolerance["closed_form"])
    assert (bins.assign(x).numpy() == densities.argmax(1)).all()


def test_the_first_width_fills_the_region():
    # So many discs of that radius have the area of the triangle x + y < 1, and so many segments the length of the box.
    radius = GaussianMixtureBins(4, 2).factors()[0, 0, 0].item()
    assert 4 * math.pi * radius**2 == pytest.approx(0.5)
    size = GaussianMixtureBins(5, 1, region="box", low=-3.0, high=7.0).factors()[0, 0, 0].item()
    assert 5 * 2 * size == pytest.approx(10.0)


def test_mixture_totals_are_sums_of_memberships_to_single_precision(rng):
    sample = Sample.of(events_2d(rng, n=20_000), signals=["s1", "s2"], scaled=[])
    bins = GaussianMixtureBins(4, 2, temperature=0.3, rng=rng)
    fast, slow = bins.soft_totals(sample), direct_totals(bins.memberships, sample)
    assert_allclose(fast.detach(), slow.detach(), rtol=2e-5, atol=1e-2)
    weight = torch.randn(fast.shape, generator=rng, dtype=torch.float64)
    for a, b in zip(
        *(torch.autograd.grad((weight * totals).sum(), list(bins.parameters())) for totals in (fast, slow)), strict=True
    ):
        assert_allclose(a, b, rtol=2e-3, atol=2e-3 * b.abs().max().item())


def test_the_temperature_of_each_step_counts(rng):
    sample = Sample.of(events_2d(rng), signals=["s1"])
    bins = GaussianMixtureBins(3, 2, rng=rng)
    soft = bins.soft_totals(sample)
    bins.sharpen(0.01)
    cold = bins.soft_totals(sample)
    hard = bins.hard_totals(sample)
    assert (cold - hard).abs().max() < 0.1 * (soft - hard).abs().max()


def test_one_dimensional_boundaries_are_where_the_winner_changes(rng):
    bins = GaussianMixtureBins(4, 1, region="box", low=0.0, high=1.0, rng=rng)
    with torch.no_grad():
        bins.raw_factors.copy_(0.7 * torch.randn(4, 1, 1, generator=rng, dtype=torch.float64))
    boundaries, categories = bins.boundaries()
    x = torch.linspace(-3, 4, 20_001, dtype=torch.float64)
    assert (categories[torch.searchsorted(boundaries, x)] == bins.assign(x)).all()
    assert len(categories) == len(boundaries) + 1


def test_mixtures_say_what_they_cannot_do():
    with pytest.raises(InputError, match="n_categories"):
        GaussianMixtureBins(1, 2)
    with pytest.raises(InputError, match="region"):
        GaussianMixtureBins(2, 2, region="ball")
    with pytest.raises(InputError, match="one dimension"):
        GaussianMixtureBins(2, 2).boundaries()


# The exact optimum


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("n_bins", [1, 2, 3, 4])
def test_the_optimum_is_that_of_trying_everything(n_bins, constrained, rng):
    events = events_1d(rng, n=8)
    objective = Objective(
        least_background=1.0, largest_uncertainty=0.9, constrained=constrained, systematic=0.05 if constrained else 0.0
    )
    x = events.features[:, 0].sort().values
    middles = ((x[1:] + x[:-1]) / 2).tolist()
    best = 0.0
    bins = SigmoidBins(max(n_bins, 2))
    sample = Sample.of(events, signals=["signal"])
    for chosen in itertools.combinations(middles, n_bins - 1):
        category = torch.bucketize(sample.features[:, 0].contiguous(), double(chosen), right=True)
        yields = sample.yields(sample.hard_totals(category, n_bins))
        if not constrained or objective.are_feasible(yields).all():
            best = max(best, objective.significances(yields).item())
    found = optimal_boundaries(events, n_bins, signal="signal", objective=objective)
    assert found.exact
    assert found.significance == pytest.approx(best, rel=1e-12)
    if n_bins > 1:
        bins.place(found.boundaries)
        assert evaluate(bins, sample, objective).combined == pytest.approx(best, rel=1e-12)


def test_few_candidates_come_close_to_all(rng):
    events = events_1d(rng, n=300)
    objective = Objective(least_background=5.0, constrained=True)
    exact = optimal_boundaries(events, 4, signal="signal", objective=objective)
    coarse = optimal_boundaries(events, 4, signal="signal", objective=objective, candidates=120)
    assert exact.exact
    assert not coarse.exact
    assert 0.99 * exact.significance < coarse.significance <= exact.significance * (1 + 1e-12)


def test_the_optimum_says_what_it_cannot_do(rng):
    with pytest.raises(InputError, match="no 5 bins respect"):
        optimal_boundaries(
            events_1d(rng, n=10), 5, signal="signal", objective=Objective(least_background=1e3, constrained=True)
        )
    with pytest.raises(InputError, match="one feature and one signal"):
        optimal_boundaries(events_2d(rng), 2, signal="s1")


# Mass


def falling(rng, slope, n):
    u = torch.rand(n, generator=rng, dtype=torch.float64)
    return 100 - torch.log1p(u * math.expm1(-slope * 80)) / slope


def test_the_share_of_a_window_is_that_of_quadrature(tolerance):
    window = MassWindow(low=123.5, high=126.5)
    for slope in (-0.02, 1e-9, 0.03, 0.5):
        part, whole = (
            scipy.integrate.quad(lambda m, s=slope: math.exp(-s * (m - 100)), *ends, epsabs=0, epsrel=1e-12)[0]
            for ends in ((123.5, 126.5), (100, 180))
        )
        assert_allclose(window.share_of(double(slope)), part / whole, **tolerance["quadrature"])


def test_the_likelihood_fit_is_that_of_scipy(rng):
    mass, weights = falling(rng, 0.03, 4000), torch.rand(4000, generator=rng, dtype=torch.float64)
    category = torch.randint(2, (4000,), generator=rng)
    window = MassWindow()
    shares = window.shares(mass, weights, category, 2)

    def nll(slope, k):
        m, w = mass[category == k].numpy(), weights[category == k].numpy()
        integral = -math.expm1(-slope * 80) / slope
        return (w * (slope * (m - 100) + math.log(integral))).sum()

    for k in range(2):
        best = scipy.optimize.minimize_scalar(
            nll, bounds=(0.01, 0.1), args=(k,), method="bounded", options={"xatol": 1e-9}
        )
        assert shares[k].item() == pytest.approx(window.share_of(double(best.x)).item(), rel=1e-6)


def test_both_fits_find_the_truth_and_fall_back_where_they_cannot(rng):
    mass = falling(rng, 0.03, 200_000)
    weights = torch.ones_like(mass)
    category = torch.zeros(len(mass), dtype=torch.int64)
    for fit in ("likelihood", "least_squares"):
        window = MassWindow(fit=fit)
        expected = window.share_of(double(0.03)).item()
        shares = window.shares(mass, weights, category, 2)
        assert shares[0].item() == pytest.approx(expected, rel=0.01)
        assert shares[1].item() == pytest.approx(3 / 80)  # no event
        assert window.shares(mass, -weights, category, 1).item() == pytest.approx(3 / 80)
        outside = mass < 120
        assert window.shares(mass[outside], weights[outside], category[outside], 1).item() == pytest.approx(3 / 80)
    with pytest.raises(InputError, match="does not lie in"):
        MassWindow(low=90.0)
    with pytest.raises(InputError, match="fit"):
        MassWindow(fit="spline")


# Toys and schedules


def test_toys_have_the_published_totals_and_means(tolerance):
    toy = toy_1d()
    totals = {"signal": 50, "bkg1": 10_000, "bkg2": 8000, "bkg3": 5000, "bkg4": 2000, "bkg5": 1000}
    for name, total in toy.totals.items():
        assert total == pytest.approx(totals[name])
    # Published means of the discriminant; that of bkg5, 0.1114, differs from the events that give all other figures.
    for name, mean in zip(toy.processes, (0.8155, 0.0736, 0.2291, 0.3258, 0.0877, 0.1117), strict=True):
        assert toy.features[toy.of_process([name]), 0].mean().item() == pytest.approx(mean, abs=6e-5)


def test_the_toy_of_seed_42_gives_the_published_significances_event_by_event():
    sample = Sample.of(toy_1d(), signals=["signal"])
    for n, z in ((2, 0.7518), (5, 1.0145), (10, 1.1835), (20, 1.3342), (50, 1.4962), (100, 1.6018)):
        reached = evaluate(SigmoidBins(n), sample, Objective())
        signal, background = reached.yields.signal[0], reached.yields.background
        # Published with S / sqrt(B) in bins with S < 0.1 B.
        published = torch.where(signal < 0.1 * background, signal**2 / background, reached.by_category[0] ** 2)
        assert published.sum().sqrt().item() == pytest.approx(z, abs=6e-5)
        assert reached.combined == pytest.approx(z, rel=0.012)


def test_the_diphoton_toy_has_the_published_yields_in_its_window():
    toy = toy_diphoton()
    totals = toy.where(toy.in_window(123.5, 126.5)).totals
    published = (34.158, 6.828, 435.60, 369.85, 233.12, 94.17, 45.58)
    for total, expected in zip(totals.values(), published, strict=True):
        assert total == pytest.approx(expected, abs=0.006)
    assert toy.n_features == 2


def test_toys_are_reproducible():
    one, same, other = toy_three_class(50, 100, seed=0), toy_three_class(50, 100, seed=0), toy_three_class(50, 100)
    assert torch.equal(one.features, same.features)
    assert not torch.equal(one.features, other.features)
    assert_allclose(one.features.sum(1), np.ones(200), atol=1e-6)
    with pytest.raises(InputError, match="seed"):
        toy_1d(10, 10, seed=-1)
    with pytest.raises(InputError, match="slopes"):
        toy_diphoton(10, 10, slopes=[0.1])


@pytest.mark.parametrize("form", ["linear", "cosine", "exponential"])
def test_schedules_go_from_the_first_to_the_last_value(form):
    schedule = Schedule(2.0, 0.5, form)
    values = [schedule(epoch, 11) for epoch in range(11)]
    assert values[0] == pytest.approx(2.0)
    assert values[-1] == pytest.approx(0.5)
    assert values[5] == pytest.approx(1.0 if form == "exponential" else 1.25)
    assert values == sorted(values, reverse=True)
    with pytest.raises(InputError, match="form"):
        Schedule(1.0, 2.0, "square")
    with pytest.raises(InputError, match="above 0"):
        Schedule(0.0, 2.0)


def test_relative_uncertainty_is_that_of_the_weights(rng):
    sample = Sample.of(events_1d(rng), signals=["signal"])
    yields = sample.yields(SigmoidBins(3).hard_totals(sample))
    chosen = (SigmoidBins(3).assign(sample.features) == 1) & (torch.arange(len(sample)) >= sample.ends[0])
    w = sample.weights[chosen]
    assert relative_uncertainty(yields)[1].item() == pytest.approx((w.square().sum().sqrt() / w.sum()).item())
