"""The functional fit against quadrature, finite differences, scipy's minimum, intervals of Minos and toys."""

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from torch.testing import assert_close

from specfit.arrays import InputError
from specfit.functional import DijetFunction, ErfExpRanges, ErfExpSum, ExpPolynomial, functional_fit
from specfit.functional import fitting as fitting_module
from specfit.functional.likelihood import Likelihood
from specfit.functional.points import plan_nodes, points_of_mean_density
from specfit.generator import SpectrumGenerator
from specfit.shapes import ErfExp, quadrature
from specfit.significance import poisson_deviance
from specfit.spectrum import Spectrum

REFERENCE_EDGES = torch.from_numpy(np.geomspace(250, 3000, 51))
# Every bin is well filled: a deviance is then chi-square distributed.
FILLED_EDGES = torch.linspace(300, 700, 41, dtype=torch.float64)
# So wide that they constrain nothing.
WIDE = ErfExpRanges(rho=(0.2, 3.0), alpha=(1.0, 5000.0), mu=(250.0, 450.0), sigma=(1.0, 100.0))
TRUTH = (1.0, 60.0, 350.0, 20.0)
NAMES = ("yield_1", "rho_1", "alpha_1", "mu_1", "sigma_1")


def density(x, rho, alpha, mu, sigma):
    return scipy.special.ndtr((x - mu) / sigma) * np.exp(-(x**rho) / alpha)


def integrals(edges, *parameters):
    """One component over each bin by adaptive quadrature, relative to its sum."""
    bins = [
        scipy.integrate.quad(density, a, b, args=parameters, epsabs=0, epsrel=1e-11)[0]
        for a, b in itertools.pairwise(edges)
    ]
    return np.array(bins) / sum(bins)


def toys(expected, n, rng):
    return torch.poisson(torch.as_tensor(expected).expand(n, -1), generator=rng)


def expected_events(parameters, x, log_weights):
    """Expected events of components with rows of yield, rho, alpha, mu, sigma, through the public shape."""
    yields, *shapes = parameters.T
    log_density = ErfExp(*shapes).log_density(x.flatten()).view(-1, *x.shape)
    return yields @ torch.softmax(torch.logsumexp(log_density + log_weights, -1), -1)


FUNCTIONS = {
    "one component": ErfExpSum(1),
    "three components": ErfExpSum(3),
    "dijet": DijetFunction(),
    "three-parameter dijet": DijetFunction(9000.0, n_parameters=3),
    "polynomial": ExpPolynomial(4),
}


@pytest.fixture(params=FUNCTIONS.values(), ids=FUNCTIONS)
def function(request):
    return request.param


@pytest.fixture
def counts(rng):
    """Two spectra."""
    return SpectrumGenerator(REFERENCE_EDGES, n_backgrounds=3).sample(2, rng=rng).counts.double()


@pytest.fixture
def like(function, counts):
    """With a mask of several bins in one of the spectra."""
    mask = torch.zeros_like(counts, dtype=torch.bool)
    mask[1, 7:12] = True
    return Likelihood(function.on(REFERENCE_EDGES), counts, mask)


@pytest.fixture
def position(like, rng):
    """Well within the limits and not so steep that expectations underflow."""
    n = len(like.function.names)
    if n % 5:
        start = like.function.starting_points(like.counts, like.mask, 1, rng=None)[:, 0]
        return start + 0.1 * torch.randn(2, n, generator=rng).double()
    position = 0.1 + 0.8 * torch.rand(2, n, generator=rng).double()
    position[:, 1::5] *= 0.4
    return position


# The likelihood


@pytest.mark.parametrize("function", [ErfExpSum(1), ErfExpSum(3)], ids=["1", "3"])
def test_sum_is_that_of_the_shape(function, like, position):
    x, log_weights = quadrature(REFERENCE_EDGES, plan_nodes(REFERENCE_EDGES, function.ranges.pairs()))
    log_expected, _ = like.log_expected(position)
    for row in range(2):
        parameters = like.function.parameters(position)[row].view(-1, 5)
        parameters[:, 0] *= like.total[row]
        assert_close(log_expected[row], expected_events(parameters, x, log_weights).log(), rtol=1e-10, atol=1e-10)


def test_dijet_function_is_the_public_shape():
    from specfit.shapes import Dijet

    on_bins = DijetFunction(13_000.0).on(REFERENCE_EDGES)
    position = torch.tensor([[1.0, -3.0, 0.4, 0.1], [0.5, -2.0, -0.3, 0.0]]).double()
    parameters = on_bins.parameters(position)
    expected = torch.log_softmax(Dijet(*parameters[:, 1:].T, 13_000.0).log_bins(REFERENCE_EDGES), -1)
    assert_close(on_bins.log_expected(position)[0], expected + position[:, :1].log(), rtol=1e-10, atol=1e-10)


def test_likelihood_is_half_the_deviance_of_unmasked_bins(like, position):
    deviance = poisson_deviance(like.counts, like.log_expected(position)[0].exp()).masked_fill(like.mask, 0.0)
    assert_close(like.evaluate(position).nll, deviance.sum(-1) / 2, rtol=1e-11, atol=0)


def test_gradient_agrees_with_finite_differences(like, position):
    steps = 1e-5 * torch.eye(position.shape[1]).double()
    numeric = [(like.evaluate(position + h).nll - like.evaluate(position - h).nll) / 2e-5 for h in steps]
    assert_close(like.evaluate(position).gradient, torch.stack(numeric, -1), rtol=1e-6, atol=1e-2)


def test_jacobian_slopes_and_fisher_agree_with_finite_differences(like, position):
    log_expected, jacobian = like.log_expected(position)
    steps = 1e-6 * torch.eye(position.shape[1]).double()
    numeric = [(like.log_expected(position + h)[0] - like.log_expected(position - h)[0]) / 2e-6 for h in steps]
    assert_close(jacobian, torch.stack(numeric, 1), rtol=1e-5, atol=1e-6)
    parameters = like.function.parameters
    numeric = [(parameters(position + h) - parameters(position - h)) / 2e-6 for h in steps]
    assert_close(like.function.slopes(position), torch.stack(numeric, -1), rtol=1e-6, atol=1e-5)
    scaled = jacobian * (log_expected / 2).exp()[:, None].masked_fill(like.mask[:, None], 0.0)
    assert_close(like.evaluate(position).fisher, scaled @ scaled.mT, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("edges", [REFERENCE_EDGES, torch.linspace(250, 3000, 13, dtype=torch.float64)])
@pytest.mark.parametrize("parameters", [(1.0, 60.0, 350.0, 20.0), (0.5, 25.0, 325.0, 10.0), (1.5, 200.0, 375.0, 30.0)])
def test_expected_events_agree_with_adaptive_quadrature(edges, parameters):
    nodes = quadrature(edges, plan_nodes(edges, ErfExpRanges().pairs()))
    ours = expected_events(torch.tensor([[1.0, *parameters]], dtype=torch.float64), *nodes).numpy()
    np.testing.assert_allclose(ours, integrals(edges.numpy(), *parameters), rtol=2e-6, atol=1e-9)


def test_points_of_mean_density_lie_where_the_density_equals_its_mean():
    edges = np.linspace(420, 1220, 17)  # the density falls: one point a bin
    parameters = torch.tensor([[3e4, 1.0, 60.0, 350.0, 20.0], [1e4, 0.8, 80.0, 340.0, 15.0]], dtype=torch.float64)
    norms = [scipy.integrate.quad(density, edges[0], edges[-1], args=tuple(p[1:].tolist()))[0] for p in parameters]

    def mixture(x):
        return sum(p[0].item() * density(x, *p[1:].tolist()) / n for p, n in zip(parameters, norms, strict=True))

    expected = []
    for a, b in itertools.pairwise(edges):
        mean = scipy.integrate.quad(mixture, a, b)[0] / (b - a)
        expected.append(scipy.optimize.brentq(lambda x, mean=mean: mixture(x) - mean, a, b))
    middle = torch.from_numpy((edges[1:] + edges[:-1]) / 2)
    points = points_of_mean_density(parameters, torch.from_numpy(edges), middle, nodes_per_bin=16)
    np.testing.assert_allclose(points, expected, atol=1e-2)


# The minimum


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_scipy_finds_no_lower_minimum(seed):
    batch = SpectrumGenerator(REFERENCE_EDGES, n_backgrounds=1).sample(1, rng=torch.Generator().manual_seed(seed))
    result = functional_fit(batch.counts[0], REFERENCE_EDGES)
    n, edges = batch.counts[0].double().numpy(), REFERENCE_EDGES.numpy()
    nodes, weights = np.polynomial.legendre.leggauss(10)
    half = np.diff(edges)[:, None] / 2
    x = edges[:-1, None] + half * (1 + nodes)

    def nll(p):
        y, rho, alpha, mu, sigma = p[0] * n.sum(), *p[1:] * np.array([1.0, 100.0, 350.0, 20.0])
        log_f = scipy.special.log_ndtr((x - mu) / sigma) - x**rho / alpha
        log_bins = scipy.special.logsumexp(log_f, axis=1, b=half * weights)
        log_expected = np.log(y) + scipy.special.log_softmax(log_bins)
        return (np.exp(log_expected) - n - n * (log_expected - np.log(np.maximum(n, 1)))).sum()

    ours = np.array([result.parameters[name] for name in NAMES]) / [n.sum(), 1.0, 100.0, 350.0, 20.0]
    assert nll(ours) == pytest.approx(result.nll, abs=1e-4)
    bounds = [(0.5, 1.5), (0.5, 1.5), (0.25, 2.0), (325 / 350, 375 / 350), (0.5, 1.5)]
    lowest = min(
        scipy.optimize.minimize(nll, start, bounds=bounds, method=method).fun
        for start, method in ((ours, "Nelder-Mead"), (ours, "L-BFGS-B"), ([1.0, 0.8, 0.8, 1.0, 1.0], "L-BFGS-B"))
    )
    assert result.nll < lowest + 2e-3


def test_errors_agree_with_intervals_of_minos_where_the_ranges_are_wide():
    from iminuit import Minuit

    counts = 1e6 * integrals(FILLED_EDGES.numpy(), *TRUTH)
    result = functional_fit(counts, FILLED_EDGES, function=ErfExpSum(ranges=WIDE))
    assert_close(result.fit.background, torch.from_numpy(counts), rtol=1e-4, atol=0.0)
    nodes = quadrature(FILLED_EDGES, 16)

    def nll(*parameters):
        expected = expected_events(torch.tensor([parameters], dtype=torch.float64), *nodes).numpy()
        return (expected - counts - scipy.special.xlogy(counts, expected / counts)).sum()

    # Not Hesse: its numerical derivatives fail where parameters are correlated to 0.9999, by a factor 3.
    minuit = Minuit(nll, *result.parameters.values(), name=NAMES)
    minuit.errordef, minuit.errors = Minuit.LIKELIHOOD, list(result.errors.values())
    minuit.migrad()
    minuit.minos()
    half_widths = [(minuit.merrors[name].upper - minuit.merrors[name].lower) / 2 for name in NAMES]
    np.testing.assert_allclose(list(result.errors.values()), half_widths, rtol=0.03)


def test_two_components_fit_their_sum_and_one_does_not(rng):
    edges = FILLED_EDGES.numpy()
    truth = 4e5 * integrals(edges, 1.4, 100.0, 330.0, 10.0) + 4e5 * integrals(edges, 0.6, 25.0, 370.0, 10.0)
    counts = toys(truth, 1, rng)[0]
    one, two = (functional_fit(counts, FILLED_EDGES, function=ErfExpSum(n)) for n in (1, 2))
    assert two.nll < one.nll - 50
    assert one.fit.p_value < 1e-6
    assert two.fit.p_value > 1e-3
    assert two.parameters["yield_1"] >= two.parameters["yield_2"]
    assert sum(two.parameters[f"yield_{k}"] for k in (1, 2)) == pytest.approx(counts.sum().item(), rel=1e-4)


def test_more_components_never_fit_worse(counts):
    nlls = [functional_fit(counts[0], REFERENCE_EDGES, function=ErfExpSum(n)).nll for n in (1, 2, 3)]
    assert nlls[0] >= nlls[1] - 1e-3
    assert nlls[1] >= nlls[2] - 1e-2


# The statistics


def test_parameters_scatter_as_their_errors_say(rng):
    n_toys = 60
    counts = toys(4e5 * integrals(FILLED_EDGES.numpy(), *TRUTH), n_toys, rng)
    results = [functional_fit(c, FILLED_EDGES, function=ErfExpSum(ranges=WIDE), starts=1) for c in counts]
    truth = dict(zip(NAMES, (4e5, *TRUTH), strict=True))
    pulls = np.array([[(r.parameters[k] - truth[k]) / r.errors[k] for k in NAMES] for r in results])
    assert np.abs(pulls.mean(0)).max() < 3.5 / math.sqrt(n_toys)
    assert np.abs(pulls.std(0) - 1).max() < 3.5 / math.sqrt(2 * n_toys)


def test_p_values_are_uniform_and_the_background_scatters_as_its_covariance_says(rng):
    n_toys = 60
    truth = torch.from_numpy(1e5 * integrals(FILLED_EDGES.numpy(), *TRUTH))
    fits = [functional_fit(c, FILLED_EDGES, starts=1).fit for c in toys(truth, n_toys, rng)]
    assert scipy.stats.kstest([f.p_value.item() for f in fits], "uniform").pvalue > 0.01
    pulls = torch.stack([(f.background - truth) / f.uncertainty for f in fits])
    assert pulls.square().mean().sqrt().item() == pytest.approx(1.0, abs=0.15)
    windows = [f.window(400, 500) for f in fits]
    inside = truth[(FILLED_EDGES[:-1] >= 400) & (FILLED_EDGES[1:] <= 500)].sum()
    z = torch.stack([(b - inside) / s for b, s in windows])
    assert z.std().item() == pytest.approx(1.0, abs=3.5 / math.sqrt(2 * n_toys))


def test_the_reference_task_is_solved_as_well_as_published(rng):
    batch = SpectrumGenerator(REFERENCE_EDGES, n_backgrounds=1).sample(60, rng=rng)
    residuals = []
    for counts, truth in zip(batch.counts, batch.background.double(), strict=True):
        result = functional_fit(counts, REFERENCE_EDGES)
        assert result.fit.converged
        residuals.append(((result.fit.background - truth) / truth.sqrt())[truth > 0.5])
    rms = torch.cat(residuals).square().mean().sqrt().item()
    assert 0.32 < rms < 0.43  # limit of any estimator 0.376, published fit 0.364; 60 spectra scatter by 0.02


# Options


def test_iterated_centres_agree_with_integrals(rng):
    edges = torch.linspace(300, 700, 81, dtype=torch.float64)
    counts = toys(2e5 * integrals(edges.numpy(), *TRUTH), 1, rng)[0]
    whole, at_points = (functional_fit(counts, edges, centres=c).fit for c in ("integrate", "iterate"))
    assert at_points.converged
    assert at_points.iterations >= 1
    assert ((whole.background - at_points.background) / whole.uncertainty).abs().max() < 0.05
    assert_close(at_points.uncertainty, whole.uncertainty, rtol=0.02, atol=0.0)


def test_iterated_centres_are_better_than_middles_where_bins_are_wide():
    edges = torch.linspace(400, 1200, 11, dtype=torch.float64)
    counts = 1e6 * integrals(edges.numpy(), 1.0, 60.0, 350.0, 20.0)
    fixed = ErfExpRanges(mu=(350.0, 350.0), sigma=(20.0, 20.0))
    alpha = functional_fit(counts, edges, function=ErfExpSum(ranges=fixed), centres="iterate").parameters["alpha_1"]
    assert alpha == pytest.approx(60.0, rel=1e-2)


def test_centres_that_do_not_rest_are_reported(counts, monkeypatch):
    monkeypatch.setattr(fitting_module, "MOST_ITERATIONS", 1)
    fit = functional_fit(counts[0], REFERENCE_EDGES, centres="iterate").fit
    assert not fit.converged
    assert 'centres="integrate"' in fit.message


def test_parameters_at_their_limits_are_named_and_leave_the_covariance_finite():
    counts = 1e5 * integrals(FILLED_EDGES.numpy(), *TRUTH)
    ranges = ErfExpRanges(sigma=(25.0, 30.0), mu=(325.0, 340.0))
    result = functional_fit(counts, FILLED_EDGES, function=ErfExpSum(ranges=ranges))
    assert result.parameters["sigma_1"] == pytest.approx(25.0, abs=0.01)
    assert "sigma_1" in result.fit.message
    assert "rho_1" not in result.fit.message
    assert (result.fit.uncertainty > 0).all()
    assert result.fit.factor.isfinite().all()
    assert result.errors["sigma_1"] <= 5.0 / math.sqrt(12) * 1.001


def test_equal_ends_fix_a_parameter():
    counts = 1e5 * integrals(FILLED_EDGES.numpy(), *TRUTH)
    result = functional_fit(
        counts, FILLED_EDGES, function=ErfExpSum(ranges=ErfExpRanges(mu=(350.0, 350.0), alpha=(60.0, 60.0)))
    )
    assert result.parameters["mu_1"] == 350.0
    assert result.errors["mu_1"] == result.errors["alpha_1"] == 0.0
    assert result.parameters["rho_1"] == pytest.approx(1.0, abs=1e-3)
    assert "limit" not in result.fit.message
    assert result.fit.n_parameters.item() == pytest.approx(3.0, abs=0.05)


def test_weighted_contents_are_scaled_counts(rng):
    counts = toys(1e5 * integrals(FILLED_EDGES.numpy(), *TRUTH), 1, rng)[0]
    plain = functional_fit(counts, FILLED_EDGES)
    weighted = functional_fit(Spectrum(0.25 * counts, FILLED_EDGES, variances=0.25**2 * counts))
    assert_close(weighted.fit.background, 0.25 * plain.fit.background, rtol=1e-6, atol=0.0)
    assert_close(weighted.fit.uncertainty, 0.25 * plain.fit.uncertainty, rtol=1e-5, atol=0.0)
    assert weighted.parameters["yield_1"] == pytest.approx(0.25 * plain.parameters["yield_1"], rel=1e-6)
    for name, scale in (("yield_1", 0.25), ("mu_1", 1.0)):
        assert weighted.errors[name] == pytest.approx(scale * plain.errors[name], rel=1e-4)
    assert weighted.nll == pytest.approx(plain.nll, rel=1e-5)


def test_other_units_give_the_same_background(rng):
    counts = toys(1e5 * integrals(FILLED_EDGES.numpy(), *TRUTH), 1, rng)[0]
    plain = functional_fit(counts, FILLED_EDGES, function=ErfExpSum(ranges=ErfExpRanges(rho=(1.0, 1.0))))
    in_tev = ErfExpRanges(rho=(1.0, 1.0), alpha=(0.025, 0.2), mu=(0.325, 0.375), sigma=(0.01, 0.03))
    other = functional_fit(counts, FILLED_EDGES / 1000, function=ErfExpSum(ranges=in_tev))
    assert_close(other.fit.background, plain.fit.background, rtol=1e-5, atol=0.0)
    assert other.errors["mu_1"] == pytest.approx(plain.errors["mu_1"] / 1000, rel=1e-4)


def test_starting_points_come_from_rng_or_are_always_the_same(counts):
    before = torch.get_rng_state()
    first, again = (functional_fit(counts[0], REFERENCE_EDGES, function=ErfExpSum(2)) for _ in range(2))
    assert first.parameters == again.parameters
    seeds = (torch.Generator().manual_seed(s) for s in (1, 1, 2))
    drawn = [functional_fit(counts[0], REFERENCE_EDGES, function=ErfExpSum(2), starts=1, rng=s) for s in seeds]
    assert drawn[0].parameters == drawn[1].parameters != drawn[2].parameters
    assert_close(torch.get_rng_state(), before)


def test_real_spectra_of_another_form_give_a_finite_answer_and_a_small_p_value(spectra_folder):
    result = functional_fit(spectra_folder / "cms_dijet_13TeV_137fb_JHEP05_2020_033.csv")
    assert torch.cat([result.fit.background[:, None], result.fit.factor], -1).isfinite().all()
    assert result.fit.p_value < 1e-6
    assert "at a limit" in result.fit.message


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"function": DijetFunction(4.5)}, "dijet function needs edges above 0 and below sqrt_s = 4.5, 1 to 5 came"),
        ({"function": ExpPolynomial(4)}, "edges: 4 bins came, 5 parameters need as many"),
        ({"function": DijetFunction(), "centres": "iterate"}, '"iterate" knows ErfExpSum only, DijetFunction came'),
        ({"mask": [True] * 3 + [False]}, "mask: more than half of the 4 bins"),
        ({"starts": 0}, "starts: a whole number"),
        ({"centres": "middle"}, "centres: one of 'integrate', 'iterate' is expected, 'middle' came"),
        ({"spectrum": np.ones((2, 4))}, "one spectrum is expected, 2 came; fit them with functional_fit_many"),
        ({"edges": [0, 1, 2, 3, 4]}, "positive edges, the first is 0"),
        ({"edges": [-1, 1, 2, 3, 4]}, "positive edges, the first is -1"),
        ({"edges": None}, "edges"),
    ],
)
def test_unusable_input_is_refused(keywords, text):
    given = {"spectrum": np.ones(4), "edges": [1, 2, 3, 4, 5]} | keywords
    with pytest.raises(InputError, match=text):
        functional_fit(given.pop("spectrum"), given.pop("edges"), **given)


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"rho": (0.0, 1.0)}, "rho: a range above 0"),
        ({"alpha": (3.0, 2.0)}, "alpha: a range"),
        ({"sigma": (1.0, math.inf)}, "sigma: a range"),
        ({"mu": (1.0, 2.0, 3.0)}, "mu: a range"),
    ],
)
def test_unusable_ranges_are_refused(keywords, text):
    with pytest.raises(InputError, match=text):
        ErfExpRanges(**keywords)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: ErfExpSum(0), "n_components: a whole number from 1 upwards is expected, 0 came"),
        (lambda: ErfExpSum(1.5), "n_components: a whole number"),
        (lambda: DijetFunction(n_parameters=5), "n_parameters: 3 or 4 is expected, 5 came"),
        (lambda: ExpPolynomial(0), "degree: a whole number"),
    ],
)
def test_unusable_functions_are_refused(build, text):
    with pytest.raises(InputError, match=text):
        build()
