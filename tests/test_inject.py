"""Injected signals: what goes in comes out, and every figure of the result. Oracles: numpy and scipy by hand."""

import csv
import itertools
import json
import math

import numpy as np
import pytest
import scipy.stats
import torch
from iminuit import Minuit
from numpy.testing import assert_allclose
from scipy.integrate import quad

from specfit import InputError, Spectrum
from specfit.search import InjectionResult, inject
from specfit.search import injection as module
from specfit.search.alternatives import best_alternative, fit_log_linear
from specfit.search.chain import Chain, ChainResult
from specfit.search.scanning import fitted
from specfit.shapes import quadrature

MASSES = [700.0, 1300.0]


@pytest.fixture(scope="module")
def result(fitter, task):
    counts, truth = task
    return inject(counts, checkpoint=fitter, truth=truth, mass=MASSES, n_toys=200)


@pytest.fixture
def made_up(rng):
    """A result of numbers that no fit made."""
    yields = torch.randn(50, 2, 3, generator=rng, dtype=torch.float64) * 20 + 30
    return InjectionResult(
        edges=torch.linspace(100.0, 200.0, 11).double(),
        truth=torch.full((10,), 50.0, dtype=torch.float64),
        mass=torch.tensor([120.0, 160.0]).double(),
        width=torch.tensor([6.0, 8.0]).double(),
        strength=torch.tensor([0.0, 1.0, 4.0]).double(),
        sigma0=torch.tensor([10.0, 12.0]).double(),
        yields=yields,
        error=torch.rand(50, 2, 3, generator=rng, dtype=torch.float64) + 15,
    )


def test_a_spectrum_like_those_of_the_training_gives_back_what_was_injected(result):
    """The net is near the limit there: no bias beyond 0.2 standard errors at any strength, and errors are right."""
    assert result.bias.abs().max() < 0.2 + 3 * result.bias_error.max()
    five = result.strength.tolist().index(5.0)
    assert (result.bias[:, five].abs() < 0.2 + 2 * result.bias_error[:, five]).all()
    assert ((result.slope - 1).abs() < 0.01 + 3 * result.slope_error).all()
    assert_allclose(result.pull_width, 1.0, atol=0.1 + 3 / math.sqrt(2 * 199))
    assert_allclose(result.coverage, 0.683, atol=0.05 + 3 * math.sqrt(0.683 * 0.317 / 200))


def test_injected_yields_are_in_units_of_the_error_on_a_known_background(result, task):
    edges, truth = result.edges.numpy(), task[1].numpy()
    for i, mass in enumerate(MASSES):
        share = np.diff(scipy.stats.norm.cdf(edges, mass, 0.05 * mass))
        sigma0 = 1 / np.sqrt((share**2 / truth).sum())
        assert_allclose(result.sigma0[i], sigma0, rtol=1e-9)
        assert_allclose(result.injected[i], sigma0 * np.array([0, 2, 5, 10]), rtol=1e-9)
    assert (result.fit_error > result.sigma0[:, None] * 0.9).all()


def test_pseudo_data_have_the_mean_of_background_and_signal(fitter, task):
    """What the chain is given, caught on the way: Poisson with the right mean, one background for all strengths."""
    counts, truth = task
    _, fit = fitted(counts, None, checkpoint=fitter, mask=None)
    chain = module.injection_chain(fitter, fit, truth, mass=[700.0])
    seen = []

    class Spy(Chain):
        def __call__(self, counts):
            seen.append(counts)
            return ChainResult(*(torch.zeros(len(counts), 1) for _ in range(3)))

    spy = Spy(chain.fitter, chain.edges, chain.hypotheses, chain.known, chain.mask)
    injected = torch.tensor([[0.0, 400.0]]).double()
    module.Injected(spy, truth, injected)(4000, torch.Generator().manual_seed(1))
    drawn = seen[0].view(4000, 2, 50)
    expected = torch.stack([truth, truth + 400 * chain.hypotheses.templates[0]])
    z = (drawn.mean(0) - expected) / (expected / 4000).sqrt().clamp(min=1e-9)
    assert z.abs().max() < 5
    extra = drawn[:, 1] - drawn[:, 0]
    assert (extra >= 0).all()
    # Only the signal's own fluctuation is left between two strengths.
    assert_allclose(extra.sum(-1).var(), 400, rtol=0.1)


def test_every_figure_by_hand(made_up):
    y, e = made_up.yields.numpy(), made_up.error.numpy()
    injected = np.outer([10.0, 12.0], [0, 1, 4])
    assert_allclose(made_up.injected, injected)
    assert_allclose(made_up.mean, y.mean(0))
    assert_allclose(made_up.bias, (y.mean(0) - injected) / e.mean(0))
    assert_allclose(made_up.bias_error, scipy.stats.sem(y) / e.mean(0))
    assert_allclose(made_up.bias_in_sigma0, (y.mean(0) - injected) / np.array([[10.0], [12.0]]))
    pulls = (y - injected) / e
    assert_allclose(made_up.pull_mean, pulls.mean(0))
    assert_allclose(made_up.pull_width, pulls.std(0, ddof=1))
    assert_allclose(made_up.coverage, (np.abs(pulls) <= 1).mean(0))
    for h in range(2):
        lines = [scipy.stats.linregress(injected[h], toy[h]) for toy in y]
        assert_allclose(made_up.slope[h], np.mean([line.slope for line in lines]))
        assert_allclose(made_up.slope_error[h], scipy.stats.sem([line.slope for line in lines]))
        assert_allclose(made_up.intercept[h], np.mean([line.intercept for line in lines]) / [10, 12][h])
        assert_allclose(made_up.intercept_error[h], scipy.stats.sem([line.intercept for line in lines]) / [10, 12][h])


def test_table_and_files_say_the_same(made_up, tmp_path):
    table = made_up.table()
    assert {len(column) for column in table.values()} == {6}
    assert table["mass"] == [120.0] * 3 + [160.0] * 3
    assert table["strength"] == [0.0, 1.0, 4.0] * 2
    with made_up.save(tmp_path / "points.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert_allclose([float(row["bias"]) for row in rows], table["bias"], rtol=1e-9)
    content = json.loads(made_up.save(tmp_path / "points.json").read_text())
    assert content["pseudo_experiments"] == 50
    assert content["points"] == table
    assert len(str(made_up).splitlines()) == 2
    assert len(made_up.plot().axes) == 3
    with pytest.raises(InputError, match=r"\.csv or \.json"):
        made_up.save(tmp_path / "points.txt")


def test_a_single_strength_has_no_slope(fitter, task, tmp_path):
    one = inject(task[0], checkpoint=fitter, mass=[700.0], strength=[5], n_toys=3)
    assert one.slope.isnan().all()
    assert json.loads(one.save(tmp_path / "one.json").read_text())["points"]["slope"] == [None]
    one.plot()


def test_masses_are_spread_over_the_bins_that_hold_events(fitter, task):
    spread = inject(task[0], checkpoint=fitter, width=(0.03, 0.06), strength=[0], n_toys=2)
    assert len(spread.mass) == 10
    assert torch.equal(spread.mass[:5], spread.mass[5:])
    edges = np.asarray(spread.edges)
    assert edges[5] <= spread.mass[0] < spread.mass[4] <= edges[45]
    assert (spread.sigma0**2 >= 10).all()
    steep = 1e5 * torch.exp(-torch.arange(50).double() / 3)
    few = inject(task[0], checkpoint=fitter, truth=steep, strength=[0], n_toys=2)
    assert (few.sigma0**2 >= 10).all()
    assert few.mass[-1] < spread.mass[4]


def test_weighted_contents_keep_their_unit(fitter, task):
    counts, truth = task
    options = {"checkpoint": fitter, "mass": [700.0], "n_toys": 5, "strength": [0, 5]}
    plain = inject(counts, truth=truth, **options)
    scaled = Spectrum(counts * 0.1, fitter.edges, variances=counts * 0.01)
    weighted = inject(scaled, truth=truth * 0.1, **options)
    for name in ("truth", "sigma0", "injected", "yields", "error"):
        assert_allclose(getattr(weighted, name), 0.1 * getattr(plain, name), rtol=1e-6)
    assert_allclose(weighted.bias, plain.bias, rtol=1e-6)


def test_the_answer_is_that_of_the_seed_and_a_store_goes_on(fitter, task, tmp_path):
    options = {"checkpoint": fitter, "mass": [700.0], "strength": [0, 5]}
    first = inject(task[0], n_toys=20, seed=4, store=tmp_path / "s", **options)
    more = inject(task[0], n_toys=40, seed=4, store=tmp_path / "s", **options)
    assert torch.equal(more.yields[:20], first.yields)
    assert not torch.equal(inject(task[0], n_toys=20, seed=5, **options).yields, first.yields)
    with pytest.raises(InputError, match="another run"):
        inject(task[0], n_toys=20, seed=4, store=tmp_path / "s", checkpoint=fitter, mass=[800.0], strength=[0, 5])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"truth": [1.0, 2.0]}, "truth: expected events of 50 bins"),
        ({"truth": [-1.0] * 50}, "truth: finite expected events"),
        ({"strength": [-1]}, "strength: finite numbers from 0"),
        ({"strength": []}, "strength: finite numbers from 0"),
        ({"n_toys": 1}, "n_toys: at least 2"),
        ({"mass": [10.0]}, "mass: masses from 250"),
        ({"mass": [700.0], "mask": [(600, 800)]}, "mask covers the signal at 700"),
        ({"width": -1.0}, "width: positive"),
    ],
)
def test_a_mistake_gives_one_clear_error(fitter, task, options, words):
    with pytest.raises(InputError, match=words):
        inject(task[0], checkpoint=fitter, **{"n_toys": 2, **options})


def test_many_spectra_or_an_empty_background_are_refused(fitter, task):
    with pytest.raises(InputError, match="one is expected, 2 came"):
        inject(torch.stack([task[0]] * 2), checkpoint=fitter)
    with pytest.raises(InputError, match="nowhere does the background hold 10 events"):
        inject(task[0], checkpoint=fitter, truth=torch.full((50,), 1e-3), n_toys=2)


@pytest.mark.parametrize("degree", [1, 3])
def test_an_exponential_of_a_polynomial_is_found_as_minuit_finds_it(degree, rng):
    edges = torch.linspace(100.0, 200.0, 21).double()

    def u(x):
        return (x - 150) / 50

    coefficients = [5.0, -1.0, 0.3, 0.2][: degree + 1]
    truth = [
        quad(lambda x: math.exp(np.polynomial.polynomial.polyval(u(x), coefficients)), a, b)[0]
        for a, b in itertools.pairwise(edges.tolist())
    ]
    counts = torch.poisson(torch.tensor(truth).double(), generator=rng)
    x, log_weights = quadrature(edges, 6)
    columns = torch.stack([u(x) ** k for k in range(degree + 1)], -1)
    found = fit_log_linear(
        "polynomial", counts, edges, columns, torch.ones(20, dtype=torch.bool), torch.ones(20).double()
    )
    matrix, weights, n = columns.numpy(), log_weights.exp().numpy(), counts.numpy()

    def deviance(values):
        expected = (np.exp(matrix @ values) * weights).sum(-1)
        return 2 * (expected - n + scipy.special.xlogy(n, n / expected)).sum()

    fit = Minuit(deviance, np.array(coefficients))
    fit.strategy = 2
    fit.migrad()
    assert_allclose(found.score, fit.fval + 2 * (degree + 1), rtol=1e-6)
    expected = (np.exp(matrix @ np.array(fit.values)) * weights).sum(-1)
    assert_allclose(found.background, expected, rtol=1e-3)
    assert_allclose(found.p_value, scipy.stats.chi2.sf(fit.fval, 19 - degree), rtol=1e-5)


def test_the_family_that_made_the_data_describes_them_and_a_peak_is_described_by_none(rng):
    edges = torch.linspace(1000.0, 5000.0, 41).double()
    centers = (edges[1:] + edges[:-1]) / 2
    z = centers / 13000
    smooth = 1e6 * (1 - z) ** 8 * z**-5 / (z[0] ** -5)
    counts = torch.poisson(smooth, generator=rng)
    seen = torch.ones(40, dtype=torch.bool)
    best = best_alternative(counts, edges, seen)
    assert best.p_value > 0.01
    assert ((best.background - smooth).abs() / smooth.sqrt()).mean() < 0.5
    peak = counts + (2e5 * torch.exp(-(((centers - 2500) / 150) ** 2) / 2)).round()
    assert best_alternative(peak, edges, seen).p_value < 0.01
    hidden = (centers < 1900) | (centers > 3100)
    assert best_alternative(peak, edges, hidden).p_value > 0.01


def test_too_few_bins_for_any_second_family_are_told():
    counts, edges = torch.tensor([5.0, 4.0]).double(), torch.tensor([0.0, 1.0, 2.0]).double()
    with pytest.raises(InputError, match=r"^2 bins are left .* take more bins"):
        best_alternative(counts, edges, torch.ones(2, dtype=torch.bool))


def test_edges_from_below_zero_have_polynomials_only(rng):
    edges = torch.linspace(-5.0, 5.0, 31).double()
    counts = torch.poisson(torch.linspace(200, 100, 30).double(), generator=rng)
    best = best_alternative(counts, edges, torch.ones(30, dtype=torch.bool))
    assert best.p_value > 0.01
    assert best.name.endswith("in x")
