"""Every significance against the published formulae in many digits, scipy's distributions and pseudo-experiments."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from numpy.testing import assert_allclose
from torch.autograd import gradcheck

from specfit.errors import InputError
from specfit.significance import (
    asimov_significance,
    bin_significance,
    binomial_significance,
    deviance_p_value,
    deviance_terms,
    normal_deviate,
    poisson_deviance,
    poisson_significance,
    upper_tail,
)

# observed, expected, uncertainty; bin significance with it, Z_Bi, bin significance without, Poisson tail.
# The tail of 60 on 100 is P(N <= 60), with the observed count in it (arXiv:1111.2062); -4.3655 would be P(N <= 59).
TABLE = [
    (140, 100, 10, 2.5880, 2.5221, 3.7699, 3.7410),
    (25, 10, 3, 2.6543, 2.4791, 3.9767, 3.9058),
    (5, 1, 0.5, 2.3482, 2.0625, 2.8451, 2.6819),
    (60, 100, 10, -3.1791, -3.2578, -4.3245, -4.2474),
    (1050, 1000, 20, 1.3223, 1.3064, 1.5682, 1.5579),
]


def published(n, b, s):
    """The ATLAS formula (ATL-PHYS-PUB-2020-025) as printed, in the precision of mpmath's context."""
    n, b, v = mpmath.mpf(n), mpmath.mpf(b), mpmath.mpf(s) ** 2
    if v == 0:
        bracket = (n * mpmath.log(n / b) if n else 0) - (n - b)
    else:
        first = n * mpmath.log(n * (b + v) / (b**2 + n * v)) if n else 0
        bracket = first - b**2 / v * mpmath.log1p(v * (n - b) / (b * (b + v)))
    return mpmath.sqrt(2 * bracket) * (1 if n >= b else -1)


@pytest.fixture
def digits():
    """150 decimals, because the printed formula cancels down to the square of the relative excess."""
    with mpmath.workdps(150):
        yield


def leaves(*values):
    return [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]


def region(name, random, size=400):
    """Random (n, b, s) with b from 1e-6 to 1e9, s from 1e-10 to 1e5 times b and n as the name says."""
    b = 10 ** random.uniform(-6, 9, size)
    side = random.choice([-1, 1], size)
    n = {
        "anywhere": b * 10 ** random.uniform(-9, 9, size),
        "close": b * (1 + side * 10 ** random.uniform(-15, 0, size)),
        "fluctuated": np.abs(b + random.normal(0, 3, size) * np.sqrt(b)),
        "switch": b * (1 + side * 0.5 * (1 + random.normal(0, 1e-3, size))),
        "almost_empty": b * 10 ** random.uniform(-15, -6, size),
        "empty": np.zeros(size),
    }[name]
    return n, b, b * 10 ** random.uniform(-10, 5, size)


@pytest.mark.parametrize(("n", "b", "s", "with_s", "z_bi", "without_s", "tail"), TABLE)
def test_the_reference_table(n, b, s, with_s, z_bi, without_s, tail, tolerance):
    assert_allclose(bin_significance(n, b, uncertainty=s), with_s, **tolerance["printed"])
    assert_allclose(binomial_significance(n, b, uncertainty=s), z_bi, **tolerance["printed"])
    assert_allclose(bin_significance(n, b), without_s, **tolerance["printed"])
    assert_allclose(poisson_significance(n, b), tail, **tolerance["printed"])


@pytest.mark.parametrize("where", ["anywhere", "close", "fluctuated", "switch", "almost_empty", "empty"])
def test_bin_significance_is_the_published_formula(where, digits, tolerance):
    n, b, s = region(where, np.random.default_rng(7))
    with_s = [float(published(*values)) for values in zip(n, b, s, strict=True)]
    without_s = [float(published(*values, 0)) for values in zip(n, b, strict=True)]
    assert_allclose(bin_significance(n, b, uncertainty=s), with_s, **tolerance["relative"])
    assert_allclose(bin_significance(n, b), without_s, **tolerance["relative"])
    assert_allclose(poisson_deviance(n, b), np.square(without_s), **tolerance["relative"])


@pytest.mark.parametrize("relative_excess", [-0.499, -0.1, 1e-3, 0.3, 0.499, 0.6, 20.0])
def test_bin_significance_keeps_its_digits_for_any_size_of_the_uncertainty(relative_excess, digits, tolerance):
    # Several closed forms and series share the work by s^2/b: sweep it without a gap.
    b = 10.0
    n, s = b * (1 + relative_excess), np.sqrt(b * np.geomspace(1e-14, 1e14, 120))
    expected = [float(published(n, b, value)) for value in s]
    assert_allclose(bin_significance(n, b, uncertainty=s), expected, **tolerance["relative"])


def test_bin_significance_is_li_ma_equation_17(tolerance):
    random = np.random.default_rng(17)
    n_on, n_off = random.uniform(1, 500, 200), random.uniform(1, 500, 200)
    alpha = random.uniform(0.1, 3, 200)  # on-source over off-source exposure
    total = n_on + n_off
    on = n_on * np.log((1 + alpha) / alpha * n_on / total)
    off = n_off * np.log((1 + alpha) * n_off / total)
    li_ma = np.sqrt(2) * np.sqrt(on + off) * np.sign(n_on - alpha * n_off)
    ours = bin_significance(n_on, alpha * n_off, uncertainty=alpha * np.sqrt(n_off))
    assert_allclose(ours, li_ma, **tolerance["closed_form"])


@pytest.mark.parametrize(("n_on", "n_off", "tau"), [(30, 40, 2.0), (8, 40, 2.0), (7, 3, 0.5), (1000, 5000, 5.5)])
def test_bin_significance_is_the_likelihood_ratio_of_an_on_off_count(n_on, n_off, tau, tolerance):
    def nll(b):  # no signal: on counts around b, off counts around tau b
        return b - n_on * math.log(b) + tau * b - n_off * math.log(tau * b)

    fit = scipy.optimize.minimize_scalar(nll, bounds=(1e-3, n_on + n_off), method="bounded", options={"xatol": 1e-6})
    free = n_on - n_on * math.log(n_on) + n_off - n_off * math.log(n_off)
    expected = math.copysign(math.sqrt(2 * (fit.fun - free)), n_on - n_off / tau)
    ours = bin_significance(n_on, n_off / tau, uncertainty=math.sqrt(n_off) / tau)
    assert_allclose(ours, expected, **tolerance["closed_form"])


def test_background_toys_have_a_standard_normal_significance(rng, tolerance):
    b, tau = torch.full((100_000,), 2000.0), 1.5
    on, off = torch.poisson(b, generator=rng), torch.poisson(tau * b, generator=rng)
    z = bin_significance(on, off / tau, uncertainty=off.sqrt() / tau)
    assert_allclose([z.median(), z.std()], [0.0, 1.0], **tolerance["toys"])


def test_no_uncertainty_is_the_limit_of_a_small_one(tolerance):
    n, b = np.array([0.0, 1, 40, 99.999, 100, 100.001, 140, 1e4]), 100.0
    for s in (0.0, 1e-30, 1e-12, 1e-7):
        assert_allclose(bin_significance(n, b, uncertainty=s), bin_significance(n, b), **tolerance["closed_form"])


def test_an_empty_bin_has_minus_the_root_of_twice_its_expectation(tolerance):
    b = np.array([1e-12, 0.1, 3.0, 1e9])
    assert_allclose(bin_significance(0, b), -np.sqrt(2 * b), **tolerance["rounding"])
    assert_allclose(poisson_deviance(0, b), 2 * b, **tolerance["rounding"])


def test_an_excess_is_positive_and_a_deficit_negative():
    n, b, s = [150, 100, 50], 100, 12
    for z in (
        bin_significance(n, b),
        bin_significance(n, b, uncertainty=s),
        binomial_significance(n, b, uncertainty=s),
        poisson_significance(n, b),
    ):
        assert z[0] > 1
        assert abs(z[1]) < 0.1
        assert z[2] < -1


def test_asimov_significance_is_ccgv_equation_97(digits, tolerance):
    random = np.random.default_rng(97)
    signal, b = 10 ** random.uniform(-12, 6, 400), 10 ** random.uniform(-3, 9, 400)
    expected = []
    for x, y in zip(map(mpmath.mpf, signal), b, strict=True):
        expected.append(float(mpmath.sqrt(2 * ((x + y) * mpmath.log1p(x / y) - x))))
    assert_allclose(asimov_significance(signal, b), expected, **tolerance["relative"])


def test_asimov_significance_with_uncertainty_is_the_published_formula(digits, tolerance):
    random = np.random.default_rng(98)
    signal, b = 10 ** random.uniform(-6, 6, 400), 10 ** random.uniform(-3, 9, 400)
    s = b * 10 ** random.uniform(-8, 2, 400)
    expected = [float(published(mpmath.mpf(x) + y, y, z)) for x, y, z in zip(signal, b, s, strict=True)]
    assert_allclose(asimov_significance(signal, b, uncertainty=s), expected, **tolerance["relative"])


@pytest.mark.parametrize("tau", [None, 2.0])
def test_asimov_significance_is_the_median_of_toys_with_signal(tau, rng, tolerance):
    signal, background, size = 90.0, 1000.0, 100_000
    on = torch.poisson(torch.full((size,), signal + background), generator=rng)
    if tau is None:
        z, expected = bin_significance(on, background), asimov_significance(signal, background)
    else:
        off = torch.poisson(torch.full((size,), tau * background), generator=rng)
        z = bin_significance(on, off / tau, uncertainty=off.sqrt() / tau)
        expected = asimov_significance(signal, background, uncertainty=math.sqrt(background / tau))
    assert_allclose(z.median(), expected, **tolerance["toys"])


# Far and near, excess and deficit, both sides of each switch between forms (relative excess 0.01 and 0.5, s^2/b 2e4).
# fmt: off
POINTS = [
    (140.0, 100.0, 10.0), (60.0, 100.0, 10.0), (100.0, 100.0, 10.0), (100.0 + 1e-7, 100.0, 3.0),
    (100.99, 100.0, 10.0), (101.01, 100.0, 10.0), (149.9, 100.0, 10.0), (150.1, 100.0, 10.0),
    (50.1, 100.0, 10.0), (49.9, 100.0, 10.0), (120.0, 100.0, 1410.0), (120.0, 100.0, 1420.0),
    (0.1, 7.0, 0.01), (12.0, 0.2, 5.0), (3.0, 4.0, 1e-3),
]
# fmt: on


@pytest.mark.parametrize("point", POINTS)
def test_gradients_are_finite_differences(point):
    n, b, s = leaves(*point)
    assert gradcheck(lambda n, b, s: bin_significance(n, b, uncertainty=s), (n, b, s))
    assert gradcheck(bin_significance, (n, b))
    assert gradcheck(poisson_deviance, (n, b))
    assert gradcheck(lambda n, b, s: asimov_significance(n, b, uncertainty=s), (n, b, s))
    assert gradcheck(asimov_significance, (n, b))


def test_gradients_are_the_derivatives_of_the_published_formula(digits):
    random = np.random.default_rng(5)
    points = [region(name, random, 12) for name in ("anywhere", "close", "fluctuated", "switch")]
    values = [np.concatenate(part) for part in zip(*points, strict=True)]
    tensors = leaves(*values)
    z = bin_significance(tensors[0], tensors[1], uncertainty=tensors[2])
    gradients = torch.autograd.grad(z.sum(), tensors)
    for k, gradient in enumerate(gradients):
        for i, ours in enumerate(gradient.tolist()):
            point = [mpmath.mpf(float(value[i])) for value in values]
            step = point[k] * mpmath.mpf(10) ** -40
            ends = [published(*point[:k], point[k] + sign * step, *point[k + 1 :]) for sign in (1, -1)]
            exact = float((ends[0] - ends[1]) / (2 * step))
            # A derivative by s that changes Z by less than its last digit has no digits of its own.
            unit_of_z = np.finfo(float).eps * float(abs(published(*point)) / point[k])
            assert ours == pytest.approx(exact, rel=1e-8, abs=10 * unit_of_z), (k, point)


def test_gradient_of_a_vanishing_signal_is_one_over_the_spread(tolerance):
    signal, b, s = leaves(0.0, 100.0, 24.0)
    (without,) = torch.autograd.grad(asimov_significance(signal, b), signal)
    (with_s,) = torch.autograd.grad(asimov_significance(signal, b, uncertainty=s), signal)
    assert_allclose([without, with_s], [1 / 10, 1 / 26], **tolerance["rounding"])


@pytest.mark.parametrize("s", [None, 0.0, 1e-8, 1.0, 1e5])
def test_values_and_gradients_are_finite_at_every_edge(s):
    for n, b in itertools.product([0.0, 1e-3, 1.0, 5.0], [0.0, 1e-30, 1e-3, 1.0, 1e9]):
        for formula in (bin_significance, asimov_significance, poisson_deviance):
            arguments = leaves(n, b)
            keywords = {}
            if s is not None and formula is not poisson_deviance:
                keywords["uncertainty"] = leaves(s)[0]
            z = formula(*arguments, **keywords)
            gradients = torch.autograd.grad(z, [*arguments, *keywords.values()])
            assert all(value.isfinite() for value in (z, *gradients)), (formula.__name__, n, b, s)


def test_poisson_deviance_is_twice_the_kullback_leibler_divergence(tolerance):
    n, b = np.array([0, 1e-3, 0.4, 1, 5, 60, 140, 1e6])[:, None], np.array([1e-3, 1, 55, 100, 3e5])
    assert_allclose(poisson_deviance(n, b), 2 * scipy.special.kl_div(n, b), **tolerance["closed_form"])


@pytest.mark.parametrize("n", [0, 1e-3, 0.4, 1, 5, 60, 140, 1e6, 1e9])
@pytest.mark.parametrize("b", [1e-3, 1, 55, 100, 3e5, 1e9 + 3e4])
def test_deviance_terms_are_exact_to_the_rounding_of_an_excess(n, b, digits):
    n_exact, b_exact = mpmath.mpf(n), mpmath.mpf(b)
    log_ratio = mpmath.log(n_exact / b_exact) if n else mpmath.mpf(0)
    exact = float(2 * (n_exact * log_ratio - n_exact + b_exact))
    terms = deviance_terms(*(torch.tensor(v, dtype=torch.float64) for v in (n, b))).item()
    assert terms == pytest.approx(exact, abs=1e-15 * (abs(n - b) + n * abs(float(log_ratio))))


def test_deviance_terms_have_the_gradient_of_the_deviance_also_without_events():
    n, b = (
        torch.tensor([0.0, 2.0, 90.0]).double(),
        torch.tensor([0.5, 2.5, 80.0], dtype=torch.float64, requires_grad=True),
    )
    (gradient,) = torch.autograd.grad(deviance_terms(n, b).sum(), b)
    assert_allclose(gradient.numpy(), 2 * (1 - n / b.detach()).numpy(), rtol=1e-12)


def test_poisson_significance_is_the_tail_of_scipys_poisson(tolerance):
    n, b = np.arange(0, 200)[:, None], np.array([0.01, 0.6, 1, 4.5, 30, 100.0])
    p = np.where(n >= b, scipy.stats.poisson.sf(n - 1, b), scipy.stats.poisson.cdf(n, b))
    expected = np.where(n >= b, 1, -1) * np.maximum(scipy.stats.norm.isf(p), 0)
    is_resolved = p > 1e-300
    assert is_resolved.sum() > 600
    assert_allclose(poisson_significance(n, b)[is_resolved], expected[is_resolved], **tolerance["closed_form"])


def test_exact_tails_saturate_and_have_no_significance_above_one_half():
    # Otherwise nothing observed where nothing is expected would be an excess of 8 standard deviations.
    assert (poisson_significance([0, 0, 1, 100], [0.0, 0.1, 0.99, 100.2]) == 0).all()
    assert poisson_significance(1e6, 1.0) == pytest.approx(38.4, abs=0.1)
    assert poisson_significance(0, 1e6) == pytest.approx(-38.4, abs=0.1)
    assert binomial_significance(1e6, 1.0, uncertainty=0.1) == pytest.approx(38.4, abs=0.1)
    assert binomial_significance(0, 5.0, uncertainty=1.0) == pytest.approx(-38.4, abs=0.1)


def test_z_bi_is_scipys_binomial_test_of_integer_counts(tolerance):
    n_on, n_off = np.meshgrid([1, 2, 9, 40, 300], [1, 6, 50, 400])
    for tau in (0.3, 1.0, 4.0):
        p = scipy.stats.binom.sf(n_on - 1, n_on + n_off, 1 / (1 + tau))
        complement = scipy.stats.binom.cdf(n_on - 1, n_on + n_off, 1 / (1 + tau))
        expected = np.where(p < 0.5, scipy.stats.norm.isf(p), scipy.stats.norm.ppf(complement))
        ours = binomial_significance(n_on, n_off / tau, uncertainty=np.sqrt(n_off) / tau)
        is_resolved = np.minimum(p, complement) > 1e-300
        assert_allclose(ours[is_resolved], expected[is_resolved], **tolerance["closed_form"])


def test_z_bi_is_a_beta_distribution_for_any_numbers(tolerance):
    random = np.random.default_rng(480)
    n, b, s = random.uniform(0.1, 90, 300), random.uniform(0.5, 90, 300), 10 ** random.uniform(-3, 1.5, 300)
    tau = b / s**2
    beta, x = scipy.stats.beta(n, tau * b + 1), 1 / (1 + tau)
    expected = np.where(beta.cdf(x) < 0.5, scipy.stats.norm.isf(beta.cdf(x)), scipy.stats.norm.ppf(beta.sf(x)))
    is_resolved = expected > -38
    assert_allclose(
        binomial_significance(n, b, uncertainty=s)[is_resolved], expected[is_resolved], **tolerance["closed_form"]
    )


@pytest.mark.parametrize(("n", "b"), [(140, 100.0), (60, 100.0), (0.3, 2.0), (1000, 1000.0)])
def test_z_bi_without_uncertainty_is_the_limit_of_a_small_one(n, b):
    limit = scipy.stats.norm.isf(scipy.special.gammainc(n, b))  # P(N >= n; b)
    for s in (0.0, 1e-7, 1e-6, 2e-6, 1e-5, 1e-4):
        assert binomial_significance(n, b, uncertainty=s) == pytest.approx(limit, abs=1e-6)


def test_deviance_p_value_is_the_chi_square_tail(tolerance):
    deviance, ndf = np.array([0.0, 0.1, 12, 60, 500])[:, None], np.array([1.0, 3.5, 47, 200])
    assert_allclose(deviance_p_value(deviance, ndf), scipy.stats.chi2.sf(deviance, ndf), **tolerance["torch_series"])


def test_all_formulae_broadcast_and_keep_the_kind():
    n, b, s = np.array([[90.0], [100.0], [130.0]]), np.array([80.0, 100.0, 110.0, 140.0]), 5.0
    for formula, keywords in (
        (bin_significance, {}),
        (bin_significance, {"uncertainty": s}),
        (asimov_significance, {"uncertainty": s}),
        (binomial_significance, {"uncertainty": s}),
        (poisson_significance, {}),
        (poisson_deviance, {}),
        (deviance_p_value, {}),
    ):
        array = formula(n, b, **keywords)
        tensor = formula(torch.from_numpy(n), b.tolist(), **keywords)
        single = formula(float(n[2, 0]), int(b[1]), **keywords)
        assert (type(array), type(tensor), type(single)) == (np.ndarray, torch.Tensor, float)
        assert tensor.dtype == torch.float64
        assert array.shape == (3, 4)
        np.testing.assert_array_equal(array, tensor.numpy())
        assert single == array[2, 1]


def test_an_uncertainty_broadcasts_over_data_and_expectation():
    z = bin_significance(130, 100, uncertainty=[[0.0], [10.0]])
    assert z.tolist() == [[bin_significance(130, 100)], [bin_significance(130, 100, uncertainty=10)]]


@pytest.mark.parametrize("p", [1e-300, 1e-10, 0.0013, 0.3, 0.5, 0.9, 1 - 1e-12])
def test_a_p_value_is_the_significance_of_scipy_and_back(p):
    assert normal_deviate(p) == pytest.approx(scipy.stats.norm.isf(p), rel=1e-13)
    assert upper_tail(torch.tensor(normal_deviate(p), dtype=torch.float64)).item() == pytest.approx(p, rel=1e-10)


def test_no_probability_and_certainty_are_infinitely_far():
    assert (normal_deviate(0.0), normal_deviate(1.0)) == (math.inf, -math.inf)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bin_significance([1, -2], 3), r"observed: must not be negative, -2 came"),
        (lambda: bin_significance(1, [-1.5, 3]), r"expected: must not be negative, -1.5 came"),
        (lambda: bin_significance(1, 3, uncertainty=-1), r"uncertainty: must not be negative, -1 came"),
        (lambda: asimov_significance(-1, 3), r"signal: must not be negative, -1 came"),
        (lambda: asimov_significance(1, -3), r"background: must not be negative, -3 came"),
        (lambda: asimov_significance(1, 3, uncertainty=-2), r"uncertainty: must not be negative, -2 came"),
        (lambda: poisson_significance(-1, 3), r"observed: must not be negative, -1 came"),
        (lambda: poisson_deviance(1, -3), r"expected: must not be negative, -3 came"),
        (lambda: binomial_significance(1, 3, uncertainty=-2), r"uncertainty: must not be negative, -2 came"),
        (lambda: deviance_p_value(-1, 3), r"deviance: must not be negative, -1 came"),
        (lambda: deviance_p_value(1, [3, 0]), r"ndf: must be above 0, 0 came; a fit needs more bins than parameters"),
        (lambda: bin_significance("many", 3), r"observed: real numbers are expected"),
        (lambda: bin_significance([1, 2, 3], [1, 2]), r"observed \(3,\), expected \(2,\): these shapes do not broad"),
    ],
)
def test_a_callers_mistake_names_the_argument_and_what_came(call, message):
    with pytest.raises(InputError, match=message):
        call()
